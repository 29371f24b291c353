// Whole trainings on GPUs: the promise of the same bits over splits, placements and a save between them, as in
// tests/parity/matrix_test.cpp, where a GPU's own ways could break it: work of several queues, memory that is used
// again before a queue is done with it, copies that are still on their way when their source changes, kernels whose
// warps race. Every run is compared with one that nothing disturbed.
//
// The model has shapes for which the kernels of 16 bits are made (heads of 64, words of 16 bytes) and is small.
// Delicate: what depends on timing shows seldom, so --long trains again and again; beside other processes on the same
// GPUs, chances are better.
#include <filesystem>

#include <doctest/doctest.h>

#include "core/device/backend.h"
#include "core/ops/random.h"
#include "samples/gpt/model.h"
#include "tests/support/long_run.h"
#include "tests/support/rank_training.h"
#include "tests/support/temp_dir.h"

using namespace castor;
using namespace castor::strategy;
using test::Layout;
using test::Outcome;
using test::Task;

namespace {

constexpr std::int64_t kLength = 64, kTokens = 96;

// A tool that watches sees the same kernels in each layer, update and layout.
std::int64_t updates() { return test::short_run() ? 2 : 6; }
std::int64_t saved_at() { return test::short_run() ? 1 : 3; }
constexpr std::size_t kOfWatched = 5;  // one layout of so many

/// Sequences of tokens made from their numbers.
class MadeTexts final : public Dataset {
 public:
  std::int64_t size() const override { return 256; }
  autograd::Batch batch(std::span<const std::int64_t> samples) const override {
    const auto n = static_cast<std::int64_t>(samples.size());
    std::vector<std::int64_t> inputs, targets;
    for (const std::int64_t sample : samples) {
      for (std::int64_t i = 0; i < kLength; ++i) {
        inputs.push_back(token(sample, i));
        targets.push_back(token(sample, i + 1));
      }
    }
    return {Tensor::from_values(inputs, {n, kLength}), Tensor::from_values(targets, {n, kLength})};
  }

 private:
  static std::int64_t token(std::int64_t sample, std::int64_t i) {
    return philox({11, static_cast<std::uint64_t>(sample)}, static_cast<std::uint64_t>(i)).word[0] % kTokens;
  }
};

std::shared_ptr<autograd::TrainableModel> make_gpt(const autograd::TensorOptions& options) {
  samples::GptConfig config;
  config.n_layer = test::short_run() ? 1 : 2;
  config.n_head = 2;
  config.n_embd = 128;
  config.block_size = kLength;
  config.vocab_size = kTokens;
  config.dropout = 0.1;
  config.tie_weights = true;
  return std::make_shared<samples::Gpt>(config, options);
}

/// Looks at its loss before backward.
class Reading final : public autograd::TrainableModel {
 public:
  explicit Reading(std::shared_ptr<autograd::TrainableModel> model) : model_(std::move(model)) {
    register_module("model", model_);
  }
  autograd::Variable forward(const Tensor& inputs) override { return model_->forward(inputs); }
  std::map<std::string, autograd::Variable> loss(const autograd::Batch& batch) override {
    auto losses = model_->loss(batch);
    seen_ = losses.at("loss").data().item();
    return losses;
  }

