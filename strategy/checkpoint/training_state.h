// Everything of a training run that is no tensor, as the members of state.json, and back.
//
// Delicate: a state comes from a file. Nothing of a run is changed before all of it was read and found to fit.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/base/json.h"
#include "core/device/device.h"
#include "strategy/boosted_optimizer.h"
#include "strategy/checkpoint.h"
#include "strategy/checkpoint/fill.h"
#include "strategy/checkpoint/snapshot.h"
#include "strategy/precision.h"
#include "strategy/scheduler/param_scheduler.h"

namespace castor::strategy {

/// The role of f32 copies of 16-bit weights.
inline constexpr const char* kMasterRole = "master";

/// The weights that this rank saves: its parts of those that are sharded, on the main rank all others and the buffers.
/// An optimizer that is null shards nothing.
std::vector<StateTensor> weight_tensors(const autograd::Module& model, BoostedOptimizer* optimizer, bool is_main);
/// The optimizer's states and masters that this rank saves: those of its parts.
std::vector<StateTensor> optimizer_tensors(BoostedOptimizer& optimizer, bool is_main);
/// Both; `with_states` false: the weights only.
std::vector<StateTensor> state_tensors(const autograd::Module& model, BoostedOptimizer* optimizer, bool with_states,
                                       bool is_main);

/// {"type", "step", "state_roles", "groups": [{"name", "values"}]} and, in fp16, "grad_scaler".
Json optimizer_state(BoostedOptimizer& optimizer);
/// [{"type", "_global_step", ...}] in order.
Json scheduler_states(const std::vector<std::unique_ptr<ParamScheduler>>& schedulers);

/// A saved count of micro-steps (the state's member `key`) as it is here, where all ranks together take `samples` at a
/// time: the one that covers as many samples. Throws FormatError for a state without it.
std::int64_t micro_steps_here(const JsonCursor& state, const char* key, std::int64_t samples);

/// What must be equal for a resumed run to give equal bits: versions, precision, batch sizes, what micro-batches weigh,
/// threads, instruction set, the processor and the libraries that compute on `device`, by name.
Json numerics_key(Precision precision, std::int64_t micro_batch, std::int64_t accumulative_counts,
                  std::int64_t world_size, bool counts_items, Device device);
/// Logs a warning that names every field in which the two differ.
void warn_about_numerics(const Json& saved, const Json& current);

/// state.json and, if `with_tensors`, the tensors of roles beside weights and optimizer states, as callbacks see them.
/// `names` is left to the caller. Throws FormatError for a state that is no object, ConfigError for a map_location that
/// is none.
CheckpointContents read_contents(const LoadSource& source, const std::string& map_location, Device model_device,
                                 bool with_tensors);

/// Chooses what fills the optimizer's states and, for 16-bit weights, the masters. Throws FormatError naming every
/// state that is missing or has another shape, or another optimizer's type.
std::vector<Fill> match_optimizer(const LoadSource& source, const Json& saved, BoostedOptimizer& optimizer);
/// Takes over what optimizer_state gave: hyper-parameters, step and scale. The shape of `state` was checked by
/// match_optimizer.
void load_optimizer_state(const Json& state, const std::string& path, BoostedOptimizer& optimizer);
/// Takes over what scheduler_states gave. Throws FormatError if number or types differ.
void load_scheduler_states(const Json& states, const std::string& path,
                           std::vector<std::unique_ptr<ParamScheduler>>& schedulers);

}  // namespace castor::strategy
