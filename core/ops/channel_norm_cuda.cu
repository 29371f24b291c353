// Batch and group norm on CUDA, for row-major and channels-last operands: one kernel that sums two functions of the
// elements of a segment (a channel; a group of a sample; a channel of a sample) in f64, and one map over elements.
//
// Delicate: sums have a fixed order: a thread's elements, lanes, warps. In channels-last a block takes 32 neighbouring
// channels of batch norm, so that its accesses are coalesced. Statistics are taken in two walks, mean first.
#include <cmath>

#include "core/ops/norm.h"
#include "core/ops/rows_cuda.cuh"

namespace castor {
namespace {

using cuda::Computed;
using cuda::visit_float;

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;

/// Where the elements of [samples, channels, inner] lie.
struct Layout {
  std::int64_t samples, channels, inner;
  bool is_rows;  ///< channels-last

  explicit Layout(const View& x) : samples(x.size[0]), channels(x.size[1]), inner(1) {
    for (int i = 2; i < x.ndim; ++i) inner *= x.size[i];
    is_rows = channels > 1 && x.stride[1] == 1;
  }
  __device__ std::int64_t offset(std::int64_t sample, std::int64_t channel, std::int64_t i) const {
    return is_rows ? (sample * inner + i) * channels + channel : (sample * channels + channel) * inner + i;
  }
  __device__ std::int64_t channel_of(std::int64_t at) const { return (is_rows ? at : at / inner) % channels; }
  __device__ std::int64_t sample_of(std::int64_t at) const { return at / (channels * inner); }
  std::int64_t numel() const { return samples * channels * inner; }
};

/// Two sums over a block's 256 threads, in thread 0.
__device__ SumPair<double> join_block(double a, double b) {
  __shared__ SumPair<double> parts[kWarps];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  a = cuda::join_lanes(a, cuda::AddLanes{});
  b = cuda::join_lanes(b, cuda::AddLanes{});
  if (lane == 0) parts[warp] = {a, b};
  __syncthreads();
  SumPair<double> total{0, 0};
  for (int w = 0; w < kWarps; ++w) {
    total.a += parts[w].a;
    total.b += parts[w].b;
  }
  return total;
}

/// For each channel: take(channel, sums of add(offset, channel, a, b) over all its elements).
template <class Add, class Take>
__global__ void __launch_bounds__(kThreads) channel_sums(const Layout layout, const Add add, const Take take) {
  double a = 0, b = 0;
  if (!layout.is_rows) {
    const std::int64_t channel = blockIdx.x;
    for (std::int64_t sample = 0; sample < layout.samples; ++sample) {
      for (std::int64_t i = threadIdx.x; i < layout.inner; i += kThreads)
        add(layout.offset(sample, channel, i), channel, a, b);
    }
    const SumPair<double> total = join_block(a, b);
    if (threadIdx.x == 0) take(channel, total);
    return;
  }
  __shared__ SumPair<double> parts[kWarps][32];
  const std::int64_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, channel = blockIdx.x * 32 + lane;
  if (channel < layout.channels) {
    for (std::int64_t row = warp; row < layout.samples * layout.inner; row += kWarps)
      add(row * layout.channels + channel, channel, a, b);
  }
  parts[warp][lane] = {a, b};
  __syncthreads();
  if (warp != 0 || channel >= layout.channels) return;
  SumPair<double> total{0, 0};
  for (int w = 0; w < kWarps; ++w) {
    total.a += parts[w][lane].a;
    total.b += parts[w][lane].b;
  }
  take(channel, total);
}

/// For each sample and run of `width` channels: take(sample * runs + run, sums of add(offset, sample, channel, a, b)).
template <class Add, class Take>
__global__ void __launch_bounds__(kThreads)
    run_sums(const Layout layout, std::int64_t width, const Add add, const Take take) {
  const std::int64_t runs = layout.channels / width, sample = blockIdx.x / runs, first = blockIdx.x % runs * width;
  double a = 0, b = 0;
  for (std::int64_t j = threadIdx.x; j < width * layout.inner; j += kThreads) {
    const std::int64_t channel = first + (layout.is_rows ? j % width : j / layout.inner);
    add(layout.offset(sample, channel, layout.is_rows ? j / width : j % layout.inner), sample, channel, a, b);
  }
  const SumPair<double> total = join_block(a, b);
  if (threadIdx.x == 0) take(static_cast<std::int64_t>(blockIdx.x), total);
}

template <class One>
__global__ void __launch_bounds__(kThreads) map_elements(const std::int64_t count, const One one) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; at < count; at += step)
    one(at);
}

