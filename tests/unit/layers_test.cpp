// The modules' forwards against the formulas they stand for, gradients of whole blocks along a direction, and the life
// of batch norm's buffers.
#include "autograd/nn/layers.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "autograd/graph.h"
#include "autograd/nn/buffer_update.h"
#include "autograd/nn/loss.h"
#include "autograd/nn/transformer.h"
#include "autograd/nn/vision.h"
#include "autograd/ops/reduce.h"
#include "core/base/error.h"
#include "core/base/philox.h"
#include "core/ops/cast.h"
#include "core/ops/elementwise.h"

namespace castor::autograd {
namespace {

using Names = std::vector<std::string>;
using Values = std::vector<float>;

Tensor random_tensor(const Shape& shape, std::uint64_t stream) {
  Values values;
  for (std::int64_t i = 0; i < shape.numel(); ++i) {
    values.push_back(2 * uniform_from_word(philox({3, stream}, static_cast<std::uint64_t>(i)).word[0]) - 1);
  }
  return Tensor::from_values(values, shape);
}
Values values_of(const Tensor& x) { return contiguous(x).to_vector<float>(); }
double largest_difference(const Values& a, const Values& b) {
  REQUIRE(a.size() == b.size());
  double worst = 0;
  for (std::size_t i = 0; i < a.size(); ++i) worst = std::max(worst, std::abs(static_cast<double>(a[i]) - b[i]));
  return worst;
}

Names names_of(const std::vector<std::pair<std::string, Variable>>& named) {
  Names names;
  for (const auto& [name, variable] : named) names.push_back(name);
  return names;
}

Values by_name(const Module& module, const std::string& name) {
  for (const auto& [each, parameter] : module.named_parameters()) {
    if (each == name) return values_of(parameter.data());
  }
  FAIL("no parameter " << name);
  return {};
}

/// rows weight^T + bias in f64; weight [out, in].
std::vector<double> naive_linear(const std::vector<double>& x, const Values& weight, const Values& bias,
                                 std::int64_t in) {
  const auto width = static_cast<std::size_t>(in), rows = x.size() / width, out = weight.size() / width;
  std::vector<double> y(rows * out);
  for (std::size_t r = 0; r < rows; ++r) {
    for (std::size_t o = 0; o < out; ++o) {
      double sum = bias.empty() ? 0 : static_cast<double>(bias[o]);
      for (std::size_t i = 0; i < width; ++i) sum += x[r * width + i] * static_cast<double>(weight[o * width + i]);
      y[r * out + o] = sum;
    }
  }
  return y;
}

std::vector<double> wide(const Values& values) { return {values.begin(), values.end()}; }

double largest_difference(const Values& a, const std::vector<double>& b) {
  return largest_difference(a, Values(b.begin(), b.end()));
}

/// Self-attention as the formula says it, one head and query after another. q, k and v of token t: row t of x qkv^T.
std::vector<double> naive_attention(SelfAttention& module, const Values& x, std::int64_t batch, std::int64_t time,
                                    std::int64_t width, std::int64_t heads, std::int64_t key_heads, bool causal,
                                    bool rotary) {
  const std::int64_t dim = width / heads, row = (heads + 2 * key_heads) * dim;
  std::vector<double> qkv = naive_linear(wide(x), by_name(module, "qkv.weight"), by_name(module, "qkv.bias"), width);
  const auto at = [&](std::int64_t b, std::int64_t t, std::int64_t head, std::int64_t d) -> double& {
    return qkv[static_cast<std::size_t>((b * time + t) * row + head * dim + d)];
  };
  for (std::int64_t b = 0; rotary && b < batch; ++b) {
    for (std::int64_t t = 0; t < time; ++t) {
      for (std::int64_t head = 0; head < heads + key_heads; ++head) {
        for (std::int64_t d = 0; d < dim / 2; ++d) {
          const double angle =
              static_cast<double>(t) * std::pow(10000.0, -2.0 * static_cast<double>(d) / static_cast<double>(dim));
          const double first = at(b, t, head, d), second = at(b, t, head, d + dim / 2);
          at(b, t, head, d) = first * std::cos(angle) - second * std::sin(angle);
          at(b, t, head, d + dim / 2) = second * std::cos(angle) + first * std::sin(angle);
        }
      }
    }
  }
  std::vector<double> joined(static_cast<std::size_t>(batch * time * width));
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t t = 0; t < time; ++t) {
      for (std::int64_t head = 0; head < heads; ++head) {
        const std::int64_t key = heads + head / (heads / key_heads), value = key + key_heads;
        std::vector<double> weights;
        double total = 0;
        for (std::int64_t s = 0; s < (causal ? t + 1 : time); ++s) {
          double score = 0;
          for (std::int64_t d = 0; d < dim; ++d) score += at(b, t, head, d) * at(b, s, key, d);
          weights.push_back(std::exp(score / std::sqrt(static_cast<double>(dim))));
          total += weights.back();
        }
        for (std::int64_t d = 0; d < dim; ++d) {
          double sum = 0;
          for (std::size_t s = 0; s < weights.size(); ++s)
            sum += weights[s] / total * at(b, static_cast<std::int64_t>(s), value, d);
          joined[static_cast<std::size_t>((b * time + t) * width + head * dim + d)] = sum;
        }
      }
    }
  }
  return naive_linear(joined, by_name(module, "proj.weight"), by_name(module, "proj.bias"), width);
}

