// Hopper's asynchronous instructions as attention uses them: barriers in shared memory, tile loads by the copy engine,
// and warpgroup matrix products. Compiled for compute capability 9.0a only.
//
// A tile of R rows by 64 c columns of 16 bits lies in shared memory as c panels of R rows of 128 bytes, swizzled in
// groups of 8 rows (1024 bytes), as the copy engine writes it. It serves as operand in two ways: its columns are what
// is summed over (`kColumnsSummed`), or its rows are (`kRowsSummed`).
//
// Delicate: a product is only begun by `product*`; its accumulators and its operands in registers must stay untouched
// until `wait_products` says so. The compiler does not know that, hence `hold`, which keeps it from moving their uses
// across a wait. All four warps of a warpgroup take part in every product. Source: NVIDIA, PTX ISA 9.0, sections 9.7.9
// (copies), 9.7.13 (mbarrier) and 9.7.15 (wgmma).
#pragma once

#include <cstdint>

#include <cuda.h>

#include "core/ops/attention_cuda_scores.cuh"

namespace castor::cuda {

inline constexpr int kWarpgroup = 128;    ///< threads
inline constexpr int kPanelColumns = 64;  ///< columns of 16 bits that lie together
inline constexpr int kRowBytes = 128;     ///< of a panel

// Barriers: 8 bytes of shared memory each, given by their address.

__device__ inline void init_barrier(std::uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}
/// Makes new barriers known to the copy engine; a __syncthreads follows.
__device__ inline void publish_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ inline void arrive(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
/// Arrives, and makes the phase wait for so many bytes of loads too.
__device__ inline void arrive_expecting(std::uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
/// Waits until the phase of this parity is over.
__device__ inline void wait_phase(std::uint32_t barrier, std::uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\nAGAIN:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra READY;\nbra AGAIN;\nREADY:\n}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

/// The hardware's numbered barriers, for whole warps: `threads` in all arrive, those that wait included.
__device__ inline void wait_named(int number, int threads) {
  asm volatile("barrier.cta.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}
__device__ inline void arrive_named(int number, int threads) {
  asm volatile("barrier.cta.arrive %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

/// Begins the load of a box at (column, head, position, batch); elements beyond the tensor become zeros.
__device__ inline void load_box(std::uint32_t to, const CUtensorMap& map, std::uint32_t barrier, int column, int head,
                                int position, int batch) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
      "[%2];" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(column), "r"(head), "r"(position), "r"(batch)
      : "memory");
}
/// Begins the load of adjacent bytes: both addresses and the count are multiples of 16.
__device__ inline void load_bytes(std::uint32_t to, const void* from, int bytes, std::uint32_t barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "l"(from), "r"(bytes), "r"(barrier)
               : "memory");
}

/// The registers that a thread of this warpgroup may hold from here on.
template <int kCount>
__device__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
__device__ void leave_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}

// Products.

/// Orders what this thread wrote to registers before the products that follow.
__device__ inline void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
/// Closes a group of products.
__device__ inline void end_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/// Waits until at most the kOpen groups begun last are unfinished.
template <int kOpen>
__device__ void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kOpen) : "memory");
}
template <int kCount>
__device__ void hold(float (&registers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}
template <int kCount>
__device__ void hold(std::uint32_t (&registers)[kCount][4]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    for (int j = 0; j < 4; ++j) asm volatile("" : "+r"(registers[i][j])::"memory");
  }
}

/// How a product finds a tile in shared memory. `panel_bytes` is the step between panels.
__device__ inline std::uint64_t tile_operand(std::uint32_t address, std::uint32_t panel_bytes) {
  constexpr std::uint64_t kSwizzle128 = std::uint64_t{1} << 62, kGroupOf8Rows = std::uint64_t{1024 >> 4} << 32;
  return kSwizzle128 | kGroupOf8Rows | static_cast<std::uint64_t>(panel_bytes >> 4) << 16 | (address & 0x3FFFF) >> 4;
}
/// The operand that lies `bytes` further on.
__device__ inline std::uint64_t further(std::uint64_t operand, int bytes) {
  return operand + static_cast<std::uint64_t>(bytes >> 4);
}

/// c[64, 64] (+)= a[64, 16] b over 16 of what is summed, both in shared memory; a's columns are summed.
///   kTransposed   0: b is [64, 16] and its columns are summed; 1: b is [16, 64] and its rows are
template <class T, int kTransposed>
__device__ void multiply(float (&c)[32], std::uint64_t a, std::uint64_t b, int accumulates) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32%36%36 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "%32, %33, p, 1, 1, 0, %35;\n}\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]), "+f"(c[8]),
        "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]), "+f"(c[16]),
        "+f"(c[17]), "+f"(c[18]), "+f"(c[19]), "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]), "+f"(c[24]),
        "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31])
      : "l"(a), "l"(b), "r"(accumulates), "n"(kTransposed), "C"(OperandName<T>::kText));
}
/// The same with a in registers.
template <class T, int kTransposed>
__device__ void multiply(float (&c)[32], const std::uint32_t (&a)[4], std::uint64_t b, int accumulates) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32%39%39 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, p, 1, 1, %38;\n}\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]), "+f"(c[8]),
        "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]), "+f"(c[16]),
        "+f"(c[17]), "+f"(c[18]), "+f"(c[19]), "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]), "+f"(c[24]),
        "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulates), "n"(kTransposed),
        "C"(OperandName<T>::kText));
}

