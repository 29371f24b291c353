// The scheduler that lowers a value when a validation metric has stopped improving.
//
// Delicate: it is stepped twice. step() after every epoch only moves the window's count; step(metrics) after a
// validation decides. Unlike the shapes it takes no step at construction.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "strategy/scheduler/param_scheduler.h"

namespace castor::strategy {

/// Multiplies the parameter by `factor` after more than `patience` validations in a row without a better metric.
class PlateauScheduler : public ParamScheduler {
 public:
  using Config = ReduceOnPlateauConfig;
  static constexpr std::string_view kName = "ReduceOnPlateau";
  static constexpr std::string_view kSummary = "times a factor when a validation metric stops improving";

  /// Checks the options and records the starting values. Throws ConfigError.
  PlateauScheduler(const SchedulerContext& context, const std::string& type, const std::string& param_name,
                   const Config& config);

  /// Counts one epoch; moves no value.
  void step() override;
  /// Looks at the metrics of one validation. Throws ConfigError (path "monitor"), changing nothing, if the monitored
  /// metric is not among them.
  void step(const Metrics& metrics) override;
  bool needs_metrics() const override { return true; }

  /// The best metric so far; the worst possible one before the first validation.
  double best() const { return counts_.best; }
  /// Validations in a row without improvement.
  std::int64_t num_bad_epochs() const { return counts_.num_bad_epochs; }

 protected:
  double next_value(std::size_t group, std::int64_t shape_step) const override;
  void write_own(StateWriter& out) const override;
  std::function<void()> read_own(StateReader& in, const Window& window) override;

 private:
  struct Counts {
    double best = 0;
    std::int64_t num_bad_epochs = 0;
    std::int64_t cooldown_counter = 0;
  };

  bool is_better(double metric) const;
  void reduce();

  Config config_;
  Counts counts_;
};

}  // namespace castor::strategy
