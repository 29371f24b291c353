// Differentiable norms. Shapes, dtypes and errors are those of core/ops/norm.h.
#pragma once

#include "autograd/variable.h"

namespace castor::autograd {

/// Layer norm over the last axis. `weight` and `bias` ([n]) may be undefined.
Variable layer_norm(const Variable& x, const Variable& weight, const Variable& bias, double eps = 1e-5);

/// x / sqrt(mean(x^2) + eps) * weight over the last axis. `weight` may be undefined.
Variable rms_norm(const Variable& x, const Variable& weight, double eps = 1e-6);

/// The norm of a sum, and the sum.
struct NormedSum {
  Variable y;
  Variable sum;  ///< x + residual
};

/// Layer norm of x + residual, in one pass over memory forward and backward.
NormedSum add_layer_norm(const Variable& x, const Variable& residual, const Variable& weight, const Variable& bias,
                         double eps = 1e-5);
/// Rms norm of x + residual.
NormedSum add_rms_norm(const Variable& x, const Variable& residual, const Variable& weight, double eps = 1e-6);

/// Result and statistics of batch norm in training.
struct BatchNormed {
  Variable y;
  Tensor mean,
      variance;  ///< of the batch (variance unbiased), [C], f32 (f64 for f64): the pending update of running averages
};

/// Batch norm of [N, C, ...] with the batch's statistics, then `+ residual` and relu where asked for.
///   weight, bias, residual  may be undefined
BatchNormed batch_norm_training(const Variable& x, const Variable& weight, const Variable& bias, double eps = 1e-5,
                                const Variable& residual = {}, bool has_relu = false);
/// Batch norm with running averages ([C], f32; f64 for f64), which are constants to the gradient.
Variable batch_norm_evaluation(const Variable& x, const Variable& weight, const Variable& bias,
                               const Tensor& running_mean, const Tensor& running_variance, double eps = 1e-5,
                               const Variable& residual = {}, bool has_relu = false);

/// Group norm of [N, C, ...]; `groups` divides C. `weight` and `bias` ([C]) may be undefined.
Variable group_norm(const Variable& x, std::int64_t groups, const Variable& weight, const Variable& bias,
                    double eps = 1e-5);

}  // namespace castor::autograd
