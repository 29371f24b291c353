// Recording of a step on meta, and its texts.
#include "strategy/plan.h"

#include <algorithm>
#include <cmath>
#include <iomanip>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "autograd/graph.h"
#include "core/base/host_memory.h"
#include "core/device/backend.h"
#include "core/device/dispatch.h"
#include "core/ops/cast.h"
#include "strategy/checkpoint/training_state.h"

namespace castor::strategy {
namespace {

/// Adds up what ops cost, on the device and on the host beside it, and what moves between the two.
class CostRecorder final : public DispatchObserver {
 public:
  explicit CostRecorder(Device device) : device_(device) {}
  void before(const OpCall& call) override {
    if (std::string_view(call.name) == "transfer") {
      link_bytes_ += call.cost.bytes;
      return;
    }
    OpTotal& total = totals_[call.name];
    total.name = call.name;
    ++total.calls;
    total.flops += call.cost.flops;
    total.bytes += call.cost.bytes;
    if (call.device == device_) return;
    total.host_flops += call.cost.flops;
    total.host_bytes += call.cost.bytes;
  }
  double link_bytes() const { return link_bytes_; }
  std::vector<OpTotal> sorted() const {
    std::vector<OpTotal> ops;
    for (const auto& [name, total] : totals_) ops.push_back(total);
    std::sort(ops.begin(), ops.end(), [](const OpTotal& a, const OpTotal& b) {
      return a.flops != b.flops ? a.flops > b.flops : a.bytes > b.bytes;
    });
    return ops;
  }

