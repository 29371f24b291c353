// The server's side: one thread, one loop over all connections. It also decides what counts as the job's first failure
// and tells all ranks; see dist/watch.h for theirs.
//
// Delicate: a loop that was itself held up (a stopped machine) must not take everyone else's silence for death, so the
// time of a long pause is given back to all.
#include <algorithm>
#include <atomic>
#include <list>
#include <map>
#include <thread>

#include "core/base/log.h"
#include "dist/gate.h"
#include "dist/store.h"
#include "dist/store_protocol.h"

namespace castor::dist {
namespace {

constexpr std::size_t kMaxKey = 1024;
constexpr std::size_t kMaxValue = std::size_t{1} << 20;
constexpr std::size_t kMaxNumbers = 100'000;
constexpr std::size_t kMaxBytes = std::size_t{256} << 20;
constexpr std::chrono::milliseconds kTick{100};

/// One connection that has proven the secret.
struct Client {
  FrameSocket connection;
  std::string waited_key;  // parked until someone sets it
  Clock::time_point wait_deadline;
  bool waits = false;
  int rank = -1;      // enlisted as this rank
  bool left = false;  // and ended well
  Clock::time_point last_word;
  std::string doing;  // what it last said it does
};

}  // namespace

class StoreServer::Loop {
 public:
  Loop(const std::string& address, std::uint16_t port, const JobSecret& secret)
      : gate_(address, port, secret, "store"), port_(gate_.port()), thread_([this] { run(); }) {}
  ~Loop() {
    closing_ = true;
    thread_.join();
  }
  std::uint16_t port() const { return port_; }
  std::uint64_t refused() const { return refused_; }
  int enlisted() const { return enlisted_; }

 private:
  void run();
  void serve(Client& client);
  void answer(Client& client, FrameReader& frame);
  void set(const std::string& key, const std::string& value);
  void release(Client& client);
  void decide(Failure failure);
  void tell_all(const std::string& frame);
  void drop_dead();
  std::string name_of(const Client& client) const { return cat("rank ", client.rank); }

