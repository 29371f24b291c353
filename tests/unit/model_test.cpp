// The samples' models: names, shapes, what their options do, and that they learn.
#include "samples/fashion_mnist/model.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "autograd/graph.h"
#include "autograd/optim/adam.h"
#include "autograd/optim/stepper.h"
#include "autograd/random_state.h"
#include "core/base/error.h"
#include "core/base/philox.h"
#include "core/ops/cast.h"
#include "samples/gpt/model.h"

namespace castor::samples {
namespace {

using namespace autograd;
using Names = std::vector<std::string>;
using Values = std::vector<float>;

Values values_of(const Tensor& x) { return contiguous(x).to_vector<float>(); }

Names names_of(const Module& module) {
  Names names;
  for (const auto& [name, parameter] : module.named_parameters()) names.push_back(name);
  return names;
}

GptConfig small_gpt() {
  GptConfig config;
  config.n_layer = 2;
  config.n_head = 2;
  config.n_embd = 32;
  config.block_size = 12;
  config.vocab_size = 40;
  return config;
}

/// Token t of a row is a function of the row's first two: a pattern a decoder can learn.
Batch token_batch(std::int64_t rows, std::int64_t length, std::int64_t vocabulary) {
  std::vector<std::int64_t> inputs, targets;
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t t = 0; t < length; ++t) {
      inputs.push_back((row * 7 + t * (row % 3 + 1)) % vocabulary);
      targets.push_back((row * 7 + (t + 1) * (row % 3 + 1)) % vocabulary);
    }
  }
  return {Tensor::from_values(inputs, {rows, length}), Tensor::from_values(targets, {rows, length})};
}

Batch image_batch(std::int64_t count) {
  Values pixels;
  std::vector<std::int64_t> labels;
  for (std::int64_t i = 0; i < count; ++i) {
    labels.push_back(i % 10);
    for (std::uint64_t j = 0; j < 784; ++j) {
      const float noise = uniform_from_word(philox({1, static_cast<std::uint64_t>(i)}, j).word[0]);
      pixels.push_back(static_cast<std::int64_t>(j) / 79 == i % 10 ? 1.0f : 0.2f * noise);
    }
  }
  return {Tensor::from_values(pixels, {count, 1, 28, 28}), Tensor::from_values(labels, {count})};
}

/// The losses of `steps` Adam steps on one batch.
std::vector<double> train(TrainableModel& model, const Batch& batch, int steps, double lr) {
  initialize(model, 5);
  AdamConfig config;
  config.lr = lr;
  Adam optimizer(config);
  std::vector<Part> parameters;
  for (const auto& [name, parameter] : model.named_parameters()) parameters.push_back({parameter, 0});
  Stepper stepper(optimizer, parameters);
  std::vector<double> losses;
  for (int step = 0; step < steps; ++step) {
    random_state().begin(5, static_cast<std::uint64_t>(step), 0);
    const Variable loss = total_loss(model.loss(batch));
    backward(loss);
    stepper.step();
    stepper.zero_grad();
    losses.push_back(loss.data().item());
  }
  return losses;
}

TEST_CASE("the peer's GPT has the peer's number of parameters and its names") {
  const Gpt model(GptConfig{}, {DType::f32, make_meta({})});
  CHECK(model.parameter_count() == 10942464);
  const Gpt small(small_gpt());
  const Names names = names_of(small);
  CHECK(names.size() == 2 + 2 * 12 + 2 + 1);
  CHECK(names[0] == "wte.weight");
  CHECK(names[1] == "wpe.weight");
  CHECK(std::find(names.begin(), names.end(), "blocks.1.attn.qkv.weight") != names.end());
  CHECK(names[names.size() - 3] == "norm.weight");
  CHECK(names.back() == "head.weight");
}

