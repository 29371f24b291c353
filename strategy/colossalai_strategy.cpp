// prepare and the steps; see colossalai_strategy.h.
#include "strategy/colossalai_strategy.h"

#include "autograd/graph.h"
#include "autograd/random_state.h"
#include "core/base/log.h"
#include "core/base/philox.h"
#include "core/ops/cast.h"

namespace castor::strategy {
namespace {

autograd::Batch on_device(const autograd::Batch& batch, Device device) {
  return {to_device(batch.inputs, device), batch.targets.defined() ? to_device(batch.targets, device) : Tensor{}};
}

}  // namespace

ColossalAIStrategy::ColossalAIStrategy(Device device, std::uint64_t seed, const AutoScaleConfig& auto_scale_lr)
    : device_(device), seed_(seed), auto_scale_lr_(auto_scale_lr) {}

autograd::TrainableModel& ColossalAIStrategy::model() {
  if (model_ == nullptr) throw InternalError("ColossalAIStrategy: call prepare before using the model");
  return *model_;
}

void ColossalAIStrategy::prepare(const ModelFactory& model, const PrepareOptions& options) {
  if (model_ != nullptr) return;
  model_ = model({DType::f32, device_});
  autograd::initialize(*model_, seed_);
  if (!options.optimizer) {
    if (!options.param_schedulers.empty())
      throw ConfigError("prepare: param_scheduler needs an optim_wrapper", "param_scheduler");
    return;
  }
  if (options.accumulative_counts > 1 && !options.dispatch.max_iters) {
    throw ConfigError(cat("prepare: accumulative_counts is ", options.accumulative_counts,
                          ", so the last window's length must be known: give max_iters in dispatch_kwargs"),
                      "dispatch_kwargs.max_iters");
  }
  std::vector<autograd::LocalStepper::Parameter> parameters;
  for (const auto& [name, parameter] : model_->named_parameters()) {
    if (parameter.requires_grad()) parameters.push_back({parameter, 0});
  }
  optim_wrapper_ =
      std::make_unique<OptimWrapper>(options.optimizer(), std::move(parameters), options.accumulative_counts,
                                     options.clip, options.dispatch.max_iters);
  optim_wrapper_->set_inner_count(options.dispatch.cur_iter);
  scale_lr(options);
  const SchedulerContext context{optim_wrapper_->optimizer().groups(), options.dispatch.max_epochs,
                                 options.dispatch.max_iters, options.dispatch.epoch_length,
                                 [this] { return optim_wrapper_->stepper().step_count(); }};
  for (const SchedulerFactory& make : options.param_schedulers) schedulers_.push_back(make(context));
}

void ColossalAIStrategy::scale_lr(const PrepareOptions& options) {
  const AutoScaleConfig& scale = options.auto_scale_lr ? *options.auto_scale_lr : auto_scale_lr_;
  if (!scale.enable) return;
  const auto batch = static_cast<double>(world_size() * options.dispatch.train_micro_batch_size_per_gpu);
  const auto base = static_cast<double>(*scale.base_batch_size);
  for (autograd::ParamGroup& group : optim_wrapper_->optimizer().groups()) {
    const auto found = group.values.find("lr");
    if (found == group.values.end()) {
      throw ConfigError(cat("auto_scale_lr: ", optim_wrapper_->optimizer().type_name(),
                            " finds its own step size and has no lr to scale; disable one of the two"),
                        "auto_scale_lr");
    }
    double& lr = found->second;
    logger().info("auto_scale_lr: lr ", lr, " * ", batch, " / ", base, " = ", lr * batch / base);
    lr *= batch / base;
  }
}

StepResult ColossalAIStrategy::train_step(const autograd::Batch& batch) {
  if (optim_wrapper_ == nullptr) throw InternalError("train_step: the strategy was prepared without an optimizer");
  model_->train();
  const auto step = static_cast<std::uint64_t>(optim_wrapper_->stepper().step_count());
  const auto k = static_cast<std::uint64_t>(optim_wrapper_->window_position());
  autograd::random_state().begin(seed_, step, k);
  std::map<std::string, autograd::Variable> losses;
  {
    const autograd::BufferUpdateScope collect(buffer_updates_);
    losses = model_->loss(on_device(batch, device_));
  }
  const autograd::Variable total = autograd::total_loss(losses);
  StepResult result;
  result.update = optim_wrapper_->update_params(total);
  if (result.update.did_update) buffer_updates_.apply();
  if (!device_.is_meta()) {
    for (const auto& [name, loss] : losses) result.losses[name] = loss.data().item();
    result.losses["loss"] = total.data().item();
  }
  return result;
}

Tensor ColossalAIStrategy::val_step(const autograd::Batch& batch) {
  model().eval();
  const autograd::NoGradScope no_grad;
  return model_->predict(on_device(batch, device_));
}

}  // namespace castor::strategy
