// Group norm on the CPU: one task for each sample and group. In row-major a group is one stretch of memory; in
// channels-last it is a few neighbouring numbers in each row, summed by columns.
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
constexpr std::int64_t kTile = 128;      // channels handled at a time in channels-last
constexpr std::int64_t kRowBlock = 128;  // rows summed in f32 in channels-last

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
  std::int64_t sample(std::int64_t task) const { return task / groups; }
  std::int64_t first_channel(std::int64_t task) const { return task % groups * width; }
  /// Offset of a task's first element.
  std::int64_t offset(std::int64_t task) const {
    return is_rows ? sample(task) * inner * channels + first_channel(task)
                   : (sample(task) * channels + first_channel(task)) * inner;
  }
  std::int64_t grain() const {
    return std::max<std::int64_t>(1, kGrainElements / std::max<std::int64_t>(width * inner, 1));
  }
};

/// The sums over rows of up to kTile columns: add(row, column, a, b), in C for 128 rows and in f64 over them.
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

/// The sum of value(x) over a group's elements.
template <class T, class Value>
double sum_group(const Sizes& sizes, const T* x, Value value) {
  using C = Computed<T>;
  if (!sizes.is_rows)
    return sum_blocks<C>(sizes.width * sizes.inner, [=](std::int64_t i) { return value(load(x[i])); });
  double total = 0;
  for (std::int64_t first = 0; first < sizes.width; first += kTile) {
    const std::int64_t columns = std::min(kTile, sizes.width - first), step = sizes.channels;
    const T* tile = x + first;
    double a[kTile], b[kTile];
    sum_columns<C>(sizes.inner, columns, a, b,
                   [=](std::int64_t row, std::int64_t c, C& sum, C&) { sum += value(load(tile[row * step + c])); });
    for (std::int64_t c = 0; c < columns; ++c) total += a[c];
  }
  return total;
}

/// Calls f(first element, elements, first channel, channels, step between channels' elements) -- see the two walks --
/// on the stretches of a group that lie together: a plane of one channel, or a row of its channels.
template <class Plane, class Row>
void for_each_stretch(const Sizes& sizes, Plane plane, Row row) {
  if (sizes.is_rows) {
    for (std::int64_t r = 0; r < sizes.inner; ++r) row(r * sizes.channels);
  } else {
    for (std::int64_t c = 0; c < sizes.width; ++c) plane(c * sizes.inner, c);
  }
}

template <class T>
void run_forward(const GroupNormArgs& args) {
  using C = Computed<T>;
  const Sizes sizes(args.x, args.groups);
  const double count = static_cast<double>(sizes.width * sizes.inner);
  parallel_for(sizes.samples * sizes.groups, sizes.grain(), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t task = begin; task < end; ++task) {
      const T* x = args.x.as<T>() + sizes.offset(task);
      T* y = args.y.as<T>() + sizes.offset(task);
      const C mean = static_cast<C>(sum_group(sizes, x, [](C value) { return value; }) / count);
      const double squares = sum_group(sizes, x, [mean](C value) { return (value - mean) * (value - mean); });
      const C rstd = static_cast<C>(1 / std::sqrt(squares / count + args.eps));
      args.mean.as<C>()[task] = mean;
      args.rstd.as<C>()[task] = rstd;
      const T* weight = args.weight.defined() ? args.weight.as<T>() + sizes.first_channel(task) : nullptr;
      const T* bias = args.bias.defined() ? args.bias.as<T>() + sizes.first_channel(task) : nullptr;
      const auto scale_of = [&](std::int64_t c) { return weight != nullptr ? rstd * load(weight[c]) : rstd; };
      const auto shift_of = [&](std::int64_t c) { return bias != nullptr ? load(bias[c]) : C(0); };
      for_each_stretch(
          sizes,
          [&](std::int64_t at, std::int64_t c) {
            const C scale = scale_of(c), shift = shift_of(c);
            const T* from = x + at;
            T* to = y + at;
#pragma GCC ivdep
            for (std::int64_t i = 0; i < sizes.inner; ++i)
              to[i] = store<T>(math::fma(load(from[i]) - mean, scale, shift));
          },
          [&](std::int64_t at) {
            const T* from = x + at;
            T* to = y + at;
            for (std::int64_t c = 0; c < sizes.width; ++c)
              to[c] = store<T>(math::fma(load(from[c]) - mean, scale_of(c), shift_of(c)));
          });
    }
  });
}

