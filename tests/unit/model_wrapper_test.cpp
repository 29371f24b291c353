// What a step does with a model: the rule that makes one loss of many, and wrappers of a user's own through a config.
#include "strategy/model_wrapper.h"

#include <doctest/doctest.h>

#include "core/ops/cast.h"
#include "dist/comm_thread.h"
#include "strategy/builtins.h"
#include "strategy/colossalai_strategy.h"
#include "strategy/config/text_source.h"
#include "tests/support/mixed_model.h"
#include "tests/support/penalty_wrapper.h"
#include "tests/support/rank_training.h"

namespace castor::strategy {
namespace {

using autograd::Variable;

Variable values(const std::vector<float>& numbers) {
  return Variable(Tensor::from_values(numbers, {static_cast<std::int64_t>(numbers.size())}), true);
}

Registry& types() {
  static Registry registry;
  static const bool is_filled = (add_builtins(registry), test::add_penalty_wrapper(registry), true);
  (void)is_filled;
  return registry;
}

std::unique_ptr<BaseStrategy> strategy_of(const std::string& block, dist::Comm* comm = nullptr) {
  TypedConfig typed("ColossalAIStrategy");
  typed.node = read_yaml_text(block, "strategy");
  return types().strategies.build(typed, kCpu, 7, comm);
}

PrepareOptions training() {
  PrepareOptions options;
  options.optimizer = test::make_adamw;
  return options;
}

const ModelFactory kMixed = [](const autograd::TensorOptions& options) {
  return std::make_shared<test::MixedModel>(options);
};

autograd::Batch some_batch() { return test::CountedSamples().batch(std::vector<std::int64_t>{0, 1, 2, 3}); }

TEST_CASE("a loss is the mean of its tensor, those named so are added, and their sum comes first") {
  const autograd::ParsedLosses parsed = autograd::parse_losses(
      {{"acc", values({7})}, {"aux_loss", values({1, 2, 6})}, {"loss", values({2})}, {"z", values({1, 3})}});
  CHECK(parsed.total.data().item() == 5);
  CHECK(parsed.total.ndim() == 0);
  std::vector<std::pair<std::string, double>> logged;
  for (const auto& [name, value] : parsed.values) logged.emplace_back(name, value.data().item());
  CHECK(logged == std::vector<std::pair<std::string, double>>{{"loss", 5}, {"acc", 7}, {"aux_loss", 3}, {"z", 2}});
  CHECK_THROWS_WITH_AS(autograd::parse_losses({{"acc", values({7})}}), doctest::Contains("[acc]"), InternalError);
}

TEST_CASE("a list of losses is the sum of their means") {
  CHECK(autograd::sum_of_means({values({1, 3}), values({5}), values({0, 0, 3})}).data().item() == 8);
  CHECK_THROWS_AS(autograd::sum_of_means({}), InternalError);
}

TEST_CASE("a wrapper of a user's own is named in the config, changes the step, and is the same on ranks") {
  const autograd::Batch batch = some_batch();
  const auto plain = strategy_of("{plugin: null}");
  plain->prepare(kMixed, training());
  const double without = plain->train_step(batch).losses.at("loss");

  const auto wrapped = strategy_of("{plugin: null, model_wrapper: {type: PenaltyWrapper, weight: 0.5, shift: 3}}");
  wrapped->prepare(kMixed, training());
  double squares = 0;
  for (const float weight : wrapped->model().named_parameters().front().second.data().to_vector<float>())
    squares += static_cast<double>(weight) * static_cast<double>(weight);
  const StepResult step = wrapped->train_step(batch);
  CHECK(step.update.did_update);
  CHECK(step.losses.at("penalty_loss") == doctest::Approx(0.5 * squares).epsilon(1e-5));
  CHECK(step.losses.at("loss") == doctest::Approx(without + 0.5 * squares).epsilon(1e-5));

  const std::vector<float> validated = wrapped->val_step(batch).to_vector<float>();
  const std::vector<float> tested = wrapped->test_step(batch).to_vector<float>();
  CHECK(tested[0] == doctest::Approx(validated[0] + 3));
  CHECK(plain->test_step(batch).to_vector<float>() == plain->val_step(batch).to_vector<float>());

  dist::run_ranks(1, [&](dist::Comm& comm) {
    const auto sharded = strategy_of(
        "{plugin: {type: gemini, precision: fp32, min_chunk_size_m: 0.0003, search_range_m: 0.0001, hidden_dim: 16}, "
        "model_wrapper: {type: PenaltyWrapper, "
        "weight: 0.5}}",
        &comm);
    sharded->prepare(kMixed, training());
    CHECK(sharded->train_step(batch).losses == step.losses);
  });
}

TEST_CASE("unknown wrappers and options of wrappers are refused by name") {
  CHECK_THROWS_WITH_AS(strategy_of("{plugin: null, model_wrapper: {type: PenaltyWraper}}"),
                       doctest::Contains("did you mean \"PenaltyWrapper\"?"), ConfigError);
  CHECK_THROWS_WITH_AS(strategy_of("{plugin: null, model_wrapper: {type: PenaltyWrapper, wieght: 1}}"),
                       doctest::Contains("did you mean \"weight\"?"), ConfigError);
  CHECK_THROWS_WITH_AS(strategy_of("{plugin: null, model_wrapper: {type: ColossalAIModelWrapper, weight: 1}}"),
                       doctest::Contains("weight"), ConfigError);
}

}  // namespace
}  // namespace castor::strategy
