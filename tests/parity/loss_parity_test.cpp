// Replays the training runs that record_losses.py made with PyTorch: small decoders and small convolutional networks,
// each over twenty steps from the same weights on the same data.
//
// The models are the samples' own, the steps the strategy's own: what is compared is the whole path of a step, with
// every module, every gradient and the optimizer. The evaluation at the end reads batch norm's running statistics.
// Delicate: the recordings' f32 and f64 runs agree to 1e-6, so what is left of the tolerance is room for other orders
// of summation, not for other arithmetic.
#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "samples/sample_types.h"
#include "strategy/builtins.h"
#include "strategy/colossalai_strategy.h"
#include "strategy/registry.h"
#include "tests/parity/counted_numbers.h"
#include "tests/parity/recorded_data.h"

namespace castor {
namespace {

constexpr double kTolerance = 1e-4;  // relative, at every step

/// Micro-batch `number`, from 0.
autograd::Batch batch_of(const Json& data, std::int64_t number) {
  const auto samples = data.at("batch").get<std::int64_t>();
  const auto classes = data.at("classes").get<std::uint64_t>();
  const std::string suffix = "/" + std::to_string(number);
  if (data.contains("side")) {
    const auto side = data.at("side").get<std::int64_t>();
    const Tensor images =
        Tensor::from_values(test::counted_floats("images" + suffix, samples * side * side), {samples, 1, side, side});
    return {images, Tensor::from_values(test::counted_integers("labels" + suffix, samples, classes), {samples})};
  }
  const auto length = data.at("length").get<std::int64_t>();
  const auto ignore_every = data.at("ignore_every").get<std::int64_t>();
  const std::vector<std::int64_t> tokens = test::counted_integers("tokens" + suffix, samples * (length + 1), classes);
  std::vector<std::int64_t> inputs, targets;
  for (std::int64_t i = 0; i < samples * length; ++i) {
    const auto at = static_cast<std::size_t>(i + i / length);
    inputs.push_back(tokens[at]);
    targets.push_back(ignore_every > 0 && i % ignore_every == 0 ? -100 : tokens[at + 1]);
  }
  return {Tensor::from_values(inputs, {samples, length}), Tensor::from_values(targets, {samples, length})};
}

/// Gives the model the recorded run's weights; their names and shapes must be the recorded ones, no more and no fewer.
void set_weights(autograd::TrainableModel& model, const Json& parameters) {
  std::map<std::string, const Json*> wanted;
  for (const Json& each : parameters) wanted[each.at("name").get<std::string>()] = &each;
  for (const auto& [name, parameter] : model.named_parameters()) {
    INFO(name);
    REQUIRE(wanted.contains(name));
    const Json& each = *wanted.at(name);
    const auto shape = each.at("shape").get<std::vector<std::int64_t>>();
    REQUIRE(std::vector<std::int64_t>(parameter.shape().begin(), parameter.shape().end()) == shape);
    const std::vector<float> values = test::counted_floats(
        name, parameter.data().numel(), each.at("offset").get<double>(), each.at("scale").get<double>());
    parameter.data().copy_from_host(values.data(), values.size() * sizeof(float));
    wanted.erase(name);
  }
  for (const auto& [name, each] : wanted) FAIL_CHECK("the model lacks the parameter " << name);
}

/// The library's types and the samples'.
struct Types : strategy::Registry {
  Types() {
    strategy::add_builtins(*this);
    samples::add_samples(*this);
  }
};

struct Replay {
  std::vector<double> losses;
  double evaluation = 0;
};

/// Trains as recorded. `changes` are laid over the model's options.
Replay play(const strategy::Registry& registry, const Json& recorded, const Json& run,
            const Json& changes = Json::object()) {
  Json options = run.at("model");
  options.update(changes);
  const strategy::ModelFactory make_model = [&](const autograd::TensorOptions& tensors) {
    return registry.models.build(test::typed_config(options), tensors);
  };
  strategy::PrepareOptions prepare;
  prepare.optimizer = [&] { return registry.optimizers.build(test::typed_config(run.at("optimizer"))); };
  strategy::ColossalAIStrategy trainer(kCpu, 0);
  trainer.prepare(make_model, prepare);
  set_weights(trainer.model(), run.at("parameters"));
  Replay replay;
  const auto batches = recorded.at("batches").get<std::int64_t>();
  for (std::int64_t step = 0; step < recorded.at("steps"); ++step) {
    replay.losses.push_back(trainer.train_step(batch_of(run.at("data"), step % batches)).losses.at("loss"));
  }
  trainer.model().eval();
  const autograd::NoGradScope no_grad;
  replay.evaluation = trainer.model().loss(batch_of(run.at("data"), 0)).at("loss").data().item();
  return replay;
}

double apart(double ours, double theirs) { return std::abs(ours - theirs) / std::abs(theirs); }

}  // namespace

TEST_CASE("losses of small decoders and convolutional networks follow PyTorch's to 1e-4 at each of twenty steps") {
  const Types registry;
  const Json recorded = test::recorded_file("losses.json");
  REQUIRE(recorded.at("steps") == 20);
  for (const Json& run : recorded.at("runs")) {
    INFO(run.at("name").get<std::string>());
    const Replay ours = play(registry, recorded, run);
    double worst = apart(ours.evaluation, run.at("evaluation").get<double>());
    CHECK(worst <= kTolerance);
    for (std::size_t step = 0; step < ours.losses.size(); ++step) {
      CAPTURE(step);
      const double off = apart(ours.losses[step], run.at("losses").at(step).get<double>());
      CHECK(off <= kTolerance);
      worst = std::max(worst, off);
    }
    MESSAGE(run.at("name").get<std::string>() << ": at most " << worst << " apart");
  }
}

TEST_CASE("replays with recompute give the same bits as without") {
  const Types registry;
  const Json recorded = test::recorded_file("losses.json");
  for (const Json& run : recorded.at("runs")) {
    if (run.at("model").at("type") != "Gpt") continue;
    INFO(run.at("name").get<std::string>());
    CHECK(play(registry, recorded, run, {{"recompute", true}}).losses == play(registry, recorded, run).losses);
  }
}

}  // namespace castor
