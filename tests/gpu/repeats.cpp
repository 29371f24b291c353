// Whether attention and the library's products have the same bits each time, also while several processes share the
// GPU. Something that is read or written a moment too late shows there alone, where blocks are put aside half-way for
// another process; compute-sanitizer does not follow the asynchronous instructions that these kernels are made of.
//
// usage: gpu_repeats [SECONDS [PROCESSES]]     20 seconds, 6 processes; needs a GPU. A line for each kernel that ran,
// and the first elements that were others. Exit codes: 0 always the same bits, 1 others were seen.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <tuple>
#include <vector>

#include <sys/wait.h>
#include <unistd.h>

#include "core/device/backend.h"
#include "core/device/cuda_gemm.h"
#include "core/ops/attention.h"
#include "core/ops/cast.h"
#include "core/ops/elementwise.h"
#include "core/ops/random.h"
#include "core/ops/reduce.h"
#include "tests/gpu/layer_product.h"
#include "tests/gpu/timing.h"

using namespace castor;

namespace {

constexpr Device kGpu = test::kTimedGpu;

/// Something that writes a tensor, and what it wrote the first time.
struct Candidate {
  std::string name;
  Tensor result;
  std::function<void()> work;
  Tensor expected = {};
  std::int64_t runs = 0, different = 0;
};

Tensor normal(const Shape& shape, std::uint64_t key) {
  const Tensor x = Tensor::empty(shape, DType::bf16, kGpu);
  fill_normal(x, {key, 1});
  return x;
}

/// Gradients of attention over packed projections, forward included.
void add_attention(std::vector<Candidate>& candidates, std::int64_t batch, std::int64_t length, std::int64_t heads,
                   std::int64_t dim) {
  const Shape shape{batch, length, 3, heads, dim};
  const Tensor packed = normal(shape, 1), dout = normal({batch, length, heads, dim}, 2),
               gradient = Tensor::empty_like(packed);
  candidates.push_back({cat("attention ", batch, "x", length, "x", heads, "x", dim), gradient, [=] {
                          const Tensor q = packed.select(2, 0), k = packed.select(2, 1), v = packed.select(2, 2);
                          AttentionOptions options;
                          options.causal = true;
                          attention_backward(q, k, v, attention(q, k, v, options), dout, options,
                                             {gradient.select(2, 0), gradient.select(2, 1), gradient.select(2, 2)});
                        }});
}

/// [m, n] = [m, k] [k, n], of operands that lie row by row or column by column.
void add_product(std::vector<Candidate>& candidates, const char* name, const Tensor& workspace, std::int64_t m,
                 std::int64_t n, std::int64_t k, bool a_is_transposed, bool b_is_transposed) {
  const CudaGemm* const gemm = find_cuda_gemm(kGpu, test::layer_product(m, n, k, a_is_transposed, b_is_transposed));
  if (gemm == nullptr) return;
  const Tensor a = normal({m * k}, 1), b = normal({k * n}, 2), c = Tensor::empty({m * n}, DType::bf16, kGpu);
  candidates.push_back({cat(name, " ", m, "x", n, "x", k), c, [=] {
                          run_cuda_gemm({kGpu, backend(kGpu).stream()}, *gemm, a.view().data, b.view().data, nullptr,
                                        c.view().data, workspace.view().data);
                        }});
}

std::vector<Candidate> all_candidates() {
  std::vector<Candidate> candidates;
  for (const auto& [batch, length, heads, dim] :
       {std::tuple(4, 256, 6, 64), std::tuple(2, 1024, 12, 64), std::tuple(1, 4096, 2, 64), std::tuple(2, 512, 8, 128),
        std::tuple(1, 2048, 4, 128)})
    add_attention(candidates, batch, length, heads, dim);
  const Tensor workspace = Tensor::empty({static_cast<std::int64_t>(kCudaGemmWorkspace)}, DType::u8, kGpu);
  for (const auto& [tokens, width] : {std::tuple<std::int64_t, std::int64_t>(1024, 384), {4096, 768}}) {
    for (const auto& [in, out] :
         {std::tuple(width, 3 * width), {width, width}, {width, 4 * width}, {4 * width, width}}) {
      add_product(candidates, "forward", workspace, tokens, out, in, false, true);
      add_product(candidates, "dx", workspace, tokens, in, out, false, false);
      add_product(candidates, "dweight", workspace, out, in, tokens, true, false);
    }
  }
  return candidates;
}

void print_difference(const Candidate& candidate) {
  const std::vector<float> got = cast(candidate.result, DType::f32).to_vector<float>(),
                           expected = cast(candidate.expected, DType::f32).to_vector<float>();
  constexpr int kMostPrinted = 8;
  int count = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (got[i] == expected[i] || ++count > kMostPrinted) continue;
    std::printf("  %s: element %zu is %g, was %g\n", candidate.name.c_str(), i, got[i], expected[i]);
  }
  std::printf("  %s: %d elements differ\n", candidate.name.c_str(), count);
}

bool repeat(double seconds) {
  std::vector<Candidate> candidates = all_candidates();
  for (Candidate& candidate : candidates) {
    candidate.work();
    candidate.expected = clone(candidate.result);
  }
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (std::chrono::steady_clock::now() < end) {
    std::vector<Tensor> differences;
    for (const Candidate& candidate : candidates) {
      candidate.work();
      differences.push_back(reduce(ReduceOp::norm_inf, sub(candidate.result, candidate.expected)));
    }
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      ++candidates[i].runs;
      if (differences[i].item() == 0) continue;
      ++candidates[i].different;
      print_difference(candidates[i]);
    }
  }
  bool is_equal = true;
  for (const Candidate& candidate : candidates) {
    is_equal = is_equal && candidate.different == 0;
    std::printf("%-44s %6lld runs, %lld different\n", candidate.name.c_str(), static_cast<long long>(candidate.runs),
                static_cast<long long>(candidate.different));
  }
  return is_equal;
}

}  // namespace

int main(int count, char** arguments) {
  const double seconds = count > 1 ? std::atof(arguments[1]) : 20;
  const int processes = count > 2 ? std::atoi(arguments[2]) : 6;
  // CUDA is not to be touched before a fork.
  std::vector<pid_t> children;
  for (int i = 0; i < processes; ++i) {
    const pid_t child = fork();
    if (child == 0) return repeat(seconds) ? 0 : 1;
    if (child > 0) children.push_back(child);
  }
  bool is_equal = static_cast<int>(children.size()) == processes && processes > 0;
  for (const pid_t child : children) {
    int status = 0;
    is_equal = waitpid(child, &status, 0) == child && status == 0 && is_equal;
  }
  std::printf("%d processes, %s\n", processes, is_equal ? "always the same bits" : "DIFFERENT BITS");
  return is_equal ? 0 : 1;
}
