// The matrix products of GPT-2's and Qwen2.5's layers in bf16, and GPT-2's largest model's in fp8: forward with the
// bias, gradient by data, gradient by weights, beside what the card gives for large squares. For each it also tries all
// of the library's proposals, which shows what other choices than ours (-1) would win. The card is cooler here than in
// a training, which its power bounds, too: of what a choice gains here a training keeps a part.
//
// usage: gpu_gemm [all] [fp8]     needs a GPU with 16 GiB free; prints a table; `all`: every proposal's rate and name;
// `fp8`: only the products in fp8
#include <algorithm>
#include <cstdio>
#include <string>
#include <tuple>
#include <vector>

#include "core/device/backend.h"
#include "core/device/cuda_gemm.h"
#include "core/ops/cast.h"
#include "core/ops/elementwise.h"
#include "core/ops/fp8.h"
#include "core/ops/linear_cross_entropy.h"
#include "core/ops/random.h"
#include "tests/gpu/layer_product.h"
#include "tests/gpu/timing.h"

using namespace castor;
using test::layer_product;

namespace {

constexpr Device kGpu = test::kTimedGpu;
constexpr int kChoices = 8;
constexpr int kWarmUps = 2, kRounds = 9, kCalls = 3;
double ceiling = 0;  // TFLOP/s
bool prints_all = false;

Tensor normal(std::int64_t count, std::uint64_t key, DType dtype = DType::bf16) {
  const Tensor x = Tensor::empty({count}, DType::bf16, kGpu);
  fill_normal(x, {key, 1});
  return dtype == DType::bf16 ? x : fp8_quantise(x, dtype).values;
}

void report(const std::string& name, CudaGemmProblem problem) {
  const bool is_fp8 = dtype_size(problem.dtype) == 1;
  const Tensor a = normal(problem.m * problem.k, 1, problem.dtype),
               b = normal(problem.k * problem.n, 2, is_fp8 ? DType::f8e4m3 : DType::bf16),
               bias = normal(std::max(problem.m, problem.n), 3);
  const Tensor scale = full({1}, 1, DType::f32, kGpu);
  const Tensor c = Tensor::empty({problem.m * problem.n}, DType::bf16, kGpu);
  const Tensor workspace = Tensor::empty({static_cast<std::int64_t>(kCudaGemmWorkspace)}, DType::u8, kGpu);
  const double flops =
      2 * static_cast<double>(problem.m) * static_cast<double>(problem.n) * static_cast<double>(problem.k);
  // All in turn, several times over: the card's clock wanders with its load, and the median is of equal shares of it.
  std::vector<const CudaGemm*> gemms;
  for (int choice = -1; choice < kChoices; ++choice) {
    problem.choice = choice;
    const CudaGemm* const gemm = find_cuda_gemm(kGpu, problem);
    if (gemm == nullptr) break;
    gemms.push_back(gemm);
  }
  std::vector<std::vector<double>> times(gemms.size());
  for (int round = -kWarmUps; round < kRounds; ++round) {
    for (std::size_t i = 0; i < gemms.size(); ++i) {
      const double ms = test::median_ms(
          [&] {
            run_cuda_gemm({kGpu, backend(kGpu).stream()}, *gemms[i], a.view().data, b.view().data,
                          problem.has_bias ? bias.view().data : nullptr, c.view().data, workspace.view().data,
                          {scale.view().data, scale.view().data});
          },
          {1, kCalls, 0});
      if (round >= 0) times[i].push_back(ms);
    }
  }
  std::vector<double> rates;
  for (std::vector<double>& own : times) {
    std::sort(own.begin(), own.end());
    rates.push_back(flops / own[own.size() / 2] / 1e9);
  }
  const double ours = rates[0];
  const auto best = std::max_element(rates.begin(), rates.end());
  ceiling = std::max(ceiling, *best);
  std::printf(
      "%-20s %6lld x%6lld x%6lld %8.3f ms %6.1f TFLOP/s %5.2f of ceiling; first %6.1f, best %6.1f (choice %d)\n",
      name.c_str(), static_cast<long long>(problem.m), static_cast<long long>(problem.n),
      static_cast<long long>(problem.k), flops / ours / 1e9, ours, ours / ceiling, rates[1], *best,
      static_cast<int>(best - rates.begin()) - 1);
  for (std::size_t i = 1; prints_all && i < rates.size(); ++i)
    std::printf("    %zu: %6.1f  %s\n", i - 1, rates[i], cuda_gemm_name(*gemms[i]).c_str());
}

void report_layer(const std::string& name, std::int64_t tokens, std::int64_t in, std::int64_t out, bool has_bias) {
  CudaGemmProblem forward = layer_product(tokens, out, in, false, true);
  forward.has_bias = has_bias;
  report(name + " forward", forward);
  report(name + " dx", layer_product(tokens, in, out, false, false));
  report(name + " dweight", layer_product(out, in, tokens, true, false));
}

void report_fp8_layer(const std::string& name, std::int64_t tokens, std::int64_t in, std::int64_t out) {
  const auto fp8 = [](std::int64_t m, std::int64_t n, std::int64_t k, DType dtype) {
    CudaGemmProblem problem = layer_product(m, n, k, false, true);
    problem.dtype = dtype;
    return problem;
  };
  CudaGemmProblem forward = fp8(tokens, out, in, DType::f8e4m3);
  forward.has_bias = true;
  report(name + " fp8 forward", forward);
  forward.adds_fast = true;
  report(name + " fp8 fast", forward);
  report(name + " fp8 dx", fp8(tokens, in, out, DType::f8e5m2));
  report(name + " fp8 dweight", fp8(out, in, tokens, DType::f8e5m2));
}

void report_bf16() {
  for (const std::int64_t n : {4096, 8192}) report("square", layer_product(n, n, n, false, true));
  for (const auto& [model, width, tokens] :
       {std::tuple(std::string("124M "), 768, 32768), std::tuple(std::string("124M "), 768, 4096),
        std::tuple(std::string("350M "), 1024, 32768), std::tuple(std::string("1.5B "), 1600, 16384),
        std::tuple(std::string("1.5B "), 1600, 8192)}) {
    report_layer(model + "qkv", tokens, width, 3 * width, true);
    report_layer(model + "proj", tokens, width, width, true);
    report_layer(model + "fc", tokens, width, 4 * width, true);
    report_layer(model + "fcproj", tokens, 4 * width, width, true);
    report_layer(model + "head", kLinearCrossEntropyRows, width, 50304, false);
  }
  // Queries, keys and values; then gate and up as one.
  for (const auto& [model, width, packed, hidden, tokens] :
       {std::tuple(std::string("qwen-0.5B "), 896, 1152, 4864, 32768),
        std::tuple(std::string("qwen-1.5B "), 1536, 2048, 8960, 16384),
        std::tuple(std::string("qwen-7B "), 3584, 4608, 18944, 8192)}) {
    report_layer(model + "qkv", tokens, width, packed, true);
    report_layer(model + "proj", tokens, width, width, false);
    report_layer(model + "fc", tokens, width, 2 * hidden, false);
    report_layer(model + "fcproj", tokens, hidden, width, false);
    report_layer(model + "head", kLinearCrossEntropyRows, width, 151936, false);
  }
}

void report_fp8() {
  ceiling = 0;
  report("fp8 square", [] {
    CudaGemmProblem problem = layer_product(8192, 8192, 8192, false, true);
    problem.dtype = DType::f8e4m3;
    return problem;
  }());
  constexpr std::int64_t kTokens = 16384, kWidth = 1600;
  report_fp8_layer("qkv", kTokens, kWidth, 3 * kWidth);
  report_fp8_layer("proj", kTokens, kWidth, kWidth);
  report_fp8_layer("fc", kTokens, kWidth, 4 * kWidth);
  report_fp8_layer("fcproj", kTokens, 4 * kWidth, kWidth);
}

}  // namespace

int main(int count, char** arguments) {
  bool only_fp8 = false;
  for (int i = 1; i < count; ++i) {
    prints_all = prints_all || std::string(arguments[i]) == "all";
    only_fp8 = only_fp8 || std::string(arguments[i]) == "fp8";
  }
  std::printf("%s, normal random numbers\n", test::gpu_name());
  if (!only_fp8) report_bf16();
  report_fp8();
  return 0;
}
