// Conversions between every pair of dtypes, copies between layouts and devices, fills.
//
// Delicate: the reference rounds with core/base/dtype.h itself (whose own tests compare it with the formats' tables);
// what is tested here is that the kernels convert each element so, in any layout.
#include "core/ops/cast.h"

#include <cmath>
#include <memory>
#include <utility>

#include <doctest/doctest.h>

#include "core/device/backend_cpu.h"
#include "tests/support/op_check.h"

namespace castor {
namespace {

using namespace castor::test;

const std::vector<DType> kAllDTypes = {DType::f32, DType::f16, DType::bf16, DType::f8e4m3, DType::f8e5m2,
                                       DType::f64, DType::i64, DType::i32,  DType::u8,     DType::boolean};

/// The value that conversion through `from` to `to` gives.
double converted(double value, DType from, DType to) {
  return visit_dtype(from, [&](auto source) {
    return visit_dtype(to, [&](auto target) {
      using From = typename decltype(source)::type;
      using To = typename decltype(target)::type;
      return static_cast<double>(load(store<To>(load(store<From>(value)))));
    });
  });
}

}  // namespace

TEST_CASE("a cast converts every dtype to every dtype in every layout") {
  for (const DType to : kAllDTypes) {
    OpCheck check;
    check.op = cat("cast to ", to);
    check.dtypes = kAllDTypes;
    check.slack = 0;
    check.run = [&](const Tensors& in) { return Tensors{cast(in[0], to)}; };
    check.reference = [&](const Arrays& in) {
      Array y(in[0].shape);
      y.dtype = to;
      for (std::int64_t i = 0; i < y.numel(); ++i) y[i] = converted(in[0][i], *in[0].dtype, to);
      return Arrays{y};
    };
    // Integers and u8 hold no negative or large values: stay in 0..100.
    check_op(check, unary_cases(random_shapes(6, 0, 4, 12, 21), 0, 100));
  }
}

TEST_CASE("a cast rounds to nearest even and keeps infinities and NaN") {
  const double inf = HUGE_VAL;
  const Array x({9}, {1.00390625, 1.01171875, 65519, 65520, inf, -inf, std::nan(""), 500, 1e30});
  const auto as = [&](DType dtype) { return to_array(cast(make_tensor(x, DType::f32), dtype)); };
  const Array bf16 = as(DType::bf16), f16 = as(DType::f16), e4m3 = as(DType::f8e4m3), e5m2 = as(DType::f8e5m2);
  CHECK(bf16[0] == 1.0);
  CHECK(bf16[1] == 1.015625);
  CHECK(f16[2] == 65504);
  CHECK(f16[3] == inf);
  CHECK(e4m3[7] == 448);
  CHECK(e4m3[8] == 448);
  CHECK(e5m2[8] == inf);
  for (const Array* array : {&bf16, &f16, &e5m2}) {
    CHECK((*array)[4] == inf);
    CHECK((*array)[5] == -inf);
    CHECK(std::isnan((*array)[6]));
  }
  CHECK(std::isnan(e4m3[6]));
}

TEST_CASE("clone and contiguous give row-major copies with the same bits") {
  for (const DType dtype : kAllDTypes) {
    for (const Layout layout : {Layout::row_major, Layout::permuted, Layout::sliced}) {
      for (const Shape& shape : random_shapes(5, 0, 4, 7, 4)) {
        const Tensor x = make_tensor(random_array(shape, 9, 0, 50), dtype, kCpu, layout);
        const Tensor y = clone(x);
        CHECK(y.is_contiguous());
        CHECK(y.storage() != x.storage());
        check_same_bits(cat("clone ", x), y, x);
        CHECK(contiguous(x).is_contiguous());
        CHECK((contiguous(x).storage() == x.storage()) == x.is_contiguous());
      }
    }
  }
}

TEST_CASE("a cast to the dtype a tensor has is the tensor itself") {
  const Tensor x = Tensor::zeros({3}, DType::bf16);
  CHECK(cast(x, DType::bf16).storage() == x.storage());
}

TEST_CASE("copy_into writes through any strides and converts") {
  const Array values = random_array({4, 3, 5}, 2);
  for (const Layout from : {Layout::row_major, Layout::permuted, Layout::sliced}) {
    for (const Layout to : {Layout::row_major, Layout::permuted, Layout::sliced}) {
      const Tensor x = make_tensor(values, DType::f64, kCpu, from);
      const Tensor y = make_tensor(Array({4, 3, 5}), DType::f32, kCpu, to);
      copy_into(x, y);
      check_close("copy_into", y, values, DType::f32, 1e-7);
    }
  }
  CHECK_THROWS_AS(copy_into(Tensor::zeros({2}, DType::f32), Tensor::zeros({3}, DType::f32)), ShapeError);
}

TEST_CASE("copy_into leaves the gaps of a sliced target alone") {
  const Tensor base = Tensor::zeros({4, 6}, DType::f32);
  copy_into(full({2, 3}, 7, DType::f32), base.narrow(0, 1, 2).narrow(1, 2, 3));
  const Array values = to_array(base);
  double sum = 0;
  for (const double value : values.values) sum += value;
  CHECK(sum == 42);
  CHECK(values.at({1, 2}) == 7);
  CHECK(values.at({0, 2}) == 0);
  CHECK(values.at({1, 5}) == 0);
}

TEST_CASE("reshape is a view where strides allow and a copy elsewhere") {
  const Tensor x = make_tensor(random_array({4, 6}, 8), DType::f32);
  CHECK(reshape(x, {2, 12}).storage() == x.storage());
  const Tensor y = reshape(x.transpose(0, 1), {24});
  CHECK(y.storage() != x.storage());
  const Array a = to_array(x), b = to_array(y);
  for (std::int64_t i = 0; i < 24; ++i) CHECK(b[i] == a.at({i % 4, i / 4}));
  CHECK_THROWS_AS(reshape(x, {5, 5}), ShapeError);
}

TEST_CASE("fill and full set every element of any layout") {
  for (const DType dtype : kAllDTypes) {
    const Tensor x = make_tensor(Array({3, 5}), dtype, kCpu, Layout::sliced);
    fill(x, 1);
    for (const double value : to_array(x).values) CHECK(value == 1);
    const Tensor y = full({2, 0, 3}, 1, dtype);
    CHECK(y.numel() == 0);
    CHECK(to_array(full({}, 1, dtype))[0] == 1);
  }
}

TEST_CASE("copy_across refuses gaps and other shapes and dtypes, whatever the devices") {
  const Tensor x = Tensor::zeros({4, 6}, DType::f32);
  std::vector<Device> devices = test_devices();
  devices.push_back(make_meta({DeviceType::cpu, "", 0}));
  for (const Device device : devices) {
    CAPTURE(device);
    const Tensor y = full({4, 6}, 1, DType::f32, device);
    const auto refused = [](const Tensor& from, const Tensor& to, const char* text) {
      CHECK_THROWS_WITH_AS(copy_across(from, to), doctest::Contains(text), ShapeError);
      CHECK_THROWS_WITH_AS(copy_across(to, from), doctest::Contains(text), ShapeError);
    };
    refused(x.transpose(0, 1), y.reshape({6, 4}), "copy_across: expected two row-major tensors of one shape");
    refused(x.narrow(1, 0, 3), y.narrow(0, 0, 2).reshape({4, 3}), "make them contiguous");
    refused(x, y.reshape({24}), "f32[24] with strides [1]");
    refused(x.reshape({6, 4}), y, "of one shape");
    const Tensor halves = Tensor::zeros({4, 12}, DType::bf16, device).narrow(0, 0, 2).reshape({4, 6});
    CHECK_THROWS_WITH_AS(copy_across(x, halves), doctest::Contains("copy_across: expected two tensors of one dtype"),
                         DTypeError);
    CHECK_THROWS_AS(copy_across(halves, x), DTypeError);
    CHECK_NOTHROW(copy_across(x, y));
  }
}

namespace {

// A device whose memory is the host's, which remembers what host memory it was last copied from and to.
class WatchedBackend final : public CpuBackend {
 public:
  void copy_from_host(void* to, const void* from, std::size_t bytes) override {
    read = from;
    CpuBackend::copy_from_host(to, from, bytes);
  }
  void copy_to_host(void* to, const void* from, std::size_t bytes) override {
    written = to;
    CpuBackend::copy_to_host(to, from, bytes);
  }
  const void *read = nullptr, *written = nullptr;
};

}  // namespace

TEST_CASE("to_device lets a device read and write the CPU's own memory") {
  const Device devices[] = {{DeviceType::cuda, 90}, {DeviceType::cuda, 91}};
  WatchedBackend* backends[2];
  for (int i = 0; i < 2; ++i) {
    auto backend = std::make_unique<WatchedBackend>();
    backends[i] = backend.get();
    install_backend(devices[i], std::move(backend));
  }
  const Tensor x = make_tensor(random_array({3, 4}, 5), DType::f32);
  const Tensor there = to_device(x, devices[0]);
  CHECK(backends[0]->read == x.view().data);
  const Tensor further = to_device(there, devices[1]);
  CHECK(backends[0]->written == backends[1]->read);
  const Tensor back = to_device(further, kCpu);
  CHECK(backends[1]->written == back.view().data);
  check_same_bits("round trip", back, x);
}

TEST_CASE("to_device copies values and meta keeps the shape only") {
  const Tensor x = make_tensor(random_array({3, 4}, 5), DType::f32, kCpu, Layout::permuted);
  CHECK(to_device(x, kCpu).storage() == x.storage());
  const Device meta = make_meta({DeviceType::cpu, "", 0});
  const Tensor y = to_device(x, meta);
  CHECK(y.shape() == x.shape());
  CHECK(y.device() == meta);
  CHECK_THROWS_AS(y.to_vector<float>(), DeviceError);
  CHECK_THROWS_WITH_AS(to_device(y, kCpu), doctest::Contains("meta device"), DeviceError);
}

}  // namespace castor
