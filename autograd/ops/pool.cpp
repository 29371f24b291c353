// Forward calls and gradients of the pooling family. Averages save nothing but shapes, maxima their positions.
#include "autograd/ops/pool.h"

#include "autograd/graph.h"

namespace castor::autograd {

Variable max_pool2d(const Variable& x, const PoolGeometry& geometry) {
  Tensor indices;
  Tensor y = castor::max_pool2d(x.data(), geometry, needs_gradient({&x}) ? &indices : nullptr);
  const Shape shape = x.shape();
  return record("max_pool2d", y, {x}, [=](BackwardContext& context) -> std::vector<Tensor> {
    return {castor::max_pool2d_backward(context.gradients[0], indices, shape, geometry)};
  });
}

Variable avg_pool2d(const Variable& x, const PoolGeometry& geometry) {
  const Shape shape = x.shape();
  return record("avg_pool2d", castor::avg_pool2d(x.data(), geometry), {x},
                [=](BackwardContext& context) -> std::vector<Tensor> {
                  return {castor::avg_pool2d_backward(context.gradients[0], shape, geometry)};
                });
}

Variable adaptive_max_pool2d(const Variable& x, const Shape& size) {
  Tensor indices;
  Tensor y = castor::adaptive_max_pool2d(x.data(), size, needs_gradient({&x}) ? &indices : nullptr);
  const Shape shape = x.shape();
  return record("adaptive_max_pool2d", y, {x}, [=](BackwardContext& context) -> std::vector<Tensor> {
    return {castor::adaptive_max_pool2d_backward(context.gradients[0], indices, shape)};
  });
}

Variable adaptive_avg_pool2d(const Variable& x, const Shape& size) {
  const Shape shape = x.shape();
  return record("adaptive_avg_pool2d", castor::adaptive_avg_pool2d(x.data(), size), {x},
                [=](BackwardContext& context) -> std::vector<Tensor> {
                  return {castor::adaptive_avg_pool2d_backward(context.gradients[0], shape)};
                });
}

}  // namespace castor::autograd
