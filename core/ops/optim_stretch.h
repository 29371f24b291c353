// How optimizer kernels on the CPU walk memory, which binds them: a stretch of elements at a time, whose numbers stay
// in the first cache while 16-bit gradients are widened before the update and the 16-bit copy is rounded after it. So
// each update is one f32 loop, whatever the dtypes around it. Stretches are short and fetch what lies a little ahead:
// five streams are too many for the processor's own prefetcher to keep memory busy (about a fifth slower without).
#pragma once

#include <immintrin.h>

#include "core/base/math.h"
#include "core/base/parallel.h"
#include "core/ops/lane_fold.h"
#include "core/ops/optim.h"

namespace castor::optim_cpu {

inline constexpr std::int64_t kGrainBlocks = 16;
inline constexpr std::int64_t kStretch = 64;  // elements updated at a time; divides kStatisticsBlock
inline constexpr std::int64_t kAhead = 512;   // how many elements ahead memory is asked for
// From this many elements on, a copy goes past the caches: it would not stay in them, and its lines need not be read
// first.
inline constexpr std::int64_t kLeastUncached = std::int64_t{1} << 20;

alignas(64) inline constexpr float kZeros[kStatisticsBlock] = {};

/// `count` elements of a gradient as f32: in place, widened into `scratch`, or zeros when there is none.
template <class G>
[[gnu::always_inline]] inline const float* gradient_at(const View& gradient, std::int64_t begin, std::int64_t count,
                                                       float* scratch) {
  if (!gradient.defined()) return kZeros;
  const G* from = gradient.as<G>() + begin;
  if constexpr (std::is_same_v<G, float>) {
    return from;
  } else {
    for (std::int64_t i = 0; i < count; ++i) scratch[i] = load(from[i]);
    return scratch;
  }
}

/// The same when the dtype is not known to the compiler.
inline const float* gradient_block(const View& gradient, std::int64_t begin, std::int64_t count, float* scratch) {
  if (!gradient.defined()) return kZeros;
  return visit_training_float(gradient.dtype, "optimizer statistics", [&](auto tag) {
    return gradient_at<typename decltype(tag)::type>(gradient, begin, count, scratch);
  });
}

/// Writes the parameter's 16-bit copy.
template <class C>
[[gnu::always_inline]] inline void write_copy(C* to, std::int64_t count, const float* parameter) {
#pragma GCC ivdep
  for (std::int64_t i = 0; i < count; ++i) to[i] = store<C>(parameter[i]);
}

/// The same for a whole stretch, past the caches. `to` is a multiple of 32 bytes; wait_for_uncached() must follow at
/// the end.
template <class C>
[[gnu::always_inline]] inline void write_copy_uncached(C* to, const float* parameter) {
  alignas(32) C rounded[kStretch];
  write_copy(rounded, kStretch, parameter);
  for (std::int64_t i = 0; i < kStretch; i += 32 / static_cast<std::int64_t>(sizeof(C))) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to + i), *reinterpret_cast<const __m256i*>(rounded + i));
  }
}

/// Orders what went past the caches before everything this thread does next.
inline void wait_for_uncached() { _mm_sfence(); }

inline float* block_of(const View& view, std::int64_t begin) {
  return view.defined() ? view.as<float>() + begin : nullptr;
}

/// Calls body(begin, count, scratch) for each block of `total` elements; scratch has room for one block.
template <class Body>
void for_each_block(std::int64_t total, Body body) {
  const std::int64_t blocks = (total + kStatisticsBlock - 1) / kStatisticsBlock;
  parallel_for(blocks, kGrainBlocks, [&](std::int64_t first, std::int64_t last) {
    alignas(64) float scratch[kStatisticsBlock];
    for (std::int64_t block = first; block < last; ++block) {
      const std::int64_t begin = block * kStatisticsBlock;
      body(begin, std::min(kStatisticsBlock, total - begin), scratch);
    }
  });
}

/// Asks for the numbers that a later stretch will need. May point beyond the end: a prefetch never faults.
template <class T>
[[gnu::always_inline]] inline void fetch_ahead(const T* stream, std::int64_t begin) {
  if (stream == nullptr) return;
  for (std::int64_t i = 0; i < kStretch; i += 64 / static_cast<std::int64_t>(sizeof(T))) {
    __builtin_prefetch(stream + begin + kAhead + i, 1);
  }
}

/// Updates blocks [first, last) of `total` elements. An Update has `p`, the parameter; fetch(begin), which fetches its
/// other streams ahead; and operator()(g, begin, count, scratch), where g[i] is the gradient of element begin + i and
/// scratch may be g. C is float where there is no copy.
template <class G, class C, class Update>
void update_blocks(const Update& update, const View& gradient, const View& copy, std::int64_t first, std::int64_t last,
                   std::int64_t total) {
  constexpr bool kCopies = !std::is_same_v<C, float>;
  const Update own = update;  // this thread's: stores cannot change it, so its scalars stay in registers
  alignas(64) float scratch[kStretch];
  const std::int64_t end = std::min(total, last * kStatisticsBlock);
  std::int64_t begin = first * kStatisticsBlock;
  const G* g = gradient.as<const G>();
  C* c = copy.as<C>();
  const bool is_uncached = kCopies && total >= kLeastUncached && reinterpret_cast<std::uintptr_t>(c) % 32 == 0;
  // Whole stretches apart, so that the compiler sees their loops' constant length.
  for (; begin + kStretch <= end; begin += kStretch) {
    fetch_ahead(own.p, begin);
    fetch_ahead(g, begin);
    own.fetch(begin);
    own(gradient_at<G>(gradient, begin, kStretch, scratch), begin, kStretch, scratch);
    if constexpr (kCopies)
      is_uncached ? write_copy_uncached(c + begin, own.p + begin) : write_copy(c + begin, kStretch, own.p + begin);
  }
  if (is_uncached) wait_for_uncached();
  if (begin < end) {
    own(gradient_at<G>(gradient, begin, end - begin, scratch), begin, end - begin, scratch);
    if constexpr (kCopies) write_copy(c + begin, end - begin, own.p + begin);
  }
}

/// update_blocks for the dtypes of gradient and copy, by all threads.
template <class Update>
void update_all(const Update& update, const View& gradient, const View& copy, std::int64_t total) {
  const std::int64_t blocks = (total + kStatisticsBlock - 1) / kStatisticsBlock;
  visit_training_float(gradient.defined() ? gradient.dtype : DType::f32, "optimizer step", [&](auto g_tag) {
    visit_training_float(copy.defined() ? copy.dtype : DType::f32, "optimizer step", [&](auto c_tag) {
      parallel_for(blocks, kGrainBlocks, [&](std::int64_t first, std::int64_t last) {
        update_blocks<typename decltype(g_tag)::type, typename decltype(c_tag)::type>(update, gradient, copy, first,
                                                                                      last, total);
      });
    });
  });
}

inline double squares_of(const float* x, std::int64_t count) {
  return fold_lanes<float>(
      count, 0.0f, [&](float sum, std::int64_t i) { return math::fma(x[i], x[i], sum); },
      [](float a, float b) { return a + b; });
}

}  // namespace castor::optim_cpu
