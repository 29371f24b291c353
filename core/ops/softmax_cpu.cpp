// Softmax rows on the CPU. Exponentials of a row of at most 4096 numbers stay in a buffer; longer f32 and f64 rows use
// the result itself as that buffer; longer 16-bit rows compute them twice rather than round them twice.
#include <algorithm>

#include "core/base/math.h"
#include "core/base/parallel.h"
#include "core/ops/lane_fold.h"
#include "core/ops/softmax.h"

namespace castor {
namespace {

constexpr std::int64_t kGrainElements = 8192;
constexpr std::int64_t kBuffer = 4096;

template <class T>
using Computed = decltype(load(T{}));

template <class T>
void softmax_row(const T* x, T* y, std::int64_t n, Computed<T>* buffer) {
  using C = Computed<T>;
  const C max = max_lanes<C>(n, [x](std::int64_t i) { return load(x[i]); });
  C* exponentials = n <= kBuffer ? buffer : nullptr;
  if constexpr (std::is_arithmetic_v<T>) {
    if (exponentials == nullptr) exponentials = y;
  }
  if (exponentials == nullptr) {
    const double sum = sum_blocks<C>(n, [x, max](std::int64_t i) { return math::exp(load(x[i]) - max); });
    const C factor = static_cast<C>(1 / sum);
#pragma GCC ivdep
    for (std::int64_t i = 0; i < n; ++i) y[i] = store<T>(math::exp(load(x[i]) - max) * factor);
    return;
  }
#pragma GCC ivdep
  for (std::int64_t i = 0; i < n; ++i) exponentials[i] = math::exp(load(x[i]) - max);
  const double sum = sum_blocks<C>(n, [exponentials](std::int64_t i) { return exponentials[i]; });
  const C factor = static_cast<C>(1 / sum);
#pragma GCC ivdep
  for (std::int64_t i = 0; i < n; ++i) y[i] = store<T>(exponentials[i] * factor);
}

template <class T>
void log_softmax_row(const T* x, T* y, std::int64_t n) {
  using C = Computed<T>;
  const C max = max_lanes<C>(n, [x](std::int64_t i) { return load(x[i]); });
  const C log_sum =
      static_cast<C>(math::log(sum_blocks<C>(n, [x, max](std::int64_t i) { return math::exp(load(x[i]) - max); })));
#pragma GCC ivdep
  for (std::int64_t i = 0; i < n; ++i) y[i] = store<T>(load(x[i]) - max - log_sum);
}

template <class T>
void backward_row(const T* y, const T* dy, T* dx, std::int64_t n, bool is_log) {
  using C = Computed<T>;
  if (is_log) {
    const C sum = static_cast<C>(sum_blocks<C>(n, [dy](std::int64_t i) { return load(dy[i]); }));
#pragma GCC ivdep
    for (std::int64_t i = 0; i < n; ++i) dx[i] = store<T>(load(dy[i]) - math::exp(load(y[i])) * sum);
  } else {
    const C sum = static_cast<C>(sum_blocks<C>(n, [y, dy](std::int64_t i) { return load(y[i]) * load(dy[i]); }));
#pragma GCC ivdep
    for (std::int64_t i = 0; i < n; ++i) dx[i] = store<T>(load(y[i]) * (load(dy[i]) - sum));
  }
}

/// Calls f(TypeTag<T>, first row, last row, n) for ranges of rows in parallel.
template <class F>
void for_rows(const View& x, const char* op, F f) {
  const std::int64_t n = x.size[x.ndim - 1], rows = n == 0 ? 0 : x.numel() / n;
  const auto run_dtype = [&](auto tag) {
    parallel_for(rows, std::max<std::int64_t>(1, kGrainElements / std::max<std::int64_t>(n, 1)),
                 [&](std::int64_t begin, std::int64_t end) { f(tag, begin, end, n); });
  };
  x.dtype == DType::f64 ? run_dtype(TypeTag<double>{}) : visit_training_float(x.dtype, op, run_dtype);
}

}  // namespace

void run(const Cpu&, const SoftmaxArgs& args) {
  for_rows(args.x, "softmax", [&](auto tag, std::int64_t begin, std::int64_t end, std::int64_t n) {
    using T = typename decltype(tag)::type;
    Computed<T> buffer[kBuffer];
    for (std::int64_t row = begin; row < end; ++row) {
      const T* x = args.x.as<T>() + row * n;
      T* y = args.y.as<T>() + row * n;
      args.is_log ? log_softmax_row(x, y, n) : softmax_row(x, y, n, buffer);
    }
  });
}

void run(const Cpu&, const SoftmaxBackwardArgs& args) {
  for_rows(args.y, "softmax_backward", [&](auto tag, std::int64_t begin, std::int64_t end, std::int64_t n) {
    using T = typename decltype(tag)::type;
    for (std::int64_t row = begin; row < end; ++row) {
      backward_row(args.y.as<T>() + row * n, args.dy.as<T>() + row * n, args.dx.as<T>() + row * n, n, args.is_log);
    }
  });
}

}  // namespace castor
