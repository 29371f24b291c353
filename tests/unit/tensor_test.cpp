// Views, storages that move, and the errors a wrong use meets.
#include "core/tensor/tensor.h"

#include <limits>
#include <numeric>

#include <doctest/doctest.h>

#include "core/ops/cast.h"
#include "core/ops/elementwise.h"

using namespace castor;

namespace {

Tensor counting(const Shape& shape) {
  std::vector<float> values(static_cast<std::size_t>(shape.numel()));
  std::iota(values.begin(), values.end(), 0.0f);
  return Tensor::from_values(values, shape);
}

std::vector<float> values_of(const Tensor& x) { return contiguous(x).to_vector<float>(); }

}  // namespace

TEST_CASE("views share bytes and read the right elements") {
  const Tensor x = counting({2, 3, 4});
  CHECK(values_of(x.select(0, 1)) == values_of(x.narrow(0, 1, 1).squeeze(0)));
  CHECK(values_of(x.transpose(1, 2).select(0, 0)) == std::vector<float>{0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11});
  CHECK(values_of(x.permute({2, 0, 1}))[1] == 4);
  CHECK(values_of(x.select(2, -1)) == std::vector<float>{3, 7, 11, 15, 19, 23});
  CHECK(values_of(counting({3, 1}).expand({2, 3, 2})) == std::vector<float>{0, 0, 1, 1, 2, 2, 0, 0, 1, 1, 2, 2});
  unary_inplace(UnaryOp::affine, x.narrow(2, 1, 1), 0, -1);
  CHECK(x.to_vector<float>()[1] == -1);
  CHECK(x.to_vector<float>()[2] == 2);
}

TEST_CASE("reshape views what strides allow and copies the rest") {
  const Tensor x = counting({2, 3, 4});
  CHECK(x.reshape({6, -1}).shape() == Shape{6, 4});
  const Tensor sliced = x.narrow(2, 0, 2);
  CHECK(sliced.reshape({6, 2}).storage() == x.storage());
  CHECK(values_of(sliced.reshape({3, 2, 2})) == std::vector<float>{0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21});
  CHECK_THROWS_AS(sliced.reshape({12}), ShapeError);
  CHECK(values_of(reshape(sliced, {12})) == std::vector<float>{0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21});
  CHECK(values_of(reshape(x.transpose(0, 2), {4, 6})).size() == 24);
  CHECK_THROWS_WITH_AS(x.reshape({5, 5}), "reshape: f32[2,3,4] has 24 elements, shape [5,5] does not", ShapeError);
}

TEST_CASE("reshape works out one size at most and refuses every other negative one") {
  struct Refusal {
    Shape from, to;
    const char* text;
  };
  const Refusal refusals[] = {
      {{2, 3}, {-1, -1}, "expected sizes of at least 0 and at most one -1, got [-1,-1] for f32[2,3]"},
      {{2, 3}, {-2, -3}, "got [-2,-3]"},
      {{2, 3}, {-1, -6}, "got [-1,-6]"},
      {{0, 4}, {-5, 0}, "got [-5,0]"},
      {{0, 4}, {0, -1}, "reshape: the -1 in [0,-1] cannot be worked out beside a size of 0 (f32[0,4]); give the size"},
      {{2, 3}, {0, -1}, "cannot be worked out"},
      {{2, 3}, {4, -1}, "f32[2,3] has 6 elements, shape [4,-1] does not"},
      {{2, 3}, {std::int64_t{1} << 40, std::int64_t{1} << 40, -1}, "overflows"},
  };
  for (const Refusal& refusal : refusals) {
    CAPTURE(refusal.to);
    CHECK_THROWS_WITH_AS(counting(refusal.from).reshape(refusal.to), doctest::Contains(refusal.text), ShapeError);
  }
  CHECK(counting({0, 4}).reshape({-1, 4}).shape() == Shape{0, 4});
  CHECK(counting({0, 4}).reshape({3, -1}).shape() == Shape{3, 0});
  CHECK(counting({2, 3}).reshape({-1}).shape() == Shape{6});
}

