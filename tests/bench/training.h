// What the training benchmarks share: one step is what a run does for every micro-batch (gather the batch, forward,
// backward, optimizer step, zeroed gradients), through the strategy and the data loader that `castor train` uses.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "strategy/data/dataset.h"
#include "strategy/strategy.h"

namespace castor::bench {

/// One benchmark that has a PyTorch peer of the same name.
struct TrainingCase {
  std::string name;             ///< as the peer's
  std::string unit;             ///< "samples/s", "tokens/s"
  std::int64_t batch_size = 1;  ///< samples of a step
  std::int64_t items_each = 1;  ///< the unit's items in one sample
  int warmup_steps = 1;
  int steps_per_repeat = 1;
  std::function<std::shared_ptr<const strategy::Dataset>()> dataset;  ///< read in shuffled order, whole batches only
  strategy::ModelFactory model;
  strategy::OptimizerFactory optimizer;
};

/// The body of main: reads --repeats and --steps, measures, prints the JSON line. Returns the exit code: 0 measured,
/// 1 an error, 2 a wrong argument.
int run_training(int argc, const char* const* argv, const TrainingCase& training);

}  // namespace castor::bench
