// Operands, layouts, comparison and the two table runners.
#include "tests/support/op_check.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include <doctest/doctest.h>

#include "core/base/parallel.h"
#include "core/base/philox.h"

namespace castor::test {
namespace {

std::vector<Device>& devices() {
  static std::vector<Device> list = {kCpu};
  return list;
}

Device meta_device() {
  static const Device device = make_meta({DeviceType::cpu, "", 0});
  return device;
}

const char* layout_name(Layout layout) {
  switch (layout) {
    case Layout::row_major:
      return "row-major";
    case Layout::permuted:
      return "permuted";
    case Layout::sliced:
      return "sliced";
  }
  return "";
}

/// The layout of operand i in variant v: all equal for 0..2, mixed for 3.
constexpr int kVariantCount = 4;
Layout variant_layout(int variant, std::size_t operand) {
  return static_cast<Layout>(variant < 3 ? variant : static_cast<int>((operand + 1) % 3));
}
std::string variant_name(int variant) {
  return variant < 3 ? layout_name(static_cast<Layout>(variant)) : "mixed layouts";
}

/// A dense buffer and a view of it in the given layout. The buffer covers the view.
struct Laid {
  Tensor base;
  Tensor view;
};

Laid lay_out(const Shape& shape, DType dtype, Device device, Layout layout) {
  const int n = shape.ndim();
  if (layout == Layout::row_major || n == 0) {
    const Tensor base = Tensor::empty(shape, dtype, device);
    return {base, base};
  }
  if (layout == Layout::permuted) {
    Shape reversed, axes;
    for (int i = n - 1; i >= 0; --i) {
      reversed.push_back(shape[i]);
      axes.push_back(i);
    }
    const Tensor base = Tensor::empty(reversed, dtype, device);
    return {base, base.permute(axes)};
  }
  // Every axis of the buffer has 3 more elements and the view starts at 1; the last axis takes every second element.
  Shape sizes = shape;
  for (int i = 0; i < n; ++i) sizes[i] = (i == n - 1 ? 2 * shape[i] : shape[i]) + 3;
  const Tensor base = Tensor::empty(sizes, dtype, device);
  Shape strides = sizes.contiguous_strides();
  std::int64_t offset = 0;
  for (int i = 0; i < n; ++i) offset += strides[i];
  strides[n - 1] *= 2;
  return {base, base.as_strided(shape, strides, offset)};
}

/// Calls f(position in row-major order, element offset) for all elements of a strided tensor.
template <class F>
void for_each_offset(const Shape& shape, const Shape& strides, std::int64_t offset, F&& f) {
  const std::int64_t count = shape.numel();
  for (std::int64_t i = 0; i < count; ++i) {
    std::int64_t rest = i, at = offset;
    for (int axis = shape.ndim() - 1; axis >= 0; --axis) {
      at += rest % shape[axis] * strides[axis];
      rest /= shape[axis];
    }
    f(i, at);
  }
}

std::vector<unsigned char> bytes_of(const Tensor& tensor) {
  // Everything from the first to the last element, gaps included.
  std::int64_t last = tensor.numel() == 0 ? -1 : 0;
  for (int i = 0; i < tensor.ndim() && last >= 0; ++i) last += (tensor.shape()[i] - 1) * tensor.strides()[i];
  const Tensor span(tensor.storage(), Shape{last + 1}, Shape{1}, tensor.offset(), tensor.dtype());
  std::vector<unsigned char> bytes(static_cast<std::size_t>(last + 1) * dtype_size(tensor.dtype()));
  if (!bytes.empty()) span.copy_to_host(bytes.data(), bytes.size());
  return bytes;
}

std::uint64_t case_seed(const OpCase& row, std::size_t operand) {
  std::uint64_t seed = hash_combine(hash_text(row.name), operand);
  for (const std::int64_t size : row.operands[operand].shape)
    seed = hash_combine(seed, static_cast<std::uint64_t>(size));
  return seed;
}

Array operand_values(const OpCase& row, std::size_t i) {
  const Operand& operand = row.operands[i];
  if (!operand.values.empty()) return Array(operand.shape, operand.values);
  return random_array(operand.shape, case_seed(row, i), operand.low, operand.high);
}

std::string case_text(const OpCase& row) {
  std::string text = row.name;
  for (const Operand& operand : row.operands) text += cat(" ", operand.shape);
  return text;
}

struct Inputs {
  Tensors tensors;
  Arrays rounded;
};

Inputs make_inputs(const OpCase& row, DType dtype, Device device, int variant) {
  Inputs inputs;
  for (std::size_t i = 0; i < row.operands.size(); ++i) {
    const DType own = row.operands[i].dtype.value_or(dtype);
    inputs.tensors.push_back(make_tensor(operand_values(row, i), own, device, variant_layout(variant, i)));
    inputs.rounded.push_back(to_array(inputs.tensors.back()));
  }
  return inputs;
}

void check_meta(const std::string& what, const OpCheck& check, const OpCase& row, DType dtype, int variant,
                const Tensors& real) {
  Tensors inputs;
  for (std::size_t i = 0; i < row.operands.size(); ++i) {
    const Operand& operand = row.operands[i];
    inputs.push_back(
        lay_out(operand.shape, operand.dtype.value_or(dtype), meta_device(), variant_layout(variant, i)).view);
  }
  const Tensors results = check.run(inputs);
  REQUIRE_MESSAGE(results.size() == real.size(), what, ", meta: ", results.size(), " results, ", real.size(),
                  " on the device");
  for (std::size_t i = 0; i < results.size(); ++i) {
    const bool same = results[i].shape() == real[i].shape() && results[i].dtype() == real[i].dtype() &&
                      results[i].strides() == real[i].strides() && results[i].device() == meta_device();
    CHECK_MESSAGE(same, what, ", result ", i, " on meta: ", results[i].describe(), " strides ",
                  cat(results[i].strides()), " on ", to_string(results[i].device()), "; on the device ",
                  real[i].describe(), " strides ", cat(real[i].strides()));
  }
}

void check_case(const OpCheck& check, const OpCase& row, Device device, DType dtype, int variant) {
  const std::string what =
      cat(check.op, " | ", case_text(row), " | ", dtype, " | ", variant_name(variant), " | ", device);
  INFO(what);
  const Inputs inputs = make_inputs(row, dtype, device, variant);
  std::vector<std::vector<unsigned char>> before;
  for (const Tensor& tensor : inputs.tensors) before.push_back(bytes_of(tensor));
  const Tensors got = check.run(inputs.tensors);
  const Arrays want = check.reference(inputs.rounded);
  REQUIRE_MESSAGE(got.size() == want.size(), what, ": ", got.size(), " results, the reference has ", want.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    const DType own = want[i].dtype.value_or(dtype);
    check_close(cat(what, " | result ", i), got[i], want[i], own,
                std::max(tolerance(own), own == dtype ? 0.0 : tolerance(DType::f32)) * check.slack, check.scale);
  }
  for (std::size_t i = 0; i < inputs.tensors.size(); ++i) {
    CHECK_MESSAGE(bytes_of(inputs.tensors[i]) == before[i], what, ": operand ", i, " was written to");
  }
  if (check.any_threads) {
    const int threads = num_threads();
    set_num_threads(3);
    const Tensors again = check.run(inputs.tensors);
    set_num_threads(threads);
    for (std::size_t i = 0; i < got.size(); ++i)
      check_same_bits(cat(what, " | result ", i, " with 3 threads"), again[i], got[i]);
  }
  if (check.on_meta) check_meta(what, check, row, dtype, variant, got);
}

}  // namespace

std::int64_t Array::flat(const Shape& index) const {
  std::int64_t position = 0;
  for (int i = 0; i < shape.ndim(); ++i) position = position * shape[i] + index[i];
  return position;
}

Shape Array::index_of(std::int64_t position) const {
  Shape index = shape;
  for (int i = shape.ndim() - 1; i >= 0; --i) {
    index[i] = position % shape[i];
    position /= shape[i];
  }
  return index;
}

Array Array::broadcast_to(const Shape& wanted) const {
  Array result(wanted);
  const int skipped = wanted.ndim() - shape.ndim();
  for (std::int64_t i = 0; i < result.numel(); ++i) {
    const Shape index = result.index_of(i);
    std::int64_t position = 0;
    for (int axis = 0; axis < shape.ndim(); ++axis) {
      position = position * shape[axis] + (shape[axis] == 1 ? 0 : index[axis + skipped]);
    }
    result[i] = values[static_cast<std::size_t>(position)];
  }
  return result;
}

std::vector<Device> test_devices() { return devices(); }
void set_test_devices(std::vector<Device> list) { devices() = std::move(list); }

double tolerance(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return 1e-12;
    case DType::f32:
      return 2e-6;
    case DType::f16:
      return 1e-3;
    case DType::bf16:
      return 8e-3;
    case DType::f8e4m3:
      return 0.125;
    case DType::f8e5m2:
      return 0.25;
    default:
      return 0;
  }
}

