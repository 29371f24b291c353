// The promise of the same bits as a matrix: (ranks, micro-steps) x plugins and placements x precisions x models, twenty
// updates each, compared by `==` with one process that has everything. Clipping, dropout, AdamW, tied weights and a
// frozen layer are in every cell; skipped updates in every cell of fp16; one window in two cells is a remainder.
//
// Each test runs a sample of the cells, all of them with --long; a row for another placement belongs into
// all_placements (tests/support/rank_training.h).
#include <array>
#include <condition_variable>
#include <mutex>

#include <doctest/doctest.h>

#include "core/ops/cast.h"
#include "core/ops/elementwise.h"
#include "strategy/colossalai_strategy.h"
#include "tests/parity/matrix_models.h"
#include "tests/support/long_run.h"
#include "tests/support/rank_training.h"
#include "tests/support/temp_dir.h"

namespace castor {
namespace {

using namespace castor::strategy;
using test::Layout;
using test::Outcome;
using test::Task;

constexpr Precision kPrecisions[] = {Precision::fp32, Precision::bf16, Precision::fp16, Precision::fp8};
constexpr std::pair<int, std::int64_t> kFour[] = {{1, 4}, {2, 2}, {4, 1}}, kTwelve[] = {{1, 12}, {3, 4}};
constexpr std::int64_t kUpdates = 20;

/// Twenty updates of a model. In fp16 the loss scale grows until gradients overflow, again and again.
Task matrix_task(bool is_convnet, Precision precision) {
  Task task;
  task.precision = precision;
  if (precision == Precision::fp16) {
    autograd::GradScalerConfig scaler;
    scaler.growth_interval = 3;
    scaler.growth_factor = 4;
    scaler.hysteresis = 1;
    task.precision.grad_scaler = scaler;
  }
  task.model = is_convnet ? test::make_matrix_convnet : test::make_matrix_gpt;
  task.samples = std::make_shared<test::MadeSamples>(is_convnet);
  task.batch_size = 2;
  task.updates = kUpdates;
  return task;
}

/// Calls f(task, label) for each model and precision.
template <class F>
void for_each_task(F&& f) {
  for (const bool is_convnet : {false, true}) {
    for (const Precision precision : kPrecisions) {
      const std::string label = cat(is_convnet ? "convnet" : "gpt", " in ", precision_name(precision));
      CAPTURE(label);
      f(matrix_task(is_convnet, precision), is_convnet, precision);
    }
  }
}

/// True for every cell of a long run, and for each fifth or so of a quick one: which ones depends on the count, so that
/// each layout and placement has its turn under some precision and model.
class Choice {
 public:
  explicit Choice(int one_of) : one_of_(one_of) {}
  bool takes() { return test::long_run() || count_++ % one_of_ == 0; }

 private:
  int one_of_;
  int count_ = 0;
};

TEST_CASE("every split and placement of a global batch ends with the bits of one process after twenty updates") {
  Choice choice(13);
  for_each_task([&](const Task& task, bool is_convnet, Precision precision) {
    const auto check_all = [&](std::span<const std::pair<int, std::int64_t>> splits) {
      const Outcome expected = train({"alone", 1, splits.front().second}, task);
      if (precision == Precision::fp16) {
        CHECK(expected.skipped > 0);
        CHECK(expected.skipped < kUpdates / 2);
      }
      for (const auto& [name, plugin] : test::all_placements(precision)) {
        for (const auto& [world_size, micro_steps] : splits) {
          if (!choice.takes()) continue;
          CAPTURE(name);
          CAPTURE(world_size);
          const Outcome got = train({name, world_size, micro_steps, plugin}, task);
          INFO(test::differences(got, expected));
          CHECK(got == expected);
        }
      }
      return expected;
    };
    const Outcome four = check_all(kFour);
    if (test::long_run() || (!is_convnet && precision == Precision::bf16))
      CHECK(check_all(kTwelve).tensors != four.tensors);
  });
}

TEST_CASE("a window that is shorter than the others keeps its bits in every split that it can have") {
  Choice choice(8);
  for_each_task([&](Task task, bool, Precision precision) {
    if (!test::long_run() && precision != Precision::fp32) return;
    const auto check = [&](std::int64_t remainder, std::int64_t alone, int world_size, std::int64_t micro_steps) {
      task.remainder = remainder;
      const Outcome expected = train({"alone", 1, alone}, task);
      for (const auto& [name, plugin] : test::all_placements(precision)) {
        if (!choice.takes()) continue;
        CAPTURE(name);
        const Outcome got = train({name, world_size, micro_steps, plugin}, task);
        INFO(test::differences(got, expected));
        CHECK(got == expected);
      }
    };
    check(2, 4, 2, 2);
    if (test::long_run()) check(6, 12, 3, 4);
  });
}

TEST_CASE("a run saved after ten updates under one layout ends under another with the bits of the undisturbed run") {
  Choice choice(9);
  for_each_task([&](const Task& whole, bool is_convnet, Precision precision) {
    if (!test::long_run() && precision != (is_convnet ? Precision::fp16 : Precision::bf16)) return;
    const Outcome expected = test::after(train({"alone", 1, 4}, whole), kUpdates / 2, 4);
    const auto placements = test::all_placements(precision);
    std::vector<Layout> layouts = {{"alone", 1, 4}};
    for (std::size_t i = 0; i < placements.size(); ++i) {
      const auto& [world_size, micro_steps] = kFour[(i + 1) % 3];
      layouts.push_back({placements[i].first, world_size, micro_steps, placements[i].second});
    }
    for (std::size_t i = 0; i < layouts.size(); ++i) {
      if (!choice.takes()) continue;
      const test::TempDir folder;
      Task first = whole;
      first.updates = kUpdates / 2;
      first.save_as = (folder.path() / "iter_10").string();
      train(layouts[i], first);
      for (std::size_t j = 0; j < layouts.size(); ++j) {
        if (!test::long_run() && j != (i + 3) % layouts.size() && j != (i + 9) % layouts.size()) continue;
        CAPTURE(layouts[i].name);
        CAPTURE(layouts[j].name);
        Task rest = whole;
        rest.updates = rest.resumed_updates = kUpdates / 2;
        rest.resume_from = first.save_as;
        const Outcome got = train(layouts[j], rest);
        INFO(test::differences(got, expected));
        CHECK(got == expected);
      }
    }
  });
}

/// Where ranks add their contributions in the order in which they arrive, which a list says.
class Arrivals {
 public:
  Arrivals(int world_size, std::vector<int> order) : world_size_(world_size), order_(std::move(order)) {}