TEST_CASE("self-attention computes the formula: many heads, grouped keys, causal, rotary") {
  struct Row {
    std::int64_t heads, key_heads;
    bool causal, rotary;
  };
  for (const Row row :
       {Row{4, 0, false, false}, Row{4, 0, true, false}, Row{4, 2, true, false}, Row{4, 1, true, true}}) {
    CAPTURE(row.key_heads);
    CAPTURE(row.rotary);
    AttentionConfig config{
        .embed_dim = 32, .num_heads = row.heads, .num_kv_heads = row.key_heads, .causal = row.causal};
    if (row.rotary) config.rotary = std::make_shared<const RotaryTable>(make_rotary_table(16, 8));
    SelfAttention module(config);
    initialize(module, 9);
    const Tensor x = random_tensor({2, 7, 32}, 1);
    const std::int64_t key_heads = row.key_heads == 0 ? row.heads : row.key_heads;
    CHECK(module.forward(Variable(x)).shape() == Shape{2, 7, 32});
    CHECK(largest_difference(
              values_of(module.forward(Variable(x)).data()),
              naive_attention(module, values_of(x), 2, 7, 32, row.heads, key_heads, row.causal, row.rotary)) < 1e-5);
  }
  CHECK_THROWS_AS(SelfAttention({.embed_dim = 30, .num_heads = 4}), ConfigError);
  CHECK_THROWS_AS(SelfAttention({.embed_dim = 32, .num_heads = 4, .num_kv_heads = 3}), ConfigError);
}

TEST_CASE("the feed-forward networks compute their formulas") {
  const auto silu = [](double x) { return x / (1 + std::exp(-x)); };
  const auto gelu = [](double x) { return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0))); };
  const Tensor x = random_tensor({5, 24}, 2);
  for (const MlpKind kind : {MlpKind::gelu_erf, MlpKind::relu, MlpKind::swiglu}) {
    Mlp module({.embed_dim = 24, .kind = kind});
    initialize(module, 4);
    std::vector<double> hidden =
        naive_linear(wide(values_of(x)), by_name(module, "fc.weight"), by_name(module, "fc.bias"), 24);
    const std::size_t size = hidden.size() / 5;
    CHECK(size == (kind == MlpKind::swiglu ? 2 * 64 : 4 * 24));
    std::vector<double> active;
    for (std::size_t i = 0; i < hidden.size(); ++i) {
      if (kind == MlpKind::gelu_erf) active.push_back(gelu(hidden[i]));
      if (kind == MlpKind::relu) active.push_back(std::max(hidden[i], 0.0));
      if (kind == MlpKind::swiglu && i % size < size / 2) active.push_back(silu(hidden[i]) * hidden[i + size / 2]);
    }
    const auto width = static_cast<std::int64_t>(active.size() / 5);
    const std::vector<double> want =
        naive_linear(active, by_name(module, "proj.weight"), by_name(module, "proj.bias"), width);
    CHECK(largest_difference(values_of(module.forward(Variable(x)).data()), want) < 1e-5);
  }
  CHECK_THROWS_AS(mlp_kind_from_name("gelo"), ConfigError);
}

