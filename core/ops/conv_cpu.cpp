// Convolutions on the CPU: f32 by oneDNN; bf16 and f16 converted to f32 in scratch and rounded once; f64 by plain
// loops, for references and gradient checks.
#include <algorithm>

#include "core/base/parallel.h"
#include "core/ops/cast.h"
#include "core/ops/conv.h"
#include "core/ops/onednn.h"

namespace castor {
namespace {

std::size_t aligned(std::size_t bytes) { return (bytes + 255) / 256 * 256; }

onednn::ConvProblem describe(const View& x, const View& weight, const View& y, const ConvGeometry& geometry) {
  onednn::ConvProblem p;
  p.batch = x.size[0];
  p.groups = geometry.groups;
  p.in_channels = x.size[1];
  p.in_height = x.size[2];
  p.in_width = x.size[3];
  p.out_channels = y.size[1];
  p.out_height = y.size[2];
  p.out_width = y.size[3];
  p.kernel_height = weight.size[2];
  p.kernel_width = weight.size[3];
  p.stride_height = geometry.stride[0];
  p.stride_width = geometry.stride[1];
  p.padding_height = geometry.padding[0];
  p.padding_width = geometry.padding[1];
  p.dilation_height = geometry.dilation[0];
  p.dilation_width = geometry.dilation[1];
  return p;
}

/// One direction: its four operands, of which `result` is written. The weight is row-major, the others channels-last.
struct Direction {
  View x, weight, bias, y;
  const View* result;
  ConvGeometry geometry;
  onednn::Conv& (*find)(const onednn::ConvProblem&);

  explicit Direction(const ConvArgs& args)
      : x(args.x),
        weight(args.weight),
        bias(args.bias),
        y(args.y),
        result(&y),
        geometry(args.geometry),
        find(onednn::conv_forward) {}
  explicit Direction(const ConvBackwardDataArgs& args)
      : x(args.dx),
        weight(args.weight),
        y(args.dy),
        result(&x),
        geometry(args.geometry),
        find([](const onednn::ConvProblem& p) -> onednn::Conv& { return onednn::conv_backward_data(p); }) {}
  explicit Direction(const ConvBackwardWeightArgs& args)
      : x(args.x),
        weight(args.dweight),
        y(args.dy),
        result(&weight),
        geometry(args.geometry),
        find(onednn::conv_backward_weights) {}
  Direction(const Direction&) = delete;
  Direction& operator=(const Direction&) = delete;

  /// False where the result is the bias or zero.
  bool has_products() const { return x.numel() != 0 && weight.numel() != 0 && y.numel() != 0; }

  onednn::Conv& primitive() const {
    onednn::ConvProblem problem = describe(x, weight, y, geometry);
    problem.has_bias = bias.defined();
    return find(problem);
  }

  std::size_t converted_bytes() const {
    std::size_t bytes = 0;
    for (const View* view : {&x, &weight, &bias, &y}) {
      if (view->defined()) bytes += aligned(static_cast<std::size_t>(view->numel()) * sizeof(float));
    }
    return bytes;
  }

