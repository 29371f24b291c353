// Normalisation: layer and rms norm over the last axis, batch norm over everything but channels, group norm. Each
// forward and each backward is one op that reads its operands as few times as the maths allows. 16-bit floats are
// computed in f32; statistics are f32 (f64 for f64 operands), summed in f64 over fixed blocks.
//
// Delicate: gradients of weights are sums over rows in fixed blocks, so their bits do not depend on the number of
// threads. Batch statistics are returned and never applied here: running averages are updated by whoever knows the
// order of micro-batches. Sources: Ba, Kiros & Hinton 2016, arXiv:1607.06450; Zhang & Sennrich 2019, arXiv:1910.07467;
// Ioffe & Szegedy 2015, arXiv:1502.03167; Wu & He 2018, arXiv:1803.08494.
#pragma once

#include "core/device/dispatch.h"
#include "core/tensor/tensor.h"

namespace castor {

/// y = (s - mean) * rstd * weight + bias over the last axis, s = x + residual (rounded to the dtype). Rms: no mean, no
/// bias. x, residual, y, sum: [..., n] row-major of one float dtype; weight, bias: [n] of it. Absent: residual and sum,
/// weight, bias; mean for rms. mean, rstd: [...], f32 (f64 for f64).
struct LayerNormArgs {
  static constexpr const char* kName = "layer_norm";
  View x, residual, weight, bias, y, sum, mean, rstd;
  double eps;
  bool is_rms;
};
Cost cost(const LayerNormArgs& args);
void run(const Cpu& cpu, const LayerNormArgs& args);
void run(const Cuda& cuda, const LayerNormArgs& args);

/// dx = gradient through the norm (+ dsum); dweight, dbias: sums over rows. x is what was normalised (the sum). Absent:
/// weight, dsum, dx, dweight, dbias where not wanted. workspace: f32|f64 [layer_norm_workspace(...)].
struct LayerNormBackwardArgs {
  static constexpr const char* kName = "layer_norm_backward";
  View x, weight, mean, rstd, dy, dsum, dx, dweight, dbias, workspace;
  bool is_rms;
};
Cost cost(const LayerNormBackwardArgs& args);
void run(const Cpu& cpu, const LayerNormBackwardArgs& args);
void run(const Cuda& cuda, const LayerNormBackwardArgs& args);

/// y = (x - mean) * rstd * weight + bias (+ residual) (then relu) by channel; x [N, C, ...], x, residual, y of equal
/// dense strides: row-major or channels-last. Training: mean, rstd and variance (unbiased) are written, f32 [C] (f64
/// for f64). Evaluation: mean and variance are read and rstd is absent.
struct BatchNormArgs {
  static constexpr const char* kName = "batch_norm";
  View x, weight, bias, residual, y, mean, rstd, variance, workspace;
  double eps;
  bool is_training, has_relu;
};
Cost cost(const BatchNormArgs& args);
void run(const Cpu& cpu, const BatchNormArgs& args);
void run(const Cuda& cuda, const BatchNormArgs& args);

/// Gradients of batch norm; operands as forward. With relu the mask comes from y if it is there, else from x again.
/// `dresidual` = dy behind the mask. Absent: weight, bias, y, dresidual, dx, dweight, dbias. Evaluation: mean and rstd
/// are constants.
struct BatchNormBackwardArgs {
  static constexpr const char* kName = "batch_norm_backward";
  View x, weight, bias, mean, rstd, y, dy, dx, dresidual, dweight, dbias, workspace;
  bool is_training, has_relu;
};
Cost cost(const BatchNormBackwardArgs& args);
void run(const Cpu& cpu, const BatchNormBackwardArgs& args);
void run(const Cuda& cuda, const BatchNormBackwardArgs& args);

/// y = (x - mean) * rstd * weight + bias, statistics for each sample and group of C / groups neighbouring channels; x,
/// y [N, C, ...] of equal strides, row-major or channels-last; mean, rstd: [N, groups], f32 (f64 for f64).
struct GroupNormArgs {
  static constexpr const char* kName = "group_norm";
  View x, weight, bias, y, mean, rstd;
  std::int64_t groups;
  double eps;
};
Cost cost(const GroupNormArgs& args);
void run(const Cpu& cpu, const GroupNormArgs& args);
void run(const Cuda& cuda, const GroupNormArgs& args);

/// Gradients of group norm. Absent: weight, dx, dweight, dbias. workspace: f64 [N, C + groups, 2].
struct GroupNormBackwardArgs {
  static constexpr const char* kName = "group_norm_backward";
  View x, weight, mean, rstd, dy, dx, dweight, dbias, workspace;
  std::int64_t groups;
};
Cost cost(const GroupNormBackwardArgs& args);
void run(const Cpu& cpu, const GroupNormBackwardArgs& args);
void run(const Cuda& cuda, const GroupNormBackwardArgs& args);

/// Which gradients a backward is asked for.
struct NormNeeds {
  bool x = true, weight = true, bias = true, residual = false;
  /// Where layer_norm_backward puts the parameters' gradients, row-major; it may be the parameter itself. Undefined: to
  /// new memory.
  Tensor weight_place = {}, bias_place = {};
};

/// What layer_norm and rms_norm give.
struct LayerNormed {
  Tensor y;
  Tensor sum;         ///< x + residual; undefined without a residual
  Tensor mean, rstd;  ///< for backward; `mean` is undefined for rms_norm
};

/// Layer norm over the last axis; with a residual, of x + residual, which is returned too.
///   x, residual   f32|bf16|f16|f64 [..., n], n >= 1, any strides, one shape and dtype
///   weight, bias  [n] of x's dtype, or undefined
/// Throws ShapeError, DTypeError, DeviceError.
LayerNormed layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps = 1e-5,
                       const Tensor& residual = {});

