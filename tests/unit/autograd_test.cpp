// The engine's promises: what is recorded, in which order nodes and leaves are served, and that saved parameters are
// read where their bytes are when backward runs. Ops here are elementwise, but for a tied table's; their gradients have
// tests of their own.
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "autograd/graph.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/index.h"
#include "core/base/error.h"
#include "core/ops/cast.h"
#include "core/ops/elementwise.h"
#include "core/ops/random.h"

namespace castor::autograd {
namespace {

using Values = std::vector<float>;

Tensor tensor(const Values& values) { return Tensor::from_values(values, {static_cast<std::int64_t>(values.size())}); }
Variable leaf(const Values& values, const std::string& name = "") {
  Variable variable(tensor(values), true);
  variable.set_name(name);
  return variable;
}
Values values_of(const Tensor& x) { return contiguous(x).to_vector<float>(); }

/// Writes down what is delivered.
class Recorder final : public GradientSink {
 public:
  void deliver(const Variable& leaf, Tensor gradient) override {
    deliveries.emplace_back(leaf.name(), values_of(gradient));
  }
  std::vector<std::pair<std::string, Values>> deliveries;
};

class NodeLog final : public BackwardObserver {
 public:
  explicit NodeLog(std::string label, std::vector<std::string>& log) : label_(std::move(label)), log_(log) {}
  void before(const Node& node) override { log_.push_back(label_ + " before " + node.name()); }
  void after(const Node& node) override { log_.push_back(label_ + " after " + node.name()); }