/// d loss / d direction by backward, and by central differences.
template <class Forward>
void check_directional(Module& module, const Variable& x, const Forward& forward) {
  std::vector<Variable> leaves{x};
  for (const auto& [name, parameter] : module.named_parameters()) leaves.push_back(parameter);
  const auto loss = [&] { return sum(forward() * forward()); };
  backward(loss());
  std::vector<Tensor> directions;
  double want = 0;
  for (std::size_t i = 0; i < leaves.size(); ++i) {
    directions.push_back(random_tensor(leaves[i].shape(), 50 + i));
    REQUIRE(leaves[i].grad().defined());
    const Values gradient = values_of(leaves[i].grad()), direction = values_of(directions[i]);
    for (std::size_t j = 0; j < gradient.size(); ++j)
      want += static_cast<double>(gradient[j]) * static_cast<double>(direction[j]);
  }
  const auto shifted = [&](double step) {
    for (std::size_t i = 0; i < leaves.size(); ++i)
      binary_inplace(BinaryOp::add, leaves[i].data(), scale(directions[i], step));
    const double value = loss().data().item();
    for (std::size_t i = 0; i < leaves.size(); ++i)
      binary_inplace(BinaryOp::sub, leaves[i].data(), scale(directions[i], step));
    return value;
  };
  const double step = 2e-3;
  CHECK((shifted(step) - shifted(-step)) / (2 * step) == doctest::Approx(want).epsilon(5e-3));
}

TEST_CASE("gradients of whole blocks agree with differences along a direction") {
  for (const NormKind norm : {NormKind::layer, NormKind::rms}) {
    BlockConfig config;
    config.attention = {.embed_dim = 16, .num_heads = 4, .num_kv_heads = 2, .causal = true};
    config.attention.rotary = std::make_shared<const RotaryTable>(make_rotary_table(8, 4));
    config.mlp = {.embed_dim = 16, .kind = norm == NormKind::rms ? MlpKind::swiglu : MlpKind::gelu_tanh};
    config.norm = norm;
    TransformerBlock block(config);
    initialize(block, 2);
    const Variable x(random_tensor({2, 5, 16}, 3), true);
    check_directional(block, x, [&] { return block.forward(x); });
  }
}

TEST_CASE("blocks that leave their last addition to the next norm compute what blocks one by one do") {
  BlockConfig config;
  config.attention = {.embed_dim = 16, .num_heads = 4, .causal = true};
  config.mlp = {.embed_dim = 16};
  TransformerBlock first(config), second(config);
  initialize(first, 1);
  initialize(second, 2);
  const auto run = [&](bool is_stream, const Variable& x) {
    Variable y;
    if (is_stream) {
      const ResidualStream stream = second.forward(first.forward(ResidualStream{x}));
      y = stream.sum + stream.branch;
    } else {
      y = second.forward(first.forward(x));
    }
    backward(y, {random_tensor({2, 5, 16}, 4), nullptr, false});
    return y;
  };
  const Variable one(random_tensor({2, 5, 16}, 3), true), other(random_tensor({2, 5, 16}, 3), true);
  CHECK(values_of(run(true, one).data()) == values_of(run(false, other).data()));
  CHECK(values_of(one.grad()) == values_of(other.grad()));
}

