// Builds the case as a runner would and times its steps. Delicate: memory is counted from the first tensor of the model
// on, so the peak is that of the whole training and not of the timed part.
#include "tests/bench/training.h"

#include <iostream>

#include "core/base/error.h"
#include "core/device/backend.h"
#include "core/device/caching_allocator.h"
#include "strategy/colossalai_strategy.h"
#include "strategy/data/data_loader.h"
#include "tests/bench/measure.h"

namespace castor::bench {
namespace {

void run(int argc, const char* const* argv, const TrainingCase& training) {
  Timing timing;
  timing.name = training.name;
  timing.unit = training.unit;
  timing.items_per_step = static_cast<double>(training.batch_size * training.items_each);
  timing.warmup_steps = training.warmup_steps;
  timing.steps_per_repeat = training.steps_per_repeat;
  for (const std::string& argument : read_arguments(argc, argv, timing)) {
    throw ConfigError(cat(argument, ": unknown; this benchmark takes --repeats R and --steps S"), argument);
  }

  strategy::SamplerOptions order;
  order.batch_size = training.batch_size;
  order.drop_last = true;
  strategy::DataLoader loader(training.dataset(), order);
  strategy::ColossalAIStrategy strategy(kCpu, 0);
  strategy::PrepareOptions options;
  options.optimizer = training.optimizer;
  strategy.prepare(training.model, options);

  const Measurement measurement = measure(timing, [&] { return strategy.train_step(loader.next()).losses.at("loss"); });
  print_measurement(measurement, strategy.model().parameter_count(),
                    static_cast<std::int64_t>(allocator(kCpu).stats().peak_total));
}

}  // namespace

int run_training(int argc, const char* const* argv, const TrainingCase& training) {
  try {
    run(argc, argv, training);
    return 0;
  } catch (const ConfigError& error) {
    std::cerr << error.what() << "\n";
    return 2;
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}

}  // namespace castor::bench
