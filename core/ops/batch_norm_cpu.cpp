// Batch norm forward on the CPU. In training x is read twice, for the statistics and for the result, which is the least
// possible: every result depends on every element of its channel. The statistics use the walk of the reductions, so
// row-major and channels-last both stream through memory and bits depend on the shape alone.
#include "core/ops/batch_norm_channels.h"

namespace castor {
namespace {

using namespace batch_norm;

/// Mean and variance of channels to the tensors that keep them.
template <class C>
struct StatisticsSink {
  C* mean;
  C* rstd;
  C* variance;
  double count, eps;

  void write(std::int64_t at, const Partial& total) const {
    mean[at] = static_cast<C>(total.a);
    rstd[at] = static_cast<C>(1 / std::sqrt(total.b / count + eps));
    variance[at] = static_cast<C>(total.b / (count - 1));
  }
};

template <class T>
Channel<Computed<T>> forward_channel(const BatchNormArgs& args, std::int64_t c) {
  using C = Computed<T>;
  const C rstd = args.is_training
                     ? args.rstd.as<C>()[c]
                     : static_cast<C>(1 / std::sqrt(static_cast<double>(args.variance.as<C>()[c]) + args.eps));
  Channel<C> channel{};
  channel.mean = args.mean.as<C>()[c];
  channel.scale = args.weight.defined() ? rstd * load(args.weight.as<T>()[c]) : rstd;
  channel.shift = args.bias.defined() ? load(args.bias.as<T>()[c]) : C(0);
  return channel;
}

template <class T, bool kHasResidual, bool kHasRelu>
void normalize(const BatchNormArgs& args) {
  using C = Computed<T>;
  const Layout layout(args.x);
  const T* all_x = args.x.as<T>();
  const T* all_residual = args.residual.as<T>();
  T* all_y = args.y.as<T>();
  const auto finish = [](C value, const T* residual, std::int64_t i) {
    if constexpr (kHasResidual) value += load(residual[i]);
    if constexpr (kHasRelu) value = value < C(0) ? C(0) : value;
    return store<T>(value);
  };
  for_each_part(
      layout,
      [&](std::int64_t first, std::int64_t count, std::int64_t begin, std::int64_t end) {
        ChannelTile<C> tile;
        for (std::int64_t c = 0; c < count; ++c) tile.set(c, forward_channel<T>(args, first + c));
        for (std::int64_t row = begin; row < end; ++row) {
          const std::int64_t at = row * layout.channels + first;
          const T* x = all_x + at;
          const T* residual = kHasResidual ? all_residual + at : nullptr;
          T* y = all_y + at;
#pragma GCC ivdep
          for (std::int64_t c = 0; c < count; ++c)
            y[c] = finish(normalized(load(x[c]), tile.mean[c], tile.scale[c], tile.shift[c]), residual, c);
        }
      },
      [&](std::int64_t plane, std::int64_t c) {
        const Channel<C> channel = forward_channel<T>(args, c);
        const std::int64_t at = plane * layout.inner;
        const T* x = all_x + at;
        const T* residual = kHasResidual ? all_residual + at : nullptr;
        T* y = all_y + at;
#pragma GCC ivdep
        for (std::int64_t i = 0; i < layout.inner; ++i)
          y[i] = finish(normalized(load(x[i]), channel.mean, channel.scale, channel.shift), residual, i);
      });
}

template <class T>
void run_forward(const BatchNormArgs& args) {
  using C = Computed<T>;
  if (args.is_training) {
    using Op = reduction::Variance;
    const ReducePlan plan = channel_plan(args.x);
    const StatisticsSink<C> sink{args.mean.as<C>(), args.rstd.as<C>(), args.variance.as<C>(),
                                 static_cast<double>(plan.count), args.eps};
    reduce_by_plan<Op>(plan, reduction::SingleSource<Op, T>{args.x.as<T>()}, sink, args.workspace.as<double>());
  }
  if (args.residual.defined()) {
    args.has_relu ? normalize<T, true, true>(args) : normalize<T, true, false>(args);
  } else {
    args.has_relu ? normalize<T, false, true>(args) : normalize<T, false, false>(args);
  }
}

}  // namespace

void run(const Cpu&, const BatchNormArgs& args) {
  visit_float(args.x.dtype, "batch_norm", [&](auto tag) { run_forward<typename decltype(tag)::type>(args); });
}

}  // namespace castor
