// boost and the steps; see booster.h. What it saves is in booster_save.cpp.
#include "strategy/booster.h"

#include <utility>

#include "autograd/graph.h"
#include "core/base/log.h"

namespace castor::strategy {
namespace {

constexpr const char* kPrecisionPath = "strategy.mixed_precision";
constexpr const char* kPluginPath = "strategy.plugin";

MixedPrecision precision_with(const std::optional<MixedPrecision>& wanted, const Plugin* plugin) {
  if (plugin == nullptr) return wanted.value_or(Precision::fp32);
  const std::optional<Precision> of_plugin = plugin->settings().precision;
  const bool is_apex_of_fp16 = wanted && wanted->type == Precision::fp16_apex && of_plugin == Precision::fp16;
  if (wanted && of_plugin && wanted->type != *of_plugin && !is_apex_of_fp16) {
    throw ConfigError(cat("strategy: mixed_precision is ", precision_name(wanted->type), " and the precision of ",
                          plugin->type_name(), " is ", precision_name(*of_plugin), "; give one of them, or both alike"),
                      kPrecisionPath);
  }
  return wanted ? *wanted : of_plugin.value_or(Precision::fp32);
}

const char* name_of(const Plugin* plugin) { return plugin == nullptr ? "no plugin" : plugin->type_name(); }

}  // namespace

Booster::Booster(BoosterOptions options)
    : device_(options.device),
      seed_(options.seed),
      precision_(precision_with(options.mixed_precision, options.plugin.get())),
      plugin_(std::move(options.plugin)),
      comm_(options.comm) {
  if (plugin_ != nullptr && comm_ == nullptr) {
    throw ConfigError(cat(plugin_->type_name(), " spreads a model over ranks and was given none; make a dist::Job (a ",
                          "process alone is a job of one rank) and pass its world as comm"),
                      kPluginPath);
  }
  if (plugin_ == nullptr && comm_ != nullptr && comm_->world_size() > 1) {
    throw ConfigError(cat(kPluginPath, ": null trains in one process, this job has ", comm_->world_size(),
                          " ranks; choose a plugin: lowlevel-zero, TorchDDPPlugin"),
                      kPluginPath);
  }
}

std::unique_ptr<Sharding> Booster::make_sharding(autograd::TrainableModel& model, const autograd::Initializers& fills,
                                                 const BoostOptions& options) {
  std::vector<autograd::Variable> parameters;
  for (const auto& [name, parameter] : model.named_parameters()) parameters.push_back(parameter);
  if (plugin_ == nullptr) {
    std::erase_if(parameters, [](const autograd::Variable& parameter) { return !parameter.requires_grad(); });
    return make_unsharded(std::move(parameters));
  }
  const auto fill = [&fills](const autograd::Variable& parameter, const Tensor& into) {
    fills.at(parameter.identity())(into);
  };
  auto sharding = plugin_->shard({*comm_, std::move(parameters), device_, options.accumulative_counts, fill,
                                  options.forecast ? &*options.forecast : nullptr, options.limits});
  sharding->set_before_change([this](const Tensor& tensor) { saver_.before_change(tensor); });
  return sharding;
}

std::function<std::int64_t(std::int64_t)> Booster::over_ranks(const char* what, dist::ReduceOp op) {
  return [this, what, op](std::int64_t number) {
    const Tensor all = Tensor::from_values(std::vector<std::int64_t>{number}, {1});
    comm_->all_reduce(all, what, op);
    return all.data<std::int64_t>()[0];
  };
}

BoostedOptimizerOptions Booster::optimizer_options(BoostedModel& model, const BoostOptions& options) {
  BoostedOptimizerOptions result;
  result.clip = options.clip;
  result.world_size = world_size();
  result.counts_items = options.counts_items;
  if (world_size() > 1) {
    result.sum_over_ranks = over_ranks("items of losses", dist::ReduceOp::kSum);
    result.largest_of_ranks = over_ranks("unit of items", dist::ReduceOp::kMax);
  }
  result.watch = [&model] { return model.watch(); };
  result.find_not_finite = [&model] { return model.first_not_finite(); };
  result.window_ended = [&model](std::int64_t micro_steps) { model.end_window(micro_steps); };
  const PluginSettings settings = plugin_ == nullptr ? PluginSettings{} : plugin_->settings();
  if (scales_losses(precision_.type)) result.grad_scaler = precision_.grad_scaler.value_or(settings.grad_scaler);
  if (settings.max_norm) {
    if (options.clip) {
      throw ConfigError(cat("prepare: optim_wrapper.clip_grad and ", plugin_->type_name(),
                            "'s max_norm both limit gradients; give one of them"),
                        "optim_wrapper.clip_grad");
    }
    result.clip = ClipConfig{};
    result.clip->max_norm = settings.max_norm;
  }
  return result;
}

Boosted Booster::boost(const ModelFactory& factory, const BoostOptions& options) {
  if (!options.optimizer && !options.param_schedulers.empty())
    throw ConfigError("prepare: param_scheduler needs an optim_wrapper", "param_scheduler");
  const bool is_late = options.optimizer && plugin_ != nullptr && plugin_->settings().builds_on_meta;
  autograd::TensorOptions where = tensor_options(precision_, device_);
  if (is_late) where.parameters_on = make_meta({kernel_type(device_), "", 0});
  const std::shared_ptr<autograd::TrainableModel> model = factory(where);
  autograd::Initializers fills;  // of parameters that have no memory yet
  if (is_late) {
    fills = autograd::initializers(*model, seed_);
    for (const auto& [name, buffer] : model->named_buffers()) fills.at(buffer.identity())(buffer.data());
  } else if (options.optimizer || options.dispatch.init_weights_for_test_or_val) {
    autograd::initialize(*model, seed_);
  } else {
    autograd::name_tree(*model);
  }

  Boosted boosted;
  boosted.model = std::make_unique<BoostedModel>(model, device_, compute_dtype(precision_.type), seed_, comm_, saver_);
  if (!options.optimizer) return boosted;
  std::unique_ptr<autograd::Optimizer> optimizer = options.optimizer();
  BoostedOptimizerOptions settings = optimizer_options(*boosted.model, options);
  if (options.paramwise) {
    ParamGrouping grouping = group_parameters(*model, *options.paramwise, optimizer->groups().at(0));
    optimizer->set_param_groups(std::move(grouping.groups));
    settings.group_of = std::move(grouping.group_of);
  }
  boosted.optimizer =
      std::make_unique<BoostedOptimizer>(std::move(optimizer), make_sharding(*model, fills, options), settings);
  BoostedOptimizer& trained = *boosted.optimizer;
  boosted.model->set_optimizer(trained);
  if (world_size() > 1 && trained.sharding().is_sharded() && save_ranks_ == nullptr)
    save_ranks_ = comm_->split(0, comm_->rank());
  trained.stepper().set_before_update([this](const autograd::Part& part, const auto& states) {
    saver_.before_change(part.weights.defined() ? part.weights : part.variable.data());
    for (const auto& [name, state] : states) saver_.before_change(state);
  });
  if (options.adjust) options.adjust(trained.optimizer());
  const SchedulerContext context{trained.optimizer().groups(), options.dispatch.max_epochs, options.dispatch.max_iters,
                                 options.dispatch.epoch_length, [&trained] { return trained.stepper().step_count(); }};
  for (const SchedulerFactory& make : options.param_schedulers) boosted.lr_schedulers.push_back(make(context));
  return boosted;
}

void Booster::backward(const autograd::Variable& loss, BoostedOptimizer& optimizer, const autograd::LossItems& items) {
  optimizer.backward(loss, items);
}

NoSync Booster::no_sync(BoostedModel& model, BoostedOptimizer& optimizer) {
  if (model.optimizer() != &optimizer) {
    throw ConfigError("no_sync: the optimizer is not the one that the model was boosted with", "no_sync");
  }
  if (!optimizer.sharding().can_defer()) {
    throw ConfigError(
        cat("no_sync: ", name_of(plugin_.get()),
            " has no place for gradients that wait on their rank; TorchDDPPlugin and LowLevelZeroPlugin's "
            "stage 1 have"),
        kPluginPath);
  }
  return NoSync(optimizer);
}

void Booster::execute_pipeline() const {
  throw ConfigError(
      cat("execute_pipeline: ", name_of(plugin_.get()),
          " has no pipeline, and Castor has no plugin that cuts a model into stages; call the model's loss, "
          "backward and step. A model that does not fit trains under GeminiPlugin, whose chunks pass "
          "through the device one by one"),
      kPluginPath);
}

void Booster::enable_lora() const {
  throw ConfigError(
      cat("enable_lora: ", name_of(plugin_.get()),
          " does not add adapters, and Castor rewrites no model; write the two small matrices into the "
          "model and freeze the others (set_requires_grad(false)): every plugin shards and offloads frozen "
          "parameters without optimizer states"),
      kPluginPath);
}

std::unique_ptr<DataLoader> Booster::prepare_dataloader(std::shared_ptr<const Dataset> dataset,
                                                        SamplerOptions options) const {
  options.world_size = world_size();
  options.rank = rank();
  return std::make_unique<DataLoader>(std::move(dataset), options);
}

}  // namespace castor::strategy
