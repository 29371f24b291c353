// How a run ends that is stopped, or that cannot write.
#include <cerrno>
#include <csignal>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <span>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <sys/resource.h>
#include <unistd.h>

#include "core/base/error.h"
#include "core/base/host_memory.h"
#include "core/base/interrupt.h"
#include "core/base/json.h"
#include "core/device/caching_allocator.h"
#include "formats/checkpoint_list.h"
#include "formats/checkpoint_reader.h"
#include "strategy/checkpoint.h"
#include "tests/support/tiny_training.h"

namespace castor::strategy {
namespace {

using test::ProcessLogReset;
using test::Run;

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

// The accuracy, and a stop in the batch of validation that is named, counted from 1 over the process.
class StoppingAccuracy final : public Metric {
 public:
  static inline std::int64_t stop_at = 0, batches = 0;  // NOLINT(cppcoreguidelines-avoid-non-const-global-variables)
  void reset() override { accuracy_.reset(); }
  void process(const autograd::Batch& batch, const Tensor& predictions) override {
    if (++batches == stop_at) request_stop(SIGTERM);
    accuracy_.process(batch, predictions);
  }
  std::map<std::string, double> compute() const override { return accuracy_.compute(); }
  std::vector<double> sums() const override { return accuracy_.sums(); }
  void set_sums(std::span<const double> sums) override { accuracy_.set_sums(sums); }

 private:
  Accuracy accuracy_{Accuracy::Config{}};
};

// Other tests go on after a stop, also where it ended in an error.
struct StopReset {
  ~StopReset() { clear_stop_request(); }
};

// A run validated by it, and all its state at the end.
struct StoppedRun {
  StoppedRun() {
    test::add_tiny_types(registry);
    registry.metrics.add<NoOptions>("StoppingAccuracy", "stops a run",
                                    [](const NoOptions&) { return std::make_unique<StoppingAccuracy>(); });
  }
  // Returns whether it came to its end.
  bool train(test::Overrides overrides, std::int64_t stop_at) const {
    overrides.insert(overrides.begin(), "val_evaluator={type: StoppingAccuracy}");
    StoppingAccuracy::stop_at = stop_at;
    StoppingAccuracy::batches = 0;
    const test::MutedOutput muted;
    const ProcessLogReset reset;
    Runner runner(test::tiny_config(folder.path().string(), overrides), "tiny.yaml", registry);
    const StopReset clear;
    return runner.train();
  }
  std::set<std::string> saved() const {
    std::set<std::string> names;
    for (const auto& checkpoint : formats::list_checkpoints(folder.path().string()).checkpoints)
      names.insert(checkpoint.name);
    return names;
  }
  formats::Checkpoint open(const std::string& name) const {
    return formats::Checkpoint::open((folder.path() / name).string());
  }
  Json state(const std::string& name) const { return parse_json(open(name).read_text("state", "json"), name); }
  // Every tensor's bytes and the state.
  std::map<std::string, std::string> contents(const std::string& name) const {
    const formats::Checkpoint checkpoint = open(name);
    std::map<std::string, std::string> all = {{"state", checkpoint.read_text("state", "json")}};
    for (const auto& tensor : checkpoint.manifest().tensors) {
      std::string& bytes = all[tensor.role + " " + tensor.name];
      bytes.resize(tensor.bytes());
      checkpoint.read(tensor, 0, std::as_writable_bytes(std::span(bytes)));
    }
    return all;
  }

