// Deaths of real processes. This program starts itself as ranks of a job (run_job), each running one of the skipped
// cases below as its body, and kills or stops one of them; the live ranks write down which error they met and when.
//
// Delicate: bodies talk to the test through files in a folder named by the environment, written whole by rename.
#include <algorithm>
#include <atomic>
#include <csignal>
#include <filesystem>
#include <random>
#include <thread>

#include <doctest/doctest.h>
#include <fcntl.h>
#include <unistd.h>

#include "core/base/file.h"
#include "core/base/log.h"
#include "dist/job.h"
#include "dist/processes.h"
#include "dist/run_job.h"
#include "dist/store.h"
#include "tests/support/long_run.h"
#include "tests/support/rank_processes.h"
#include "tests/support/temp_dir.h"

namespace {

using namespace castor;
using namespace castor::dist;
using namespace std::chrono_literals;

constexpr int kOwnError = 3;  // exit code of a rank that met CommError

std::string folder() { return process_environment()("CASTOR_TEST_FOLDER").value_or(""); }

void write_note(const std::string& name, const std::string& text) {
  write_file_atomically(join_path(folder(), name), text);
}

JobOptions options_from_environment() {
  JobOptions options;
  options.comm.timeout = 30s;
  options.record_folder = folder();
  if (process_environment()("CASTOR_TEST_TCP")) options.transport = Transport::kTcp;
  return options;
}

/// Milliseconds on the machine's steady clock, alike in all processes.
long long now_ms() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now().time_since_epoch()).count();
}

/// Drops what this process prints from now on: its last line would be taken for the test program's.
void mute() {
  const int nowhere = open("/dev/null", O_WRONLY | O_CLOEXEC);
  dup2(nowhere, STDOUT_FILENO);
}

