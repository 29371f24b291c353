// Every type that a config can name, by kind. A program makes one Registry, fills it (add_builtins, then its own types)
// and hands it to castor_main.
//
// Delicate: the products are only declared here, so that including this header costs nothing; whoever adds or builds a
// type includes the product's own header. To add a kind: one line, a table with its word and its factory's signature.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "strategy/type_table.h"

namespace castor {
struct Device;
}  // namespace castor

namespace castor::autograd {
class Optimizer;
class TrainableModel;
struct TensorOptions;
}  // namespace castor::autograd

namespace castor::dist {
class Comm;
}

namespace castor::strategy {

class BaseStrategy;
class Dataset;
class Hook;
class BoostedModel;
class Metric;
class ModelWrapper;
class ParamScheduler;
class Plugin;
struct MixedPrecision;
struct SamplerOptions;
struct SchedulerContext;

/// The tables of all kinds. Not copyable: tables refer to each other through it.
class Registry : public TypeDirectory {
 public:
  /// Empty tables.
  Registry();
  ~Registry();

  /// Models, with their tensors as the options say (possibly on meta).
  TypeTable<std::shared_ptr<autograd::TrainableModel>(const autograd::TensorOptions&)> models{"model", *this};
  /// Data sets.
  TypeTable<std::shared_ptr<const Dataset>()> datasets{"dataset", *this};
  /// Orders of samples. A factory sets what its config says and keeps the rest, which the loader fills in.
  TypeTable<SamplerOptions(const SamplerOptions&)> samplers{"sampler", *this};
  /// Optimizers without groups; who builds one adds the groups.
  TypeTable<std::unique_ptr<autograd::Optimizer>()> optimizers{"optimizer", *this};
  /// Schedules of learning rates and other hyper-parameters.
  TypeTable<std::unique_ptr<ParamScheduler>(const SchedulerContext&)> param_schedulers{"param_scheduler", *this};
  /// Metrics of validation.
  TypeTable<std::unique_ptr<Metric>()> metrics{"metric", *this};
  /// Hooks of the loops.
  TypeTable<std::unique_ptr<Hook>()> hooks{"hook", *this};
  /// How a step is carried out: where the model lives, the seed of weights and dropout, and the ranks (null: this
  /// process alone; must outlive the strategy).
  TypeTable<std::unique_ptr<BaseStrategy>(const Device&, std::uint64_t, dist::Comm*)> strategies{"strategy", *this};
  /// What `mixed_precision` names.
  TypeTable<MixedPrecision()> precisions{"mixed_precision", *this};
  /// What a step does with a model, which outlives the wrapper.
  TypeTable<std::unique_ptr<ModelWrapper>(BoostedModel&)> model_wrappers{"model_wrapper", *this};
  /// How a strategy shards a model.
  TypeTable<std::unique_ptr<Plugin>()> plugins{"plugin", *this};
};

/// All kinds with their types, each with its one-line doc: for `castor check --types`.
std::string list_types(const TypeDirectory& types);

}  // namespace castor::strategy
