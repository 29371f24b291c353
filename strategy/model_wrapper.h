// ModelWrapper: what one training, validation or test step does with a model: mmengine's model wrapper. The strategy
// calls these three and nothing else of a model, so a wrapper of a user's own (`model_wrapper: {type: ...}`) changes
// what a step is.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "autograd/nn/trainable.h"
#include "autograd/optim/side_copies.h"
#include "strategy/boosted_model.h"
#include "strategy/config/field.h"
#include "strategy/optim_wrapper.h"
#include "strategy/recorded_step.h"

namespace castor::strategy {

/// What one train_step did.
struct StepResult {
  std::map<std::string, double> losses;  ///< by name, with their sum as "loss"; empty on meta
  UpdateResult update;
};

class ModelWrapper {
 public:
  virtual ~ModelWrapper() = default;
  /// Forward, losses, and update_params once; all ranks call it together.
  virtual StepResult train_step(const autograd::Batch& batch, OptimWrapper& optim_wrapper) = 0;
  /// Predictions in eval mode, for metrics.
  virtual Tensor val_step(const autograd::Batch& batch) = 0;
  virtual Tensor test_step(const autograd::Batch& batch) = 0;
  /// From now on train_step records its passes and runs the recordings (`compile`). False: this wrapper does not.
  virtual bool record_passes() { return false; }
};

/// Wraps a model that was boosted, which outlives the wrapper.
using ModelWrapperFactory = std::function<std::unique_ptr<ModelWrapper>(BoostedModel&)>;

/// The usual steps. Derive from it to change the losses of a step only.
class ColossalAIModelWrapper : public ModelWrapper {
 public:
  struct Config {};
  explicit ColossalAIModelWrapper(BoostedModel& model) : model_(model), values_(model.device()) {}

  /// losses() of the batch, their total (autograd::parse_losses) to update_params, and the values for the log.
  StepResult train_step(const autograd::Batch& batch, OptimWrapper& optim_wrapper) override;
  /// The model's `predict`.
  Tensor val_step(const autograd::Batch& batch) override { return model_.predict(batch); }
  Tensor test_step(const autograd::Batch& batch) override { return val_step(batch); }
  bool record_passes() override;

 protected:
  /// The step's losses by name, recorded: by default the model's.
  virtual BoostedModel::Losses losses(const autograd::Batch& batch) { return model_.loss(batch); }
  BoostedModel& model() { return model_; }

 private:
  BoostedModel& model_;
  std::unique_ptr<RecordedStep> recorded_;  // with `compile`
  autograd::SideCopies values_;             // on a GPU losses go to the host while backward runs
};

template <class V>
void describe(V&, ColossalAIModelWrapper::Config&) {}

}  // namespace castor::strategy
