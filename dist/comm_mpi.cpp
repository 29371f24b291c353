// Each stream is a row of messages on MPI's world, told apart by a tag that the group has for itself. One message a
// peer is on its way at a time, from a buffer of ours, so that a collective that fails leaves no caller's memory with
// MPI. Delicate: nothing here blocks; MPI moves bytes only while it is called, so `wait` naps briefly.
#include "dist/comm_mpi.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>

#include <mpi.h>

#include "core/base/error.h"

namespace castor::dist {
namespace {

constexpr std::size_t kMessage = std::size_t{128} << 10;
constexpr std::chrono::microseconds kNap{50};
constexpr int kYields = 200;

/// MPI as this process has started it.
class MpiWorld {
 public:
  /// Starts MPI at the first call. Throws ConfigError.
  static MpiWorld& get() {
    static MpiWorld world;
    return world;
  }
  int rank() const { return rank_; }
  int size() const { return size_; }
  int largest_tag() const { return largest_tag_; }
  /// From now on MPI is not ended with the process: ranks that it would wait for may be gone.
  void give_up() { is_sound_ = false; }

 private:
  MpiWorld() {
    int started = 0;
    MPI_Initialized(&started);
    int provided = MPI_THREAD_SINGLE;
    if (started != 0) {
      MPI_Query_thread(&provided);
    } else {
      MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &provided);
    }
    if (provided < MPI_THREAD_MULTIPLE) {
      throw ConfigError(
          "transport mpi: this MPI does not allow calls from several threads, which groups at work at "
          "once need; use transport auto",
          "env_cfg.dist_cfg.transport");
    }
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
    MPI_Comm_size(MPI_COMM_WORLD, &size_);
    int* most = nullptr;
    int has_most = 0;
    MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, &most, &has_most);
    if (has_most != 0) largest_tag_ = *most;
  }
  ~MpiWorld() {
    int ended = 0;
    MPI_Finalized(&ended);
    if (is_sound_ && ended == 0) MPI_Finalize();
  }

  int rank_ = 0;
  int size_ = 1;
  int largest_tag_ = 32767;
  std::atomic<bool> is_sound_{true};
};

class MpiLink final : public Link {
 public:
  MpiLink(std::vector<int> members, int rank, int tag, const Health& health)
      : members_(std::move(members)), rank_(rank), tag_(tag), health_(health), streams_(members_.size()) {}