TEST_CASE("as_strided stays between the first and the last byte of its storage") {
  const Tensor x = counting({6}), tail = x.narrow(0, 4, 2);
  CHECK(values_of(x.as_strided({3}, {-2}, 5)) == std::vector<float>{5, 3, 1});
  CHECK(values_of(tail.as_strided({2, 2}, {-3, 1}, -1)) == std::vector<float>{3, 4, 0, 1});
  CHECK(x.as_strided({0, 3}, {-9, -9}, 0).numel() == 0);
  const std::int64_t huge = std::int64_t{1} << 62;
  struct Refusal {
    Shape shape, strides;
    std::int64_t offset;
    const char* text;
  };
  const Refusal refusals[] = {
      {{2}, {-1}, 0, "as_strided: shape [2] with strides [-1] and offset 0 reaches elements -1 to 0 of a storage of 6"},
      {{2, 2}, {4, -1}, 0, "elements -1 to 4"},
      {{1}, {1}, -1, "elements -1 to -1"},
      {{2}, {6}, 0, "elements 0 to 6"},
      {{5}, {huge}, 0, "overflow"},
      {{5}, {-huge}, 0, "overflow"},
      {{3, 3}, {huge / 2, huge / 2}, huge, "overflow"},
      {{-2}, {1}, 0, "sizes must not be negative, got [-2]"},
  };
  for (const Refusal& refusal : refusals) {
    CAPTURE(cat(refusal.shape, " ", refusal.strides));
    CHECK_THROWS_WITH_AS(x.as_strided(refusal.shape, refusal.strides, refusal.offset), doctest::Contains(refusal.text),
                         ShapeError);
  }
  CHECK_THROWS_AS(tail.as_strided({1}, {1}, std::numeric_limits<std::int64_t>::max()), ShapeError);
}

TEST_CASE("a tensor whose bytes overflow is refused on every device") {
  for (const Device device : {kCpu, make_meta({})}) {
    CAPTURE(device);
    for (const Shape& shape :
         {Shape{std::int64_t{1} << 61}, Shape{std::int64_t{1} << 60}, Shape{1 << 30, std::int64_t{1} << 31}}) {
      CHECK_THROWS_WITH_AS(Tensor::empty(shape, DType::f64, device),
                           doctest::Contains(cat("empty: the bytes of f64", shape, " overflow").c_str()), ShapeError);
    }
  }
}

TEST_CASE("empty and zero-dimensional tensors are ordinary") {
  const Tensor none = Tensor::empty({0, 3}, DType::f32);
  CHECK(none.numel() == 0);
  CHECK(none.to_vector<float>().empty());
  CHECK(reshape(none, {3, 0}).shape() == Shape{3, 0});
  const Tensor scalar = full({}, 2.5, DType::bf16);
  CHECK(scalar.ndim() == 0);
  CHECK(scalar.item() == 2.5);
}

TEST_CASE("a storage can be dropped and pointed elsewhere, and every view follows") {
  const Tensor x = counting({4});
  const Tensor tail = x.narrow(0, 2, 2);
  auto bytes = std::make_shared<std::vector<float>>(std::vector<float>{10, 11, 12, 13});
  x.storage()->point_to(bytes->data(), bytes, {}, "gathered");
  CHECK(values_of(tail) == std::vector<float>{12, 13});
  x.storage()->drop("released");
  CHECK(bytes.use_count() == 1);
  CHECK_THROWS_WITH_AS(tail.view(), doctest::Contains("history: gathered, released."), DeviceError);
  x.storage()->allocate("materialised");
  CHECK(tail.view().data != nullptr);
}

TEST_CASE("meta tensors have shapes and no values") {
  const Device meta = make_meta({});
  const Tensor x = Tensor::empty({3, 4}, DType::f32, meta);
  const Tensor y = add(x, x.select(0, 0));
  CHECK(y.shape() == Shape{3, 4});
  CHECK(y.device() == meta);
  CHECK_THROWS_WITH_AS(y.to_vector<float>(), doctest::Contains("meta device"), DeviceError);
  CHECK_THROWS_AS(add(x, counting({3, 4})), DeviceError);
}

TEST_CASE("wrong shapes, dtypes and axes end in typed errors that show both sides") {
  const Tensor a = counting({2, 3}), b = counting({4, 3});
  CHECK_THROWS_WITH_AS(add(a, b), "binary: shapes [2,3] and [4,3] do not broadcast", ShapeError);
  CHECK_THROWS_AS(add(a, cast(a, DType::f64)), DTypeError);
  CHECK_THROWS_AS(a.select(2, 0), ShapeError);
  CHECK_THROWS_AS(a.narrow(0, 1, 2), ShapeError);
  CHECK_THROWS_AS(a.permute({0, 0}), ShapeError);
  CHECK_THROWS_AS(a.data<double>(), DTypeError);
  CHECK_THROWS_AS(Tensor::empty({-1}, DType::f32), ShapeError);
  CHECK_THROWS_AS(Tensor::empty({std::int64_t{1} << 40, std::int64_t{1} << 40}, DType::f32), ShapeError);
  CHECK_THROWS_AS(Tensor::empty({0, std::int64_t{1} << 40, std::int64_t{1} << 40}, DType::f32), ShapeError);
  CHECK_THROWS_AS(Tensor::empty({1}, DType::f32, {DeviceType::cuda, 0}), DeviceError);
}