/// Launches on one device's stream.
struct Launcher {
  const Cuda& cuda;
  const char* op;
  Layout layout;

  template <class Add, class Take>
  void by_channel(const Add& add, const Take& take) const {
    const std::int64_t blocks = layout.is_rows ? (layout.channels + 31) / 32 : layout.channels;
    if (blocks == 0) return;
    channel_sums<<<static_cast<unsigned>(blocks), kThreads, 0, stream_of(cuda)>>>(layout, add, take);
    check_cuda(cudaGetLastError(), op, cuda.device);
  }
  template <class Add, class Take>
  void by_run(std::int64_t width, const Add& add, const Take& take) const {
    const std::int64_t blocks = width == 0 ? 0 : layout.samples * (layout.channels / width);
    if (blocks == 0) return;
    run_sums<<<static_cast<unsigned>(blocks), kThreads, 0, stream_of(cuda)>>>(layout, width, add, take);
    check_cuda(cudaGetLastError(), op, cuda.device);
  }
  template <class One>
  void map(std::int64_t count, const One& one) const {
    if (count == 0) return;
    const std::int64_t blocks = std::min<std::int64_t>((count + kThreads - 1) / kThreads, 1 << 20);
    map_elements<<<static_cast<unsigned>(blocks), kThreads, 0, stream_of(cuda)>>>(count, one);
    check_cuda(cudaGetLastError(), op, cuda.device);
  }
};

// Functors are structs, not lambdas: nvcc would want an option of its own for those.

// ---------------------------------------------------------------------------------------------- batch norm

template <class T>
struct AddValue {
  const T* x;
  __device__ void operator()(std::int64_t at, std::int64_t, double& a, double&) const {
    a += static_cast<double>(load(x[at]));
  }
  __device__ void operator()(std::int64_t at, std::int64_t, std::int64_t, double& a, double&) const {
    a += static_cast<double>(load(x[at]));
  }
};

/// Sums of squared differences from the mean of the element's channel (or of its group, with a width).
template <class T>
struct AddSquare {
  const T* x;
  const Computed<T>* mean;
  std::int64_t groups = 0, width = 1;
  __device__ void operator()(std::int64_t at, std::int64_t channel, double& a, double&) const {
    const double difference = static_cast<double>(load(x[at])) - static_cast<double>(mean[channel]);
    a += difference * difference;
  }
  __device__ void operator()(std::int64_t at, std::int64_t sample, std::int64_t channel, double& a, double& b) const {
    (*this)(at, sample * groups + channel / width, a, b);
  }
};

template <class C>
struct TakeMean {
  C* mean;
  double count;
  __device__ void operator()(std::int64_t at, const SumPair<double>& sums) const {
    mean[at] = static_cast<C>(sums.a / count);
  }
};

template <class C>
struct TakeVariance {
  C *rstd, *variance;  // variance may be nullptr
  double count, eps;
  __device__ void operator()(std::int64_t at, const SumPair<double>& sums) const {
    rstd[at] = static_cast<C>(1 / std::sqrt(sums.a / count + eps));
    if (variance != nullptr) variance[at] = static_cast<C>(sums.a / (count - 1));
  }
};

