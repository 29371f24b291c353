// How optimizer kernels on the CPU walk memory, which binds them: a stretch of elements at a time, whose numbers stay
// in the first cache while 16-bit gradients are widened before the update and the 16-bit copy is rounded after it. So
// each update is one f32 loop, whatever the dtypes around it. Stretches are short and fetch what lies a little ahead:
// five streams are too many for the processor's own prefetcher to keep memory busy (about a fifth slower without).
#pragma once

#include "core/base/math.h"
#include "core/base/parallel.h"
#include "core/ops/lane_fold.h"
#include "core/ops/optim.h"

namespace castor::optim_cpu {

inline constexpr std::int64_t kGrainBlocks = 16;
inline constexpr std::int64_t kStretch = 64;  // elements updated at a time; divides kStatisticsBlock
inline constexpr std::int64_t kAhead = 512;   // how many elements ahead memory is asked for

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

/// Writes the parameter's 16-bit copy, if there is one (C is not float).
template <class C>
[[gnu::always_inline]] inline void write_copy(const View& copy, std::int64_t begin, std::int64_t count,
                                              const float* parameter) {
  if constexpr (!std::is_same_v<C, float>) {
    C* to = copy.as<C>() + begin;
#pragma GCC ivdep
    for (std::int64_t i = 0; i < count; ++i) to[i] = store<C>(parameter[i]);
  }
}

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
/// scratch may be g.
template <class G, class C, class Update>
void update_blocks(const Update& update, const View& gradient, const View& copy, std::int64_t first, std::int64_t last,
                   std::int64_t total) {
  const Update own =
      update;  // a copy of this thread's: stores to memory cannot change it, so its scalars stay in registers
  alignas(64) float scratch[kStretch];
  const std::int64_t end = std::min(total, last * kStatisticsBlock);
  std::int64_t begin = first * kStatisticsBlock;
  const G* g = gradient.as<const G>();
  const C* c = copy.as<const C>();
  // Whole stretches apart, so that the compiler sees their loops' constant length.
  for (; begin + kStretch <= end; begin += kStretch) {
    fetch_ahead(own.p, begin);
    fetch_ahead(g, begin);
    fetch_ahead(c, begin);
    own.fetch(begin);
    own(gradient_at<G>(gradient, begin, kStretch, scratch), begin, kStretch, scratch);
    write_copy<C>(copy, begin, kStretch, own.p + begin);
  }
  if (begin < end) {
    own(gradient_at<G>(gradient, begin, end - begin, scratch), begin, end - begin, scratch);
    write_copy<C>(copy, begin, end - begin, own.p + begin);
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
