// Spans, their lanes, and the text.
#include "core/device/trace.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/base/json.h"

namespace castor {
namespace {

constexpr const char* kHostLane = "host";

/// Ops of the CPU beside a GPU are the host's.
std::string lane_name(Device device, bool has_gpu) {
  return device.is_cpu() && has_gpu ? kHostLane : to_string(device);
}

}  // namespace

Trace::Trace(Device device) : device_(device) {
  Trace* expected = nullptr;
  backend(device_).synchronize();
  zero_ = std::chrono::steady_clock::now();
  if constexpr (kHasCuda) {
    if (device_.is_cuda()) clock_ = make_cuda_clock(device_);
  }
  lane_of(lane_name(device_, false));
  if (!active_trace.compare_exchange_strong(expected, this)) throw InternalError("Trace: another one is active");
}

Trace::~Trace() {
  Trace* self = this;
  active_trace.compare_exchange_strong(self, nullptr);
}

std::int64_t Trace::host_nanoseconds() const {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - zero_).count();
}

void* Trace::main_stream(Device device) const { return device.is_cuda() ? backend(device).stream() : nullptr; }

std::size_t Trace::lane_of(const std::string& name) {
  const auto known = std::find(lanes_.begin(), lanes_.end(), name);
  if (known != lanes_.end()) return static_cast<std::size_t>(known - lanes_.begin());
  lanes_.push_back(name);
  return lanes_.size() - 1;
}

std::size_t Trace::begin(std::string_view name, const char* category, const std::string& lane, bool is_on_host,
                         void* stream, const Cost& cost) {
  const std::lock_guard lock(mutex_);
  const bool is_by_marks = !is_on_host && clock_ != nullptr;
  const std::int64_t at = is_by_marks ? static_cast<std::int64_t>(clock_->mark(stream)) : host_nanoseconds();
  spans_.push_back({std::string(name), category, lane_of(lane), is_by_marks, at, -1, cost});
  return spans_.size() - 1;
}

void Trace::end(std::size_t span, void* stream) {
  const std::lock_guard lock(mutex_);
  Span& ended = spans_[span];
  ended.end = ended.is_by_marks ? static_cast<std::int64_t>(clock_->mark(stream)) : host_nanoseconds();
}

void Trace::before(const OpCall& call) {
  open_ops_.push_back(begin(call.name, "op", lane_name(call.device, device_.is_cuda()), call.device.is_cpu(),
                            main_stream(call.device), call.cost));
}

void Trace::after(const OpCall& call) {
  end(open_ops_.back(), main_stream(call.device));
  open_ops_.pop_back();
}

std::size_t Trace::count() const {
  const std::lock_guard lock(mutex_);
  return spans_.size();
}

std::vector<Trace::TimedSpan> Trace::spans() {
  Trace* self = this;
  active_trace.compare_exchange_strong(self, nullptr);
  const std::lock_guard lock(mutex_);
  const std::vector<double> marks = clock_ != nullptr ? clock_->seconds() : std::vector<double>{};
  std::vector<TimedSpan> timed;
  for (const Span& span : spans_) {
    if (span.end < 0) continue;  // under way when the trace ended
    const auto seconds = [&](std::int64_t at) {
      return span.is_by_marks ? marks[static_cast<std::size_t>(at)] : static_cast<double>(at) / 1e9;
    };
    timed.push_back({span.name, span.category, lanes_[span.lane], seconds(span.begin), seconds(span.end), span.cost});
  }
  return timed;
}

std::string Trace::chrome_json(int process) {
  const std::vector<TimedSpan> timed = spans();
  Json events = Json::array();
  for (std::size_t lane = 0; lane < lanes_.size(); ++lane) {
    events.push_back(
        {{"name", "thread_name"}, {"ph", "M"}, {"pid", process}, {"tid", lane}, {"args", {{"name", lanes_[lane]}}}});
  }
  for (const TimedSpan& span : timed) {
    Json event = {{"name", span.name},
                  {"cat", span.category},
                  {"ph", "X"},
                  {"ts", span.begin * 1e6},
                  {"dur", (span.end - span.begin) * 1e6},
                  {"pid", process},
                  {"tid", lane_of(span.lane)}};
    if (span.cost.flops > 0 || span.cost.bytes > 0)
      event["args"] = {{"flops", span.cost.flops}, {"bytes", span.cost.bytes}};
    events.push_back(std::move(event));
  }
  return dump_json({{"displayTimeUnit", "ms"}, {"traceEvents", std::move(events)}});
}

TraceSpan::TraceSpan(std::string_view name, const char* category, Device device)
    : trace_(active_trace.load(std::memory_order_acquire)) {
  if (trace_ == nullptr) return;
  stream_ = trace_->main_stream(device);
  span_ = trace_->begin(name, category, lane_name(device, trace_->device_.is_cuda()), device.is_cpu(), stream_);
}

TraceSpan::TraceSpan(std::string_view name, const char* category, SideQueue* queue, const std::string& lane)
    : trace_(active_trace.load(std::memory_order_acquire)) {
  if (trace_ == nullptr) return;
  stream_ = queue != nullptr ? queue->stream() : nullptr;
  span_ = trace_->begin(name, category, lane, queue == nullptr, stream_);
}

TraceSpan::~TraceSpan() {
  if (trace_ != nullptr && active_trace.load(std::memory_order_acquire) == trace_) trace_->end(span_, stream_);
}

}  // namespace castor
