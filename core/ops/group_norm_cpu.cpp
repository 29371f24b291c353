// Group norm on the CPU. In row-major a group is one stretch of memory and a task. In channels-last a task is a few
// neighbouring groups of one sample, about 64 channels, so that rows are walked in stretches worth a vector loop; a
// channel is summed over rows first, a group over its channels then.
//
// Delicate: dweight and dbias are first summed for each sample and channel into the workspace and then over samples in
// order, so tasks never add to one place.
#include <algorithm>
#include <cmath>

#include "core/base/math.h"
#include "core/base/parallel.h"
#include "core/ops/lane_fold.h"
#include "core/ops/norm.h"

namespace castor {
namespace {

constexpr std::int64_t kGrainElements = 16384;
constexpr std::int64_t kTile = 256;      // channels of a loop across channels
constexpr std::int64_t kEnough = 64;     // channels that fill such a loop
constexpr std::int64_t kRowBlock = 128;  // rows summed in the computed type

template <class T>
using Computed = decltype(load(T{}));

struct Sizes {
  std::int64_t samples, channels, groups, width, inner;  // width = channels of a group
  bool is_rows;                                          // channels-last

  Sizes(const View& x, std::int64_t group_count) : samples(x.size[0]), channels(x.size[1]), groups(group_count) {
    width = channels / groups;
    inner = 1;
    for (int i = 2; i < x.ndim; ++i) inner *= x.size[i];
    is_rows = channels > 1 && x.stride[1] == 1;
  }
  double count() const { return static_cast<double>(width * inner); }
};

/// Neighbouring groups of one sample.
struct Task {
  std::int64_t sample, first_group, groups;
  std::int64_t first_channel, channels;
  std::int64_t offset;  ///< of the first element
};

/// Calls f(task) for all tasks, in parallel.
template <class F>
void for_each_task(const Sizes& sizes, F f) {
  const std::int64_t together =
      sizes.is_rows ? std::clamp<std::int64_t>(kEnough / std::max<std::int64_t>(sizes.width, 1), 1, sizes.groups) : 1;
  const std::int64_t per_sample = (sizes.groups + together - 1) / together;
  const std::int64_t grain =
      std::max<std::int64_t>(1, kGrainElements / std::max<std::int64_t>(together * sizes.width * sizes.inner, 1));
  parallel_for(sizes.samples * per_sample, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      Task task{};
      task.sample = i / per_sample;
      task.first_group = i % per_sample * together;
      task.groups = std::min(together, sizes.groups - task.first_group);
      task.first_channel = task.first_group * sizes.width;
      task.channels = task.groups * sizes.width;
      task.offset = sizes.is_rows ? task.sample * sizes.inner * sizes.channels + task.first_channel
                                  : (task.sample * sizes.channels + task.first_channel) * sizes.inner;
      f(task);
    }
  });
}

/// Two sums over rows for each of up to kTile columns: add(row, column, a, b).
template <class C, class Add>
void sum_columns(std::int64_t rows, std::int64_t columns, double* total_a, double* total_b, Add add) {
  std::fill_n(total_a, columns, 0.0);
  std::fill_n(total_b, columns, 0.0);
  for (std::int64_t begin = 0; begin < rows; begin += kRowBlock) {
    C a[kTile] = {}, b[kTile] = {};
    const std::int64_t end = std::min(rows, begin + kRowBlock);
    for (std::int64_t row = begin; row < end; ++row) {
#pragma GCC ivdep
      for (std::int64_t c = 0; c < columns; ++c) add(row, c, a[c], b[c]);
    }
    for (std::int64_t c = 0; c < columns; ++c) {
      total_a[c] += static_cast<double>(a[c]);
      total_b[c] += static_cast<double>(b[c]);
    }
  }
}

/// Two sums over the elements of each channel of a task, add(element's offset from the task's first, channel, a, b),
/// handed over as take(channel, a, b).
template <class C, class Add, class Take>
void sum_channels(const Sizes& sizes, const Task& task, Add add, Take take) {
  if (!sizes.is_rows) {
    for (std::int64_t c = 0; c < task.channels; ++c) {
      const std::int64_t first = c * sizes.inner;
      const SumPair<double> sums =
          sum_pair_blocks<C>(sizes.inner, [=](std::int64_t i, C& a, C& b) { add(first + i, c, a, b); });
      take(c, sums.a, sums.b);
    }
    return;
  }
  for (std::int64_t first = 0; first < task.channels; first += kTile) {
    const std::int64_t columns = std::min(kTile, task.channels - first), step = sizes.channels;
    double a[kTile], b[kTile];
    sum_columns<C>(sizes.inner, columns, a, b, [=](std::int64_t row, std::int64_t c, C& sum, C& other) {
      add(row * step + first + c, first + c, sum, other);
    });
    for (std::int64_t c = 0; c < columns; ++c) take(first + c, a[c], b[c]);
  }
}

