// The watch over a job's processes: each rank keeps one connection to the store, over which both say regularly that
// they live. The store notices who does not, decides which failure of several was the first, and tells everyone.
//
// Delicate: this is how a rank learns of a death that its own transport cannot see (shared memory has no end of file; a
// stopped process keeps its connections), within a few seconds whatever it is doing.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "dist/failure.h"
#include "dist/flight_recorder.h"
#include "dist/secret.h"
#include "dist/wire.h"

namespace castor::dist {

class Watch {
 public:
  /// Enlists this process as `rank` and starts a thread. `health` learns of failures and of ranks that leave, and hands
  /// its reports to the store; both references must outlive the watch. Throws SocketError.
  Watch(const std::string& host, std::uint16_t port, const JobSecret& secret, int rank, Health& health,
        const FlightRecorder& recorder, Clock::time_point deadline);
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;
  /// Leaves the job: the others learn that this rank ended well, or, while an exception unwinds, that it failed.
  ~Watch();

 private:
  void run();
  void handle(FrameReader& frame);
  void report(const Failure& failure);

  int rank_;
  std::string store_;  // host:port, for texts
  Health& health_;
  const FlightRecorder& recorder_;
  std::mutex mutex_;  // of the connection: reports come from other threads
  FrameSocket connection_;
  std::atomic<bool> closing_{false};
  std::thread thread_;
};

/// Tells a job's store of a failure on behalf of a rank that cannot do so itself, such as one that died before it
/// joined. What the store has heard before still counts. Throws SocketError.
void report_to_store(const std::string& host, std::uint16_t port, const JobSecret& secret, const Failure& failure,
                     Clock::time_point deadline);

}  // namespace castor::dist
