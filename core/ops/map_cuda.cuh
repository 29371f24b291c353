// The one CUDA kernel of all pointwise work: result[i] = f(inputs[i]...) over strided operands of one shape. A thread
// takes a group of neighbours along the innermost axis: as many as 16 bytes hold, where addresses and strides allow,
// otherwise one. Neighbouring threads take neighbouring groups, so accesses of unit stride are coalesced. Each element
// is computed once, by one thread, from its own operands: results do not depend on the launch, and the result may be
// one of the inputs.
//
// Delicate: index arithmetic is of 32 bits within a launch; operands with more groups are cut into several launches. A
// group at the end of a row may be short.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <utility>

#include "core/base/dtype.h"
#include "core/device/cuda_runtime.h"
#include "core/ops/fast_divisor.h"
#include "core/ops/strided_plan.h"

namespace castor::cuda {

inline constexpr int kMapThreads = 256;
inline constexpr std::int64_t kMapMostGroups = (std::int64_t{1} << 31) - kMapThreads;

/// Where the groups of a launch lie. Axis 0 is the innermost; strides are in elements, along it from group to group.
template <int N>
struct MapIndex {
  std::uint32_t groups = 0;
  std::uint32_t last = 0;  ///< elements of the last group of a row
  int ndim = 0;
  bool is_unit[N] = {};  ///< neighbours in memory along axis 0; otherwise, in groups of several, one element for all
  FastDivisor count[kMaxDims];
  std::int64_t stride[N][kMaxDims] = {};
};

/// Elements that are loaded and stored as one word.
template <class T, int V>
struct alignas(sizeof(T) * V) Pack {
  T value[V];
};

template <int kBytes>
struct WordOf;
template <>
struct WordOf<1> {
  using type = std::uint8_t;
};
template <>
struct WordOf<2> {
  using type = std::uint16_t;
};
template <>
struct WordOf<4> {
  using type = std::uint32_t;
};
template <>
struct WordOf<8> {
  using type = uint2;
};
template <>
struct WordOf<16> {
  using type = uint4;
};

template <int V, class T>
__device__ Pack<T, V> load_pack(const T* from, bool is_unit) {
  using Word = typename WordOf<sizeof(T) * V>::type;
  if (is_unit) return std::bit_cast<Pack<T, V>>(*reinterpret_cast<const Word*>(from));
  Pack<T, V> pack;
  const T element = *from;
  for (int i = 0; i < V; ++i) pack.value[i] = element;
  return pack;
}

/// To global memory. Words of 16 bytes are spelled out, because the compiler breaks some of them up (nvcc 13.0), which
/// makes four partial writes of one.
template <int V, class T>
__device__ void store_pack(T* to, const Pack<T, V>& pack) {
  using Word = typename WordOf<sizeof(T) * V>::type;
  const Word word = std::bit_cast<Word>(pack);
  if constexpr (sizeof(Word) == 16) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};"
                 :
                 : "l"(__cvta_generic_to_global(to)), "r"(word.x), "r"(word.y), "r"(word.z), "r"(word.w)
                 : "memory");
  } else {
    *reinterpret_cast<Word*>(to) = word;
  }
}

template <int V, class F, class R, class... A, std::size_t... K>
__device__ void map_group(const MapIndex<sizeof...(A) + 1>& index, std::uint32_t group, const F& f,
                          std::index_sequence<K...>, R* result, const A*... inputs) {
  constexpr int kInputs = sizeof...(A);
  std::int64_t at[kInputs + 1] = {};
  std::uint32_t rest = group;
  std::uint32_t first = 0;  // the group's number in its row
#pragma unroll 1
  for (int axis = 0; axis < index.ndim; ++axis) {
    std::uint32_t own = rest;
    if (axis < index.ndim - 1) {
      const std::uint32_t quotient = index.count[axis].quotient(rest);
      own = rest - quotient * index.count[axis].divisor;
      rest = quotient;
    }
    if (axis == 0) first = own;
    for (int k = 0; k <= kInputs; ++k) at[k] += index.stride[k][axis] * own;
  }
  result += at[kInputs];
  if (V == 1 || index.last == V || first != index.count[0].divisor - 1) {
    const auto compute = [&](const auto&... packs) {
      Pack<R, V> computed;
      for (int i = 0; i < V; ++i) computed.value[i] = store<R>(f(load(packs.value[i])...));
      store_pack(result, computed);
    };
    compute(load_pack<V>(inputs + at[K], index.is_unit[K])...);
  } else {
#pragma unroll 1
    for (int i = 0; i < static_cast<int>(index.last); ++i)
      result[i] = store<R>(f(load(inputs[at[K] + (index.is_unit[K] ? i : 0)])...));
  }
}

