// `auto`: what is placed where follows from a plan, before the first step, and how much memory there is decides.
#include <mutex>

#include <doctest/doctest.h>

#include "autograd/optim/adam.h"
#include "dist/chunk/chunk_search.h"
#include "dist/comm_meta.h"
#include "dist/comm_thread.h"
#include "dist/flat_layout.h"
#include "strategy/colossalai_strategy.h"
#include "strategy/gemini/gemini_plugin.h"
#include "strategy/gemini/placement.h"
#include "strategy/plan.h"
#include "tests/support/mixed_model.h"
#include "tests/support/model_sizes.h"
#include "tests/support/temp_dir.h"

using namespace castor;
using namespace castor::strategy;
using castor::test::MixedModel;

namespace {

const Device kFast = make_meta({DeviceType::cpu, "", 0}), kSlow = make_meta({DeviceType::cpu, "", 0});

/// Letters of chunks' places: weights then states; D device, H host, F file.
std::string places(const Placement& placement) {
  std::string text;
  for (const dist::ChunkHome& home : placement.homes) {
    text += home.piece == kFast ? 'D' : home.piece_on_disk ? 'F' : 'H';
    text += home.states == kFast ? 'D' : home.states_on_disk ? 'F' : 'H';
    text += ' ';
  }
  return text;
}

TEST_CASE(
    "the device is filled with weights, then states, then whole chunks; the rest goes to the host, then to disk") {
  const std::vector<dist::ChunkInfo> chunks(4, {1000, 500, true});
  const StepForecast forecast{{}, 1000, 100, 12};  // 6000 bytes of states a chunk
  const auto place = [&](double device, double host, bool has_disk) {
    return place_chunks(chunks, forecast, {kFast, kSlow, device, host, has_disk, 1});
  };
  CHECK(places(place(50000, 0, false)) == "DD DD DD DD ");
  CHECK(place(50000, 0, false).kept_bytes == 50000 - 100 - 4000 - 24000);
  CHECK(places(place(5100 + 12000, 1e6, false)) == "DD DD DH DH ");
  CHECK(place(5100 + 12000, 1e6, false).kept_bytes == 1000);
  // Room for states on their way is not taken where none are.
  const auto streams = [&](double device) {
    return places(place_chunks(chunks, forecast, {kFast, kSlow, device, 1e6, false, 1, 6000}));
  };
  CHECK(streams(5100 + 24000) == "DD DD DD DD ");
  CHECK(streams(5100 + 23000) == "DD DD DH DH ");
  CHECK(places(place(5100 + 23000, 1e6, false)) == "DD DD DD DH ");
  CHECK(places(place(4100, 1e6, false)) == "DH DH DH HH ");
  CHECK(places(place(5100, 40000, true)) == "DH DH DH DH ");
  CHECK(places(place(5100, 23000, true)) == "DF DF DF DF ");  // 21000 are for three chunks' way to the disk
  CHECK(places(place(5100, 23000, false)) == "DH DH DH DH ");
  CHECK(places(place(5100 + 6000, 17000, true)) == "DD DF DF DF ");
  CHECK(places(place(3100, 30000, true)) == "DH DH HH HH ");
}

GeminiPlugin::Config automatic(double device_bytes) {
  GeminiPlugin::Config config;
  config.precision = "bf16";
  config.placement_policy = "auto";
  config.enable_gradient_accumulation = true;
  config.device_memory_gib = device_bytes / (1 << 30);
  config.steady_cuda_cap_ratio = 1;
  config.min_chunk_size_m = 0.0003;
  config.search_range_m = 0;
  config.hidden_dim = 16;
  return config;
}

PrepareOptions training() {
  PrepareOptions options;
  options.optimizer = [] { return std::make_unique<autograd::AdamW>(autograd::AdamWConfig{}); };
  options.accumulative_counts = 2;
  options.dispatch.max_iters = 1000;
  return options;
}

ModelFactory mixed() {
  return [](const autograd::TensorOptions& options) { return std::make_shared<MixedModel>(options); };
}

autograd::Batch some_samples() {
  const std::vector<std::int64_t> numbers = {0, 1, 2, 3};
  return test::CountedSamples().batch(numbers);
}

Plan plan_for(const GeminiPlugin::Config& config, int ranks) {
  const auto group = dist::make_meta_comm(0, ranks);
  const auto strategy = [&](Device device) {
    return std::make_unique<ColossalAIStrategy>(device, 1, AutoScaleConfig{}, std::make_unique<GeminiPlugin>(config),
                                                *group);
  };
  return make_plan(strategy, mixed(), training(), some_samples());
}

/// What two ranks did in each of four micro-steps, and where the first one's states were.
struct Run {
  std::vector<std::int64_t> gathers, prefetched;
  std::size_t host_bytes = 0;
  std::int64_t disk_bytes = 0;
  MemoryStats memory;
};

Run run(const GeminiPlugin::Config& config, const std::optional<StepForecast>& forecast) {
  Run seen;
  std::mutex mutex;
  dist::run_ranks(2, [&](dist::Comm& comm) {
    ColossalAIStrategy strategy(kCpu, 1, {}, std::make_unique<GeminiPlugin>(config), comm);
    PrepareOptions options = training();
    options.forecast = forecast;
    strategy.prepare(mixed(), options);
    std::size_t host = 0;
    for (const auto& [name, state] : strategy.optim_wrapper()->stepper().named_states())
      host += state.tensor.device() == kHost ? state.tensor.storage()->bytes() : 0;
    std::vector<std::int64_t> gathers, prefetched;
    for (int i = 0; i < 4; ++i) {
      strategy.train_step(some_samples());
      gathers.push_back(strategy.optim_wrapper()->sharding().chunk_traffic()->gathers);
      prefetched.push_back(strategy.optim_wrapper()->sharding().chunk_traffic()->prefetched);
    }
    const std::lock_guard lock(mutex);
    if (comm.rank() != 0) return;
    for (std::size_t i = gathers.size(); i-- > 1;) gathers[i] -= gathers[i - 1], prefetched[i] -= prefetched[i - 1];
    seen.gathers = gathers;
    seen.prefetched = prefetched;
    seen.host_bytes = host;
    seen.disk_bytes = strategy.optim_wrapper()->sharding().disk_bytes();
  });
  return seen;
}

TEST_CASE(
    "a model that fits is gathered once a step and nothing leaves the device; one that does not, from step 1 on") {
  const Plan roomy = plan_for(automatic(1e9), 2);
  REQUIRE(roomy.forecast);
  CHECK(roomy.host.peak_total == 0);
  const Run easy = run(automatic(1e9), roomy.forecast);
  CHECK(easy.host_bytes == 0);
  CHECK(easy.gathers[2] == easy.gathers[0] - 1);  // the frozen chunk stays
  CHECK(easy.gathers[1] <= easy.gathers[0]);

  const double tight_bytes = static_cast<double>(roomy.forecast->beside_bytes + roomy.forecast->gathered_bytes) + 2000;
  const Plan tight = plan_for(automatic(tight_bytes), 2);
  CHECK(tight.host.peak_total > 0);
  const Run hard = run(automatic(tight_bytes), tight.forecast);
  CHECK(hard.host_bytes > 0);
  CHECK(hard.gathers[0] > easy.gathers[0]);
  CHECK(hard.gathers[0] == hard.gathers[2]);  // the first step is like all others
  CHECK(hard.gathers[1] == hard.gathers[3]);

  GeminiPlugin::Config ahead = automatic(1e9);
  ahead.max_prefetch = 2;
  const Run prefetching = run(ahead, roomy.forecast);
  CHECK(prefetching.prefetched[0] > 0);
  CHECK(prefetching.prefetched[2] == prefetching.prefetched[0] - 1);
  CHECK(run(ahead, {}).prefetched[0] == 0);  // without a plan the order is not known yet
}

TEST_CASE("what neither device nor host can hold goes to disk where there is a folder") {
  const test::TempDir folder;
  const Plan roomy = plan_for(automatic(1e9), 2);
  GeminiPlugin::Config config = automatic(static_cast<double>(roomy.forecast->beside_bytes) + 2000);
  config.host_memory_gib = 1e-6;
  CHECK(run(config, roomy.forecast).disk_bytes == 0);
  config.nvme_offload_dir = folder.path().string();
  CHECK(run(config, roomy.forecast).disk_bytes > 0);
  CHECK(plan_for(config, 2).disk_bytes > 0);
}

TEST_CASE("shares of the device's memory decide how many chunks are kept") {
  const Plan roomy = plan_for(automatic(1e9), 2);
  const auto gathers = [&](double ratio) {
    GeminiPlugin::Config config = automatic(2.0 * static_cast<double>(roomy.memory.peak_total));
    config.steady_cuda_cap_ratio = ratio;
    return run(config, roomy.forecast).gathers[0];
  };
  CHECK(gathers(0.3) > gathers(1));
  const auto first_gathers = [&](double free_share) {  // no plan: the first micro-step is measured
    GeminiPlugin::Config config = automatic(30000);
    config.warmup_non_model_data_ratio = free_share;
    return run(config, {}).gathers[0];
  };
  CHECK(first_gathers(1) > first_gathers(0));
}

TEST_CASE("options that shape chunks and their moves show in what moves") {
  // Gathers of a micro-step, most bytes of whole chunks at a time.
  const auto moves = [](const std::function<void(GeminiPlugin::Config&)>& change) {
    GeminiPlugin::Config config = automatic(1);
    config.placement_policy = "static";
    config.device_memory_gib.reset();
    if (change) change(config);
    std::pair<std::int64_t, std::int64_t> seen;
    dist::run_ranks(2, [&](dist::Comm& comm) {
      ColossalAIStrategy strategy(kCpu, 1, {}, std::make_unique<GeminiPlugin>(config), comm);
      strategy.prepare(mixed(), training());
      strategy.train_step(some_samples());
      const dist::ChunkTraffic& traffic = *strategy.optim_wrapper()->sharding().chunk_traffic();
      if (comm.rank() == 0) seen = {traffic.gathers, traffic.peak_gathered_bytes};
    });
    return seen;
  };
  const auto usual = moves({});
  CHECK(moves([](auto& c) { c.min_chunk_size_m = 0.001; }).first < usual.first);
  CHECK(moves([](auto& c) { c.search_range_m = 0.001; }) != usual);
  CHECK(moves([](auto& c) {
          c.search_range_m = 0.001;
          c.hidden_dim = 2000;  // steps past the range
        }) == usual);
  CHECK(moves([](auto& c) { c.enable_async_reduce = false; }).second < usual.second);
  CHECK(moves([](auto& c) { c.shard_param_frac = 0; }).first < usual.first);
}

/// Many layers, each about a chunk.
class DeepModel final : public autograd::TrainableModel {
 public:
  explicit DeepModel(const autograd::TensorOptions& options) {
    for (int i = 0; i < 16; ++i)
      layers_.emplace<autograd::Linear>(i == 0 ? 8 : 16, 16, autograd::LinearOptions{.tensor = options});
    register_module("layers", layers_);
  }
  autograd::Variable forward(const Tensor& inputs) override { return layers_.forward(autograd::Variable(inputs)); }
  std::map<std::string, autograd::Variable> loss(const autograd::Batch& batch) override {
    return {{"loss", autograd::cross_entropy(forward(batch.inputs), batch.targets)}};
  }

