// The runner from a config to a work folder: both loops, validation, schedules, what is logged and saved, and how a run
// that is stopped or cannot write ends. The model and the data are tiny (tests/support/tiny_run.h).
#include "strategy/runner/runner.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <csignal>
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
#include "core/base/interrupt.h"
#include "core/base/json.h"
#include "core/base/log.h"
#include "strategy/checkpoint.h"
#include "strategy/cli/test.h"
#include "tests/support/muted_output.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_run.h"

namespace castor::strategy {
namespace {

using Overrides = std::vector<std::string>;

/// Calls back at every point of a run.
class WatchingHook final : public Hook {
 public:
  using Watch = std::function<void(const char*, RunControl&)>;
  explicit WatchingHook(const Watch& watch) : watch_(watch) {}
  void before_run(RunControl& run) override { watch_("before_run", run); }
  void after_train_iter(RunControl& run) override { watch_("iter", run); }
  void after_train_epoch(RunControl& run) override { watch_("epoch", run); }
  void after_val(RunControl& run) override { watch_("val", run); }
  void after_test(RunControl& run) override { watch_("test", run); }
  void after_run(RunControl& run) override { watch_("after_run", run); }

 private:
  const Watch& watch_;
};

/// A runner sets the process's logger; this takes it back.
struct ProcessLogReset {
  ~ProcessLogReset() { set_process_logger(nullptr); }
};

/// One work folder, and what a run leaves there.
struct Run {
  /// Trains a tiny config. `watch`, if given, sees every hook call.
  explicit Run(const Overrides& overrides = {}, WatchingHook::Watch watch = {}) : watching(std::move(watch)) {
    test::add_tiny_types(registry);
    registry.hooks.add<NoOptions>(
        "WatchingHook", "calls a test back",
        [this](const NoOptions&) -> std::unique_ptr<Hook> { return std::make_unique<WatchingHook>(watching); });
    config = test::tiny_config(folder.path().string(), overrides);
    if (watching) config.set("custom_hooks", ConfigNode(ConfigNode::List{TypedConfig("WatchingHook").node}));
    was_finished = train(config);
  }
  /// Trains another config with this one's types.
  bool train(const ConfigNode& other) const {
    const test::MutedOutput muted;
    const ProcessLogReset reset;
    return Runner(other, "tiny.yaml", registry).train();
  }
  std::map<std::string, double> measure(const ConfigNode& other) const {
    const test::MutedOutput muted;
    const ProcessLogReset reset;
    return Runner(other, "tiny.yaml", registry).test();
  }

  std::string path(const std::string& name) const { return (folder.path() / name).string(); }
  /// The folder of the log: the only one whose name begins with a digit.
  std::string log_dir() const {
    std::vector<std::string> found;
    for (const DirectoryEntry& entry : list_directory(folder.path().string())) {
      if (entry.kind == FileKind::directory && entry.name[0] == '2') found.push_back(entry.name);
    }
    REQUIRE(found.size() == 1);
    return path(found[0]);
  }
  std::string log() const { return read_text_file(join_path(log_dir(), file_name_of(log_dir()) + ".log")); }
  std::vector<Json> scalars() const {
    std::vector<Json> lines;
    std::istringstream text(read_text_file(join_path(log_dir(), "vis_data/scalars.json")));
    for (std::string line; std::getline(text, line);) lines.push_back(parse_json(line, "scalars.json"));
    return lines;
  }
  /// The values of one scalar over the lines that have it.
  std::vector<double> scalar(const std::string& name) const {
    std::vector<double> values;
    for (const Json& line : scalars()) {
      if (line.contains(name)) values.push_back(line.at(name).get<double>());
    }
    return values;
  }
  /// The saved folders.
  std::set<std::string> saved() const {
    std::set<std::string> names;
    for (const DirectoryEntry& entry : list_directory(folder.path().string())) {
      if (entry.name[0] != '2' && entry.name != kLastCheckpointFile) names.insert(entry.name);
    }
    return names;
  }
  std::string weights(const std::string& name) const { return read_text_file(path(name + "/" + kWeightsFile)); }

