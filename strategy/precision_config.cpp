// What Apex's names mean for the grad scaler.
#include "strategy/precision_config.h"

#include <algorithm>

namespace castor::strategy {

MixedPrecision mixed_precision_of(const Fp16Config& config) {
  MixedPrecision precision(Precision::fp16);
  precision.grad_scaler = config.grad_scaler;
  return precision;
}

MixedPrecision mixed_precision_of(const Fp16ApexConfig& config) {
  MixedPrecision precision(Precision::fp16_apex);
  precision.keep_batchnorm_fp32 = config.keep_batchnorm_fp32;
  autograd::GradScalerConfig scaler;
  scaler.max_skips = config.max_skips;
  if (const double* fixed = std::get_if<double>(&config.loss_scale)) {
    scaler.initial_scale = scaler.min_scale = scaler.max_scale = *fixed;
    scaler.growth_factor = scaler.backoff_factor = 1;
  } else {
    scaler.initial_scale = std::clamp(scaler.initial_scale, config.min_loss_scale, config.max_loss_scale);
    scaler.growth_interval = 2000;
    scaler.hysteresis = 1;
    scaler.min_scale = config.min_loss_scale;
    scaler.max_scale = config.max_loss_scale;
  }
  precision.grad_scaler = scaler;
  return precision;
}

}  // namespace castor::strategy
