// Saving and resuming whole runs: equal bits at the end, whatever was stopped where, and every argument of the three
// calls seen to do what it says.
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "autograd/optim/adam.h"
#include "autograd/optim/sgd.h"
#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/json.h"
#include "formats/checkpoint_list.h"
#include "formats/checkpoint_reader.h"
#include "strategy/colossalai_strategy.h"
#include "strategy/runner/runner.h"
#include "strategy/scheduler.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_run.h"

namespace castor {
namespace {

using namespace strategy;

Registry& tiny_registry() {
  static Registry registry;
  static const bool is_filled = (test::add_tiny_types(registry), true);
  static_cast<void>(is_filled);
  return registry;
}

bool train(const std::string& work_dir, std::vector<std::string> overrides) {
  overrides.insert(overrides.begin(), "default_hooks.checkpoint={type: CheckpointHook}");
  Runner runner(test::tiny_config(work_dir, overrides), "tiny.yaml", tiny_registry());
  return runner.train();
}

// The bytes of every tensor and the training state of a checkpoint, without what differs by nature.
std::map<std::string, std::string> contents_of(const std::string& folder) {
  const auto checkpoint = formats::Checkpoint::open(folder);
  std::map<std::string, std::string> contents;
  for (const auto& tensor : checkpoint.manifest().tensors) {
    std::string bytes(tensor.bytes(), '\0');
    checkpoint.read(tensor, 0, std::as_writable_bytes(std::span(bytes)));
    contents[tensor.role + "/" + tensor.name] = bytes;
  }
  contents["state.json"] = checkpoint.read_text("state", "json");
  return contents;
}

// Every combination that changes what a state is made of.
const std::vector<std::vector<std::string>> kRuns = {
    {},
    {"optim_wrapper.accumulative_counts=2"},
    {"train_cfg.by_epoch=false", "train_cfg.max_epochs=null", "train_cfg.max_iters=9", "val_cfg=null",
     "val_dataloader=null", "val_evaluator=null", "default_hooks.checkpoint.interval=4",
     "default_hooks.checkpoint.by_epoch=false"},
    {"optim_wrapper.optimizer.type=SGD", "optim_wrapper.optimizer.momentum=0.9",
     "param_scheduler={type: CosineAnnealingLR, by_epoch: true, T_max: 3}"},
    {"param_scheduler={type: LinearLR, by_epoch: false, start_factor: 0.1, end: 7}",
     "default_hooks.checkpoint.async_save=true"},
};

TEST_CASE("a run stopped at a checkpoint and resumed ends with the bits of an undisturbed one") {
  for (std::size_t i = 0; i < kRuns.size(); ++i) {
    CAPTURE(i);
    const test::TempDir whole, stopped;
    std::vector<std::string> options = kRuns[i];
    if (i != 2) options.push_back("default_hooks.checkpoint.interval=1");
    REQUIRE(train(whole.path().string(), options));
    // The same run, whose later checkpoints are lost.
    REQUIRE(train(stopped.path().string(), options));
    const auto list = formats::list_checkpoints(stopped.path().string());
    REQUIRE(list.checkpoints.size() >= 3);
    const std::string last = list.checkpoints.front().name;
    for (std::size_t gone = 0; gone + 1 < list.checkpoints.size(); ++gone) {
      formats::remove_checkpoint(join_path(stopped.path().string(), list.checkpoints[gone].name));
    }
    std::vector<std::string> again = options;
    again.push_back("resume=true");
    REQUIRE(train(stopped.path().string(), again));
    CHECK(contents_of(join_path(stopped.path().string(), last)) == contents_of(join_path(whole.path().string(), last)));
  }
}

TEST_CASE("the seed of the saved run is continued, whatever the config says") {
  const test::TempDir whole, stopped;
  REQUIRE(train(whole.path().string(), {}));
  REQUIRE(train(stopped.path().string(), {"default_hooks.checkpoint.interval=1"}));
  for (const char* name : {"epoch_2", "epoch_3"}) formats::remove_checkpoint((stopped.path() / name).string());
  REQUIRE(train(stopped.path().string(), {"resume=true", "randomness.seed=99"}));
  CHECK(contents_of((stopped.path() / "epoch_3").string()) == contents_of((whole.path() / "epoch_3").string()));
}

// Flips a bit of a file, that of its last byte or of the first one of `text`.
void flip_bit(const std::string& path, const std::string& text = "") {
  File file = File::open(path, OpenMode::append);
  const std::uint64_t at = text.empty() ? file.size() - 1 : read_text_file(path).find(text);
  std::byte byte;
  file.read_exact(std::span(&byte, 1), at);
  byte ^= std::byte{1};
  file.write_exact(std::span(&byte, 1), at);
  file.close();
}

TEST_CASE("resume without a checkpoint starts anew, and with only damaged ones it is an error naming them") {
  const test::TempDir folder;
  REQUIRE(train(folder.path().string(), {"resume=true"}));
  const std::string weights = (folder.path() / "epoch_3" / kWeightsFile).string();
  File file = File::open(weights, OpenMode::append);
  const std::byte flipped{0xff};
  file.write_exact(std::span(&flipped, 1), file.size() - 1);
  file.close();
  CHECK_THROWS_WITH_AS(train(folder.path().string(), {"resume=true"}), doctest::Contains("another digest"),
                       FormatError);
}

TEST_CASE("resume never starts anew over a checkpoint that was whole once; over an interrupted save it does") {
  const test::TempDir folder;
  REQUIRE(train(folder.path().string(), {}));
  const std::string saved = (folder.path() / "epoch_3").string();
  SUBCASE("its manifest is damaged") { flip_bit(join_path(saved, formats::kManifestName), "tensors"); }
  SUBCASE("a file is missing") { remove_file(join_path(saved, kWeightsFile)); }
  SUBCASE("it was never completed") {
    remove_file(join_path(saved, formats::kManifestName));
    CHECK(train(folder.path().string(), {"resume=true"}));
    return;
  }
  const std::size_t entries = list_directory(folder.path().string()).size();
  CHECK_THROWS_WITH_AS(train(folder.path().string(), {"resume=true"}),
                       doctest::Contains("restore it, or remove it to start anew"), FormatError);
  CHECK(list_directory(folder.path().string()).size() <= entries + 1);  // a log at most
}

TEST_CASE("a run goes on from another run's folder: from its newest checkpoint that is whole") {
  const test::TempDir first, whole, second, third, empty;
  REQUIRE(train(whole.path().string(), {"default_hooks.checkpoint.interval=1"}));
  REQUIRE(train(first.path().string(), {"default_hooks.checkpoint.interval=1"}));
  formats::remove_checkpoint((first.path() / "epoch_3").string());
  const std::string of_first = "load_from=" + first.path().string();
  REQUIRE(train(second.path().string(), {"resume=true", of_first}));
  CHECK(contents_of((second.path() / "epoch_3").string()) == contents_of((whole.path() / "epoch_3").string()));
  CHECK_FALSE(std::filesystem::exists(first.path() / "epoch_3"));

  std::filesystem::remove(first.path() / "epoch_2" / formats::kManifestName);
  CHECK(formats::list_checkpoints(first.path().string()).checkpoints.front().name == "epoch_1");
  REQUIRE(train(third.path().string(), {"resume=true", of_first + "/"}));
  CHECK(contents_of((third.path() / "epoch_3").string()) == contents_of((whole.path() / "epoch_3").string()));

  // A folder without checkpoints is no reason to start anew.
  CHECK_THROWS_AS(train(third.path().string(), {"resume=true", "load_from=" + empty.path().string()}), Error);
}

TEST_CASE("a damaged newest checkpoint is skipped for the one before it, and the run ends as it would have") {
  const test::TempDir whole, damaged;
  REQUIRE(train(whole.path().string(), {"default_hooks.checkpoint.interval=1"}));
  REQUIRE(train(damaged.path().string(), {"default_hooks.checkpoint.interval=1"}));
  // Any file may be the damaged one; what a run asks first is in state.json.
  SUBCASE("its states") { flip_bit((damaged.path() / "epoch_3" / "optimizer.safetensors").string()); }
  SUBCASE("the text of its state") { flip_bit((damaged.path() / "epoch_3" / "state.json").string()); }
  SUBCASE("the seed in it") { flip_bit((damaged.path() / "epoch_3" / "state.json").string(), "\"seed\""); }
  REQUIRE(train(damaged.path().string(), {"resume=true"}));
  const auto expected = contents_of((whole.path() / "epoch_3").string());
  const auto resumed = contents_of((damaged.path() / "epoch_3").string());
  for (const auto& [name, bytes] : expected) CHECK_MESSAGE(resumed.at(name) == bytes, name);
}

TEST_CASE("the seed comes from the checkpoint that is resumed, not from a damaged one before it") {
  const test::TempDir whole, other, work;
  REQUIRE(train(whole.path().string(), {"default_hooks.checkpoint.interval=1"}));
  REQUIRE(train(other.path().string(), {"default_hooks.checkpoint.interval=1", "randomness.seed=9"}));
  for (const char* name : {"epoch_1", "epoch_2"}) {
    std::filesystem::copy(whole.path() / name, work.path() / name, std::filesystem::copy_options::recursive);
  }
  std::filesystem::copy(other.path() / "epoch_3", work.path() / "epoch_3", std::filesystem::copy_options::recursive);
  flip_bit((work.path() / "epoch_3" / "optimizer.safetensors").string());
  REQUIRE(train(work.path().string(), {"resume=true", "randomness.seed=7"}));
  CHECK(contents_of((work.path() / "epoch_3").string()) == contents_of((whole.path() / "epoch_3").string()));
}

// Fails as a disk does that cannot read a file of one checkpoint.
class BadSector final : public Hook {
 public:
  BadSector(std::string path, int code) : path_(std::move(path)), code_(code) {}
  void after_load_checkpoint(RunControl&, CheckpointContents& contents) override {
    if (contents.state().at("epoch") == 3) throw IoError("read: the device failed", path_, code_);
  }

