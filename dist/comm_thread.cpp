// Threads, one shared Health, and rings in the process's own memory. Delicate: of the exceptions that one failure
// causes on all ranks, the first in time is the one that tells why.
#include "dist/comm_thread.h"

#include <exception>
#include <map>
#include <thread>

#include "dist/flight_recorder.h"
#include "dist/ring_memory.h"

namespace castor::dist {
namespace {

/// What the ranks of a process share.
class Hub {
 public:
  Health& health() { return health_; }

  /// The memory of a group: made by the first member that asks, forgotten once all have it.
  std::shared_ptr<RingMemory> memory(const std::string& group, int ranks) {
    const std::lock_guard lock(mutex_);
    Entry& entry = groups_[group];
    if (!entry.memory) {
      entry.memory = std::make_shared<RingMemory>(map_private_memory(RingMemory::bytes_for(ranks)), ranks);
    }
    auto result = entry.memory;
    if (++entry.joined == ranks) groups_.erase(group);
    return result;
  }

 private:
  struct Entry {
    std::shared_ptr<RingMemory> memory;
    int joined = 0;
  };
  Health health_;
  std::mutex mutex_;
  std::map<std::string, Entry> groups_;
};

class ThreadFabric final : public Fabric {
 public:
  ThreadFabric(std::shared_ptr<Hub> hub, int rank) : hub_(std::move(hub)), recorder_(rank) {}
  Health& health() override { return hub_->health(); }
  FlightRecorder& recorder() override { return recorder_; }
  std::unique_ptr<Link> connect(const std::string& name, const std::vector<int>& members, int rank,
                                std::chrono::milliseconds) override {
    // One process has one heap, if it has one: all read each other's tensors there.
    PeerHeaps heaps;
    if (const SharedHeap* own = SharedHeap::current()) heaps.assign(members.size(), PeerHeap::map(own->address()));
    return std::make_unique<RingLink>(hub_->memory(name, static_cast<int>(members.size())), rank, members,
                                      hub_->health(), std::move(heaps));
  }

 private:
  std::shared_ptr<Hub> hub_;
  FlightRecorder recorder_;
};

}  // namespace

void run_ranks(int world_size, const std::function<void(Comm&)>& fn, const CommOptions& options) {
  if (world_size < 1) throw ShapeError(cat("run_ranks: expected at least one rank, got ", world_size));
  const auto hub = std::make_shared<Hub>();
  std::mutex mutex;
  std::exception_ptr first;
  const auto run_one = [&](int rank) {
    std::unique_ptr<HostComm> comm;
    try {
      comm = HostComm::connect_world(std::make_shared<ThreadFabric>(hub, rank), rank, world_size, options);
      fn(*comm);
      hub->health().set_left(rank);
    } catch (...) {
      std::string what = "an exception";
      const std::exception_ptr error = std::current_exception();
      {
        const std::lock_guard lock(mutex);
        if (!first) first = error;
      }
      try {
        std::rethrow_exception(error);
      } catch (const std::exception& known) {
        what = known.what();
      } catch (...) {
      }
      hub->health().report({rank, "run_ranks", 0, false, cat("rank ", rank, " ended with an error: ", what)});
    }
  };
  std::vector<std::thread> threads;
  for (int rank = 0; rank < world_size; ++rank) threads.emplace_back(run_one, rank);
  for (std::thread& thread : threads) thread.join();
  if (first) std::rethrow_exception(first);
}

}  // namespace castor::dist