/// c[64, 128] (+)= a[64, 16] b over 16 of what is summed, both in shared memory; a's columns are summed.
///   kTransposed   0: b is [128, 16] and its columns are summed; 1: b is [16, 128] and its rows are
template <class T, int kTransposed>
__device__ void multiply(float (&c)[64], std::uint64_t a, std::uint64_t b, int accumulates) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32%68%68 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "%64, %65, p, 1, 1, 0, %67;\n}\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]), "+f"(c[8]),
        "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]), "+f"(c[16]),
        "+f"(c[17]), "+f"(c[18]), "+f"(c[19]), "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]), "+f"(c[24]),
        "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31]), "+f"(c[32]),
        "+f"(c[33]), "+f"(c[34]), "+f"(c[35]), "+f"(c[36]), "+f"(c[37]), "+f"(c[38]), "+f"(c[39]), "+f"(c[40]),
        "+f"(c[41]), "+f"(c[42]), "+f"(c[43]), "+f"(c[44]), "+f"(c[45]), "+f"(c[46]), "+f"(c[47]), "+f"(c[48]),
        "+f"(c[49]), "+f"(c[50]), "+f"(c[51]), "+f"(c[52]), "+f"(c[53]), "+f"(c[54]), "+f"(c[55]), "+f"(c[56]),
        "+f"(c[57]), "+f"(c[58]), "+f"(c[59]), "+f"(c[60]), "+f"(c[61]), "+f"(c[62]), "+f"(c[63])
      : "l"(a), "l"(b), "r"(accumulates), "n"(kTransposed), "C"(OperandName<T>::kText));
}
/// The same with a in registers.
template <class T, int kTransposed>
__device__ void multiply(float (&c)[64], const std::uint32_t (&a)[4], std::uint64_t b, int accumulates) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32%71%71 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "{%64, %65, %66, %67}, %68, p, 1, 1, %70;\n}\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]), "+f"(c[8]),
        "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]), "+f"(c[16]),
        "+f"(c[17]), "+f"(c[18]), "+f"(c[19]), "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]), "+f"(c[24]),
        "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31]), "+f"(c[32]),
        "+f"(c[33]), "+f"(c[34]), "+f"(c[35]), "+f"(c[36]), "+f"(c[37]), "+f"(c[38]), "+f"(c[39]), "+f"(c[40]),
        "+f"(c[41]), "+f"(c[42]), "+f"(c[43]), "+f"(c[44]), "+f"(c[45]), "+f"(c[46]), "+f"(c[47]), "+f"(c[48]),
        "+f"(c[49]), "+f"(c[50]), "+f"(c[51]), "+f"(c[52]), "+f"(c[53]), "+f"(c[54]), "+f"(c[55]), "+f"(c[56]),
        "+f"(c[57]), "+f"(c[58]), "+f"(c[59]), "+f"(c[60]), "+f"(c[61]), "+f"(c[62]), "+f"(c[63])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulates), "n"(kTransposed),
        "C"(OperandName<T>::kText));
}

/// Begins c[64, N] = a b^T for a [64, kDim] and b [N, kDim]; `a_panel` and `b_panel` are the bytes of a panel of each.
template <class T, int kDim, int kAccumulators>
__device__ void product_of_rows(float (&c)[kAccumulators], std::uint64_t a, int a_panel, std::uint64_t b, int b_panel) {
#pragma unroll
  for (int step = 0; step < kDim / 16; ++step) {
    const int within = step % 4 * 32;
    multiply<T, 0>(c, further(a, step / 4 * a_panel + within), further(b, step / 4 * b_panel + within), step != 0);
  }
}

/// The same with a in registers (`load_operand`).
template <class T, int kSteps, int kAccumulators>
__device__ void product_of_rows(float (&c)[kAccumulators], const std::uint32_t (&a)[kSteps][4], std::uint64_t b,
                                int b_panel) {
#pragma unroll
  for (int step = 0; step < kSteps; ++step)
    multiply<T, 0>(c, a[step], further(b, step / 4 * b_panel + step % 4 * 32), step != 0);
}

/// A warpgroup's 64 rows of 16 kSteps columns, from the tile at `address` into the registers of a left operand. What
/// stays on the left for many products is better there: products of 64 by 64 from shared memory alone would need all
/// its bandwidth.
/// The tile may be given back once a product of these registers is done, and not before: an arrival at a barrier does
/// not wait for loads that are still on their way, and the next tile then came first (where the GPU had put the block
/// aside between the two for another process).
template <int kSteps>
__device__ void load_operand(std::uint32_t (&a)[kSteps][4], std::uint32_t address, std::uint32_t panel_bytes) {
  const std::uint32_t lane = threadIdx.x % 32, row = threadIdx.x % kWarpgroup / 32 * 16 + lane % 16;
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const std::uint32_t word = step % 4 * 2 + lane / 16;  // of 16 bytes, before swizzling
    const std::uint32_t at = address + step / 4 * panel_bytes + row * kRowBytes + ((word ^ row % 8) << 4);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(a[step][0]), "=r"(a[step][1]), "=r"(a[step][2]), "=r"(a[step][3])
                 : "r"(at)
                 : "memory");
  }
}

/// Begins c[64, N] += a b for a [64, 16 kSteps] in registers and b [16 kSteps, N].
template <class T, int kSteps, int kAccumulators>
__device__ void add_product(float (&c)[kAccumulators], const std::uint32_t (&a)[kSteps][4], std::uint64_t b) {
#pragma unroll
  for (int step = 0; step < kSteps; ++step) multiply<T, 1>(c, a[step], further(b, step * 16 * kRowBytes), 1);
}

}  // namespace castor::cuda
