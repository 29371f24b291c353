// Softmax rows on CUDA. Rows of up to 16384 numbers stay in registers between the passes over them; longer ones, and
// those in f64, are read again. Sums have the CPU's order (rows_cuda.cuh).
#include "core/ops/rows_cuda.cuh"
#include "core/ops/softmax.h"

namespace castor {
namespace {

using cuda::Computed;
using cuda::RowTeam;

template <class T, bool kHeld>
__global__ void __launch_bounds__(cuda::kTeamThreads)
    softmax_rows(const T* x, T* y, std::int64_t rows, std::int64_t n, bool is_log) {
  using C = Computed<T>;
  const RowTeam team;
  if (team.row >= rows) return;
  x += team.row * n;
  y += team.row * n;
  C held[kHeld ? cuda::kBlockSteps : 1];
  if constexpr (kHeld) team.for_row(n, [&](int k, std::int64_t i) { held[k] = cuda::read(x[i]); });
  const auto at = [&](int k, std::int64_t i) {
    if constexpr (kHeld) {
      return held[k];
    } else {
      return cuda::read(x[i]);
    }
  };
  const C max = cuda::max_row<C>(team, n, at);
  const double sum = cuda::sum_row<C>(team, n, [&](int k, std::int64_t i) { return cuda::row_exp<T>(at(k, i) - max); });
  if (is_log) {
    const C log_sum = static_cast<C>(math::log(sum));
    team.for_row(n, [&](int k, std::int64_t i) { y[i] = cuda::write<T>(at(k, i) - max - log_sum); });
  } else {
    const C factor = static_cast<C>(1 / sum);
    team.for_row(n, [&](int k, std::int64_t i) { y[i] = cuda::write<T>(cuda::row_exp<T>(at(k, i) - max) * factor); });
  }
}

template <class T, bool kHeld>
__global__ void __launch_bounds__(cuda::kTeamThreads)
    softmax_backward_rows(const T* y, const T* dy, T* dx, std::int64_t rows, std::int64_t n, bool is_log) {
  using C = Computed<T>;
  const RowTeam team;
  if (team.row >= rows) return;
  y += team.row * n;
  dy += team.row * n;
  dx += team.row * n;
  T held_y[kHeld ? cuda::kBlockSteps : 1], held_dy[kHeld ? cuda::kBlockSteps : 1];
  if constexpr (kHeld) {
    team.for_row(n, [&](int k, std::int64_t i) {
      held_y[k] = y[i];
      held_dy[k] = dy[i];
    });
  }
  const auto at = [](const T* held, const T* row, int k, std::int64_t i) {
    if constexpr (kHeld) {
      return cuda::read(held[k]);
    } else {
      return cuda::read(row[i]);
    }
  };
  const auto result = [&](int k, std::int64_t i) { return at(held_y, y, k, i); };
  const auto gradient = [&](int k, std::int64_t i) { return at(held_dy, dy, k, i); };
  if (is_log) {
    const C sum = static_cast<C>(cuda::sum_row<C>(team, n, gradient));
    team.for_row(n, [&](int k, std::int64_t i) {
      dx[i] = cuda::write<T>(gradient(k, i) - cuda::row_exp<T>(result(k, i)) * sum);
    });
  } else {
    const C sum =
        static_cast<C>(cuda::sum_row<C>(team, n, [&](int k, std::int64_t i) { return result(k, i) * gradient(k, i); }));
    team.for_row(n, [&](int k, std::int64_t i) { dx[i] = cuda::write<T>(result(k, i) * (gradient(k, i) - sum)); });
  }
}

/// Calls f(TypeTag<T>, whether rows are held, rows, n).
template <class F>
void for_rows(const View& x, const char* op, F f) {
  const std::int64_t n = x.size[x.ndim - 1], rows = cuda::rows_of(x);
  if (n == 0 || rows == 0) return;
  if (x.dtype == DType::f64) return f(TypeTag<double>{}, std::false_type{}, rows, n);
  visit_training_float(x.dtype, op, [&](auto tag) {
    n <= cuda::kHeldElements ? f(tag, std::true_type{}, rows, n) : f(tag, std::false_type{}, rows, n);
  });
}

}  // namespace

void run(const Cuda& cuda, const SoftmaxArgs& args) {
  for_rows(args.x, SoftmaxArgs::kName, [&](auto tag, auto is_held, std::int64_t rows, std::int64_t n) {
    using T = typename decltype(tag)::type;
    const cuda::TeamLaunch launch(rows, n);
    softmax_rows<T, decltype(is_held)::value>
        <<<launch.blocks, launch.threads, 0, stream_of(cuda)>>>(args.x.as<T>(), args.y.as<T>(), rows, n, args.is_log);
    check_cuda(cudaGetLastError(), SoftmaxArgs::kName, cuda.device);
  });
}

void run(const Cuda& cuda, const SoftmaxBackwardArgs& args) {
  for_rows(args.y, SoftmaxBackwardArgs::kName, [&](auto tag, auto is_held, std::int64_t rows, std::int64_t n) {
    using T = typename decltype(tag)::type;
    const cuda::TeamLaunch launch(rows, n);
    softmax_backward_rows<T, decltype(is_held)::value><<<launch.blocks, launch.threads, 0, stream_of(cuda)>>>(
        args.y.as<T>(), args.dy.as<T>(), args.dx.as<T>(), rows, n, args.is_log);
    check_cuda(cudaGetLastError(), SoftmaxBackwardArgs::kName, cuda.device);
  });
}

}  // namespace castor