template <class T>
struct BatchForward {
  using C = Computed<T>;
  Layout layout;
  const T *x, *weight, *bias, *residual;
  T* y;
  const C *mean, *rstd, *variance;  // rstd absent in evaluation
  double eps;
  bool has_relu;
  __device__ void operator()(std::int64_t at) const {
    const std::int64_t c = layout.channel_of(at);
    C scale = rstd != nullptr ? rstd[c] : static_cast<C>(1 / std::sqrt(static_cast<double>(variance[c]) + eps));
    if (weight != nullptr) scale *= load(weight[c]);
    C value = math::fma(load(x[at]) - mean[c], scale, bias != nullptr ? load(bias[c]) : C(0));
    if (residual != nullptr) value += load(residual[at]);
    if (has_relu) value = value < C(0) ? C(0) : value;
    y[at] = store<T>(value);
  }
};

/// dy behind relu's mask, for both walks of batch norm's backward.
template <class T>
struct Masked {
  using C = Computed<T>;
  const T *x, *weight, *bias, *y, *dy;
  const C *mean, *rstd;
  bool has_relu;
  __device__ C scale(std::int64_t c) const { return weight != nullptr ? rstd[c] * load(weight[c]) : rstd[c]; }
  __device__ C operator()(std::int64_t at, std::int64_t c) const {
    const C d = load(dy[at]);
    if (!has_relu) return d;
    const C result =
        y != nullptr ? load(y[at]) : math::fma(load(x[at]) - mean[c], scale(c), bias != nullptr ? load(bias[c]) : C(0));
    return result > C(0) ? d : C(0);
  }
};

template <class T>
struct AddBatchGradient {
  Masked<T> masked;
  __device__ void operator()(std::int64_t at, std::int64_t c, double& a, double& b) const {
    const Computed<T> dz = masked(at, c);
    a += static_cast<double>(dz);
    b += static_cast<double>(dz * (load(masked.x[at]) - masked.mean[c]));
  }
};

template <class T>
struct TakeBatchGradient {
  using C = Computed<T>;
  const C* rstd;
  T *dweight, *dbias;
  double* averages;
  double count;
  __device__ void operator()(std::int64_t c, const SumPair<double>& sums) const {
    const double r = static_cast<double>(rstd[c]);
    if (dweight != nullptr) dweight[c] = store<T>(static_cast<C>(sums.b * r));
    if (dbias != nullptr) dbias[c] = store<T>(static_cast<C>(sums.a));
    averages[2 * c] = sums.a / count;
    averages[2 * c + 1] = sums.b / count * r * r;
  }
};

template <class T>
struct BatchInputGradient {
  using C = Computed<T>;
  Layout layout;
  Masked<T> masked;
  T *dx, *dresidual;
  const double* averages;  // nullptr in evaluation
  __device__ void operator()(std::int64_t at) const {
    const std::int64_t c = layout.channel_of(at);
    const C dz = masked(at, c);
    if (dresidual != nullptr) dresidual[at] = store<T>(dz);
    if (dx == nullptr) return;
    C average = C(0), slope = C(0);
    if (averages != nullptr) {
      average = static_cast<C>(averages[2 * c]);
      slope = static_cast<C>(averages[2 * c + 1]);
    }
    dx[at] = store<T>(masked.scale(c) * (dz - average - (load(masked.x[at]) - masked.mean[c]) * slope));
  }
};

// ---------------------------------------------------------------------------------------------- group norm

template <class T>
struct GroupForward {
  using C = Computed<T>;
  Layout layout;
  const T *x, *weight, *bias;
  T* y;
  const C *mean, *rstd;
  std::int64_t groups, width;
  __device__ void operator()(std::int64_t at) const {
    const std::int64_t c = layout.channel_of(at), g = layout.sample_of(at) * groups + c / width;
    const C scale = weight != nullptr ? rstd[g] * load(weight[c]) : rstd[g];
    y[at] = store<T>(math::fma(load(x[at]) - mean[g], scale, bias != nullptr ? load(bias[c]) : C(0)));
  }
};

