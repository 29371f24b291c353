// A program of a user's own: Castor's command line with types that Castor does not know.
//
//   build/samples/extend/extend train samples/extend/extend.yaml       trains for some seconds
//   build/samples/extend/extend check --types                           lists the library's types and these
//   build/samples/extend/extend check --help-type Signum                their options are explained like the library's
//
// To start a project from this: copy the folder, link against the library's `strategy` (meson.build beside this file),
// and register what you need. Nothing in the library is edited, and no file of it lists what you add.
//   swish.{h,cpp}       an op with its kernel and gradient
//   spiral_net.{h,cpp}  a module that holds the op's parameter, and a model
//   signum.{h,cpp}      an optimizer
//   spirals.{h,cpp}     a data set
//   l1_penalty.{h,cpp}  a step
//   extend.yaml         a config that names them
//   loop.cpp            a program that trains without a config, by a loop of its own
#include <memory>

#include "samples/extend/l1_penalty.h"
#include "samples/extend/signum.h"
#include "samples/extend/spiral_net.h"
#include "samples/extend/spirals.h"
#include "strategy/builtins.h"
#include "strategy/cli/castor_main.h"
#include "strategy/registry.h"

int main(int argc, char** argv) {
  using namespace castor;
  strategy::Registry registry;
  strategy::add_builtins(registry);
  registry.models.add<extend::SpiralNetConfig>(
      "SpiralNet", "three linear layers with trained Swish in between",
      [](const extend::SpiralNetConfig& config,
         const autograd::TensorOptions& options) -> std::shared_ptr<autograd::TrainableModel> {
        return std::make_shared<extend::SpiralNet>(config, options);
      });
  registry.datasets.add<extend::SpiralsConfig>(
      "Spirals", "points on arms of a spiral",
      [](const extend::SpiralsConfig& config) -> std::shared_ptr<const strategy::Dataset> {
        return std::make_shared<const extend::Spirals>(config);
      });
  registry.optimizers.add<extend::SignumConfig>(
      "Signum", "steps by the sign of the running mean of gradients",
      [](const extend::SignumConfig& config) -> std::unique_ptr<autograd::Optimizer> {
        return std::make_unique<extend::Signum>(config);
      });
  registry.model_wrappers.add<extend::L1PenaltyConfig>(
      "L1Penalty", "adds the weights' magnitudes to the loss",
      [](const extend::L1PenaltyConfig& config, strategy::BoostedModel& model)
          -> std::unique_ptr<strategy::ModelWrapper> { return std::make_unique<extend::L1Penalty>(config, model); });
  return strategy::castor_main(argc, argv, registry);
}