 private:
  std::string label_;
  std::vector<std::string>& log_;
};

TEST_CASE("a node keeps the values that its function saved and no others") {
  std::weak_ptr<Storage> summand, factor;
  const Variable x(Tensor::from_values<float>({1, 2}, {2}), true);
  const auto build = [&] {
    const Variable first = exp(x), second = affine(x, 2, 1);
    summand = second.data().storage();
    const Variable sum = first + second;
    factor = sum.data().storage();
    return sum * sum;
  };
  const Variable y = build();
  CHECK(summand.expired());
  CHECK_FALSE(factor.expired());
  backward(y, {Tensor::from_values<float>({1, 1}, {2}), nullptr, false});
  CHECK(factor.expired());
  CHECK(x.grad().defined());
}

TEST_CASE("a product and a sum give the textbook gradients") {
  const Variable x = leaf({2, 3}), y = leaf({5, 7});
  backward(x * y + x);
  CHECK(values_of(x.grad()) == Values{6, 8});
  CHECK(values_of(y.grad()) == Values{2, 3});
}

TEST_CASE("a leaf used in many places is delivered once a backward, with the sum of its uses") {
  const Variable w = leaf({3}, "w"), a = leaf({10}, "a");
  Recorder recorder;
  backward((w * a) + (w * w) + w, {.sink = &recorder});
  REQUIRE(recorder.deliveries.size() == 2);
  for (const auto& [name, gradient] : recorder.deliveries) CHECK(gradient == (name == "w" ? Values{17} : Values{3}));
  CHECK_FALSE(w.grad().defined());
}

TEST_CASE("a function may add to what other uses of a leaf have contributed, unless others hold that") {
  const Variable w = leaf({1, 2});
  int taken = 0;
  const auto adding = [&](const Variable& x) {
    return record("adding", clone(x.data()), {x}, [&](BackwardContext& context) -> std::vector<Tensor> {
      Tensor sum = context.take_sum(0);
      if (!sum.defined()) return {context.gradients[0]};
      ++taken;
      binary_inplace(BinaryOp::add, sum, context.gradients[0]);
      return {sum};
    });
  };
  const auto backward_of_both = [&](bool adds_first) {
    const Variable first = adds_first ? adding(w) : affine(w, 3, 0);
    const Variable second = adds_first ? affine(w, 3, 0) : adding(w);
    backward(first + second);  // the second contributes first
  };
  backward_of_both(true);
  CHECK(taken == 1);
  CHECK(values_of(w.grad()) == Values{4, 4});
  w.set_grad({});
  backward_of_both(false);  // nothing has been contributed
  CHECK(taken == 1);
  CHECK(values_of(w.grad()) == Values{4, 4});
  w.set_grad({});
  const Tensor ones = tensor({1, 1});
  backward(adding(w) + w, {.gradient = ones});  // what the sum got first is the seed
  CHECK(taken == 1);
  CHECK(values_of(w.grad()) == Values{2, 2});
  CHECK(values_of(ones) == Values{1, 1});
  w.set_grad({});
  backward(adding(affine(w, 2, 0)));  // not a leaf
  CHECK(taken == 1);
  CHECK(values_of(w.grad()) == Values{2, 2});
}

TEST_CASE("the gradient of a tied table has the bits of its two uses' sum") {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    const auto random = [&](const Shape& shape, std::uint64_t key) {
      const Tensor x = Tensor::empty(shape, dtype);
      fill_normal(x, {key, 1});
      return x;
    };
    const Tensor table = random({50, 24}, 1), of_rows = random({3, 40, 24}, 2), of_table = random({50, 24}, 3);
    Tensor ids = Tensor::empty({3, 40}, DType::f32);
    fill_uniform(ids, {4, 1}, 0, 30);  // some rows are read often, others never
    ids = cast(ids, DType::i64);
    const auto gradient_of = [&](bool has_rows, bool has_table) {
      const Variable w(clone(table), true);
      std::vector<Variable> roots;
      std::vector<Tensor> gradients;
      if (has_rows) roots.push_back(embedding(w, ids, 7)), gradients.push_back(of_rows);
      if (has_table) roots.push_back(affine(w, 3, 0)), gradients.push_back(of_table);
      backward(roots, gradients, nullptr, false);
      return w.grad();
    };
    CHECK(values_of(cast(gradient_of(true, true), DType::f32)) ==
          values_of(cast(castor::add(gradient_of(true, false), gradient_of(false, true)), DType::f32)));
  }
}

TEST_CASE("a gradient hook runs after the delivery, once a backward") {
  const Variable w = leaf({3});
  std::vector<Values> seen;
  w.add_gradient_hook([&](const Variable& variable) { seen.push_back(values_of(variable.grad())); });
  backward(w * w);
  backward(w * w);
  CHECK(seen == std::vector<Values>{{6}, {12}});
}

TEST_CASE("leaves become ready as backward passes their first use, last layer first") {
  const Variable w0 = leaf({2}, "w0"), w1 = leaf({3}, "w1"), w2 = leaf({5}, "w2");
  Recorder recorder;
  backward(((w0 * w0) * w1) * w2, {.sink = &recorder});
  REQUIRE(recorder.deliveries.size() == 3);
  CHECK(recorder.deliveries[0] == std::pair<std::string, Values>{"w2", {12}});
  CHECK(recorder.deliveries[1] == std::pair<std::string, Values>{"w1", {20}});
  CHECK(recorder.deliveries[2] == std::pair<std::string, Values>{"w0", {60}});
}

TEST_CASE("nodes are visited newest first with observers around each, the inner one closest") {
  const Variable x = leaf({1});
  const Variable y = affine(relu(x), 2, 0) * x;
  std::vector<std::string> log;
  NodeLog outer("outer", log), inner("inner", log);
  const BackwardObserverScope outer_scope(outer), inner_scope(inner);
  backward(y);
  CHECK(log == std::vector<std::string>{"outer before binary", "inner before binary", "inner after binary",
                                        "outer after binary", "outer before unary", "inner before unary",
                                        "inner after unary", "outer after unary", "outer before unary",
                                        "inner before unary", "inner after unary", "outer after unary"});
}

TEST_CASE("nothing is recorded under NoGradScope, and an inner scope can turn recording back on") {
  const Variable x = leaf({2});
  {
    const NoGradScope no_grad;
    CHECK_FALSE((x * x).requires_grad());
    CHECK_FALSE(needs_gradient({&x}));
    const NoGradScope grad(true);
    CHECK((x * x).requires_grad());
  }
  CHECK(is_grad_enabled());
  const NoGradScope no_grad;
  const Variable y = x * x;
  CHECK(y.is_leaf());
  CHECK_THROWS_AS(backward(y), InternalError);
}

TEST_CASE("gradients add up over backwards until they are cleared") {
  const Variable x = leaf({2, 3});
  for (int i = 0; i < 3; ++i) backward(x * x);
  CHECK(values_of(x.grad()) == Values{12, 18});
  x.set_grad({});
  backward(affine(x, 5, 0));
  CHECK(values_of(x.grad()) == Values{5, 5});
}

TEST_CASE("a leaf's gradient has bytes of its own, whatever the operation handed on") {
  const Variable x = leaf({2}), y = leaf({3});
  const Tensor seed = tensor({1});
  backward(x + y, {.gradient = seed});
  CHECK(x.grad().storage() != y.grad().storage());
  CHECK(x.grad().storage() != seed.storage());
  CHECK(y.grad().storage() != seed.storage());
}

TEST_CASE("accumulation does not write into a gradient that someone else holds") {
  const Variable x = leaf({2});
  backward(affine(x, 1, 0));
  const Tensor kept = x.grad();
  backward(affine(x, 1, 0));
  CHECK(values_of(kept) == Values{1});
  CHECK(values_of(x.grad()) == Values{2});
}

TEST_CASE("four micro-steps accumulate to the sum of the four gradients in order") {
  const std::vector<Values> batches{{0.1f, 1e8f}, {0.7f, 1.0f}, {1e-3f, -1e8f}, {3.3f, 2.0f}};
  const Variable w = leaf({1.5f, -0.25f});
  Values expected(2, 0.0f);
  for (std::size_t k = 0; k < batches.size(); ++k) {
    const Variable alone = leaf({1.5f, -0.25f});
    backward(silu(alone * Variable(tensor(batches[k]))));
    const Values one = values_of(alone.grad());
    for (std::size_t i = 0; i < 2; ++i) expected[i] = k == 0 ? one[i] : expected[i] + one[i];
    backward(silu(w * Variable(tensor(batches[k]))));
  }
  CHECK(values_of(w.grad()) == expected);
}

TEST_CASE("a walked graph is freed and says so when it is walked again") {
  const Variable x = leaf({2});
  const Variable y = x * x;
  backward(y);
  CHECK_THROWS_WITH_AS(
      backward(y),
      "backward: what node 'binary' saved was freed by an earlier backward; pass retain_graph to walk a graph twice",
      InternalError);
  CHECK(values_of(x.grad()) == Values{4});
}

TEST_CASE("retain_graph keeps what backward needs") {
  const Variable x = leaf({2});
  const Variable y = x * x;
  backward(y, {.retain_graph = true});
  backward(y);
  CHECK(values_of(x.grad()) == Values{8});
}

TEST_CASE("backward frees what the graph saved as it goes") {
  std::weak_ptr<Storage> saved;
  const Variable x = leaf({2, 3});
  Variable y;
  {
    const Variable middle = exp(x);
    saved = middle.data().storage();
    y = middle * middle;
  }
  CHECK_FALSE(saved.expired());
  backward(y);
  CHECK(saved.expired());
}

TEST_CASE("several roots with their own gradients share one walk") {
  const Variable x = leaf({2}, "x"), unused = leaf({1}, "unused");
  const Variable middle = x * x;
  const Variable a = affine(middle, 3, 0), b = affine(middle, 5, 0), c = affine(unused, 7, 0);
  Recorder recorder;
  backward({a, b, c}, {tensor({1}), tensor({10}), Tensor{}}, &recorder);
  REQUIRE(recorder.deliveries.size() == 1);
  CHECK(recorder.deliveries[0] == std::pair<std::string, Values>{"x", {212}});
}

TEST_CASE("a frozen leaf gets no gradient and a graph of frozen leaves is not recorded") {
  const Variable x = leaf({2}), frozen = leaf({3});
  frozen.set_requires_grad(false);
  backward(x * frozen);
  CHECK(values_of(x.grad()) == Values{3});
  CHECK_FALSE(frozen.grad().defined());
  CHECK((frozen * frozen).is_leaf());
  CHECK_THROWS_AS((x * x).set_requires_grad(false), InternalError);
}

TEST_CASE("detach cuts the graph") {
  const Variable x = leaf({3});
  backward((x * x).detach() * x);
  CHECK(values_of(x.grad()) == Values{9});
}

TEST_CASE("the gradient of a broadcast leaf has the leaf's shape") {
  const Variable bias(Tensor::from_values<float>({1, 2}, {2}), true);
  const Variable x(Tensor::from_values<float>({1, 2, 3, 4, 5, 6}, {3, 2}), true);
  backward(x * bias);
  CHECK(bias.grad().shape() == Shape{2});
  CHECK(values_of(bias.grad()) == Values{9, 12});
}

TEST_CASE("backward reads a saved parameter where its bytes are now") {
  const Variable x = leaf({2, 3});
  const Variable w = leaf({10, 20});
  const Variable y = x * w;
  w.data().storage()->drop("given up after forward");
  const auto bytes = std::make_shared<Values>(Values{5, 7});
  w.data().storage()->point_to(bytes->data(), bytes, {}, "gathered for backward");
  backward(y);
  CHECK(values_of(x.grad()) == Values{5, 7});
  CHECK(values_of(w.grad()) == Values{2, 3});
}

TEST_CASE("backward over a parameter without bytes names what happened to it") {
  const Variable x = leaf({2}), w = leaf({10});
  const Variable y = x * w;
  w.data().storage()->drop("given up after forward");
  std::string text;
  try {
    backward(y);
  } catch (const DeviceError& error) {
    text = error.what();
  }
  CHECK(text.find("given up after forward") != std::string::npos);
}

TEST_CASE("an observer can bring a node's parameters back before it runs") {
  class Gather final : public BackwardObserver {
   public:
    explicit Gather(std::shared_ptr<Values> bytes) : bytes_(std::move(bytes)) {}
    void before(const Node& node) override {
      for (const Variable& input : node.inputs()) {
        const auto& storage = input.data().storage();
        if (!storage->has_data()) storage->point_to(bytes_->data(), bytes_, {}, "gathered");
      }
    }

   private:
    std::shared_ptr<Values> bytes_;
  };
  const Variable x = leaf({2}), w = leaf({10});
  const Variable y = x * w;
  w.data().storage()->drop("given up after forward");
  Gather gather(std::make_shared<Values>(Values{10}));
  const BackwardObserverScope scope(gather);
  backward(y);
  CHECK(values_of(x.grad()) == Values{10});
}

TEST_CASE("gradients are row-major and counted as gradients") {
  const Variable x(Tensor::from_values<float>({1, 2, 3, 4, 5, 6}, {2, 3}), true);
  const Tensor seed = Tensor::from_values<float>({1, 2, 3, 4, 5, 6}, {3, 2});
  const std::size_t before = allocator(kCpu).stats().current[static_cast<std::size_t>(Category::gradients)];
  backward(transpose(x, 0, 1), {.gradient = seed});
  CHECK(x.grad().is_contiguous());
  CHECK(values_of(x.grad()) == Values{1, 3, 5, 2, 4, 6});
  CHECK(allocator(kCpu).stats().current[static_cast<std::size_t>(Category::gradients)] > before);
}

TEST_CASE("a chain of a hundred thousand operations is walked and released without recursion") {
  const Variable x = leaf({1});
  {
    Variable y = x;
    for (int i = 0; i < 100000; ++i) y = affine(y, 1, 0);
    backward(y);
    CHECK(values_of(x.grad()) == Values{1});
  }
  Variable y = x;
  for (int i = 0; i < 100000; ++i) y = affine(y, 1, 0);
  y = {};
  CHECK(values_of(x.grad()) == Values{1});
}

TEST_CASE("a wrong gradient of a user's operation is refused with the node's name") {
  const Variable x = leaf({1, 2});
  const Variable wrong_count = record("halve", x.data(), {x}, [](BackwardContext&) { return std::vector<Tensor>{}; });
  CHECK_THROWS_WITH_AS(backward(wrong_count), "backward: node 'halve' has 1 inputs and gave 0 gradients",
                       InternalError);
  const Variable wrong_shape =
      record("halve", x.data(), {x}, [](BackwardContext&) { return std::vector<Tensor>{tensor({1})}; });
  CHECK_THROWS_AS(backward(wrong_shape), InternalError);
}

TEST_CASE("an operation with several results sums what flows into each") {
  const Variable x = leaf({2});
  const auto twice_and_thrice = [](const Variable& input) {
    return record_all("twice_and_thrice", {add(input, input).data(), affine(input, 3, 0).data()}, {input},
                      [](BackwardContext& context) {
                        const float da = context.gradients[0].defined() ? values_of(context.gradients[0])[0] : 0;
                        const float db = context.gradients[1].defined() ? values_of(context.gradients[1])[0] : 0;
                        return std::vector<Tensor>{tensor({2 * da + 3 * db})};
                      });
  };
  auto results = twice_and_thrice(x);
  backward(results[0] * results[0] + results[1]);
  CHECK(values_of(x.grad()) == Values{19});
  x.set_grad({});
  results = twice_and_thrice(x);
  backward(results[1]);
  CHECK(values_of(x.grad()) == Values{3});
}

TEST_CASE("a scope learns which leaves a stretch of code uses, in order of first use") {
  const Variable a = leaf({1}, "a"), b = leaf({2}, "b"), c = leaf({3}, "c");
  const LeafUseScope outer;
  (void)(b * b);
  {
    const LeafUseScope inner;
    const NoGradScope no_grad;
    (void)(a * b);
    REQUIRE(inner.leaves().size() == 2);
    CHECK(inner.leaves()[0].name() == "a");
  }
  (void)affine(c, 1, 0);
  REQUIRE(outer.leaves().size() == 3);
  CHECK(outer.leaves()[0].name() == "b");
  CHECK(outer.leaves()[1].name() == "a");
  CHECK(outer.leaves()[2].name() == "c");
}

TEST_CASE("only floats have gradients, and a leaf's data keeps its shape and dtype") {
  CHECK_THROWS_AS(Variable(Tensor::zeros({2}, DType::i64), true), DTypeError);
  const Variable x = leaf({1, 2});
  CHECK_THROWS_AS(x.set_data(tensor({1, 2, 3})), ShapeError);
  CHECK_THROWS_AS(x.set_data(Tensor::zeros({2}, DType::bf16)), DTypeError);
  x.set_data(tensor({3, 4}));
  CHECK(values_of(x.data()) == Values{3, 4});
  CHECK_THROWS_AS(Variable().data(), InternalError);
}

}  // namespace
}  // namespace castor::autograd