 private:
  std::string path_;
  int code_;
};

TEST_CASE("a checkpoint that the disk cannot read is skipped as a damaged one; other files' errors end the run") {
  const test::TempDir whole, work;
  REQUIRE(train(whole.path().string(), {"default_hooks.checkpoint.interval=1"}));
  REQUIRE(train(work.path().string(), {"default_hooks.checkpoint.interval=1"}));
  std::string failing = (work.path() / "epoch_3" / "state.json").string();
  int code = EIO;
  bool is_skipped = true;
  SUBCASE("EIO") {}
  SUBCASE("ENODATA") { code = ENODATA; }
  SUBCASE("EACCES") { code = EACCES, is_skipped = false; }
  SUBCASE("another folder's file") { failing = (work.path() / "scratch").string(), is_skipped = false; }
  Registry registry;
  test::add_tiny_types(registry);
  registry.hooks.add<NoOptions>("BadSector", "a disk that fails",
                                [&](const NoOptions&) { return std::make_unique<BadSector>(failing, code); });
  Runner runner(test::tiny_config(work.path().string(), {"default_hooks.checkpoint={type: CheckpointHook}",
                                                         "custom_hooks=[{type: BadSector}]", "resume=true"}),
                "tiny.yaml", registry);
  if (!is_skipped) {
    CHECK_THROWS_AS(runner.train(), IoError);
    return;
  }
  REQUIRE(runner.train());
  const auto expected = contents_of((whole.path() / "epoch_3").string());
  const auto resumed = contents_of((work.path() / "epoch_3").string());
  for (const auto& [name, bytes] : expected) CHECK_MESSAGE(resumed.at(name) == bytes, name);
}

// The variables of a launcher of one rank, taken back at the end.
class LauncherVariables {
 public:
  void set(const char* name, const char* value) {
    setenv(name, value, 1);
    names_.push_back(name);
  }
  ~LauncherVariables() {
    for (const char* name : names_) unsetenv(name);
  }

