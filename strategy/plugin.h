// Plugin: how a strategy spreads a model over ranks. The names are ColossalAI's.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "autograd/optim/grad_scaler.h"
#include "autograd/variable.h"
#include "dist/comm.h"
#include "strategy/config/field.h"
#include "strategy/precision.h"
#include "strategy/sharding.h"

namespace castor::strategy {

/// What a plugin's config says beside sharding.
struct PluginSettings {
  std::optional<Precision> precision;      ///< none: the plugin has no such option
  autograd::GradScalerConfig grad_scaler;  ///< for fp16
  bool has_max_norm = false;               ///< there is an option for the next, so it belongs there
  std::optional<double> max_norm;          ///< clip the gradients' L2 norm
  bool builds_on_meta = false;             ///< parameters have no memory before they are spread
};

template <class V>
void describe_grad_scaler(V& v, autograd::GradScalerConfig& c) {
  v.field("initial_scale", c.initial_scale, "fp16: what losses are multiplied by at first", more_than(0));
  v.field("min_scale", c.min_scale, "fp16: the smallest scale", more_than(0));
  v.field("growth_factor", c.growth_factor, "fp16: the scale's factor after growth_interval steps without overflow",
          at_least(1));
  v.field("backoff_factor", c.backoff_factor, "fp16: the scale's factor at an overflow", more_than(0), at_most(1));
  v.field("growth_interval", c.growth_interval, "fp16: steps without overflow before the scale grows", at_least(1));
  v.field("hysteresis", c.hysteresis, "fp16: overflows since the last growth before the scale is lowered", at_least(1));
  v.field("max_scale", c.max_scale, "fp16: the largest scale", more_than(0));
  v.field("max_skips", c.max_skips, "fp16: updates skipped in a row at which training stops", at_least(1));
}

/// What a plugin spreads.
struct ShardRequest {
  dist::Comm& comm;
  std::vector<autograd::Variable> parameters;  ///< of the model, in its order; frozen ones too
  Device device = kCpu;                        ///< where the model computes
  std::int64_t accumulative_counts = 0;        ///< micro-steps in a window, at most; 0: not known
  /// Fills a parameter that is on meta: builds_on_meta.
  std::function<void(const autograd::Variable& parameter, const Tensor& into)> fill = {};
  const StepForecast* forecast = nullptr;  ///< of the run's plan; null: there was none
  MemoryLimits limits = {};

  /// Those that get gradients.
  std::vector<autograd::Variable> trained() const;
};

/// Throws ConfigError, naming the plugin, unless `extra_dp_size` groups of equal size can be made of the ranks.
void check_replicas(int world_size, std::int64_t extra_dp_size, const char* plugin);

/// The host's memory as a tier beside `device`; of a meta device one on meta.
Device host_tier(Device device);

class Plugin {
 public:
  virtual ~Plugin() = default;
  /// The name in a config.
  virtual const char* type_name() const = 0;
  virtual PluginSettings settings() const { return {}; }
  /// Spreads the parameters; on every rank with the same ones in the same order. Group and parameters must outlive the
  /// result. Throws DTypeError for parameters that are not f32, bf16 or f16; ConfigError.
  virtual std::unique_ptr<Sharding> shard(const ShardRequest& request) = 0;
};

}  // namespace castor::strategy
