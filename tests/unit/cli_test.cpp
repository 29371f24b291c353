// The command line: what each word does, the exit codes, and the one message that an error gives.
// Delicate: the library's commands are built over functions of the test's own, so nothing trains here.
#include <cerrno>
#include <csignal>
#include <filesystem>
#include <functional>
#include <new>
#include <optional>
#include <ostream>
#include <sstream>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/interrupt.h"
#include "strategy/cli/check.h"
#include "strategy/cli/generate.h"
#include "strategy/cli/plan.h"
#include "strategy/cli/test.h"
#include "strategy/cli/train.h"
#include "strategy/config.h"
#include "strategy/config/text_source.h"
#include "strategy/registry.h"
#include "tests/support/temp_dir.h"

namespace {

using namespace castor;
using namespace castor::strategy;

struct Result {
  int code = 0;
  std::string out;
  std::string err;
};

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

Result run(const std::vector<std::string>& words, const std::vector<Subcommand>& subcommands) {
  Registry registry;
  std::ostringstream out;
  std::ostringstream err;
  const int code = run_command_line("castor", words, subcommands, registry, out, err);
  return {code, out.str(), err.str()};
}

/// `castor train WORDS` with what it parsed.
struct TrainRun {
  Result result;
  std::optional<TrainArguments> arguments;
};
TrainRun train(std::vector<std::string> words) {
  TrainRun outcome;
  words.insert(words.begin(), "train");
  outcome.result = run(words, {train_command([&](const TrainArguments& arguments, Registry&, std::ostream&) {
                         outcome.arguments = arguments;
                         return 0;
                       })});
  return outcome;
}

Subcommand throwing(const std::function<void()>& action) {
  return {"act", "does something", [](ArgumentList&) {},
          [action](Registry&, std::ostream&) {
            action();
            return 0;
          }};
}

TEST_CASE("train takes a config, a folder, resume, launcher and overrides in any order") {
  const TrainRun all = train({"gpt.yaml", "--work-dir", "out", "--resume", "--launcher", "none", "--cfg-options",
                              "a.b=1", "c=[1,2]", "--cfg-options", "d=-1"});
  INFO(all.result.err);
  REQUIRE(all.arguments.has_value());
  CHECK(all.result.code == 0);
  CHECK(all.arguments->config == "gpt.yaml");
  CHECK(all.arguments->work_dir == "out");
  CHECK(all.arguments->resume == "auto");
  CHECK(all.arguments->launcher == "none");
  CHECK(all.arguments->cfg_options == std::vector<std::string>{"a.b=1", "c=[1,2]", "d=-1"});
  const TrainRun path = train({"--resume", "work/iter_5", "--work-dir=w", "gpt.yaml", "--cfg-options", "a=b=c"});
  INFO(path.result.err);
  REQUIRE(path.arguments.has_value());
  CHECK(path.arguments->resume == "work/iter_5");
  CHECK(path.arguments->work_dir == "w");
  CHECK(path.arguments->config == "gpt.yaml");
  CHECK(path.arguments->cfg_options == std::vector<std::string>{"a=b=c"});
  const TrainRun plain = train({"gpt.yaml"});
  REQUIRE(plain.arguments.has_value());
  CHECK_FALSE(plain.arguments->resume.has_value());
  CHECK(plain.arguments->cfg_options.empty());
}

TEST_CASE("mistakes on the command line exit with 2 and name the nearest word") {
  const auto refused = [](const TrainRun& run) {
    CHECK(run.result.code == 2);
    CHECK_FALSE(run.arguments.has_value());
    CHECK(run.result.out.empty());
    return run.result.err;
  };
  CHECK(refused(train({})) ==
        "castor train: CONFIG is missing: the config: a .yaml, .yml or .json file; see castor train --help\n");
  CHECK(has(refused(train({"--wrok-dir", "x", "gpt.yaml"})), "unknown option --wrok-dir; did you mean --work-dir?"));
  CHECK(has(refused(train({"gpt.yaml", "--resmue=x"})), "unknown option --resmue; did you mean --resume?"));
  CHECK(has(refused(train({"gpt.yaml", "other.yaml"})), "unexpected argument \"other.yaml\""));
  CHECK(has(refused(train({"gpt.yaml", "--launcher", "slrum"})), "did you mean \"slurm\"?"));
  CHECK(has(refused(train({"gpt.yaml", "--work-dir"})), "--work-dir"));
  CHECK(has(refused(train({"gpt.yaml", "--cfg-options"})), "--cfg-options"));
  CHECK(has(refused(train({"--resume", "gpt.yaml"})), "CONFIG is missing"));
  const std::vector<Subcommand> commands = {throwing([] {}), check_command()};
  CHECK(has(run({"chekc"}, commands).err, "unknown command chekc; did you mean \"check\"?"));
  CHECK(run({"chekc"}, commands).code == 2);
  CHECK(has(run({"--verbose"}, commands).err, "unknown option --verbose"));
  CHECK(run({}, commands).code == 2);
  CHECK(has(run({}, commands).err, "usage"));
}

TEST_CASE("help lists the commands and explains each") {
  const std::vector<Subcommand> commands = {
      train_command([](const TrainArguments&, Registry&, std::ostream&) { return 0; }), check_command()};
  for (const char* word : {"--help", "-h", "help"}) {
    const Result help = run({word}, commands);
    CHECK(help.code == 0);
    CHECK(has(help.out, "train  train the model of a config"));
    CHECK(has(help.out, "check"));
    CHECK(help.err.empty());
  }
  const Result train_help = run({"train", "--help"}, commands);
  CHECK(train_help.code == 0);
  for (const char* part : {"castor train", "CONFIG", "--work-dir DIR", "--resume", "--launcher",
                           "none|pytorch|slurm|mpi", "--cfg-options KEY=VALUE", "folder of logs"}) {
    CAPTURE(train_help.out);
    CHECK_MESSAGE(has(train_help.out, part), part);
  }
  const Result help_train = run({"help", "train"}, commands);
  CHECK(help_train.code == 0);
  CHECK(help_train.out == train_help.out);
  CHECK(has(run({"help", "trian"}, commands).err, "did you mean \"train\"?"));
  CHECK(has(run({"--version"}, commands).out, "castor 0."));
}

TEST_CASE("each error has its exit code and one message on standard error") {
  const auto act = [](const std::function<void()>& action) { return run({"act"}, {throwing(action)}); };
  Result result = act([] { throw ConfigError("lr: must be > 0", "lr"); });
  CHECK(result.code == 2);
  CHECK(result.err == "castor act: lr: must be > 0\n");
  result = act([] { throw ShapeError("matmul: inner sizes differ"); });
  CHECK(result.code == 1);
  CHECK(result.err == "castor act: matmul: inner sizes differ\n");
  result = act([] { throw InternalError("broken"); });
  CHECK(result.code == 1);
  CHECK(has(result.err, "please report"));
  result = act([] { throw std::bad_alloc(); });
  CHECK(result.code == 1);
  CHECK(has(result.err, "out of host memory"));
  result = act([] { throw std::logic_error("odd"); });
  CHECK(result.code == 1);
  CHECK(has(result.err, "odd"));
}

TEST_CASE("a stopped command exits with 128 and the signal") {
  CHECK(run({"act"}, {throwing([] { request_stop(SIGINT); })}).code == 130);
  // What the stop broke off ends in an error, too.
  CHECK(run({"act"}, {throwing([] { throw IoError("waited", "p", EINTR); })}).code == 130);
  CHECK(run({"act"}, {throwing([] { throw Stopped("stopped"); })}).code == 130);
  // Every other error is as bad as without a stop.
  CHECK(run({"act"}, {throwing([] { throw IoError("gone", "p", EIO); })}).code == kExitRunError);
  CHECK(run({"act"}, {throwing([] { throw InternalError("broken"); })}).code == kExitRunError);
  CHECK(run({"act"}, {throwing([] { throw ConfigError("lr: must be > 0", "lr"); })}).code == kExitUsage);
  clear_stop_request();
  CHECK(run({"act"}, {throwing([] { request_stop(SIGTERM); })}).code == 143);
  clear_stop_request();
  CHECK(run({"act"}, {throwing([] {})}).code == 0);
}

TEST_CASE("arguments of train are laid over the config, each with its own mark") {
  const test::TempDir folder;
  const std::string path = (folder.path() / "tiny.yaml").string();
  write_file_atomically(path, "lr: 1\nload_from: old\n");
  TrainArguments arguments;
  arguments.config = path;
  CHECK(load_train_config(arguments).find("work_dir")->as_string() == "work_dirs/tiny");
  CHECK(load_train_config(arguments).find("resume") == nullptr);
  arguments.cfg_options = {"lr=2", "work_dir=a"};
  CHECK(load_train_config(arguments).find("work_dir")->as_string() == "a");
  arguments.work_dir = "b";
  arguments.resume = "auto";
  arguments.launcher = "slurm";
  ConfigNode config = load_train_config(arguments);
  CHECK(config.find("lr")->as_int() == 2);
  CHECK(config.find("work_dir")->as_string() == "b");
  CHECK(config.find("work_dir")->mark().text() == "--work-dir");
  CHECK(config.find("resume")->as_bool());
  CHECK(config.find("load_from")->is_null());
  CHECK(config.find("launcher")->as_string() == "slurm");
  arguments.resume = "other/iter_3";
  config = load_train_config(arguments);
  CHECK(config.find("load_from")->as_string() == "other/iter_3");
}

TEST_CASE("generate and plan refuse values out of range before they start") {
  std::optional<GenerateArguments> seen;
  const std::vector<Subcommand> commands = {
      generate_command([&](const GenerateArguments& arguments, Registry&, std::ostream&) {
        seen = arguments;
        return 0;
      }),
      plan_command([](const PlanArguments& arguments, Registry&, std::ostream& out) {
        out << (arguments.json ? "json" : "text");
        return 0;
      })};
  const Result good = run({"generate", "gpt.yaml", "--prompt", "In the beginning", "--temperature", "0", "--top-k", "5",
                           "--max-new-tokens", "10"},
                          commands);
  INFO(good.err);
  REQUIRE(seen.has_value());
  CHECK(seen->prompt == "In the beginning");
  CHECK(seen->temperature == 0);
  CHECK(seen->top_k == 5);
  CHECK(seen->max_new_tokens == 10);
  CHECK_FALSE(seen->seed.has_value());
  for (const std::vector<std::string>& bad : std::vector<std::vector<std::string>>{{"--temperature", "-1"},
                                                                                   {"--temperature", "nan"},
                                                                                   {"--temperature", "warm"},
                                                                                   {"--top-k", "0"},
                                                                                   {"--max-new-tokens", "0"},
                                                                                   {"--seed", "x"}}) {
    std::vector<std::string> words = {"generate", "gpt.yaml"};
    words.insert(words.end(), bad.begin(), bad.end());
    const Result result = run(words, commands);
    CAPTURE(bad[0]);
    CHECK(result.code == 2);
    CHECK(has(result.err, bad[0]));
  }
  CHECK(has(run({"generate", "gpt.yaml", "--temperature", "warm"}, commands).err,
            "--temperature: expected a number, got \"warm\"; see castor generate --help"));
  CHECK(has(run({"generate", "gpt.yaml", "--top-k", "1.5"}, commands).err,
            "--top-k: expected a whole number, got \"1.5\""));
  CHECK(run({"plan", "gpt.yaml", "--json"}, commands).out == "json");
  CHECK(run({"plan", "gpt.yaml"}, commands).out == "text");
}

TEST_CASE("test takes a config and weights, which become the config's load_from") {
  std::optional<TestArguments> seen;
  const std::vector<Subcommand> commands = {test_command([&](const TestArguments& arguments, Registry&, std::ostream&) {
    seen = arguments;
    return 0;
  })};
  const Result good = run({"test", "a.yaml", "--load-from", "work/epoch_3", "--cfg-options", "x=1"}, commands);
  INFO(good.err);
  REQUIRE(seen.has_value());
  CHECK(seen->config == "a.yaml");
  CHECK(seen->load_from == "work/epoch_3");
  CHECK(seen->cfg_options == std::vector<std::string>{"x=1"});
  CHECK(has(run({"test"}, commands).err, "CONFIG is missing"));
  CHECK(has(run({"test", "a.yaml", "--load-form", "x"}, commands).err, "did you mean --load-from?"));
  const test::TempDir folder;
  seen->config = (folder.path() / "a.yaml").string();
  write_file_atomically(seen->config, "x: 0\nload_from: old\n");
  CHECK(load_test_config(*seen).find("load_from")->as_string() == "work/epoch_3");
  seen->load_from.reset();
  CHECK(load_test_config(*seen).find("load_from")->as_string() == "old");
  CHECK(load_test_config(*seen).find("x")->as_int() == 1);
}

TEST_CASE("check lists types, explains them, and reports every mistake of a config") {
  const std::vector<Subcommand> commands = {check_command()};
  CHECK(has(run({"check", "--types"}, commands).out, "dataset\n  none"));
  CHECK(has(run({"check", "--help-config"}, commands).out, "train_dataloader.batch_size"));
  CHECK(has(run({"check", "--help-type", "Nothing"}, commands).err, "unknown type \"Nothing\""));
  CHECK(run({"check"}, commands).code == 2);
  CHECK(has(run({"check", "--types", "--json"}, commands).err, "go with CONFIG"));
  const test::TempDir folder;
  const std::string path = (folder.path() / "bad.yaml").string();
  write_file_atomically(path, "modle: {type: GPT}\nlog_level: LOUD\n");
  const Result result = run({"check", path}, commands);
  CHECK(result.code == 2);
  CHECK(result.out.empty());
  CHECK(has(result.err, "modle (" + path + ":1): unknown key; did you mean \"model\"?"));
  CHECK(has(result.err, "log_level (" + path + ":2): must be one of"));
  CHECK(has(result.err, "model (" + path + ":1): missing"));
  CHECK(run({"check", path + ".none.yaml"}, commands).code == 2);
}

}  // namespace
