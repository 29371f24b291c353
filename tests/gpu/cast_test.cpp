// Copies and conversions on the GPU: all pairs of dtypes in all layouts against the CPU's bytes, moves between devices,
// and tensors with more elements than 32 bits count.
//
// A float outside an integer's range converts to nothing defined, so those pairs get numbers that fit.
#include "core/ops/cast.h"

#include <algorithm>

#include <doctest/doctest.h>

#include "core/device/caching_allocator.h"
#include "tests/gpu/same_bits.h"

using namespace castor;
using namespace castor::test;

namespace {

constexpr int kDTypeCount = static_cast<int>(DType::boolean) + 1;

Values values_for(DType from, DType to) {
  if (!is_floating(from) || is_floating(to) || to == DType::boolean) return {true, -300, 300};
  if (to == DType::u8) return {false, 0, 255};
  return {false, -100, 100};
}

}  // namespace

TEST_CASE("every pair of dtypes converts to the CPU's bits in every layout") {
  for (int i = 0; i < kDTypeCount; ++i) {
    for (int j = 0; j < kDTypeCount; ++j) {
      const auto from = static_cast<DType>(i), to = static_cast<DType>(j);
      for (const Layout layout : kLayouts) {
        for (const Shape& shape : all_shapes()) {
          const Twin x = make_twin(shape, from, values_for(from, to), layout);
          const std::string what = cat("cast ", name_of(from, shape, layout), " to ", to);
          check_same(what, {i == j ? clone(x.cpu) : cast(x.cpu, to), i == j ? clone(x.gpu) : cast(x.gpu, to)});
          // Into a layout of its own: what lies between the elements stays as it was.
          const Twin y = make_twin(shape, to, {false, 0, 1}, layout, 2);
          copy_into(x.cpu, y.cpu);
          copy_into(x.gpu, y.gpu);
          check_same(what + " in its layout", y);
        }
      }
    }
  }
}

TEST_CASE("filling and moving between devices keep every bit") {
  for (int i = 0; i < kDTypeCount; ++i) {
    const auto dtype = static_cast<DType>(i);
    for (const Layout layout : kLayouts) {
      const Twin x = make_twin({13, 77}, dtype, {true}, layout);
      check_same(cat("to_device ", name_of(dtype, {13, 77}, layout)), {to_device(x.gpu, kCpu), to_device(x.cpu, kGpu)});
      fill(x.cpu, 3);
      fill(x.gpu, 3);
      check_same(cat("fill ", name_of(dtype, {13, 77}, layout)), x);
    }
  }
  CHECK(full({2, 3}, 2.5, DType::bf16, kGpu).select(0, 1).select(0, 2).item() == 2.5);
  CHECK(Tensor::zeros({1000}, DType::f32, kGpu).to_vector<float>() == std::vector<float>(1000, 0.0f));
}

TEST_CASE("more than 2^31 elements are reached, word by word and one by one") {
  const std::int64_t count = (std::int64_t{1} << 31) + 5;
  if (backend(kGpu).total_bytes() < (std::size_t{8} << 30)) {
    MESSAGE("not run: the device has less than 8 GiB");
    return;
  }
  const Tensor bytes = Tensor::empty({count + 1}, DType::u8, kGpu);
  fill(bytes, 3);
  fill(bytes.narrow(0, 1, count), 7);
  const std::vector<std::uint8_t> values = bytes.to_vector<std::uint8_t>();
  CHECK(values.front() == 3);
  CHECK(std::all_of(values.begin() + 1, values.end(), [](std::uint8_t value) { return value == 7; }));
  allocator(kGpu).release_cached();
}
