// What sharding is for: bytes of weights, gradients and optimizer states over all ranks, and a model that is larger
// than the device it trains on. Sources of the formulas: Rajbhandari et al. 2020, arXiv:1910.02054, section 3.1; Fang
// et al. 2022, arXiv:2108.05818, section 6.1 (14 bytes a parameter where a gradient takes its weight's place).
#include <filesystem>
#include <mutex>

#include <doctest/doctest.h>

#include "autograd/nn/layers.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/softmax.h"
#include "autograd/optim/adam.h"
#include "core/ops/cast.h"
#include "dist/comm_thread.h"
#include "strategy/colossalai_strategy.h"
#include "strategy/gemini/gemini_plugin.h"
#include "strategy/low_level_zero/low_level_zero_plugin.h"
#include "tests/support/temp_dir.h"

using namespace castor;
using namespace castor::strategy;

namespace {

/// `depth` square layers.
class Stack final : public autograd::TrainableModel {
 public:
  Stack(int depth, std::int64_t width, const autograd::TensorOptions& options) {
    for (int i = 0; i < depth; ++i) {
      layers_.push_back(std::make_shared<autograd::Linear>(width, width, autograd::LinearOptions{.tensor = options}));
      register_module("layer" + std::to_string(i), layers_.back());
    }
  }
  autograd::Variable forward(const Tensor& inputs) override {
    const autograd::ForwardScope scope(*this);
    autograd::Variable x(inputs);
    for (const auto& layer : layers_) x = autograd::relu(layer->forward(x)) + x;
    return x;
  }
  std::map<std::string, autograd::Variable> loss(const autograd::Batch& batch) override {
    return {{"loss", autograd::cross_entropy(forward(batch.inputs), batch.targets)}};
  }