TEST_CASE("a feed-forward network that recomputes its activation gives equal bits") {
  const auto run = [](MlpKind kind, bool recomputes) {
    Mlp mlp({.embed_dim = 8, .kind = kind, .recompute_activation = recomputes});
    initialize(mlp, 5);
    const Variable x(random_tensor({3, 8}, 6), true);
    const Variable y = mlp.forward(x);
    backward(y, {random_tensor({3, 8}, 7), nullptr, false});
    Values all = values_of(y.data());
    const auto add = [&](const Variable& variable) {
      const Values own = values_of(variable.grad());
      all.insert(all.end(), own.begin(), own.end());
    };
    add(x);
    for (const auto& [name, parameter] : mlp.named_parameters()) add(parameter);
    return all;
  };
  for (const MlpKind kind : {MlpKind::gelu_tanh, MlpKind::swiglu}) CHECK(run(kind, true) == run(kind, false));
}

TEST_CASE("a block's parameters have the names that checkpoints use") {
  TransformerBlock block({.attention = {.embed_dim = 8, .num_heads = 2}, .mlp = {.embed_dim = 8}});
  CHECK(names_of(block.named_parameters()) ==
        Names{"norm1.weight", "norm1.bias", "attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight", "attn.proj.bias",
              "norm2.weight", "norm2.bias", "mlp.fc.weight", "mlp.fc.bias", "mlp.proj.weight", "mlp.proj.bias"});
  CHECK_THROWS_AS(TransformerBlock({.attention = {.embed_dim = 8, .num_heads = 2}, .mlp = {.embed_dim = 16}}),
                  ConfigError);
}

// --------------------------------------------------------------------------------------------------------- batch norm

TEST_CASE("batch norm keeps PyTorch's buffers: unbiased variance, momentum, count") {
  BatchNorm2d module(2, 1e-5, 0.25);
  initialize(module, 0);
  CHECK(names_of(module.named_parameters()) == Names{"weight", "bias"});
  CHECK(names_of(module.named_buffers()) == Names{"running_mean", "running_var", "num_batches_tracked"});
  const Tensor x = Tensor::from_values<float>({1, 3, 10, 20, 5, 7, 30, 40}, {2, 2, 1, 2});
  const Values y = values_of(module.forward(Variable(x)).data());
  CHECK(y[0] == doctest::Approx((1 - 4) / std::sqrt(5.0)).epsilon(1e-5));
  const auto buffers = module.named_buffers();
  CHECK(values_of(buffers[0].second.data()) == Values{1, 6.25});
  CHECK(largest_difference(values_of(buffers[1].second.data()),
                           Values{0.75f + 0.25f * 20 / 3, 0.75f + 0.25f * 500 / 3}) < 1e-4);
  CHECK(buffers[2].second.data().item() == 1);
  module.eval();
  const Values evaluated = values_of(module.forward(Variable(x)).data());
  CHECK(evaluated[0] == doctest::Approx((1 - 1) / std::sqrt(0.75 + 5.0 / 3)).epsilon(1e-5));
  CHECK(buffers[2].second.data().item() == 1);
  CHECK(values_of(module.forward_relu(Variable(x), Variable(scale(x, -1))).data())[0] == 0);
}

TEST_CASE("updates of buffers wait in a sink and apply in order to the bits of immediate ones") {
  const auto statistics_after = [](bool pending) {
    Sequential model;
    for (int i = 0; i < 2; ++i) model.emplace<BatchNorm2d>(3);
    initialize(model, 0);
    PendingBufferUpdates sink;
    for (std::uint64_t k = 0; k < 3; ++k) {
      const Variable x(random_tensor({4, 3, 2, 2}, k));
      if (pending) {
        const BufferUpdateScope scope(sink);
        (void)model(x);
      } else {
        (void)model(x);
      }
    }
    if (pending) {
      REQUIRE(sink.updates().size() == 6);
      CHECK(sink.updates()[1].module->name() == "1");
      CHECK(model.named_buffers()[2].second.data().item() == 0);
      sink.apply();
      CHECK(sink.updates().empty());
    }
    std::vector<Values> found;
    for (const auto& [name, buffer] : model.named_buffers())
      found.push_back(values_of(cast(buffer.data(), DType::f32)));
    return found;
  };
  CHECK(statistics_after(true) == statistics_after(false));
}

