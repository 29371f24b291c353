// Batch norm backward on the CPU: one walk over x and dy for two sums a channel, one for dx.
//
// Delicate: without a residual, relu's mask is computed from x with the very expression of forward, which spares
// reading y twice.
#include "core/ops/batch_norm_channels.h"

namespace castor {
namespace {

using namespace batch_norm;
using reduction::kRowsAtOnce;

enum class Mask { none, from_result, from_input };

/// Two sums, joined by adding.
struct TwoSums {
  static constexpr bool kPaired = true;
  static constexpr Partial identity() { return {}; }
  static CASTOR_HOST_DEVICE void merge(double& a, double& b, double, double part_a, double part_b, double) {
    a += part_a;
    b += part_b;
  }
};

/// dz: dy where relu let x through.
template <Mask kMask, class C>
CASTOR_HOST_DEVICE C masked(C dy, C x, C y, C mean, C scale, C shift) {
  if constexpr (kMask == Mask::from_result) return y > C(0) ? dy : C(0);
  if constexpr (kMask == Mask::from_input) return normalized(x, mean, scale, shift) > C(0) ? dy : C(0);
  return dy;
}

template <class T>
Channel<Computed<T>> backward_channel(const BatchNormBackwardArgs& args, std::int64_t c) {
  using C = Computed<T>;
  Channel<C> channel{};
  channel.mean = args.mean.as<C>()[c];
  channel.scale = args.weight.defined() ? args.rstd.as<C>()[c] * load(args.weight.as<T>()[c]) : args.rstd.as<C>()[c];
  channel.shift = args.bias.defined() ? load(args.bias.as<T>()[c]) : C(0);
  return channel;
}

/// Sums of dz and dz * (x - mean) by channel.
template <class T, Mask kMask>
struct GradientSource {
  using Value = Computed<T>;
  const BatchNormBackwardArgs& args;

  Partial row(std::int64_t offset, const ReducePiece& piece, std::int64_t c) const {
    Value buffers[3][ReducePlan::kPiece];
    const Value* x = gathered(args.x.as<T>() + offset, piece, buffers[0]);
    const Value* dy = gathered(args.dy.as<T>() + offset, piece, buffers[1]);
    const Value* y = kMask == Mask::from_result ? gathered(args.y.as<T>() + offset, piece, buffers[2]) : x;
    const Channel<Value> channel = backward_channel<T>(args, c);
    const Value mean = channel.mean, scale = channel.scale, shift = channel.shift;
    const SumPair<Value> sums = sum_pair_lanes<Value>(piece.numel(), [=](std::int64_t i, Value& a, Value& b) {
      const Value dz = masked<kMask>(dy[i], x[i], y[i], mean, scale, shift);
      a += dz;
      b += dz * (x[i] - mean);
    });
    return {static_cast<double>(sums.a), static_cast<double>(sums.b)};
  }

  void columns(const std::int64_t* offsets, std::int64_t rows, std::int64_t stride, std::int64_t count,
               std::int64_t first, std::int64_t, Value* a, Value* b) const {
    Value buffers[kRowsAtOnce][3][kTile];
    ChannelTile<Value> tile;
    for (std::int64_t c = 0; c < count; ++c) {
      tile.set(c, backward_channel<T>(args, first + c));
      a[c] = b[c] = Value(0);
    }
    struct Row {
      const Value *x, *dy, *y;
    };
    const auto row_at = [&](std::int64_t r, std::int64_t k) {
      Row row{};
      row.x = gathered(args.x.as<T>() + offsets[r], stride, count, buffers[k][0]);
      row.dy = gathered(args.dy.as<T>() + offsets[r], stride, count, buffers[k][1]);
      row.y = kMask == Mask::from_result ? gathered(args.y.as<T>() + offsets[r], stride, count, buffers[k][2]) : row.x;
      return row;
    };
    const auto add = [&tile](const Row& row, std::int64_t c, Value& sum, Value& product) {
      const Value dz = masked<kMask>(row.dy[c], row.x[c], row.y[c], tile.mean[c], tile.scale[c], tile.shift[c]);
      sum += dz;
      product += dz * (row.x[c] - tile.mean[c]);
    };
    std::int64_t r = 0;
    for (; r + kRowsAtOnce <= rows; r += kRowsAtOnce) {
      const Row p = row_at(r, 0), q = row_at(r + 1, 1), s = row_at(r + 2, 2), t = row_at(r + 3, 3);
#pragma GCC ivdep
      for (std::int64_t c = 0; c < count; ++c) {
        Value sum = a[c], product = b[c];
        add(p, c, sum, product);
        add(q, c, sum, product);
        add(s, c, sum, product);
        add(t, c, sum, product);
        a[c] = sum;
        b[c] = product;
      }
    }
    for (; r < rows; ++r) {
      const Row p = row_at(r, 0);
#pragma GCC ivdep
      for (std::int64_t c = 0; c < count; ++c) add(p, c, a[c], b[c]);
    }
  }
};

/// Weight gradients, and what dx needs: averages of the two sums, in the workspace's first 2 C numbers.
template <class T>
struct GradientSink {
  const BatchNormBackwardArgs& args;
  double* averages;
  double count;

