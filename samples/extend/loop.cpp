// A training loop of a program's own on Booster: no config and no runner, the same shards, precisions and bits.
//
//   build/samples/extend/loop                                              one process
//   build/castor run --nproc-per-node 2 -- build/samples/extend/loop       two, each with half of the optimizer's
//   states
//
// Delicate: what boost gives goes before the booster, and the booster before the job; so they are made in that order.
#include <iostream>
#include <memory>

#include "autograd/optim/adam.h"
#include "dist/job.h"
#include "samples/extend/spiral_net.h"
#include "samples/extend/spirals.h"
#include "strategy/booster.h"
#include "strategy/low_level_zero/low_level_zero_plugin.h"
#include "strategy/metric.h"

int main() {
  using namespace castor;
  using namespace castor::strategy;
  try {
    dist::Job job(dist::rank_info_from(dist::process_environment()), {});
    LowLevelZeroPlugin::Config zero;
    zero.precision = "fp32";
    Booster booster({.plugin = std::make_unique<LowLevelZeroPlugin>(zero), .comm = &job.world()});

    BoostOptions options;
    options.optimizer = [] {
      autograd::AdamWConfig config;
      config.lr = 0.01;
      return std::make_unique<autograd::AdamW>(config);
    };
    const Boosted run = booster.boost(
        [](const autograd::TensorOptions& tensor) {
          return std::make_shared<extend::SpiralNet>(extend::SpiralNetConfig{}, tensor);
        },
        options);

    extend::SpiralsConfig spirals{.samples = 6400, .seed = 1};
    const auto loader =
        booster.prepare_dataloader(std::make_shared<const extend::Spirals>(spirals), {.batch_size = 32});
    constexpr std::int64_t kSteps = 600;
    for (std::int64_t step = 0; step < kSteps; ++step) {
      const auto losses = run.model->loss(loader->next());
      booster.backward(losses.at("loss"), *run.optimizer);
      run.optimizer->step();
    }

    spirals.seed = 2;
    spirals.samples = 2000;
    const extend::Spirals others(spirals);
    Accuracy accuracy(Accuracy::Config{});
    std::vector<std::int64_t> all(static_cast<std::size_t>(others.size()));
    for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<std::int64_t>(i);
    const autograd::Batch batch = others.batch(all);
    accuracy.process(batch, run.model->predict(batch));
    const double percent = accuracy.compute().begin()->second;
    if (booster.rank() == 0) std::cout << "right: " << percent << " %\n";
    constexpr double kEnough = 90;
    return percent >= kEnough ? 0 : 1;
  } catch (const Error& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
