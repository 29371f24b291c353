// Shape arithmetic. Overflow of a product is refused here once, so kernels may trust numel().
#include "core/tensor/shape.h"

#include <algorithm>

#include "core/base/error.h"

namespace castor {

Shape::Shape(std::initializer_list<std::int64_t> values) : Shape(std::span(values.begin(), values.size())) {}

Shape::Shape(std::span<const std::int64_t> values) {
  for (const std::int64_t value : values) push_back(value);
}

void Shape::push_back(std::int64_t value) {
  if (count_ == kMaxDims)
    throw ShapeError(cat("shape: at most ", kMaxDims, " dimensions, got more: ", *this, " and ", value));
  values_[static_cast<std::size_t>(count_++)] = value;
}

void Shape::insert(int axis, std::int64_t value) {
  push_back(value);
  std::rotate(values_.begin() + axis, values_.begin() + count_ - 1, values_.begin() + count_);
}

void Shape::erase(int axis) {
  std::copy(values_.begin() + axis + 1, values_.begin() + count_, values_.begin() + axis);
  --count_;
}

std::int64_t Shape::numel() const {
  std::int64_t product = 1;
  for (const std::int64_t value : *this) {
    if (__builtin_mul_overflow(product, value, &product))
      throw ShapeError(cat("shape: the number of elements of ", *this, " overflows"));
  }
  return product;
}

Shape Shape::contiguous_strides() const {
  Shape strides = *this;
  std::int64_t step = 1;
  for (int i = count_ - 1; i >= 0; --i) {
    strides[i] = step;
    if (i > 0 && __builtin_mul_overflow(step, std::max<std::int64_t>((*this)[i], 1), &step)) {
      throw ShapeError(cat("shape: the strides of ", *this, " overflow"));
    }
  }
  return strides;
}

int Shape::axis(int index, const char* op) const {
  if (index < -count_ || index >= count_) {
    throw ShapeError(cat(op, ": axis ", index, " is outside shape ", *this, ", which has ", count_, " axes"));
  }
  return index < 0 ? index + count_ : index;
}

bool operator==(const Shape& a, const Shape& b) { return std::equal(a.begin(), a.end(), b.begin(), b.end()); }

std::ostream& operator<<(std::ostream& out, const Shape& shape) {
  out << '[';
  for (int i = 0; i < shape.ndim(); ++i) out << (i == 0 ? "" : ",") << shape[i];
  return out << ']';
}

Shape broadcast_shapes(const Shape& a, const Shape& b, const char* op) {
  Shape result = a.ndim() >= b.ndim() ? a : b;
  const Shape& shorter = a.ndim() >= b.ndim() ? b : a;
  const int shift = result.ndim() - shorter.ndim();
  for (int i = 0; i < shorter.ndim(); ++i) {
    std::int64_t& size = result[i + shift];
    if (size == shorter[i] || shorter[i] == 1) continue;
    if (size != 1) throw ShapeError(cat(op, ": shapes ", a, " and ", b, " do not broadcast"));
    size = shorter[i];
  }
  return result;
}

}  // namespace castor