/// Root-mean-square norm: x / sqrt(mean(x^2) + eps) * weight. Else as layer_norm.
LayerNormed rms_norm(const Tensor& x, const Tensor& weight, double eps = 1e-6, const Tensor& residual = {});

/// Undefined where not asked for.
struct NormGradients {
  Tensor x, weight, bias, residual;
};

/// Gradients of layer_norm (of rms_norm when `mean` is undefined).
///   x     what was normalised: `sum` where there was a residual
///   dsum  gradient that reached `sum` by itself, or undefined; it is added to x's gradient
/// The residual's gradient is x's.
NormGradients layer_norm_backward(const Tensor& x, const Tensor& weight, const Tensor& mean, const Tensor& rstd,
                                  const Tensor& dy, const Tensor& dsum = {}, const NormNeeds& needs = {});

/// What batch norm in training gives.
struct BatchNormed {
  Tensor y;
  Tensor mean, rstd;  ///< of the batch, [C], f32 (f64 for f64 operands); for backward
  Tensor variance;    ///< of the batch, unbiased, [C]: with `mean`, the pending update of the running averages
};

/// Batch norm with the batch's own statistics, then `+ residual` and relu where asked for.
///   x             f32|bf16|f16|f64 [N, C, ...]; row-major and channels-last are read where they are,
///                 other strides are copied
///   weight, bias  [C] of x's dtype, or undefined
///   residual      as x, or undefined
/// y has x's memory order. Throws ShapeError (also for fewer than two values a channel), DTypeError, DeviceError.
BatchNormed batch_norm_training(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps = 1e-5,
                                const Tensor& residual = {}, bool has_relu = false);

/// Batch norm with given statistics, [C], f32 (f64 for f64 operands). Else as batch_norm_training.
Tensor batch_norm_evaluation(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& running_mean,
                             const Tensor& running_variance, double eps = 1e-5, const Tensor& residual = {},
                             bool has_relu = false);

/// What batch_norm_backward needs of a forward.
struct BatchNormSaved {
  Tensor x, weight, bias;  ///< the operands; bias matters for a relu without `y`
  Tensor mean, rstd;       ///< of the batch; of the running averages in evaluation
  Tensor y;                ///< with relu and a residual: the result. Undefined: the mask is computed from x again.
  bool is_training = true;
  bool has_relu = false;
};

/// Gradients of batch norm. The residual's is dy, behind relu's mask.
NormGradients batch_norm_backward(const BatchNormSaved& saved, const Tensor& dy, const NormNeeds& needs = {});

/// What group_norm gives.
struct GroupNormed {
  Tensor y;
  Tensor mean, rstd;  ///< [N, groups], for backward
};

/// Group norm; `groups` divides C. Operands as batch norm. Throws ShapeError, DTypeError, DeviceError.
GroupNormed group_norm(const Tensor& x, std::int64_t groups, const Tensor& weight, const Tensor& bias,
                       double eps = 1e-5);
NormGradients group_norm_backward(const Tensor& x, std::int64_t groups, const Tensor& weight, const Tensor& mean,
                                  const Tensor& rstd, const Tensor& dy, const NormNeeds& needs = {});

/// Rows that layer norm's backward sums into one partial result.
inline constexpr std::int64_t kLayerNormRows = 32;
/// Elements (f32, or f64 for f64) of workspace that LayerNormBackwardArgs needs where weights have gradients.
inline std::int64_t layer_norm_workspace(std::int64_t rows, std::int64_t n) {
  return (rows + kLayerNormRows - 1) / kLayerNormRows * 2 * n;
}

}  // namespace castor
