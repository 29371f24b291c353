// What each precision changes in a model and a run: fp8 trains like bf16, fp16_apex keeps batch norm in f32, and a run
// whose gradients never become finite ends with the place where they arose.
#include "strategy/precision.h"

#include <cmath>

#include <doctest/doctest.h>

#include "autograd/ops/elementwise.h"
#include "core/ops/cast.h"
#include "dist/comm_thread.h"
#include "strategy/colossalai_strategy.h"
#include "strategy/data/data_loader.h"
#include "strategy/ddp/torch_ddp_plugin.h"
#include "strategy/precision_config.h"
#include "tests/support/mixed_model.h"
#include "tests/support/rank_training.h"
#include "tests/support/tiny_run.h"

namespace castor::strategy {
namespace {

using test::MixedModel;

/// The mean loss of the last `count` micro-batches.
double last_losses(const test::Outcome& outcome, std::size_t count) {
  double sum = 0;
  for (std::size_t i = outcome.losses.size() - count; i < outcome.losses.size(); ++i) sum += outcome.losses[i];
  return sum / static_cast<double>(count);
}

TEST_CASE("fp8 trains to the losses of bf16 within a few percent, with other bits, and remembers what it learned") {
  test::Task task;
  task.updates = 80;
  task.model = [](const autograd::TensorOptions& tensor) {
    return std::make_shared<test::TinyClassifier>(test::TinyClassifierConfig{}, tensor);
  };
  task.samples = std::make_shared<test::TinySamples>(test::TinySamplesConfig{.count = 96});
  task.precision = Precision::bf16;
  const test::Outcome bf16 = train({"alone", 1, 4}, task);
  task.precision = Precision::fp8;
  const test::Outcome fp8 = train({"alone", 1, 4}, task);
  const double start = (fp8.losses[0] + fp8.losses[1] + fp8.losses[2] + fp8.losses[3]) / 4;
  CAPTURE(start);
  CAPTURE(last_losses(bf16, 40));
  CAPTURE(last_losses(fp8, 40));
  CHECK(fp8.tensors != bf16.tensors);
  CHECK(last_losses(fp8, 40) < 0.8 * start);
  CHECK(std::abs(last_losses(fp8, 40) / last_losses(bf16, 40) - 1) < 0.05);
}

TEST_CASE("in fp8 weights are bf16 beside f32 masters, and use_fp8 with precision bf16 means the same") {
  test::Task task;
  task.precision = Precision::fp8;
  const test::Outcome expected = train({"zero", 2, 2, test::zero(1, Precision::fp8)}, task);
  CHECK(expected.tensors.contains("model.first.weight/master"));
  test::Task from_plugin;
  from_plugin.precision = Precision::fp8;
  CHECK(train({"zero", 2, 2, test::zero(1, Precision::bf16, 12, [](auto& c) { c.use_fp8 = true; })}, from_plugin) ==
        expected);
  CHECK_THROWS_WITH_AS(plugin_precision("fp16", true), doctest::Contains("use_fp8"), ConfigError);
}

TEST_CASE("fp16_apex keeps batch norm's weights in f32 and everything else in f16, unless told not to") {
  const auto dtype_of = [](const MixedPrecision& precision, const char* wanted) {
    const MixedModel model(tensor_options(precision, kCpu));
    for (const auto& [name, parameter] : model.named_parameters()) {
      if (name == wanted) return parameter.dtype();
    }
    throw InternalError("no such parameter");
  };
  MixedPrecision apex(Precision::fp16_apex);
  CHECK(dtype_of(apex, "norm.weight") == DType::f32);
  CHECK(dtype_of(apex, "first.weight") == DType::f16);
  apex.keep_batchnorm_fp32 = false;
  CHECK(dtype_of(apex, "norm.weight") == DType::f16);
  CHECK(dtype_of(Precision::fp16, "norm.weight") == DType::f16);
}

TEST_CASE("fp16_apex has the same bits under every plugin, with a dynamic and with a fixed loss scale") {
  Fp16ApexConfig dynamic, fixed;
  fixed.loss_scale = 128.0;
  for (const Fp16ApexConfig& config : {dynamic, fixed}) {
    test::Task task;
    task.precision = mixed_precision_of(config);
    const test::Outcome expected = train({"alone", 1, 4}, task);
    CHECK(expected.tensors.contains("model.first.weight/master"));
    CHECK_FALSE(expected.tensors.contains("model.norm.weight/master"));  // it is f32 itself
    CHECK(train({"ddp", 4, 1, test::ddp()}, task) == expected);
    CHECK(train({"zero", 2, 2, test::zero(2, Precision::fp16, 0.0003)}, task) == expected);
    CHECK(train({"gemini", 2, 2, test::gemini(Precision::fp16)}, task) == expected);
  }
}

TEST_CASE("a fixed loss scale never moves; a dynamic one has Apex's steps") {
  Fp16ApexConfig config;
  config.loss_scale = 128.0;
  autograd::GradScaler fixed(*mixed_precision_of(config).grad_scaler);
  for (int i = 0; i < 3000; ++i) fixed.update(i % 7 == 0);
  CHECK(fixed.scale() == 128);
  autograd::GradScaler dynamic(*mixed_precision_of(Fp16ApexConfig{}).grad_scaler);
  CHECK(dynamic.scale() == 65536);
  dynamic.update(true);
  CHECK(dynamic.scale() == 32768);
  for (int i = 0; i < 2000; ++i) dynamic.update(false);
  CHECK(dynamic.scale() == 65536);
  for (int i = 0; i < 20000; ++i) dynamic.update(false);
  CHECK(dynamic.scale() == 16777216);
}

TEST_CASE(
    "mixed_precision takes a name or a dict, without a plugin, too, and a dict's loss scale wins over the plugin's") {
  Registry registry;
  test::add_tiny_types(registry);
  const auto scaler_of = [&](const std::string& block, dist::Comm* comm) {
    TypedConfig typed("ColossalAIStrategy");
    typed.node = read_yaml_text(block, "block");
    const auto strategy = registry.strategies.build(typed, kCpu, 7, comm);
    PrepareOptions options;
    options.optimizer = test::make_adamw;
    strategy->prepare([](const autograd::TensorOptions& tensor) { return std::make_shared<MixedModel>(tensor); },
                      options);
    const autograd::GradScaler* scaler = strategy->optim_wrapper()->grad_scaler();
    return scaler == nullptr ? 0 : scaler->scale();
  };
  const std::string alone = "type: ColossalAIStrategy\nplugin: null\nmixed_precision: ";
  CHECK(scaler_of(alone + "fp16", nullptr) == 65536);
  CHECK(scaler_of(alone + "{type: fp16, initial_scale: 1024}", nullptr) == 1024);
  CHECK(scaler_of(alone + "{type: fp16_apex, loss_scale: 128}", nullptr) == 128);
  CHECK(scaler_of(alone + "fp8", nullptr) == 0);
  CHECK(scaler_of(alone + "null", nullptr) == 0);
  dist::run_ranks(1, [&](dist::Comm& comm) {
    const std::string zero = "type: ColossalAIStrategy\nplugin: {type: lowlevel-zero, initial_scale: 64}\n";
    CHECK(scaler_of(zero, &comm) == 64);
    CHECK(scaler_of(zero + "mixed_precision: fp16", &comm) == 64);
    CHECK(scaler_of(zero + "mixed_precision: {type: fp16, initial_scale: 32}", &comm) == 32);
    CHECK(scaler_of(zero + "mixed_precision: fp16_apex", &comm) == 65536);
  });
  CHECK_THROWS_WITH_AS(scaler_of(alone + "fp61", nullptr), doctest::Contains("fp16"), ConfigError);
  CHECK_THROWS_WITH_AS(scaler_of(alone + "{type: fp16_apex, loss_scale: often}", nullptr),
                       doctest::Contains("must be dynamic or a number above 0"), ConfigError);
  CHECK_THROWS_WITH_AS(scaler_of(alone + "{type: bf16, initial_scale: 4}", nullptr), doctest::Contains("initial_scale"),
                       ConfigError);
}

/// A model that multiplies by infinity in the forward pass of one rank.
class BrokenModel final : public autograd::TrainableModel {
 public:
  BrokenModel(const autograd::TensorOptions& options, bool is_broken)
      : first_(8, 16, {.tensor = options}), second_(16, 3, {.tensor = options}), is_broken_(is_broken) {
    register_module("first", first_);
    register_module("second", second_);
  }
  autograd::Variable forward(const Tensor& inputs) override {
    const autograd::ForwardScope scope(*this);
    autograd::Variable x = first_.forward(autograd::Variable(inputs));
    x = x * autograd::Variable(full({}, is_broken_ ? HUGE_VAL : 1, x.dtype(), x.device()));
    return second_.forward(x);
  }
  std::map<std::string, autograd::Variable> loss(const autograd::Batch& batch) override {
    return {{"loss", autograd::cross_entropy(forward(batch.inputs), batch.targets)}};
  }

