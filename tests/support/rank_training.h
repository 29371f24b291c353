// Trains one model under any layout (ranks x micro-steps x plugin) with ranks as threads, and gathers every tensor,
// norm and loss of the run, so that tests compare runs by `==`.
//
// Ranks compute on the CPU, or each on a GPU of its own, which exchange as in a job of processes.
//
// Delicate: losses are those of single micro-batches, in the global order, seen where the model gives them; the
// strategy's own are means over ranks, which round differently for three ranks than for one.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "strategy/data/dataset.h"
#include "strategy/gemini/gemini_plugin.h"
#include "strategy/low_level_zero/low_level_zero_plugin.h"
#include "strategy/strategy.h"

namespace castor::test {

using MakePlugin = std::function<std::unique_ptr<strategy::Plugin>()>;

/// One way of training.
struct Layout {
  std::string name;
  int world_size = 1;
  std::int64_t micro_steps = 1;
  MakePlugin plugin = {};  ///< empty: none, in one process
};

/// AdamW with a learning rate of 0.01.
std::unique_ptr<autograd::Optimizer> make_adamw();

/// What is the same for all layouts that are compared. The defaults: the mixed model on counted samples.
struct Task {
  strategy::MixedPrecision precision = {};
  strategy::ModelFactory model = {};                      ///< empty: MixedModel
  std::shared_ptr<const strategy::Dataset> samples = {};  ///< empty: CountedSamples
  strategy::OptimizerFactory optimizer = make_adamw;
  std::int64_t batch_size = 4;  ///< of a micro-batch
  double max_norm = 0.5;
  std::int64_t updates = 6;          ///< of this run, those before a resume not counted
  std::int64_t remainder = 0;        ///< micro-batches of the last update, if it has fewer
  std::string resume_from = {};      ///< a checkpoint; empty: start anew
  std::int64_t resumed_updates = 6;  ///< that it holds
  std::string save_as = {};          ///< saved at the end; empty: not
  std::uint64_t seed = 7;
  bool on_gpus = false;  ///< rank r on GPU r; alone: on GPU 0
  bool compile = false;  ///< passes are recorded
};

/// Every tensor of a trained model and its optimizer, and what was logged.
struct Outcome {
  std::map<std::string, std::vector<float>> tensors;
  std::vector<double> grad_norms;  ///< of each update; -1: it was skipped
  std::vector<double> losses;      ///< of each micro-batch
  std::int64_t skipped = 0;
  friend bool operator==(const Outcome&, const Outcome&) = default;
};

/// What differs between two runs, with the first place and both values: for the message of a test that fails.
std::string differences(const Outcome& got, const Outcome& expected);

/// Trains; checks that ranks agree on what several of them have, and that nothing is NaN.
Outcome train(const Layout& layout, const Task& task);
/// The rest of a run after its first `updates` of `micro_batches` each.
Outcome after(Outcome whole, std::int64_t updates, std::int64_t micro_batches);

MakePlugin ddp(double bucket_cap_mb = 25);
MakePlugin zero(std::int64_t stage, strategy::Precision precision, double bucket_in_m = 12,
                const std::function<void(strategy::LowLevelZeroPlugin::Config&)>& change = {});
/// Gemini with chunks of a few hundred elements.
MakePlugin gemini(strategy::Precision precision,
                  const std::function<void(strategy::GeminiPlugin::Config&)>& change = {});

/// Gemini whose optimizer states and first half of the weights live in files without a name, among the temporary ones.
MakePlugin gemini_on_disk(strategy::Precision precision);

/// Every plugin with the placements that make a difference, on chunks and buckets of a few hundred elements.
std::vector<std::pair<std::string, MakePlugin>> all_placements(strategy::Precision precision);

}  // namespace castor::test
