// prepare and the steps; see colossalai_strategy.h.
#include "strategy/colossalai_strategy.h"

#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "core/base/log.h"
#include "core/ops/cast.h"
#include "dist/values.h"
#include "strategy/checkpoint/fill.h"
#include "strategy/checkpoint/training_state.h"

namespace castor::strategy {
namespace {

// A norm that is not the same on all ranks would leave them with weights of different updates, and nobody would know:
// it goes into the label, which ranks compare.
std::string losses_label(const std::optional<double>& norm) {
  if (!norm) return "losses for the log";
  char digits[32] = "not finite";
  if (std::isfinite(*norm)) std::snprintf(digits, sizeof(digits), "%a", *norm);
  return cat("losses for the log, gradient norm ", digits);
}

}  // namespace

ColossalAIStrategy::ColossalAIStrategy(Device device, std::uint64_t seed, const AutoScaleConfig& auto_scale_lr,
                                       std::unique_ptr<Plugin> plugin, dist::Comm* comm,
                                       std::optional<MixedPrecision> precision, ModelWrapperFactory wrapper)
    : auto_scale_lr_(auto_scale_lr),
      make_wrapper_(std::move(wrapper)),
      comm_(comm),
      booster_({device, seed, precision, std::move(plugin), comm}) {
  if (!make_wrapper_)
    make_wrapper_ = [](BoostedModel& model) { return std::make_unique<ColossalAIModelWrapper>(model); };
}

ColossalAIStrategy::ColossalAIStrategy(Device device, std::uint64_t seed, const AutoScaleConfig& auto_scale_lr,
                                       std::optional<MixedPrecision> precision, ModelWrapperFactory wrapper)
    : ColossalAIStrategy(device, seed, auto_scale_lr, nullptr, nullptr, precision, std::move(wrapper)) {}

ColossalAIStrategy::ColossalAIStrategy(Device device, std::uint64_t seed, const AutoScaleConfig& auto_scale_lr,
                                       std::unique_ptr<Plugin> plugin, dist::Comm& comm,
                                       std::optional<MixedPrecision> precision, ModelWrapperFactory wrapper)
    : ColossalAIStrategy(device, seed, auto_scale_lr, std::move(plugin), &comm, precision, std::move(wrapper)) {}

ColossalAIStrategy::~ColossalAIStrategy() { booster_.saver().finish(); }

BoostedModel& ColossalAIStrategy::boosted_model() {
  if (boosted_.model == nullptr) throw InternalError("ColossalAIStrategy: call prepare before using the model");
  return *boosted_.model;
}

void ColossalAIStrategy::prepare(const ModelFactory& model, const PrepareOptions& options) {
  if (boosted_.model != nullptr) return;
  const bool records = asks_for_recording(options.compile);
  if (records) check_recording(options);
  if (options.accumulative_counts > 1 && !options.dispatch.max_iters) {
    throw ConfigError(cat("prepare: accumulative_counts is ", options.accumulative_counts,
                          ", so the last window's length must be known: give max_iters in dispatch_kwargs"),
                      "dispatch_kwargs.max_iters");
  }
  BoostOptions boost = options;
  boost.adjust = [&](autograd::Optimizer& optimizer) {
    if (options.adjust) options.adjust(optimizer);
    scale_lr(optimizer, options);
  };
  boosted_ = booster_.boost(model, boost);
  wrapper_ = make_wrapper_(*boosted_.model);
  if (records && !wrapper_->record_passes()) {
    throw ConfigError(
        "compile: this model_wrapper has a train_step of its own, which records nothing; leave compile out", "compile");
  }
  if (boosted_.optimizer == nullptr) return;
  OptimWrapperOptions wrapper;
  wrapper.accumulative_counts = options.accumulative_counts;
  if (options.dispatch.max_iters) {
    wrapper.max_micro_steps = *options.dispatch.max_iters * options.dispatch.micro_steps_per_iter;
  }
  optim_wrapper_ = std::make_unique<OptimWrapper>(*boosted_.optimizer, wrapper);
  const std::int64_t done = options.dispatch.cur_iter * options.dispatch.micro_steps_per_iter;
  if (done % options.accumulative_counts != 0) {
    logger().warning("cur_iter is ", options.dispatch.cur_iter, ", inside a window of ", options.accumulative_counts,
                     " micro-steps: the gradients of its first ", done % options.accumulative_counts,
                     " are not there, so the first update is the mean of those that are left");
  }
  optim_wrapper_->set_inner_count(done);
  micro_batch_ = options.dispatch.train_micro_batch_size_per_gpu;
}

void ColossalAIStrategy::check_recording(const PrepareOptions& options) const {
  const char* why = nullptr;
  if (!booster_.device().is_cuda()) {
    why = "passes are recorded on GPUs only: on a CPU kernels start without a cost that it would save";
  } else if (booster_.plugin() != nullptr) {
    why = "passes are recorded without a plugin only: with one, gradients and weights move while a pass runs";
  } else if (scales_losses(booster_.precision().type) || options.counts_items) {
    why =
        "fp16's loss scale and the weights of loss_normalisation change from step to step, which a recording does not";
  }
  if (why != nullptr)
    throw ConfigError(cat("compile: ", why, ". Leave compile out, or give false or {disable: true}"), "compile");
}

void ColossalAIStrategy::scale_lr(autograd::Optimizer& optimizer, const PrepareOptions& options) const {
  const AutoScaleConfig& scale = options.auto_scale_lr ? *options.auto_scale_lr : auto_scale_lr_;
  if (!scale.enable) return;
  const auto batch = static_cast<double>(world_size() * options.dispatch.micro_steps_per_iter *
                                         options.dispatch.train_micro_batch_size_per_gpu);
  const auto base = static_cast<double>(*scale.base_batch_size);
  for (autograd::ParamGroup& group : optimizer.groups()) {
    const auto found = group.values.find("lr");
    if (found == group.values.end()) {
      throw ConfigError(cat("auto_scale_lr: ", optimizer.type_name(),
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
  StepResult result = wrapper_->train_step(batch, *optim_wrapper_);
  if (!result.losses.empty())
    result.losses =
        dist::all_reduce_dict(comm_, result.losses, /*is_mean=*/true, losses_label(result.update.grad_norm));
  return result;
}

Tensor ColossalAIStrategy::val_step(const autograd::Batch& batch) {
  boosted_model();
  return wrapper_->val_step(batch);
}

Tensor ColossalAIStrategy::test_step(const autograd::Batch& batch) {
  boosted_model();
  return wrapper_->test_step(batch);
}

Json ColossalAIStrategy::numerics() const {
  return numerics_key(booster_.precision().type, micro_batch_, optim_wrapper_->accumulative_counts(), world_size(),
                      optim_wrapper_->counts_items(), booster_.device());
}

std::int64_t ColossalAIStrategy::samples_per_micro_step() const { return micro_batch_ * world_size(); }

void ColossalAIStrategy::reserve_saves() {
  booster_.saver().reserve(Snapshot::bytes_of(state_tensors(model(), boosted_.optimizer.get(), true, is_main())));
}

void ColossalAIStrategy::save_checkpoint(const std::string& filename, const SaveOptions& options) {
  if (optim_wrapper_ != nullptr && optim_wrapper_->window_position() != 0) {
    throw InternalError(cat("save_checkpoint: called after micro-step ", optim_wrapper_->window_position(), " of ",
                            optim_wrapper_->accumulative_counts(), " of an accumulation window; save at its end"));
  }
  if (!is_main() && booster_.save_ranks() == nullptr) return;  // the main rank has everything
  CheckpointContents contents;
  if (options.extra_ckpt != nullptr) contents.state() = *options.extra_ckpt;
  Json& state = contents.state();
  state["seed"] = boosted_model().seed();
  if (optim_wrapper_ != nullptr) {
    state["inner_count"] = optim_wrapper_->inner_count();
    state["samples_per_micro_step"] = samples_per_micro_step();
    state["numerics"] = numerics();
    if (options.save_optimizer) state["optimizer"] = optimizer_state(*boosted_.optimizer);
    if (options.save_param_scheduler) state["param_schedulers"] = scheduler_states(boosted_.lr_schedulers);
  }
  if (options.callback) options.callback(contents);

  SaveRequest request;
  request.folder = filename;
  request.tensors = state_tensors(model(), boosted_.optimizer.get(), options.save_optimizer, is_main());
  for (const auto& [role, tensors] : contents.tensors) {
    if (!is_main()) break;
    for (const auto& [name, tensor] : tensors) request.tensors.push_back({name, role, contiguous(tensor)});
  }
  for (const auto& [other, first] : model().aliases()) request.aliases[other] = first;
  request.state = dump_json(state, 2) + "\n";
  request.config_yaml = options.config_yaml;
  request.asynchronous = options.asynchronous;
  request.ranks = booster_.save_ranks();
  request.committed = options.committed;
  booster_.saver().save(std::move(request));
}

LoadReport ColossalAIStrategy::load_checkpoint(const std::string& filename, const LoadOptions& options) {
  booster_.saver().wait();
  LoadReport report = load_weights(model(), filename, options, posix_file_system(), boosted_model().weight_places());
  boosted_model().weights_loaded(false);
  return report;
}

CheckpointContents ColossalAIStrategy::resume(const std::string& filename, const ResumeOptions& options) {
  booster_.saver().wait();
  const LoadSource source = LoadSource::open(filename);
  const std::string& path = source.path;
  CheckpointContents contents = read_contents(source, options.map_location, booster_.device(), true);
  contents.names = revised_names(source, {});
  if (options.callback) options.callback(contents);
  const Json& state = contents.state();
  const auto require = [&](const char* key, const char* otherwise) {
    if (!state.contains(key)) {
      throw FormatError(cat("resume from ", path, ": it holds no ", key, otherwise), path, 0);
    }
  };
  require("seed", "; it has weights only: start from them with load_from");
  const bool wants_optimizer = options.resume_optimizer && optim_wrapper_ != nullptr;
  const bool wants_schedulers = options.resume_param_scheduler && optim_wrapper_ != nullptr;
  if (wants_optimizer) require("optimizer", " (saved with save_optimizer: false); resume with resume_optimizer: false");
  if (wants_schedulers) {
    require("param_schedulers", " (saved with save_param_scheduler: false); resume with resume_param_scheduler: false");
  }

  LoadReport report;
  std::vector<Fill> fills = match_weights(source, model(), contents.names, report, boosted_model().weight_places());
  if (!report.fits()) {
    throw FormatError(cat("resume from ", path, ": the checkpoint does not fit the model:", report.text()), path, 0);
  }
  if (wants_optimizer) {
    const std::vector<Fill> states = match_optimizer(source, state, *boosted_.optimizer);
    fills.insert(fills.end(), states.begin(), states.end());
  }
  if (wants_schedulers) load_scheduler_states(state.at("param_schedulers"), path, boosted_.lr_schedulers);
  if (wants_optimizer) load_optimizer_state(state, path, *boosted_.optimizer);
  fill(source, fills);
  boosted_model().weights_loaded(wants_optimizer);
  if (optim_wrapper_ != nullptr) {
    optim_wrapper_->set_inner_count(micro_steps_here(JsonCursor(state, path), "inner_count", samples_per_micro_step()));
    if (state.contains("numerics")) {
      warn_about_numerics(state.at("numerics"), numerics());
    }
  }
  set_seed(JsonCursor(state, path).at("seed").unsigned_integer());
  return contents;
}

}  // namespace castor::strategy
