// Forward and backward of GPT-2 124M (batch 2, 256 tokens, f32) as a share of this machine's sgemm rate, both measured
// in turns by this program.
//
// What counts as work: 2 operations for each multiply-add of the matrix products that the model needs, forward once and
// backward twice: 6 N a token, N = the weights of the linear layers and of the output matrix (the token table), and for
// attention 6 L D T, the causal half. Norms, softmax, gelu and the loss count as nothing. sgemm is 2048 cubed through
// oneDNN, the faster of its two kernels for it.
#include <algorithm>
#include <iostream>
#include <vector>

#include "autograd/graph.h"
#include "core/base/error.h"
#include "core/base/philox.h"
#include "core/ops/onednn.h"
#include "core/tensor/tensor.h"
#include "samples/gpt/model.h"
#include "tests/bench/measure.h"

namespace {

using namespace castor;

constexpr std::int64_t kBatch = 2, kTokens = 256, kLayers = 12, kWidth = 768, kVocabulary = 50257;

double flops_of_a_step() {
  const double weights = static_cast<double>(12 * kLayers * kWidth * kWidth + kVocabulary * kWidth);
  const double attention = static_cast<double>(6 * kLayers * kWidth * kTokens);
  return static_cast<double>(kBatch * kTokens) * (6 * weights + attention);
}

/// Tokens or classes in [0, kVocabulary), from a counter.
Tensor random_tokens(std::uint64_t stream) {
  std::vector<std::int64_t> tokens(static_cast<std::size_t>(kBatch * kTokens));
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    tokens[i] = static_cast<std::int64_t>(philox({1, stream}, i).word[0]) % kVocabulary;
  }
  return Tensor::from_values(tokens, {kBatch, kTokens});
}

double median_of(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

/// sgemm rate in GFLOP/s of one algorithm of oneDNN.
class Sgemm {
 public:
  explicit Sgemm(onednn::GemmAlgorithm algorithm) {
    problem_.m = problem_.n = problem_.k = kSize;
    problem_.a_row = problem_.b_row = problem_.c_row = kSize;
    problem_.algorithm = algorithm;
    for (Tensor* x : {&a_, &b_, &c_}) *x = Tensor::empty({kSize, kSize}, DType::f32);
    for (std::int64_t i = 0; i < kSize * kSize; ++i) {
      a_.data<float>()[i] = static_cast<float>(i % 13) - 6.0f;
      b_.data<float>()[i] = static_cast<float>(i % 11) - 5.0f;
    }
  }
  bench::Measurement measure_once(int warmup_steps) {
    bench::Timing timing;
    timing.unit = "GFLOP/s";
    timing.items_per_step = 2e-9 * static_cast<double>(kSize) * kSize * kSize;
    timing.warmup_steps = warmup_steps;
    timing.repeats = 1;
    timing.steps_per_repeat = 4;
    return bench::measure(timing, [&] {
      onednn::Gemm& gemm = onednn::gemm(problem_);
      if (workspace_.size() < gemm.workspace_bytes()) workspace_.resize(gemm.workspace_bytes() + 64);
      const auto address = (reinterpret_cast<std::uintptr_t>(workspace_.data()) + 63) / 64 * 64;
      gemm.run(a_.data<float>(), b_.data<float>(), nullptr, c_.data<float>(), reinterpret_cast<void*>(address));
      return 0.0;
    });
  }

 private:
  static constexpr std::int64_t kSize = 2048;
  onednn::GemmProblem problem_;
  Tensor a_, b_, c_;
  std::vector<std::byte> workspace_;
};

void run(int argc, const char* const* argv) {
  bench::Timing timing;
  timing.name = "gpt2-124m-b2-t256-forward-backward";
  timing.unit = "GFLOP/s";
  timing.items_per_step = 1e-9 * flops_of_a_step();
  for (const std::string& argument : bench::read_arguments(argc, argv, timing)) {
    throw ConfigError(cat(argument, ": unknown; this benchmark takes --repeats R and --steps S"), argument);
  }
  const int rounds = timing.repeats;

  samples::GptConfig config;
  config.n_layer = kLayers;
  config.n_head = 12;
  config.n_embd = kWidth;
  config.block_size = 1024;
  config.vocab_size = kVocabulary;
  config.tie_weights = true;
  samples::Gpt model(config);
  autograd::initialize(model, 0);
  const auto parameters = model.named_parameters();
  const autograd::Batch batch{random_tokens(0), random_tokens(1)};
  const auto step = [&] {
    const autograd::Variable loss = autograd::total_loss(model.loss(batch));
    autograd::backward(loss);
    for (const auto& [name, parameter] : parameters) parameter.set_grad({});
    return loss.data().item();
  };

  Sgemm first(onednn::GemmAlgorithm::automatic), second(onednn::GemmAlgorithm::blas);
  bench::Measurement result;
  std::vector<double> rates, first_rates, second_rates;
  timing.repeats = 1;
  for (int round = 0; round < rounds; ++round) {
    const int warmup = round == 0 ? 1 : 0;
    first_rates.push_back(first.measure_once(warmup).median);
    second_rates.push_back(second.measure_once(warmup).median);
    timing.warmup_steps = warmup;
    const bench::Measurement one = bench::measure(timing, step);
    rates.push_back(one.median);
    const double other = std::max(result.other_cpu_pct, one.other_cpu_pct);
    const double steal = std::max(result.steal_pct, one.steal_pct);
    result = one;
    result.other_cpu_pct = other;
    result.steal_pct = steal;
  }
  result.timing.repeats = rounds;
  result.median = median_of(rates);
  result.min = *std::min_element(rates.begin(), rates.end());
  result.max = *std::max_element(rates.begin(), rates.end());
  std::cerr << model.parameter_count() << " parameters, loss " << result.last_loss << "\n";
  bench::print_comparison(result, "sgemm 2048^3", std::max(median_of(first_rates), median_of(second_rates)));
}

}  // namespace

int main(int argc, char** argv) {
  try {
    run(argc, argv);
    return 0;
  } catch (const castor::ConfigError& error) {
    std::cerr << error.what() << "\n";
    return 2;
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
