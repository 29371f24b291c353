// Training on ranks: the same bits however a global batch is split over ranks and micro-steps, whatever is sharded, in
// every precision, and across save and resume.
#include <algorithm>
#include <atomic>
#include <mutex>

#include <doctest/doctest.h>

#include "autograd/graph.h"
#include "autograd/optim/adafactor.h"
#include "autograd/optim/adam.h"
#include "autograd/optim/lamb.h"
#include "autograd/random_state.h"
#include "core/ops/cast.h"
#include "dist/comm_thread.h"
#include "strategy/colossalai_strategy.h"
#include "strategy/data/data_loader.h"
#include "strategy/ddp/torch_ddp_plugin.h"
#include "strategy/gemini/gemini_plugin.h"
#include "strategy/low_level_zero/low_level_zero_plugin.h"
#include "strategy/sharding.h"
#include "tests/support/mixed_model.h"
#include "tests/support/rank_training.h"
#include "tests/support/recording_comm.h"
#include "tests/support/temp_dir.h"

using namespace castor;
using namespace castor::strategy;
using castor::test::CountedSamples;
using castor::test::ddp;
using castor::test::gemini;
using castor::test::Layout;
using castor::test::MakePlugin;
using castor::test::MixedModel;
using castor::test::Outcome;
using castor::test::Task;
using castor::test::train;
using castor::test::zero;