/// Calls f(center), where center(channel) is the mean of a channel's group. Tasks of several groups have at most
/// kEnough channels.
template <class C, class F>
void with_centers(const Sizes& sizes, const Task& task, const C* mean, F f) {
  if (task.groups == 1) {
    const C only = mean[0];
    f([only](std::int64_t) { return only; });
    return;
  }
  C centers[kEnough];
  for (std::int64_t c = 0; c < task.channels; ++c) centers[c] = mean[c / sizes.width];
  f([&centers](std::int64_t c) { return centers[c]; });
}

/// The numbers that make one channel's result: y = (x - mean) * scale + shift; or, backward, dx = (dy * scale - shift)
/// + (x - mean) * slope.
template <class C>
struct ChannelTile {
  C mean[kTile], scale[kTile], shift[kTile], slope[kTile];
};

/// Calls set(tile, channel, slot) for the channels and one(tile, slot, offset) for the elements of a task.
template <class C, class Set, class One>
void map_elements(const Sizes& sizes, const Task& task, Set set, One one) {
  ChannelTile<C> tile;
  if (!sizes.is_rows) {
    for (std::int64_t c = 0; c < task.channels; ++c) {
      set(tile, c, 0);
      const C mean = tile.mean[0], scale = tile.scale[0], shift = tile.shift[0], slope = tile.slope[0];
      const std::int64_t first = c * sizes.inner;
#pragma GCC ivdep
      for (std::int64_t i = 0; i < sizes.inner; ++i) one(first + i, mean, scale, shift, slope);
    }
    return;
  }
  for (std::int64_t first = 0; first < task.channels; first += kTile) {
    const std::int64_t columns = std::min(kTile, task.channels - first);
    for (std::int64_t c = 0; c < columns; ++c) set(tile, first + c, c);
    for (std::int64_t row = 0; row < sizes.inner; ++row) {
      const std::int64_t at = row * sizes.channels + first;
#pragma GCC ivdep
      for (std::int64_t c = 0; c < columns; ++c) one(at + c, tile.mean[c], tile.scale[c], tile.shift[c], tile.slope[c]);
    }
  }
}

/// The sums over each group of a task's channels, divided by its elements.
template <class C, class Add>
void group_means(const Sizes& sizes, const Task& task, double* means, Add add) {
  std::fill_n(means, task.groups, 0.0);
  if (!sizes.is_rows) {  // the whole group lies together
    means[0] = sum_blocks<C>(sizes.width * sizes.inner, [add](std::int64_t i) {
      C sum = C(0);
      add(i, 0, sum);
      return sum;
    });
  } else {
    sum_channels<C>(
        sizes, task, [add](std::int64_t at, std::int64_t c, C& sum, C&) { add(at, c, sum); },
        [&](std::int64_t c, double sum, double) { means[c / sizes.width] += sum; });
  }
  for (std::int64_t g = 0; g < task.groups; ++g) means[g] /= sizes.count();
}

template <class T>
void run_forward(const GroupNormArgs& args) {
  using C = Computed<T>;
  const Sizes sizes(args.x, args.groups);
  for_each_task(sizes, [&](const Task& task) {
    const T* x = args.x.as<T>() + task.offset;
    T* y = args.y.as<T>() + task.offset;
    C* mean = args.mean.as<C>() + task.sample * sizes.groups + task.first_group;
    C* rstd = args.rstd.as<C>() + task.sample * sizes.groups + task.first_group;
    double means[kEnough];
    group_means<C>(sizes, task, means, [x](std::int64_t at, std::int64_t, C& sum) { sum += load(x[at]); });
    for (std::int64_t g = 0; g < task.groups; ++g) mean[g] = static_cast<C>(means[g]);
    with_centers<C>(sizes, task, mean, [&](auto center) {
      group_means<C>(sizes, task, means, [x, center](std::int64_t at, std::int64_t c, C& sum) {
        const C difference = load(x[at]) - center(c);
        sum += difference * difference;
      });
    });
    for (std::int64_t g = 0; g < task.groups; ++g) rstd[g] = static_cast<C>(1 / std::sqrt(means[g] + args.eps));
    const T* weight = args.weight.defined() ? args.weight.as<T>() + task.first_channel : nullptr;
    const T* bias = args.bias.defined() ? args.bias.as<T>() + task.first_channel : nullptr;
    map_elements<C>(
        sizes, task,
        [&](ChannelTile<C>& tile, std::int64_t c, std::int64_t slot) {
          const std::int64_t g = c / sizes.width;
          tile.mean[slot] = mean[g];
          tile.scale[slot] = weight != nullptr ? rstd[g] * load(weight[c]) : rstd[g];
          tile.shift[slot] = bias != nullptr ? load(bias[c]) : C(0);
          tile.slope[slot] = C(0);
        },
        [x, y](std::int64_t at, C center, C scale, C shift, C) {
          y[at] = store<T>(math::fma(load(x[at]) - center, scale, shift));
        });
  });
}