template <class T>
struct AddGroupGradient {
  const T *x, *dy;
  const Computed<T>* mean;
  std::int64_t groups, width;
  __device__ void operator()(std::int64_t at, std::int64_t sample, std::int64_t channel, double& a, double& b) const {
    const Computed<T> d = load(dy[at]);
    a += static_cast<double>(d);
    b += static_cast<double>(d * (load(x[at]) - mean[sample * groups + channel / width]));
  }
};

struct TakePair {
  double* sums;
  __device__ void operator()(std::int64_t at, const SumPair<double>& pair) const {
    sums[2 * at] = pair.a;
    sums[2 * at + 1] = pair.b;
  }
};

/// What dx of one sample's group is made of, from its channels' sums in order.
template <class T>
struct GroupTerms {
  using C = Computed<T>;
  const T* weight;
  const C* rstd;
  const double* sums;
  double* terms;  ///< [sample, group, 2]: what all its elements lose, and what they lose for each unit of x - mean
  std::int64_t groups, width;
  double count;
  __device__ void operator()(std::int64_t g) const {
    const double* const own = sums + g * width * 2;
    double average = 0, slope = 0;
    for (std::int64_t k = 0; k < width; ++k) {
      const double w = weight != nullptr ? static_cast<double>(load(weight[g % groups * width + k])) : 1.0;
      average += w * own[2 * k];
      slope += w * own[2 * k + 1];
    }
    const double r = static_cast<double>(rstd[g]);
    terms[2 * g] = average * (r / count);
    terms[2 * g + 1] = slope * (r * r * r / count);
  }
};

template <class T>
struct GroupInputGradient {
  using C = Computed<T>;
  Layout layout;
  const T *x, *weight, *dy;
  T* dx;
  const C *mean, *rstd;
  const double* terms;
  std::int64_t groups, width;
  __device__ void operator()(std::int64_t at) const {
    const std::int64_t c = layout.channel_of(at), g = layout.sample_of(at) * groups + c / width;
    const C scale = weight != nullptr ? rstd[g] * load(weight[c]) : rstd[g];
    dx[at] = store<T>(load(dy[at]) * scale - static_cast<C>(terms[2 * g]) -
                      (load(x[at]) - mean[g]) * static_cast<C>(terms[2 * g + 1]));
  }
};

/// dweight and dbias of one channel, over samples in order.
template <class T>
struct GroupWeightGradient {
  using C = Computed<T>;
  const double* sums;
  const C* rstd;
  T *dweight, *dbias;
  std::int64_t samples, channels, groups, width;
  __device__ void operator()(std::int64_t c) const {
    double weight = 0, bias = 0;
    for (std::int64_t sample = 0; sample < samples; ++sample) {
      const double* const own = sums + (sample * channels + c) * 2;
      bias += own[0];
      weight += own[1] * static_cast<double>(rstd[sample * groups + c / width]);
    }
    if (dweight != nullptr) dweight[c] = store<T>(static_cast<C>(weight));
    if (dbias != nullptr) dbias[c] = store<T>(static_cast<C>(bias));
  }
};

}  // namespace

void run(const Cuda& cuda, const BatchNormArgs& args) {
  const Launcher launcher{cuda, BatchNormArgs::kName, Layout(args.x)};
  const Layout& layout = launcher.layout;
  const double count = static_cast<double>(layout.samples * layout.inner);
  visit_float(args.x.dtype, BatchNormArgs::kName, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using C = Computed<T>;
    if (args.is_training) {
      launcher.by_channel(AddValue<T>{args.x.as<T>()}, TakeMean<C>{args.mean.as<C>(), count});
      launcher.by_channel(AddSquare<T>{args.x.as<T>(), args.mean.as<C>()},
                          TakeVariance<C>{args.rstd.as<C>(), args.variance.as<C>(), count, args.eps});
    }
    launcher.map(layout.numel(),
                 BatchForward<T>{layout, args.x.as<T>(), args.weight.as<T>(), args.bias.as<T>(), args.residual.as<T>(),
                                 args.y.as<T>(), args.mean.as<C>(), args.is_training ? args.rstd.as<C>() : nullptr,
                                 args.variance.as<C>(), args.eps, args.has_relu});
  });
}

