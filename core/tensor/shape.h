// Sizes and strides: up to eight integers held in place, so that making a tensor allocates nothing for its shape.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <ostream>
#include <span>

namespace castor {

inline constexpr int kMaxDims = 8;

/// A short list of integers: a tensor's sizes, its strides (in elements), or a list of axes.
class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<std::int64_t> values);     ///< Throws ShapeError beyond kMaxDims values.
  explicit Shape(std::span<const std::int64_t> values);  ///< Throws ShapeError beyond kMaxDims values.

  int ndim() const { return count_; }
  bool empty() const { return count_ == 0; }
  std::int64_t operator[](int axis) const { return values_[static_cast<std::size_t>(axis)]; }
  std::int64_t& operator[](int axis) { return values_[static_cast<std::size_t>(axis)]; }
  std::int64_t back() const { return values_[static_cast<std::size_t>(count_ - 1)]; }
  const std::int64_t* begin() const { return values_.data(); }
  const std::int64_t* end() const { return values_.data() + count_; }
  void push_back(std::int64_t value);  ///< Throws ShapeError beyond kMaxDims values.
  void insert(int axis, std::int64_t value);
  void erase(int axis);

  /// The product of all values; 1 when there are none.
  std::int64_t numel() const;
  /// Row-major strides for these sizes. Throws ShapeError if one overflows.
  Shape contiguous_strides() const;
  /// Maps -ndim..ndim-1 to 0..ndim-1. Throws ShapeError naming `op` outside that.
  int axis(int index, const char* op) const;

  friend bool operator==(const Shape& a, const Shape& b);

 private:
  std::array<std::int64_t, kMaxDims> values_{};
  int count_ = 0;
};

/// "[2,3]".
std::ostream& operator<<(std::ostream& out, const Shape& shape);

/// The shape two operands broadcast to, by NumPy's rule. Throws ShapeError naming `op` if they do not.
Shape broadcast_shapes(const Shape& a, const Shape& b, const char* op);

}  // namespace castor
