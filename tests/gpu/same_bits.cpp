// Random numbers come from Philox by element, so that a case can be repeated alone.
#include "tests/gpu/same_bits.h"

#include <cmath>

#include <doctest/doctest.h>

#include "core/base/philox.h"
#include "core/device/backend.h"
#include "core/ops/cast.h"
#include "tests/support/long_run.h"

namespace castor::test {
namespace {

template <class T>
T element(const Values& values, std::uint64_t position, std::uint64_t seed) {
  const Philox4 random = philox({seed, 7}, position);
  const std::uint64_t bits = (std::uint64_t{random.word[1]} << 32) | random.word[2];
  if constexpr (std::is_same_v<T, bool>) return (bits & 1) != 0;
  if (values.any_bits && (std::is_integral_v<T> || position % 2 == 0)) {
    T any;
    std::memcpy(&any, &bits, sizeof(any));
    return any;
  }
  const double unit = static_cast<double>(random.word[0]) / 4294967296.0;
  return store<T>(values.low + (values.high - values.low) * unit);
}

Tensor random_tensor(const Shape& shape, DType dtype, const Values& values, std::uint64_t seed) {
  Tensor result = Tensor::empty(shape, dtype);
  visit_dtype(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    T* const data = result.data<T>();
    for (std::int64_t i = 0; i < result.numel(); ++i) data[i] = element<T>(values, static_cast<std::uint64_t>(i), seed);
  });
  return result;
}

// The bits of a float as an integer that grows with it: neighbours differ by 1.
template <class T>
std::int64_t ordered(T x) {
  if constexpr (sizeof(T) == 8) {
    const auto bits = detail::bit_cast<std::int64_t>(x);
    return bits < 0 ? static_cast<std::int64_t>(0x8000000000000000ull) - bits : bits;
  } else if constexpr (sizeof(T) == 4) {
    const auto bits = detail::bit_cast<std::int32_t>(x);
    return bits < 0 ? -std::int64_t{bits & 0x7FFFFFFF} : bits;
  } else if constexpr (sizeof(T) == 2) {
    const auto bits = detail::bit_cast<std::uint16_t>(x);
    return (bits & 0x8000u) != 0 ? -std::int64_t{bits & 0x7FFFu} : bits;
  } else {
    return detail::bit_cast<std::uint8_t>(x);
  }
}

template <class T>
bool is_same(T cpu, T gpu, const Tolerance& tolerance) {
  if (std::memcmp(&cpu, &gpu, sizeof(T)) == 0) return true;
  if constexpr (std::is_integral_v<T>) {
    return false;
  } else {
    const auto a = static_cast<double>(load(cpu)), b = static_cast<double>(load(gpu));
    if (a != a || b != b) return a != a && b != b;
    if (tolerance.absolute > 0 && std::abs(a - b) <= tolerance.absolute * (1 + std::abs(a))) return true;
    return tolerance.ulps > 0 && std::abs(ordered(cpu) - ordered(gpu)) <= tolerance.ulps;
  }
}

template <class T>
std::string difference(const std::vector<char>& cpu, const std::vector<char>& gpu, const Tolerance& tolerance) {
  for (std::size_t i = 0; i + sizeof(T) <= cpu.size(); i += sizeof(T)) {
    T a, b;
    std::memcpy(&a, cpu.data() + i, sizeof(T));
    std::memcpy(&b, gpu.data() + i, sizeof(T));
    if (!is_same(a, b, tolerance)) {
      std::ostringstream text;
      text.precision(17);
      text << "element " << i / sizeof(T) << " of the storage: cpu " << +load(a) << ", gpu " << +load(b);
      return text.str();
    }
  }
  return {};
}

}  // namespace

Twin map(const Twin& twin, const std::function<Tensor(const Tensor&)>& view) {
  return {view(twin.cpu), view(twin.gpu)};
}

Twin make_twin(const Shape& shape, DType dtype, const Values& values, Layout layout, std::uint64_t seed) {
  Shape base = shape;
  const int last = shape.ndim() - 1;
  if (layout == Layout::permuted) {
    for (int i = 0; i <= last; ++i) base[i] = shape[last - i];
  } else if (layout == Layout::sliced && last >= 0) {
    base[last] += 3;
  } else if (layout == Layout::stepped && last >= 0) {
    base[last] *= 2;
  }
  const Tensor cpu = random_tensor(base, dtype, values, seed);
  return map({cpu, to_device(cpu, kGpu)}, [&](const Tensor& x) {
    if (last < 0) return x;
    if (layout == Layout::permuted) {
      Shape axes = shape;
      for (int i = 0; i <= last; ++i) axes[i] = last - i;
      return x.permute(axes);
    }
    if (layout == Layout::sliced) return x.narrow(last, 1, shape[last]);
    if (layout == Layout::stepped) {
      Shape strides = x.strides();
      strides[last] = 2;
      return x.as_strided(shape, strides, 0);
    }
    return x;
  });
}

void check_same(const std::string& what, const Twin& twin, const Tolerance& tolerance) {
  const Tensor &cpu = twin.cpu, &gpu = twin.gpu;
  if (!(cpu.shape() == gpu.shape()) || cpu.dtype() != gpu.dtype() || !(cpu.strides() == gpu.strides()) ||
      !gpu.device().is_cuda()) {
    FAIL_CHECK(what << ": cpu " << cpu << " with strides " << cpu.strides() << ", gpu " << gpu << " with strides "
                    << gpu.strides());
    return;
  }
  const std::size_t bytes = cpu.storage()->bytes();
  std::vector<char> of_cpu(bytes), of_gpu(bytes);
  if (bytes != 0) {
    std::memcpy(of_cpu.data(), cpu.storage()->data(), bytes);
    backend(gpu.device()).copy_to_host(of_gpu.data(), gpu.storage()->data(), bytes);
  }
  const std::string found = visit_dtype(
      cpu.dtype(), [&](auto tag) { return difference<typename decltype(tag)::type>(of_cpu, of_gpu, tolerance); });
  CHECK_MESSAGE(found.empty(), what << ": " << found);
}

std::string name_of(DType dtype, const Shape& shape, Layout layout) {
  constexpr const char* kNames[] = {"dense", "permuted", "sliced", "stepped"};
  return cat(dtype, ' ', shape, ' ', kNames[static_cast<int>(layout)]);
}

std::vector<Shape> all_shapes() {
  if (short_run()) return {{}, {0, 3}, {259}, {7, 33}, {2, 1, 3, 2, 2, 1, 2, 3}};
  return {{}, {0, 3}, {1}, {5}, {259}, {7, 33}, {16, 64}, {3, 4, 5, 6}, {2, 1, 3, 2, 2, 1, 2, 3}, {67, 1031}};
}

}  // namespace castor::test