void run(const Cuda& cuda, const BatchNormBackwardArgs& args) {
  const Launcher launcher{cuda, BatchNormBackwardArgs::kName, Layout(args.x)};
  const Layout& layout = launcher.layout;
  double* const averages = args.workspace.as<double>();
  visit_float(args.x.dtype, BatchNormBackwardArgs::kName, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using C = Computed<T>;
    const Masked<T> masked{args.x.as<T>(),  args.weight.as<T>(), args.bias.as<T>(), args.y.as<T>(),
                           args.dy.as<T>(), args.mean.as<C>(),   args.rstd.as<C>(), args.has_relu};
    if (args.dweight.defined() || args.dbias.defined() || (args.is_training && args.dx.defined())) {
      const double count = static_cast<double>(std::max<std::int64_t>(layout.samples * layout.inner, 1));
      launcher.by_channel(AddBatchGradient<T>{masked}, TakeBatchGradient<T>{args.rstd.as<C>(), args.dweight.as<T>(),
                                                                            args.dbias.as<T>(), averages, count});
    }
    if (args.dx.defined() || args.dresidual.defined()) {
      launcher.map(layout.numel(), BatchInputGradient<T>{layout, masked, args.dx.as<T>(), args.dresidual.as<T>(),
                                                         args.is_training ? averages : nullptr});
    }
  });
}

void run(const Cuda& cuda, const GroupNormArgs& args) {
  const Launcher launcher{cuda, GroupNormArgs::kName, Layout(args.x)};
  const Layout& layout = launcher.layout;
  const std::int64_t width = layout.channels / args.groups;
  const double count = static_cast<double>(width * layout.inner);
  visit_float(args.x.dtype, GroupNormArgs::kName, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using C = Computed<T>;
    launcher.by_run(width, AddValue<T>{args.x.as<T>()}, TakeMean<C>{args.mean.as<C>(), count});
    launcher.by_run(width, AddSquare<T>{args.x.as<T>(), args.mean.as<C>(), args.groups, width},
                    TakeVariance<C>{args.rstd.as<C>(), nullptr, count, args.eps});
    launcher.map(layout.numel(),
                 GroupForward<T>{layout, args.x.as<T>(), args.weight.as<T>(), args.bias.as<T>(), args.y.as<T>(),
                                 args.mean.as<C>(), args.rstd.as<C>(), args.groups, width});
  });
}

void run(const Cuda& cuda, const GroupNormBackwardArgs& args) {
  const Launcher launcher{cuda, GroupNormBackwardArgs::kName, Layout(args.x)};
  const Layout& layout = launcher.layout;
  const std::int64_t width = layout.channels / args.groups;
  double* const sums = args.workspace.as<double>();
  visit_float(args.x.dtype, GroupNormBackwardArgs::kName, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using C = Computed<T>;
    launcher.by_run(1, AddGroupGradient<T>{args.x.as<T>(), args.dy.as<T>(), args.mean.as<C>(), args.groups, width},
                    TakePair{sums});
    if (args.dx.defined()) {
      double* const terms = sums + 2 * layout.samples * layout.channels;
      launcher.map(layout.samples * args.groups,
                   GroupTerms<T>{args.weight.as<T>(), args.rstd.as<C>(), sums, terms, args.groups, width,
                                 static_cast<double>(width * layout.inner)});
      launcher.map(layout.numel(),
                   GroupInputGradient<T>{layout, args.x.as<T>(), args.weight.as<T>(), args.dy.as<T>(), args.dx.as<T>(),
                                         args.mean.as<C>(), args.rstd.as<C>(), terms, args.groups, width});
    }
    if (args.dweight.defined() || args.dbias.defined()) {
      launcher.map(layout.channels,
                   GroupWeightGradient<T>{sums, args.rstd.as<C>(), args.dweight.as<T>(), args.dbias.as<T>(),
                                          layout.samples, layout.channels, args.groups, width});
    }
  });
}

}  // namespace castor
