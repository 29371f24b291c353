// Prints how fast each candidate computes the products of linear layers, and which one Castor uses: the table behind
// onednn::choose. The losers stay in the table, so that a new machine or library can overturn it.
//
// `--repeats R` sets the rounds. Other arguments: shapes m,n,k instead of the built-in ones.
#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "core/ops/onednn.h"
#include "core/ops/workspace.h"
#include "tests/bench/gemm_candidates.h"
#include "tests/bench/measure.h"
#include "tests/bench/race.h"

namespace castor::bench {
namespace {

struct LinearShape {
  std::int64_t m, n, k;
};

/// The linear layers of the benchmarked models: GPT 6x384 (qkv, out, up, down, head), the MLP, LeNet's first.
constexpr LinearShape kShapes[] = {{2048, 1152, 384}, {2048, 384, 384}, {2048, 1536, 384},
                                   {2048, 384, 1536}, {2048, 256, 384}, {128, 512, 784},
                                   {128, 512, 512},   {128, 10, 512},   {128, 128, 3136}};
constexpr LinearForm kForms[] = {LinearForm::forward, LinearForm::data_gradient, LinearForm::weight_gradient};
constexpr const char* kFormNames[] = {"forward", "data gradient", "weight gradient"};

onednn::GemmProblem problem_of(LinearForm form, const LinearShape& shape) {
  onednn::GemmProblem problem;
  const auto [m, n, k] = shape;
  switch (form) {
    case LinearForm::forward:
      problem.m = m, problem.n = n, problem.k = k;
      problem.a_row = k, problem.b_row = 1, problem.b_column = k, problem.c_row = n;
      break;
    case LinearForm::data_gradient:
      problem.m = m, problem.n = k, problem.k = n;
      problem.a_row = n, problem.b_row = k, problem.c_row = k;
      break;
    case LinearForm::weight_gradient:
      problem.m = n, problem.n = k, problem.k = m;
      problem.a_row = 1, problem.a_column = n, problem.b_row = k, problem.c_row = k;
      break;
  }
  return problem;
}

/// Castor's own wrapper with one of its algorithms.
Candidate wrapper_candidate(LinearForm form, const LinearBuffers& b, onednn::GemmAlgorithm algorithm,
                            const char* name) {
  onednn::GemmProblem problem = problem_of(form, {b.m, b.n, b.k});
  problem.algorithm = algorithm;
  const onednn::Gemm& gemm = onednn::gemm(problem);
  const Tensor workspace = make_workspace(std::max<std::size_t>(gemm.workspace_bytes(), 1), kCpu);
  const std::string text = cat(name, " [", gemm.implementation(), "]");
  return {text, [form, b, problem, workspace] {
            float* const operands[][3] = {{b.x, b.weight, b.y}, {b.y, b.weight, b.x}, {b.y, b.x, b.weight}};
            float* const* const operand = operands[static_cast<int>(form)];
            onednn::gemm(problem).run(operand[0], operand[1], nullptr, operand[2], workspace.view().data);
          }};
}

void compare(LinearForm form, const LinearShape& shape, int rounds) {
  const auto [m, n, k] = shape;
  std::vector<float> x(static_cast<std::size_t>(m * k), 0.5f), weight(static_cast<std::size_t>(n * k), 0.25f);
  std::vector<float> y(static_cast<std::size_t>(m * n), 0.125f);
  const LinearBuffers buffers{m, n, k, x.data(), weight.data(), y.data()};
  using onednn::GemmAlgorithm;
  std::vector<Candidate> candidates = {
      wrapper_candidate(form, buffers, GemmAlgorithm::first, "matmul"),
      wrapper_candidate(form, buffers, GemmAlgorithm::packed_weights, "matmul, packed"),
      wrapper_candidate(form, buffers, GemmAlgorithm::blas, "matmul, blas"),
      inner_product_candidate(form, buffers, false),
      inner_product_candidate(form, buffers, true),
      sgemm_candidate(form, buffers),
      eigen_candidate(form, buffers),
  };
  const std::size_t chosen = static_cast<std::size_t>(onednn::choose(problem_of(form, shape))) - 1;

  const double flops = 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
  race(cat("linear ", m, "x", n, "x", k, " ", kFormNames[static_cast<int>(form)]), flops, rounds, candidates, chosen);
}

std::vector<LinearShape> read_shapes(const std::vector<std::string>& arguments) {
  std::vector<LinearShape> shapes(std::begin(kShapes), std::end(kShapes));
  if (!arguments.empty()) shapes.clear();
  for (const std::string& argument : arguments) {
    long long m = 0, n = 0, k = 0;
    if (std::sscanf(argument.c_str(), "%lld,%lld,%lld", &m, &n, &k) != 3 || m <= 0 || n <= 0 || k <= 0) {
      throw ConfigError(cat("gemm_choices: expected a shape m,n,k of positive numbers, got '", argument, "'"),
                        argument);
    }
    shapes.push_back({m, n, k});
  }
  return shapes;
}

}  // namespace
}  // namespace castor::bench

int main(int argc, char** argv) {
  using namespace castor::bench;
  try {
    Timing timing;
    timing.repeats = 15;
    const auto shapes = read_shapes(read_arguments(argc, argv, timing));
    std::fprintf(stderr, "instruction set of oneDNN: %s; * = used by Castor\n",
                 std::string(castor::onednn::instruction_set()).c_str());
    for (const LinearShape& shape : shapes) {
      for (const LinearForm form : kForms) compare(form, shape, timing.repeats);
    }
  } catch (const castor::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}
