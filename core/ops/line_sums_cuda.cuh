// The second half of gradients that are sums over rows: blocks of a first kernel each leave one line of partial sums in
// a workspace, and this adds the lines in f64. There are few lines, so what counts is how long a read of memory takes,
// not how many bytes: every thread has all its reads on their way before it adds the first.
//
// Delicate: 32 threads share a column; each adds every 32nd line, then they meet in a fixed order.
#pragma once

#include "core/ops/rows_cuda.cuh"

namespace castor::cuda {

inline constexpr int kLineColumns = 8;  ///< of a block: 32 bytes of a line in f32

/// The first n columns' sums go to `first`, the others' to `second`; either may be absent.
template <class T, class C>
__global__ void __launch_bounds__(256)
    add_lines_kernel(const C* lines, std::int64_t count, std::int64_t columns, std::int64_t n, T* first, T* second) {
  constexpr int kWarps = 8, kSharers = 32, kAtOnce = 8;
  __shared__ double parts[kWarps][kLineColumns];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * kLineColumns + lane % kLineColumns;
  double part = 0;
  if (column < columns) {
    for (std::int64_t line = warp * (32 / kLineColumns) + lane / kLineColumns; line < count;
         line += kAtOnce * kSharers) {
      C values[kAtOnce];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k)
        values[k] = line + k * kSharers < count ? lines[(line + k * kSharers) * columns + column] : C(0);
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) part += static_cast<double>(values[k]);
    }
  }
  for (int width = 16; width >= kLineColumns; width /= 2) part += __shfl_down_sync(0xFFFFFFFFu, part, width);
  if (lane < kLineColumns) parts[warp][lane] = part;
  __syncthreads();
  if (threadIdx.x >= kLineColumns || column >= columns) return;
  double total = 0;
  for (int k = 0; k < kWarps; ++k) total += parts[k][lane];
  T* const to = column < n ? first : second;
  if (to != nullptr) to[column < n ? column : column - n] = write<T>(static_cast<C>(total));
}

/// Launches it for lines of `columns` numbers.
template <class T, class C>
void add_lines(const Cuda& cuda, const C* lines, std::int64_t count, std::int64_t columns, std::int64_t n, T* first,
               T* second) {
  const auto blocks = static_cast<unsigned>((columns + kLineColumns - 1) / kLineColumns);
  add_lines_kernel<<<blocks, 256, 0, stream_of(cuda)>>>(lines, count, columns, n, first, second);
}

}  // namespace castor::cuda
