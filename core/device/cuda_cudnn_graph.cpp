// Scores, scale, causal cut, softmax with its logsumexp, product with the values. What the graph must look like is what
// NVIDIA's cudnn-frontend 1.x builds for its sdpa node.
#include "core/device/cuda_cudnn_graph.h"

#include <utility>

namespace castor::cudnn {
namespace {

using Sizes = std::vector<std::int64_t>;

/// A tensor of the graph.
struct Node {
  const Descriptor* descriptor;
  Sizes sizes, strides;
};

class Builder {
 public:
  Builder(const CudnnAttentionProblem& problem, cudnnHandle_t handle)
      : p_(problem),
        handle_(handle),
        io_(problem.dtype == DType::bf16 ? CUDNN_DATA_BFLOAT16 : CUDNN_DATA_HALF),
        scores_{problem.batch, problem.heads, problem.queries, problem.keys},
        row_{problem.batch, problem.heads, problem.queries, 1} {}

  AttentionGraph make() {
    const Node q = rows(kQ, p_.q, p_.heads, p_.queries), k = transposed_rows(kK, p_.k),
               v = rows(kV, p_.v, p_.key_heads, p_.keys);
    const Node scale = number(kScale);
    Node scores = pointwise(CUDNN_POINTWISE_MUL, inner(scores_), matmul(q, k, inner(scores_)), &scale);
    if (p_.is_causal) scores = causal(scores);
    const Node largest = reduce(CUDNN_REDUCE_TENSOR_MAX, scores, inner(row_));
    const Node shifted = pointwise(CUDNN_POINTWISE_SUB, inner(scores_), scores, &largest);
    const Node powers = pointwise(CUDNN_POINTWISE_EXP, inner(scores_), shifted);
    const Node sum = reduce(CUDNN_REDUCE_TENSOR_ADD, powers, inner(row_));
    const Node logarithm = pointwise(CUDNN_POINTWISE_LOG, inner(row_), sum);
    pointwise(CUDNN_POINTWISE_ADD, memory(kLse, row_, CUDNN_DATA_FLOAT), largest, &logarithm);
    const Node weights = pointwise(CUDNN_POINTWISE_DIV, inner(scores_, io_), powers, &sum);
    matmul(weights, v, rows(kOut, p_.out, p_.heads, p_.queries));
    return finish();
  }

 private:
  Descriptor& part(cudnnBackendDescriptorType_t type, std::string name) {
    made_.parts.push_back(std::make_unique<Descriptor>(type, std::move(name)));
    return *made_.parts.back();
  }

  Node tensor(std::int64_t id, Sizes sizes, Sizes strides, cudnnDataType_t type, bool is_virtual, bool is_number) {
    Descriptor& made = part(CUDNN_BACKEND_TENSOR_DESCRIPTOR, cat("tensor ", id));
    constexpr std::int64_t kAlignment = 16;
    made.set(CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, id);
    made.set(CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, type);
    made.set(CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, sizes);
    made.set(CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, strides);
    made.set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, kAlignment);
    made.set(CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, is_virtual);
    made.set(CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, is_number);
    made.finalize();
    return {&made, std::move(sizes), std::move(strides)};
  }

  static Sizes dense(const Sizes& sizes) { return {sizes[1] * sizes[2] * sizes[3], sizes[2] * sizes[3], sizes[3], 1}; }

  Node inner(const Sizes& sizes, cudnnDataType_t type = CUDNN_DATA_FLOAT) {
    return tensor(next_++, sizes, dense(sizes), type, true, false);
  }
  Node memory(Operand id, const Sizes& sizes, cudnnDataType_t type) {
    return tensor(id, sizes, dense(sizes), type, false, false);
  }
  Node number(Operand id) { return tensor(id, {1, 1, 1, 1}, {1, 1, 1, 1}, CUDNN_DATA_FLOAT, false, true); }

  Node rows(Operand id, const CudnnRows& x, std::int64_t heads, std::int64_t positions) {
    return tensor(id, {p_.batch, heads, positions, p_.dim}, {x.batch, x.head, x.position, 1}, io_, false, false);
  }
  /// Keys as the right side of a product: [batch, key heads, dim, positions].
  Node transposed_rows(Operand id, const CudnnRows& x) {
    return tensor(id, {p_.batch, p_.key_heads, p_.dim, p_.keys}, {x.batch, x.head, 1, x.position}, io_, false, false);
  }