  test::TempDir folder = test::TempDir::in_memory();
  Registry registry;
};

constexpr const char* kPlateau =
    "param_scheduler={type: ReduceOnPlateauLR, monitor: accuracy/top1, rule: greater, patience: 0}";
constexpr const char* kBest = "default_hooks.checkpoint={type: CheckpointHook, save_best: accuracy/top1}";

// Otherwise schedules on plateaus and the best checkpoints would go on without it.
TEST_CASE("a stop at or in a validation moves no schedule and saves; the resumed run makes up for it and ends equal") {
  const test::Overrides options = {kPlateau, kBest};
  StoppedRun whole;
  REQUIRE(whole.train(options, 0));
  // Two batches a validation: the first and the second of those of the first, second and last epoch.
  for (const std::int64_t stop_at : {1, 2, 3, 4, 5, 6}) {
    CAPTURE(stop_at);
    const StoppedRun run;
    CHECK_FALSE(run.train(options, stop_at));
    const std::string last = cat("epoch_", (stop_at + 1) / 2);
    CHECK(run.state(last).at("validation_due") == true);
    CHECK(run.state(last).at("param_schedulers").at(0).at("_global_step") == 1 + (stop_at - 1) / 2);
    test::Overrides again = options;
    again.push_back("resume=true");
    REQUIRE(run.train(again, 0));
    CHECK(run.contents("epoch_3") == whole.contents("epoch_3"));
    CHECK(read_text_file((run.folder.path() / "scores.json").string()) ==
          read_text_file((whole.folder.path() / "scores.json").string()));
  }
}

TEST_CASE("a stop before a validation is due leaves it to the resumed run") {
  std::int64_t validations = 0;
  const Run run({kPlateau}, [&](const char* point, RunControl& control) {
    if (point == std::string("epoch") && control.progress().epoch == 3) request_stop(SIGTERM);
    validations += point == std::string("val") ? 1 : 0;
  });
  clear_stop_request();
  CHECK_FALSE(run.was_finished);
  CHECK(validations == 2);
  CHECK(run.saved() == std::set<std::string>{"epoch_3"});
  ConfigNode again = run.config;
  again.set("resume", ConfigNode(true));
  CHECK(run.train(again));
  CHECK(validations == 3);
  // Done, it is not done again for the sake of the state.
  const Json state = parse_json(formats::Checkpoint::open(run.path("epoch_3")).read_text("state", "json"), "state");
  CHECK(!state.contains("validation_due"));
}

const test::Overrides kWindows = {
    "train_cfg.by_epoch=false", "train_cfg.max_epochs=null",           "train_cfg.max_iters=9",
    "train_cfg.val_interval=2", "optim_wrapper.accumulative_counts=4", kBest};

TEST_CASE("a stop in a validation inside an accumulation window ends the run at the window's end with a checkpoint") {
  const StoppedRun run;
  CHECK_FALSE(run.train(kWindows, 1));
  CHECK(run.saved() == std::set<std::string>{"iter_4"});
  CHECK(run.state("iter_4").at("validation_due") == true);
  StoppedRun whole;
  REQUIRE(whole.train(kWindows, 0));
  test::Overrides again = kWindows;
  again.push_back("resume=true");
  REQUIRE(run.train(again, 0));
  CHECK(run.contents("iter_9") == whole.contents("iter_9"));
}

TEST_CASE("inside a window a validation that moves a schedule is finished before the stop, so that bits stay equal") {
  test::Overrides options = kWindows;
  options.push_back(kPlateau);
  StoppedRun whole;
  REQUIRE(whole.train(options, 0));
  for (const std::int64_t stop_at : {1, 2, 3, 5, 6, 8}) {
    CAPTURE(stop_at);
    const StoppedRun run;
    CHECK_FALSE(run.train(options, stop_at));
    test::Overrides again = options;
    again.push_back("resume=true");
    REQUIRE(run.train(again, 0));
    CHECK(run.contents("iter_9") == whole.contents("iter_9"));
  }
}

TEST_CASE("epochs that make more iterations than can be counted are refused before anything is trained") {
  Registry registry;
  test::add_tiny_types(registry);
  const test::TempDir folder = test::TempDir::in_memory();
  const ProcessLogReset reset;
  Runner runner(test::tiny_config(folder.path().string(), {"train_cfg.max_epochs=1000000000000",
                                                           "train_dataloader={batch_size: 1, dataset: {type: "
                                                           "TinySamples, count: 10000000}}"}),
                "tiny.yaml", registry);
  CHECK_THROWS_WITH_AS(runner.train(), doctest::Contains("train_cfg.max_epochs: 1000000000000 epochs of 10000000"),
                       ConfigError);
}

TEST_CASE("a second training in a work folder is refused while the first one runs, and touches nothing") {
  std::set<std::string> before, after;
  const Run run({"default_hooks.checkpoint={type: CheckpointHook, interval: 1}"},
                [&](const char* point, RunControl& control) {
                  if (point != std::string("iter") || control.progress().iter != 4) return;
                  const auto names = [&control] {
                    std::set<std::string> found;
                    for (const DirectoryEntry& entry : list_directory(control.work_dir())) found.insert(entry.name);
                    return found;
                  };
                  before = names();
                  Registry registry;
                  test::add_tiny_types(registry);
                  CHECK_THROWS_WITH_AS(Runner(test::tiny_config(control.work_dir(), {}), "tiny.yaml", registry).train(),
                                       doctest::Contains(cat("process ", getpid(), " on ").c_str()), IoError);
                  after = names();
                });
  CHECK(run.was_finished);
  CHECK_FALSE(before.empty());
  CHECK(before == after);
  CHECK(run.train(run.config));
}

TEST_CASE("a training that this machine's memory cannot hold is refused by its plan, before anything is allocated") {
  const test::TempDir folder;
  Registry registry;
  test::add_tiny_types(registry);
  const test::MutedOutput muted;
  const ProcessLogReset reset;
  const std::size_t before = allocator(kCpu).stats().peak_total;
  try {
    Runner(test::tiny_config(folder.path().string(), {"model.width=100000000000"}), "tiny.yaml", registry).train();
    FAIL("trained");
  } catch (const OutOfMemory& error) {
    CHECK(error.requested > std::size_t{1} << 42);
    CHECK(error.limit == host_memory().total);
    CHECK(std::string(error.what()).find("castor plan --device-memory") != std::string::npos);
  }
  CHECK(allocator(kCpu).stats().peak_total - before < std::size_t{1} << 20);
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

}  // namespace
}  // namespace castor::strategy