template <int V, class F, class R, class... A>
__global__ void __launch_bounds__(kMapThreads)
    map_kernel(const __grid_constant__ MapIndex<sizeof...(A) + 1> index, const F f, R* result, const A*... inputs) {
  const std::uint32_t group = blockIdx.x * kMapThreads + threadIdx.x;
  if (group < index.groups) map_group<V>(index, group, f, std::index_sequence_for<A...>{}, result, inputs...);
}

/// True when groups of `width` can be moved as words: the result and each input have unit stride along the innermost
/// axis (an input may also stand still), and every row starts at a multiple of the word.
template <int N>
bool can_group(const StridedPlan<N>& plan, const View (&views)[N], int width) {
  const int inner = plan.ndim - 1;
  if (plan.inner() < width) return false;
  for (int k = 0; k < N; ++k) {
    if (k < N - 1 && plan.stride[k][inner] == 0) continue;
    if (plan.stride[k][inner] != 1) return false;
    if (reinterpret_cast<std::uintptr_t>(views[k].data) %
            (dtype_size(views[k].dtype) * static_cast<std::size_t>(width)) !=
        0)
      return false;
    for (int axis = 0; axis < inner; ++axis) {
      if (plan.stride[k][axis] % width != 0) return false;
    }
  }
  return true;
}

template <int N>
MapIndex<N> map_index(const StridedPlan<N>& plan, int width) {
  MapIndex<N> index;
  index.groups = static_cast<std::uint32_t>(plan.groups(width));
  index.last = static_cast<std::uint32_t>((plan.inner() - 1) % width + 1);
  index.ndim = plan.ndim;
  for (int axis = 0; axis < plan.ndim; ++axis) {
    const int from = plan.ndim - 1 - axis;
    const std::int64_t count = axis == 0 ? (plan.inner() + width - 1) / width : plan.size[from];
    index.count[axis] = FastDivisor(static_cast<std::uint32_t>(count));
    for (int k = 0; k < N; ++k) index.stride[k][axis] = plan.stride[k][from] * (axis == 0 ? width : 1);
  }
  for (int k = 0; k < N; ++k) index.is_unit[k] = plan.stride[k][plan.ndim - 1] == 1;
  return index;
}

/// Launches result = f(inputs...) on the device's stream. The element types of the inputs are A, that of the result is
/// R; f takes `load`ed elements and its result is `store`d.
///   views  the inputs and, last, the result: equal shapes, any strides
/// Throws DeviceError, naming `op`, when the launch is refused.
template <class R, class... A, class F>
void map(const Cuda& cuda, const char* op, const View (&views)[sizeof...(A) + 1], const F& f) {
  constexpr int kOperands = sizeof...(A) + 1;
  constexpr int kWide = 16 / static_cast<int>(std::max({sizeof(R), sizeof(A)...}));
  const StridedPlan<kOperands> plan(views);
  if (plan.is_empty) return;
  const int width = can_group(plan, views, kWide) ? kWide : 1;
  const std::int64_t from_start[kOperands] = {};
  for_each_part(plan, from_start, width, kMapMostGroups,
                [&](const StridedPlan<kOperands>& part, const std::int64_t* offsets) {
                  const MapIndex<kOperands> index = map_index(part, width);
                  const std::uint32_t blocks = (index.groups + kMapThreads - 1) / kMapThreads;
                  const auto launch = [&]<std::size_t... K>(std::index_sequence<K...>) {
                    R* const result = views[sizeof...(A)].template as<R>() + offsets[sizeof...(A)];
                    if (width == 1) {
                      map_kernel<1><<<blocks, kMapThreads, 0, stream_of(cuda)>>>(
                          index, f, result, static_cast<const A*>(views[K].template as<A>() + offsets[K])...);
                    } else {
                      map_kernel<kWide><<<blocks, kMapThreads, 0, stream_of(cuda)>>>(
                          index, f, result, static_cast<const A*>(views[K].template as<A>() + offsets[K])...);
                    }
                  };
                  launch(std::index_sequence_for<A...>{});
                  check_cuda(cudaGetLastError(), op, cuda.device);
                });
}

}  // namespace castor::cuda