  Node pointwise(cudnnPointwiseMode_t mode, const Node& y, const Node& x, const Node* b = nullptr,
                 const Node* choice = nullptr, cudnnDataType_t compute = CUDNN_DATA_FLOAT, std::int64_t axis = -1) {
    const std::string name = cat("pointwise ", static_cast<int>(mode));
    Descriptor& how = part(CUDNN_BACKEND_POINTWISE_DESCRIPTOR, name);
    how.set(CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, mode);
    how.set(CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, compute);
    if (axis >= 0) how.set(CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, axis);
    how.finalize();
    Descriptor& step = part(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR, name + " step");
    step.set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, how);
    step.set(CUDNN_ATTR_OPERATION_POINTWISE_XDESC, *x.descriptor);
    if (b != nullptr) step.set(CUDNN_ATTR_OPERATION_POINTWISE_BDESC, *b->descriptor);
    if (choice != nullptr) step.set(CUDNN_ATTR_OPERATION_POINTWISE_TDESC, *choice->descriptor);
    step.set(CUDNN_ATTR_OPERATION_POINTWISE_YDESC, *y.descriptor);
    add(step);
    return y;
  }

  Node matmul(const Node& a, const Node& b, const Node& c) {
    Descriptor& how = part(CUDNN_BACKEND_MATMUL_DESCRIPTOR, "matmul");
    how.set(CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, CUDNN_DATA_FLOAT);
    how.finalize();
    Descriptor& step = part(CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR, "matmul step");
    step.set(CUDNN_ATTR_OPERATION_MATMUL_DESC, how);
    step.set(CUDNN_ATTR_OPERATION_MATMUL_ADESC, *a.descriptor);
    step.set(CUDNN_ATTR_OPERATION_MATMUL_BDESC, *b.descriptor);
    step.set(CUDNN_ATTR_OPERATION_MATMUL_CDESC, *c.descriptor);
    add(step);
    return c;
  }

  Node reduce(cudnnReduceTensorOp_t mode, const Node& x, const Node& y) {
    Descriptor& how = part(CUDNN_BACKEND_REDUCTION_DESCRIPTOR, "reduction");
    how.set(CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, mode);
    how.set(CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, CUDNN_DATA_FLOAT);
    how.finalize();
    Descriptor& step = part(CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR, "reduction step");
    step.set(CUDNN_ATTR_OPERATION_REDUCTION_DESC, how);
    step.set(CUDNN_ATTR_OPERATION_REDUCTION_XDESC, *x.descriptor);
    step.set(CUDNN_ATTR_OPERATION_REDUCTION_YDESC, *y.descriptor);
    add(step);
    return y;
  }

  /// Minus infinity where a key comes after its query.
  Node causal(const Node& scores) {
    constexpr std::int64_t kQueryAxis = 2, kKeyAxis = 3;
    const Node row = pointwise(CUDNN_POINTWISE_GEN_INDEX, inner(scores_, CUDNN_DATA_INT32), scores, nullptr, nullptr,
                               CUDNN_DATA_FLOAT, kQueryAxis);
    const Node column = pointwise(CUDNN_POINTWISE_GEN_INDEX, inner(scores_, CUDNN_DATA_INT32), scores, nullptr, nullptr,
                                  CUDNN_DATA_FLOAT, kKeyAxis);
    const Node is_seen = pointwise(CUDNN_POINTWISE_CMP_GE, inner(scores_, CUDNN_DATA_BOOLEAN), row, &column, nullptr,
                                   CUDNN_DATA_BOOLEAN);
    const Node masked = number(kMasked);
    return pointwise(CUDNN_POINTWISE_BINARY_SELECT, inner(scores_), scores, &masked, &is_seen);
  }

  void add(Descriptor& step) {
    step.finalize();
    steps_.push_back(&step);
  }

  AttentionGraph finish() {
    made_.graph = std::make_unique<Descriptor>(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR, "the graph");
    made_.graph->set(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, handle_);
    made_.graph->set(CUDNN_ATTR_OPERATIONGRAPH_OPS, steps_);
    made_.graph->finalize();
    return std::move(made_);
  }

  const CudnnAttentionProblem& p_;
  cudnnHandle_t handle_;
  cudnnDataType_t io_;
  Sizes scores_, row_;
  std::int64_t next_ = kFirstInner;
  std::vector<const Descriptor*> steps_;
  AttentionGraph made_;
};

}  // namespace

AttentionGraph attention_graph(const CudnnAttentionProblem& problem, cudnnHandle_t handle) {
  return Builder(problem, handle).make();
}

}  // namespace castor::cudnn
