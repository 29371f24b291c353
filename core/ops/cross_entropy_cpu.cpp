// Cross entropy on the CPU. A row is read from memory once, in chunks: each chunk's maximum and sum of exponentials are
// joined as they come. In f32 and f64 the exponentials, relative to their chunk's maximum, are written where the
// gradient goes and rescaled there once the row's sum is known; 16-bit rows compute them again instead, since they
// would be rounded twice.
//
// Delicate: a chunk of -infinity only must not be subtracted from itself. The rows' losses meet in f64, in order. The
// gradient may be written over the logits: what is needed of a chunk is taken before its exponentials are written.
#include <algorithm>
#include <cmath>

#include "core/base/math.h"
#include "core/base/parallel.h"
#include "core/ops/lane_fold.h"
#include "core/ops/softmax.h"

namespace castor {
namespace {

constexpr std::int64_t kGrainElements = 8192;
constexpr std::int64_t kMaxChunks = 256;

template <class T>
using Computed = decltype(load(T{}));

std::int64_t chunk_size(std::int64_t classes) {
  const std::int64_t least = (classes + kMaxChunks - 1) / kMaxChunks;
  return std::max<std::int64_t>(1024, (least + 31) / 32 * 32);
}

/// What a walk over a row leaves.
template <class C>
struct RowSums {
  double logsumexp;
  double sum;            ///< of the logits; with label smoothing only
  C shifts[kMaxChunks];  ///< what chunk k's exponentials are relative to
};

template <class T>
void walk_row(const T* x, T* gradient, std::int64_t n, bool wants_sum, RowSums<Computed<T>>& sums) {
  using C = Computed<T>;
  const std::int64_t size = chunk_size(n);
  double max = -HUGE_VAL, total = 0;
  sums.sum = 0;
  for (std::int64_t begin = 0, k = 0; begin < n; begin += size, ++k) {
    const std::int64_t count = std::min(size, n - begin);
    const T* chunk = x + begin;
    const C chunk_max = max_lanes<C>(count, [chunk](std::int64_t i) { return load(chunk[i]); });
    const C shift = chunk_max == -std::numeric_limits<C>::infinity() ? C(0) : chunk_max;
    sums.shifts[k] = shift;
    C chunk_sum;
    if (wants_sum)
      sums.sum += static_cast<double>(sum_lanes<C>(count, [chunk](std::int64_t i) { return load(chunk[i]); }));
    if constexpr (std::is_arithmetic_v<T>) {
      if (gradient != nullptr) {
        C* to = gradient + begin;
#pragma GCC ivdep
        for (std::int64_t i = 0; i < count; ++i) to[i] = math::exp(chunk[i] - shift);
        chunk_sum = sum_lanes<C>(count, [to](std::int64_t i) { return to[i]; });
      } else {
        chunk_sum = sum_lanes<C>(count, [chunk, shift](std::int64_t i) { return math::exp(chunk[i] - shift); });
      }
    } else {
      chunk_sum = sum_lanes<C>(count, [chunk, shift](std::int64_t i) { return math::exp(load(chunk[i]) - shift); });
    }
    const double wide_shift = static_cast<double>(shift), larger_shift = larger(max, wide_shift);
    total = total * std::exp(max - larger_shift) + static_cast<double>(chunk_sum) * std::exp(wide_shift - larger_shift);
    max = larger_shift;
  }
  sums.logsumexp = max + std::log(total);
}

/// gradient = softmax * factor - spread, except at the target, which gets `at_target` less.
template <class T>
void write_gradient(const T* x, T* gradient, std::int64_t n, const RowSums<Computed<T>>& sums, double factor,
                    double spread, std::int64_t target, double target_logit, double at_target) {
  using C = Computed<T>;
  const double hot = std::exp(target_logit - sums.logsumexp) * factor - spread - at_target;
  const C less = static_cast<C>(spread);
  if constexpr (std::is_arithmetic_v<T>) {
    const std::int64_t size = chunk_size(n);
    for (std::int64_t begin = 0, k = 0; begin < n; begin += size, ++k) {
      const std::int64_t count = std::min(size, n - begin);
      const C scale = static_cast<C>(std::exp(static_cast<double>(sums.shifts[k]) - sums.logsumexp) * factor);
      C* to = gradient + begin;
#pragma GCC ivdep
      for (std::int64_t i = 0; i < count; ++i) to[i] = to[i] * scale - less;
    }
  } else {
    const C shift = static_cast<C>(sums.logsumexp), scale = static_cast<C>(factor);
#pragma GCC ivdep
    for (std::int64_t i = 0; i < n; ++i) gradient[i] = store<T>(math::exp(load(x[i]) - shift) * scale - less);
  }
  gradient[target] = store<T>(static_cast<C>(hot));
}

double row_loss(double logsumexp, double at_target, double sum, double smoothing, std::int64_t classes) {
  const double hard = smoothing < 1 ? (1 - smoothing) * (logsumexp - at_target) : 0;
  return smoothing > 0 ? hard + smoothing * (logsumexp - sum / static_cast<double>(classes)) : hard;
}

template <class T, class Target>
void run_rows(const CrossEntropyArgs& args, double counted) {
  using C = Computed<T>;
  const std::int64_t rows = args.logits.size[0], classes = args.logits.size[1];
  const double smoothing = args.options.label_smoothing;
  const double factor = args.gradient_of_mean ? (counted > 0 ? 1 / counted : 0.0) : 1.0;
  const double share = smoothing / static_cast<double>(std::max<std::int64_t>(classes, 1));
  const Target* targets = args.targets.as<Target>() + args.first_row;
  double* losses = args.workspace.as<double>() + args.first_row;
  parallel_for(
      rows, std::max<std::int64_t>(1, kGrainElements / std::max<std::int64_t>(classes, 1)),
      [&](std::int64_t begin, std::int64_t end) {
        RowSums<C> sums;
        for (std::int64_t row = begin; row < end; ++row) {
          const T* x = args.logits.as<T>() + row * classes;
          T* gradient = args.gradient.defined() ? args.gradient.as<T>() + row * classes : nullptr;
          const std::int64_t target = static_cast<std::int64_t>(targets[row]);
          if (target == args.options.ignore_index) {
            losses[row] = 0;
            if (gradient != nullptr) std::fill_n(gradient, classes, store<T>(C(0)));
            continue;
          }
          if (target < 0 || target >= classes) {
            throw ShapeError(cat("cross_entropy: the target of row ", args.first_row + row, " is ", target,
                                 "; expected 0 to ", classes - 1, " or ignore_index ", args.options.ignore_index));
          }
          const double target_logit = static_cast<double>(load(x[target]));  // before the gradient takes its place
          walk_row(x, gradient, classes, smoothing > 0, sums);
          losses[row] = row_loss(sums.logsumexp, target_logit, sums.sum, smoothing, classes);
          if (gradient == nullptr) continue;
          write_gradient(x, gradient, classes, sums, factor, share * factor, target, target_logit,
                         (1 - smoothing) * factor);
        }
      });
  const std::int64_t all_rows = args.targets.size[0];
  if (args.first_row + rows < all_rows) return;
  const double* all_losses = args.workspace.as<double>();
  C* loss = args.loss.as<C>();
  if (args.options.reduction == Reduction::none) {
    for (std::int64_t row = 0; row < all_rows; ++row) loss[row] = static_cast<C>(all_losses[row]);
    return;
  }
  double total = 0;
  for (std::int64_t row = 0; row < all_rows; ++row) total += all_losses[row];
  if (args.options.reduction == Reduction::mean) total = counted > 0 ? total / counted : 0.0;
  loss[0] = static_cast<C>(total);
}

template <class Target>
void run_targets(const CrossEntropyArgs& args) {
  const Target* targets = args.targets.as<Target>();
  const auto is_counted = [&](Target target) { return static_cast<std::int64_t>(target) != args.options.ignore_index; };
  double& counted = args.counted.as<double>()[0];
  if (args.first_row == 0)
    counted = static_cast<double>(std::count_if(targets, targets + args.targets.size[0], is_counted));
  const auto run_dtype = [&](auto tag) { run_rows<typename decltype(tag)::type, Target>(args, counted); };
  args.logits.dtype == DType::f64 ? run_dtype(TypeTag<double>{})
                                  : visit_training_float(args.logits.dtype, "cross_entropy", run_dtype);
}

template <class T>
void scale_rows(const CrossEntropyScaleArgs& args) {
  using C = Computed<T>;
  const std::int64_t rows = args.gradient.size[0], classes = args.gradient.size[1];
  const C* dloss = args.dloss.as<C>();
  const std::int64_t step = args.dloss.ndim == 0 ? 0 : 1;
  const double counted = args.counted.defined() ? args.counted.as<double>()[0] : 1;
  const double divisor = counted > 0 ? counted : 1;
  if (step == 0 && static_cast<double>(dloss[0]) == divisor) return;
  parallel_for(rows, std::max<std::int64_t>(1, kGrainElements / std::max<std::int64_t>(classes, 1)),
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t row = begin; row < end; ++row) {
                   const C factor = static_cast<C>(static_cast<double>(dloss[row * step]) / divisor);
                   T* gradient = args.gradient.as<T>() + row * classes;
#pragma GCC ivdep
                   for (std::int64_t i = 0; i < classes; ++i) gradient[i] = store<T>(load(gradient[i]) * factor);
                 }
               });
}

}  // namespace

void run(const Cpu&, const CrossEntropyArgs& args) {
  args.targets.dtype == DType::i64 ? run_targets<std::int64_t>(args) : run_targets<std::int32_t>(args);
}

void run(const Cpu&, const CrossEntropyScaleArgs& args) {
  if (args.gradient.dtype == DType::f64) {
    scale_rows<double>(args);
  } else {
    visit_training_float(args.gradient.dtype, "cross_entropy_scale",
                         [&](auto tag) { scale_rows<typename decltype(tag)::type>(args); });
  }
}

}  // namespace castor