TEST_CASE("group norm, convolution and pooling modules have PyTorch's shapes and refuse what does not divide") {
  Conv2d conv(4, 6, Pair(3, 5), {.stride = Pair(2, 1), .padding = Pair(1, 2), .groups = 2});
  CHECK(conv.weight().shape() == Shape{6, 2, 3, 5});
  initialize(conv, 0);
  const Variable y = conv.forward(Variable(random_tensor({2, 4, 8, 8}, 0)));
  CHECK(y.shape() == Shape{2, 6, 4, 8});
  GroupNorm norm(3, 6);
  initialize(norm, 0);
  CHECK(norm.forward(y).shape() == y.shape());
  CHECK(MaxPool2d(2).forward(y).shape() == Shape{2, 6, 2, 4});
  CHECK(AvgPool2d(3, {.stride = Pair(1), .padding = 1}).forward(y).shape() == Shape{2, 6, 4, 8});
  CHECK(AdaptiveAvgPool2d(1).forward(y).shape() == Shape{2, 6, 1, 1});
  CHECK(AdaptiveMaxPool2d(Pair(2, 3)).forward(y).shape() == Shape{2, 6, 2, 3});
  CHECK(Flatten().forward(y).shape() == Shape{2, 192});
  CHECK_THROWS_AS(Conv2d(4, 6, 3, {.groups = 4}), ConfigError);
  CHECK_THROWS_AS(GroupNorm(4, 6), ConfigError);
}

TEST_CASE("losses compute their formulas") {
  const Tensor logits = random_tensor({2, 3, 5}, 0);
  const Tensor targets = Tensor::from_values(std::vector<std::int64_t>{1, -100, 4, 0, 2, 3}, {2, 3});
  const Values x = values_of(logits);
  const auto naive = [&](double smoothing) {
    double total = 0;
    for (std::size_t row = 0; row < 6; ++row) {
      if (row == 1) continue;
      double sum = 0, mean_log = 0;
      for (std::size_t c = 0; c < 5; ++c) sum += std::exp(static_cast<double>(x[row * 5 + c]));
      for (std::size_t c = 0; c < 5; ++c) mean_log += (static_cast<double>(x[row * 5 + c]) - std::log(sum)) / 5;
      const auto target = static_cast<std::size_t>(targets.data<std::int64_t>()[row]);
      total -= (1 - smoothing) * (static_cast<double>(x[row * 5 + target]) - std::log(sum)) + smoothing * mean_log;
    }
    return total;
  };
  CHECK(CrossEntropyLoss().forward(Variable(logits), targets).data().item() ==
        doctest::Approx(naive(0) / 5).epsilon(1e-5));
  CrossEntropyLoss smooth({.label_smoothing = 0.1, .reduction = Reduction::sum});
  CHECK(smooth.forward(Variable(logits), targets).data().item() == doctest::Approx(naive(0.1)).epsilon(1e-5));
  CHECK(smooth.forward(Variable(logits), targets).ndim() == 0);
  CHECK_THROWS_AS(CrossEntropyLoss({.label_smoothing = 1.5}), ConfigError);
  // With the layer that makes the logits: the same loss, whether or not it can do without them.
  const Variable features(random_tensor({2, 3, 4}, 9), true);
  for (const bool has_bias : {false, true}) {
    Linear head(4, 5, {.bias = has_bias});
    initialize(head, 3);
    const Variable joined = smooth.forward(features, head, targets);
    const Variable apart = smooth.forward(head.forward(features), targets);
    CHECK(joined.data().item() == apart.data().item());
  }

  const Tensor target = Tensor::from_values<float>({1, 2, 3}, {3});
  const Variable prediction(Tensor::from_values<float>({2, 4, 3}, {3}), true);
  CHECK(MSELoss().forward(prediction, target).data().item() == doctest::Approx(5.0 / 3));
  const Variable total = MSELoss(Reduction::sum).forward(prediction, target);
  CHECK(total.data().item() == 5);
  backward(total);
  CHECK(values_of(prediction.grad()) == Values{2, 4, 0});
  CHECK_THROWS_AS(MSELoss().forward(prediction, logits), ShapeError);
}

}  // namespace
}  // namespace castor::autograd
