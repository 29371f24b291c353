// Everything of a training run that is no tensor, as the members of state.json, and back.
//
// Delicate: a state comes from a file. Nothing of a run is changed before all of it was read and found to fit.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/base/json.h"
#include "strategy/checkpoint.h"
#include "strategy/checkpoint/fill.h"
#include "strategy/checkpoint/snapshot.h"
#include "strategy/optim_wrapper.h"
#include "strategy/scheduler/param_scheduler.h"

namespace castor::strategy {

/// Weights and buffers of a model and, if `wrapper` is given, the optimizer's states and masters.
std::vector<StateTensor> state_tensors(const autograd::Module& model, const OptimWrapper* wrapper);

/// {"type", "step", "inner_count", "state_roles", "groups": [{"name", "values"}]}.
Json optimizer_state(OptimWrapper& wrapper);
/// [{"type", "_global_step", ...}] in order.
Json scheduler_states(const std::vector<std::unique_ptr<ParamScheduler>>& schedulers);

/// What must be equal for a resumed run to give equal bits (DESIGN "numerics key"): versions, precision, batch sizes,
/// threads and instruction set, by name.
Json numerics_key(std::int64_t micro_batch, std::int64_t accumulative_counts, std::int64_t world_size);
/// Logs a warning that names every field in which the two differ.
void warn_about_numerics(const Json& saved, const Json& current);

/// state.json and, if `with_tensors`, the tensors of roles beside weights and optimizer states, as callbacks see them.
/// `names` is left to the caller. Throws FormatError for a state that is no object, ConfigError for a map_location that
/// is none.
CheckpointContents read_contents(const LoadSource& source, const std::string& map_location, Device model_device,
                                 bool with_tensors);

/// Chooses what fills the optimizer's states and, for 16-bit weights, the masters. Throws FormatError naming every
/// state that is missing or has another shape, or another optimizer's type.
std::vector<Fill> match_optimizer(const LoadSource& source, const Json& state, OptimWrapper& wrapper);
/// Takes over what optimizer_state gave: hyper-parameters and counts. The shape of `state` was checked by
/// match_optimizer.
void load_optimizer_state(const Json& state, const std::string& path, OptimWrapper& wrapper);
/// Takes over what scheduler_states gave. Throws FormatError if number or types differ.
void load_scheduler_states(const Json& states, const std::string& path,
                           std::vector<std::unique_ptr<ParamScheduler>>& schedulers);

}  // namespace castor::strategy
