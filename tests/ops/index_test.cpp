// The index family: moving ops against plain loops, adding ops against sums in order of position, and what is refused.
#include "core/ops/index.h"

#include <cmath>

#include <doctest/doctest.h>

#include "autograd/ops/index.h"
#include "core/base/parallel.h"
#include "core/ops/cast.h"
#include "core/ops/elementwise.h"
#include "tests/support/op_check.h"

namespace castor {
namespace {

using namespace castor::test;
using autograd::Variable;

const std::vector<DType> kAllFloats = {DType::f32, DType::bf16, DType::f16, DType::f64};

/// Indices in [0, size) of i64 or i32; the same for equal arguments.
Array ids_below(std::int64_t size, const Shape& shape, std::uint64_t seed) {
  Array ids = random_array(shape, seed, 0, static_cast<double>(size));
  for (double& id : ids.values) id = std::floor(id);
  return ids;
}

Operand ids_operand(std::int64_t size, const Shape& shape, DType dtype) {
  return {shape, 0, 1, dtype, ids_below(size, shape, 17).values};
}

Array reference_select(const Array& x, int axis, const Array& ids) {
  Shape shape = x.shape;
  shape[axis] = ids.numel();
  Array y(shape);
  for (std::int64_t i = 0; i < y.numel(); ++i) {
    Shape at = y.index_of(i);
    at[axis] = static_cast<std::int64_t>(ids[at[axis]]);
    y[i] = x.at(at);
  }
  return y;
}

Array reference_gather(const Array& x, int axis, const Array& index) {
  Array y(index.shape);
  for (std::int64_t i = 0; i < y.numel(); ++i) {
    Shape at = y.index_of(i);
    at[axis] = static_cast<std::int64_t>(index[i]);
    y[i] = x.at(at);
  }
  return y;
}

Array reference_scatter_add(const Array& x, int axis, const Array& index, const Array& source) {
  Array y = x;
  for (std::int64_t i = 0; i < index.numel(); ++i) {
    Shape at = index.index_of(i);
    at[axis] = static_cast<std::int64_t>(index[i]);
    y.at(at) += source[i];
  }
  return y;
}

/// A copy of x's elements where f(index in the result) says, else `other`.
template <class F>
Array built(const Shape& shape, F f) {
  Array y(shape);
  for (std::int64_t i = 0; i < y.numel(); ++i) y[i] = f(y.index_of(i));
  return y;
}

std::string text_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing was thrown";
}

}  // namespace

TEST_CASE("index_select moves slices of every dtype along every axis") {
  for (int axis = 0; axis < 3; ++axis) {
    for (const DType id_dtype : {DType::i64, DType::i32}) {
      OpCheck check;
      check.op = cat("index_select along ", axis);
      check.dtypes = {DType::f32, DType::bf16, DType::f64, DType::i64, DType::u8};
      check.any_threads = true;
      check.run = [=](const Tensors& in) { return Tensors{index_select(in[0], axis, in[1])}; };
      check.reference = [=](const Arrays& in) { return Arrays{reference_select(in[0], axis, in[1])}; };
      const auto row = [&](const Shape& x, std::int64_t count) {
        return OpCase{"select", {{x, -9, 9}, ids_operand(x[axis], {count}, id_dtype)}};
      };
      std::vector<OpCase> cases = {row({4, 5, 6}, 7), row({1, 1, 1}, 3), row({3, 4, 33}, 0)};
      if (id_dtype == DType::i64) cases.push_back(row({20, 30, 40}, 30));
      check_op(check, cases);
    }
  }
}

TEST_CASE("embedding gives a row for every id of any shape") {
  OpCheck check;
  check.op = "embedding";
  check.dtypes = kAllFloats;
  check.run = [](const Tensors& in) { return Tensors{embedding(in[0], in[1])}; };
  check.reference = [](const Arrays& in) {
    Shape shape = in[1].shape;
    shape.push_back(in[0].shape[1]);
    return Arrays{built(shape, [&](const Shape& at) {
      Shape id = at;
      id.erase(at.ndim() - 1);
      return in[0].at({static_cast<std::int64_t>(in[1].at(id)), at.back()});
    })};
  };
  for (const Shape& ids : {Shape{}, Shape{5}, Shape{2, 7}, Shape{3, 0}, Shape{2, 1, 4}}) {
    check_op(check, {{"embedding", {{{11, 6}}, ids_operand(11, ids, DType::i64)}}});
  }
}

