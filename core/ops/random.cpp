// Checks and allocation of the random family.
#include "core/ops/random.h"

#include "core/ops/cast.h"
#include "core/ops/float_check.h"

namespace castor {
namespace {

void fill_by(const char* op, const Tensor& y, RandomFillArgs args) {
  check_float(op, y);
  if (!y.is_contiguous())
    throw ShapeError(cat(op, ": expected a row-major tensor, got ", y, " with strides ", y.strides()));
  if (y.numel() == 0) return;
  args.y = y.view();
  dispatch(y.device(), args);
}

}  // namespace

Cost cost(const RandomFillArgs& args) {
  // Philox: 10 rounds of 2 multiplications and 4 other operations for 4 words.
  return {20.0 * static_cast<double>(args.y.numel()), static_cast<double>(args.y.bytes())};
}

Cost cost(const DropoutArgs& args) {
  return {20.0 * static_cast<double>(args.y.numel()), static_cast<double>(args.x.bytes() + args.y.bytes())};
}

void fill_uniform(const Tensor& y, RandomKey key, double low, double high, std::uint64_t offset) {
  fill_by("fill_uniform", y, {{}, key, offset, Distribution::uniform, low, high, 0, 0});
}

void fill_normal(const Tensor& y, RandomKey key, double mean, double stddev, std::uint64_t offset) {
  fill_by("fill_normal", y, {{}, key, offset, Distribution::normal, mean, stddev, 0, 0});
}

void fill_truncated_normal(const Tensor& y, RandomKey key, double mean, double stddev, double low, double high,
                           std::uint64_t offset) {
  if (!(low < high) || !(stddev > 0)) {
    throw ShapeError(cat("fill_truncated_normal: expected low < high and a positive standard deviation, got [", low,
                         ", ", high, "], ", stddev));
  }
  fill_by("fill_truncated_normal", y, {{}, key, offset, Distribution::truncated_normal, mean, stddev, low, high});
}

Tensor dropout(const Tensor& x, RandomKey key, double probability, std::uint64_t offset) {
  constexpr const char* kOp = DropoutArgs::kName;
  check_float(kOp, x);
  if (!(probability >= 0 && probability <= 1))
    throw ShapeError(cat(kOp, ": expected a probability in [0, 1], got ", probability));
  Tensor y = Tensor::empty_like(x);
  if (x.numel() == 0) return y;
  dispatch(x.device(), DropoutArgs{contiguous(x).view(), y.view(), key, offset, probability});
  return y;
}

Tensor dropout_backward(const Tensor& dy, RandomKey key, double probability, std::uint64_t offset) {
  return dropout(dy, key, probability, offset);
}

}  // namespace castor
