// Whole trainings whose optimizer states are on the host, on the fake device, whose copies happen as late as they may:
// what reads a weight or a state before it is there, or changes one that is still read, ends with other bits than the
// CPU's. On GPUs the same is tests/gpu/training_test.cpp's.
#include <doctest/doctest.h>

#include "autograd/optim/adam.h"
#include "core/ops/cast.h"
#include "dist/comm_thread.h"
#include "samples/gpt/model.h"
#include "strategy/colossalai_strategy.h"
#include "strategy/gemini/gemini_plugin.h"
#include "strategy/low_level_zero/low_level_zero_plugin.h"
#include "tests/support/op_check.h"

using namespace castor;
using namespace castor::strategy;

namespace {

/// One rank's group for tensors of the fake device too, whose memory the host can read.
class OneRank final : public dist::Comm {
 public:
  explicit OneRank(dist::Comm& inner) : inner_(inner) {}
  explicit OneRank(std::unique_ptr<dist::Comm> inner) : owned_(std::move(inner)), inner_(*owned_) {}
  int rank() const override { return 0; }
  int world_size() const override { return 1; }
  const std::string& name() const override { return inner_.name(); }
  const std::vector<int>& members() const override { return inner_.members(); }
  std::unique_ptr<dist::Comm> split(int color, int key) override {
    return std::make_unique<OneRank>(inner_.split(color, key));
  }
  void abort(const std::string& reason) noexcept override { inner_.abort(reason); }

 protected:
  bool takes(Device) const override { return true; }
  dist::Work submit(dist::Collective collective) override {
    execute(std::move(collective));
    return dist::Work(nullptr);
  }
  void execute(dist::Collective collective) override {
    backend(collective.device()).stream();  // what its queue waits for comes first
    dist::Collective bare = collective;
    for (std::vector<dist::Buffer>* side : {&bare.in, &bare.out}) {
      for (dist::Buffer& buffer : *side) buffer.owner.reset();
    }
    inner_.run(std::move(bare));
  }

 private:
  std::unique_ptr<dist::Comm> owned_;
  dist::Comm& inner_;
};

using MakePlugin = std::function<std::unique_ptr<Plugin>()>;

MakePlugin gemini(double states, double weights, std::int64_t max_prefetch) {
  return [=] {
    GeminiPlugin::Config config;
    config.precision = "bf16";
    config.min_chunk_size_m = 0.25;
    config.search_range_m = 0;
    config.offload_optim_frac = states;
    config.offload_param_frac = weights;
    config.max_prefetch = max_prefetch;
    config.max_norm = 1;
    return std::make_unique<GeminiPlugin>(config);
  };
}

MakePlugin zero(std::int64_t stage, bool overlap_allgather) {
  return [=] {
    LowLevelZeroPlugin::Config config;
    config.precision = "bf16";
    config.stage = stage;
    config.cpu_offload = true;
    config.overlap_allgather = overlap_allgather;
    config.reduce_bucket_size_in_m = 0.25;
    config.max_norm = 1;
    return std::make_unique<LowLevelZeroPlugin>(config);
  };
}

/// Losses, states and weights of five steps; some of the states are looked at in between.
struct Run {
  std::vector<double> losses;
  std::map<std::string, std::vector<float>> values;
  std::int64_t by_gpu = 0;
};

Run train(Device device, const MakePlugin& plugin) {
  samples::GptConfig config;
  config.n_layer = 3;
  config.n_head = 4;
  config.n_embd = 256;
  config.block_size = 16;
  config.vocab_size = 96;
  config.tie_weights = true;
  Run run;
  dist::run_ranks(1, [&](dist::Comm& threads) {
    OneRank comm(threads);
    ColossalAIStrategy strategy(device, 1, AutoScaleConfig{}, plugin(), comm, Precision::bf16);
    PrepareOptions options;
    options.optimizer = [] { return std::make_unique<autograd::AdamW>(autograd::AdamWConfig{}); };
    options.dispatch.max_iters = 100;
    strategy.prepare(
        [&](const autograd::TensorOptions& where) { return std::make_shared<samples::Gpt>(config, where); }, options);
    autograd::Stepper& stepper = strategy.optim_wrapper()->stepper();
    for (int step = 0; step < 5; ++step) {
      std::vector<std::int64_t> tokens;
      for (std::int64_t i = 0; i < 2 * 17; ++i) tokens.push_back((i * i + 7 * step) % 96);
      const Tensor all = Tensor::from_values(tokens, {2, 17});
      const autograd::Batch batch{contiguous(all.narrow(1, 0, 16)), contiguous(all.narrow(1, 1, 16))};
      run.losses.push_back(strategy.train_step(batch).losses.at("loss"));
      if (step == 2) stepper.named_states();
    }
    run.by_gpu = stepper.shared_elements().by_gpu;
    for (auto& [name, piece] : stepper.named_states())
      run.values[name] = cast(to_device(piece.tensor, kCpu), DType::f32).to_vector<float>();
    for (const autograd::Part& piece : strategy.optim_wrapper()->sharding().pieces())
      run.values[piece.variable.name()] = cast(to_device(piece.weights, kCpu), DType::f32).to_vector<float>();
  });
  return run;
}

TEST_CASE("trainings with states on the host have the CPU's bits on a device whose copies are late") {
  const std::pair<const char*, MakePlugin> plugins[] = {
      {"gemini, all states", gemini(1, 0, 0)},
      {"gemini, half of them, chunks fetched ahead", gemini(0.5, 0, 2)},
      {"gemini, states and weights", gemini(1, 0.5, 1)},
      {"zero-1", zero(1, false)},
      {"zero-2, gathers overlapped", zero(2, true)},
  };
  for (const Device device : test::test_devices()) {
    if (!device.is_cuda()) continue;
    for (const auto& [name, plugin] : plugins) {
      CAPTURE(std::string(name));
      const Run cpu = train(kCpu, plugin), late = train(device, plugin);
      CHECK(late.losses == cpu.losses);
      CHECK(cpu.values.size() > 20);
      CHECK((late.values == cpu.values));
      CHECK(cpu.by_gpu == 0);
      CHECK(late.by_gpu > 0);
    }
  }
}

}  // namespace
