// Shape surgery and host access of tensors.
#include "core/tensor/tensor.h"

namespace castor {

Tensor::Tensor(std::shared_ptr<Storage> storage, const Shape& shape, const Shape& strides, std::int64_t offset,
               DType dtype)
    : storage_(std::move(storage)), shape_(shape), strides_(strides), offset_(offset), dtype_(dtype) {}

Tensor Tensor::empty(const Shape& shape, DType dtype, Device device) {
  return empty_strided(shape, shape.contiguous_strides(), dtype, device);
}

Tensor Tensor::empty_strided(const Shape& shape, const Shape& strides, DType dtype, Device device) {
  for (const std::int64_t size : shape) {
    if (size < 0) throw ShapeError(cat("empty: sizes must not be negative, got ", shape));
  }
  std::int64_t bytes = 0;  // signed, as offsets are
  if (__builtin_mul_overflow(shape.numel(), static_cast<std::int64_t>(dtype_size(dtype)), &bytes))
    throw ShapeError(cat("empty: the bytes of ", dtype, shape, " overflow; use smaller sizes"));
  return {std::make_shared<Storage>(static_cast<std::size_t>(bytes), device), shape, strides, 0, dtype};
}

Tensor Tensor::zeros(const Shape& shape, DType dtype, Device device) {
  Tensor result = empty(shape, dtype, device);
  result.fill_zero();
  return result;
}

Tensor Tensor::empty_like(const Tensor& like) { return empty(like.shape(), like.dtype(), like.device()); }

bool Tensor::is_contiguous() const {
  std::int64_t step = 1;
  bool is_dense = true;
  for (int i = ndim() - 1; i >= 0; --i) {
    if (shape_[i] == 0) return true;
    is_dense = is_dense && (shape_[i] == 1 || strides_[i] == step);
    step *= shape_[i];
  }
  return is_dense;
}

std::string Tensor::describe() const { return defined() ? cat(dtype_, shape_) : "undefined"; }

std::ostream& operator<<(std::ostream& out, const Tensor& tensor) { return out << tensor.describe(); }

View Tensor::view() const {
  View view;
  view.data = static_cast<char*>(storage_->data()) + static_cast<std::size_t>(offset_) * dtype_size(dtype_);
  view.dtype = dtype_;
  view.ndim = ndim();
  for (int i = 0; i < view.ndim; ++i) {
    view.size[i] = shape_[i];
    view.stride[i] = strides_[i];
  }
  return view;
}

Tensor Tensor::reshape(const Shape& wanted) const {
  Shape target = wanted, given;
  int unknown = -1;
  for (int i = 0; i < target.ndim(); ++i) {
    if (target[i] == -1 && unknown < 0) {
      unknown = i;
    } else if (target[i] < 0) {
      throw ShapeError(
          cat("reshape: expected sizes of at least 0 and at most one -1, got ", wanted, " for ", describe()));
    } else {
      given.push_back(target[i]);
    }
  }
  if (unknown >= 0) {
    const std::int64_t known = given.numel();
    if (known == 0) {
      throw ShapeError(cat("reshape: the -1 in ", wanted, " cannot be worked out beside a size of 0 (", describe(),
                           "); give the size"));
    }
    target[unknown] = numel() / known;
  }
  if (target.numel() != numel())
    throw ShapeError(cat("reshape: ", describe(), " has ", numel(), " elements, shape ", wanted, " does not"));
  if (is_contiguous() || numel() == 0) return {storage_, target, target.contiguous_strides(), offset_, dtype_};
  // Walk both shapes from the end, matching runs of source axes that are dense among themselves.
  Shape strides = target;
  int source = ndim() - 1;
  int axis = target.ndim() - 1;
  while (axis >= 0) {
    while (source >= 0 && shape_[source] == 1) --source;
    if (source < 0) {
      strides[axis--] = 1;
      continue;
    }
    std::int64_t run = shape_[source];
    std::int64_t step = strides_[source];
    int first = source;
    while (first > 0 && (shape_[first - 1] == 1 || strides_[first - 1] == strides_[first] * shape_[first])) {
      if (shape_[first - 1] == 1) break;
      --first;
      run *= shape_[first];
    }
    while (axis >= 0 && run > 1 && run % target[axis] == 0) {
      strides[axis] = step;
      step *= target[axis];
      run /= target[axis];
      --axis;
    }
    if (run != 1)
      throw ShapeError(cat("reshape: ", describe(), " with strides ", strides_, " cannot be viewed as ", wanted,
                           "; make it contiguous first"));
    source = first - 1;
    while (axis >= 0 && target[axis] == 1) strides[axis--] = step;
  }
  return {storage_, target, strides, offset_, dtype_};
}

Tensor Tensor::permute(const Shape& axes) const {
  if (axes.ndim() != ndim()) throw ShapeError(cat("permute: ", describe(), " needs ", ndim(), " axes, got ", axes));
  Shape shape = shape_, strides = strides_;
  unsigned seen = 0;
  for (int i = 0; i < ndim(); ++i) {
    const int from = shape_.axis(static_cast<int>(axes[i]), "permute");
    seen |= 1u << from;
    shape[i] = shape_[from];
    strides[i] = strides_[from];
  }
  if (seen != (1u << ndim()) - 1) throw ShapeError(cat("permute: ", axes, " names an axis twice"));
  return {storage_, shape, strides, offset_, dtype_};
}

Tensor Tensor::transpose(int axis_a, int axis_b) const {
  const int a = shape_.axis(axis_a, "transpose"), b = shape_.axis(axis_b, "transpose");
  Tensor result = *this;
  std::swap(result.shape_[a], result.shape_[b]);
  std::swap(result.strides_[a], result.strides_[b]);
  return result;
}

Tensor Tensor::narrow(int axis, std::int64_t start, std::int64_t length) const {
  const int a = shape_.axis(axis, "narrow");
  if (start < 0 || length < 0 || start + length > shape_[a]) {
    throw ShapeError(cat("narrow: [", start, ", ", start + length, ") is outside axis ", a, " of ", describe()));
  }
  Tensor result = *this;
  result.shape_[a] = length;
  result.offset_ += start * strides_[a];
  return result;
}

Tensor Tensor::select(int axis, std::int64_t index) const {
  const int a = shape_.axis(axis, "select");
  Tensor result = narrow(a, index < 0 ? index + shape_[a] : index, 1);
  result.shape_.erase(a);
  result.strides_.erase(a);
  return result;
}

Tensor Tensor::unsqueeze(int axis) const {
  if (axis < -ndim() - 1 || axis > ndim()) throw ShapeError(cat("unsqueeze: axis ", axis, " is outside ", describe()));
  const int a = axis < 0 ? axis + ndim() + 1 : axis;
  Tensor result = *this;
  result.shape_.insert(a, 1);
  result.strides_.insert(a, a < ndim() ? strides_[a] * shape_[a] : 1);
  return result;
}

Tensor Tensor::squeeze(int axis) const {
  const int a = shape_.axis(axis, "squeeze");
  if (shape_[a] != 1) throw ShapeError(cat("squeeze: axis ", a, " of ", describe(), " is not 1"));
  Tensor result = *this;
  result.shape_.erase(a);
  result.strides_.erase(a);
  return result;
}

Tensor Tensor::expand(const Shape& shape) const {
  const int shift = shape.ndim() - ndim();
  if (shift < 0) throw ShapeError(cat("expand: ", describe(), " to fewer axes: ", shape));
  Shape strides = shape;
  for (int i = 0; i < shape.ndim(); ++i) {
    const std::int64_t from = i < shift ? 1 : shape_[i - shift];
    if (from != shape[i] && from != 1) throw ShapeError(cat("expand: ", describe(), " does not broadcast to ", shape));
    strides[i] = i < shift || (from == 1 && shape[i] != 1) ? 0 : strides_[i - shift];
  }
  return {storage_, shape, strides, offset_, dtype_};
}

Tensor Tensor::as_strided(const Shape& shape, const Shape& strides, std::int64_t offset) const {
  if (shape.ndim() != strides.ndim())
    throw ShapeError(cat("as_strided: shape ", shape, " and strides ", strides, " differ in length"));
  std::int64_t start = 0;
  bool overflows = __builtin_add_overflow(offset_, offset, &start);
  std::int64_t lowest = start, highest = start;
  for (int i = 0; i < shape.ndim(); ++i) {
    if (shape[i] < 0) throw ShapeError(cat("as_strided: sizes must not be negative, got ", shape));
    std::int64_t reach = 0;
    std::int64_t& end = strides[i] < 0 ? lowest : highest;
    overflows |= __builtin_mul_overflow(strides[i], std::max<std::int64_t>(shape[i] - 1, 0), &reach);
    overflows |= __builtin_add_overflow(end, reach, &end);
  }
  if (overflows) {
    throw ShapeError(
        cat("as_strided: the offsets of shape ", shape, " with strides ", strides, " from ", offset, " on overflow"));
  }
  const auto count = static_cast<std::int64_t>(storage_->bytes() / dtype_size(dtype_));
  if (shape.numel() > 0 && (lowest < 0 || highest >= count)) {
    throw ShapeError(cat("as_strided: shape ", shape, " with strides ", strides, " and offset ", offset,
                         " reaches elements ", lowest, " to ", highest, " of a storage of ", count, " ", dtype_));
  }
  return {storage_, shape, strides, start, dtype_};
}

void Tensor::check_dtype(DType wanted) const {
  if (dtype_ != wanted) throw DTypeError(cat("tensor access: expected ", wanted, ", the tensor is ", describe()));
}

void Tensor::check_host_access(DType wanted) const {
  if (!device().is_cpu())
    throw DeviceError(
        cat("tensor access: ", describe(), " is on ", device(), "; its values can be addressed only on cpu"));
  check_dtype(wanted);
}

void Tensor::copy_from_host(const void* from, std::size_t bytes) const {
  const std::size_t own = static_cast<std::size_t>(numel()) * dtype_size(dtype_);
  if (bytes != own || !is_contiguous())
    throw ShapeError(cat("copy from host: ", describe(), " takes ", own, " contiguous bytes, got ", bytes));
  if (own != 0) backend(device()).copy_from_host(view().data, from, own);
}

void Tensor::copy_to_host(void* to, std::size_t bytes) const {
  const std::size_t own = static_cast<std::size_t>(numel()) * dtype_size(dtype_);
  if (device().is_meta())
    throw DeviceError(
        cat("read: ", describe(), " is on a meta device and has no values; run on cpu or cuda to read them"));
  if (bytes != own || !is_contiguous())
    throw ShapeError(cat("copy to host: ", describe(), " gives ", own, " contiguous bytes, asked for ", bytes));
  if (own != 0) backend(device()).copy_to_host(to, view().data, own);
}

double Tensor::item() const {
  if (numel() != 1) throw ShapeError(cat("item: expected one element, got ", describe()));
  return visit_dtype(dtype_, [&](auto tag) {
    typename decltype(tag)::type value{};
    Tensor{storage_, {}, {}, offset_, dtype_}.copy_to_host(&value, sizeof(value));
    return static_cast<double>(load(value));
  });
}

void Tensor::fill_zero() const {
  if (!is_contiguous())
    throw ShapeError(cat("fill_zero: expected a contiguous tensor, got ", describe(), " with strides ", strides_));
  const std::size_t bytes = static_cast<std::size_t>(numel()) * dtype_size(dtype_);
  if (bytes != 0) backend(device()).fill_zero(view().data, bytes);
}

Device common_device(const char* op, std::initializer_list<const Tensor*> tensors) {
  const Tensor* first = nullptr;
  for (const Tensor* tensor : tensors) {
    if (!tensor->defined()) continue;
    if (first == nullptr) first = tensor;
    if (!(tensor->device() == first->device())) {
      throw DeviceError(cat(op, ": operands on different devices: ", *first, " on ", first->device(), ", ", *tensor,
                            " on ", tensor->device()));
    }
  }
  if (first == nullptr) throw InternalError(cat(op, ": no operand"));
  return first->device();
}

}  // namespace castor
