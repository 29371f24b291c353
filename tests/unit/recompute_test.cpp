// Recomputed segments give the bits of the plain run (dropout and batch norm included), hold nothing of their inside,
// and do forward's side effects once.
#include "autograd/recompute.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "autograd/graph.h"
#include "autograd/nn/layers.h"
#include "autograd/nn/transformer.h"
#include "autograd/nn/vision.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/norm.h"
#include "autograd/ops/reduce.h"
#include "autograd/random_state.h"
#include "core/base/philox.h"
#include "core/ops/cast.h"

namespace castor::autograd {
namespace {

using Values = std::vector<float>;

Tensor random_tensor(const Shape& shape, std::uint64_t stream) {
  Values values;
  for (std::int64_t i = 0; i < shape.numel(); ++i) {
    values.push_back(2 * uniform_from_word(philox({11, stream}, static_cast<std::uint64_t>(i)).word[0]) - 1);
  }
  return Tensor::from_values(values, shape);
}
Variable leaf(const Values& values, const std::string& name = "") {
  Variable variable(Tensor::from_values(values, {static_cast<std::int64_t>(values.size())}), true);
  variable.set_name(name);
  return variable;
}
Values values_of(const Tensor& x) { return contiguous(x).to_vector<float>(); }

/// Everything a run of a model leaves behind.
struct Outcome {
  Values loss, input_gradient;
  std::vector<Values> gradients, buffers;
  friend bool operator==(const Outcome&, const Outcome&) = default;
};

/// One step of `layers`, each a segment of its own when `recomputed`.
Outcome run(const std::function<std::vector<std::shared_ptr<Layer>>()>& make, const Shape& input, bool recomputed) {
  Sequential model(make());
  initialize(model, 17);
  random_state().begin(3, 8, 1);
  const Variable x(random_tensor(input, 1), true);
  Variable y = x;
  for (auto& [name, module] : model.named_modules()) {
    auto* layer = dynamic_cast<Layer*>(module);
    if (name.empty() || name.find('.') != std::string::npos || layer == nullptr) continue;
    y = recomputed ? recompute([layer](const Variable& in) { return layer->forward(in); }, y) : layer->forward(y);
  }
  const Variable loss = mean(y * y);
  backward(loss);
  Outcome outcome{values_of(loss.data()), values_of(x.grad()), {}, {}};
  for (const auto& [name, parameter] : model.named_parameters())
    outcome.gradients.push_back(values_of(parameter.grad()));
  for (const auto& [name, buffer] : model.named_buffers())
    outcome.buffers.push_back(values_of(cast(buffer.data(), DType::f32)));
  return outcome;
}

TEST_CASE("layers with dropout give the same bits recomputed") {
  const auto make = [] {
    std::vector<std::shared_ptr<Layer>> layers;
    for (int i = 0; i < 3; ++i) {
      auto block = std::make_shared<Sequential>();
      block->emplace<Linear>(24, 24);
      block->emplace<GELU>();
      block->emplace<Dropout>(0.3);
      layers.push_back(block);
    }
    return layers;
  };
  CHECK(run(make, {5, 24}, true) == run(make, {5, 24}, false));
}

TEST_CASE("convolutions with batch norm give the same bits recomputed, running statistics included") {
  const auto make = [] {
    std::vector<std::shared_ptr<Layer>> layers;
    for (int i = 0; i < 2; ++i) {
      auto block = std::make_shared<Sequential>();
      block->emplace<Conv2d>(4, 4, 3, ConvOptions{.padding = 1, .bias = false});
      block->emplace<BatchNorm2d>(4);
      block->emplace<ReLU>();
      layers.push_back(block);
    }
    return layers;
  };
  const Outcome plain = run(make, {3, 4, 6, 6}, false);
  CHECK(run(make, {3, 4, 6, 6}, true) == plain);
  CHECK(plain.buffers[2] == Values{1});
}

TEST_CASE("transformer blocks with dropout give the same bits recomputed") {
  const auto make = [] {
    BlockConfig config;
    config.attention = {.embed_dim = 32, .num_heads = 4, .num_kv_heads = 2, .causal = true, .dropout = 0.2};
    config.attention.rotary = std::make_shared<const RotaryTable>(make_rotary_table(16, 8));
    config.mlp = {.embed_dim = 32, .hidden_dim = 0, .kind = MlpKind::swiglu, .dropout = 0.2};
    std::vector<std::shared_ptr<Layer>> layers;
    for (int i = 0; i < 2; ++i) layers.push_back(std::make_shared<TransformerBlock>(config));
    return layers;
  };
  CHECK(run(make, {2, 9, 32}, true) == run(make, {2, 9, 32}, false));
}

TEST_CASE("a segment keeps its inputs only and runs again once in backward") {
  std::weak_ptr<Storage> inside;
  int runs = 0, reruns = 0;
  const Variable x = leaf({1, 2});
  const Variable y = recompute(
      [&](const Variable& in) {
        const Variable middle = exp(in);
        inside = middle.data().storage();
        ++(is_recomputing() ? reruns : runs);
        return middle * middle;
      },
      x);
  CHECK(inside.expired());
  CHECK(runs == 1);
  CHECK_FALSE(is_recomputing());
  backward(y);
  CHECK(inside.expired());
  CHECK(runs == 1);
  CHECK(reruns == 1);
  const Variable plain = leaf({1, 2});
  const Variable middle = exp(plain);
  backward(middle * middle);
  CHECK(values_of(x.grad()) == values_of(plain.grad()));
}

/// Has a place for each leaf: the leaf's own bytes, as a chunk has, or others.
class Places final : public GradientSink {
 public:
  explicit Places(bool own) : own_(own) {}
  void deliver(const Variable& leaf, Tensor gradient) override {
    const auto place = offered_.find(leaf.name());
    if (place != offered_.end() && is_same_place(gradient, place->second)) in_place.push_back(leaf.name());
    gradients[leaf.name()] = values_of(gradient);
  }
  Tensor place_of(const Variable& leaf) override {
    Tensor place = own_ ? leaf.data() : full(leaf.shape(), std::nan(""), leaf.dtype());
    return offered_[leaf.name()] = place;
  }
  std::map<std::string, Values> gradients;
  std::vector<std::string> in_place;

