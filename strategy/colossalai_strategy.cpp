// prepare and the steps; see colossalai_strategy.h.
#include "strategy/colossalai_strategy.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "autograd/graph.h"
#include "autograd/random_state.h"
#include "core/base/log.h"
#include "core/base/philox.h"
#include "core/device/trace.h"
#include "core/ops/cast.h"
#include "strategy/checkpoint/fill.h"
#include "strategy/checkpoint/training_state.h"
#include "strategy/rank_updates.h"

namespace castor::strategy {
namespace {

constexpr const char* kPrecisionPath = "strategy.mixed_precision";

}  // namespace

ColossalAIStrategy::ColossalAIStrategy(Device device, std::uint64_t seed, const AutoScaleConfig& auto_scale_lr,
                                       std::optional<MixedPrecision> precision)
    : device_(device), seed_(seed), auto_scale_lr_(auto_scale_lr), precision_(precision.value_or(Precision::fp32)) {}

ColossalAIStrategy::ColossalAIStrategy(Device device, std::uint64_t seed, const AutoScaleConfig& auto_scale_lr,
                                       std::unique_ptr<Plugin> plugin, dist::Comm& comm,
                                       std::optional<MixedPrecision> precision)
    : device_(device), seed_(seed), auto_scale_lr_(auto_scale_lr), plugin_(std::move(plugin)), comm_(&comm) {
  if (plugin_ == nullptr) throw InternalError("ColossalAIStrategy: ranks need a plugin");
  const std::optional<Precision> of_plugin = plugin_->settings().precision;
  const bool is_apex_of_fp16 = precision && precision->type == Precision::fp16_apex && of_plugin == Precision::fp16;
  if (precision && of_plugin && precision->type != *of_plugin && !is_apex_of_fp16) {
    throw ConfigError(
        cat("strategy: mixed_precision is ", precision_name(precision->type), " and the precision of ",
            plugin_->type_name(), " is ", precision_name(*of_plugin), "; give one of them, or both alike"),
        kPrecisionPath);
  }
  precision_ = precision ? *precision : of_plugin.value_or(Precision::fp32);
}

autograd::Batch ColossalAIStrategy::on_device(const autograd::Batch& batch) const {
  Tensor inputs = to_device(batch.inputs, device_);
  if (is_floating(inputs.dtype())) inputs = cast(inputs, compute_dtype(precision_.type));
  return {inputs, batch.targets.defined() ? to_device(batch.targets, device_) : Tensor{}};
}

void ColossalAIStrategy::make_model(const ModelFactory& model, bool is_spread) {
  const bool is_late = is_spread && plugin_ != nullptr && plugin_->settings().builds_on_meta;
  autograd::TensorOptions where = tensor_options(precision_, device_);
  if (is_late) where.parameters_on = make_meta({kernel_type(device_), "", 0});
  model_ = model(where);
  if (!is_late) return autograd::initialize(*model_, seed_);
  // Parameters are filled where the plugin puts them.
  fills_ = autograd::initializers(*model_, seed_);
  for (const auto& [name, buffer] : model_->named_buffers()) fills_.at(buffer.identity())(buffer.data());
}

std::unique_ptr<Sharding> ColossalAIStrategy::make_sharding(const PrepareOptions& options) {
  std::vector<autograd::Variable> parameters;
  for (const auto& [name, parameter] : model_->named_parameters()) parameters.push_back(parameter);
  if (plugin_ == nullptr) {
    std::erase_if(parameters, [](const autograd::Variable& parameter) { return !parameter.requires_grad(); });
    return make_unsharded(std::move(parameters));
  }
  const auto fill = [this](const autograd::Variable& parameter, const Tensor& into) {
    fills_.at(parameter.identity())(into);
  };
  auto sharding = plugin_->shard({*comm_, std::move(parameters), device_, options.accumulative_counts, fill,
                                  options.forecast ? &*options.forecast : nullptr, options.limits});
  fills_.clear();
  sharding->set_before_change([this](const Tensor& tensor) { saver_.before_change(tensor); });
  return sharding;
}

OptimWrapperOptions ColossalAIStrategy::wrapper_options(const PrepareOptions& options) {
  OptimWrapperOptions wrapper;
  wrapper.accumulative_counts = options.accumulative_counts;
  wrapper.clip = options.clip;
  if (options.dispatch.max_iters) {
    wrapper.max_micro_steps = *options.dispatch.max_iters * options.dispatch.micro_steps_per_iter;
  }
  wrapper.world_size = world_size();
  wrapper.find_not_finite = [this] { return first_not_finite(); };
  wrapper.counts_items = options.counts_items;
  if (world_size() > 1) {
    const auto over_ranks = [this](const char* what, dist::ReduceOp op) {
      return [this, what, op](std::int64_t number) {
        const Tensor all = Tensor::from_values(std::vector<std::int64_t>{number}, {1});
        comm_->all_reduce(all, what, op);
        return all.data<std::int64_t>()[0];
      };
    };
    wrapper.sum_over_ranks = over_ranks("items of losses", dist::ReduceOp::kSum);
    wrapper.largest_of_ranks = over_ranks("unit of items", dist::ReduceOp::kMax);
  }
  const PluginSettings settings = plugin_ == nullptr ? PluginSettings{} : plugin_->settings();
  if (scales_losses(precision_.type)) wrapper.grad_scaler = precision_.grad_scaler.value_or(settings.grad_scaler);
  if (settings.max_norm) {
    if (options.clip) {
      throw ConfigError(cat("prepare: optim_wrapper.clip_grad and ", plugin_->type_name(),
                            "'s max_norm both limit gradients; give one of them"),
                        "optim_wrapper.clip_grad");
    }
    wrapper.clip = ClipConfig{};
    wrapper.clip->max_norm = settings.max_norm;
  }
  return wrapper;
}

autograd::TrainableModel& ColossalAIStrategy::model() {
  if (model_ == nullptr) throw InternalError("ColossalAIStrategy: call prepare before using the model");
  return *model_;
}

void ColossalAIStrategy::prepare(const ModelFactory& model, const PrepareOptions& options) {
  if (model_ != nullptr) return;
  make_model(model, options.optimizer != nullptr);
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
  std::unique_ptr<autograd::Optimizer> optimizer = options.optimizer();
  OptimWrapperOptions wrapper = wrapper_options(options);
  if (options.paramwise) {
    ParamGrouping grouping = group_parameters(*model_, *options.paramwise, optimizer->groups().at(0));
    optimizer->set_param_groups(std::move(grouping.groups));
    wrapper.group_of = std::move(grouping.group_of);
  }
  optim_wrapper_ = std::make_unique<OptimWrapper>(std::move(optimizer), make_sharding(options), wrapper);
  optim_wrapper_->set_inner_count(options.dispatch.cur_iter * options.dispatch.micro_steps_per_iter);
  if (world_size() > 1 && optim_wrapper_->sharding().is_sharded()) save_ranks_ = comm_->split(0, comm_->rank());
  optim_wrapper_->stepper().set_before_update([this](const autograd::Part& part, const auto& states) {
    saver_.before_change(part.weights.defined() ? part.weights : part.variable.data());
    for (const auto& [name, state] : states) saver_.before_change(state);
  });
  micro_batch_ = options.dispatch.train_micro_batch_size_per_gpu;
  scale_lr(options);
  const SchedulerContext context{optim_wrapper_->optimizer().groups(), options.dispatch.max_epochs,
                                 options.dispatch.max_iters, options.dispatch.epoch_length,
                                 [this] { return optim_wrapper_->stepper().step_count(); }};
  for (const SchedulerFactory& make : options.param_schedulers) schedulers_.push_back(make(context));
}

void ColossalAIStrategy::scale_lr(const PrepareOptions& options) {
  const AutoScaleConfig& scale = options.auto_scale_lr ? *options.auto_scale_lr : auto_scale_lr_;
  if (!scale.enable) return;
  const auto batch = static_cast<double>(world_size() * options.dispatch.micro_steps_per_iter *
                                         options.dispatch.train_micro_batch_size_per_gpu);
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
  const std::int64_t micro_step = optim_wrapper_->window_position();
  const auto k = static_cast<std::uint64_t>(micro_step * world_size() + rank());
  autograd::random_state().begin(seed_, step, k);
  optim_wrapper_->sharding().begin_pass(true);
  if (optim_wrapper_->is_last_chance() && !watch_) watch_.emplace();
  std::optional<autograd::ResultObserverScope> watching;
  if (watch_) watching.emplace(*watch_);
  std::map<std::string, autograd::Variable> losses;
  {
    const autograd::BufferUpdateScope collect(buffer_updates_);
    const TraceSpan span("forward", "phase", device_);
    losses = model_->loss(on_device(batch));
  }
  const autograd::Variable total = autograd::total_loss(losses);
  std::map<std::string, autograd::SideCopies::Fetch> reads = begin_reading(losses, total);
  StepResult result;
  const bool counts_items = optim_wrapper_->counts_items();
  result.update =
      optim_wrapper_->update_params(total, counts_items ? model_->loss_items(batch) : autograd::LossItems{});
  if (result.update.did_update) watch_.reset();
  if (result.update.did_update) apply_buffer_updates(micro_step + 1);
  if (!device_.is_meta()) {
    for (auto& [name, read] : reads) result.losses[name] = loss_copies_->finish(read).item();
    result.losses = mean_over_ranks(result.losses);
  }
  return result;
}

// On a GPU the losses go to the host while backward runs: the step waits for the device once, for the gradients' norm.
std::map<std::string, autograd::SideCopies::Fetch> ColossalAIStrategy::begin_reading(
    const std::map<std::string, autograd::Variable>& losses, const autograd::Variable& total) {
  std::map<std::string, autograd::SideCopies::Fetch> reads;
  if (device_.is_meta()) return reads;
  if (loss_copies_ == nullptr) loss_copies_ = std::make_unique<autograd::SideCopies>(device_);
  const Device place = device_.is_cuda() ? kHost : device_;
  loss_copies_->begin();
  for (const auto& [name, loss] : losses) reads[name] = loss_copies_->fetch(loss.data(), place);
  reads["loss"] = loss_copies_->fetch(total.data(), place);
  return reads;
}

void ColossalAIStrategy::apply_buffer_updates(std::int64_t micro_steps) {
  for (const auto& [name, buffer] : model_->named_buffers()) saver_.before_change(buffer.data());
  if (world_size() == 1) {
    buffer_updates_.apply();
  } else {
    apply_updates_of_ranks(*comm_, buffer_updates_, micro_steps);
  }
}

std::string ColossalAIStrategy::first_not_finite() {
  const std::string own = watch_ ? watch_->text() : "";
  if (world_size() == 1) return own;
  constexpr std::size_t kLongest = 256;  // bytes of the text that ranks tell each other
  std::vector<std::uint8_t> text(kLongest);
  std::copy_n(own.begin(), std::min(own.size(), kLongest - 1), text.begin());
  const auto length = static_cast<std::int64_t>(kLongest);
  const Tensor all = Tensor::empty({world_size() * length}, DType::u8);
  comm_->all_gather(Tensor::from_values(text, {length}), all, "where values are not finite");
  const std::vector<std::uint8_t> texts = all.to_vector<std::uint8_t>();
  for (std::int64_t rank = 0; rank < world_size(); ++rank) {
    const std::string found(reinterpret_cast<const char*>(texts.data()) + rank * length);
    if (!found.empty()) return cat(found, " on rank ", rank);
  }
  return {};
}

std::map<std::string, double> ColossalAIStrategy::mean_over_ranks(const std::map<std::string, double>& values) {
  if (world_size() == 1) return values;
  std::vector<double> sums;
  for (const auto& [name, value] : values) sums.push_back(value);
  const Tensor all = Tensor::from_values(sums, {static_cast<std::int64_t>(sums.size())});
  comm_->all_reduce(all, "losses for the log");
  std::map<std::string, double> means;
  std::size_t i = 0;
  for (const auto& [name, value] : values) means[name] = all.data<double>()[i++] / static_cast<double>(world_size());
  return means;
}

WeightPlaces ColossalAIStrategy::weight_places() const {
  if (optim_wrapper_ == nullptr || optim_wrapper_->sharding().has_whole_weights()) return {};
  WeightPlaces places;
  for (const autograd::Variable& parameter : optim_wrapper_->sharding().sharded()) places[parameter.identity()];
  for (const autograd::Part& piece : optim_wrapper_->sharding().pieces())
    places[piece.variable.identity()].push_back({piece.offset, piece.weights});
  return places;
}

Json ColossalAIStrategy::numerics() const {
  return numerics_key(precision_.type, micro_batch_, optim_wrapper_->accumulative_counts(), world_size(),
                      optim_wrapper_->counts_items());
}

std::int64_t ColossalAIStrategy::samples_per_micro_step() const { return micro_batch_ * world_size(); }

void ColossalAIStrategy::reserve_saves() {
  saver_.reserve(Snapshot::bytes_of(state_tensors(model(), optim_wrapper_.get(), true, is_main())));
}

void ColossalAIStrategy::save_checkpoint(const std::string& filename, const SaveOptions& options) {
  if (optim_wrapper_ != nullptr && optim_wrapper_->window_position() != 0) {
    throw InternalError(cat("save_checkpoint: called after micro-step ", optim_wrapper_->window_position(), " of ",
                            optim_wrapper_->accumulative_counts(), " of an accumulation window; save at its end"));
  }
  if (!is_main() && save_ranks_ == nullptr) return;  // the main rank has everything
  CheckpointContents contents;
  if (options.extra_ckpt != nullptr) contents.state() = *options.extra_ckpt;
  Json& state = contents.state();
  state["seed"] = seed_;
  if (optim_wrapper_ != nullptr) {
    state["inner_count"] = optim_wrapper_->inner_count();
    state["samples_per_micro_step"] = samples_per_micro_step();
    state["numerics"] = numerics();
    if (options.save_optimizer) state["optimizer"] = optimizer_state(*optim_wrapper_);
    if (options.save_param_scheduler) state["param_schedulers"] = scheduler_states(schedulers_);
  }
  if (options.callback) options.callback(contents);

  SaveRequest request;
  request.folder = filename;
  request.tensors = state_tensors(model(), optim_wrapper_.get(), options.save_optimizer, is_main());
  for (const auto& [role, tensors] : contents.tensors) {
    if (!is_main()) break;
    for (const auto& [name, tensor] : tensors) request.tensors.push_back({name, role, contiguous(tensor)});
  }
  for (const auto& [other, first] : model().aliases()) request.aliases[other] = first;
  request.state = dump_json(state, 2) + "\n";
  request.config_yaml = options.config_yaml;
  request.asynchronous = options.asynchronous;
  request.ranks = save_ranks_.get();
  request.committed = options.committed;
  saver_.save(std::move(request));
}

LoadReport ColossalAIStrategy::load_checkpoint(const std::string& filename, const LoadOptions& options) {
  saver_.wait();
  LoadReport report = load_weights(model(), filename, options, posix_file_system(), weight_places());
  if (optim_wrapper_ != nullptr) {
    optim_wrapper_->stepper().refresh_masters();
    optim_wrapper_->sharding().weights_loaded();
  }
  return report;
}

CheckpointContents ColossalAIStrategy::resume(const std::string& filename, const ResumeOptions& options) {
  saver_.wait();
  const LoadSource source = LoadSource::open(filename);
  const std::string& path = source.path;
  CheckpointContents contents = read_contents(source, options.map_location, device_, true);
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
  std::vector<Fill> fills = match_weights(source, model(), contents.names, report, weight_places());
  if (!report.fits()) {
    throw FormatError(cat("resume from ", path, ": the checkpoint does not fit the model:", report.text()), path, 0);
  }
  if (wants_optimizer) {
    const std::vector<Fill> states = match_optimizer(source, state, *optim_wrapper_);
    fills.insert(fills.end(), states.begin(), states.end());
  }
  if (wants_schedulers) load_scheduler_states(state.at("param_schedulers"), path, schedulers_);
  if (wants_optimizer) load_optimizer_state(state, path, *optim_wrapper_);
  fill(source, fills);
  if (optim_wrapper_ != nullptr) {
    if (!wants_optimizer) optim_wrapper_->stepper().refresh_masters();
    optim_wrapper_->sharding().weights_loaded();
    optim_wrapper_->set_inner_count(micro_steps_here(JsonCursor(state, path), "inner_count", samples_per_micro_step()));
    if (state.contains("numerics")) {
      warn_about_numerics(state.at("numerics"), numerics());
    }
  }
  seed_ = JsonCursor(state, path).at("seed").unsigned_integer();
  return contents;
}

Tensor ColossalAIStrategy::val_step(const autograd::Batch& batch) {
  model().eval();
  if (optim_wrapper_ != nullptr) optim_wrapper_->sharding().begin_pass(false);
  const autograd::NoGradScope no_grad;
  const Tensor predictions = model_->predict(on_device(batch));
  return is_floating(predictions.dtype()) ? cast(predictions, DType::f32) : predictions;
}

}  // namespace castor::strategy