  test::TempDir folder = test::TempDir::in_memory();
  Registry registry;
  ConfigNode config;
  bool was_finished = false;
  WatchingHook::Watch watching;
};

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

TEST_CASE("the log file has the peers' lines, the plan and its audit") {
  const Run run({"log_level=INFO", "experiment_name=small", "optim_wrapper.clip_grad={max_norm: 1}"});
  const std::string log = run.log();
  for (const char* part : {"castor - INFO - ", "experiment small_", "seed 5", "system environment",
                           "\n  processor: ", "\n  launcher: none", "plan for cpu", "plan against actual after step 1",
                           "Epoch(train) [1][1/3]  lr: 1.0000e-02  eta: ", "Epoch(train) [3][3/3]",
                           "grad_norm: ", "Epoch(val) [2]  accuracy/top1: ", "checkpoint saved to "}) {
    CHECK_MESSAGE(log.find(part) != std::string::npos, part);
  }
  const Json plan = read_json_file(join_path(run.log_dir(), "plan.json"));
  CHECK(plan.at("parameters") == 8 * 16 + 16 + 16 * 3 + 3);
  CHECK(plan.at("micro_batch") == 4);
  CHECK(plan.at("flops").get<double>() > 0);
  CHECK(plan.at("parameter_order") == Json({"first.weight", "first.bias", "second.weight", "second.bias"}));
  CHECK(plan.at("memory").at("total").at("peak").get<double>() > 0);
  CHECK(read_text_file(join_path(run.log_dir(), "plan_audit.txt")).find("activations") != std::string::npos);
}

TEST_CASE("parameter_norms says each parameter's gradient norm, of which the whole norm is made, where there is one") {
  const std::string logger = "default_hooks.logger={type: LoggerHook, interval: 1, parameter_norms: true}";
  const Run run({logger, "optim_wrapper.clip_grad={max_norm: 0.5}"});
  std::int64_t checked = 0;
  for (const Json& line : run.scalars()) {
    if (!line.contains("grad_norm")) continue;
    double squares = 0;
    std::set<std::string> names;
    for (const auto& [name, value] : line.items()) {
      if (!name.starts_with("grad_norm/")) continue;
      names.insert(name.substr(10));
      squares += value.get<double>() * value.get<double>();
    }
    CHECK(names == std::set<std::string>{"first.bias", "first.weight", "second.bias", "second.weight"});
    CHECK(std::sqrt(squares) == doctest::Approx(line.at("grad_norm").get<double>()).epsilon(1e-12));
    ++checked;
  }
  CHECK(checked == 9);
  CHECK_THROWS_WITH_AS(Run({logger, "optim_wrapper.clip_grad=null"}),
                       doctest::Contains("norms are computed only where they are limited"), ConfigError);
}

TEST_CASE("the log goes where log_kwargs says") {
  const test::TempDir elsewhere;
  const std::string file = (elsewhere.path() / "run.log").string();
  const Run run({"strategy.log_kwargs={log_level: INFO, log_file: " + file + "}", "log_level=INFO"});
  CHECK(read_text_file(file).find("Epoch(train) [3][3/3]") != std::string::npos);
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

TEST_CASE("a stop ends the run after the running iteration, saves what was trained and says so") {
  std::int64_t validations = 0;
  const Run run({"log_level=WARNING"}, [&](const char* point, RunControl& control) {
    if (point == std::string("iter") && control.progress().iter == 4) request_stop(SIGINT);
    validations += point == std::string("val") ? 1 : 0;
  });
  clear_stop_request();
  CHECK_FALSE(run.was_finished);
  CHECK(validations == 1);
  CHECK(run.saved() == std::set<std::string>{"iter_4"});
  CHECK(find_last_checkpoint(run.folder.path().string()) == run.path("iter_4"));
  CHECK(run.log().find("stopped at iteration 4 of 9") != std::string::npos);
  CHECK(run.scalar("loss").size() == 4);
}

TEST_CASE("a stop during validation gives no result, moves no schedule and saves") {
  std::int64_t validations = 0;
  const Run run({"param_scheduler={type: ReduceOnPlateauLR, monitor: accuracy/top1}"},
                [&](const char* point, RunControl& control) {
                  if (point == std::string("epoch") && control.progress().epoch == 3) request_stop(SIGTERM);
                  validations += point == std::string("val") ? 1 : 0;
                });
  clear_stop_request();
  CHECK_FALSE(run.was_finished);
  CHECK(validations == 2);
  CHECK(run.saved() == std::set<std::string>{"epoch_3"});
}

TEST_CASE("a work folder that cannot be made ends in an IoError before anything is trained") {
  const test::TempDir folder = test::TempDir::in_memory();
  write_file_atomically((folder.path() / "file").string(), "not a folder");
  Registry registry;
  test::add_tiny_types(registry);
  Runner runner(test::tiny_config((folder.path() / "file" / "work").string()), "tiny.yaml", registry);
  const ProcessLogReset reset;
  try {
    runner.train();
    FAIL("trained");
  } catch (const IoError& error) {
    CHECK(error.code == ENOTDIR);
    CHECK(std::string(error.what()).find("a part of the path is a file where a folder is needed: check the path") !=
          std::string::npos);
  }
}

TEST_CASE(
    "a disk that refuses the weights ends the run with an IoError that says what to do, and holds no half of them") {
  const test::TempDir folder = test::TempDir::in_memory();
  // No file may grow beyond 48 KiB: the log fits, the weights do not.
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  rlimit small = before;
  small.rlim_cur = 48 << 10;
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  setrlimit(RLIMIT_FSIZE, &small);
  int code = 0;
  std::string text;
  try {
    const Run types({"train_cfg.max_epochs=1", "default_hooks.checkpoint={type: CheckpointHook, save_last: false}"});
    types.train(test::tiny_config(folder.path().string(), {"model.width=2000"}));
  } catch (const IoError& error) {
    code = error.code;
    text = error.what();
  }
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  CHECK(code == EFBIG);
  CHECK(text.find("model.safetensors") != std::string::npos);
  CHECK(text.find("the file would exceed the size limit") != std::string::npos);
  const std::vector<DirectoryEntry> left = list_directory(folder.path().string());
  REQUIRE(left.size() == 1);
  CHECK(left[0].name[0] == '2');  // the log's folder
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
