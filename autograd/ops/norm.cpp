// Forward calls and gradients of the norms.
//
// Delicate: behind a residual, layer norm saves the sum (which others hold anyway) and not its two operands; batch norm
// with relu saves its result only if there is a residual, because otherwise the mask is computed from x.
#include "autograd/ops/norm.h"

#include "autograd/graph.h"
#include "core/ops/elementwise.h"
#include "core/ops/norm.h"

namespace castor::autograd {
namespace {

Tensor data_of(const Variable& x) { return x.defined() ? x.data() : Tensor{}; }

Variable record_rows(const char* name, const Variable& x, const Variable& weight, const Variable& bias,
                     const LayerNormed& normed) {
  const Tensor saved = x.data(), scale = data_of(weight), mean = normed.mean, rstd = normed.rstd;
  return record(name, normed.y, {x, weight, bias}, [=](BackwardContext& context) -> std::vector<Tensor> {
    const NormNeeds needs{context.needs[0], context.needs[1], context.needs[2], false,
                          context.place(1), context.place(2)};
    NormGradients gradients = castor::layer_norm_backward(saved, scale, mean, rstd, context.gradients[0], {}, needs);
    return {std::move(gradients.x), std::move(gradients.weight), std::move(gradients.bias)};
  });
}

NormedSum record_sum(const char* name, const Variable& x, const Variable& residual, const Variable& weight,
                     const Variable& bias, const LayerNormed& normed) {
  const Tensor sum = normed.sum, scale = data_of(weight), mean = normed.mean, rstd = normed.rstd;
  std::vector<Variable> results = record_all(
      name, {normed.y, normed.sum}, {x, residual, weight, bias}, [=](BackwardContext& context) -> std::vector<Tensor> {
        const Tensor &dy = context.gradients[0], &dsum = context.gradients[1];
        if (!dy.defined()) return {dsum, dsum, Tensor{}, Tensor{}};
        const NormNeeds needs{context.needs[0], context.needs[2], context.needs[3],
                              context.needs[1], context.place(2), context.place(3)};
        NormGradients gradients = castor::layer_norm_backward(sum, scale, mean, rstd, dy, dsum, needs);
        return {std::move(gradients.x), std::move(gradients.residual), std::move(gradients.weight),
                std::move(gradients.bias)};
      });
  return {std::move(results[0]), std::move(results[1])};
}

Variable record_batch(const Tensor& y, const BatchNormSaved& saved, const Variable& x, const Variable& weight,
                      const Variable& bias, const Variable& residual) {
  return record("batch_norm", y, {x, weight, bias, residual}, [saved](BackwardContext& context) -> std::vector<Tensor> {
    const NormNeeds needs{context.needs[0], context.needs[1], context.needs[2], context.needs[3]};
    NormGradients gradients = castor::batch_norm_backward(saved, context.gradients[0], needs);
    return {std::move(gradients.x), std::move(gradients.weight), std::move(gradients.bias),
            std::move(gradients.residual)};
  });
}

}  // namespace

Variable layer_norm(const Variable& x, const Variable& weight, const Variable& bias, double eps) {
  return record_rows("layer_norm", x, weight, bias, castor::layer_norm(x.data(), data_of(weight), data_of(bias), eps));
}

Variable rms_norm(const Variable& x, const Variable& weight, double eps) {
  return record_rows("rms_norm", x, weight, {}, castor::rms_norm(x.data(), data_of(weight), eps));
}

NormedSum add_layer_norm(const Variable& x, const Variable& residual, const Variable& weight, const Variable& bias,
                         double eps) {
  return record_sum("add_layer_norm", x, residual, weight, bias,
                    castor::layer_norm(x.data(), data_of(weight), data_of(bias), eps, residual.data()));
}

NormedSum add_rms_norm(const Variable& x, const Variable& residual, const Variable& weight, double eps) {
  return record_sum("add_rms_norm", x, residual, weight, {},
                    castor::rms_norm(x.data(), data_of(weight), eps, residual.data()));
}

BatchNormed batch_norm_training(const Variable& x, const Variable& weight, const Variable& bias, double eps,
                                const Variable& residual, bool has_relu) {
  const castor::BatchNormed normed =
      castor::batch_norm_training(x.data(), data_of(weight), data_of(bias), eps, data_of(residual), has_relu);
  const bool keeps_y = has_relu && residual.defined();
  const BatchNormSaved saved{x.data(),    data_of(weight), data_of(bias),
                             normed.mean, normed.rstd,     keeps_y ? normed.y : Tensor{},
                             true,        has_relu};
  return {record_batch(normed.y, saved, x, weight, bias, residual), normed.mean, normed.variance};
}

Variable batch_norm_evaluation(const Variable& x, const Variable& weight, const Variable& bias,
                               const Tensor& running_mean, const Tensor& running_variance, double eps,
                               const Variable& residual, bool has_relu) {
  const Tensor y = castor::batch_norm_evaluation(x.data(), data_of(weight), data_of(bias), running_mean,
                                                 running_variance, eps, data_of(residual), has_relu);
  if (!needs_gradient({&x, &weight, &bias, &residual})) return record("batch_norm", y, {x, weight, bias, residual}, {});
  const Tensor rstd = castor::unary(UnaryOp::rsqrt, castor::unary(UnaryOp::affine, running_variance, 1, eps));
  const bool keeps_y = has_relu && residual.defined();
  const BatchNormSaved saved{x.data(), data_of(weight),        data_of(bias), running_mean,
                             rstd,     keeps_y ? y : Tensor{}, false,         has_relu};
  return record_batch(y, saved, x, weight, bias, residual);
}

Variable group_norm(const Variable& x, std::int64_t groups, const Variable& weight, const Variable& bias, double eps) {
  const GroupNormed normed = castor::group_norm(x.data(), groups, data_of(weight), data_of(bias), eps);
  const Tensor saved = x.data(), scale = data_of(weight), mean = normed.mean, rstd = normed.rstd;
  return record("group_norm", normed.y, {x, weight, bias}, [=](BackwardContext& context) -> std::vector<Tensor> {
    const NormNeeds needs{context.needs[0], context.needs[1], context.needs[2], false};
    NormGradients gradients =
        castor::group_norm_backward(saved, groups, scale, mean, rstd, context.gradients[0], needs);
    return {std::move(gradients.x), std::move(gradients.weight), std::move(gradients.bias)};
  });
}

}  // namespace castor::autograd