  std::size_t workspace_bytes() const {
    if (!has_products() || y.dtype == DType::f64) return 0;
    return primitive().workspace_bytes() + (y.dtype == DType::f32 ? 0 : converted_bytes());
  }
};

void fill_without_products(const Direction& d) {
  if (d.result->numel() == 0) return;
  double zero = 0;
  View source = *d.result;
  source.data = &zero;
  for (int i = 0; i < 4; ++i) source.stride[i] = 0;
  if (d.bias.defined()) {
    source.data = d.bias.data;
    source.stride[1] = 1;
  }
  run(Cpu{}, CastArgs{source, *d.result});
}

void run_converted(Direction& d, const View& workspace) {
  char* next = workspace.as<char>();
  const View kept_result = *d.result;
  for (View* view : {&d.x, &d.weight, &d.bias, &d.y}) {
    if (!view->defined()) continue;
    View converted = *view;
    converted.dtype = DType::f32;
    converted.data = next;
    next += aligned(static_cast<std::size_t>(view->numel()) * sizeof(float));
    if (view != d.result) run(Cpu{}, CastArgs{*view, converted});
    *view = converted;
  }
  d.primitive().run(d.x.data, d.weight.data, d.bias.data, d.y.data, next);
  run(Cpu{}, CastArgs{*d.result, kept_result});
}

/// Calls f(x offset, weight offset, y offset) for every product of image `n`.
template <class F>
void for_each_product(const Direction& d, std::int64_t n, F&& f) {
  const std::int64_t in = d.weight.size[1], out = d.weight.size[0] / d.geometry.groups;
  for (std::int64_t o = 0; o < d.weight.size[0]; ++o) {
    for (std::int64_t i = 0; i < in; ++i) {
      const std::int64_t c = o / out * in + i;
      for (std::int64_t tap = 0; tap < d.weight.size[2] * d.weight.size[3]; ++tap) {
        const std::int64_t kh = tap / d.weight.size[3], kw = tap % d.weight.size[3];
        for (std::int64_t oh = 0; oh < d.y.size[2]; ++oh) {
          const std::int64_t h = oh * d.geometry.stride[0] - d.geometry.padding[0] + kh * d.geometry.dilation[0];
          if (h < 0 || h >= d.x.size[2]) continue;
          for (std::int64_t ow = 0; ow < d.y.size[3]; ++ow) {
            const std::int64_t w = ow * d.geometry.stride[1] - d.geometry.padding[1] + kw * d.geometry.dilation[1];
            if (w < 0 || w >= d.x.size[3]) continue;
            f(n * d.x.stride[0] + c * d.x.stride[1] + h * d.x.stride[2] + w * d.x.stride[3],
              o * d.weight.stride[0] + i * d.weight.stride[1] + kh * d.weight.stride[2] + kw * d.weight.stride[3],
              n * d.y.stride[0] + o * d.y.stride[1] + oh * d.y.stride[2] + ow * d.y.stride[3]);
          }
        }
      }
    }
  }
}

void run_f64(const Direction& d) {
  double *x = d.x.as<double>(), *weight = d.weight.as<double>(), *y = d.y.as<double>();
  fill_without_products(d);
  for (std::int64_t n = 0; n < d.x.size[0]; ++n) {
    for_each_product(d, n, [&](std::int64_t at_x, std::int64_t at_weight, std::int64_t at_y) {
      if (d.result == &d.y) y[at_y] += x[at_x] * weight[at_weight];
      if (d.result == &d.x) x[at_x] += y[at_y] * weight[at_weight];
      if (d.result == &d.weight) weight[at_weight] += x[at_x] * y[at_y];
    });
  }
}

void run_direction(Direction&& d, const View& workspace) {
  if (!d.has_products()) return fill_without_products(d);
  if (d.y.dtype == DType::f64) return run_f64(d);
  if (d.y.dtype != DType::f32) return run_converted(d, workspace);
  d.primitive().run(d.x.data, d.weight.data, d.bias.data, d.y.data, workspace.data);
}

}  // namespace

std::size_t workspace_bytes(const Cpu&, const ConvArgs& args) { return Direction(args).workspace_bytes(); }
std::size_t workspace_bytes(const Cpu&, const ConvBackwardDataArgs& args) { return Direction(args).workspace_bytes(); }
std::size_t workspace_bytes(const Cpu&, const ConvBackwardWeightArgs& args) {
  return Direction(args).workspace_bytes();
}

void run(const Cpu&, const ConvArgs& args) { run_direction(Direction(args), args.workspace); }
void run(const Cpu&, const ConvBackwardDataArgs& args) { run_direction(Direction(args), args.workspace); }
void run(const Cpu&, const ConvBackwardWeightArgs& args) { run_direction(Direction(args), args.workspace); }

}  // namespace castor
