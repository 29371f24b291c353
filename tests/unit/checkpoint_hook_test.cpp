// CheckpointHook by its options: which folders a run leaves, and what is in them.
//
// Delicate: which epochs are the best is not known beforehand. A run that keeps all of them tells their scores, and one
// of the same seed must then keep those that the rule says.
#include <algorithm>
#include <limits>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "core/base/file.h"
#include "core/base/json.h"
#include "formats/checkpoint_list.h"
#include "formats/checkpoint_reader.h"
#include "strategy/metric.h"
#include "strategy/runner/runner.h"
#include "tests/support/muted_output.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_run.h"

namespace castor {
namespace {

using namespace strategy;
using Names = std::set<std::string>;

// A metric of a run that diverges: 0.5, 0.6, then NaN for good.
class DivergingScore final : public Metric {
 public:
  struct Config {};
  explicit DivergingScore(const Config&) {}
  void reset() override { ++validations_; }
  void process(const autograd::Batch&, const Tensor&) override {}
  std::map<std::string, double> compute() const override {
    return {{"score", validations_ > 2 ? std::numeric_limits<double>::quiet_NaN() : 0.4 + 0.1 * validations_}};
  }
  std::vector<double> sums() const override { return {}; }
  void set_sums(std::span<const double>) override {}

 private:
  int validations_ = 0;
};
template <class V>
void describe(V&, DivergingScore::Config&) {}

// A run in a folder of its own.
class HookedRun {
 public:
  explicit HookedRun(const std::vector<std::string>& options, const std::vector<std::string>& others = {}) {
    train(options, others);
  }

  // Trains in the same folder, again or further.
  //   options  of CheckpointHook
  //   others   of the run
  void train(const std::vector<std::string>& options, const std::vector<std::string>& others = {}) {
    std::vector<std::string> overrides = {"default_hooks.checkpoint={type: CheckpointHook}",
                                          "optim_wrapper.optimizer.lr=0.003", "val_dataloader.dataset.count=50",
                                          "train_cfg.max_epochs=6"};
    for (const std::string& option : options) overrides.push_back("default_hooks.checkpoint." + option);
    overrides.insert(overrides.end(), others.begin(), others.end());
    Registry registry;
    test::add_tiny_types(registry);
    registry.metrics.add<DivergingScore::Config>(
        "DivergingScore", "a number, then none",
        [](const DivergingScore::Config& config) { return std::make_unique<DivergingScore>(config); });
    const test::MutedOutput muted;
    CHECK(Runner(test::tiny_config(path(), overrides), "tiny.yaml", registry).train());
  }

  std::string path() const { return folder_.path().string(); }
  Names saved() const {
    Names names;
    for (const auto& checkpoint : formats::list_checkpoints(path()).checkpoints) names.insert(checkpoint.name);
    return names;
  }
  Names scored() const {
    Names names;
    const Json scores = read_json_file(join_path(path(), "scores.json"));
    for (const auto& [name, score] : scores.items()) names.insert(name);
    return names;
  }
  formats::Checkpoint open(const std::string& name) const { return formats::Checkpoint::open(join_path(path(), name)); }
  Json state_of(const std::string& name) const { return parse_json(open(name).read_text("state", "json"), name); }
  Names roles_of(const std::string& name) const {
    Names roles;
    const formats::Checkpoint checkpoint = open(name);
    for (const formats::LogicalTensor& tensor : checkpoint.manifest().tensors) roles.insert(tensor.role);
    return roles;
  }

