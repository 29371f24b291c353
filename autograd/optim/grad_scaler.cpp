// The scale's moves.
#include "autograd/optim/grad_scaler.h"

#include <algorithm>

namespace castor::autograd {

GradScaler::GradScaler(const GradScalerConfig& config) : config_(config) { state_.scale = config.initial_scale; }

void GradScaler::update(bool overflow) {
  if (overflow) {
    ++state_.skipped;
    ++state_.skipped_in_row;
    ++state_.hysteresis_step;
    state_.growth_step = 0;
    if (state_.hysteresis_step >= config_.hysteresis)
      state_.scale = std::max(state_.scale * config_.backoff_factor, config_.min_scale);
    return;
  }
  state_.skipped_in_row = 0;
  if (++state_.growth_step < config_.growth_interval) return;
  state_.growth_step = 0;
  state_.hysteresis_step = 0;
  state_.scale = std::min(state_.scale * config_.growth_factor, config_.max_scale);
}

}  // namespace castor::autograd
