// GradScaler: the dynamic loss scale of fp16 training. Losses are multiplied by it before backward so that small
// gradients do not underflow; a step whose gradients overflowed is skipped and the scale is lowered.
//
// Source: Micikevicius et al. 2018, arXiv:1710.03740, section 3.2; the parameters and their meaning are ColossalAI's
// DynamicGradScaler. Delicate: the counters belong to the state, or a resumed run would grow its scale at another step.
#pragma once

#include <cstdint>

#include "core/base/error.h"

namespace castor::autograd {

/// Training cannot go on because values are not finite.
class NumericsError : public Error {
 public:
  using Error::Error;
};

/// How the scale moves. Names are ColossalAI's.
struct GradScalerConfig {
  double initial_scale = 65536;
  double growth_factor = 2;             ///< the scale's factor after growth_interval steps without overflow
  double backoff_factor = 0.5;          ///< its factor at an overflow
  std::int64_t growth_interval = 1000;  ///< steps
  std::int64_t hysteresis = 2;          ///< overflows since the last growth from which on the scale is lowered
  double min_scale = 1;
  double max_scale = 4294967296;  ///< 2^32
  std::int64_t max_skips = 50;    ///< updates skipped in a row at which the scale is no longer to blame
};

/// What a checkpoint keeps.
struct GradScalerState {
  double scale = 0;
  std::int64_t growth_step = 0;      ///< steps without overflow since the last growth or overflow
  std::int64_t hysteresis_step = 0;  ///< overflows since the last growth
  std::int64_t skipped_in_row = 0;   ///< steps skipped up to now, without one between them that was not
  std::int64_t skipped = 0;          ///< in all
};

class GradScaler {
 public:
  explicit GradScaler(const GradScalerConfig& config);

  /// What the loss is multiplied by.
  double scale() const { return state_.scale; }
  /// After a window's gradients are known.
  ///   overflow  any of them is infinite or NaN: the step is skipped
  void update(bool overflow);

  const GradScalerConfig& config() const { return config_; }
  const GradScalerState& state() const { return state_; }
  void set_state(const GradScalerState& state) { state_ = state; }

 private:
  GradScalerConfig config_;
  GradScalerState state_;
};

}  // namespace castor::autograd