 private:
  test::TempDir folder_ = test::TempDir::in_memory();
};

// The accuracy after each epoch, as a run that keeps all checkpoints tells it.
std::vector<double> scores_of_epochs() {
  const HookedRun all({"interval=1"});
  std::vector<double> scores;
  for (int epoch = 1; epoch <= 6; ++epoch) {
    scores.push_back(all.state_of("epoch_" + std::to_string(epoch)).at("metrics").at("accuracy/top1").get<double>());
  }
  return scores;
}

// The folders that remain of six epochs if `count` of the best are kept and the newest: `sign` is -1 where less is
// better.
Names expected_best(const std::vector<double>& scores, std::size_t count, double sign) {
  std::vector<std::pair<double, int>> best;  // best first, of equals the older one
  for (int epoch = 1; epoch <= 6; ++epoch) {
    best.emplace_back(-sign * scores[static_cast<std::size_t>(epoch - 1)], epoch);
    std::sort(best.begin(), best.end());
    best.resize(std::min(best.size(), count));
  }
  Names names = {"epoch_6"};
  for (const auto& [score, epoch] : best) names.insert("epoch_" + std::to_string(epoch));
  return names;
}

TEST_CASE("save_begin saves before the first step, save_last after the last") {
  CHECK(HookedRun({"save_begin=true"}).saved() == Names{"iter_0", "epoch_6"});
  CHECK(HookedRun({}).saved() == Names{"epoch_6"});
  CHECK(HookedRun({"save_begin=true", "save_last=false"}).saved() == Names{"iter_0"});
}

TEST_CASE("what save_begin saved is where the run began: resumed from there it ends the same") {
  HookedRun run({"save_begin=true"});
  const auto weight = [&run] {
    const formats::Checkpoint checkpoint = run.open("epoch_6");
    const formats::LogicalTensor* tensor = checkpoint.manifest().find("param", "first.weight");
    REQUIRE(tensor != nullptr);
    std::string bytes(tensor->bytes(), '\0');
    checkpoint.read(*tensor, 0, std::as_writable_bytes(std::span(bytes)));
    return bytes;
  };
  const std::string before = weight();
  formats::remove_checkpoint(join_path(run.path(), "epoch_6"));
  run.train({"save_begin=true"}, {"resume=true"});
  CHECK(weight() == before);
}

TEST_CASE("save_optimizer and save_param_scheduler leave those states out when off") {
  const std::vector<std::string> schedule = {"param_scheduler={type: LinearLR, by_epoch: false, end: 7}"};
  const HookedRun both({}, schedule);
  CHECK(both.roles_of("epoch_6") == Names{"exp_avg", "exp_avg_sq", "param"});
  const HookedRun weights({"save_optimizer=false"}, schedule);
  CHECK(weights.roles_of("epoch_6") == Names{"param"});
  CHECK(!weights.state_of("epoch_6").contains("optimizer"));
  CHECK(both.state_of("epoch_6").contains("optimizer"));
  CHECK(weights.state_of("epoch_6").at("param_schedulers").size() == 1);
  const HookedRun no_schedule({"save_param_scheduler=false"}, schedule);
  CHECK(no_schedule.roles_of("epoch_6") == both.roles_of("epoch_6"));
  CHECK(!no_schedule.state_of("epoch_6").contains("param_schedulers"));
}

TEST_CASE("keep_best keeps that many of the best by the rule, and the newest") {
  const std::vector<double> scores = scores_of_epochs();
  REQUIRE(std::set<double>(scores.begin(), scores.end()).size() >= 4);  // else nothing is seen here
  for (const std::size_t count : {1, 2, 3}) {
    CAPTURE(count);
    const std::vector<std::string> options = {"save_best=accuracy/top1", "max_keep_ckpts=1",
                                              "keep_best=" + std::to_string(count)};
    CHECK(HookedRun(options).saved() == expected_best(scores, count, 1));
    for (const bool is_greater : {true, false}) {
      std::vector<std::string> with_rule = options;
      with_rule.push_back(is_greater ? "rule=greater" : "rule=less");
      CHECK(HookedRun(with_rule).saved() == expected_best(scores, count, is_greater ? 1 : -1));
    }
  }
}

TEST_CASE("a metric that becomes NaN costs none of the good checkpoints") {
  for (const std::string rule : {"greater", "less"}) {
    const HookedRun run({"save_best=score", "rule=" + rule, "max_keep_ckpts=1", "keep_best=1"},
                        {"val_evaluator={type: DivergingScore}"});
    CHECK(run.saved() == Names{rule == "greater" ? "epoch_2" : "epoch_1", "epoch_6"});
    for (const std::string& name : run.scored()) CHECK((name == "epoch_1" || name == "epoch_2"));
  }
}

TEST_CASE("a resumed run that saves before its first validation knows which of the scores are the best") {
  const std::vector<double> scores = scores_of_epochs();
  const auto least = std::min_element(scores.begin(), scores.begin() + 4) - scores.begin() + 1;
  REQUIRE(*std::max_element(scores.begin(), scores.begin() + 4) > scores[static_cast<std::size_t>(least - 1)]);
  for (const std::string best : {"accuracy/top1", "auto"}) {
    CAPTURE(best);
    HookedRun run({"save_best=" + best, "rule=less", "keep_best=9"}, {"train_cfg.max_epochs=4"});
    CHECK(run.scored() == Names{"epoch_1", "epoch_2", "epoch_3", "epoch_4"});
    // Saves at every iteration, validates no more.
    run.train({"save_best=" + best, "rule=less", "keep_best=1", "max_keep_ckpts=1", "interval=1", "by_epoch=false"},
              {"resume=true", "train_cfg.val_begin=7", "train_cfg.max_epochs=5"});
    CHECK(run.saved().contains("epoch_" + std::to_string(least)));
  }
}

TEST_CASE("a score of a validation inside an accumulation window is kept until its end, and saved there") {
  const std::vector<std::string> windows = {"train_cfg.by_epoch=false", "train_cfg.max_epochs=null",
                                            "train_cfg.max_iters=9", "train_cfg.val_interval=3",
                                            "optim_wrapper.accumulative_counts=4"};
  const HookedRun run({"save_best=accuracy/top1", "keep_best=9"}, windows);
  // Validated after 3, 6 and 9, of which 9 is the run's end, where a window is cut.
  CHECK(run.saved() == Names{"iter_4", "iter_8", "iter_9"});
  CHECK(run.scored() == Names{"iter_4", "iter_8", "iter_9"});
}

TEST_CASE("a score whose save failed counts for nothing") {
  HookedRun run({"save_best=accuracy/top1"}, {"train_cfg.max_epochs=2"});
  write_file_atomically(join_path(run.path(), "scores.json"), std::string_view("{\"epoch_77\": 1000.0}"));
  run.train({"save_best=accuracy/top1"}, {"train_cfg.max_epochs=1"});
  CHECK(run.scored() == Names{"epoch_1"});
}

}  // namespace
}  // namespace castor