 private:
  autograd::Sequential layers_;
};

TEST_CASE(
    "chunks fetched ahead are few: those of earlier accesses go as they come, in the first step as in all others") {
  const auto deep = [](const autograd::TensorOptions& options) { return std::make_shared<DeepModel>(options); };
  const auto config = [](std::int64_t max_prefetch) {
    GeminiPlugin::Config made = automatic(1);
    made.placement_policy = "static";
    made.device_memory_gib.reset();
    made.max_prefetch = max_prefetch;
    return made;
  };
  // Most bytes of whole chunks at a time, on two ranks over several windows.
  const auto most = [&](std::int64_t max_prefetch, const std::optional<StepForecast>& forecast) {
    std::int64_t peak = 0;
    dist::run_ranks(2, [&](dist::Comm& comm) {
      ColossalAIStrategy strategy(kCpu, 1, {}, std::make_unique<GeminiPlugin>(config(max_prefetch)), comm);
      PrepareOptions options = training();
      options.forecast = forecast;
      strategy.prepare(deep, options);
      strategy.train_step(some_samples());
      const dist::ChunkTraffic& traffic = *strategy.optim_wrapper()->sharding().chunk_traffic();
      CHECK((traffic.prefetched > 0) == forecast.has_value());
      for (int i = 0; i < 5; ++i) strategy.train_step(some_samples());
      CHECK((traffic.prefetched > 0) == (max_prefetch > 0));
      if (comm.rank() == 0) peak = traffic.peak_gathered_bytes;
    });
    return peak;
  };
  const auto plan = [&](std::int64_t max_prefetch) {
    const auto group = dist::make_meta_comm(0, 2);
    const auto strategy = [&](Device device) {
      return std::make_unique<ColossalAIStrategy>(device, 1, AutoScaleConfig{},
                                                  std::make_unique<GeminiPlugin>(config(max_prefetch)), *group);
    };
    return make_plan(strategy, deep, training(), some_samples());
  };
  const std::int64_t none = most(0, {});
  CHECK(!plan(0).forecast);                   // there is nothing to decide
  constexpr std::int64_t kLayer = 512 + 256;  // bytes of its weight, and of its bias to the next boundary
  for (const std::int64_t ahead : {1, 3}) {
    CAPTURE(ahead);
    CHECK(most(ahead, {}) > none);
    CHECK(most(ahead, {}) <= none + ahead * kLayer);
    REQUIRE(plan(ahead).forecast);
    CHECK(most(ahead, plan(ahead).forecast) == most(ahead, {}));
  }
}

TEST_CASE(
    "chunks of the usual sizes waste at most 0.5 percent: of memory, between the ranks and as tails of equal slots") {
  for (const auto& [name, sizes] : test::model_sizes()) {
    CAPTURE(name);
    std::int64_t parameters = 0;
    std::vector<dist::FlatItem> items;
    for (const std::int64_t size : sizes) {
      parameters += size;
      items.push_back({size, DType::bf16});
    }
    constexpr std::int64_t kMebi = 1 << 20;
    const GeminiPlugin::Config usual;
    const dist::ChunkSize found = dist::search_chunk_size(sizes, std::llround(usual.min_chunk_size_m * kMebi),
                                                          std::llround(usual.search_range_m * kMebi), 1024);
    CHECK(found.elements >= 32 * kMebi);
    CHECK(found.elements <= 128 * kMebi);
    CHECK(found.waste <= 0.005);  // no memory, since chunks are not padded; but messages that could have been fuller
    for (const int ranks : {1, 8, 64}) {
      std::int64_t elements = 0, largest = 0;
      std::vector<std::int64_t> of_rank(static_cast<std::size_t>(ranks));
      for (const dist::FlatArray& array : dist::lay_out(items, found.elements, ranks)) {
        elements += array.elements;
        for (int rank = 0; rank < ranks; ++rank) of_rank[static_cast<std::size_t>(rank)] += array.piece_elements(rank);
      }
      for (const std::int64_t piece : of_rank) largest = std::max(largest, piece);
      CHECK(static_cast<double>(elements) <= 1.005 * static_cast<double>(parameters));
      CHECK(static_cast<double>(largest) * ranks <= 1.005 * static_cast<double>(parameters));
    }
  }
}

}  // namespace
