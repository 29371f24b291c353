// One thread adds the terms of neighbouring elements, as many as 16 bytes of a term hold. Bound by memory: each term is
// read once and the sum written once.
#include <algorithm>
#include <cstdint>

#include "core/base/error.h"
#include "core/device/cuda_runtime.h"
#include "core/ops/map_cuda.cuh"
#include "core/ops/ordered_sum_cuda.h"

namespace castor {
namespace {

using cuda::Pack;

constexpr int kThreads = 256;
constexpr std::int64_t kMostBlocks = 1 << 20;

template <class T>
struct Terms {
  const T* data[kMostOrderedTerms];
  int count;
};

template <class T, class S, int V>
__global__ void __launch_bounds__(kThreads)
    ordered_sum(const __grid_constant__ Terms<T> terms, S* sum, std::int64_t groups, bool accumulates, float scale) {
  const std::int64_t step = std::int64_t{gridDim.x} * kThreads;
  for (std::int64_t group = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; group < groups; group += step) {
    float total[V];
    if (accumulates) {
      const auto old = reinterpret_cast<const Pack<S, V>*>(sum)[group];
      for (int i = 0; i < V; ++i) total[i] = load(old.value[i]);
    }
    for (int term = 0; term < terms.count; ++term) {
      const auto next = reinterpret_cast<const Pack<T, V>*>(terms.data[term])[group];
      for (int i = 0; i < V; ++i) {
        const float value = load(next.value[i]);
        total[i] = term == 0 && !accumulates ? value : total[i] + value;
      }
    }
    if (scale != 1.0f) {
      for (int i = 0; i < V; ++i) total[i] = total[i] * scale + 0.0f;
    }
    Pack<S, V> result;
    for (int i = 0; i < V; ++i) result.value[i] = store<S>(total[i]);
    reinterpret_cast<Pack<S, V>*>(sum)[group] = result;
  }
}

template <class T, class S, int V>
void launch(const Cuda& cuda, const OrderedSum& sum, std::int64_t first, std::int64_t groups) {
  if (groups == 0) return;
  Terms<T> terms{};
  terms.count = static_cast<int>(sum.terms.size());
  for (std::size_t i = 0; i < sum.terms.size(); ++i) terms.data[i] = static_cast<const T*>(sum.terms[i]) + first;
  const auto blocks = static_cast<unsigned>(std::min((groups + kThreads - 1) / kThreads, kMostBlocks));
  ordered_sum<T, S, V><<<blocks, kThreads, 0, stream_of(cuda)>>>(terms, static_cast<S*>(sum.sum) + first, groups,
                                                                 sum.accumulates, static_cast<float>(sum.scale));
  check_cuda(cudaGetLastError(), "sum of contributions", cuda.device);
}

template <class T, class S>
void run_typed(const Cuda& cuda, const OrderedSum& sum) {
  constexpr int kPack = 16 / static_cast<int>(sizeof(T));
  const auto is_aligned = [](const void* data, std::size_t bytes) {
    return reinterpret_cast<std::uintptr_t>(data) % bytes == 0;
  };
  const bool packs = is_aligned(sum.sum, sizeof(Pack<S, kPack>)) &&
                     std::all_of(sum.terms.begin(), sum.terms.end(),
                                 [&](const void* term) { return is_aligned(term, sizeof(Pack<T, kPack>)); });
  const std::int64_t groups = packs ? sum.count / kPack : 0;
  launch<T, S, kPack>(cuda, sum, 0, groups);
  launch<T, S, 1>(cuda, sum, groups * kPack, sum.count - groups * kPack);
}

template <class T>
void run_terms(const Cuda& cuda, const OrderedSum& sum) {
  if (sum.sum_dtype == DType::f32) return run_typed<T, float>(cuda, sum);
  if (sum.sum_dtype == sum.dtype) return run_typed<T, T>(cuda, sum);
  throw DTypeError(cat("sum of contributions: expected a sum of f32 or ", sum.dtype, ", got ", sum.sum_dtype));
}

}  // namespace

void run_ordered_sum(const Cuda& cuda, const OrderedSum& sum) {
  if (sum.terms.empty() || sum.terms.size() > kMostOrderedTerms) {
    throw ShapeError(cat("sum of contributions: expected 1 to ", kMostOrderedTerms, " terms, got ", sum.terms.size()));
  }
  switch (sum.dtype) {
    case DType::f32:
      return run_terms<float>(cuda, sum);
    case DType::bf16:
      return run_terms<BFloat16>(cuda, sum);
    case DType::f16:
      return run_terms<Half>(cuda, sum);
    default:
      throw DTypeError(cat("sum of contributions: expected f32, bf16 or f16, got ", sum.dtype));
  }
}

}  // namespace castor