  ~MpiLink() override {
    // A healthy group has nothing under way but the receives that are always posted.
    if (health_.failed()) MpiWorld::get().give_up();
    for (Stream& stream : streams_) {
      if (stream.receiving != MPI_REQUEST_NULL) {
        MPI_Cancel(&stream.receiving);
        MPI_Wait(&stream.receiving, MPI_STATUS_IGNORE);
      }
      if (stream.sending == MPI_REQUEST_NULL) continue;
      if (!health_.failed()) {
        MPI_Wait(&stream.sending, MPI_STATUS_IGNORE);
      } else {
        stream.out.release();  // MPI may read it as long as the process lives
      }
    }
  }

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(members_.size()); }

  std::size_t try_send(int peer, std::span<const std::byte> bytes) override {
    Stream& stream = stream_of(peer);
    if (bytes.empty() || !is_done(peer, stream.sending, MPI_STATUS_IGNORE)) return 0;
    const std::size_t count = std::min(bytes.size(), kMessage);
    if (!stream.out) stream.out = std::make_unique<std::byte[]>(kMessage);
    std::memcpy(stream.out.get(), bytes.data(), count);
    check(peer, MPI_Isend(stream.out.get(), static_cast<int>(count), MPI_BYTE, member(peer), tag_, MPI_COMM_WORLD,
                          &stream.sending));
    return count;
  }

  std::size_t try_receive(int peer, std::span<std::byte> into) override {
    Stream& stream = stream_of(peer);
    if (stream.taken == stream.came) fetch(peer, stream);
    const std::size_t count = std::min(into.size(), stream.came - stream.taken);
    if (count == 0) return 0;
    std::memcpy(into.data(), stream.in.get() + stream.taken, count);
    stream.taken += count;
    return count;
  }

  bool gone(int peer) override { return health_.has_left(member(peer)); }

  std::uint32_t ticket() override { return 0; }

  void wait(std::uint32_t, std::span<const int> sends, std::span<const int> receives,
            std::chrono::milliseconds limit) override {
    const auto deadline = Clock::now() + limit;
    for (int turn = 0; Clock::now() < deadline; ++turn) {
      for (const int peer : receives) {
        Stream& stream = stream_of(peer);
        if (stream.taken == stream.came) fetch(peer, stream);
        if (stream.taken < stream.came) return;
      }
      for (const int peer : sends) {
        if (is_done(peer, stream_of(peer).sending, MPI_STATUS_IGNORE)) return;
      }
      if (turn < kYields) {
        std::this_thread::yield();
      } else {
        std::this_thread::sleep_for(kNap);
      }
    }
  }

 private:
  struct Stream {
    std::unique_ptr<std::byte[]> out;
    std::unique_ptr<std::byte[]> in;
    MPI_Request sending = MPI_REQUEST_NULL;
    MPI_Request receiving = MPI_REQUEST_NULL;
    std::size_t came = 0;  // bytes in `in`
    std::size_t taken = 0;
  };

  Stream& stream_of(int peer) { return streams_[static_cast<std::size_t>(peer)]; }
  int member(int peer) const { return members_[static_cast<std::size_t>(peer)]; }

  static void check(int peer, int error) {
    if (error == MPI_SUCCESS) return;
    char text[MPI_MAX_ERROR_STRING];
    int length = 0;
    MPI_Error_string(error, text, &length);
    throw PeerLost(peer, cat("MPI: ", std::string_view(text, static_cast<std::size_t>(length))));
  }

  static bool is_done(int peer, MPI_Request& request, MPI_Status* status) {
    int done = 0;
    check(peer, MPI_Test(&request, &done, status));
    return done != 0;
  }

  /// Takes the next message if it has come; one receive is always posted from the first try on.
  void fetch(int peer, Stream& stream) {
    if (stream.receiving == MPI_REQUEST_NULL) {
      if (!stream.in) stream.in = std::make_unique<std::byte[]>(kMessage);
      stream.came = stream.taken = 0;
      check(peer, MPI_Irecv(stream.in.get(), static_cast<int>(kMessage), MPI_BYTE, member(peer), tag_, MPI_COMM_WORLD,
                            &stream.receiving));
    }
    MPI_Status status;
    if (!is_done(peer, stream.receiving, &status)) return;
    int count = 0;
    MPI_Get_count(&status, MPI_BYTE, &count);
    stream.came = static_cast<std::size_t>(count);
    stream.taken = 0;
  }

  std::vector<int> members_;
  int rank_;
  int tag_;
  const Health& health_;
  std::vector<Stream> streams_;  // by peer
};

}  // namespace

std::unique_ptr<Link> connect_mpi(Store& store, const Health& health, const std::string& name,
                                  const std::vector<int>& members, int rank, std::chrono::milliseconds limit) {
  MpiWorld& world = MpiWorld::get();
  const int self = members[static_cast<std::size_t>(rank)];
  if (world.rank() != self || *std::max_element(members.begin(), members.end()) >= world.size()) {
    throw ConfigError(cat("transport mpi: this is rank ", self, " of the job and rank ", world.rank(), " of ",
                          world.size(), " of MPI's world; start the ranks with mpirun, or use transport auto"),
                      "env_cfg.dist_cfg.transport");
  }
  const std::string key = cat("mpi/", name);
  if (rank == 0) store.set(key, cat(store.add("mpi groups", 1)));
  const int tag = std::stoi(wait_for_key(store, health, key, limit));
  if (tag > world.largest_tag()) {
    throw ConfigError(cat("transport mpi: more than ", world.largest_tag(), " groups were made"),
                      "env_cfg.dist_cfg.transport");
  }
  // All are here before anyone sends: a message to a rank that has not started MPI would be an error.
  store.set(cat(key, "/", rank), "");
  for (std::size_t place = 0; place < members.size(); ++place) {
    wait_for_key(store, health, cat(key, "/", place), limit);
  }
  return std::make_unique<MpiLink>(members, rank, tag, health);
}

}  // namespace castor::dist