 private:
  bool own_;
  std::map<std::string, Tensor> offered_;
};

TEST_CASE("gradients of linear layers and norms are written where the sink has a place, and have the same values") {
  const auto run = [](GradientSink& sink, bool recomputes) {
    const auto named = [](const Shape& shape, std::uint64_t stream, const char* name) {
      Variable variable(random_tensor(shape, stream), true);
      variable.set_name(name);
      return variable;
    };
    const Variable x(random_tensor({5, 6}, 1), true),
        w = named({6, 6}, 2, "w"), b = named({6}, 3, "b"), scale = named({6}, 4, "scale"),
        shift = named({6}, 5, "shift"), fc = named({8, 6}, 6, "fc"), fc_bias = named({8}, 7, "fc_bias"),
        proj = named({6, 8}, 8, "proj"), twice = named({6, 6}, 9, "twice");
    const auto block = [&](const Variable& in) {
      const Variable normed = layer_norm(linear(in, w, b), scale, shift, 1e-5);
      const Variable fed = feed_forward(normed, {fc, fc_bias}, {Activation::gelu_tanh}, {proj, {}});
      return linear(linear(fed, twice), twice);
    };
    backward(sum(recomputes ? recompute(block, x) : block(x)), {.sink = &sink});
  };
  class Plain final : public GradientSink {
   public:
    void deliver(const Variable& leaf, Tensor gradient) override { gradients[leaf.name()] = values_of(gradient); }
    std::map<std::string, Values> gradients;
  };
  Plain plain;
  run(plain, false);
  for (const bool recomputes : {false, true}) {
    for (const bool own : {false, true}) {
      CAPTURE(recomputes);
      CAPTURE(own);
      Places places(own);
      run(places, recomputes);
      CHECK(places.gradients == plain.gradients);
      std::ranges::sort(places.in_place);
      CHECK(places.in_place == std::vector<std::string>{"b", "fc", "proj", "scale", "shift", "w"});
    }
  }
}

TEST_CASE("a leaf used inside and outside a segment is delivered once") {
  class Recorder final : public GradientSink {
   public:
    void deliver(const Variable& leaf, Tensor gradient) override {
      deliveries.emplace_back(leaf.name(), values_of(gradient));
    }
    std::vector<std::pair<std::string, Values>> deliveries;
  };
  const Variable w = leaf({3}, "w"), x = leaf({2}, "x");
  Recorder recorder;
  const Variable y = recompute([&](const Variable& in) { return in * w; }, x);
  backward(y * w, {.sink = &recorder});
  REQUIRE(recorder.deliveries.size() == 2);
  for (const auto& [name, gradient] : recorder.deliveries) CHECK(gradient == (name == "w" ? Values{12} : Values{9}));
}

TEST_CASE("segments nest") {
  const auto run_nested = [](bool recomputed) {
    const Variable x = leaf({0.3f, -0.7f}), w = leaf({1.1f, 0.9f});
    const std::function<Variable(const Variable&)> inner = [&](const Variable& in) { return tanh(in * w); };
    const std::function<Variable(const Variable&)> outer = [&](const Variable& in) {
      return (recomputed ? recompute(inner, in) : inner(in)) * w;
    };
    backward(recomputed ? recompute(outer, x) : outer(x));
    return std::pair{values_of(x.grad()), values_of(w.grad())};
  };
  CHECK(run_nested(true) == run_nested(false));
}

TEST_CASE("random draws after a segment do not shift when it runs again") {
  Dropout drop(0.5);
  name_tree(drop);
  const auto masks = [&](bool recomputed) {
    random_state().begin(1, 1, 1);
    const Variable x(Tensor::from_values(Values(64, 1.0f), {64}), true);
    const std::function<Variable(const Variable&)> segment = [&](const Variable& in) { return drop(in); };
    const Variable y = recomputed ? recompute(segment, x) : segment(x);
    const Variable z = drop(y);
    backward(sum(z));
    return std::pair{values_of(x.grad()), values_of(drop(x).data())};
  };
  CHECK(masks(true) == masks(false));
}

TEST_CASE("a segment of several inputs passes undefined and integer ones through") {
  const Variable a = leaf({2}), b = leaf({5});
  const Variable index(Tensor::from_values(std::vector<std::int64_t>{1}, {1}));
  const auto results = recompute(
      [](const std::vector<Variable>& in) {
        CHECK_FALSE(in[1].defined());
        return std::vector<Variable>{in[0] * in[3], affine(in[0], 2, 0)};
      },
      {a, Variable(), index, b});
  backward(results, {Tensor::from_values<float>({1}, {1}), Tensor::from_values<float>({10}, {1})}, nullptr);
  CHECK(values_of(a.grad()) == Values{25});
  CHECK(values_of(b.grad()) == Values{2});
}

TEST_CASE("under NoGradScope a segment just runs") {
  const Variable x = leaf({2});
  const NoGradScope no_grad;
  CHECK_FALSE(recompute([](const Variable& in) { return in * in; }, x).requires_grad());
}

TEST_CASE("parameters given up after forward can be brought back for the segment's second run") {
  class Gather final : public BackwardObserver {
   public:
    void before(const Node& node) override {
      for (const Variable& input : node.inputs()) {
        const auto& storage = input.data().storage();
        if (storage->has_data()) continue;
        auto bytes = std::make_shared<Values>(Values{7});
        storage->point_to(bytes->data(), bytes, {}, "gathered");
        gathered.push_back(input.name());
      }
    }
    std::vector<std::string> gathered;
  };
  const Variable x = leaf({2}, "x"), w = leaf({7}, "w");
  const Variable y = recompute([&](const Variable& in) { return in * w; }, x);
  w.data().storage()->drop("given up after forward");
  Gather gather;
  const BackwardObserverScope scope(gather);
  backward(y);
  CHECK(gather.gathered == std::vector<std::string>{"w"});
  CHECK(values_of(x.grad()) == Values{7});
  CHECK(values_of(w.grad()) == Values{2});
}

}  // namespace
}  // namespace castor::autograd
