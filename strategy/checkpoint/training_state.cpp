// state.json in and out.
#include "strategy/checkpoint/training_state.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "build_config.h"
#include "core/base/cpu_isa.h"
#include "core/base/log.h"
#include "core/base/parallel.h"
#include "core/ops/arithmetic.h"
#include "core/ops/attention_kernels.h"
#include "core/ops/cast.h"
#include "formats/array_shape.h"

namespace castor::strategy {
namespace {

// Splits "blocks.0.weight/exp_avg", the stepper's name of a state.
std::pair<std::string, std::string> split_state_name(const std::string& name) {
  const std::size_t slash = name.rfind('/');
  return {name.substr(0, slash), name.substr(slash + 1)};
}

}  // namespace

std::vector<StateTensor> weight_tensors(const autograd::Module& model, BoostedOptimizer* optimizer, bool is_main) {
  std::vector<StateTensor> tensors;
  std::set<const autograd::VariableState*> in_pieces;
  if (optimizer != nullptr && optimizer->sharding().is_sharded()) {
    if (optimizer->sharding().is_replica()) return {};
    for (const autograd::Part& piece : optimizer->sharding().pieces())
      tensors.push_back({piece.variable.name(), "param", piece.weights, piece.variable.shape(), piece.offset});
    for (const autograd::Variable& parameter : optimizer->sharding().sharded()) in_pieces.insert(parameter.identity());
  }
  if (!is_main) return tensors;
  for (const auto& [name, variable] : model.named_parameters()) {
    if (!in_pieces.contains(variable.identity())) tensors.push_back({name, "param", variable.data()});
  }
  for (const auto& [name, variable] : model.named_buffers()) tensors.push_back({name, "buffer", variable.data()});
  return tensors;
}

std::vector<StateTensor> optimizer_tensors(BoostedOptimizer& optimizer, bool is_main) {
  if (optimizer.sharding().is_sharded() ? optimizer.sharding().is_replica() : !is_main) return {};
  std::vector<StateTensor> tensors;
  for (const auto& [full_name, state] : optimizer.stepper().named_states()) {
    const auto [name, role] = split_state_name(full_name);
    if (!state.is_first) continue;
    if (state.tensor.shape() == state.shape) {
      tensors.push_back({name, role, state.tensor});
    } else {
      tensors.push_back({name, role, state.tensor, state.shape, state.offset});
    }
  }
  return tensors;
}

std::vector<StateTensor> state_tensors(const autograd::Module& model, BoostedOptimizer* optimizer, bool with_states,
                                       bool is_main) {
  std::vector<StateTensor> tensors = weight_tensors(model, optimizer, is_main);
  if (optimizer == nullptr || !with_states) return tensors;
  for (StateTensor& state : optimizer_tensors(*optimizer, is_main)) tensors.push_back(std::move(state));
  return tensors;
}

Json optimizer_state(BoostedOptimizer& optimizer) {
  Json state;
  state["type"] = optimizer.optimizer().type_name();
  state["step"] = optimizer.stepper().step_count();
  std::set<std::string> roles;
  for (const auto& [name, piece] : optimizer.stepper().named_states()) roles.insert(split_state_name(name).second);
  state["state_roles"] = roles;
  Json groups = Json::array();
  for (const autograd::ParamGroup& group : optimizer.optimizer().groups()) {
    Json values = Json::object();
    for (const auto& [name, value] : group.values) values[name] = value;
    groups.push_back({{"name", group.name}, {"values", values}});
  }
  state["groups"] = std::move(groups);
  if (const autograd::GradScaler* scaler = optimizer.grad_scaler()) {
    const autograd::GradScalerState& counters = scaler->state();
    state["grad_scaler"] = {{"scale", counters.scale},
                            {"growth_step", counters.growth_step},
                            {"hysteresis_step", counters.hysteresis_step},
                            {"skipped_in_row", counters.skipped_in_row},
                            {"skipped", counters.skipped}};
  }
  return state;
}

Json scheduler_states(const std::vector<std::unique_ptr<ParamScheduler>>& schedulers) {
  Json states = Json::array();
  for (const auto& scheduler : schedulers) states.push_back(scheduler->state_dict());
  return states;
}

std::int64_t micro_steps_here(const JsonCursor& state, const char* key, std::int64_t samples) {
  const std::int64_t saved = state.at(key).integer(0);
  if (!state.has("samples_per_micro_step")) return saved;
  const std::int64_t saved_samples = state.at("samples_per_micro_step").integer(1);
  if (saved_samples == samples) return saved;
  // In f64 so that no file can overflow it; counts of real runs are exact there.
  const double here = static_cast<double>(saved) * static_cast<double>(saved_samples) / static_cast<double>(samples);
  return static_cast<std::int64_t>(std::min(here, 9e15));
}

Json numerics_key(Precision precision, std::int64_t micro_batch, std::int64_t accumulative_counts,
                  std::int64_t world_size, bool counts_items, Device device) {
  Json key;
  key["castor"] = kVersion;
  key["precision"] = std::string(precision_name(precision));
  if (precision == Precision::fp8) key["fp8_recipe"] = "e4m3 and e5m2, power of two by this tensor's largest";
  key["micro_batch"] = micro_batch;
  key["global_batch"] = micro_batch * accumulative_counts * world_size;
  key["loss_normalisation"] = counts_items ? "tokens" : "micro_batch";
  key["threads_per_rank"] = num_threads();
  key["instruction_set"] = std::string(cpu_isa_name(cpu_isa()));
  const Arithmetic arithmetic = arithmetic_of(device);
  key["processor"] = arithmetic.processor;
  key["product_library"] = arithmetic.library;
  if (const std::string library = attention_library(device); !library.empty()) key["attention_library"] = library;
  return key;
}

void warn_about_numerics(const Json& saved, const Json& current) {
  std::string differences;
  for (const auto& [name, value] : current.items()) {
    const auto found = saved.find(name);
    if (found == saved.end()) {
      differences += cat(differences.empty() ? "" : ", ", name, " (not saved)");
    } else if (*found != value) {
      differences += cat(differences.empty() ? "" : ", ", name, " (", dump_json(*found), " was saved, now ",
                         dump_json(value), ")");
    }
  }
  for (const auto& [name, value] : saved.items()) {
    if (current.contains(name)) continue;
    differences += cat(differences.empty() ? "" : ", ", name, " (", dump_json(value), " was saved, now none)");
  }
  if (!differences.empty()) {
    logger().warning("resumed under another numerics key, so results may differ in their last bits: ", differences);
  }
}

CheckpointContents read_contents(const LoadSource& source, const std::string& map_location, Device model_device,
                                 bool with_tensors) {
  if (map_location != "cpu" && map_location != "default") {
    throw ConfigError(
        cat("map_location: expected \"cpu\" or \"default\" (the model's device), got \"", map_location, "\""),
        "map_location");
  }
  CheckpointContents contents;
  const std::string& path = source.path;
  contents.state() = parse_json(source.state_text(), path);
  if (!contents.state().is_object()) throw FormatError(cat("checkpoint ", path, ": state.json is no object"), path, 0);
  if (!with_tensors) return contents;
  // Roles that belong to an optimizer are those that its parameters' states have.
  std::set<std::string> known = {"param", "buffer", kMasterRole};
  if (const auto optimizer = contents.state().find("optimizer"); optimizer != contents.state().end()) {
    const JsonCursor cursor = JsonCursor(contents.state(), path).at("optimizer");
    if (cursor.has("state_roles")) {
      const JsonCursor roles = cursor.at("state_roles");
      for (std::size_t i = 0; i < roles.size(); ++i) known.insert(roles.at(i).string());
    }
  }
  for (const formats::SourceTensor& entry : source.tensors.tensors) {
    if (known.contains(entry.role)) continue;
    const Tensor host = Tensor::empty(Shape(entry.shape), entry.dtype);
    const Fill one{&entry, host};
    fill(source, std::span(&one, 1));
    contents.tensors[entry.role][entry.name] = map_location == "cpu" ? host : to_device(host, model_device);
  }
  return contents;
}

std::vector<Fill> match_optimizer(const LoadSource& source, const Json& saved, BoostedOptimizer& optimizer) {
  const std::string& path = source.path;
  const JsonCursor saved_state = JsonCursor(saved, path).at("optimizer");
  const std::string& type = saved_state.at("type").string();
  if (type != optimizer.optimizer().type_name()) {
    throw FormatError(
        cat("resume from ", path, ": the checkpoint was trained with ", type, ", this run uses ",
            optimizer.optimizer().type_name(), "; resume with resume_optimizer: false to start its states anew"),
        path, 0);
  }
  const std::size_t groups = saved_state.at("groups").size();
  if (groups != optimizer.optimizer().groups().size()) {
    throw FormatError(cat("resume from ", path, ": the checkpoint has ", groups, " parameter groups, this run ",
                          optimizer.optimizer().groups().size()),
                      path, 0);
  }
  for (std::size_t i = 0; i < groups; ++i) {
    const std::string& saved_name = saved_state.at("groups").at(i).at("name").string();
    const std::string& name = optimizer.optimizer().groups()[i].name;
    if (saved_name != name) {
      throw FormatError(cat("resume from ", path, ": parameter group ", i, " of the checkpoint is '", saved_name,
                            "', of this run '", name, "'; train with the paramwise_cfg of the checkpoint"),
                        path, 0);
    }
  }
  std::string problems;
  std::vector<Fill> fills;
  for (const auto& [full_name, state] : optimizer.stepper().named_states()) {
    const auto [name, role] = split_state_name(full_name);
    const formats::SourceTensor* entry = source.find(role, name);
    // Weights that were trained in f32 are their own masters.
    if (entry == nullptr && role == kMasterRole) entry = source.find("param", name);
    if (entry == nullptr) {
      problems += cat("\n  missing: ", role, " of ", name);
    } else if (!(Shape(entry->shape) == state.shape)) {
      problems += cat("\n  mismatched: ", role, " of ", name, " is ", formats::shape_text(entry->shape),
                      " in the file, ", state.shape, " in this run");
    } else {
      fills.push_back({entry, state.tensor, state.offset});
    }
  }
  if (!problems.empty()) {
    throw FormatError(cat("resume from ", path, ": the optimizer's states do not fit this run:", problems), path, 0);
  }
  return fills;
}

void load_optimizer_state(const Json& state, const std::string& path, BoostedOptimizer& optimizer) {
  const JsonCursor saved_state = JsonCursor(state, path).at("optimizer");
  const std::int64_t step = saved_state.at("step").integer(0);
  std::vector<autograd::ParamGroup> groups = optimizer.optimizer().groups();
  for (std::size_t i = 0; i < groups.size(); ++i) {
    for (const auto& [name, value] : saved_state.at("groups").at(i).at("values").members()) {
      groups[i].values.insert_or_assign(name, value.number());
    }
  }
  if (optimizer.grad_scaler() != nullptr && saved_state.has("grad_scaler")) {
    const JsonCursor counters = saved_state.at("grad_scaler");
    optimizer.grad_scaler()->set_state({counters.at("scale").number(), counters.at("growth_step").integer(0),
                                        counters.at("hysteresis_step").integer(0),
                                        counters.at("skipped_in_row").integer(0), counters.at("skipped").integer(0)});
  }
  optimizer.optimizer().groups() = std::move(groups);
  optimizer.stepper().set_step_count(step);
}

void load_scheduler_states(const Json& states, const std::string& path,
                           std::vector<std::unique_ptr<ParamScheduler>>& schedulers) {
  const JsonCursor list(states, path);
  if (list.size() != schedulers.size()) {
    throw FormatError(cat("resume from ", path, ": the checkpoint has ", list.size(), " param_schedulers, this run ",
                          schedulers.size(), "; resume with resume_param_scheduler: false to start them anew"),
                      path, 0);
  }
  for (std::size_t i = 0; i < schedulers.size(); ++i) {
    const std::string& type = list.at(i).at("type").string();
    if (type != schedulers[i]->type()) {
      throw FormatError(cat("resume from ", path, ": param_scheduler ", i, " was ", type, ", in this run it is ",
                            schedulers[i]->type()),
                        path, 0);
    }
  }
  for (std::size_t i = 0; i < schedulers.size(); ++i) schedulers[i]->load_state_dict(list.at(i).value());
}

}  // namespace castor::strategy
