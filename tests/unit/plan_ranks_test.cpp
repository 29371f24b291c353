// The plan against what each rank's allocator sees, over plugins, precisions, ranks, accumulation and recomputation.
// Delicate: ranks are threads here, so each computes on a device of its own: the same kernels, another allocator.
#include <map>
#include <mutex>

#include <doctest/doctest.h>

#include "autograd/optim/adam.h"
#include "core/device/backend_cpu.h"
#include "dist/comm_meta.h"
#include "dist/comm_thread.h"
#include "samples/gpt/model.h"
#include "strategy/colossalai_strategy.h"
#include "strategy/ddp/torch_ddp_plugin.h"
#include "strategy/gemini/gemini_plugin.h"
#include "strategy/low_level_zero/low_level_zero_plugin.h"
#include "strategy/plan.h"
#include "tests/support/temp_dir.h"

namespace castor::strategy {
namespace {

using MakePlugin = std::function<std::unique_ptr<Plugin>()>;

/// The CPU as this rank sees it.
Device device_of(int rank) {
  static std::mutex mutex;
  static std::map<int, Device> devices;
  const std::lock_guard lock(mutex);
  const auto [found, is_new] = devices.try_emplace(rank, Device{DeviceType::cpu, static_cast<std::int16_t>(20 + rank)});
  if (is_new) install_backend(found->second, std::make_unique<CpuBackend>());
  return found->second;
}

MakePlugin ddp() {
  return [] { return std::make_unique<TorchDDPPlugin>(TorchDDPPlugin::Config{}); };
}

MakePlugin zero(std::int64_t stage, const char* precision,
                const std::function<void(LowLevelZeroPlugin::Config&)>& change = {}) {
  return [=] {
    LowLevelZeroPlugin::Config config;
    config.stage = stage;
    config.precision = precision;
    config.reduce_bucket_size_in_m = 0.1;
    config.grad_scaler = {};
    if (change) change(config);
    return std::make_unique<LowLevelZeroPlugin>(config);
  };
}

MakePlugin gemini(const char* precision, const std::function<void(GeminiPlugin::Config&)>& change = {}) {
  return [=] {
    GeminiPlugin::Config config;
    config.precision = precision;
    config.enable_gradient_accumulation = true;
    config.min_chunk_size_m = 0.1;
    config.search_range_m = 0.02;
    if (change) change(config);
    return std::make_unique<GeminiPlugin>(config);
  };
}

struct Case {
  const char* name;
  MakePlugin plugin;
  Precision precision;
  int world_size;
  std::int64_t micro_steps;
  bool recompute;
  bool uses_host = false;
  bool uses_disk = false;
};

ModelFactory decoder(bool recompute) {
  samples::GptConfig config;
  config.n_layer = 3;
  config.n_head = 4;
  config.n_embd = 128;
  config.block_size = 64;
  config.recompute = recompute;
  return [config](const autograd::TensorOptions& options) { return std::make_shared<samples::Gpt>(config, options); };
}

autograd::Batch tokens() { return {Tensor::zeros({4, 64}, DType::i64), Tensor::zeros({4, 64}, DType::i64)}; }

void check(const Case& each) {
  CAPTURE(each.name);
  PrepareOptions options;
  options.optimizer = [] { return std::make_unique<autograd::AdamW>(autograd::AdamWConfig{}); };
  options.accumulative_counts = each.micro_steps;
  options.dispatch.max_iters = 100;
  options.clip = ClipConfig{};
  options.clip->max_norm = 1;
  const ModelFactory model = decoder(each.recompute);
  std::vector<Plan> plans;
  for (int rank = 0; rank < each.world_size; ++rank) {
    const auto ranks = dist::make_meta_comm(rank, each.world_size);
    const auto strategy = [&](Device device) {
      return std::make_unique<ColossalAIStrategy>(device, 1, AutoScaleConfig{}, each.plugin(), *ranks, each.precision);
    };
    plans.push_back(make_plan(strategy, model, options, tokens()));
  }
  const MemoryStats host_before = allocator(kHost).stats();
  allocator(kHost).reset_peaks();
  std::vector<MemoryStats> actual(static_cast<std::size_t>(each.world_size));
  std::vector<std::int64_t> disk_bytes(actual.size()), disk_traffic(actual.size());
  dist::run_ranks(each.world_size, [&](dist::Comm& comm) {
    const auto rank = static_cast<std::size_t>(comm.rank());
    const Device device = device_of(comm.rank());
    allocator(device).reset_peaks();
    const MemoryStats before = allocator(device).stats();
    ColossalAIStrategy strategy(device, 1, {}, each.plugin(), comm, each.precision);
    PrepareOptions planned = options;
    planned.forecast = plans[rank].forecast;
    strategy.prepare(model, planned);
    for (std::int64_t m = 0; m < each.micro_steps; ++m) strategy.train_step(tokens());
    strategy.optim_wrapper()->stepper().finish();  // what the step left for the next one
    actual[rank] = memory_since(before, allocator(device).stats());
    const Sharding& sharding = strategy.optim_wrapper()->sharding();
    disk_bytes[rank] = sharding.disk_bytes();
    disk_traffic[rank] = sharding.disk_traffic().read_bytes + sharding.disk_traffic().written_bytes;
  });
  for (std::size_t rank = 0; rank < actual.size(); ++rank) {
    INFO(audit_text(plans[rank], actual[rank]));
    CHECK(audit_worst(plans[rank], actual[rank]) <= 0.05);
    CHECK((plans[rank].host.peak_total > 0) == each.uses_host);
    CHECK((plans[rank].disk_bytes > 0) == each.uses_disk);
    CHECK(plans[rank].disk_bytes == disk_bytes[rank]);
    CHECK(plans[rank].disk_traffic == disk_traffic[rank]);
    CHECK(actual[rank].peak[static_cast<std::size_t>(Category::activations)] >= 64 << 10);
  }
  if (each.world_size == 1) {
    Plan host = plans[0];
    host.memory = host.host;
    const MemoryStats seen = memory_since(host_before, allocator(kHost).stats());
    INFO(audit_text(host, seen));
    CHECK(audit_worst(host, seen) <= 0.05);
  }
}

TEST_CASE("plans are within 5% per category and rank, over plugins, precisions, ranks, accumulation and recompute") {
  const test::TempDir folder;
  const auto on_disk = [&](auto& c) {
    c.offload_optim_frac = 1;
    c.nvme_offload_fraction = 1;
    c.nvme_offload_dir = folder.path().string();
  };
  const Case cases[] = {
      {"ddp", ddp(), Precision::fp32, 2, 1, false},
      {"ddp, windows of 3", ddp(), Precision::bf16, 1, 3, false},
      {"zero-1", zero(1, "bf16"), Precision::bf16, 2, 2, false},
      {"zero-1, recompute", zero(1, "fp16"), Precision::fp16, 4, 1, true},
      {"zero-2", zero(2, "bf16"), Precision::bf16, 2, 1, false},
      {"zero-2 on the host", zero(2, "fp32", [](auto& c) { c.cpu_offload = true; }), Precision::fp32, 1, 2, false,
       true},
      {"gemini", gemini("fp32"), Precision::fp32, 2, 1, false},
      {"gemini, kept", gemini("bf16", [](auto& c) { c.shard_param_frac = 0; }), Precision::bf16, 4, 2, false},
      {"gemini, two ahead", gemini("bf16", [](auto& c) { c.max_prefetch = 2; }), Precision::bf16, 2, 2, false},
      {"gemini, half of each",
       gemini("fp16",
              [](auto& c) {
                c.shard_param_frac = 0.5;
                c.offload_optim_frac = 0.5;
                c.max_prefetch = 1;
              }),
       Precision::fp16, 2, 1, true, true},
      {"gemini on the host",
       gemini("bf16",
              [](auto& c) {
                c.offload_optim_frac = 1;
                c.offload_param_frac = 1;
              }),
       Precision::bf16, 1, 2, false, true},
      {"gemini on disk", gemini("bf16", on_disk), Precision::bf16, 1, 1, false, true, true},
      {"gemini on disk, half of the weights too",
       gemini("fp32",
              [&](auto& c) {
                on_disk(c);
                c.offload_param_frac = 1;
                c.nvme_offload_param_fraction = 0.5;
              }),
       Precision::fp32, 2, 2, false, true, true},
      {"zero-2, fp8, two groups", zero(2, "fp8", [](auto& c) { c.extra_dp_size = 2; }), Precision::fp8, 4, 2, false},
      {"gemini, fp8, two groups, states on the host",
       gemini("fp8",
              [](auto& c) {
                c.extra_dp_size = 2;
                c.offload_optim_frac = 1;
                c.max_prefetch = 2;
              }),
       Precision::fp8, 4, 1, true, true},
      {"gemini, auto",
       gemini("bf16",
              [](auto& c) {
                c.placement_policy = "auto";
                c.device_memory_gib = 0.004;
              }),
       Precision::bf16, 2, 2, true, true}};
  for (const Case& each : cases) check(each);
}

}  // namespace
}  // namespace castor::strategy
