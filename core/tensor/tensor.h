// Tensor: a strided view of a shared storage, and View, what a kernel sees of one. Tensors know nothing of gradients
// (autograd::Variable does) and nothing of maths (core/ops does); here live only shapes, strides and bytes.
#pragma once

#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/base/dtype.h"
#include "core/base/error.h"
#include "core/tensor/shape.h"
#include "core/tensor/storage.h"

namespace castor {

/// A tensor as a kernel sees it: trivially copyable, raw address taken at launch. A null `data` with sizes means that
/// an optional operand is absent (`defined()` is false).
struct View {
  void* data = nullptr;
  DType dtype = DType::f32;
  int ndim = -1;  ///< -1 = absent
  std::int64_t size[kMaxDims] = {};
  std::int64_t stride[kMaxDims] = {};  ///< in elements

  bool defined() const { return ndim >= 0; }
  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
  std::int64_t numel() const {
    std::int64_t product = 1;
    for (int i = 0; i < ndim; ++i) product *= size[i];
    return product;
  }
  std::size_t bytes() const { return defined() ? static_cast<std::size_t>(numel()) * dtype_size(dtype) : 0; }
  bool is_contiguous() const {
    std::int64_t step = 1;
    bool is_dense = true;
    for (int i = ndim - 1; i >= 0; --i) {
      if (size[i] == 0) return true;
      is_dense = is_dense && (size[i] == 1 || stride[i] == step);
      step *= size[i];
    }
    return is_dense;
  }
};

class Tensor {
 public:
  Tensor() = default;  ///< undefined: the absent optional operand

  /// New, uninitialised, row-major. Throws ShapeError for a negative size or too many bytes to count, OutOfMemory.
  static Tensor empty(const Shape& shape, DType dtype, Device device = kCpu);
  static Tensor zeros(const Shape& shape, DType dtype, Device device = kCpu);
  /// New and uninitialised with the dtype and device of `like`.
  static Tensor empty_like(const Tensor& like);
  /// Uninitialised with given strides that cover a dense block (a permutation of row-major), e.g. channels-last.
  static Tensor empty_strided(const Shape& shape, const Shape& strides, DType dtype, Device device = kCpu);
  /// Copies host values to a new row-major tensor. Throws ShapeError if the count differs from shape.numel().
  template <class T>
  static Tensor from_values(std::span<const T> values, const Shape& shape, Device device = kCpu) {
    Tensor result = empty(shape, DTypeOf<T>::value, device);
    result.copy_from_host(values.data(), values.size() * sizeof(T));
    return result;
  }
  template <class T>
  static Tensor from_values(const std::vector<T>& values, const Shape& shape, Device device = kCpu) {
    return from_values(std::span<const T>(values), shape, device);
  }
  /// A view of an existing storage. `offset` and `strides` in elements.
  Tensor(std::shared_ptr<Storage> storage, const Shape& shape, const Shape& strides, std::int64_t offset, DType dtype);

  bool defined() const { return storage_ != nullptr; }
  const Shape& shape() const { return shape_; }
  const Shape& strides() const { return strides_; }
  std::int64_t size(int axis) const { return shape_[shape_.axis(axis, "size")]; }
  int ndim() const { return shape_.ndim(); }
  std::int64_t numel() const { return shape_.numel(); }
  DType dtype() const { return dtype_; }
  Device device() const { return storage_->device(); }
  std::int64_t offset() const { return offset_; }
  const std::shared_ptr<Storage>& storage() const { return storage_; }
  bool is_contiguous() const;  ///< row-major without gaps
  /// "f32[2,3]", for error texts.
  std::string describe() const;

  /// What a kernel sees. Throws DeviceError when the storage has no bytes. On meta, `data` is an address nobody may
  /// touch.
  View view() const;

  // Views of the same storage; none copies. Negative axes count from the end. All throw ShapeError.
  Tensor reshape(
      const Shape& shape) const;  ///< one size may be -1; the tensor must be viewable so (contiguous suffices)
  Tensor permute(const Shape& axes) const;
  Tensor transpose(int axis_a, int axis_b) const;
  Tensor narrow(int axis, std::int64_t start, std::int64_t length) const;
  Tensor select(int axis, std::int64_t index) const;  ///< drops the axis
  Tensor unsqueeze(int axis) const;
  Tensor squeeze(int axis) const;
  Tensor expand(const Shape& shape) const;  ///< stride 0 along broadcast axes
  Tensor as_strided(const Shape& shape, const Shape& strides,
                    std::int64_t offset) const;  ///< offset from this tensor's

  // Host access.
  /// Typed address of the first element. Throws DTypeError, or DeviceError unless on cpu.
  template <class T>
  T* data() const {
    check_host_access(DTypeOf<T>::value);
    return static_cast<T*>(storage_->data()) + offset_;
  }
  /// Copies row-major bytes in or out of a contiguous tensor on any device. Throw DeviceError on meta, ShapeError on a
  /// size that differs.
  void copy_from_host(const void* from, std::size_t bytes) const;
  void copy_to_host(void* to, std::size_t bytes) const;
  /// All elements in row-major order; the tensor must be contiguous.
  template <class T>
  std::vector<T> to_vector() const {
    static_assert(!std::is_same_v<T, bool>, "read bool tensors as u8 through copy_to_host");
    check_dtype(DTypeOf<T>::value);
    std::vector<T> values(static_cast<std::size_t>(numel()));
    copy_to_host(values.data(), values.size() * sizeof(T));
    return values;
  }
  /// The value of a one-element tensor, converted to double. Throws ShapeError for more, DeviceError on meta.
  double item() const;
  void fill_zero() const;  ///< contiguous tensors only

 private:
  void check_host_access(DType wanted) const;
  void check_dtype(DType wanted) const;

  std::shared_ptr<Storage> storage_;
  Shape shape_;
  Shape strides_;
  std::int64_t offset_ = 0;
  DType dtype_ = DType::f32;
};

/// The view of an optional tensor: absent when `tensor` is undefined.
inline View view_or_absent(const Tensor& tensor) { return tensor.defined() ? tensor.view() : View{}; }

std::ostream& operator<<(std::ostream& out, const Tensor& tensor);  ///< as describe()

/// Throws DeviceError naming `op` unless all defined tensors are on one device; returns it.
Device common_device(const char* op, std::initializer_list<const Tensor*> tensors);

}  // namespace castor
