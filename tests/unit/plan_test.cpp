// The plan against what the allocator sees of a real first step, for three models that no plan was tuned to: a
// perceptron with dropout, a residual network with batch norm, and a decoder with rotary positions, SwiGLU, recompute
// and windows of three micro-steps. Each category within 5%. Delicate: the CPU's allocator is the process's, so only
// what comes on top of its state before counts; and it is warm from other tests, which peaks of bytes in use do not
// show.
#include "strategy/plan.h"

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include <doctest/doctest.h>

#include "autograd/optim/adam.h"
#include "autograd/optim/lamb.h"
#include "autograd/optim/sgd.h"
#include "core/base/json.h"
#include "samples/fashion_mnist/model.h"
#include "samples/gpt/model.h"
#include "strategy/colossalai_strategy.h"

namespace castor::strategy {
namespace {

template <class Model>
ModelFactory factory(const typename Model::Config& config) {
  return [config](const autograd::TensorOptions& options) { return std::make_shared<Model>(config, options); };
}

PrepareOptions training(const OptimizerFactory& optimizer, std::int64_t accumulative_counts = 1) {
  PrepareOptions options;
  options.optimizer = optimizer;
  options.accumulative_counts = accumulative_counts;
  options.dispatch.max_iters = accumulative_counts;
  return options;
}

/// One process without a plugin.
std::unique_ptr<BaseStrategy> alone(Device device) { return std::make_unique<ColossalAIStrategy>(device, 0); }

autograd::Batch images(std::int64_t count) {
  return {Tensor::zeros({count, 1, 28, 28}, DType::f32), Tensor::zeros({count}, DType::i64)};
}

/// What a real first step adds to the allocator.
MemoryStats first_step(const ModelFactory& model, const PrepareOptions& options,
                       const std::function<autograd::Batch()>& batch) {
  allocator(kCpu).reset_peaks();
  const MemoryStats before = allocator(kCpu).stats();
  ColossalAIStrategy strategy(kCpu, 1);
  strategy.prepare(model, options);
  for (std::int64_t m = 0; m < options.accumulative_counts; ++m) strategy.train_step(batch());
  return memory_since(before, allocator(kCpu).stats());
}

/// The largest difference of a category's peak, or of the total's.
void check_audit(const std::string& name, const ModelFactory& model, const PrepareOptions& options,
                 const std::function<autograd::Batch()>& batch) {
  INFO(name);
  const Plan plan = make_plan(alone, model, options, batch());
  const MemoryStats actual = first_step(model, options, batch);
  INFO(audit_text(plan, actual));
  CHECK(audit_worst(plan, actual) <= 0.05);
  CHECK(static_cast<double>(plan.memory.peak_total) ==
        doctest::Approx(static_cast<double>(actual.peak_total)).epsilon(0.05));
  for (const Category category : {Category::parameters, Category::gradients, Category::activations}) {
    CHECK(actual.peak[static_cast<std::size_t>(category)] >= 64 << 10);
  }
  MESSAGE(name << ": worst category off by " << 100 * audit_worst(plan, actual) << "%");
}

ModelFactory decoder() {
  samples::GptConfig config;
  config.n_layer = 3;
  config.n_head = 4;
  config.n_kv_head = 2;
  config.n_embd = 64;
  config.block_size = 96;
  config.norm = "rms";
  config.mlp = "swiglu";
  config.position = "rotary";
  config.recompute = true;
  config.dropout = 0.1;
  return factory<samples::Gpt>(config);
}

autograd::Batch tokens() { return {Tensor::zeros({4, 96}, DType::i64), Tensor::zeros({4, 96}, DType::i64)}; }

TEST_CASE("the plan of a perceptron with dropout is within 5% of its first step") {
  samples::MlpClassifierConfig config;
  config.width = 256;
  config.dropout = 0.2;
  check_audit("perceptron with dropout, AdamW", factory<samples::MlpClassifier>(config),
              training([] { return std::make_unique<autograd::AdamW>(); }), [] { return images(96); });
}

TEST_CASE("the plan of a residual network with batch norm is within 5% of its first step") {
  samples::ResNetConfig config;
  config.width = 8;
  check_audit("residual network with batch norm, SGD with momentum", factory<samples::ResNet>(config), training([] {
                autograd::SGDConfig sgd;
                sgd.momentum = 0.9;
                return std::make_unique<autograd::SGD>(sgd);
              }),
              [] { return images(6); });
}

TEST_CASE("the plan of a decoder with rotary, SwiGLU, recompute and accumulation is within 5% of its first step") {
  PrepareOptions options = training([] { return std::make_unique<autograd::Lamb>(); }, 3);
  options.clip = ClipConfig{};
  options.clip->max_norm = 1.0;
  check_audit("decoder with rotary, grouped queries, SwiGLU, recompute, windows of 3, Lamb", decoder(), options,
              tokens);
}

TEST_CASE("a plan lists the parameters in the order of their use, and their gradients' order") {
  const Plan plan =
      make_plan(alone, decoder(), training([] { return std::make_unique<autograd::AdamW>(); }, 2), tokens());
  const auto model = decoder()({DType::f32, kCpu});
  autograd::name_tree(*model);
  std::set<std::string> names;
  for (const auto& [name, parameter] : model->named_parameters()) names.insert(name);
  CHECK(std::set<std::string>(plan.parameter_order.begin(), plan.parameter_order.end()) == names);
  CHECK(plan.parameter_order.size() == names.size());
  CHECK(std::set<std::string>(plan.backward_order.begin(), plan.backward_order.end()) == names);
  CHECK(plan.parameter_order.front() == "wte.weight");
  CHECK(plan.parameter_order.back() == "head.weight");
  CHECK(plan.backward_order.front() == "head.weight");
  CHECK(plan.backward_order.back() == "wte.weight");
  const auto place = [&](const std::string& name) {
    return std::find(plan.parameter_order.begin(), plan.parameter_order.end(), name) - plan.parameter_order.begin();
  };
  CHECK(place("blocks.0.attn.qkv.weight") < place("blocks.0.mlp.fc.weight"));
  CHECK(place("blocks.0.mlp.proj.weight") < place("blocks.1.attn.qkv.weight"));
  CHECK(plan.micro_steps == 2);
  CHECK(plan.micro_batch == 4);
  CHECK(plan.parameters == model->parameter_count());
}

TEST_CASE("a plan counts the FLOPs of every product and its JSON says the same as its text") {
  samples::MlpClassifierConfig config;
  config.width = 64;
  const Plan plan = make_plan(alone, factory<samples::MlpClassifier>(config),
                              training([] { return std::make_unique<autograd::AdamW>(); }), images(32));
  // Forward, gradient of the weights, gradient of the inputs (not of the first layer's).
  const double products = 2.0 * 32 * (3 * (784 * 64 + 64 * 64 + 64 * 10) - 784 * 64);
  CHECK(plan.flops >= products);
  CHECK(plan.flops <= 1.2 * products);
  const Json json = plan_json(plan);
  CHECK(json.at("flops").get<double>() == plan.flops);
  CHECK(json.at("ops").size() == plan.ops.size());
  CHECK(json.at("memory").at("parameters").at("peak").get<std::size_t>() == plan.memory.peak[0]);
  const std::string text = plan_text(plan);
  for (const OpTotal& op : plan.ops) CHECK_MESSAGE(text.find(op.name) != std::string::npos, op.name);
  for (int i = 0; i < kCategoryCount; ++i)
    CHECK(text.find(category_name(static_cast<Category>(i))) != std::string::npos);
}

TEST_CASE("planning allocates nothing on the CPU") {
  const autograd::Batch batch = tokens();
  const std::uint64_t before = allocator(kCpu).stats().allocations;
  make_plan(alone, decoder(), training([] { return std::make_unique<autograd::AdamW>(); }), batch);
  CHECK(allocator(kCpu).stats().allocations == before);
}

}  // namespace
}  // namespace castor::strategy
