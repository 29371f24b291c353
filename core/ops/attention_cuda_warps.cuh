// Attention on the tensor cores of any GPU (compute capability 8.0 or newer), where those for Hopper are not to be had:
// tiles in shared memory, copied there by the threads themselves, and products that a warp makes alone (mma). What the
// kernels of both directions share.
//
// A tile of R rows by kDim columns of 16 bits lies row by row in words of 16 bytes. So that eight rows' words of one
// column meet in no bank, a row's words are exchanged within groups of eight, or of four where a row is no multiple of
// 128 bytes, by the row's number. Columns beyond the head's end and rows beyond the tensor's are zeros.
//
// As with Hopper's kernels, a warp keeps all sums of its rows in registers and adds partners in order, so the bits of a
// result do not depend on the launch. Source: NVIDIA, PTX ISA 9.0, sections 9.7.9.25 (cp.async), 9.7.14.5 (ldmatrix,
// mma).
#pragma once

#include "core/ops/attention_cuda_scores.cuh"
#include "core/ops/row_packs_cuda.cuh"

namespace castor::cuda {

inline constexpr int kWarpsThreads = 128;  ///< of a block

/// Where a thread stands: its warp, and its row and column in that warp's accumulators.
struct WarpPlace {
  int warp, row, column;
  __device__ WarpPlace()
      : warp(__shfl_sync(0xFFFFFFFFu, static_cast<int>(threadIdx.x) / 32, 0)),
        row(static_cast<int>(threadIdx.x % 32 / 4)),
        column(static_cast<int>(threadIdx.x % 4 * 2)) {}
};

/// Words of a row that are exchanged with each other, and that as many lanes copy together.
template <int kDim>
inline constexpr int kWordGroup = kDim % 64 == 0 ? 8 : 4;

/// The address of a word of 16 bytes.
template <int kDim>
__device__ std::uint32_t word_at(std::uint32_t tile, int row, int word) {
  const int exchanged = word ^ (kWordGroup<kDim> == 8 ? row % 8 : row / 2 % 4);
  return tile + static_cast<std::uint32_t>(row * (kDim / 8) + exchanged) * 16;
}

/// Begins copies of kRows rows of one head from `first` on, of which those before `rows` exist; wait_copies ends them.
template <class T, int kRows, int kDim>
__device__ void copy_tile(std::uint32_t to, const HeadRows& from, int batch, int head, int first, int rows, int dim) {
  constexpr int kLanes = kWordGroup<kDim>, kStep = kWarpsThreads / kLanes;  // rows that are copied at a time
  static_assert(kRows % kStep == 0);
  const int row = static_cast<int>(threadIdx.x) / kLanes, word = static_cast<int>(threadIdx.x) % kLanes;
  const T* source = from.at<T>(batch, first + row, head) + word * 8;
#pragma unroll
  for (int i = 0; i < kRows; i += kStep, source += kStep * from.position) {
#pragma unroll
    for (int k = 0; k < kDim / 8; k += kLanes) {
      const bool is_there = first + row + i < rows && (word + k) * 8 < dim;  // nothing is read where it is not
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(word_at<kDim>(to, row + i, word + k)),
                   "l"(source + k * 8), "r"(is_there ? 16 : 0)
                   : "memory");
    }
  }
}

/// Four matrices of 8 by 8, one of whose rows begins at each lane's address.
__device__ inline void load_matrices(std::uint32_t (&to)[4], std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
}
__device__ inline void load_transposed(std::uint32_t (&to)[4], std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
}

/// c[16, 8] += a[16, 16] b[16, 8]; c begins at c[first].
template <class T, int kCount>
__device__ void multiply_warp(float (&c)[kCount], int first, const std::uint32_t (&a)[4], std::uint32_t b0,
                              std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32%10%10.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[first]), "+f"(c[first + 1]), "+f"(c[first + 2]), "+f"(c[first + 3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "C"(OperandName<T>::kText));
}

