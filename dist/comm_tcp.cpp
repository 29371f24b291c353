// The mesh. Lower places connect to higher ones, which know who comes by a first message that names the group and the
// place. Delicate: while it calls, is called or waits for a word, a rank looks at Health too, since the other may have
// died.
#include "dist/comm_tcp.h"

#include <cstring>
#include <optional>

#include "core/base/digest.h"
#include "core/base/file.h"
#include "dist/gate.h"

namespace castor::dist {
namespace {

constexpr std::chrono::milliseconds kTurn{50};
constexpr std::size_t kPiece = std::size_t{256} << 10;  // so that one peer does not hold up the others

/// The first message of a caller.
struct Hello {
  std::uint64_t group;
  std::int64_t place;
};

class TcpLink final : public Link {
 public:
  TcpLink(std::vector<std::optional<Socket>> sockets, int rank) : sockets_(std::move(sockets)), rank_(rank) {}

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(sockets_.size()); }
  std::size_t try_send(int peer, std::span<const std::byte> bytes) override {
    try {
      return socket(peer).try_write(bytes.first(std::min(bytes.size(), kPiece)));
    } catch (const SocketError& error) {
      throw PeerLost(peer, error.what());
    }
  }
  std::size_t try_receive(int peer, std::span<std::byte> into) override {
    try {
      return socket(peer).try_read(into.first(std::min(into.size(), kPiece)));
    } catch (const SocketError& error) {
      throw PeerLost(peer, error.what());
    }
  }
  std::chrono::microseconds spin() const override { return std::chrono::microseconds(0); }
  std::size_t window_bytes() const override { return std::size_t{512} << 10; }
  bool gone(int) override { return false; }  // the connection ends, behind the last bytes
  std::uint32_t ticket() override { return 0; }
  void wait(std::uint32_t, std::span<const int> sends, std::span<const int> receives,
            std::chrono::milliseconds limit) override {
    wanted_.clear();
    for (const int peer : receives) wanted_.push_back({socket(peer).descriptor(), true, false});
    for (const int peer : sends) wanted_.push_back({socket(peer).descriptor(), false, true});
    wait_ready(wanted_, Clock::now() + limit);
  }

 private:
  Socket& socket(int peer) { return *sockets_[static_cast<std::size_t>(peer)]; }

  std::vector<std::optional<Socket>> sockets_;  // by place; none for the own
  int rank_;
  std::vector<Readiness> wanted_;
};

}  // namespace

std::unique_ptr<Link> connect_tcp(Store& store, const JobSecret& secret, const Health& health, const std::string& name,
                                  const std::vector<int>& members, int rank, std::chrono::milliseconds limit) {
  const auto deadline = Clock::now() + limit;
  const int size = static_cast<int>(members.size());
  const std::uint64_t group = xxh3(as_byte_span(name));
  std::vector<std::optional<Socket>> sockets(members.size());
  std::optional<Gate> gate;
  const Look look = [&] {
    if (health.failed()) throw JobFailed();
  };
  const auto key = [&](int place) { return cat("tcp/", name, "/", place); };
  if (rank > 0) {
    gate.emplace(store.local_address(), 0, secret, cat("rank ", members[static_cast<std::size_t>(rank)]));
    store.set(key(rank), cat(store.local_address(), " ", gate->port()));
  }
  for (int place = rank + 1; place < size; ++place) {
    const std::string address = wait_for_key(store, health, key(place), limit);
    const std::size_t space = address.find(' ');
    Socket socket =
        connect_through_gate(address.substr(0, space), static_cast<std::uint16_t>(std::stoi(address.substr(space + 1))),
                             secret, deadline, look);
    const Hello hello{group, rank};
    socket.write_all(std::as_bytes(std::span(&hello, 1)), deadline, look);
    sockets[static_cast<std::size_t>(place)] = std::move(socket);
  }
  for (int missing = rank; missing > 0;) {
    look();
    if (Clock::now() >= deadline) {
      throw SocketError(
          cat("group ", name, ": ", missing, " of its ranks did not connect within ", limit.count(), " ms"));
    }
    std::vector<Readiness> wanted;
    Clock::time_point wake = std::min(deadline, Clock::now() + kTurn);
    gate->add_wanted(wanted, wake);
    wait_ready(wanted, wake);
    for (Socket& socket : gate->step()) {
      Hello hello{};
      socket.read_all(std::as_writable_bytes(std::span(&hello, 1)), deadline, look);
      const auto place = static_cast<std::size_t>(hello.place);
      if (hello.group != group || hello.place < 0 || hello.place >= rank || sockets[place]) continue;
      sockets[place] = std::move(socket);
      --missing;
    }
  }
  return std::make_unique<TcpLink>(std::move(sockets), rank);
}

}  // namespace castor::dist