 private:
  Device device_;
  double link_bytes_ = 0;
  std::map<std::string, OpTotal> totals_;
};

// What most weights are computed with.
DType dtype_of_most(const autograd::TrainableModel& model) {
  std::map<DType, std::int64_t> elements;
  for (const auto& [name, parameter] : model.named_parameters())
    elements[parameter.dtype()] += parameter.shape().numel();
  const auto most = std::max_element(elements.begin(), elements.end(),
                                     [](const auto& a, const auto& b) { return a.second < b.second; });
  return most == elements.end() ? DType::f32 : most->first;
}

std::string scaled(double value, const char* unit) {
  constexpr const char* kPrefixes[] = {"", "k", "M", "G", "T", "P"};
  int prefix = 0;
  while (value >= 1000 && prefix < 5) {
    value /= 1000;
    ++prefix;
  }
  std::ostringstream out;
  out << std::fixed << std::setprecision(value < 10 ? 2 : 1) << value << ' ' << kPrefixes[prefix] << unit;
  return out.str();
}

double difference_percent(std::size_t planned, std::size_t actual) {
  if (actual == 0) return planned == 0 ? 0 : 100;
  return 100.0 * (static_cast<double>(planned) - static_cast<double>(actual)) / static_cast<double>(actual);
}

// A table of a device's peaks by category, and whether they are within the limit.
void memory_lines(std::ostream& out, const char* title, const MemoryStats& stats,
                  const std::optional<std::int64_t>& limit) {
  out << std::left << std::setw(14) << title << std::right << std::setw(12) << "peak" << std::setw(14) << "at the top"
      << '\n';
  for (int i = 0; i < kCategoryCount; ++i) {
    out << std::left << std::setw(14) << category_name(static_cast<Category>(i)) << std::right << std::setw(12)
        << bytes_text(stats.peak[i]) << std::setw(14) << bytes_text(stats.at_peak[i]) << '\n';
  }
  out << std::left << std::setw(14) << "total" << std::right << std::setw(12) << bytes_text(stats.peak_total) << "  ("
      << bytes_text(stats.peak_reserved) << " reserved)\n";
  if (!limit) return;
  const auto there = static_cast<std::size_t>(*limit);
  out << std::left << std::setw(14) << "limit" << std::right << std::setw(12) << bytes_text(there)
      << (stats.peak_total <= there ? "  (fits)" : "  (does not fit)") << '\n';
}

Plan plan_step(const StrategyFactory& make_strategy, const ModelFactory& model, const PrepareOptions& options,
               const autograd::Batch& batch, DeviceType target, const dist::MetaTraffic* traffic) {
  const Device device = make_meta({target, "", 0});
  Plan plan;
  plan.target = target == DeviceType::cpu ? "cpu" : "cuda";
  plan.micro_batch = batch.inputs.size(0);
  plan.micro_steps = options.accumulative_counts;
  plan.limits = options.limits;
  CostRecorder recorder(device);
  {
    const std::unique_ptr<BaseStrategy> strategy = make_strategy(device);
    PrepareOptions quiet = options;
    quiet.auto_scale_lr = AutoScaleConfig{};
    quiet.paramwise.reset();  // groups change no byte
    quiet.param_schedulers.clear();
    quiet.compile = false;  // what is recorded is what was run before
    strategy->prepare(model, quiet);
    plan.parameters = strategy->model().parameter_count();
    plan.world_size = strategy->world_size();
    plan.compute_dtype = dtype_of_most(strategy->model());
    const double exchanged_before = traffic == nullptr ? 0 : traffic->bytes;
    std::vector<std::string> backward_order;
    for (const auto& [name, parameter] : strategy->model().named_parameters()) {
      parameter.add_gradient_hook([&backward_order, name = name](const autograd::Variable&) {
        if (std::find(backward_order.begin(), backward_order.end(), name) == backward_order.end())
          backward_order.push_back(name);
      });
    }
    const ObserverScope observe(recorder);
    const autograd::LeafUseScope uses(/*named_only=*/true);
    for (std::int64_t m = 0; m < options.accumulative_counts; ++m) strategy->train_step(batch);
    if (OptimWrapper* wrapper = strategy->optim_wrapper())
      wrapper->stepper().finish();  // what it left for the next one
    for (const autograd::Variable& leaf : uses.leaves()) plan.parameter_order.push_back(leaf.name());
    plan.backward_order = std::move(backward_order);
    plan.memory = allocator(device).stats();
    plan.link_bytes = recorder.link_bytes();
    if (traffic != nullptr) plan.exchanged_bytes = traffic->bytes - exchanged_before;
    if (OptimWrapper* wrapper = strategy->optim_wrapper()) {
      const Sharding& sharding = wrapper->sharding();
      if (const std::optional<Device> host = sharding.host()) plan.host = allocator(*host).stats();
      plan.disk_bytes = sharding.disk_bytes();
      plan.disk_traffic = sharding.disk_traffic().read_bytes + sharding.disk_traffic().written_bytes;
      plan.forecast = options.forecast ? options.forecast : sharding.forecast();
    }
    BoostedOptimizer* boosted = strategy->optim_wrapper() == nullptr ? nullptr : &strategy->optim_wrapper()->boosted();
    plan.checkpoint_bytes = Snapshot::bytes_of(state_tensors(strategy->model(), boosted, true, true));
  }
  plan.ops = recorder.sorted();
  for (const OpTotal& op : plan.ops) {
    plan.flops += op.flops;
    plan.bytes += op.bytes;
  }
  return plan;
}

}  // namespace

Plan make_plan(const StrategyFactory& make_strategy, const ModelFactory& model, const PrepareOptions& options,
               const autograd::Batch& batch, DeviceType target, const dist::MetaTraffic* traffic) {
  Plan plan = plan_step(make_strategy, model, options, batch, target, traffic);
  if (!plan.forecast || options.forecast) return plan;
  PrepareOptions placed = options;
  placed.forecast = plan.forecast;
  return plan_step(make_strategy, model, placed, batch, target, traffic);
}

bool Plan::fits() const {
  const auto is_within = [](std::size_t bytes, const std::optional<std::int64_t>& limit) {
    return !limit || bytes <= static_cast<std::size_t>(*limit);
  };
  return is_within(memory.peak_total, limits.device_bytes) && is_within(host.peak_total, limits.host_bytes);
}

CopyMode Plan::copy_mode() const {
  if (!limits.host_bytes) return CheckpointSaver::copy_mode(checkpoint_bytes);
  const std::int64_t left = *limits.host_bytes - static_cast<std::int64_t>(host.peak_total);
  return CheckpointSaver::copy_mode(checkpoint_bytes, static_cast<std::uint64_t>(std::max<std::int64_t>(left, 0)));
}

MemoryLimits limits_here(Device device) {
  MemoryLimits limits;
  limits.host_bytes = static_cast<std::int64_t>(host_memory_share().total);
  limits.device_bytes = device.is_cpu() ? limits.host_bytes : static_cast<std::int64_t>(backend(device).total_bytes());
  return limits;
}

void check_fits(const Plan& plan, const MemoryLimits& limits, const std::string& task, const std::string& advice) {
  const auto check = [&](const MemoryStats& needed, const std::optional<std::int64_t>& limit,
                         const std::string& where) {
    if (!limit || *limit <= 0 || needed.peak_total <= static_cast<std::size_t>(*limit)) return;
    const auto there = static_cast<std::size_t>(*limit);
    throw OutOfMemory(cat(task, " does not fit: its plan needs ", bytes_text(needed.peak_total), " of ", where,
                          ", a rank has ", bytes_text(there), " here; ", advice),
                      needed.peak_total, there, there);
  };
  check(plan.memory, limits.device_bytes, plan.target == "cpu" ? "memory" : "the device's memory");
  check(plan.host, limits.host_bytes, "the host's memory");
}

std::string plan_text(const Plan& plan) {
  std::ostringstream out;
  out << "plan for " << plan.target << ": " << scaled(static_cast<double>(plan.parameters), "parameters")
      << ", micro-batch " << plan.micro_batch << " x " << plan.micro_steps << " micro-steps; a step computes "
      << scaled(plan.flops, "FLOP") << " and moves " << scaled(plan.bytes, "B") << '\n'
      << std::left << std::setw(28) << "op" << std::right << std::setw(8) << "calls" << std::setw(16) << "compute"
      << std::setw(14) << "traffic" << '\n';
  for (const OpTotal& op : plan.ops) {
    out << std::left << std::setw(28) << op.name << std::right << std::setw(8) << op.calls << std::setw(16)
        << scaled(op.flops, "FLOP") << std::setw(14) << scaled(op.bytes, "B") << '\n';
  }
  memory_lines(out, "memory", plan.memory, plan.limits.device_bytes);
  if (plan.host.peak_total > 0) memory_lines(out, "host", plan.host, plan.limits.host_bytes);
  if (plan.disk_bytes > 0) {
    out << std::left << std::setw(14) << "disk" << std::right << std::setw(12)
        << bytes_text(static_cast<std::size_t>(plan.disk_bytes)) << "  ("
        << bytes_text(static_cast<std::size_t>(plan.disk_traffic)) << " read and written in a step)\n";
  }
  out << std::left << std::setw(14) << "checkpoint" << std::right << std::setw(12) << bytes_text(plan.checkpoint_bytes)
      << "  (asynchronous saves "
      << (plan.copy_mode() == CopyMode::whole ? "copy it at once"
                                              : "copy a tensor only before it changes: the host is short of memory")
      << ")";
  return out.str();
}

nlohmann::ordered_json plan_json(const Plan& plan) {
  nlohmann::ordered_json json;
  json["target"] = plan.target;
  json["micro_batch"] = plan.micro_batch;
  json["micro_steps"] = plan.micro_steps;
  json["world_size"] = plan.world_size;
  json["parameters"] = plan.parameters;
  json["flops"] = plan.flops;
  json["bytes"] = plan.bytes;
  json["link_bytes"] = plan.link_bytes;
  json["exchanged_bytes"] = plan.exchanged_bytes;
  json["ops"] = nlohmann::ordered_json::array();
  for (const OpTotal& op : plan.ops)
    json["ops"].push_back({{"name", op.name}, {"calls", op.calls}, {"flops", op.flops}, {"bytes", op.bytes}});
  json["parameter_order"] = plan.parameter_order;
  json["backward_order"] = plan.backward_order;
  for (int i = 0; i < kCategoryCount; ++i) {
    const std::string name(category_name(static_cast<Category>(i)));
    json["memory"][name] = {{"peak", plan.memory.peak[i]}, {"at_peak", plan.memory.at_peak[i]}};
  }
  json["memory"]["total"] = {{"peak", plan.memory.peak_total}, {"reserved", plan.memory.peak_reserved}};
  for (int i = 0; i < kCategoryCount && plan.host.peak_total > 0; ++i) {
    const std::string name(category_name(static_cast<Category>(i)));
    json["host"][name] = {{"peak", plan.host.peak[i]}, {"at_peak", plan.host.at_peak[i]}};
  }
  if (plan.host.peak_total > 0)
    json["host"]["total"] = {{"peak", plan.host.peak_total}, {"reserved", plan.host.peak_reserved}};
  if (plan.disk_bytes > 0) json["disk"] = {{"bytes", plan.disk_bytes}, {"traffic", plan.disk_traffic}};
  if (plan.limits.device_bytes || plan.limits.host_bytes) json["fits"] = plan.fits();
  json["checkpoint"] = {{"bytes", plan.checkpoint_bytes},
                        {"asynchronous_copy", plan.copy_mode() == CopyMode::whole ? "whole" : "on_write"}};
  return json;
}

MemoryStats memory_since(const MemoryStats& before, const MemoryStats& now) {
  const auto less = [](std::size_t a, std::size_t b) { return a > b ? a - b : 0; };
  MemoryStats grown = now;
  for (std::size_t i = 0; i < kCategoryCount; ++i) {
    grown.current[i] = less(now.current[i], before.current[i]);
    grown.peak[i] = less(now.peak[i], before.current[i]);
    grown.at_peak[i] = less(now.at_peak[i], before.current[i]);
  }
  grown.current_total = less(now.current_total, before.current_total);
  grown.peak_total = less(now.peak_total, before.current_total);
  grown.reserved = less(now.reserved, before.reserved);
  grown.peak_reserved = less(now.peak_reserved, before.reserved);
  grown.allocations = now.allocations - before.allocations;
  grown.system_allocations = now.system_allocations - before.system_allocations;
  return grown;
}

std::string audit_text(const Plan& plan, const MemoryStats& actual) {
  std::ostringstream out;
  out << "plan against actual after step 1 (peaks)\n"
      << std::left << std::setw(14) << "category" << std::right << std::setw(12) << "planned" << std::setw(12)
      << "actual" << std::setw(10) << "off" << '\n';
  const auto line = [&](std::string_view name, std::size_t planned, std::size_t seen) {
    out << std::left << std::setw(14) << name << std::right << std::setw(12) << bytes_text(planned) << std::setw(12)
        << bytes_text(seen) << std::setw(9) << std::fixed << std::setprecision(1) << difference_percent(planned, seen)
        << "%\n";
  };
  for (int i = 0; i < kCategoryCount; ++i)
    line(category_name(static_cast<Category>(i)), plan.memory.peak[i], actual.peak[i]);
  line("total", plan.memory.peak_total, actual.peak_total);
  std::string text = out.str();
  text.pop_back();
  return text;
}

double audit_worst(const Plan& plan, const MemoryStats& actual) {
  constexpr std::size_t kNegligible = 64 << 10;
  double worst = 0;
  for (int i = 0; i < kCategoryCount; ++i) {
    if (plan.memory.peak[i] < kNegligible && actual.peak[i] < kNegligible) continue;
    worst = std::max(worst, std::abs(difference_percent(plan.memory.peak[i], actual.peak[i])) / 100.0);
  }
  return worst;
}

}  // namespace castor::strategy
