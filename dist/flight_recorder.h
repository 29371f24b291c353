// The last collectives of a rank, kept in a ring and written as JSON when the job fails: where each rank stood is what
// explains a hang. Recording costs a copy of a label; nothing is written while all goes well.
#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "core/base/clock.h"
#include "core/base/file_system.h"
#include "core/base/json.h"
#include "dist/failure.h"

namespace castor::dist {

/// One collective as one rank saw it.
struct FlightRecord {
  enum class State : std::uint8_t { kQueued, kRunning, kDone, kFailed };
  std::string group;
  std::string text;  ///< "all_reduce 'blocks.3.w' f32 x 1024"
  std::uint64_t sequence = 0;
  State state = State::kQueued;
  double queued_s = 0;  ///< seconds since the recorder began; all three
  double started_s = 0;
  double ended_s = 0;
};

/// Safe to use from any thread.
class FlightRecorder {
 public:
  /// Keeps the last `capacity` (>= 1) collectives of the job's rank `rank`.
  explicit FlightRecorder(int rank = 0, std::size_t capacity = 256);

  /// Notes a collective; returns its ticket for `started` and `ended`.
  std::uint64_t add(std::string group, std::string text, std::uint64_t sequence);
  void started(std::uint64_t ticket);
  void ended(std::uint64_t ticket, bool well);

  /// What this rank is in, or was last in: "all_reduce #17 'w' f32 x 8 on group world, for 3.2 s"; empty if nothing
  /// yet.
  std::string latest() const;
  /// {rank, failure or null, collectives: [{group, sequence, collective, state, queued_s, started_s, ended_s}]}, the
  /// oldest first.
  Json to_json(const Failure* failure = nullptr) const;

  /// From now on `dump` writes `folder`/flight_rank_<rank>.json.
  void set_folder(std::string folder, FileSystem& files = posix_file_system());
  /// Writes the file, the first time it is called and if there is a folder. A disk that refuses is logged, not thrown.
  void dump(const Failure& failure) noexcept;

 private:
  using Clock = std::chrono::steady_clock;
  double now() const { return seconds_since(began_); }
  FlightRecord* find(std::uint64_t ticket);

  int rank_;
  std::size_t capacity_;
  Clock::time_point began_ = Clock::now();
  mutable std::mutex mutex_;
  std::vector<FlightRecord> records_;  // ticket % capacity_
  std::uint64_t next_ = 0;
  std::string folder_;
  FileSystem* files_ = nullptr;
  bool dumped_ = false;
};

}  // namespace castor::dist