std::vector<Shape> random_shapes(int count, int min_dims, int max_dims, std::int64_t max_size, std::uint64_t seed) {
  std::vector<Shape> shapes;
  if (min_dims == 0) shapes.push_back({});
  const int few = std::max(min_dims, 1);
  Shape empty, ones;
  for (int i = 0; i < std::max(few, std::min(2, max_dims)); ++i) {
    empty.push_back(i == 0 ? 0 : 3);
    ones.push_back(1);
  }
  shapes.push_back(empty);
  shapes.push_back(ones);
  for (std::uint64_t block = 0; shapes.size() < static_cast<std::size_t>(count); ++block) {
    const Philox4 words[2] = {philox({seed, 1}, 2 * block), philox({seed, 1}, 2 * block + 1)};
    const int dims = few + static_cast<int>(words[0].word[0] % static_cast<std::uint32_t>(max_dims - few + 1));
    Shape shape;
    for (int i = 0; i < dims; ++i) {
      const std::uint32_t word = words[(i + 1) / 4 % 2].word[(i + 1) % 4];
      shape.push_back(1 + static_cast<std::int64_t>(word % static_cast<std::uint32_t>(max_size)));
    }
    shapes.push_back(shape);
  }
  return shapes;
}

std::vector<OpCase> unary_cases(const std::vector<Shape>& shapes, double low, double high) {
  std::vector<OpCase> cases;
  for (const Shape& shape : shapes) cases.push_back({"random", {{shape, low, high}}});
  return cases;
}