  /// Adds after those that come before this rank; returns when all have added.
  void add(int rank, std::vector<Tensor>& own, std::vector<Tensor>& total) {
    std::unique_lock lock(mutex_);
    const std::int64_t round = rounds_[static_cast<std::size_t>(rank)]++;
    const auto came = [&] {
      return round * world_size_ + (std::find(order_.begin(), order_.end(), rank) - order_.begin());
    };
    changed_.wait(lock, [&] { return turn_ == came(); });
    if (turn_ % world_size_ == 0) {
      sum_ = own;
    } else {
      for (std::size_t i = 0; i < own.size(); ++i) binary_inplace(BinaryOp::add, sum_[i], own[i]);
    }
    ++turn_;
    changed_.notify_all();
    changed_.wait(lock, [&] { return turn_ >= (round + 1) * world_size_; });
    for (std::size_t i = 0; i < own.size(); ++i) total.push_back(clone(sum_[i]));
    if (++read_ % world_size_ == 0) changed_.notify_all();
    changed_.wait(lock, [&] { return read_ >= (round + 1) * world_size_; });
  }

 private:
  std::int64_t world_size_;
  std::vector<int> order_;
  std::array<std::int64_t, 4> rounds_ = {};
  std::int64_t turn_ = 0, read_ = 0;
  std::vector<Tensor> sum_;
  std::mutex mutex_;
  std::condition_variable changed_;
};

/// Data parallel, one micro-step a window, but for the order of the sum.
class ArrivalPlugin final : public Plugin {
 public:
  explicit ArrivalPlugin(Arrivals& arrivals) : arrivals_(arrivals) {}
  const char* type_name() const override { return "ArrivalPlugin"; }
  std::unique_ptr<Sharding> shard(const ShardRequest& request) override {
    return std::make_unique<ArrivalSharding>(arrivals_, request.comm.rank(), request.trained());
  }

 private:
  class ArrivalSharding final : public Sharding {
   public:
    ArrivalSharding(Arrivals& arrivals, int rank, std::vector<autograd::Variable> parameters)
        : arrivals_(arrivals), rank_(rank), parameters_(std::move(parameters)), own_(parameters_.size()) {}
    std::vector<autograd::Part> parts() const override {
      std::vector<autograd::Part> parts;
      for (const autograd::Variable& parameter : parameters_) parts.push_back({parameter, 0});
      return parts;
    }
    void begin_micro_step(std::int64_t) override {}
    void deliver(const autograd::Variable& leaf, Tensor gradient) override {
      for (std::size_t i = 0; i < parameters_.size(); ++i) {
        if (parameters_[i].identity() == leaf.identity()) own_[i] = cast(gradient, DType::f32);
      }
    }
    void end_micro_step() override {}
    void finish_window(std::int64_t micro_batches, std::vector<autograd::Part>& parts) override {
      std::vector<Tensor> total;
      arrivals_.add(rank_, own_, total);
      for (std::size_t i = 0; i < parts.size(); ++i) {
        unary_inplace(UnaryOp::affine, total[i], 1.0 / static_cast<double>(micro_batches), 0);
        parts[i].gradient = cast(total[i], parameters_[i].dtype()).reshape({total[i].numel()});
      }
    }

   private:
    Arrivals& arrivals_;
    int rank_;
    std::vector<autograd::Variable> parameters_;
    std::vector<Tensor> own_;
  };

  Arrivals& arrivals_;
};

TEST_CASE("contributions added in the order of their arrival change the bits of a cell, so the matrix can fail") {
  const Task task = matrix_task(false, Precision::fp32);
  const Outcome expected = train({"alone", 1, 4}, task);
  const auto with_order = [&](std::vector<int> order) {
    Arrivals arrivals(4, std::move(order));
    return train({"arrival", 4, 1, [&] { return std::make_unique<ArrivalPlugin>(arrivals); }}, task);
  };
  CHECK(with_order({0, 1, 2, 3}) == expected);  // by rank: nothing else about this plugin differs
  const Outcome shuffled = with_order({2, 0, 3, 1});
  CHECK(shuffled.tensors != expected.tensors);
  CHECK(shuffled.grad_norms != expected.grad_norms);
  CHECK(shuffled.losses != expected.losses);
}

}  // namespace
}  // namespace castor