TEST_CASE("gradients of repeated rows add up in order of position, in f32, and round once") {
  constexpr std::int64_t kRows = 7, kColumns = 700, kCount = 300;
  const Array ids = ids_below(kRows, {kCount}, 3);
  const Tensor id_tensor = make_tensor(ids, DType::i64);
  for (const DType dtype : kAllFloats) {
    const Tensor dy = make_tensor(random_array({kCount, kColumns}, 4), dtype);
    const Array values = to_array(dy);
    Array want({kRows, kColumns});
    for (std::int64_t j = 0; j < kCount; ++j) {
      for (std::int64_t c = 0; c < kColumns; ++c) {
        double& sum = want.at({static_cast<std::int64_t>(ids[j]), c});
        sum += values.at({j, c});
        if (dtype != DType::f64) sum = static_cast<double>(static_cast<float>(sum));
      }
    }
    const Tensor gradient = embedding_backward(dy, id_tensor, kRows);
    check_same_bits(cat("embedding gradient, ", dtype), gradient, make_tensor(want, dtype));
    check_same_bits("the same by index_select", index_select_backward(dy, {kRows, kColumns}, 0, id_tensor), gradient);
    const int threads = num_threads();
    set_num_threads(3);
    check_same_bits("the same with 3 threads", embedding_backward(dy, id_tensor, kRows), gradient);
    set_num_threads(threads);
    const Tensor buffer = make_tensor(random_array({kRows, kColumns}, 5), dtype);
    const Tensor added = add(buffer, gradient);
    embedding_backward_add(dy, id_tensor, buffer);
    check_same_bits("added to a buffer", buffer, added);
  }
}

TEST_CASE("a padding index gets no gradient, and rows nobody read get zeros or stay") {
  const Tensor ids = make_tensor(Array({4}, std::vector<double>{1, 3, 1, 0}), DType::i32);
  const Tensor dy = full({4, 2}, 1.0, DType::f32);
  CHECK(to_array(embedding_backward(dy, ids, 5, 1)).values == std::vector<double>{1, 1, 0, 0, 0, 0, 1, 1, 0, 0});
  const Tensor buffer = full({5, 2}, 10.0, DType::f32);
  embedding_backward_add(dy, ids, buffer, 0);
  CHECK(to_array(buffer).values == std::vector<double>{10, 10, 12, 12, 10, 10, 11, 11, 10, 10});
}

TEST_CASE("gather picks along every axis, with a smaller index") {
  for (int axis = 0; axis < 3; ++axis) {
    OpCheck check;
    check.op = cat("gather along ", axis);
    check.dtypes = {DType::f32, DType::f16, DType::f64, DType::i32, DType::boolean};
    check.any_threads = true;
    check.run = [=](const Tensors& in) { return Tensors{gather(in[0], axis, in[1])}; };
    check.reference = [=](const Arrays& in) { return Arrays{reference_gather(in[0], axis, in[1])}; };
    const auto row = [&](const Shape& x, const Shape& index) {
      return OpCase{"gather", {{x, 0, 9}, ids_operand(x[axis], index, DType::i64)}};
    };
    check_op(check, {row({4, 5, 6}, {4, 5, 6}), row({4, 5, 6}, {2, 3, 1}), row({3, 1, 2}, {0, 1, 2}),
                     row({20, 40, 15}, {20, 40, 15})});
  }
}

TEST_CASE("scatter_add adds along every axis, duplicates in order") {
  for (int axis = 0; axis < 3; ++axis) {
    OpCheck check;
    check.op = cat("scatter_add along ", axis);
    check.dtypes = kAllFloats;
    check.slack = 4;
    check.scale = 1;
    check.any_threads = true;
    check.run = [=](const Tensors& in) { return Tensors{scatter_add(in[0], axis, in[1], in[2])}; };
    check.reference = [=](const Arrays& in) { return Arrays{reference_scatter_add(in[0], axis, in[1], in[2])}; };
    const auto row = [&](const Shape& x, const Shape& index) {
      return OpCase{"scatter_add", {{x}, ids_operand(x[axis], index, DType::i32), {index}}};
    };
    check_op(check, {row({4, 5, 6}, {4, 5, 6}), row({4, 5, 6}, {1, 2, 3}), row({2, 3, 4}, {0, 0, 0}),
                     row({20, 40, 15}, {20, 40, 15})});
  }
}

