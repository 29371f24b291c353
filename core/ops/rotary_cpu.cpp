// The turning loop: a plane's two elements lie R/2 apart, so both halves are read and written by unit strides and
// vectorise. Delicate: y may be x; each iteration reads its two elements before it writes them, and no other.
#include "core/base/math.h"
#include "core/base/parallel.h"
#include "core/ops/rotary.h"

namespace castor {
namespace {

template <class T, class C>
void turn(const T* x, T* y, const C* cos, const C* sin, C sign, std::int64_t half, std::int64_t dim) {
#pragma GCC ivdep
  for (std::int64_t i = 0; i < half; ++i) {
    const C a = load(x[i]), b = load(x[i + half]);
    const C c = cos[i], s = sign * sin[i];
    y[i] = store<T>(math::fma(a, c, -(b * s)));
    y[i + half] = store<T>(math::fma(b, c, a * s));
  }
  for (std::int64_t i = 2 * half; i < dim && x != y; ++i) y[i] = x[i];
}

template <class T, class C>
void turn_all(const RotaryArgs& args) {
  const std::int64_t length = args.x.size[1], heads = args.x.size[2], dim = args.x.size[3], half = args.cos.size[1];
  const C sign = args.inverse ? C(-1) : C(1);
  const std::int64_t grain = std::max<std::int64_t>(1, 8192 / std::max<std::int64_t>(1, heads * dim));
  parallel_for(args.x.size[0] * length, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      const std::int64_t batch = row / length, position = row % length;
      const C* cos = args.cos.as<C>() + (args.offset + position) * half;
      const C* sin = args.sin.as<C>() + (args.offset + position) * half;
      const T* x = args.x.as<T>() + batch * args.x.stride[0] + position * args.x.stride[1];
      T* y = args.y.as<T>() + batch * args.y.stride[0] + position * args.y.stride[1];
      for (std::int64_t head = 0; head < heads; ++head) {
        turn(x + head * args.x.stride[2], y + head * args.y.stride[2], cos, sin, sign, half, dim);
      }
    }
  });
}

}  // namespace

void run(const Cpu&, const RotaryArgs& args) {
  if (args.x.dtype == DType::f64) return turn_all<double, double>(args);
  visit_training_float(args.x.dtype, RotaryArgs::kName,
                       [&](auto tag) { turn_all<typename decltype(tag)::type, float>(args); });
}

}  // namespace castor
