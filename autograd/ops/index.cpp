// Forward calls and gradients of the index family. Only indices and shapes are kept.
#include "autograd/ops/index.h"

#include "autograd/graph.h"
#include "core/ops/index.h"

namespace castor::autograd {

Variable embedding(const Variable& weight, const Tensor& ids, std::int64_t padding_index) {
  Tensor rows = castor::embedding(weight.data(), ids);
  const std::int64_t vocabulary = weight.size(0);
  return record("embedding", rows, {weight}, [=](BackwardContext& context) -> std::vector<Tensor> {
    // A table that is tied to the head has the head's gradient by now; of its rows only those that were read change.
    const Tensor& dy = context.gradients[0];
    if (Tensor sum = context.take_sum(0); sum.defined()) {
      castor::embedding_backward_add(dy, ids, sum, padding_index);
      return {std::move(sum)};
    }
    return {castor::embedding_backward(dy, ids, vocabulary, padding_index)};
  });
}

Variable index_select(const Variable& x, int axis, const Tensor& ids) {
  const Shape shape = x.shape();
  return record("index_select", castor::index_select(x.data(), axis, ids), {x},
                [=](BackwardContext& context) -> std::vector<Tensor> {
                  return {castor::index_select_backward(context.gradients[0], shape, axis, ids)};
                });
}

Variable gather(const Variable& x, int axis, const Tensor& index) {
  const Shape shape = x.shape();
  return record("gather", castor::gather(x.data(), axis, index), {x},
                [=](BackwardContext& context) -> std::vector<Tensor> {
                  return {castor::gather_backward(context.gradients[0], shape, axis, index)};
                });
}

Variable scatter_add(const Variable& x, int axis, const Tensor& index, const Variable& source) {
  return record("scatter_add", castor::scatter_add(x.data(), axis, index, source.data()), {x, source},
                [=](BackwardContext& context) -> std::vector<Tensor> {
                  const Tensor& dy = context.gradients[0];
                  return {dy, context.needs[1] ? castor::gather(dy, axis, index) : Tensor{}};
                });
}

Variable concat(const std::vector<Variable>& variables, int axis_index) {
  std::vector<Tensor> tensors;
  std::vector<std::int64_t> sizes;
  tensors.reserve(variables.size());
  for (const Variable& variable : variables) tensors.push_back(variable.data());
  Tensor joined = castor::concat(tensors, axis_index);
  const int axis = joined.shape().axis(axis_index, "concat");
  sizes.reserve(tensors.size());
  for (const Tensor& tensor : tensors) sizes.push_back(tensor.shape()[axis]);
  return record("concat", joined, variables,
                [=](BackwardContext& context) { return castor::split(context.gradients[0], std::span(sizes), axis); });
}

std::vector<Variable> split(const Variable& x, std::span<const std::int64_t> sizes, int axis_index) {
  std::vector<Tensor> parts = castor::split(x.data(), sizes, axis_index);
  const int axis = x.shape().axis(axis_index, "split");
  std::vector<Shape> shapes;
  shapes.reserve(parts.size());
  for (const Tensor& part : parts) shapes.push_back(part.shape());
  return record_all("split", std::move(parts), {x}, [=](BackwardContext& context) -> std::vector<Tensor> {
    const Tensor* known = nullptr;
    for (const Tensor& gradient : context.gradients) known = gradient.defined() ? &gradient : known;
    if (known == nullptr) return {Tensor{}};
    std::vector<Tensor> gradients = context.gradients;
    for (std::size_t i = 0; i < gradients.size(); ++i) {
      if (!gradients[i].defined()) gradients[i] = Tensor::zeros(shapes[i], known->dtype(), known->device());
    }
    return {castor::concat(gradients, axis)};
  });
}

Variable narrow(const Variable& x, int axis, std::int64_t start, std::int64_t length) {
  const Shape shape = x.shape();
  return record("narrow", x.data().narrow(axis, start, length), {x},
                [=](BackwardContext& context) -> std::vector<Tensor> {
                  return {castor::narrow_backward(context.gradients[0], shape, axis, start)};
                });
}

Variable pad(const Variable& x, const Shape& before, const Shape& after, double value) {
  const Shape shape = x.shape();
  return record("pad", castor::pad(x.data(), before, after, value), {x},
                [=](BackwardContext& context) -> std::vector<Tensor> {
                  Tensor inside = context.gradients[0];
                  for (int i = 0; i < shape.ndim(); ++i) inside = inside.narrow(i, before[i], shape[i]);
                  return {inside};
                });
}

}  // namespace castor::autograd
