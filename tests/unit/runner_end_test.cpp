// How a run ends that is stopped, or that cannot write.
#include <cerrno>
#include <csignal>
#include <set>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <sys/resource.h>

#include "core/base/error.h"
#include "core/base/interrupt.h"
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

}  // namespace
}  // namespace castor::strategy
