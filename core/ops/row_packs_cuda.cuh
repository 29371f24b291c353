// Rows read and written as words of 16 bytes, for kernels that memory binds: a lane's pack is V neighbouring elements,
// a warp's block of 1024 is 32 / V packs a lane. With V = 1 the same kernels take rows of any length and address.
//
// Delicate: a lane adds its own packs and then lanes meet, which is not the CPU's order; it is fixed by V and the
// length all the same.
#pragma once

#include <initializer_list>

#include "core/ops/map_cuda.cuh"
#include "core/ops/rows_cuda.cuh"

namespace castor::cuda {

/// Packs that a lane has of a block.
template <int V>
inline constexpr int kPackSteps = kBlockSteps / V;

/// Elements of T in a word of 16 bytes.
template <class T>
inline constexpr int kPackWidth = 16 / static_cast<int>(sizeof(T));

/// Calls body(k, i) for this thread's packs in the block that starts at `begin`: k counts them, i is the first element.
/// n is a multiple of V.
template <int V, class Body>
__device__ void for_packs(const RowTeam& team, std::int64_t begin, std::int64_t n, Body body) {
  const int count = static_cast<int>(n - begin < kSumBlock ? n - begin : kSumBlock);
#pragma unroll
  for (int k = 0; k < kPackSteps<V>; ++k) {
    const int at = (k * 32 + team.lane) * V;
    if (at < count) body(k, begin + at);
  }
}

template <int V, class T>
__device__ Pack<T, V> pack_at(const T* from) {
  return load_pack<V>(from, true);
}

/// A pack's elements as they are computed with. bf16 are cut out of their words by pairs, an instruction each.
template <class T, int V>
__device__ auto numbers(const Pack<T, V>& pack) {
  Pack<decltype(read(T{})), V> result;
  if constexpr (std::is_same_v<T, BFloat16> && V % 2 == 0) {
    const auto pairs = std::bit_cast<Pack<std::uint32_t, V / 2>>(pack);
    for (int i = 0; i < V; ++i)
      result.value[i] = __uint_as_float(i % 2 == 0 ? pairs.value[i / 2] << 16 : pairs.value[i / 2] & 0xFFFF0000u);
  } else {
    for (int i = 0; i < V; ++i) result.value[i] = read(pack.value[i]);
  }
  return result;
}

/// `values` rounded to T; bf16 by pairs, in one instruction of compute capability 8.0.
template <class T, int V, class C>
__device__ Pack<T, V> rounded(const C (&values)[V]) {
  if constexpr (std::is_same_v<T, BFloat16> && V % 2 == 0) {
    Pack<std::uint32_t, V / 2> pairs;
    for (int i = 0; i < V / 2; ++i)
      asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pairs.value[i]) : "f"(values[2 * i + 1]), "f"(values[2 * i]));
    return std::bit_cast<Pack<T, V>>(pairs);
  } else {
    Pack<T, V> pack;
    for (int i = 0; i < V; ++i) pack.value[i] = write<T>(values[i]);
    return pack;
  }
}

/// Calls body(k, i) for a lane's packs of its warp's columns: k counts them, i is the first element, counted from the
/// lane's first pack, a constant once unrolled. `left` elements are there from that pack on.
template <int kSteps, int V, class Body>
__device__ void for_lane(int left, Body body) {
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
    if (k * 32 * V < left) body(k, k * 32 * V);
  }
}

/// Waits for the other warps of one row.
__device__ inline void meet_team(int group, int threads) {
  asm volatile("bar.sync %0, %1;" : : "r"(group + 1), "r"(threads) : "memory");
}

/// Copies 16 bytes to shared memory, to be waited for by wait_copies.
__device__ inline void copy_ahead(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
               :
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(to))), "l"(from)
               : "memory");
}
__device__ inline void end_copies() { asm volatile("cp.async.commit_group;" : : : "memory"); }
/// Until at most `kLater` of the ends are still to come.
template <int kLater>
__device__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" : : "n"(kLater) : "memory");
}

/// How rows are given to blocks that copy ahead. Teams of `warps` warps, `groups` of them a block, take neighbouring
/// rows, so that all running blocks walk through memory side by side. Each warp copies its columns of the rows to come
/// to shared memory while it works on a row; at the end the same memory holds a team's sums. The plan depends on the
/// shape and on what shared memory there is.
struct RowPlan {
  unsigned warps, groups;    ///< 0 groups where not even one has the memory
  std::size_t shared_bytes;  ///< for all groups

  /// A warp has `columns` columns, of each of which it holds `column_bytes`; a team needs team_bytes at least.
  RowPlan(std::int64_t n, std::int64_t columns, unsigned threads, std::size_t column_bytes, std::size_t team_bytes,
          std::size_t most_shared) {
    warps = static_cast<unsigned>((n + columns - 1) / columns);
    const std::size_t bytes = std::max(warps * column_bytes * static_cast<std::size_t>(columns), team_bytes);
    groups = std::min(threads / (32 * warps), static_cast<unsigned>(most_shared / bytes));
    shared_bytes = groups * bytes;
  }
  dim3 threads() const { return dim3(32, warps, groups); }
};

/// True where rows of n elements of all operands can be moved as words of 16 bytes.
inline bool rows_fit(std::int64_t n, std::initializer_list<const View*> views) {
  for (const View* view : views) {
    if (!view->defined()) continue;
    const auto width = static_cast<std::int64_t>(16 / dtype_size(view->dtype));
    if (n % width != 0 || reinterpret_cast<std::uintptr_t>(view->data) % 16 != 0) return false;
  }
  return true;
}

}  // namespace castor::cuda