TEST_CASE("concat joins along every axis, empty parts included") {
  for (int axis = -2; axis < 2; ++axis) {
    OpCheck check;
    check.op = cat("concat along ", axis);
    check.dtypes = {DType::f32, DType::bf16, DType::i64, DType::boolean};
    check.run = [=](const Tensors& in) { return Tensors{concat(in, axis)}; };
    check.reference = [=](const Arrays& in) {
      const int a = axis < 0 ? axis + 2 : axis;
      Shape shape = in[0].shape;
      for (std::size_t k = 1; k < in.size(); ++k) shape[a] += in[k].shape[a];
      return Arrays{built(shape, [&](Shape at) {
        std::size_t k = 0;
        for (; at[a] >= in[k].shape[a]; ++k) at[a] -= in[k].shape[a];
        return in[k].at(at);
      })};
    };
    const bool is_last = axis == -1 || axis == 1;
    const auto part = [&](std::int64_t size) { return Operand{is_last ? Shape{5, size} : Shape{size, 5}, -9, 9}; };
    check_op(check, {{"concat", {part(2), part(0), part(3)}}, {"one", {part(4)}}, {"none", {part(0), part(0)}}});
  }
}

TEST_CASE("split gives views whose concat is the tensor") {
  const Tensor x = make_tensor(random_array({3, 10, 2}, 1), DType::f32);
  const std::vector<std::int64_t> sizes = {4, 0, 6};
  const std::vector<Tensor> parts = split(x, sizes, 1);
  CHECK(parts[0].storage() == x.storage());
  check_same_bits("by sizes", concat(parts, 1), x);
  const std::vector<Tensor> even = split(x, 4, 1);
  CHECK(even.size() == 3);
  CHECK(even.back().size(1) == 2);
  check_same_bits("by size", concat(even, 1), x);
}

TEST_CASE("pad surrounds with a value, and narrow's gradient puts a slice into zeros") {
  OpCheck check;
  check.op = "pad";
  check.dtypes = {DType::f32, DType::bf16, DType::f64, DType::i64};
  check.run = [](const Tensors& in) { return Tensors{pad(in[0], {1, 0, 2}, {0, 3, 1}, 7)}; };
  check.reference = [](const Arrays& in) {
    const Shape& s = in[0].shape;
    return Arrays{built({s[0] + 1, s[1] + 3, s[2] + 3}, [&](const Shape& at) {
      const Shape from{at[0] - 1, at[1], at[2] - 2};
      const bool inside = from[0] >= 0 && from[1] < s[1] && from[2] >= 0 && from[2] < s[2];
      return inside ? in[0].at(from) : 7.0;
    })};
  };
  check_op(check, unary_cases({{2, 3, 4}, {1, 1, 1}, {0, 2, 2}}, -9, 9));

  const Tensor dy = make_tensor(random_array({2, 3}, 1), DType::bf16);
  const Tensor dx = narrow_backward(dy, {2, 8}, 1, 4);
  check_same_bits("inside", dx.narrow(1, 4, 3), dy);
  double outside = 0;
  for (const double value : to_array(dx).values) outside += std::abs(value);
  for (const double value : to_array(dy).values) outside -= std::abs(value);
  CHECK(outside == 0);
}

TEST_CASE("gradients of the index family match central differences") {
  const Tensor ids = make_tensor(ids_below(5, {9}, 1), DType::i64);
  const Tensor index = make_tensor(ids_below(5, {2, 7}, 2), DType::i64);
  const auto check_of = [](const char* name, const std::function<Variable(const std::vector<Variable>&)>& f,
                           const std::vector<OpCase>& cases) {
    GradientCheck check =
        variable_check(name, [f](const std::vector<Variable>& in) { return std::vector<Variable>{f(in)}; });
    check.scale = 1;
    check.slack = 4;
    check_gradient(check, cases);
  };
  const auto one = [](const Shape& shape) { return std::vector<OpCase>{{"one", {{shape}}}}; };
  const auto two = [](const Shape& a, const Shape& b) { return std::vector<OpCase>{{"two", {{a}, {b}}}}; };
  check_of(
      "embedding", [&](const auto& in) { return autograd::embedding(in[0], to_device(index, in[0].device())); },
      one({5, 3}));
  check_of(
      "index_select", [&](const auto& in) { return autograd::index_select(in[0], 1, to_device(ids, in[0].device())); },
      one({3, 5, 4}));
  check_of(
      "gather", [&](const auto& in) { return autograd::gather(in[0], 1, to_device(index, in[0].device())); },
      one({3, 5}));
  check_of(
      "scatter_add",
      [&](const auto& in) { return autograd::scatter_add(in[0], 1, to_device(index, in[0].device()), in[1]); },
      two({3, 5}, {2, 7}));
  check_of(
      "concat",
      [&](const auto& in) {
        return autograd::concat({in[0], in[1]}, -1);
      },
      two({3, 5}, {3, 2}));
  check_of(
      "narrow", [&](const auto& in) { return autograd::narrow(in[0], 0, 1, 2); }, one({4, 3}));
  check_of(
      "pad",
      [&](const auto& in) {
        return autograd::pad(in[0], {1, 0}, {0, 2}, 5);
      },
      one({2, 3}));
  const std::vector<std::int64_t> sizes = {1, 4};
  check_of(
      "one part of a split", [&](const auto& in) { return autograd::split(in[0], sizes, 1)[1]; }, one({2, 5}));
  GradientCheck all =
      variable_check("all parts of a split", [&](const auto& in) { return autograd::split(in[0], sizes, -1); });
  check_gradient(all, one({2, 5}));
}

