// Explicit calls, no static initialisers: a linker drops those from static libraries. What the peers have and this
// version has not is listed too, with the reason, so that nobody meets "unknown type" for a name that exists elsewhere.
#include "strategy/builtins.h"

#include "autograd/optim/adafactor.h"
#include "autograd/optim/adagrad.h"
#include "autograd/optim/adam.h"
#include "autograd/optim/adamw8bit.h"
#include "autograd/optim/came.h"
#include "autograd/optim/lamb.h"
#include "autograd/optim/lars.h"
#include "autograd/optim/lion.h"
#include "autograd/optim/rmsprop.h"
#include "autograd/optim/sgd.h"
#include "core/base/log.h"
#include "strategy/colossalai_strategy.h"
#include "strategy/config.h"
#include "strategy/data/sampler.h"
#include "strategy/ddp/torch_ddp_plugin.h"
#include "strategy/gemini/gemini_plugin.h"
#include "strategy/low_level_zero/low_level_zero_plugin.h"
#include "strategy/metric.h"
#include "strategy/precision_config.h"
#include "strategy/registry.h"
#include "strategy/runner/hooks.h"
#include "strategy/runner/profiler_hook.h"
#include "strategy/scheduler.h"

namespace castor::strategy {
namespace {

/// DefaultSampler's options; what is left out is as the loader says (training shuffles, validation does not).
struct SamplerConfig {
  std::optional<bool> shuffle;
  std::optional<std::int64_t> seed;
  std::optional<bool> round_up;
};

template <class V>
void describe(V& v, SamplerConfig& c) {
  v.field("shuffle", c.shuffle, "a new order each epoch; by default in training only");
  v.field("seed", c.seed, "of the order; by default the run's", at_least(0));
  v.field("round_up", c.round_up,
          "repeat the first samples until the last global micro-batch is full; by default in training only");
}

SamplerOptions make_sampler(const SamplerConfig& config, const SamplerOptions& from_loader) {
  SamplerOptions options = from_loader;
  options.shuffle = config.shuffle.value_or(options.shuffle);
  options.round_up = config.round_up.value_or(options.round_up);
  if (config.seed) options.seed = static_cast<std::uint64_t>(*config.seed);
  return options;
}

template <class T, class Base>
auto make = [](const typename T::Config& config) -> std::unique_ptr<Base> { return std::make_unique<T>(config); };

template <class T, class Config>
std::unique_ptr<autograd::Optimizer> make_optimizer(const Config& config) {
  return std::make_unique<T>(config);
}

void add_optimizers(Registry& registry) {
  namespace optim = autograd;
  auto& table = registry.optimizers;
  table
      .add<optim::SGDConfig>("SGD", "stochastic gradient descent with momentum",
                             make_optimizer<optim::SGD, optim::SGDConfig>)
      .add<optim::SGDConfig>("FusedSGD", "ColossalAI's name of SGD", make_optimizer<optim::SGD, optim::SGDConfig>)
      .add<optim::AdamConfig>("Adam", "adaptive moments; decay is part of the gradient",
                              make_optimizer<optim::Adam, optim::AdamConfig>)
      .add<optim::AdamWConfig>("AdamW", "adaptive moments with decoupled decay",
                               make_optimizer<optim::AdamW, optim::AdamWConfig>);
  for (const char* name : {"HybridAdam", "FusedAdam", "CPUAdam"}) {
    table.add<optim::HybridAdamConfig>(name, "ColossalAI's name of AdamW and, without adamw_mode, of Adam",
                                       optim::make_hybrid_adam);
  }
  table
      .add<optim::AdamW8bitConfig>("AdamW8bit", "AdamW with moments in 8 bits",
                                   make_optimizer<optim::AdamW8bit, optim::AdamW8bitConfig>)
      .add<optim::LambConfig>("Lamb", "AdamW scaled by each tensor's trust ratio",
                              make_optimizer<optim::Lamb, optim::LambConfig>)
      .add<optim::FusedLAMBConfig>("FusedLAMB", "Lamb with limited gradients and corrected moments",
                                   make_optimizer<optim::FusedLAMB, optim::FusedLAMBConfig>)
      .add<optim::LarsConfig>("Lars", "SGD scaled by each tensor's trust ratio",
                              make_optimizer<optim::Lars, optim::LarsConfig>)
      .add<optim::AdafactorConfig>("Adafactor", "second moments factored into rows and columns",
                                   make_optimizer<optim::Adafactor, optim::AdafactorConfig>)
      .add<optim::CAMEConfig>("CAME", "Adafactor with a mean of updates, scaled by how sure it is",
                              make_optimizer<optim::CAME, optim::CAMEConfig>)
      .add<optim::AdagradConfig>("Adagrad", "steps shrink with the sum of squared gradients",
                                 make_optimizer<optim::Adagrad, optim::AdagradConfig>)
      .add<optim::RMSpropConfig>("RMSprop", "steps in units of the root mean square of gradients",
                                 make_optimizer<optim::RMSprop, optim::RMSpropConfig>)
      .add<optim::LionConfig>("Lion", "steps by the sign of a mean of gradients",
                              make_optimizer<optim::Lion, optim::LionConfig>);
}

void add_schedulers(Registry& registry) {
  for_each_scheduler([&]<class S>(std::type_identity<S>, const std::string& name, auto summary) {
    registry.param_schedulers.template add<typename S::Config>(
        name, std::string(summary),
        [](const typename S::Config& config, const SchedulerContext& context) -> std::unique_ptr<ParamScheduler> {
          return std::make_unique<S>(context, config);
        });
  });
  for_each_refused_scheduler([&](std::string_view name, std::string_view reason) {
    registry.param_schedulers.refuse(std::string(name), std::string(reason));
  });
}

void add_precisions(Registry& registry) {
  const auto plain = [&](Precision type, const char* doc) {
    registry.precisions.add<NoOptions>(std::string(precision_name(type)), doc,
                                       [type](const NoOptions&) { return MixedPrecision(type); });
  };
  plain(Precision::fp32, "weights and activations of 32 bits");
  plain(Precision::bf16, "bfloat16 weights and activations beside f32 masters");
  plain(Precision::fp8, "bf16 whose linear layers multiply 8-bit numbers, scaled by each tensor's largest");
  registry.precisions
      .add<Fp16Config>("fp16", "half-precision weights and activations beside f32 masters; losses are scaled",
                       [](const Fp16Config& config) { return mixed_precision_of(config); })
      .add<Fp16ApexConfig>("fp16_apex", "fp16 with batch norm in f32, by the names of Apex's amp, opt_level O2",
                           [](const Fp16ApexConfig& config) { return mixed_precision_of(config); });
}

void add_strategies(Registry& registry) {
  registry.strategies.add<ColossalAIStrategy::Config>(
      "ColossalAIStrategy", "mmengine's strategy of this name: one training step, sharded as the plugin says",
      [&registry](const ColossalAIStrategy::Config& config, const Device& device, std::uint64_t seed,
                  dist::Comm* comm) -> std::unique_ptr<BaseStrategy> {
        const AutoScaleConfig scale = config.auto_scale_lr.value_or(AutoScaleConfig{});
        std::optional<MixedPrecision> precision;
        if (config.mixed_precision.present()) {
          precision = registry.precisions.build(config.mixed_precision);
          // The name alone leaves the loss scale to the plugin.
          const bool is_name = config.mixed_precision.node.as_map().size() == 1;
          if (is_name && precision->type == Precision::fp16) precision->grad_scaler.reset();
        }
        const ModelWrapperFactory wrapper = [&registry, typed = config.model_wrapper](BoostedModel& model) {
          return registry.model_wrappers.build(typed, model);
        };
        std::unique_ptr<Plugin> plugin;
        if (config.plugin.present() && comm != nullptr) plugin = registry.plugins.build(config.plugin);
        return std::make_unique<ColossalAIStrategy>(device, seed, scale, std::move(plugin), comm, precision, wrapper);
      });
  registry.model_wrappers.add<ColossalAIModelWrapper::Config>(
      "ColossalAIModelWrapper", "losses, backward and update; predictions",
      [](const ColossalAIModelWrapper::Config&, BoostedModel& model) -> std::unique_ptr<ModelWrapper> {
        return std::make_unique<ColossalAIModelWrapper>(model);
      });
  registry.plugins.add<TorchDDPPlugin::Config>("TorchDDPPlugin", "every rank has the whole model; gradients are summed",
                                               make<TorchDDPPlugin, Plugin>);
  for (const char* name : {"SingleDeviceStrategy", "DDPStrategy", "DeepSpeedStrategy", "FSDPStrategy"}) {
    registry.strategies.refuse(name, "use ColossalAIStrategy");
  }
  for (const char* name : {"lowlevel-zero", "LowLevelZeroPlugin"}) {
    registry.plugins.add<LowLevelZeroPlugin::Config>(
        name, "every rank computes with the whole model; optimizer states (and gradients, stage 2) are sharded",
        make<LowLevelZeroPlugin, Plugin>);
  }
  for (const char* name : {"gemini", "GeminiPlugin"}) {
    registry.plugins.add<GeminiPlugin::Config>(
        name, "weights, gradients and optimizer states lie in chunks of which every rank has a piece",
        make<GeminiPlugin, Plugin>);
  }
  for (const char* name : {"TorchFSDPPlugin", "HybridParallelPlugin", "MoeHybridParallelPlugin"}) {
    registry.plugins.refuse(name, "Castor has no such plugin");
  }
}

}  // namespace

void add_builtins(Registry& registry) {
  registry.samplers.add<SamplerConfig>("DefaultSampler", "every sample once an epoch", make_sampler);
  registry.samplers.refuse("InfiniteSampler", "DefaultSampler goes on with the next epoch by itself");
  registry.metrics.add<Accuracy::Config>("Accuracy", "share of targets among the k largest logits, in percent",
                                         make<Accuracy, Metric>);
  registry.metrics.add<BitsPerByte::Config>("BitsPerByte", "mean negative log2-likelihood of a target byte",
                                            make<BitsPerByte, Metric>);
  registry.hooks.add<LoggerHook::Config>("LoggerHook", "lines of progress, scalars and the progress bar",
                                         make<LoggerHook, Hook>);
  registry.hooks.add<CheckpointHook::Config>("CheckpointHook", "saves weights at intervals and at the end",
                                             make<CheckpointHook, Hook>);
  registry.hooks.add<ProfilerHook::Config>("ProfilerHook", "what iterations waited for, and their timeline",
                                           make<ProfilerHook, Hook>);
  for (const char* name : {"EMAHook", "EarlyStoppingHook", "EmptyCacheHook", "SyncBuffersHook"}) {
    registry.hooks.refuse(name, "not in this version");
  }
  add_optimizers(registry);
  add_schedulers(registry);
  add_precisions(registry);
  add_strategies(registry);
}

}  // namespace castor::strategy