/// A rank that reduces until a peer dies; leaves what it met in error_<rank>.
void train_until_death() {
  const RankInfo info = rank_info_from(process_environment());
  write_note(cat("pid_", info.rank), cat(getpid()));
  try {
    Job job(info, options_from_environment());
    const Tensor x = Tensor::zeros({100'000}, DType::f32);
    const auto group = job.world().split(job.world().rank() % 2, 0);
    for (int step = 0;; ++step) {
      job.world().all_reduce(x, "blocks.3.w");
      if (group->world_size() > 1) group->all_reduce(x, "blocks.4.w");
      if (step == 20) write_note(cat("ready_", info.rank), "");
    }
  } catch (const CommError& error) {
    write_note(cat("error_", info.rank), cat(now_ms(), " ", error.rank, " ", error.what()));
    _exit(kOwnError);
  }
}

/// Ranks whose second one kills itself in the first attempt, and which end well in the next.
void die_once() {
  const RankInfo info = rank_info_from(process_environment());
  try {
    Job job(info, options_from_environment());
    const Tensor x = Tensor::from_values(std::vector<float>{1.0f}, {1});
    for (int step = 0; step < 5; ++step) {
      job.world().all_reduce(x, "x");
      if (step == 2 && info.rank == 1 && info.restart_count == 0) raise(SIGKILL);
    }
    if (info.rank == 0) write_note("result", cat(x.item(), " after ", info.restart_count));
  } catch (const CommError&) {
    _exit(kOwnError);
  }
}

struct Variable {
  Variable(const char* variable, const std::string& value) : name(variable) { setenv(name, value.c_str(), 1); }
  ~Variable() { unsetenv(name); }
  const char* name;
};

bool within(std::chrono::milliseconds limit, const std::function<bool()>& came) {
  const auto deadline = Clock::now() + limit;
  while (!came()) {
    if (Clock::now() > deadline) return false;
    std::this_thread::sleep_for(10ms);
  }
  return true;
}

pid_t id_of(const std::filesystem::path& folder, int rank) {
  return static_cast<pid_t>(std::stol(read_text_file((folder / cat("pid_", rank)).string())));
}

bool lives(pid_t id) { return kill(id, 0) == 0; }

/// Starts three ranks, sends `signal` to one of them `moment` after all are at work, and checks what the others say.
void hurt_one_rank(int signal, bool tcp, int victim = 1, std::chrono::microseconds moment = {}) {
  const test::TempDir temporary;
  const std::filesystem::path at = temporary.path();
  const Variable where("CASTOR_TEST_FOLDER", at.string());
  std::optional<Variable> transport;
  if (tcp) transport.emplace("CASTOR_TEST_TCP", "1");
  LogOptions quiet;
  quiet.use_console = false;
  Logger log(quiet);
  std::atomic<int> code{-1};
  std::thread launcher([&] {
    const LogScope scope(log);
    RunJobOptions options = test::ranks_of("rank body: reduce until a peer dies", 3);
    options.own_end = 2s;
    options.term_end = 1s;
    code = run_job(options);
  });
  std::vector<pid_t> ids;
  const bool ready = within(30s, [&] {
    return exists((at / "ready_0").string()) && exists((at / "ready_1").string()) && exists((at / "ready_2").string());
  });
  CHECK(ready);
  for (int rank = 0; rank < 3 && ready; ++rank) ids.push_back(id_of(at, rank));
  std::this_thread::sleep_for(moment);
  const long long hurt_ms = now_ms();
  if (ready) kill(ids[static_cast<std::size_t>(victim)], signal);
  const std::vector<int> others{(victim + 1) % 3, (victim + 2) % 3};
  const bool told = within(20s, [&] {
    return std::ranges::all_of(others, [&](int rank) { return exists((at / cat("error_", rank)).string()); });
  });
  CHECK(told);
  if (!told) {
    for (const pid_t id : ids) kill(id, SIGKILL);
  }
  launcher.join();
  if (!told) return;
  for (const int rank : others) {
    const std::string note = read_text_file((at / cat("error_", rank)).string());
    CAPTURE(note);
    const long long after_ms = std::stoll(note) - hurt_ms;
    CAPTURE(after_ms);
    CHECK(after_ms < 10'000);  // promised: 5 s; doubled for machines that are busy
    CHECK(note.find(cat(" ", victim, " rank ", victim, " ")) != std::string::npos);
    CHECK(note.find("all_reduce") != std::string::npos);
    CHECK((note.find("'blocks.3.w'") != std::string::npos || note.find("'blocks.4.w'") != std::string::npos));
    CHECK(exists((at / cat("flight_rank_", rank, ".json")).string()));
  }
  CHECK(code != 0);
  for (const pid_t id : ids) CHECK_FALSE(lives(id));
}

}  // namespace

TEST_CASE("rank body: reduce until a peer dies" * doctest::skip()) {
  if (folder().empty()) return;
  mute();
  train_until_death();
}

TEST_CASE("rank body: die once" * doctest::skip()) {
  if (folder().empty()) return;
  mute();
  die_once();
}

TEST_CASE("launcher body: run ranks for ever" * doctest::skip()) {
  if (folder().empty()) return;
  mute();
  run_job(test::ranks_of("rank body: reduce until a peer dies", 2));
}

TEST_CASE("a rank killed at any moment is named by every live rank, and none is left over") {
  std::mt19937 random(7);
  const int times = test::long_run() ? 50 : 5;
  for (int i = 0; i < times; ++i) {
    const std::chrono::microseconds moment(random() % 50'000);
    const int victim = static_cast<int>(random() % 3);
    CAPTURE(i);
    CAPTURE(victim);
    CAPTURE(moment.count());
    hurt_one_rank(SIGKILL, i % 2 == 1, victim, moment);
  }
}

TEST_CASE("a stopped rank is named by every live rank, and none is left over") {
  hurt_one_rank(SIGSTOP, false);
  if (test::long_run()) hurt_one_rank(SIGSTOP, true);
}

TEST_CASE("a job that fails once is started again and ends well") {
  const test::TempDir temporary;
  const Variable where("CASTOR_TEST_FOLDER", temporary.path().string());
  LogOptions quiet;
  quiet.use_console = false;
  Logger log(quiet);
  const LogScope scope(log);
  RunJobOptions options = test::ranks_of("rank body: die once", 3);
  options.max_restarts = 1;
  CHECK(run_job(options) == 0);
  CHECK(read_text_file((temporary.path() / "result").string()) == "243 after 1");
}

TEST_CASE("a job without restarts left ends with the code of the first failure") {
  const test::TempDir temporary;
  const Variable where("CASTOR_TEST_FOLDER", temporary.path().string());
  LogOptions quiet;
  quiet.use_console = false;
  Logger log(quiet);
  const LogScope scope(log);
  CHECK(run_job(test::ranks_of("rank body: die once", 2)) == 128 + SIGKILL);
}

TEST_CASE("a killed launcher takes its ranks with it; a terminated one ends them and says so") {
  for (const int signal : {SIGKILL, SIGTERM}) {
    const test::TempDir temporary;
    const std::filesystem::path at = temporary.path();
    const Variable where("CASTOR_TEST_FOLDER", at.string());
    std::vector<std::string> environment;
    for (char** entry = environ; *entry != nullptr; ++entry) environment.emplace_back(*entry);
    Processes launcher;
    launcher.start(test::ranks_of("launcher body: run ranks for ever", 1).command, environment);
    REQUIRE(within(30s, [&] { return exists((at / "ready_0").string()) && exists((at / "ready_1").string()); }));
    kill(launcher.id(0), signal);
    std::optional<ProcessEnd> end;
    CHECK(within(20s, [&] { return (end = launcher.poll()).has_value(); }));
    CHECK(within(5s, [&] { return !lives(id_of(at, 0)) && !lives(id_of(at, 1)); }));
  }
}

TEST_CASE("a program that does not exist and options that make no sense are refused") {
  RunJobOptions options;
  options.command = {"/no/such/program"};
  CHECK_THROWS_AS(run_job(options), IoError);
  options.processes = 0;
  CHECK_THROWS_AS(run_job(options), ConfigError);
  options.processes = 1;
  options.nodes = 2;
  CHECK_THROWS_AS(run_job(options), ConfigError);
  options.command = {"true"};
  options.nodes = 1;
  CHECK(run_job(options) == 0);
  options.command = {"sh", "-c", "test $WORLD_SIZE = 3 && test $RANK = $LOCAL_RANK && exit 7"};
  options.processes = 3;
  LogOptions quiet;
  quiet.use_console = false;
  Logger log(quiet);
  const LogScope scope(log);
  CHECK(run_job(options) == 7);
}