TEST_CASE("options change what the GPT is made of") {
  GptConfig config = small_gpt();
  config.tie_weights = true;
  CHECK(Gpt(config).aliases() == std::vector<std::pair<std::string, std::string>>{{"head.weight", "wte.weight"}});
  config = small_gpt();
  config.bias = false;
  config.norm = "rms";
  config.mlp = "swiglu";
  config.position = "rotary";
  config.n_kv_head = 1;
  const Names names = names_of(Gpt(config));
  CHECK(std::none_of(names.begin(), names.end(),
                     [](const std::string& name) { return name.ends_with("bias") || name.starts_with("wpe"); }));
  CHECK(Gpt(config).named_parameters()[2].second.shape() == Shape{64, 32});
  config.qkv_bias = true;
  Names biases;
  for (const std::string& name : names_of(Gpt(config))) {
    if (name.ends_with("bias")) biases.push_back(name);
  }
  CHECK(biases == Names{"blocks.0.attn.qkv.bias", "blocks.1.attn.qkv.bias"});
  config.n_head = 5;
  CHECK_THROWS_AS(Gpt{config}, ConfigError);
  config = small_gpt();
  config.norm = "batch";
  CHECK_THROWS_AS(Gpt{config}, ConfigError);
  config = small_gpt();
  config.position = "relative";
  CHECK_THROWS_AS(Gpt{config}, ConfigError);
}

TEST_CASE("a token's logits depend on the tokens up to it only") {
  for (const std::string position : {"learned", "rotary"}) {
    GptConfig config = small_gpt();
    config.position = position;
    Gpt model(config);
    initialize(model, 1);
    model.eval();
    const Batch batch = token_batch(1, 12, 40);
    const Tensor whole = model.predict(batch);
    CHECK(whole.shape() == Shape{1, 12, 40});
    const Tensor part = model.predict({clone(batch.inputs.narrow(1, 0, 5)), {}});
    const Values a = values_of(part), b = values_of(whole.narrow(1, 0, 5));
    for (std::size_t i = 0; i < a.size(); ++i) CHECK(a[i] == doctest::Approx(b[i]).epsilon(1e-4));
    CHECK_THROWS_AS(model.predict({Tensor::zeros({1, 13}, DType::i64), {}}), ShapeError);
    CHECK_THROWS_AS(model.predict({Tensor::zeros({13}, DType::i64), {}}), ShapeError);
  }
}

TEST_CASE("a fresh GPT is as unsure as a uniform guess, and learns a pattern") {
  for (const bool modern : {false, true}) {
    GptConfig config = small_gpt();
    if (modern) {
      config.norm = "rms";
      config.mlp = "swiglu";
      config.position = "rotary";
      config.n_kv_head = 1;
      config.bias = false;
      config.tie_weights = true;
    }
    Gpt model(config);
    const std::vector<double> losses = train(model, token_batch(6, 12, 40), 40, 1e-2);
    CHECK(losses.front() == doctest::Approx(std::log(40.0)).epsilon(0.05));
    CHECK(losses.back() < 0.3);
  }
}

TEST_CASE("recompute changes no bit of a GPT's training, with dropout") {
  GptConfig config = small_gpt();
  config.dropout = 0.2;
  const Batch batch = token_batch(3, 12, 40);
  Gpt plain(config);
  config.recompute = true;
  Gpt recomputed(config);
  CHECK(train(plain, batch, 5, 1e-2) == train(recomputed, batch, 5, 1e-2));
  const auto weights = recomputed.named_parameters();
  std::size_t at = 0;
  for (const auto& [name, parameter] : plain.named_parameters())
    CHECK(values_of(parameter.data()) == values_of(weights[at++].second.data()));
}

TEST_CASE("targets of -100 count for nothing") {
  Gpt model(small_gpt());
  initialize(model, 1);
  Batch batch = token_batch(2, 12, 40);
  const double whole =
      total_loss(model.loss({clone(batch.inputs.narrow(0, 0, 1)), clone(batch.targets.narrow(0, 0, 1))})).data().item();
  std::fill_n(batch.targets.data<std::int64_t>() + 12, 12, -100);
  CHECK(total_loss(model.loss(batch)).data().item() == doctest::Approx(whole).epsilon(1e-5));
}