 private:
  std::vector<const char*> names_;
};

TEST_CASE("a restart whose newest checkpoint has a damaged state goes on from its job's one before") {
  LauncherVariables variables;
  for (const char* name : {"RANK", "LOCAL_RANK"}) variables.set(name, "0");
  variables.set("WORLD_SIZE", "1");
  variables.set("MASTER_ADDR", "127.0.0.1");
  const test::TempDir whole, work;
  variables.set("CASTOR_JOB_ID", "another");
  REQUIRE(train(work.path().string(), {"default_hooks.checkpoint.interval=1", "randomness.seed=9"}));
  for (const char* name : {"epoch_2", "epoch_3"}) formats::remove_checkpoint((work.path() / name).string());
  std::filesystem::rename(work.path() / "epoch_1", work.path() / "iter_1");
  variables.set("CASTOR_JOB_ID", "this");
  REQUIRE(train(whole.path().string(), {"default_hooks.checkpoint.interval=1"}));
  REQUIRE(train(work.path().string(), {"default_hooks.checkpoint.interval=1"}));
  variables.set("TORCHELASTIC_RESTART_COUNT", "1");
  flip_bit((work.path() / "epoch_3" / "state.json").string());
  SUBCASE("its own one before it") {
    REQUIRE(train(work.path().string(), {}));
    const auto expected = contents_of((whole.path() / "epoch_3").string());
    const auto resumed = contents_of((work.path() / "epoch_3").string());
    for (const auto& [name, bytes] : expected) CHECK_MESSAGE(resumed.at(name) == bytes, name);
  }
  SUBCASE("never another job's") {
    for (const char* name : {"epoch_1", "epoch_2"}) formats::remove_checkpoint((work.path() / name).string());
    CHECK_THROWS_WITH_AS(train(work.path().string(), {}), doctest::Contains("digest does not match"), FormatError);
  }
}

TEST_CASE("retention keeps the last, every n-th and the best, and the newest always") {
  const test::TempDir folder;
  REQUIRE(train(folder.path().string(),
                {"train_cfg.max_epochs=7", "default_hooks.checkpoint.interval=1",
                 "default_hooks.checkpoint.max_keep_ckpts=2", "default_hooks.checkpoint.keep_every=3"}));
  std::vector<std::string> names;
  for (const auto& checkpoint : formats::list_checkpoints(folder.path().string()).checkpoints)
    names.push_back(checkpoint.name);
  CHECK(names == std::vector<std::string>{"epoch_7", "epoch_6", "epoch_3"});

  const test::TempDir best;
  REQUIRE(train(best.path().string(), {"train_cfg.max_epochs=5", "default_hooks.checkpoint.save_best=auto",
                                       "default_hooks.checkpoint.max_keep_ckpts=1"}));
  const Json scores = read_json_file((best.path() / "scores.json").string());
  CHECK(scores.size() >= 1);
  CHECK(formats::list_checkpoints(best.path().string()).checkpoints.size() <= 2);
  CHECK_THROWS_WITH_AS(train(best.path().string(), {"default_hooks.checkpoint.save_best=nonsense"}),
                       doctest::Contains("no metric is called nonsense"), ConfigError);
}

TEST_CASE("a save asked for inside an accumulation window happens at its end") {
  const test::TempDir folder;
  REQUIRE(train(folder.path().string(),
                {"train_cfg.by_epoch=false", "train_cfg.max_epochs=null", "train_cfg.max_iters=9", "val_cfg=null",
                 "val_dataloader=null", "val_evaluator=null", "optim_wrapper.accumulative_counts=4",
                 "default_hooks.checkpoint.interval=3", "default_hooks.checkpoint.by_epoch=false"}));
  std::vector<std::string> names;
  for (const auto& checkpoint : formats::list_checkpoints(folder.path().string()).checkpoints)
    names.push_back(checkpoint.name);
  CHECK(names == std::vector<std::string>{"iter_9", "iter_8", "iter_4"});
}

// A strategy of its own, for the arguments that the runner does not pass on.
struct Session {
  explicit Session(std::uint64_t seed, bool use_sgd = false) : strategy(kCpu, seed) {
    PrepareOptions options;
    options.optimizer = [use_sgd]() -> std::unique_ptr<autograd::Optimizer> {
      if (use_sgd) return std::make_unique<autograd::SGD>(autograd::SGDConfig{});
      return std::make_unique<autograd::AdamW>(autograd::AdamWConfig{});
    };
    options.dispatch.max_iters = 100;
    options.param_schedulers = {[](const SchedulerContext& context) {
      LinearLR::Config config;
      config.by_epoch = false;
      return std::make_unique<LinearLR>(context, config);
    }};
    strategy.prepare(
        [](const autograd::TensorOptions& tensor) {
          return std::make_shared<test::TinyClassifier>(test::TinyClassifierConfig{}, tensor);
        },
        options);
  }
  void step(int times = 1) {
    const test::TinySamples samples({});
    const std::vector<std::int64_t> numbers = {0, 1, 2, 3};
    for (int i = 0; i < times; ++i) {
      strategy.train_step(samples.batch(numbers));
      strategy.param_schedulers().at(0)->step();
    }
  }
  std::vector<float> weights() { return strategy.model().named_parameters().at(0).second.data().to_vector<float>(); }
  double lr() { return strategy.optim_wrapper()->optimizer().groups().at(0).values.at("lr"); }

