// When a trace begins and ends, and its texts.
#include "strategy/runner/profiler_hook.h"

#include <algorithm>
#include <iomanip>
#include <map>
#include <sstream>

#include "core/base/file.h"
#include "core/base/log.h"
#include "core/device/caching_allocator.h"
#include "core/device/idle_time.h"

namespace castor::strategy {
namespace {

constexpr std::size_t kMostOps = 12;  // lines of the table

/// "12.3 GiB on cuda:0, 92.1 GiB on host; the GPU stepped 46 % of those on the host".
std::string states_text(OptimWrapper& wrapper) {
  std::map<std::string, std::size_t> bytes;
  for (const auto& [name, piece] : wrapper.stepper().named_states())
    bytes[to_string(piece.tensor.device())] +=
        static_cast<std::size_t>(piece.tensor.numel()) * dtype_size(piece.tensor.dtype());
  std::string text;
  for (const auto& [place, count] : bytes) text += cat(text.empty() ? "" : ", ", bytes_text(count), " on ", place);
  const auto disk = static_cast<std::size_t>(wrapper.sharding().disk_bytes());
  if (disk > 0) text += cat(", of these ", bytes_text(disk), " of optimizer states and weights in scratch files");
  const autograd::Stepper::SharedElements& shared = wrapper.stepper().shared_elements();
  if (shared.by_gpu > 0) {
    const double share = static_cast<double>(shared.by_gpu) / static_cast<double>(shared.by_gpu + shared.by_host);
    text += cat("; the GPU stepped ", static_cast<int>(100 * share + 0.5), " % of those on the host");
  }
  return text;
}

/// The ops that took longest, of all traced iterations.
std::string ops_text(const std::vector<Trace::TimedSpan>& spans) {
  struct Total {
    std::string name;
    std::int64_t calls = 0;
    double seconds = 0;
  };
  std::map<std::string, Total> by_name;
  for (const Trace::TimedSpan& span : spans) {
    if (std::string_view(span.category) != "op") continue;
    Total& total = by_name[cat(span.name, " on ", span.lane)];
    ++total.calls;
    total.seconds += span.end - span.begin;
  }
  std::vector<Total> sorted;
  for (auto& [name, total] : by_name) sorted.push_back({name, total.calls, total.seconds});
  std::stable_sort(sorted.begin(), sorted.end(), [](const Total& a, const Total& b) { return a.seconds > b.seconds; });
  if (sorted.size() > kMostOps) sorted.resize(kMostOps);
  std::ostringstream out;
  for (const Total& total : sorted) {
    out << "\n  " << std::left << std::setw(36) << total.name << std::right << std::setw(8) << total.calls << " calls"
        << std::fixed << std::setprecision(3) << std::setw(12) << 1e3 * total.seconds << " ms";
  }
  return out.str();
}

}  // namespace

void ProfilerHook::before_train_iter(RunControl& run) {
  if (is_over_ || begun_++ < config_.skip_first) return;
  if (trace_ == nullptr) {
    trace_ = std::make_unique<Trace>(run.device());
    ops_ = std::make_unique<ObserverScope>(*trace_);
  }
  seen_.push_back(cat("iteration ", run.progress().iter + 1));
  iteration_ = std::make_unique<TraceSpan>(seen_.back(), "phase", run.device());
}

void ProfilerHook::after_train_iter(RunControl& run) {
  iteration_.reset();
  if (trace_ == nullptr || by_epoch(run)) return;
  if (++times_ == config_.profile_times) finish(run);
}

void ProfilerHook::after_train_epoch(RunControl& run) {
  if (trace_ == nullptr || !by_epoch(run)) return;
  if (++times_ == config_.profile_times) finish(run);
}

// A run that is over or was stopped before.
void ProfilerHook::after_run(RunControl& run) {
  if (trace_ != nullptr) finish(run);
}

void ProfilerHook::finish(RunControl& run) {
  is_over_ = true;
  ops_.reset();
  const std::vector<Trace::TimedSpan> spans = trace_->spans();
  const int rank = run.strategy().rank();
  if (config_.json_trace_path) {
    write_file_atomically(
        run.strategy().is_main() ? *config_.json_trace_path : cat(*config_.json_trace_path, ".", rank),
        trace_->chrome_json(rank));
  }
  trace_.reset();
  const std::string states = states_text(*run.strategy().optim_wrapper());
  if (!run.strategy().is_main()) return;
  for (const std::string& name : seen_) {
    const IdleTime idle = idle_time(spans, run.device(), name);
    logger().info("profiler: ", name, ": not overlapped on ", run.device(), ": ", idle_text(idle));
  }
  logger().info("profiler: optimizer states: ", states);
  logger().info("profiler: the ops that took longest in ", seen_.size(),
                seen_.size() == 1 ? " iteration" : " iterations", ops_text(spans));
  if (config_.json_trace_path) logger().info("profiler: the timeline is in ", *config_.json_trace_path);
}

}  // namespace castor::strategy