/// c[m][16, N] = a b^T for kTiles times 16 rows of a from `row` of the tile `left` on and N rows of the tile `right`,
/// N = 2 kCount.
template <class T, int kDim, int kTiles, int kCount>
__device__ void multiply_rows(float (&c)[kTiles][kCount], std::uint32_t left, int row, std::uint32_t right) {
  const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) c[m][i] = 0;
  }
#pragma unroll
  for (int step = 0; step < kDim / 16; ++step) {
    std::uint32_t a[kTiles][4];
#pragma unroll
    for (int m = 0; m < kTiles; ++m)
      load_matrices(a[m], word_at<kDim>(left, row + 16 * m + lane % 16, 2 * step + lane / 16));
#pragma unroll
    for (int n = 0; n < kCount / 8; ++n) {
      std::uint32_t b[4];
      load_matrices(b, word_at<kDim>(right, 16 * n + lane / 16 * 8 + lane % 8, 2 * step + lane / 8 % 2));
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        multiply_warp<T>(c[m], 8 * n, a[m], b[0], b[1]);
        multiply_warp<T>(c[m], 8 * n + 4, a[m], b[2], b[3]);
      }
    }
  }
}

/// c[m][16, kDim] += a[m][16, 16 kSteps] b for b the rows of the tile `right`.
template <class T, int kDim, int kTiles, int kSteps>
__device__ void add_product_of(float (&c)[kTiles][kDim / 2], const std::uint32_t (&a)[kTiles][kSteps][4],
                               std::uint32_t right) {
  const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int n = 0; n < kDim / 16; ++n) {
      std::uint32_t b[4];
      load_transposed(b, word_at<kDim>(right, 16 * step + lane % 16, 2 * n + lane / 16));
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        multiply_warp<T>(c[m], 8 * n, a[m][step], b[0], b[1]);
        multiply_warp<T>(c[m], 8 * n + 4, a[m][step], b[2], b[3]);
      }
    }
  }
}

/// Writes c[m][16, kDim] times `factor` to the rows from `first` on of a head, up to the last of `rows`.
template <class T, int kDim, int kTiles>
__device__ void store_tiles(const float (&c)[kTiles][kDim / 2], float factor, const HeadRows& to, int batch, int head,
                            int first, int rows, int dim, const WarpPlace& place) {
  const float factors[2] = {factor, factor};
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
    T* begins[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = first + 16 * m + place.row + 8 * h;
      begins[h] = row < rows ? to.at<T>(batch, row, head) : nullptr;
    }
    store_accumulators<T, kDim>(c[m], factors, begins, dim);
  }
}

/// Calls f(TypeTag<T>{}, std::integral_constant<int, kDim>{}) with the columns of tiles that hold a head.
template <class F>
void visit_warps(const View& q, F f) {
  const auto with_dim = [&](auto tag) {
    const std::int64_t dim = q.size[3];
    if (dim <= 32) return f(tag, std::integral_constant<int, 32>{});
    if (dim <= 64) return f(tag, std::integral_constant<int, 64>{});
    if (dim <= 96) return f(tag, std::integral_constant<int, 96>{});
    f(tag, std::integral_constant<int, 128>{});
  };
  q.dtype == DType::bf16 ? with_dim(TypeTag<BFloat16>{}) : with_dim(TypeTag<Half>{});
}

/// Launches a kernel with a block for each of `blocks` tiles of each of `heads` heads.
template <class Params>
void launch_warps(void (*kernel)(Params), const Params& params, std::int64_t blocks, std::int64_t heads,
                  int shared_bytes, const char* op, const Cuda& cuda) {
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes), op, cuda.device);
  kernel<<<static_cast<unsigned>(blocks * heads), kWarpsThreads, shared_bytes, stream_of(cuda)>>>(params);
  check_cuda(cudaGetLastError(), op, cuda.device);
}

}  // namespace castor::cuda
