// Eigen's candidate, alone in a file for its compile time.
#include <Eigen/Core>

#include "tests/bench/gemm_candidates.h"

namespace castor::bench {

Candidate eigen_candidate(LinearForm form, const LinearBuffers& b) {
  using Map = Eigen::Map<Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>>;
  return {"Eigen", [form, b] {
            Map x(b.x, b.m, b.k), weight(b.weight, b.n, b.k), y(b.y, b.m, b.n);
            if (form == LinearForm::forward) y.noalias() = x * weight.transpose();
            if (form == LinearForm::data_gradient) x.noalias() = y * weight;
            if (form == LinearForm::weight_gradient) weight.noalias() = y.transpose() * x;
          }};
}

}  // namespace castor::bench