  Gate gate_;
  std::uint16_t port_;
  std::map<std::string, std::string> values_;
  std::map<std::string, std::int64_t> numbers_;
  std::size_t bytes_ = 0;
  std::list<Client> clients_;
  bool failed_ = false;
  Failure failure_;
  std::atomic<bool> closing_{false};
  std::atomic<std::uint64_t> refused_{0};
  std::atomic<int> enlisted_{0};
  std::thread thread_;
};

void StoreServer::Loop::tell_all(const std::string& frame) {
  for (Client& client : clients_) {
    if (client.rank < 0) continue;
    try {
      client.connection.send(frame);
    } catch (const SocketError&) {
      // Its own turn finds out.
    }
  }
}

void StoreServer::Loop::decide(Failure failure) {
  if (failed_) return;
  for (const Client& client : clients_) {
    if (client.rank >= 0 && client.rank == failure.rank && failure.late && !client.doing.empty()) {
      failure.text += cat("; rank ", client.rank, " last said it is ", client.doing);
    }
  }
  failed_ = true;
  failure_ = failure;
  tell_all(frame_of_failure(StoreMessage::kFailed, failure_));
}

void StoreServer::Loop::release(Client& client) {
  client.waits = false;
  const auto found = values_.find(client.waited_key);
  client.connection.send(found == values_.end() ? begin_frame(StoreMessage::kNone).finish()
                                                : begin_frame(StoreMessage::kValue).add(found->second).finish());
}

void StoreServer::Loop::set(const std::string& key, const std::string& value) {
  if (key.size() > kMaxKey || value.size() > kMaxValue) throw SocketError("a key or value beyond its bound");
  std::string& place = values_[key];
  bytes_ += key.size() + value.size();
  bytes_ -= place.empty() ? 0 : key.size() + place.size();
  if (bytes_ > kMaxBytes) throw SocketError("the store is full");
  place = value;
  for (Client& client : clients_) {
    if (!client.waits || client.waited_key != key) continue;
    try {
      release(client);
    } catch (const SocketError&) {
      // Its own turn finds out; whoever set the key is not to blame.
    }
  }
}

void StoreServer::Loop::answer(Client& client, FrameReader& frame) {
  switch (static_cast<StoreMessage>(frame.number<std::uint8_t>())) {
    case StoreMessage::kSet: {
      const std::string key = frame.text();
      set(key, frame.text());
      return client.connection.send(begin_frame(StoreMessage::kDone).finish());
    }
    case StoreMessage::kWait:
      client.waited_key = frame.text();
      client.wait_deadline = Clock::now() + std::chrono::milliseconds(frame.number<std::uint32_t>());
      client.waits = true;
      if (values_.contains(client.waited_key)) release(client);
      return;
    case StoreMessage::kAdd: {
      const std::string key = frame.text();
      const std::int64_t amount = frame.number<std::int64_t>();
      if (key.size() > kMaxKey || numbers_.size() > kMaxNumbers) throw SocketError("a number beyond the store's bound");
      const std::int64_t sum = numbers_[key] += amount;
      return client.connection.send(begin_frame(StoreMessage::kNumber).add(sum).finish());
    }
    case StoreMessage::kEnlist:
      client.rank = frame.number<std::int32_t>();
      if (failed_) client.connection.send(frame_of_failure(StoreMessage::kFailed, failure_));
      return;
    case StoreMessage::kBeat:
      client.doing = frame.text();
      return;
    case StoreMessage::kReport:
      return decide(read_failure(frame));
    case StoreMessage::kLeave:
      client.left = true;
      return tell_all(begin_frame(StoreMessage::kLeft).add(static_cast<std::int32_t>(client.rank)).finish());
    default:
      throw SocketError("a message that clients do not send");
  }
}

void StoreServer::Loop::serve(Client& client) {
  FrameReader frame;
  while (client.connection.try_receive(frame)) {
    client.last_word = Clock::now();
    answer(client, frame);
  }
  client.connection.flush();
  if (client.waits && Clock::now() >= client.wait_deadline) release(client);
}

void StoreServer::Loop::drop_dead() {
  for (const Client& client : clients_) {
    if (client.rank < 0 || client.left || Clock::now() - client.last_word < kSilence) continue;
    decide({client.rank, "", 0, false,
            cat(name_of(client), " has given no sign of life for ", kSilence.count(),
                " ms: it is stopped, or its machine or the network to it is gone",
                client.doing.empty() ? "" : "; it was last ", client.doing)});
  }
}

void StoreServer::Loop::run() {
  Clock::time_point next_beat = Clock::now();
  Clock::time_point last_turn = Clock::now();
  while (!closing_) {
    std::vector<Readiness> wanted;
    Clock::time_point deadline = Clock::now() + kTick;
    gate_.add_wanted(wanted, deadline);
    for (const Client& client : clients_) wanted.push_back(client.connection.wanted());
    wait_ready(wanted, deadline);
    const auto pause = Clock::now() - last_turn;
    last_turn = Clock::now();
    if (pause > 5 * kTick) {
      for (Client& client : clients_) client.last_word += pause;
    }
    for (Socket& socket : gate_.step()) {
      clients_.push_back({FrameSocket(std::move(socket)), {}, {}, false, -1, false, Clock::now(), {}});
    }
    for (auto client = clients_.begin(); client != clients_.end();) {
      try {
        serve(*client);
        ++client;
      } catch (const SocketError& error) {
        const Client gone = std::move(*client);
        client = clients_.erase(client);
        if (gone.rank >= 0 && !gone.left) {
          decide({gone.rank, "", 0, false,
                  cat(name_of(gone), " is dead: its process ended without leaving the job (", error.what(), ")",
                      gone.doing.empty() ? "" : "; it was last ", gone.doing)});
        }
      }
    }
    if (Clock::now() >= next_beat) {
      next_beat = Clock::now() + kBeatTime;
      tell_all(begin_frame(StoreMessage::kBeat).add(std::string_view()).finish());
      drop_dead();
    }
    refused_ = gate_.refused();
    enlisted_ =
        static_cast<int>(std::ranges::count_if(clients_, [](const Client& c) { return c.rank >= 0 && !c.left; }));
  }
}

StoreServer::StoreServer(const std::string& address, std::uint16_t port, const JobSecret& secret)
    : loop_(std::make_unique<Loop>(address, port, secret)) {}
StoreServer::~StoreServer() = default;
std::uint16_t StoreServer::port() const { return loop_->port(); }
bool StoreServer::wait_for_all_to_leave(std::chrono::milliseconds limit) const {
  const auto deadline = Clock::now() + limit;
  while (loop_->enlisted() > 0) {
    if (Clock::now() >= deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return true;
}
std::uint64_t StoreServer::refused() const { return loop_->refused(); }

}  // namespace castor::dist