  void write(std::int64_t c, const Partial& total) const {
    using C = Computed<T>;
    const double rstd = static_cast<double>(args.rstd.as<C>()[c]);
    if (args.dweight.defined()) args.dweight.as<T>()[c] = store<T>(static_cast<C>(total.b * rstd));
    if (args.dbias.defined()) args.dbias.as<T>()[c] = store<T>(static_cast<C>(total.a));
    averages[2 * c] = total.a / count;
    averages[2 * c + 1] = total.b / count * rstd * rstd;
  }
};

template <class T, Mask kMask>
void input_gradient(const BatchNormBackwardArgs& args, const double* averages) {
  using C = Computed<T>;
  const Layout layout(args.x);
  const bool wants_dx = args.dx.defined(), wants_residual = args.dresidual.defined();
  const auto channel_of = [&](std::int64_t c) {
    Channel<C> channel = backward_channel<T>(args, c);
    if (args.is_training) {
      channel.average = static_cast<C>(averages[2 * c]);
      channel.slope = static_cast<C>(averages[2 * c + 1]);
    }
    return channel;
  };
  const T* all_y = kMask == Mask::from_result ? args.y.as<T>() : args.x.as<T>();
  for_each_part(
      layout,
      [&](std::int64_t first, std::int64_t count, std::int64_t begin, std::int64_t end) {
        ChannelTile<C> t;
        for (std::int64_t c = 0; c < count; ++c) t.set(c, channel_of(first + c));
        for (std::int64_t row = begin; row < end; ++row) {
          const std::int64_t at = row * layout.channels + first;
          const T *x = args.x.as<T>() + at, *dy = args.dy.as<T>() + at, *y = all_y + at;
          if (wants_dx) {
            T* dx = args.dx.as<T>() + at;
#pragma GCC ivdep
            for (std::int64_t c = 0; c < count; ++c) {
              const C value = load(x[c]),
                      dz = masked<kMask>(load(dy[c]), value, load(y[c]), t.mean[c], t.scale[c], t.shift[c]);
              dx[c] = store<T>(t.scale[c] * (dz - t.average[c] - (value - t.mean[c]) * t.slope[c]));
            }
          }
          if (wants_residual) {
            T* dresidual = args.dresidual.as<T>() + at;
#pragma GCC ivdep
            for (std::int64_t c = 0; c < count; ++c) {
              dresidual[c] =
                  store<T>(masked<kMask>(load(dy[c]), load(x[c]), load(y[c]), t.mean[c], t.scale[c], t.shift[c]));
            }
          }
        }
      },
      [&](std::int64_t plane, std::int64_t c) {
        const Channel<C> t = channel_of(c);
        const std::int64_t at = plane * layout.inner;
        const T *x = args.x.as<T>() + at, *dy = args.dy.as<T>() + at, *y = all_y + at;
        if (wants_dx) {
          T* dx = args.dx.as<T>() + at;
#pragma GCC ivdep
          for (std::int64_t i = 0; i < layout.inner; ++i) {
            const C value = load(x[i]), dz = masked<kMask>(load(dy[i]), value, load(y[i]), t.mean, t.scale, t.shift);
            dx[i] = store<T>(t.scale * (dz - t.average - (value - t.mean) * t.slope));
          }
        }
        if (wants_residual) {
          T* dresidual = args.dresidual.as<T>() + at;
#pragma GCC ivdep
          for (std::int64_t i = 0; i < layout.inner; ++i) {
            dresidual[i] = store<T>(masked<kMask>(load(dy[i]), load(x[i]), load(y[i]), t.mean, t.scale, t.shift));
          }
        }
      });
}

template <class T, Mask kMask>
void run_backward(const BatchNormBackwardArgs& args) {
  double* averages = args.workspace.as<double>();
  const bool needs_sums = args.dweight.defined() || args.dbias.defined() || (args.is_training && args.dx.defined());
  if (needs_sums) {
    const ReducePlan plan = channel_plan(args.x);
    const GradientSink<T> sink{args, averages, static_cast<double>(std::max<std::int64_t>(plan.count, 1))};
    reduce_by_plan<TwoSums>(plan, GradientSource<T, kMask>{args}, sink, averages + 2 * args.x.size[1]);
  }
  if (args.dx.defined() || args.dresidual.defined()) input_gradient<T, kMask>(args, averages);
}

}  // namespace

void run(const Cpu&, const BatchNormBackwardArgs& args) {
  visit_float(args.x.dtype, "batch_norm_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (!args.has_relu) {
      run_backward<T, Mask::none>(args);
    } else if (args.y.defined()) {
      run_backward<T, Mask::from_result>(args);
    } else {
      run_backward<T, Mask::from_input>(args);
    }
  });
}

}  // namespace castor
