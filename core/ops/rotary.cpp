// Checks and tables of the rotary embedding.
#include "core/ops/rotary.h"

#include <cmath>
#include <vector>

#include "core/ops/cast.h"
#include "core/ops/float_check.h"

namespace castor {
namespace {

constexpr const char* kOp = RotaryArgs::kName;

bool has_unit_rows(const Tensor& x) { return x.strides()[3] == 1 || x.size(3) == 1; }

void check(const Tensor& x, const RotaryTable& table, std::int64_t offset) {
  if (x.ndim() != 4) throw ShapeError(cat(kOp, ": expected x [B,T,H,D], got ", x));
  const DType wanted = x.dtype() == DType::f64 ? DType::f64 : DType::f32;
  check_float(kOp, x);
  if (!table.cos.defined() || !table.sin.defined() || table.cos.ndim() != 2 ||
      !(table.cos.shape() == table.sin.shape())) {
    throw ShapeError(
        cat(kOp, ": expected a table of two [positions, R/2] tensors, got cos ", table.cos, ", sin ", table.sin));
  }
  if (table.cos.dtype() != wanted || table.sin.dtype() != wanted) {
    throw DTypeError(
        cat(kOp, ": x ", x, " needs a table of ", wanted, ", got ", table.cos, "; make one with make_rotary_table"));
  }
  if (!table.cos.is_contiguous() || !table.sin.is_contiguous())
    throw ShapeError(cat(kOp, ": the table must be row-major"));
  if (2 * table.cos.size(1) > x.size(3)) {
    throw ShapeError(
        cat(kOp, ": the table turns ", 2 * table.cos.size(1), " elements, a head of ", x, " has ", x.size(3)));
  }
  if (offset < 0 || offset + x.size(1) > table.cos.size(0)) {
    throw ShapeError(cat(kOp, ": positions ", offset, " .. ", offset + x.size(1) - 1, " are outside the table of ",
                         table.cos.size(0), "; make a longer one"));
  }
}

}  // namespace

Cost cost(const RotaryArgs& args) {
  const double turned = static_cast<double>(args.x.numel()) /
                        static_cast<double>(std::max<std::int64_t>(args.x.size[3], 1)) *
                        static_cast<double>(args.cos.size[1]);
  return {6 * turned, static_cast<double>(args.x.bytes() + args.y.bytes())};
}

RotaryTable make_rotary_table(std::int64_t positions, std::int64_t rotary_dim, double base, Device device,
                              DType dtype) {
  if (positions < 0 || rotary_dim < 2 || rotary_dim % 2 != 0) {
    throw ShapeError(cat("make_rotary_table: expected an even rotary size of at least 2, got ", rotary_dim, " for ",
                         positions, " positions"));
  }
  if (dtype != DType::f32 && dtype != DType::f64)
    throw DTypeError(cat("make_rotary_table: expected f32 or f64, got ", dtype));
  const Shape shape{positions, rotary_dim / 2};
  RotaryTable table{Tensor::empty(shape, dtype, device), Tensor::empty(shape, dtype, device)};
  if (device.is_meta()) return table;
  const auto make = [&](auto tag) {
    using T = typename decltype(tag)::type;
    std::vector<T> cos, sin;
    cos.reserve(static_cast<std::size_t>(shape.numel()));
    sin.reserve(static_cast<std::size_t>(shape.numel()));
    for (std::int64_t t = 0; t < positions; ++t) {
      for (std::int64_t i = 0; i < rotary_dim / 2; ++i) {
        const double frequency = std::pow(base, -2.0 * static_cast<double>(i) / static_cast<double>(rotary_dim));
        const double angle = static_cast<double>(t) * frequency;
        cos.push_back(static_cast<T>(std::cos(angle)));
        sin.push_back(static_cast<T>(std::sin(angle)));
      }
    }
    table.cos.copy_from_host(cos.data(), cos.size() * sizeof(T));
    table.sin.copy_from_host(sin.data(), sin.size() * sizeof(T));
  };
  dtype == DType::f64 ? make(TypeTag<double>{}) : make(TypeTag<float>{});
  return table;
}

void rotary_into(const Tensor& x_any, const RotaryTable& table, const Tensor& y, std::int64_t offset, bool inverse) {
  check(x_any, table, offset);
  const Device device = common_device(kOp, {&x_any, &table.cos, &table.sin, &y});
  if (!(y.shape() == x_any.shape()) || y.dtype() != x_any.dtype()) {
    throw ShapeError(cat(kOp, ": the result must be like x, expected ", x_any, ", got ", y));
  }
  if (x_any.numel() == 0) return;
  if (!has_unit_rows(y)) {
    throw ShapeError(cat(kOp, ": the result needs adjacent elements along its last axis, got strides ", y.strides()));
  }
  const Tensor x = has_unit_rows(x_any) ? x_any : clone(x_any);
  dispatch(device, RotaryArgs{x.view(), table.cos.view(), table.sin.view(), y.view(), offset, inverse});
}

Tensor rotary(const Tensor& x, const RotaryTable& table, std::int64_t offset, bool inverse) {
  Tensor y = Tensor::empty_like(x);
  rotary_into(x, table, y, offset, inverse);
  return y;
}

}  // namespace castor
