// The plan: what a training run will use, found by running one global step on a meta device with the real modules,
// optimizer and allocator, but no bytes and no kernels. It takes milliseconds, is printed before a run allocates
// anything, and is compared with what the allocator saw once the first step is done.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "core/base/dtype.h"
#include "core/device/caching_allocator.h"
#include "dist/comm_meta.h"
#include "strategy/checkpoint/saver.h"
#include "strategy/strategy.h"

namespace castor::strategy {

/// All calls of one op in a step.
struct OpTotal {
  std::string name;
  std::int64_t calls = 0;
  double flops = 0;
  double bytes = 0;
  double host_flops = 0;  ///< of these, of calls on the host's tier: steps of offloaded states
  double host_bytes = 0;
};

/// What a training step needs.
struct Plan {
  std::string target;                        ///< "cpu"
  std::int64_t micro_batch = 0;              ///< samples
  std::int64_t micro_steps = 0;              ///< in a global step
  std::int64_t world_size = 1;               ///< ranks
  DType compute_dtype = DType::f32;          ///< of most weights
  std::int64_t parameters = 0;               ///< elements, tied ones once
  std::vector<OpTotal> ops;                  ///< of one global step, most FLOPs first
  std::vector<std::string> parameter_order;  ///< names, in order of first use in forward
  std::vector<std::string> backward_order;   ///< names, in order in which gradients become complete
  double flops = 0;                          ///< of one global step
  double bytes = 0;                          ///< read and written by kernels
  MemoryStats memory;                        ///< of the allocator after the step
  std::uint64_t checkpoint_bytes = 0;        ///< tensors of a checkpoint: weights and optimizer states
  MemoryStats host;                          ///< of the host's tier, where there is one beside the device
  double link_bytes = 0;                     ///< between device and host, both ways, in a global step
  double exchanged_bytes = 0;                ///< with other ranks, one way, in a global step
  std::int64_t disk_bytes = 0;               ///< in scratch files
  std::int64_t disk_traffic = 0;             ///< read and written there in a step
  MemoryLimits limits;                       ///< what the plan was asked to fit
  std::optional<StepForecast> forecast;      ///< for PrepareOptions of the run that was planned

  /// True unless a limit is given that is exceeded.
  bool fits() const;
  /// What an asynchronous save does: with the host's memory that the limits leave, or without a limit on this host as
  /// it is now.
  CopyMode copy_mode() const;
};

/// Makes the strategy to plan on a device; of several ranks one of a group on paper (dist/comm_meta.h).
using StrategyFactory = std::function<std::unique_ptr<BaseStrategy>(Device)>;

/// Runs one global step on a meta device standing for a CPU or a GPU, whose kernels need different workspace; a second
/// one where the first shows how to place chunks.
///   batch    a micro-batch of the size that will be trained; only shapes and dtypes are used
///   traffic  of the group on paper, if there is one
Plan make_plan(const StrategyFactory& strategy, const ModelFactory& model, const PrepareOptions& options,
               const autograd::Batch& batch, DeviceType target = DeviceType::cpu,
               const dist::MetaTraffic* traffic = nullptr);

/// What a rank has here: the memory of its device, and of the host its share.
MemoryLimits limits_here(Device device);
/// Throws OutOfMemory where the plan needs more than there is: before anything is allocated, not in the middle of a
/// step.
///   task    what was planned, to begin the message with
///   advice  what to do about it, to end it with
void check_fits(const Plan& plan, const MemoryLimits& limits, const std::string& task, const std::string& advice);

/// The plan as text for a person.
std::string plan_text(const Plan& plan);
/// The plan for machines; keys are the fields' names, memory in bytes by category.
nlohmann::ordered_json plan_json(const Plan& plan);

/// What was allocated on top of `before`: the peaks of `now` less what was in use then. Data sets and other models of
/// the process are no part of a plan.
///   now  statistics of the same allocator, its peaks reset when `before` was taken
MemoryStats memory_since(const MemoryStats& before, const MemoryStats& now);

/// Prediction against what the allocator saw, a line a category, with the difference in percent.
std::string audit_text(const Plan& plan, const MemoryStats& actual);
/// The largest difference of a category's peak, as a share of that category's actual peak; categories below 64 KiB in
/// both are left out.
double audit_worst(const Plan& plan, const MemoryStats& actual);

}  // namespace castor::strategy