namespace {

/// The small buckets' size: a few hundred elements, so that parameters lie in several.
constexpr double kSmallBucket = 0.0003;

constexpr Precision kPrecisions[] = {Precision::fp32, Precision::bf16, Precision::fp16};

TEST_CASE("ranks and micro-steps may share a global batch in any way, sharded in any way: everything keeps its bits") {
  for (const Precision precision : kPrecisions) {
    CAPTURE(precision_name(precision));
    Task task;
    task.precision = precision;
    const Outcome four = train({"alone", 1, 4}, task), twelve = train({"alone", 1, 12}, task);
    CHECK(twelve.tensors != four.tensors);
    for (const auto& [name, plugin] : test::all_placements(precision)) {
      CAPTURE(name);
      CHECK(train({name, 2, 2, plugin}, task) == four);
      CHECK(train({name, 6, 2, plugin}, task) == twelve);
    }
  }
}

TEST_CASE("groups of replicas, states on the host and weights that arrive late change no bit") {
  for (const Precision precision : {Precision::fp32, Precision::bf16}) {
    CAPTURE(precision_name(precision));
    Task task;
    task.precision = precision;
    const Outcome four = train({"alone", 1, 4}, task), twelve = train({"alone", 1, 12}, task);
    const auto in_groups = [&](std::int64_t stage, std::int64_t groups) {
      return zero(stage, precision, kSmallBucket, [groups](auto& c) { c.extra_dp_size = groups; });
    };
    CHECK(train({"zero-1", 2, 2, in_groups(1, 2)}, task) == four);
    CHECK(train({"zero-2", 4, 1, in_groups(2, 2)}, task) == four);
    CHECK(train({"zero-1", 6, 2, in_groups(1, 3)}, task) == twelve);
    for (const std::int64_t stage : {1, 2}) {
      const MakePlugin on_host = zero(stage, precision, kSmallBucket, [](auto& c) {
        c.cpu_offload = true;
        c.overlap_allgather = true;
      });
      CHECK(train({"zero, host", 2, 2, on_host}, task) == four);
      CHECK(train({"zero, host", 1, 4, on_host}, task) == four);
    }
    const test::TempDir scratch;
    const auto chunks_in_groups = [&](std::int64_t groups, double share_on_disk) {
      return gemini(precision, [&, groups, share_on_disk](auto& c) {
        c.extra_dp_size = groups;
        c.offload_optim_frac = 0.5;
        c.nvme_offload_fraction = share_on_disk;
        c.nvme_offload_dir = scratch.path().string();
        c.max_prefetch = 1;
      });
    };
    CHECK(train({"gemini", 4, 1, chunks_in_groups(2, 0)}, task) == four);
    CHECK(train({"gemini", 2, 2, chunks_in_groups(2, 1)}, task) == four);
    CHECK(train({"gemini", 6, 2, chunks_in_groups(2, 1)}, task) == twelve);
    CHECK_THROWS_WITH_AS(train({"zero", 3, 4, in_groups(1, 2)}, task), doctest::Contains("extra_dp_size"), ConfigError);
    CHECK_THROWS_WITH_AS(train({"gemini", 3, 4, chunks_in_groups(2, 0)}, task), doctest::Contains("extra_dp_size"),
                         ConfigError);
  }
}

TEST_CASE("overlap_allgather waits for stepped weights when the next forward uses them, not at the step's end") {
  // Whether buckets' gathers were waited for when a step was over, and the ops of the next one before the first wait.
  const auto waits = [](bool overlaps) {
    std::pair<bool, int> seen;
    dist::run_ranks(2, [&](dist::Comm& inner) {
      test::RecordingComm comm(inner);
      test::OpNotes notes(comm);
      ColossalAIStrategy strategy(
          kCpu, 1, {}, zero(1, Precision::fp32, kSmallBucket, [=](auto& c) { c.overlap_allgather = overlaps; })(),
          comm);
      PrepareOptions options;
      options.optimizer = test::make_adamw;
      strategy.prepare(
          [](const autograd::TensorOptions& tensor) { return std::make_shared<MixedModel>(tensor, false); }, options);
      const ObserverScope observe(notes);
      SamplerOptions loading;
      loading.batch_size = 4;
      DataLoader loader(std::make_shared<CountedSamples>(), loading);
      constexpr const char* kWait = "waited for all_gather 'weights of bucket";
      strategy.train_step(loader.next());
      const std::string first = comm.text();
      strategy.train_step(loader.next());
      const std::string next = comm.text().substr(first.size());
      if (inner.rank() != 0) return;
      CHECK(first.find("started all_gather 'weights of bucket") != std::string::npos);
      REQUIRE(next.find(kWait) != std::string::npos);
      const std::string before = next.substr(0, next.find(kWait));
      seen = {first.find(kWait) != std::string::npos, static_cast<int>(std::count(before.begin(), before.end(), '\n'))};
    });
    return seen;
  };
  const auto [was_over, all_ops] = waits(false);
  CHECK(was_over);
  const auto [is_over, ops_before] = waits(true);
  CHECK_FALSE(is_over);
  CHECK(ops_before < all_ops);  // at the first use in forward, and not behind the whole backward
}

TEST_CASE("ddp gathers the gradients of a bucket beside backward, and behind it where micro-steps are added") {
  for (const std::int64_t micro_steps : {1, 2}) {
    CAPTURE(micro_steps);
    dist::run_ranks(2, [&](dist::Comm& inner) {
      test::RecordingComm comm(inner);
      ColossalAIStrategy strategy(kCpu, 1, {}, test::ddp(1e-3)(), comm, Precision::fp32);
      PrepareOptions options;
      options.optimizer = test::make_adamw;
      options.accumulative_counts = micro_steps;
      options.dispatch.max_iters = 100;
      strategy.prepare(
          [](const autograd::TensorOptions& tensor) { return std::make_shared<MixedModel>(tensor, false); }, options);
      SamplerOptions loading;
      loading.batch_size = 4;
      DataLoader loader(std::make_shared<CountedSamples>(), loading);
      for (std::int64_t i = 0; i < micro_steps; ++i) strategy.train_step(loader.next());
      const std::string text = comm.text();
      const auto first_gather = text.find("all_gather 'gradients of bucket");
      const auto last_sum = text.rfind("started reduce_scatter 'gradients of bucket");
      if (inner.rank() != 0) return;
      REQUIRE(first_gather != std::string::npos);
      REQUIRE(last_sum != std::string::npos);
      CHECK((first_gather < last_sum) == (micro_steps == 1));
    });
  }
}

TEST_CASE("where one rank has everything, zero's states on the host are stepped by whoever uses the weights next") {
  dist::run_ranks(1, [](dist::Comm& comm) {
    ColossalAIStrategy strategy(kCpu, 1, {},
                                zero(2, Precision::bf16, kSmallBucket, [](auto& c) { c.cpu_offload = true; })(), comm);
    PrepareOptions options;
    options.optimizer = test::make_adamw;
    strategy.prepare([](const autograd::TensorOptions& tensor) { return std::make_shared<MixedModel>(tensor, false); },
                     options);
    std::vector<std::string> stepped;
    autograd::Stepper& stepper = strategy.optim_wrapper()->stepper();
    stepper.set_before_update(
        [&](const autograd::Part& part, const auto&) { stepped.push_back(part.variable.name()); });
    const std::size_t all = stepper.parts().size();
    SamplerOptions loading;
    loading.batch_size = 4;
    DataLoader loader(std::make_shared<CountedSamples>(), loading);
    strategy.train_step(loader.next());
    CHECK(stepped.empty());
    const autograd::Variable last = strategy.model().named_parameters().back().second;
    last.data().view();
    CHECK(std::ranges::find(stepped, last.name()) != stepped.end());
    CHECK(stepped.size() < all);
    strategy.train_step(loader.next());
    CHECK(stepped.size() == all);  // of the first step
    strategy.optim_wrapper()->sharding().pieces();
    CHECK(stepped.size() == 2 * all);
  });
}

TEST_CASE("ranks with different memory place chunks alike") {
  const Task task;
  std::atomic<int> ranks = 0;
  const MakePlugin uneven = [&] {
    const double memory_gib = ranks++ % 2 == 0 ? 1e-5 : 1;
    return gemini(Precision::fp32, [memory_gib](auto& c) {
      c.placement_policy = "auto";
      c.device_memory_gib = memory_gib;
    })();
  };
  CHECK(train({"gemini, auto", 2, 2, uneven}, task) == train({"alone", 1, 4}, task));
  CHECK(ranks == 2);
}

TEST_CASE("steps that overflow in fp16 are skipped alike in every layout") {
  Task task;
  task.precision = Precision::fp16;
  const auto plugin = [](std::int64_t stage) {
    return zero(stage, Precision::fp16, kSmallBucket, [](auto& c) {
      c.grad_scaler.initial_scale = 262144;
      c.grad_scaler.hysteresis = 1;
    });
  };
  const Outcome expected = train({"zero-1", 1, 4, plugin(1)}, task);
  CHECK(expected.skipped > 0);
  CHECK(expected.skipped < task.updates);
  CHECK(train({"zero-1", 4, 1, plugin(1)}, task) == expected);
  CHECK(train({"zero-2", 2, 2, plugin(2)}, task) == expected);
}

TEST_CASE("buckets of any size give the same bits, more pieces than elements included") {
  const Task task;
  const Outcome expected = train({"ddp", 2, 2, ddp()}, task);
  CHECK(train({"ddp", 2, 2, ddp(1e-6)}, task) == expected);
  CHECK(train({"ddp", 2, 2, ddp(0.001)}, task) == expected);
  CHECK(train({"zero", 2, 2, zero(1, Precision::fp32)}, task) == expected);
  CHECK(train({"zero", 2, 2, zero(2, Precision::fp32, 1e-6)}, task) == expected);
}

TEST_CASE("optimizers whose statistics span whole parameters step shards of them with the same bits") {
  const std::pair<const char*, OptimizerFactory> optimizers[] = {
      {"Lamb", [] { return std::make_unique<autograd::Lamb>(autograd::LambConfig{}); }},
      {"Adafactor", [] { return std::make_unique<autograd::Adafactor>(autograd::AdafactorConfig{}); }}};
  for (const auto& [name, optimizer] : optimizers) {
    CAPTURE(name);
    Task task;
    task.optimizer = optimizer;
    CHECK(train({"zero", 4, 1, zero(1, Precision::fp32)}, task) == train({"alone", 1, 4}, task));
  }
}

TEST_CASE("a run saved under one layout goes on under any other with the bits of the undisturbed run") {
  for (const Precision precision : kPrecisions) {
    CAPTURE(precision_name(precision));
    const Layout layouts[] = {{"alone", 1, 4},
                              {"ddp", 2, 2, ddp()},
                              {"zero-1", 4, 1, zero(1, precision, kSmallBucket)},
                              {"zero-2", 2, 2, zero(2, precision)},
                              {"gemini", 4, 1, gemini(precision)},
                              {"gemini, disk", 2, 2, test::gemini_on_disk(precision)},
                              {"zero-1, two groups on the host", 4, 1,
                               zero(1, precision, kSmallBucket,
                                    [](auto& c) {
                                      c.extra_dp_size = 2;
                                      c.cpu_offload = true;
                                      c.overlap_allgather = true;
                                    })},
                              {"gemini, offloaded", 2, 2, gemini(precision, [](auto& c) {
                                 c.offload_optim_frac = 1;
                                 c.offload_param_frac = 0.5;
                               })}};
    Task whole;
    whole.precision = precision;
    whole.updates = 12;
    const Outcome expected = test::after(train(layouts[0], whole), 6, 4);
    for (const Layout& before : layouts) {
      const test::TempDir folder;
      Task first;
      first.precision = precision;
      first.save_as = (folder.path() / "iter_6").string();
      train(before, first);
      for (const Layout& after : layouts) {
        CAPTURE(before.name);
        CAPTURE(after.name);
        Task rest;
        rest.precision = precision;
        rest.resume_from = first.save_as;
        CHECK(train(after, rest) == expected);
      }
    }
  }
}

TEST_CASE("options of zero that change numbers change them, and those that do not keep every bit") {
  Task task;
  task.precision = Precision::bf16;
  const Outcome expected = train({"zero", 2, 2, zero(1, Precision::bf16)}, task);
  const auto with = [&](const std::function<void(LowLevelZeroPlugin::Config&)>& change) {
    return train({"zero", 2, 2, zero(1, Precision::bf16, 12, change)}, task);
  };
  CHECK(with([](auto& c) { c.overlap_communication = false; }) == expected);
  CHECK(with([](auto& c) { c.communication_dtype = "fp32"; }) == expected);  // bf16 values are f32 values
  CHECK(with([](auto& c) { c.communication_dtype = "fp16"; }).tensors != expected.tensors);
  const Outcome without_masters = with([](auto& c) { c.master_weights = false; });
  CHECK_FALSE(without_masters.tensors.contains("model.first.weight/master"));
  CHECK(without_masters.tensors.at("model.first.weight") != expected.tensors.at("model.first.weight"));
}

TEST_CASE("a precision that contradicts the plugin's is refused, and so are two limits of the norm") {
  dist::run_ranks(1, [](dist::Comm& comm) {
    CHECK_THROWS_WITH_AS(ColossalAIStrategy(kCpu, 1, {}, zero(1, Precision::bf16)(), comm, Precision::fp16),
                         doctest::Contains("mixed_precision is fp16"), ConfigError);
    ColossalAIStrategy strategy(kCpu, 1, {}, zero(1, Precision::fp32, 12, [](auto& c) { c.max_norm = 1; })(), comm);
    PrepareOptions options;
    options.optimizer = [] { return std::make_unique<autograd::AdamW>(autograd::AdamWConfig{}); };
    options.clip = ClipConfig{};
    options.clip->max_norm = 0.5;
    CHECK_THROWS_WITH_AS(
        strategy.prepare([](const autograd::TensorOptions& tensor) { return std::make_shared<MixedModel>(tensor); },
                         options),
        doctest::Contains("max_norm"), ConfigError);
  });
}

TEST_CASE("a shard's states take its share of the memory") {
  for (const int world_size : {1, 4}) {
    std::mutex mutex;
    std::int64_t largest = 0, total = 0;
    dist::run_ranks(world_size, [&](dist::Comm& comm) {
      ColossalAIStrategy strategy(kCpu, 7, {}, zero(1, Precision::bf16)(), comm);
      PrepareOptions options;
      options.optimizer = [] { return std::make_unique<autograd::AdamW>(autograd::AdamWConfig{}); };
      strategy.prepare([](const autograd::TensorOptions& tensor) { return std::make_shared<MixedModel>(tensor); },
                       options);
      std::int64_t elements = 0;
      for (const auto& [name, state] : strategy.optim_wrapper()->stepper().named_states())
        elements += state.tensor.numel();
      const std::lock_guard lock(mutex);
      largest = std::max(largest, elements);
      total += elements;
    });
    const std::int64_t trained = 8 * 16 + 16 + 2 * 16 + 16 * 16 + 16 + 3 * 3 + 3 + 16 * 3 + 3;
    CHECK(total == 3 * trained);                          // master, exp_avg, exp_avg_sq
    if (world_size == 4) CHECK(largest < 3 * total / 4);  // parameters of less than a block are not cut
  }
}

TEST_CASE("whoever reads weights right after a step whose states are on the host reads stepped ones") {
  dist::run_ranks(2, [](dist::Comm& comm) {
    ColossalAIStrategy strategy(kCpu, 7, {}, gemini(Precision::bf16, [](auto& c) { c.offload_optim_frac = 1; })(), comm,
                                Precision::bf16);
    PrepareOptions options;
    options.optimizer = test::make_adamw;
    strategy.prepare([](const autograd::TensorOptions& tensor) { return std::make_shared<MixedModel>(tensor); },
                     options);
    DataLoader loader(std::make_shared<CountedSamples>(), {.batch_size = 4});
    strategy.train_step(loader.next());
    BoostedOptimizer& optimizer = strategy.optim_wrapper()->boosted();
    // In this order: asking for states would finish the step, too.
    std::map<std::string, std::vector<float>> weights;
    for (const autograd::Part& piece : optimizer.sharding().pieces())
      weights[piece.variable.name()] = cast(piece.weights, DType::f32).to_vector<float>();
    std::int64_t compared = 0;
    for (const auto& [name, state] : optimizer.stepper().named_states()) {
      const std::size_t master = name.rfind("/master");
      if (master == std::string::npos) continue;
      CAPTURE(name);
      const Tensor rounded = cast(cast(state.tensor, DType::bf16), DType::f32);
      CHECK(weights.at(name.substr(0, master)) == rounded.to_vector<float>());
      compared += state.tensor.numel();
    }
    CHECK(compared > 0);
  });
}

TEST_CASE("another order of addition gives other bits, so equality above is no accident") {
  // Two ranks that each sum their own micro-steps first: what a ring over local sums would do.
  ColossalAIStrategy strategy(kCpu, 7);
  PrepareOptions options;
  options.optimizer = [] { return std::make_unique<autograd::AdamW>(autograd::AdamWConfig{}); };
  strategy.prepare([](const autograd::TensorOptions& tensor) { return std::make_shared<MixedModel>(tensor); }, options);
  SamplerOptions loading;
  loading.seed = 3;
  loading.batch_size = 4;
  DataLoader loader(std::make_shared<CountedSamples>(), loading);
  std::vector<std::vector<float>> gradients;
  for (int k = 0; k < 4; ++k) {
    autograd::random_state().begin(7, 0, static_cast<std::uint64_t>(k));
    const auto losses = strategy.model().loss(loader.next());
    autograd::backward(losses.at("loss"));
    const autograd::Variable weight = strategy.model().named_parameters().at(0).second;
    gradients.push_back(weight.grad().to_vector<float>());
    weight.set_grad({});
  }
  int different = 0;
  for (std::size_t i = 0; i < gradients[0].size(); ++i) {
    const float in_order = ((gradients[0][i] + gradients[1][i]) + gradients[2][i]) + gradients[3][i];
    const float by_rank = (gradients[0][i] + gradients[2][i]) + (gradients[1][i] + gradients[3][i]);
    different += in_order != by_rank ? 1 : 0;
  }
  CHECK(different > 0);
}

/// Forgets to exchange: each rank steps from its own gradients.
class ForgetfulPlugin final : public Plugin {
 public:
  const char* type_name() const override { return "ForgetfulPlugin"; }
  std::unique_ptr<Sharding> shard(const ShardRequest& request) override { return make_unsharded(request.trained()); }
};

TEST_CASE("ranks that clip by different gradient norms are told apart instead of going on with different weights") {
  const Layout layout{"forgetful", 2, 1, [] { return std::make_unique<ForgetfulPlugin>(); }};
  CHECK_THROWS_WITH_AS(train(layout, {}), doctest::Contains("gradient norm 0x1."), CommError);
}

TEST_CASE("a parameter that is no float of 16 or 32 bits is refused by the plugin, naming it") {
  dist::run_ranks(1, [](dist::Comm& comm) {
    autograd::Variable wide(Tensor::zeros({4}, DType::f64), true);
    wide.set_name("some.weight");
    CHECK_THROWS_WITH_AS(TorchDDPPlugin(TorchDDPPlugin::Config{}).shard({comm, {wide}}),
                         doctest::Contains("'some.weight' must be f32, bf16 or f16"), DTypeError);
  });
}

}  // namespace