 private:
  autograd::Linear first_, second_;
  bool is_broken_;
};

/// What every rank says when a run on two ranks is given up after three skips.
std::string last_words(const test::MakePlugin& plugin, int broken_rank) {
  std::string text;
  try {
    dist::run_ranks(2, [&](dist::Comm& comm) {
      autograd::GradScalerConfig scaler;
      scaler.max_skips = 3;
      MixedPrecision precision(Precision::fp16);
      precision.grad_scaler = scaler;
      ColossalAIStrategy strategy(kCpu, 7, {}, plugin(), comm, precision);
      PrepareOptions options;
      options.optimizer = test::make_adamw;
      strategy.prepare(
          [&](const autograd::TensorOptions& tensor) {
            return std::make_shared<BrokenModel>(tensor, comm.rank() == broken_rank);
          },
          options);
      SamplerOptions loading;
      loading.batch_size = 4;
      loading.world_size = 2;
      loading.rank = comm.rank();
      DataLoader loader(std::make_shared<test::CountedSamples>(), loading);
      for (int i = 0; i < 2; ++i) CHECK(strategy.train_step(loader.next()).update.was_skipped);
      strategy.train_step(loader.next());
      FAIL_CHECK("three skips in a row were accepted");
    });
  } catch (const autograd::NumericsError& error) {
    text = error.what();
  }
  return text;
}

TEST_CASE(
    "after so many skipped updates in a row training stops with the parameter, op, rank and step of the first value "
    "that is not finite") {
  for (const int rank : {0, 1}) {
    for (const test::MakePlugin& plugin :
         {test::ddp(), test::zero(2, Precision::fp16), test::gemini(Precision::fp16)}) {
      const std::string text = last_words(plugin, rank);
      CAPTURE(text);
      CHECK(text.find("3 steps in a row") != std::string::npos);
      CHECK(text.find("after step 0") != std::string::npos);
      CHECK(text.find("the forward of binary") != std::string::npos);
      CHECK(text.find("'second.") != std::string::npos);
      CHECK(text.find(cat("on rank ", rank)) != std::string::npos);
    }
  }
}

}  // namespace
}  // namespace castor::strategy