Array random_array(const Shape& shape, std::uint64_t seed, double low, double high) {
  Array array(shape);
  for (std::int64_t i = 0; i < array.numel(); ++i) {
    const Philox4 random = philox({seed, 0}, static_cast<std::uint64_t>(i));
    const double unit = static_cast<double>((std::uint64_t{random.word[0]} << 21) ^ random.word[1]) * 0x1p-53;
    array[i] = low + (high - low) * unit;
  }
  return array;
}

Tensor make_tensor(const Array& array, DType dtype, Device device, Layout layout) {
  const Laid laid = lay_out(array.shape, dtype, device, layout);
  visit_dtype(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    std::vector<unsigned char> bytes(static_cast<std::size_t>(laid.base.numel()) * sizeof(T),
                                     std::is_same_v<T, bool> ? 0x01 : 0xFF);
    for_each_offset(array.shape, laid.view.strides(), laid.view.offset(), [&](std::int64_t i, std::int64_t at) {
      const T value = store<T>(array[i]);
      std::memcpy(bytes.data() + static_cast<std::size_t>(at) * sizeof(T), &value, sizeof(T));
    });
    laid.base.copy_from_host(bytes.data(), bytes.size());
  });
  return laid.view;
}

Array to_array(const Tensor& tensor) {
  const std::vector<unsigned char> bytes = bytes_of(tensor);
  Array array(tensor.shape());
  array.dtype = tensor.dtype();
  visit_dtype(tensor.dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    for_each_offset(tensor.shape(), tensor.strides(), 0, [&](std::int64_t i, std::int64_t at) {
      T value;
      std::memcpy(&value, bytes.data() + static_cast<std::size_t>(at) * sizeof(T), sizeof(T));
      array[i] = static_cast<double>(load(value));
    });
  });
  return array;
}