/// Sums of dy and dy * (x - mean) for each channel of a task, into sums[2 * channel].
template <class T>
void channel_sums(const Sizes& sizes, const T* x, const T* dy, Computed<T> mean, double* sums) {
  using C = Computed<T>;
  if (!sizes.is_rows) {
    for (std::int64_t c = 0; c < sizes.width; ++c) {
      const T *plane = x + c * sizes.inner, *dplane = dy + c * sizes.inner;
      const SumPair<double> pair = sum_pair_blocks<C>(sizes.inner, [=](std::int64_t i, C& a, C& b) {
        const C d = load(dplane[i]);
        a += d;
        b += d * (load(plane[i]) - mean);
      });
      sums[2 * c] = pair.a;
      sums[2 * c + 1] = pair.b;
    }
    return;
  }
  for (std::int64_t first = 0; first < sizes.width; first += kTile) {
    const std::int64_t columns = std::min(kTile, sizes.width - first), step = sizes.channels;
    double a[kTile], b[kTile];
    sum_columns<C>(sizes.inner, columns, a, b, [=](std::int64_t row, std::int64_t c, C& sum, C& product) {
      const std::int64_t at = row * step + first + c;
      const C d = load(dy[at]);
      sum += d;
      product += d * (load(x[at]) - mean);
    });
    for (std::int64_t c = 0; c < columns; ++c) {
      sums[2 * (first + c)] = a[c];
      sums[2 * (first + c) + 1] = b[c];
    }
  }
}

template <class T>
void input_gradient(const GroupNormBackwardArgs& args, const Sizes& sizes, std::int64_t task, const double* sums) {
  using C = Computed<T>;
  const T* x = args.x.as<T>() + sizes.offset(task);
  const T* dy = args.dy.as<T>() + sizes.offset(task);
  T* dx = args.dx.as<T>() + sizes.offset(task);
  const T* weight = args.weight.defined() ? args.weight.as<T>() + sizes.first_channel(task) : nullptr;
  const C mean = args.mean.as<C>()[task], rstd = args.rstd.as<C>()[task];
  const auto weight_of = [&](std::int64_t c) { return weight != nullptr ? load(weight[c]) : C(1); };
  const double count = static_cast<double>(sizes.width * sizes.inner);
  double sum = 0, product = 0;
  for (std::int64_t c = 0; c < sizes.width; ++c) {
    sum += static_cast<double>(weight_of(c)) * sums[2 * c];
    product += static_cast<double>(weight_of(c)) * sums[2 * c + 1];
  }
  const C average = static_cast<C>(sum / count);
  const C slope = static_cast<C>(product / count * static_cast<double>(rstd) * static_cast<double>(rstd));
  for_each_stretch(
      sizes,
      [&](std::int64_t at, std::int64_t c) {
        const C w = weight_of(c);
        const T *from = x + at, *dfrom = dy + at;
        T* to = dx + at;
#pragma GCC ivdep
        for (std::int64_t i = 0; i < sizes.inner; ++i)
          to[i] = store<T>(rstd * (load(dfrom[i]) * w - average - (load(from[i]) - mean) * slope));
      },
      [&](std::int64_t at) {
        const T *from = x + at, *dfrom = dy + at;
        T* to = dx + at;
        for (std::int64_t c = 0; c < sizes.width; ++c) {
          to[c] = store<T>(rstd * (load(dfrom[c]) * weight_of(c) - average - (load(from[c]) - mean) * slope));
        }
      });
}

template <class T>
void run_backward(const GroupNormBackwardArgs& args) {
  using C = Computed<T>;
  const Sizes sizes(args.x, args.groups);
  double* workspace = args.workspace.as<double>();
  parallel_for(sizes.samples * sizes.groups, sizes.grain(), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t task = begin; task < end; ++task) {
      double* sums = workspace + (sizes.sample(task) * sizes.channels + sizes.first_channel(task)) * 2;
      channel_sums<T>(sizes, args.x.as<T>() + sizes.offset(task), args.dy.as<T>() + sizes.offset(task),
                      args.mean.as<C>()[task], sums);
      if (args.dx.defined()) input_gradient<T>(args, sizes, task, sums);
    }
  });
  if (!args.dweight.defined() && !args.dbias.defined()) return;
  parallel_for(sizes.channels, std::max<std::int64_t>(1, kGrainElements / std::max<std::int64_t>(sizes.samples, 1)),
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t c = begin; c < end; ++c) {
                   double weight = 0, bias = 0;
                   for (std::int64_t sample = 0; sample < sizes.samples; ++sample) {
                     const double* sums = workspace + (sample * sizes.channels + c) * 2;
                     bias += sums[0];
                     weight +=
                         sums[1] * static_cast<double>(args.rstd.as<C>()[sample * sizes.groups + c / sizes.width]);
                   }
                   if (args.dweight.defined()) args.dweight.as<T>()[c] = store<T>(static_cast<C>(weight));
                   if (args.dbias.defined()) args.dbias.as<T>()[c] = store<T>(static_cast<C>(bias));
                 }
               });
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