 private:
  std::shared_ptr<autograd::TrainableModel> model_;
  double seen_ = 0;
};

Task gpu_task(Precision precision) {
  Task task;
  task.on_gpus = true;
  task.precision = precision;
  task.model = make_gpt;
  task.samples = std::make_shared<MadeTexts>();
  task.batch_size = 2;
  task.updates = updates();
  return task;
}

/// Every plugin on one GPU with two micro-steps, and on two GPUs where there are two.
std::vector<Layout> layouts(Precision precision) {
  std::vector<Layout> all;
  for (const auto& [name, plugin] : test::all_placements(precision)) {
    all.push_back({name, 1, 2, plugin});
    if (visible_gpus() > 1) all.push_back({name + ", two GPUs", 2, 1, plugin});
  }
  const int ranks = visible_gpus() > 1 ? 2 : 1;
  const std::int64_t micro_steps = 2 / ranks;
  for (const std::int64_t stage : {1, 2}) {
    const auto on_host =
        test::zero(stage, precision, 0.03, [](LowLevelZeroPlugin::Config& c) { c.cpu_offload = true; });
    all.push_back({cat("zero-", stage, " with its states on the host"), ranks, micro_steps, on_host});
    if (ranks > 1) all.push_back({cat("zero-", stage, " with its states on the host, one GPU"), 1, 2, on_host});
  }
  all.push_back({"gemini, states and weights on disk", ranks, micro_steps, test::gemini(precision, [](auto& c) {
                   c.offload_optim_frac = 1;
                   c.offload_param_frac = 1;
                   c.nvme_offload_fraction = 1;
                   c.nvme_offload_param_fraction = 0.5;
                   c.nvme_offload_dir = std::filesystem::temp_directory_path().string();
                 })});
  // Chunks that are no smaller than most parameters are what users have.
  const auto large = [precision](double share) {
    return test::gemini(precision, [share](GeminiPlugin::Config& c) {
      c.min_chunk_size_m = 0.0625;
      c.search_range_m = 0.0625;
      c.max_prefetch = 2;
      c.offload_optim_frac = share;
      c.offload_param_frac = share;
    });
  };
  for (const double share : {0.0, 0.5}) {
    all.push_back({cat("gemini, large chunks, ", share, " offloaded"), ranks, micro_steps, large(share)});
  }
  if (!test::short_run()) return all;
  std::vector<Layout> some;
  for (std::size_t i = kOfWatched - 1; i < all.size(); i += kOfWatched) some.push_back(all[i]);
  return some;
}

int rounds() { return test::long_run() ? 25 : 1; }

void check_all(Precision precision, int times) {
  const Task task = gpu_task(precision);
  const Outcome expected = train({"alone", 1, 2}, task);
  for (int round = 0; round < times; ++round) {
    for (const Layout& layout : layouts(precision)) {
      CAPTURE(layout.name);
      CAPTURE(round);
      CHECK(train(layout, task) == expected);
    }
  }
}

}  // namespace

TEST_CASE("a training on GPUs in bf16 has the same bits in every split and placement, each time it is run") {
  check_all(Precision::bf16, rounds());
}
TEST_CASE("a training on GPUs in fp32 has the same bits in every split and placement") {
  check_all(Precision::fp32, 1);
}
TEST_CASE("a training on GPUs in fp16 has the same bits in every split and placement") {
  check_all(Precision::fp16, 1);
}

TEST_CASE("a training whose passes are recorded has the bits of one that runs op by op") {
  for (const Precision precision : {Precision::bf16, Precision::fp32, Precision::fp8}) {
    for (const bool has_images : {false, true}) {
      Task task = gpu_task(precision);
      if (has_images) {  // convolutions, batch norm
        task.model = {};
        task.samples = {};
      }
      for (const std::int64_t micro_steps : {1, 2, 4}) {
        if (test::short_run() && micro_steps != 4) continue;
        CAPTURE(precision_name(precision));
        CAPTURE(has_images);
        CAPTURE(micro_steps);
        task.remainder = micro_steps == 4 ? 3 : 0;  // a window of another length
        task.compile = false;
        const Outcome expected = train({"alone", 1, micro_steps}, task);
        task.compile = true;
        const Outcome got = train({"recorded", 1, micro_steps}, task);
        CHECK_MESSAGE(got == expected, test::differences(got, expected));
      }
    }
  }
}

TEST_CASE("a pass whose host waits for the device is refused while it is recorded, by what it does") {
  Task task = gpu_task(Precision::bf16);
  task.compile = true;
  task.model = [](const autograd::TensorOptions& options) { return std::make_shared<Reading>(make_gpt(options)); };
  CHECK_THROWS_WITH_AS(train({"recorded", 1, 1}, task), doctest::Contains("read by the host"), DeviceError);
}

TEST_CASE("a training on GPUs saved under one placement ends under each other with the bits of an undisturbed one") {
  const Task task = gpu_task(Precision::bf16);
  const Outcome expected = test::after(train({"alone", 1, 2}, task), saved_at(), 2);
  std::vector<Layout> all = layouts(Precision::bf16);
  all.push_back({"alone", 1, 2});
  const std::size_t savers = test::long_run() ? all.size() : 2;
  for (std::size_t i = 0; i < savers; ++i) {
    const Layout& saver = all[savers == 2 ? i * (all.size() - 1) : i];
    const test::TempDir folder;
    Task first = task;
    first.updates = saved_at();
    first.save_as = (folder.path() / "iter_3").string();
    train(saver, first);
    for (int round = 0; round < (test::long_run() ? 4 : 1); ++round) {
      for (const Layout& layout : all) {
        CAPTURE(saver.name);
        CAPTURE(layout.name);
        CAPTURE(round);
        Task rest = task;
        rest.updates = updates() - saved_at();
        rest.resumed_updates = saved_at();
        rest.resume_from = first.save_as;
        CHECK(train(layout, rest) == expected);
      }
    }
  }
}