TEST_CASE("an index outside its axis is named with its position") {
  const Tensor table = Tensor::zeros({10, 4}, DType::f32);
  const auto ids = [](const std::vector<double>& values) {
    return make_tensor(Array({static_cast<std::int64_t>(values.size())}, values), DType::i64);
  };
  const auto says = [](const std::string& text, const char* part) {
    CHECK_MESSAGE(text.find(part) != std::string::npos, text);
  };
  says(text_of([&] { embedding(table, ids({1, 2, 10})); }), "index 10 at position 2 is outside [0, 10)");
  says(text_of([&] { embedding(table, ids({-1})); }), "index -1 at position 0");
  says(text_of([&] {
         embedding_backward(Tensor::zeros({2, 4}, DType::f32), ids({0, 99}), 10);
       }),
       "index 99 at position 1");
  const Tensor index = ids({0, 1, 2, 7}).reshape({2, 2});
  says(text_of([&] { gather(table.narrow(0, 0, 5), 0, index); }), "index 7 at position 3");
  says(text_of([&] {
         scatter_add(table.narrow(0, 0, 5), 0, index, Tensor::zeros({2, 2}, DType::f32));
       }),
       "index 7 at position 3");
  CHECK_THROWS_AS(embedding(table, ids({10})), ShapeError);
}

TEST_CASE("the index family refuses wrong dtypes, shapes and devices") {
  const Tensor x = Tensor::zeros({4, 5}, DType::f32), ids = Tensor::zeros({3}, DType::i64),
               index = Tensor::zeros({4, 3}, DType::i64);
  CHECK_THROWS_AS(index_select(x, 2, ids), ShapeError);
  CHECK_THROWS_AS(index_select(x, 0, index), ShapeError);
  CHECK_THROWS_AS(index_select(x, 0, cast(ids, DType::f32)), DTypeError);
  CHECK_THROWS_AS(embedding(ids, ids), ShapeError);
  CHECK_THROWS_AS(embedding_backward(x, ids, 4), ShapeError);
  CHECK_THROWS_AS(embedding_backward(cast(x.narrow(0, 0, 3), DType::i64), ids, 4), DTypeError);
  CHECK_THROWS_AS(gather(x, 1, ids), ShapeError);
  CHECK_THROWS_AS(gather(x, 1, Tensor::zeros({5, 3}, DType::i64)), ShapeError);
  CHECK_THROWS_AS(scatter_add(x, 1, index, Tensor::zeros({4, 2}, DType::f32)), ShapeError);
  CHECK_THROWS_AS(scatter_add(x, 1, index, Tensor::zeros({4, 3}, DType::f64)), DTypeError);
  CHECK_THROWS_AS(scatter_add(cast(x, DType::i64), 1, index, index), DTypeError);
  CHECK_THROWS_AS(concat({}, 0), ShapeError);
  CHECK_THROWS_AS(concat(std::vector<Tensor>{x, ids}, 0), DTypeError);
  CHECK_THROWS_AS(concat(std::vector<Tensor>{x, Tensor::zeros({4}, DType::f32)}, 0), ShapeError);
  CHECK_THROWS_AS(concat(std::vector<Tensor>{x, Tensor::zeros({4, 4}, DType::f32)}, 0), ShapeError);
  const std::vector<std::int64_t> too_much = {3, 3}, too_little = {2, 1};
  CHECK_THROWS_AS(split(x, too_much, 0), ShapeError);
  CHECK_THROWS_AS(split(x, too_little, 0), ShapeError);
  CHECK_THROWS_AS(split(x, 0, 0), ShapeError);
  CHECK_THROWS_AS(pad(x, {1}, {1}), ShapeError);
  CHECK_THROWS_AS(pad(x, {-1, 0}, {0, 0}), ShapeError);
  CHECK_THROWS_AS(narrow_backward(x, {4, 6}, 1, 2), ShapeError);
  const Device meta = make_meta({DeviceType::cpu, "", 0});
  CHECK_THROWS_AS(embedding(Tensor::empty({4, 5}, DType::f32, meta), ids), DeviceError);
}

}  // namespace castor