 private:
  std::vector<std::shared_ptr<autograd::Linear>> layers_;
};

ModelFactory stack(int depth, std::int64_t width) {
  return [=](const autograd::TensorOptions& options) { return std::make_shared<Stack>(depth, width, options); };
}

PrepareOptions with_adamw() {
  PrepareOptions options;
  options.optimizer = [] { return std::make_unique<autograd::AdamW>(autograd::AdamWConfig{}); };
  return options;
}

autograd::Batch some_batch(std::int64_t width) {
  return {full({4, width}, 0.5, DType::f32), Tensor::zeros({4}, DType::i64)};
}

/// Bytes of weights, gradients and states, of all allocators that tensors of a CPU run live in.
double state_bytes() {
  double bytes = 0;
  for (const Device device : {kCpu, kHost}) {
    const MemoryStats stats = allocator(device).stats();
    for (const Category category : {Category::parameters, Category::gradients, Category::optimizer})
      bytes += static_cast<double>(stats.current[static_cast<std::size_t>(category)]);
  }
  return bytes;
}

constexpr int kRanks = 4;
constexpr int kDepth = 12;
constexpr std::int64_t kWidth = 256;
constexpr double kParameters = kDepth * (kWidth * kWidth + kWidth);

/// Bytes a parameter over all ranks, after two steps.
///   micro_steps  in the window of each
double bytes_per_parameter(const std::function<std::unique_ptr<Plugin>()>& plugin, std::int64_t micro_steps = 1) {
  const double before = state_bytes();
  double after = 0;
  dist::run_ranks(kRanks, [&](dist::Comm& comm) {
    ColossalAIStrategy strategy(kCpu, 1, {}, plugin(), comm);
    PrepareOptions options = with_adamw();
    options.accumulative_counts = micro_steps;
    options.dispatch.max_iters = 2 * micro_steps;
    strategy.prepare(stack(kDepth, kWidth), options);
    for (int i = 0; i < 2 * micro_steps; ++i) strategy.train_step(some_batch(kWidth));
    comm.barrier();
    if (comm.rank() == 0) after = state_bytes();
    comm.barrier();
  });
  return (after - before) / kParameters;
}

std::unique_ptr<Plugin> zero(std::int64_t stage, const std::function<void(LowLevelZeroPlugin::Config&)>& change = {}) {
  LowLevelZeroPlugin::Config config;
  config.stage = stage;
  config.precision = "bf16";
  config.reduce_bucket_size_in_m = 0.25;
  if (change) change(config);
  return std::make_unique<LowLevelZeroPlugin>(config);
}

std::unique_ptr<GeminiPlugin> gemini(const std::string& precision,
                                     const std::function<void(GeminiPlugin::Config&)>& change = {}) {
  GeminiPlugin::Config config;
  config.precision = precision;
  config.min_chunk_size_m = 0.25;
  config.search_range_m = 0;
  if (change) change(config);
  return std::make_unique<GeminiPlugin>(config);
}

TEST_CASE("bytes a parameter over all ranks are those of the papers' formulas") {
  // bf16 weights on every rank; gradients, masters and two moments once.
  CHECK(bytes_per_parameter([] { return zero(2); }) == doctest::Approx(2 * kRanks + 2 + 12).epsilon(0.05));
  // Stage 1 keeps every rank's buckets of gradients, and a rank's own share in its bucket.
  CHECK(bytes_per_parameter([] { return zero(1); }) == doctest::Approx(4 * kRanks + 12).epsilon(0.05));
  // Gradients are f32 where micro-steps are added.
  CHECK(bytes_per_parameter([] { return zero(2); }, 2) == doctest::Approx(2 * kRanks + 4 + 12).epsilon(0.05));
  CHECK(bytes_per_parameter([] { return zero(1); }, 2) == doctest::Approx(4 * kRanks + 4 + 12).epsilon(0.05));
  // Weights and, in their place, gradients; masters and moments; all of it once.
  CHECK(bytes_per_parameter([] { return gemini("bf16"); }) == doctest::Approx(14).epsilon(0.05));
  CHECK(bytes_per_parameter([] { return gemini("bf16", [](auto& c) { c.enable_gradient_accumulation = true; }); }) ==
        doctest::Approx(18).epsilon(0.05));
  CHECK(bytes_per_parameter([] { return gemini("fp32"); }) == doctest::Approx(12).epsilon(0.05));
  // Two groups of two ranks: each group has everything once.
  CHECK(bytes_per_parameter([] { return gemini("bf16", [](auto& c) { c.extra_dp_size = 2; }); }) ==
        doctest::Approx(28).epsilon(0.05));
  CHECK(bytes_per_parameter([] { return zero(2, [](auto& c) { c.extra_dp_size = 2; }); }) ==
        doctest::Approx(2 * kRanks + 2 * (2 + 12)).epsilon(0.05));
  // On the host: masters, moments and gradients; the whole weights stay.
  const std::size_t host_before = allocator(kHost).stats().current_total;
  double on_host = 0;
  CHECK(bytes_per_parameter([] { return zero(2, [](auto& c) { c.cpu_offload = true; }); }) ==
        doctest::Approx(2 * kRanks + 2 + 12).epsilon(0.05));
  dist::run_ranks(1, [&](dist::Comm& comm) {
    ColossalAIStrategy strategy(kCpu, 1, {}, zero(2, [](auto& c) { c.cpu_offload = true; }), comm);
    strategy.prepare(stack(kDepth, kWidth), with_adamw());
    on_host = static_cast<double>(allocator(kHost).stats().current_total - host_before) / kParameters;
  });
  CHECK(on_host == doctest::Approx(14).epsilon(0.05));
}

TEST_CASE("a model four times as large as its device trains, with the bits of one that fits") {
  constexpr int kManyLayers = 64;
  constexpr std::int64_t kLargeWidth = 512;
  const auto train = [&](ColossalAIStrategy& strategy) {
    strategy.prepare(stack(kManyLayers, kLargeWidth), with_adamw());
    std::vector<double> losses;
    for (int i = 0; i < 3; ++i) losses.push_back(strategy.train_step(some_batch(kLargeWidth)).losses.at("loss"));
    return losses;
  };
  std::vector<double> expected, got;
  {
    ColossalAIStrategy whole(kCpu, 1);
    expected = train(whole);
  }
  allocator(kCpu).release_cached();
  const std::size_t weights = kManyLayers * (kLargeWidth * kLargeWidth + kLargeWidth) * sizeof(float);
  const std::size_t room = weights / 4;
  const std::size_t limit = allocator(kCpu).stats().reserved + room;
  allocator(kCpu).reset_peaks();
  allocator(kCpu).set_limit(limit);
  dist::run_ranks(1, [&](dist::Comm& comm) {
    ColossalAIStrategy strategy(kCpu, 1, {},
                                gemini("fp32",
                                       [](auto& c) {
                                         c.offload_optim_frac = 1;
                                         c.offload_param_frac = 1;
                                       }),
                                comm);
    got = train(strategy);
    CHECK(allocator(kHost).stats().current_total >= 3 * weights);
  });
  CHECK(allocator(kCpu).stats().peak_reserved <= limit);
  allocator(kCpu).set_limit(0);
  allocator(kHost).release_cached();
  CHECK(got == expected);
  CHECK(got[2] < got[0]);
}

TEST_CASE(
    "states that are larger than the host's tier live on disk, pass through three chunks' memory, and keep bits") {
  constexpr int kLayers = 24;
  constexpr std::int64_t kSquare = 256;
  const auto train = [&](ColossalAIStrategy& strategy) {
    strategy.prepare(stack(kLayers, kSquare), with_adamw());
    std::vector<double> losses;
    for (int i = 0; i < 3; ++i) losses.push_back(strategy.train_step(some_batch(kSquare)).losses.at("loss"));
    return losses;
  };
  std::vector<double> expected;
  {
    ColossalAIStrategy whole(kCpu, 1, {}, Precision::bf16);
    expected = train(whole);
  }
  constexpr std::size_t kElements = kLayers * (kSquare * kSquare + kSquare);
  constexpr std::size_t kStates = 12 * kElements;  // master and two moments
  allocator(kHost).release_cached();
  allocator(kHost).reset_peaks();
  allocator(kHost).set_limit(kStates / 2);
  const test::TempDir folder;
  const auto on_disk = [&](double share) {
    return gemini("bf16", [&](auto& c) {
      c.min_chunk_size_m = 2 * (kSquare * kSquare + kSquare) / 1048576.0;  // two layers a chunk
      c.offload_optim_frac = 1;
      c.nvme_offload_fraction = share;
      c.nvme_offload_dir = folder.path().string();
    });
  };
  std::vector<double> got;
  dist::run_ranks(1, [&](dist::Comm& comm) {
    ColossalAIStrategy strategy(kCpu, 1, {}, on_disk(1), comm);
    got = train(strategy);
    const dist::DiskTraffic traffic = strategy.optim_wrapper()->sharding().disk_traffic();
    CHECK(traffic.read_bytes >= 3 * static_cast<std::int64_t>(kStates));
    CHECK(traffic.written_bytes >= 3 * static_cast<std::int64_t>(kStates) - static_cast<std::int64_t>(kStates / 12));
    CHECK(traffic.ahead + 3 >= traffic.blocks);
    CHECK(std::filesystem::is_empty(folder.path()));
  });
  CHECK(allocator(kHost).stats().peak_reserved <= kStates / 2);
  CHECK(got == expected);
  CHECK_THROWS_AS(dist::run_ranks(1,
                                  [&](dist::Comm& comm) {
                                    ColossalAIStrategy strategy(kCpu, 1, {}, on_disk(0), comm);
                                    strategy.prepare(stack(kLayers, kSquare), with_adamw());
                                  }),
                  OutOfMemory);
  allocator(kHost).set_limit(0);
  allocator(kHost).release_cached();
}

}  // namespace
