// What a plan says a step costs in time: bytes on links counted by hand, and estimates for an H100 against steps that
// were measured on one (README, Numbers).
#include "strategy/plan_cost.h"

#include <nlohmann/json.hpp>

#include <doctest/doctest.h>

#include "autograd/optim/adam.h"
#include "core/base/error.h"
#include "dist/comm_meta.h"
#include "samples/gpt/model.h"
#include "strategy/colossalai_strategy.h"
#include "strategy/ddp/torch_ddp_plugin.h"
#include "strategy/gemini/gemini_plugin.h"
#include "strategy/low_level_zero/low_level_zero_plugin.h"

namespace castor::strategy {
namespace {

using MakePlugin = std::function<std::unique_ptr<Plugin>()>;

MakePlugin zero(std::int64_t stage) {
  return [stage] {
    LowLevelZeroPlugin::Config config;
    config.stage = stage;
    config.precision = "bf16";
    return std::make_unique<LowLevelZeroPlugin>(config);
  };
}

MakePlugin gemini(const std::function<void(GeminiPlugin::Config&)>& change = {}) {
  return [change] {
    GeminiPlugin::Config config;
    config.precision = "bf16";
    if (change) change(config);
    return std::make_unique<GeminiPlugin>(config);
  };
}

struct Shape3 {
  std::int64_t layers, heads, width;
};

/// A GPT of 1024 tokens and 50304 symbols, trained in bf16 as `castor bench` does.
Plan plan_gpt(const Shape3& size, std::int64_t batch, const MakePlugin& plugin, int ranks = 1, bool recompute = false,
              DeviceType target = DeviceType::cuda, std::int64_t micro_steps = 1) {
  samples::GptConfig config;
  config.n_layer = size.layers;
  config.n_head = size.heads;
  config.n_embd = size.width;
  config.block_size = 1024;
  config.vocab_size = 50304;
  config.tie_weights = true;
  config.recompute = recompute;
  PrepareOptions options;
  options.optimizer = [] { return std::make_unique<autograd::AdamW>(autograd::AdamWConfig{}); };
  options.clip = ClipConfig{};
  options.clip->max_norm = 1;
  options.accumulative_counts = micro_steps;
  options.dispatch.max_iters = 100;
  const auto traffic = std::make_shared<dist::MetaTraffic>();
  const auto group = dist::make_meta_comm(0, ranks, traffic);
  const auto strategy = [&](Device device) {
    return std::make_unique<ColossalAIStrategy>(device, 1, AutoScaleConfig{}, plugin(), *group, Precision::bf16);
  };
  return make_plan(
      strategy, [&](const autograd::TensorOptions& where) { return std::make_shared<samples::Gpt>(config, where); },
      options, {Tensor::zeros({batch, 1024}, DType::i64), Tensor::zeros({batch, 1024}, DType::i64)}, target,
      traffic.get());
}

constexpr Shape3 kSmall = {2, 4, 256};

TEST_CASE("bytes between ranks are those of the plugins' collectives") {
  constexpr int kRanks = 4;
  const Plan one = plan_gpt(kSmall, 1, zero(1), 1);
  const auto weights = 2.0 * static_cast<double>(one.parameters);  // bf16
  const double share = (kRanks - 1.0) / kRanks;
  CHECK(one.exchanged_bytes == 0);
  const auto exchanged = [&](const MakePlugin& plugin, std::int64_t micro_steps = 1) {
    return plan_gpt(kSmall, 1, plugin, kRanks, false, DeviceType::cuda, micro_steps).exchanged_bytes / weights;
  };
  // Gradients to their owners, stepped weights to all.
  CHECK(exchanged(zero(1)) == doctest::Approx(2 * share).epsilon(0.03));
  CHECK(exchanged(zero(2)) == doctest::Approx(2 * share).epsilon(0.03));
  CHECK(exchanged(zero(1), 3) == doctest::Approx(4 * share).epsilon(0.03));
  // Weights for forward and again for backward, and gradients.
  CHECK(exchanged(gemini()) == doctest::Approx(3 * share).epsilon(0.25));
  CHECK(exchanged(gemini([](auto& c) { c.shard_param_frac = 0; })) == doctest::Approx(2 * share).epsilon(0.03));
}

TEST_CASE("bytes between device and host are those of states and weights that live there") {
  constexpr Shape3 kWide = {4, 16, 2048};  // its weights are of several stretches
  const Plan none = plan_gpt(kWide, 1, gemini());
  CHECK(none.link_bytes == 0);
  const auto weights = 2.0 * static_cast<double>(none.parameters);
  // Of what the host steps a gradient goes and a weight comes, of what the GPU steps three states come and go.
  const Plan states = plan_gpt(kWide, 1, gemini([](auto& c) { c.offload_optim_frac = 1; }));
  double by_host = 0;  // share of the weights: 28 bytes each
  for (const OpTotal& op : states.ops) by_host += op.host_bytes / (14 * weights);
  CHECK(by_host > 0.3);
  CHECK(by_host < 0.95);
  CHECK(states.link_bytes == doctest::Approx(weights * (2 * by_host + 12 * (1 - by_host))).epsilon(0.03));
  const StepEstimate estimate = estimate_step(states, machine_named("h100"));
  CHECK(estimate.link > 0);
  CHECK(estimate.host > 0);
  CHECK(estimate.compute < estimate_step(none, machine_named("h100")).compute);  // the host steps
  const Plan all = plan_gpt(kWide, 1, gemini([](auto& c) {
                              c.offload_optim_frac = 1;
                              c.offload_param_frac = 1;
                            }));
  CHECK(all.link_bytes > 1.4 * weights);
  CHECK(estimate_step(none, machine_named("h100")).host == 0);
}

TEST_CASE("a machine's rates decide what a plan costs, and every part of an estimate has its line") {
  const Plan plan = plan_gpt(kSmall, 2, gemini([](auto& c) { c.offload_optim_frac = 1; }), 4);
  const StepEstimate h100 = estimate_step(plan, machine_named("h100")),
                     a100 = estimate_step(plan, machine_named("a100"));
  CHECK(a100.compute > 1.5 * h100.compute);
  CHECK(a100.link == doctest::Approx(2 * h100.link));
  CHECK(a100.exchange > h100.exchange);
  CHECK(estimate_step(plan, machine_named("h200")).compute < h100.compute);
  Plan many = plan;
  many.world_size = 64;  // hosts meet over the network
  CHECK(estimate_step(many, machine_named("h100")).exchange == doctest::Approx(9 * h100.exchange));
  Plan on_disk = plan;
  on_disk.disk_traffic = 1'000'000'000;
  CHECK(estimate_step(on_disk, machine_named("h100")).disk > 0.1);
  CHECK(h100.total() == doctest::Approx(h100.compute + h100.exchange + std::max(h100.link, h100.host)));
  const std::string text = estimate_text(h100, machine_named("h100"));
  CAPTURE(text);
  for (const char* word : {"h100", "compute", "exchange", "link", "host"}) CHECK(text.find(word) != std::string::npos);
  CHECK(text.find("disk") == std::string::npos);
  const nlohmann::ordered_json json = estimate_json(h100, machine_named("h100"));
  CHECK(json.at("machine") == "h100");
  CHECK(json.at("total").get<double>() == doctest::Approx(h100.total()));
  CHECK_THROWS_WITH_AS(machine_named("h1000"), doctest::Contains("h100, h200, a100, cpu"), ConfigError);
}

TEST_CASE("recomputation saves memory and shows as computing") {
  const Plan plain = plan_gpt(kSmall, 4, gemini()), again = plan_gpt(kSmall, 4, gemini(), 1, true);
  const Machine& machine = machine_named("h100");
  CHECK(again.flops > plain.flops);
  CHECK(estimate_step(again, machine).compute > estimate_step(plain, machine).compute);
  CHECK(again.memory.peak_total < plain.memory.peak_total);
}

TEST_CASE(
    "estimates for an H200 are within a tenth of measured steps, and at most twice those that a host helps with") {
  // Where the host steps, it does so beside computing, and that host served one device and not eight.
  struct Measured {
    std::string name;
    Shape3 size;
    std::int64_t batch;
    bool recompute;
    double offload;
    double tokens_a_second;
  };
  const Measured all[] = {{"124M", {12, 12, 768}, 32, false, 0, 554e3},
                          {"350M", {24, 16, 1024}, 32, false, 0, 216e3},
                          {"1.5B", {48, 25, 1600}, 16, false, 0, 52.9e3},
                          {"1.5B, all states on the host", {48, 25, 1600}, 8, false, 1, 19.7e3},
                          {"6.7B, a quarter on the host", {32, 32, 4096}, 16, true, 0.24, 11.3e3},
                          {"6.7B, a fifth on the host", {32, 32, 4096}, 4, true, 0.2, 7.71e3}};
  for (const Measured& measured : all) {
    CAPTURE(measured.name);
    const auto plugin = gemini([&](auto& c) {
      c.shard_param_frac = 0;
      c.offload_optim_frac = measured.offload;
    });
    const Plan plan = plan_gpt(measured.size, measured.batch, plugin, 1, measured.recompute);
    const StepEstimate estimate = estimate_step(plan, machine_named("h200"));
    const double seconds = static_cast<double>(measured.batch) * 1024 / measured.tokens_a_second;
    MESSAGE(measured.name << ": measured " << seconds << " s, " << estimate_text(estimate, machine_named("h200")));
    CHECK(estimate.total() > 0.9 * seconds);
    CHECK(estimate.total() < (measured.offload == 0 ? 1.1 : 2.0) * seconds);
  }
}

}  // namespace
}  // namespace castor::strategy
