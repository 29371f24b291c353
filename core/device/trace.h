// The timeline of a stretch of a run: every op on the queue it runs on, and beside them what other parts say with a
// TraceSpan (phases, collectives, copies). Written as Chrome's trace format, which chrome://tracing and Perfetto open.
//
// Delicate: nothing may wait. On a GPU a span is two marks in its queue, read when all is over; what runs on the CPU is
// timed by the host's clock, whose zero is the moment of the first mark. While no trace is active a TraceSpan costs one
// load, and ops cost what they cost without an observer. Marks in a queue lie between launches, so a span holds the
// gaps before its own kernels.
// Source of the format: "Trace Event Format", docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "core/device/cuda_clock.h"
#include "core/device/dispatch.h"

namespace castor {

/// Records while it lives, for the whole process; ops of the thread that also holds an ObserverScope of it. One at a
/// time: throws InternalError for a second.
class Trace final : public DispatchObserver {
 public:
  /// For a run on `device`. Waits until the device is idle.
  explicit Trace(Device device);
  ~Trace() override;
  Trace(const Trace&) = delete;
  Trace& operator=(const Trace&) = delete;

  void before(const OpCall& call) override;
  void after(const OpCall& call) override;

  /// A span, in seconds since the trace began.
  struct TimedSpan {
    std::string name;
    const char* category;
    std::string lane;  ///< a device's queue is called as the device is
    double begin, end;
    Cost cost;
  };
  /// Those that ended. Waits for the device; nothing is recorded from here on.
  std::vector<TimedSpan> spans();

  /// The same as JSON text.
  ///   process  the number that tells ranks apart where traces are put together
  std::string chrome_json(int process);

  /// Spans that began so far: ops and others.
  std::size_t count() const;

 private:
  friend class TraceSpan;
  struct Span {
    std::string name;
    const char* category;
    std::size_t lane;
    bool is_by_marks;  ///< begin and end are numbers of marks, otherwise nanoseconds of the host's clock
    std::int64_t begin, end = -1;
    Cost cost = {};
  };

  std::size_t begin(std::string_view name, const char* category, const std::string& lane, bool is_on_host, void* stream,
                    const Cost& cost = {});
  void end(std::size_t span, void* stream);
  std::size_t lane_of(const std::string& name);
  std::int64_t host_nanoseconds() const;
  void* main_stream(Device device) const;

  Device device_;
  std::unique_ptr<QueueClock> clock_;  // null where the host's clock serves
  std::chrono::steady_clock::time_point zero_;
  mutable std::mutex mutex_;
  std::vector<Span> spans_;
  std::vector<std::string> lanes_;
  std::vector<std::size_t> open_ops_;
};

/// The process's active trace, if there is one.
inline std::atomic<Trace*> active_trace{nullptr};

/// True while somebody records: for callers whose names cost something to make.
inline bool is_tracing() { return active_trace.load(std::memory_order_relaxed) != nullptr; }

/// One span of the active trace, from construction to destruction; nothing without one. No span may outlive the trace.
class TraceSpan {
 public:
  /// On a device's own queue.
  ///   category  "phase", "collective", "copy": colours and filters in viewers
  TraceSpan(std::string_view name, const char* category, Device device);
  /// On a queue beside it, or on a thread of the host (no queue), which is shown as `lane`.
  TraceSpan(std::string_view name, const char* category, SideQueue* queue, const std::string& lane);
  ~TraceSpan();
  TraceSpan(const TraceSpan&) = delete;
  TraceSpan& operator=(const TraceSpan&) = delete;

 private:
  Trace* trace_;
  void* stream_ = nullptr;
  std::size_t span_ = 0;
};

}  // namespace castor
