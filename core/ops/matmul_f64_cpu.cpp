// Eigen's product over strided maps. Threads are off: Eigen would split by their number, and then bits would depend on
// it.
#include <Eigen/Core>

#include "core/ops/matmul_f64.h"

namespace castor {
namespace {

template <int kOrder>
using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, kOrder>;
template <int kOrder>
using ConstMap = Eigen::Map<const Matrix<kOrder>, Eigen::Unaligned, Eigen::OuterStride<>>;
using RowMap = Eigen::Map<Matrix<Eigen::RowMajor>, Eigen::Unaligned, Eigen::OuterStride<>>;

/// Calls f with a map of `matrix` whose order fits its strides.
template <class F>
void visit_order(MatrixF64 matrix, std::int64_t rows, std::int64_t columns, F&& f) {
  if (matrix.column_stride == 1 || columns == 1) {
    f(ConstMap<Eigen::RowMajor>(matrix.data, rows, columns, Eigen::OuterStride<>(matrix.row_stride)));
  } else {
    f(ConstMap<Eigen::ColMajor>(matrix.data, rows, columns, Eigen::OuterStride<>(matrix.column_stride)));
  }
}

}  // namespace

void gemm_f64(std::int64_t m, std::int64_t n, std::int64_t k, MatrixF64 a, MatrixF64 b, double* c,
              std::int64_t c_row_stride) {
  Eigen::setNbThreads(1);
  RowMap result(c, m, n, Eigen::OuterStride<>(c_row_stride));
  visit_order(a, m, k, [&](const auto& left) {
    visit_order(b, k, n, [&](const auto& right) { result.noalias() = left * right; });
  });
}

}  // namespace castor