  ColossalAIStrategy strategy;
};

TEST_CASE("save_checkpoint: each argument shows in the folder") {
  const test::TempDir folder;
  const std::string path = (folder.path() / "iter_2").string();
  Session session(1);
  session.step(2);

  SUBCASE("save_optimizer and save_param_scheduler") {
    SaveOptions options;
    options.save_optimizer = false;
    options.save_param_scheduler = false;
    session.strategy.save_checkpoint(path, options);
    CHECK(!exists(join_path(path, "optimizer.safetensors")));
    Session other(2);
    CHECK_THROWS_WITH_AS(other.strategy.resume(path), doctest::Contains("resume_optimizer: false"), FormatError);
    ResumeOptions weights_only;
    weights_only.resume_optimizer = false;
    CHECK_THROWS_WITH_AS(other.strategy.resume(path, weights_only), doctest::Contains("resume_param_scheduler: false"),
                         FormatError);
    weights_only.resume_param_scheduler = false;
    other.strategy.resume(path, weights_only);
    CHECK(other.weights() == session.weights());
    CHECK(other.strategy.optim_wrapper()->stepper().step_count() == 0);
  }
  SUBCASE("extra_ckpt and callback") {
    SaveOptions options;
    options.extra_ckpt = std::make_shared<const Json>(Json{{"note", "kept"}});
    options.callback = [](CheckpointContents& contents) {
      contents.state()["more"] = 3;
      contents.tensors["ema"]["first.weight"] = Tensor::from_values(std::vector<float>{1, 2}, {2});
    };
    session.strategy.save_checkpoint(path, options);
    Session other(2);
    ResumeOptions resume;
    bool was_called = false;
    resume.callback = [&](CheckpointContents& contents) {
      was_called = true;
      CHECK(other.weights() != session.weights());
      CHECK(contents.tensors.at("ema").at("first.weight").to_vector<float>() == std::vector<float>{1, 2});
    };
    const CheckpointContents contents = other.strategy.resume(path, resume);
    CHECK(was_called);
    CHECK(contents.state().at("note") == "kept");
    CHECK(contents.state().at("more") == 3);
    CHECK(other.weights() == session.weights());
  }
  SUBCASE("asynchronous, with training going on") {
    const std::vector<float> at_save = session.weights();
    SaveOptions options;
    options.asynchronous = true;
    session.strategy.save_checkpoint(path, options);
    session.step(3);
    session.strategy.wait_for_saves();
    Session other(2);
    other.strategy.resume(path);
    CHECK(other.weights() == at_save);
    other.step(3);
    CHECK(other.weights() == session.weights());
  }
}

TEST_CASE("resume: optimizer and schedulers are taken or left as asked, and another optimizer is refused") {
  const test::TempDir folder;
  const std::string path = (folder.path() / "iter_2").string();
  Session session(1);
  session.step(2);
  session.strategy.save_checkpoint(path);
  const double lr = session.lr();
  session.step(3);

  Session whole(2);
  whole.strategy.resume(path);
  CHECK(whole.lr() == lr);
  whole.step(3);
  CHECK(whole.weights() == session.weights());

  Session fresh(2);
  ResumeOptions options;
  options.resume_param_scheduler = false;
  options.resume_optimizer = false;
  fresh.strategy.resume(path, options);
  CHECK(fresh.lr() != lr);
  CHECK(fresh.strategy.param_schedulers().at(0)->global_step() == 0);
  fresh.step(3);
  CHECK(fresh.weights() != session.weights());

  Session other(2, true);
  const std::vector<float> before = other.weights();
  CHECK_THROWS_WITH_AS(other.strategy.resume(path), doctest::Contains("trained with AdamW, this run uses SGD"),
                       FormatError);
  CHECK(other.weights() == before);
  CHECK_THROWS_AS(other.strategy.resume((folder.path() / "iter_3").string()), IoError);
}

}  // namespace
}  // namespace castor
