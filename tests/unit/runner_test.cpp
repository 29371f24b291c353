// The runner from a config to a work folder: both loops, validation, schedules and what is saved. The model and the
// data are tiny (tests/support/tiny_training.h). What is logged: runner_log_test; ends before their time:
// runner_end_test.
#include "strategy/runner/runner.h"

#include <algorithm>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <sys/resource.h>

#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/log.h"
#include "strategy/checkpoint.h"
#include "strategy/cli/test.h"
#include "tests/support/muted_output.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_training.h"

namespace castor::strategy {
namespace {

using test::Overrides;
using test::ProcessLogReset;
using test::Run;

TEST_CASE("a run by epoch validates after each, logs every line, and saves the last weights") {
  const Run run;
  CHECK(run.was_finished);
  CHECK(run.saved() == std::set<std::string>{"epoch_3"});
  CHECK(find_last_checkpoint(run.folder.path().string()) == run.path("epoch_3"));
  const std::vector<double> losses = run.scalar("loss");
  CHECK(losses.size() == 9);
  CHECK(losses.back() < losses.front());
  CHECK(run.scalar("accuracy/top1").size() == 3);
  for (const char* name : {"lr", "time", "data_time", "memory", "samples/s"})
    CHECK_MESSAGE(run.scalar(name).size() == 9, name);
  const std::vector<Json> lines = run.scalars();
  CHECK(lines.at(0).at("iter") == 1);
  CHECK(lines.at(3).contains("accuracy/top1"));
  CHECK(lines.at(3).at("step") == 1);
  CHECK(lines.back().at("epoch") == 3);
  CHECK(exists(join_path(run.log_dir(), kConfigFile)));
}

TEST_CASE("a run by iteration validates at its interval and at the end, and saves where asked") {
  std::vector<std::int64_t> validated;
  const Run run({"train_cfg={_delete_: true, by_epoch: false, max_iters: 10, val_interval: 4}",
                 "default_hooks.checkpoint={type: CheckpointHook, interval: 5}", "default_hooks.logger.interval=3"},
                [&](const char* point, RunControl& control) {
                  if (point == std::string("val")) validated.push_back(control.progress().iter);
                });
  CHECK(run.was_finished);
  CHECK(validated == std::vector<std::int64_t>{4, 8, 10});
  CHECK(run.saved() == std::set<std::string>{"iter_5", "iter_10"});
  CHECK(run.weights("iter_5") != run.weights("iter_10"));
  CHECK(read_text_file(run.path(kLastCheckpointFile)) == "iter_10");
  CHECK(run.scalar("loss").size() == 4);  // after iterations 3, 6, 9 and the last
  CHECK(run.log().find("ERROR") == std::string::npos);
}

TEST_CASE("validation begins where val_begin says, and intervals of epochs and of saves count alone") {
  std::vector<std::int64_t> validated;
  const Run run({"train_cfg={max_epochs: 6, val_begin: 3, val_interval: 2}",
                 "default_hooks.checkpoint={type: CheckpointHook, interval: 7, by_epoch: false, save_last: false}"},
                [&](const char* point, RunControl& control) {
                  if (point == std::string("val")) validated.push_back(control.progress().epoch);
                });
  CHECK(validated == std::vector<std::int64_t>{4, 6});
  CHECK(run.saved() == std::set<std::string>{"iter_7", "iter_14"});
  const Run by_epoch({"train_cfg.max_epochs=4", "default_hooks.checkpoint={type: CheckpointHook, interval: 2}"});
  CHECK(by_epoch.saved() == std::set<std::string>{"epoch_2", "epoch_4"});
}

TEST_CASE("hooks are called in the order of the run") {
  std::string order;
  const Run run({"train_cfg.max_epochs=2"}, [&](const char* point, RunControl&) { order += std::string(point) + ' '; });
  CHECK(order == "before_run iter iter iter epoch val iter iter iter epoch val after_run ");
}

TEST_CASE("one seed gives one result to the bit, and another seed another") {
  const Run run, again, other({"randomness.seed=6"});
  CHECK(run.weights("epoch_3") == again.weights("epoch_3"));
  CHECK(run.weights("epoch_3") != other.weights("epoch_3"));
  const Run drawn({"randomness={_delete_: true}"});
  const ConfigNode saved = load_config(join_path(drawn.path("epoch_3"), kConfigFile));
  const Run repeated({cat("randomness.seed=", saved.find("randomness")->find("seed")->as_int())});
  CHECK(repeated.weights("epoch_3") == drawn.weights("epoch_3"));
}

TEST_CASE("the saved config holds every default and trains to the same bits") {
  const Run run;
  ConfigNode saved = load_config(join_path(run.path("epoch_3"), kConfigFile));
  CHECK(saved.find("model")->find("width")->as_int() == 16);
  CHECK(saved.find("optim_wrapper")->find("accumulative_counts")->as_int() == 1);
  const test::TempDir folder = test::TempDir::in_memory();
  saved.set("work_dir", folder.path().string());
  CHECK(run.train(saved));
  CHECK(read_text_file((folder.path() / "epoch_3" / kWeightsFile).string()) == run.weights("epoch_3"));
}

TEST_CASE("load_from starts from saved weights") {
  const Run first;
  const Run second(
      {"load_from=" + first.path("epoch_3"), "optim_wrapper.optimizer.lr=0", "optim_wrapper.optimizer.weight_decay=0"});
  CHECK(second.weights("epoch_3") == first.weights("epoch_3"));
  CHECK_THROWS_WITH_AS(Run({"load_from=/nowhere/iter_1"}), doctest::Contains("/nowhere/iter_1"), IoError);
  const Run wider({"load_from=" + first.path("epoch_3"), "model.width=17", "log_level=WARNING"});
  CHECK(wider.was_finished);
  CHECK(wider.log().find("mismatched: first.weight is [16,8] in the file, [17,8] in the model") != std::string::npos);
}

TEST_CASE("accumulation updates once a window, and its last window of the run is shorter") {
  std::vector<bool> updates;
  const Run run({"optim_wrapper.accumulative_counts=4"}, [&](const char* point, RunControl& control) {
    if (point == std::string("iter")) updates.push_back(control.progress().last.update.did_update);
  });
  CHECK(updates == std::vector<bool>{false, false, false, true, false, false, false, true, true});
}

TEST_CASE("schedules move the learning rate at iterations and epochs, after automatic scaling") {
  const Run run(
      {"param_scheduler=[{type: LinearLR, start_factor: 0.5, by_epoch: false, end: 3}, {type: StepLR, step_size: 1, "
       "gamma: 0.1, begin: 1}]",
       "auto_scale_lr={enable: true, base_batch_size: 8}"});
  const std::vector<double> lr = run.scalar("lr");
  REQUIRE(lr.size() == 9);
  CHECK(lr[0] == doctest::Approx(0.005 * 0.5).epsilon(1e-9));
  CHECK(lr[1] == doctest::Approx(0.005 * 0.75).epsilon(1e-9));
  CHECK(lr[2] == doctest::Approx(0.005).epsilon(1e-9));
  CHECK(lr[8] == doctest::Approx(0.0005).epsilon(1e-9));
  const Run by_strategy({"strategy.auto_scale_lr={enable: true, base_batch_size: 8}"});
  CHECK(by_strategy.scalar("lr").at(0) == doctest::Approx(0.005));
  const Run top_wins({"strategy.auto_scale_lr={enable: true, base_batch_size: 8}", "auto_scale_lr={enable: false}"});
  CHECK(top_wins.scalar("lr").at(0) == doctest::Approx(0.01));
}

TEST_CASE("schedules wait where fp16 steps were skipped") {
  const Run run(
      {"strategy.mixed_precision={type: fp16, initial_scale: 4294967296, hysteresis: 1, backoff_factor: 0.0001}",
       "param_scheduler={type: ExponentialLR, gamma: 0.5, by_epoch: false}"});
  const std::vector<double> rates = run.scalar("lr");
  REQUIRE(rates.size() == 9);
  CHECK(rates[0] == 0.01);
  CHECK(rates[1] == 0.01);  // the first step overflowed
  CHECK(rates[8] < 0.001);  // later ones did not
}

TEST_CASE("an optimizer without a learning rate trains, logs none, and cannot be scaled") {
  const Run run({"optim_wrapper.optimizer={_delete_: true, type: Adafactor}"});
  CHECK(run.scalar("lr").empty());
  CHECK(run.scalar("loss").size() == 9);
  CHECK_THROWS_WITH_AS(Run({"optim_wrapper.optimizer={_delete_: true, type: Adafactor}",
                            "auto_scale_lr={enable: true, base_batch_size: 8}"}),
                       doctest::Contains("Adafactor finds its own step size"), ConfigError);
}

TEST_CASE("a plateau schedule hears of every validation") {
  const Run run({"train_cfg.max_epochs=5", "optim_wrapper.optimizer.lr=0.0001",
                 "param_scheduler={type: ReduceOnPlateauLR, monitor: accuracy/top1, rule: greater, threshold: 1000, "
                 "factor: 0.1, patience: 1}"});
  CHECK(run.scalar("lr").back() < 0.0001 * 0.2);
}

TEST_CASE("the sampler's options change what is trained on") {
  const Run run;
  for (const char* option :
       {"sampler={type: DefaultSampler, shuffle: false}", "sampler={type: DefaultSampler, seed: 9}",
        "sampler={type: DefaultSampler, round_up: false}", "drop_last=true", "batch_size=5"}) {
    CAPTURE(option);
    const Run other({std::string("train_dataloader.") + option});
    CHECK(other.weights("epoch_3") != run.weights("epoch_3"));
    CHECK(other.scalar("loss").size() ==
          (option == std::string("drop_last=true") || option == std::string("batch_size=5") ? 6 : 9));
  }
}

TEST_CASE("env_cfg sets the compute threads and raises the limit of open files") {
  rlimit before{};
  getrlimit(RLIMIT_NOFILE, &before);
  rlimit low = before;
  low.rlim_cur = 200;
  setrlimit(RLIMIT_NOFILE, &low);
  const Run run({"env_cfg={num_threads: 1, resource_limit: 300}", "log_level=INFO"});
  CHECK(run.log().find("1 compute threads") != std::string::npos);
  rlimit after{};
  getrlimit(RLIMIT_NOFILE, &after);
  CHECK(after.rlim_cur == std::min<rlim_t>(300, before.rlim_max));
  setrlimit(RLIMIT_NOFILE, &before);
}

TEST_CASE("a test measures the last saved weights, or those of load_from, and leaves its results in the log folder") {
  const Overrides with_test = {"test_dataloader={batch_size: 4, dataset: {type: TinySamples, count: 6, first: 100}}",
                               "test_cfg={}", "test_evaluator={type: Accuracy, topk: [1, 2]}"};
  std::vector<std::map<std::string, double>> seen;
  Run trained(with_test, [&](const char* point, RunControl& control) {
    if (point == std::string("val") || point == std::string("test")) seen.push_back(control.progress().metrics);
  });
  const test::TempDir elsewhere = test::TempDir::in_memory();
  const auto results_in = [&](const std::string& work_dir, const std::string& load_from) {
    ConfigNode config = trained.config;
    config.set("work_dir", work_dir);
    if (!load_from.empty()) config.set("load_from", load_from);
    return trained.measure(config);
  };
  const auto results = results_in(elsewhere.path().string(), trained.path("epoch_3"));
  CHECK(results.at("accuracy/top1") == seen.at(2).at("accuracy/top1"));  // the same samples as the last validation
  CHECK(results.at("accuracy/top2") >= results.at("accuracy/top1"));
  CHECK(seen.back() == results);
  const std::string stamp = list_directory(elsewhere.path().string()).at(0).name;
  const Json written = read_json_file((elsewhere.path() / stamp / (stamp + ".json")).string());
  CHECK(written.at("accuracy/top1").get<double>() == results.at("accuracy/top1"));
  CHECK(results_in(trained.folder.path().string(), "") == results);
  const test::TempDir empty = test::TempDir::in_memory();
  CHECK_THROWS_WITH_AS(results_in(empty.path().string(), ""), doctest::Contains("train first"), IoError);

  std::ostringstream out;
  TestArguments arguments;
  arguments.config = trained.path("epoch_3") + "/" + kConfigFile;
  arguments.work_dir = elsewhere.path().string();
  arguments.load_from = trained.path("epoch_3");
  arguments.cfg_options = {"custom_hooks=[]"};
  {
    const test::MutedOutput muted;
    const ProcessLogReset reset;
    CHECK(run_test(arguments, trained.registry, out) == 0);
  }
  CHECK(out.str() ==
        cat("accuracy/top1: ", results.at("accuracy/top1"), "\naccuracy/top2: ", results.at("accuracy/top2"), "\n"));
}

TEST_CASE("a config without training data plans and trains nothing, one without test data tests nothing") {
  Registry registry;
  test::add_tiny_types(registry);
  const test::TempDir folder;
  Runner runner(
      test::tiny_config(folder.path().string(), {"train_dataloader=null", "train_cfg=null", "optim_wrapper=null"}),
      "tiny.yaml", registry);
  CHECK_THROWS_WITH_AS(runner.train(), doctest::Contains("the config trains nothing"), ConfigError);
  CHECK_THROWS_AS(runner.plan(), ConfigError);
  CHECK_THROWS_WITH_AS(runner.test(), doctest::Contains("the config tests nothing"), ConfigError);
  CHECK(list_directory(folder.path().string()).empty());
}

}  // namespace
}  // namespace castor::strategy