void check_close(const std::string& what, const Tensor& got, const Array& want, DType dtype, double relative_tolerance,
                 double scale) {
  REQUIRE_MESSAGE(got.defined(), what, ": the result is undefined");
  REQUIRE_MESSAGE((got.shape() == want.shape && got.dtype() == dtype), what, ": got ", got.describe(), ", expected ",
                  cat(dtype, want.shape));
  const Array values = to_array(got);
  double mean = 0;
  std::int64_t finite = 0;
  for (const double value : want.values) {
    if (std::isfinite(value)) mean += std::abs(value), ++finite;
  }
  mean /= static_cast<double>(std::max<std::int64_t>(finite, 1));
  // Below the normal range a format has an absolute error instead.
  const double floor = dtype == DType::f16 ? 0x1p-24 : dtype == DType::f64 ? 1e-300 : 1e-40;
  const double largest = dtype == DType::f16      ? 65520
                         : dtype == DType::f8e5m2 ? 61440
                                                  : std::numeric_limits<double>::infinity();
  double worst = 0;
  std::int64_t worst_at = -1, wrong = 0;
  for (std::int64_t i = 0; i < want.numel(); ++i) {
    const double a = values[i], b = want[i];
    const double allowed = relative_tolerance * std::max({std::abs(b), mean, scale}) + floor;
    double excess = 0;
    if (std::isnan(a) || std::isnan(b)) {
      excess = std::isnan(a) && std::isnan(b) ? 0 : std::numeric_limits<double>::infinity();
    } else if (std::isinf(a) || std::isinf(b)) {
      const bool overflow = std::isinf(a) && std::abs(b) * (1 + relative_tolerance) >= largest && (a > 0) == (b > 0);
      excess = a == b || overflow ? 0 : std::numeric_limits<double>::infinity();
    } else if (is_floating(dtype)) {
      excess = std::abs(a - b) / allowed;
    } else {
      excess = a == b ? 0 : std::numeric_limits<double>::infinity();
    }
    if (excess > 1) ++wrong;
    if (excess > worst || worst_at < 0) worst = excess, worst_at = i;
  }
  CHECK_MESSAGE(wrong == 0, what, ": ", wrong, " of ", want.numel(), " elements are wrong; the worst is at ",
                cat(want.index_of(worst_at)), ": got ", values[worst_at], ", expected ", want[worst_at], " (", worst,
                " times the tolerance ", relative_tolerance, ")");
}

void check_same_bits(const std::string& what, const Tensor& got, const Tensor& want) {
  REQUIRE_MESSAGE((got.shape() == want.shape() && got.dtype() == want.dtype()), what, ": got ", got.describe(),
                  ", expected ", want.describe());
  const std::vector<unsigned char> a = bytes_of(got), b = bytes_of(want);
  const std::size_t size = dtype_size(got.dtype());
  std::int64_t wrong_at = -1, wrong = 0;
  std::vector<std::int64_t> offsets(static_cast<std::size_t>(got.numel()));
  for_each_offset(want.shape(), want.strides(), 0,
                  [&](std::int64_t i, std::int64_t at) { offsets[static_cast<std::size_t>(i)] = at; });
  for_each_offset(got.shape(), got.strides(), 0, [&](std::int64_t i, std::int64_t at) {
    const std::size_t other = static_cast<std::size_t>(offsets[static_cast<std::size_t>(i)]);
    if (std::memcmp(a.data() + static_cast<std::size_t>(at) * size, b.data() + other * size, size) == 0) return;
    if (wrong_at < 0) wrong_at = i;
    ++wrong;
  });
  if (wrong == 0) {
    CHECK(wrong == 0);
    return;
  }
  const Array x = to_array(got), y = to_array(want);
  CHECK_MESSAGE(wrong == 0, what, ": ", wrong, " of ", got.numel(), " elements differ in bits; the first is at ",
                cat(x.index_of(wrong_at)), ": got ", cat(std::hexfloat, x[wrong_at]), ", expected ",
                cat(std::hexfloat, y[wrong_at]));
}

void check_op(const OpCheck& check, const std::vector<OpCase>& cases) {
  for (const Device device : test_devices()) {
    for (const OpCase& row : cases) {
      for (const DType dtype : check.dtypes) {
        for (int variant = 0; variant < (check.strided ? kVariantCount : 1); ++variant)
          check_case(check, row, device, dtype, variant);
      }
    }
  }
}

}  // namespace castor::test
