// Checks, layouts and allocation of the convolution family.
#include "core/ops/conv.h"

#include <tuple>

#include "core/ops/channels_last.h"
#include "core/ops/float_check.h"
#include "core/ops/workspace.h"

namespace castor {
namespace {

void check_dtypes(const char* op, std::initializer_list<const Tensor*> operands) {
  const Tensor& first = **operands.begin();
  check_float(op, first);
  for (const Tensor* operand : operands) {
    if (operand->defined() && operand->dtype() != first.dtype()) {
      throw DTypeError(
          cat(op, ": expected operands of one dtype, got ", first, " and ", *operand, "; cast one of them"));
    }
  }
}

/// The shape of conv's result, after all checks of sizes.
Shape result_shape(const char* op, const Tensor& x, const Tensor& weight, const ConvGeometry& geometry) {
  if (x.ndim() != 4 || weight.ndim() != 4) {
    throw ShapeError(
        cat(op, ": expected x [n, c, h, w] and weight [o, c / groups, kh, kw], got x ", x, " and weight ", weight));
  }
  const std::int64_t groups = geometry.groups;
  if (groups < 1 || weight.size(0) % groups != 0 || weight.size(1) * groups != x.size(1)) {
    throw ShapeError(cat(op, ": expected weight [o, c / groups, kh, kw] with o and c multiples of groups, got x ", x,
                         ", weight ", weight, " and ", groups, " groups"));
  }
  Shape shape = {x.size(0), weight.size(0), 0, 0};
  for (int i = 0; i < 2; ++i) {
    const std::int64_t stride = geometry.stride[i], padding = geometry.padding[i], dilation = geometry.dilation[i];
    const std::int64_t kernel = weight.size(2 + i), size = x.size(2 + i);
    if (stride < 1 || dilation < 1 || padding < 0 || kernel < 1) {
      throw ShapeError(
          cat(op, ": expected kernel, stride and dilation of at least 1 and padding of at least 0, got kernel ", kernel,
              ", stride ", stride, ", dilation ", dilation, ", padding ", padding));
    }
    const std::int64_t reach = dilation * (kernel - 1) + 1;
    if (size + 2 * padding < reach) {
      throw ShapeError(cat(op, ": the kernel reaches over ", reach, " pixels, the padded image has ",
                           size + 2 * padding, " (x ", x, ", weight ", weight, ", padding ", padding, ", dilation ",
                           dilation, "); use more padding or a smaller kernel"));
    }
    shape[2 + i] = (size + 2 * padding - reach) / stride + 1;
  }
  return shape;
}

template <class Args>
void dispatch_with_workspace(Device device, Args args) {
  const Tensor workspace = workspace_for(device, args);
  args.workspace = view_or_absent(workspace);
  dispatch(device, args);
}

/// Multiplications and additions, padding counted, and each operand's bytes once.
Cost conv_cost(const View& x, const View& weight, const View& y) {
  const double products =
      static_cast<double>(y.numel()) * static_cast<double>(weight.size[1] * weight.size[2] * weight.size[3]);
  return {2 * products, static_cast<double>(x.bytes() + weight.bytes() + y.bytes())};
}

}  // namespace

Cost cost(const ConvArgs& args) { return conv_cost(args.x, args.weight, args.y); }
Cost cost(const ConvBackwardDataArgs& args) { return conv_cost(args.dx, args.weight, args.dy); }
Cost cost(const ConvBackwardWeightArgs& args) { return conv_cost(args.x, args.dweight, args.dy); }

Tensor conv2d(const Tensor& x, const Tensor& weight, const Tensor& bias, const ConvGeometry& geometry,
              Activation activation, Tensor* saved) {
  const Shape shape = result_shape("conv2d", x, weight, geometry);
  check_dtypes("conv2d", {&x, &weight, &bias});
  const Device device = common_device("conv2d", {&x, &weight, &bias});
  if (bias.defined() && !(bias.shape() == Shape{weight.size(0)})) {
    throw ShapeError(cat("conv2d: expected a bias of shape [", weight.size(0), "], got ", bias));
  }
  Tensor y = empty_channels_last(shape, x.dtype(), device);
  {
    const Tensor image = channels_last(x), kernel = contiguous(weight),
                 dense_bias = bias.defined() ? contiguous(bias) : bias;
    dispatch_with_workspace(device,
                            ConvArgs{image.view(), kernel.view(), view_or_absent(dense_bias), y.view(), {}, geometry});
  }
  if (saved != nullptr) *saved = activation == Activation::none ? Tensor{} : y;
  return activate(y, activation, saved != nullptr);
}

LinearGradients conv2d_backward(Tensor dy, const Tensor& x, const Tensor& weight, const Tensor& saved,
                                const ConvGeometry& geometry, Activation activation, ConvNeeds needs) {
  const Shape shape = result_shape("conv2d_backward", x, weight, geometry);
  check_dtypes("conv2d_backward", {&x, &weight, &dy, &saved});
  const Device device = common_device("conv2d_backward", {&x, &weight, &dy, &saved});
  const bool has_activation = activation != Activation::none;
  if (!(dy.shape() == shape) || (has_activation && !(saved.shape() == shape))) {
    throw ShapeError(
        cat("conv2d_backward: expected dy and saved of shape ", shape, ", got dy ", dy, " and saved ", saved));
  }
  Tensor image = channels_last(dy);
  dy = {};
  Tensor rows = pixel_rows(image);
  image = {};
  LinearGradients result;
  if (has_activation || needs.bias) {
    const Tensor saved_rows = has_activation ? pixel_rows(channels_last(saved)) : Tensor{};
    std::tie(rows, result.bias) = bias_backward(std::move(rows), saved_rows, activation, needs.bias);
  }
  const Tensor gradient = rows.as_strided(shape, channels_last_strides(shape), 0);
  const Tensor kernel = contiguous(weight);
  if (needs.x) {
    result.x = empty_channels_last(x.shape(), x.dtype(), device);
    dispatch_with_workspace(device,
                            ConvBackwardDataArgs{gradient.view(), kernel.view(), result.x.view(), {}, geometry});
  }
  if (needs.weight) {
    result.weight = Tensor::empty(weight.shape(), weight.dtype(), device);
    const Tensor source = channels_last(x);
    dispatch_with_workspace(device,
                            ConvBackwardWeightArgs{source.view(), gradient.view(), result.weight.view(), {}, geometry});
  }
  return result;
}

}  // namespace castor