template <class T>
void input_gradient(const GroupNormBackwardArgs& args, const Sizes& sizes, const Task& task, const double* sums) {
  using C = Computed<T>;
  const T* x = args.x.as<T>() + task.offset;
  const T* dy = args.dy.as<T>() + task.offset;
  T* dx = args.dx.as<T>() + task.offset;
  const T* weight = args.weight.defined() ? args.weight.as<T>() + task.first_channel : nullptr;
  const C* mean = args.mean.as<C>() + task.sample * sizes.groups + task.first_group;
  const C* rstd = args.rstd.as<C>() + task.sample * sizes.groups + task.first_group;
  const auto weight_of = [&](std::int64_t c) { return weight != nullptr ? load(weight[c]) : C(1); };
  double averages[kEnough] = {}, slopes[kEnough] = {};
  for (std::int64_t c = 0; c < task.channels; ++c) {
    averages[c / sizes.width] += static_cast<double>(weight_of(c)) * sums[2 * c];
    slopes[c / sizes.width] += static_cast<double>(weight_of(c)) * sums[2 * c + 1];
  }
  for (std::int64_t g = 0; g < task.groups; ++g) {
    const double r = static_cast<double>(rstd[g]);
    averages[g] *= r / sizes.count();
    slopes[g] *= r * r * r / sizes.count();
  }
  map_elements<C>(
      sizes, task,
      [&](ChannelTile<C>& tile, std::int64_t c, std::int64_t slot) {
        const std::int64_t g = c / sizes.width;
        tile.mean[slot] = mean[g];
        tile.scale[slot] = rstd[g] * weight_of(c);
        tile.shift[slot] = static_cast<C>(averages[g]);
        tile.slope[slot] = static_cast<C>(slopes[g]);
      },
      [x, dy, dx](std::int64_t at, C center, C scale, C average, C slope) {
        dx[at] = store<T>(load(dy[at]) * scale - average - (load(x[at]) - center) * slope);
      });
}

template <class T>
void run_backward(const GroupNormBackwardArgs& args) {
  using C = Computed<T>;
  const Sizes sizes(args.x, args.groups);
  double* workspace = args.workspace.as<double>();
  for_each_task(sizes, [&](const Task& task) {
    // Sums of dy and dy * (x - mean), two for each channel.
    double* sums = workspace + (task.sample * sizes.channels + task.first_channel) * 2;
    const T* x = args.x.as<T>() + task.offset;
    const T* dy = args.dy.as<T>() + task.offset;
    const C* mean = args.mean.as<C>() + task.sample * sizes.groups + task.first_group;
    const auto take = [sums](std::int64_t c, double sum, double product) {
      sums[2 * c] = sum;
      sums[2 * c + 1] = product;
    };
    with_centers<C>(sizes, task, mean, [&](auto center) {
      const auto add = [x, dy, center](std::int64_t at, std::int64_t c, C& sum, C& product) {
        sum += load(dy[at]);
        product += load(dy[at]) * (load(x[at]) - center(c));
      };
      sum_channels<C>(sizes, task, add, take);
    });
    if (args.dx.defined()) input_gradient<T>(args, sizes, task, sums);
  });
  if (!args.dweight.defined() && !args.dbias.defined()) return;
  for (std::int64_t c = 0; c < sizes.channels; ++c) {
    double weight = 0, bias = 0;
    for (std::int64_t sample = 0; sample < sizes.samples; ++sample) {
      const double* sums = workspace + (sample * sizes.channels + c) * 2;
      bias += sums[0];
      weight += sums[1] * static_cast<double>(args.rstd.as<C>()[sample * sizes.groups + c / sizes.width]);
    }
    if (args.dweight.defined()) args.dweight.as<T>()[c] = store<T>(static_cast<C>(weight));
    if (args.dbias.defined()) args.dbias.as<T>()[c] = store<T>(static_cast<C>(bias));
  }
}

template <class F>
void visit_float(DType dtype, const char* op, F&& f) {
  dtype == DType::f64 ? f(TypeTag<double>{}) : visit_training_float(dtype, op, f);
}

}  // namespace

void run(const Cpu&, const GroupNormArgs& args) {
  visit_float(args.x.dtype, "group_norm", [&](auto tag) { run_forward<typename decltype(tag)::type>(args); });
}

void run(const Cpu&, const GroupNormBackwardArgs& args) {
  visit_float(args.x.dtype, "group_norm_backward", [&](auto tag) { run_backward<typename decltype(tag)::type>(args); });
}

}  // namespace castor