TEST_CASE("the classifiers have the peers' numbers of parameters") {
  const TensorOptions meta{DType::f32, make_meta({})};
  CHECK(MlpClassifier({}, meta).parameter_count() == 669706);
  CHECK(LeNet({}, meta).parameter_count() == 5 * 5 * 32 + 32 + 5 * 5 * 32 * 64 + 64 + 3136 * 128 + 128 + 1280 + 10);
  CHECK(ResNet({}, meta).parameter_count() == 701178);
}

TEST_CASE("the residual network's names are torchvision's") {
  const ResNet model({.width = 2});
  const Names names = names_of(model);
  CHECK(names[0] == "conv1.weight");
  CHECK(names[3] == "layer1.0.conv1.weight");
  for (const char* name :
       {"layer2.0.downsample.0.weight", "layer2.0.downsample.1.bias", "layer4.1.bn2.weight", "fc.bias"}) {
    CHECK(std::find(names.begin(), names.end(), name) != names.end());
  }
  Names buffers;
  for (const auto& [name, buffer] : model.named_buffers()) buffers.push_back(name);
  CHECK(std::find(buffers.begin(), buffers.end(), "layer2.0.downsample.1.running_var") != buffers.end());
}

TEST_CASE("the classifiers learn a batch, dropout and all") {
  const Batch batch = image_batch(20);
  MlpClassifier mlp({.width = 64, .dropout = 0.1});
  LeNet lenet({.width = 4, .dropout = 0.1});
  ResNet resnet({.width = 4, .dropout = 0.1});
  for (TrainableModel* model : std::vector<TrainableModel*>{&mlp, &lenet, &resnet}) {
    const std::vector<double> losses = train(*model, batch, 25, 1e-2);
    CHECK(losses.front() > 1.5);
    CHECK(losses.back() < 0.2);
    model->eval();
    CHECK(model->predict(batch).shape() == Shape{20, 10});
  }
}

TEST_CASE("four micro-steps leave the sum of the four micro-batches' gradients, added in order") {
  const Batch whole = image_batch(20);
  const auto gradients_of = [&](TrainableModel& model, std::int64_t k) {
    backward(
        total_loss(model.loss({clone(whole.inputs.narrow(0, 5 * k, 5)), clone(whole.targets.narrow(0, 5 * k, 5))})));
    std::vector<Values> gradients;
    for (const auto& [name, parameter] : model.named_parameters()) gradients.push_back(values_of(parameter.grad()));
    return gradients;
  };
  LeNet model({.width = 4});
  initialize(model, 5);
  std::vector<Values> accumulated, sums;
  for (std::int64_t k = 0; k < 4; ++k) accumulated = gradients_of(model, k);
  for (std::int64_t k = 0; k < 4; ++k) {
    for (const auto& [name, parameter] : model.named_parameters()) parameter.set_grad({});
    const std::vector<Values> alone = gradients_of(model, k);
    if (k == 0) sums = alone;
    for (std::size_t i = 0; k > 0 && i < sums.size(); ++i) {
      for (std::size_t j = 0; j < sums[i].size(); ++j) sums[i][j] += alone[i][j];
    }
  }
  CHECK(accumulated == sums);
}

TEST_CASE("two runs of one seed give the same bits") {
  const Batch batch = image_batch(8);
  ResNet one({.width = 4, .dropout = 0.2}), other({.width = 4, .dropout = 0.2});
  CHECK(train(one, batch, 3, 1e-2) == train(other, batch, 3, 1e-2));
  const auto buffers = other.named_buffers();
  std::size_t at = 0;
  for (const auto& [name, buffer] : one.named_buffers()) {
    CHECK(values_of(cast(buffer.data(), DType::f32)) == values_of(cast(buffers[at++].second.data(), DType::f32)));
  }
}

}  // namespace
}  // namespace castor::samples
