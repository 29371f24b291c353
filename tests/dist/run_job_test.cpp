// What ranks see and what becomes of what they print, with shells as ranks: the environment, restarts, codes, marked
// lines and logs. Deaths in the middle of collectives are in fault_test.cpp.
#include "dist/run_job.h"

#include <csignal>
#include <filesystem>
#include <fstream>
#include <functional>
#include <set>
#include <sstream>
#include <thread>

#include <doctest/doctest.h>
#include <fcntl.h>
#include <unistd.h>

#include "core/base/file.h"
#include "core/base/interrupt.h"
#include "core/base/log.h"
#include "tests/support/log_capture.h"
#include "tests/support/temp_dir.h"

namespace {

using namespace castor;
using namespace castor::dist;
using namespace std::chrono_literals;

RunJobOptions shells(const std::string& script, int processes) {
  RunJobOptions options;
  options.command = {"sh", "-c", script};
  options.processes = processes;
  options.own_end = 200ms;
  options.term_end = 1s;
  return options;
}

/// run_job without log lines.
int run_quietly(const RunJobOptions& options) {
  LogOptions quiet;
  quiet.use_console = false;
  Logger log(quiet);
  const LogScope scope(log);
  return run_job(options);
}

std::string read(const std::filesystem::path& path) { return read_text_file(path.string()); }

/// The log of a rank of a job that keeps its logs in `folder`.
std::string log_of(const std::filesystem::path& folder, int rank, const char* name = "stdout.log", int attempt = 0) {
  return read(folder / "castor" / cat("attempt_", attempt) / cat(rank) / name);
}

RunJobOptions logged(const std::filesystem::path& folder, const std::string& script, int processes) {
  RunJobOptions options = shells(script, processes);
  options.output = RunOutput::kFiles;
  options.log_folder = folder.string();
  return options;
}

template <class F>
void comes_within_20_s(F&& came) {
  const auto deadline = std::chrono::steady_clock::now() + 20s;
  while (std::chrono::steady_clock::now() < deadline && !came()) std::this_thread::sleep_for(5ms);
}

/// Runs a job that keeps logs, and `stop` on another thread once each rank has printed something.
int run_and_stop(const RunJobOptions& options, const std::function<void()>& stop) {
  // The launcher takes the signal with sigtimedwait once it has blocked it; before, it would end this program.
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  std::thread sender([&] {
    comes_within_20_s([&] {
      for (int rank = 0; rank < options.processes; ++rank) {
        const std::string path = cat(options.log_folder, "/castor/attempt_0/", rank, "/stdout.log");
        if (!exists(path) || file_size(path) == 0) return false;
      }
      return true;
    });
    stop();
  });
  const int code = run_job(options);
  sender.join();
  pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
  return code;
}

/// Sends one of this process's descriptors to a file while it lives.
class Redirected {
 public:
  Redirected(int number, const std::string& path) : number_(number), saved_(dup(number)) {
    const int file = open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    dup2(file, number_);
    close(file);
  }
  Redirected(const Redirected&) = delete;
  Redirected& operator=(const Redirected&) = delete;
  ~Redirected() {
    dup2(saved_, number_);
    close(saved_);
  }

 private:
  int number_;
  int saved_;
};

/// True if a process is gone, or dead and not yet waited for.
bool is_dead(pid_t id) {
  const std::string stat = cat("/proc/", id, "/stat");
  std::ifstream file(stat);
  std::string line;
  if (!std::getline(file, line)) return true;
  return line.find(") Z") != std::string::npos || line.find(") X") != std::string::npos;
}

std::multiset<std::string> lines_of(const std::string& text) {
  std::multiset<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.insert(line);
  return lines;
}

}  // namespace

TEST_CASE("every rank finds torchrun's variables in its environment") {
  const test::TempDir folder;
  RunJobOptions options = logged(folder.path(),
                                 "echo $RANK $LOCAL_RANK $GROUP_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $GROUP_WORLD_SIZE "
                                 "$MASTER_ADDR $TORCHELASTIC_RESTART_COUNT $TORCHELASTIC_MAX_RESTARTS "
                                 "$TORCHELASTIC_RUN_ID; test $MASTER_PORT -gt 0 && test ${#CASTOR_JOB_SECRET} -ge 16",
                                 3);
  options.max_restarts = 2;
  CHECK(run_quietly(options) == 0);
  CHECK(log_of(folder.path(), 0) == "0 0 0 3 3 1 127.0.0.1 0 2 castor\n");
  CHECK(log_of(folder.path(), 2) == "2 2 0 3 3 1 127.0.0.1 0 2 castor\n");
}

TEST_CASE("the second of two machines has the higher ranks") {
  const test::TempDir folder;
  RunJobOptions options = logged(folder.path(), "echo $RANK $LOCAL_RANK $GROUP_RANK $WORLD_SIZE $MASTER_PORT", 2);
  options.nodes = 2;
  options.node_rank = 1;
  options.store_port = 4711;
  options.secret = "0123456789abcdef";
  CHECK(run_quietly(options) == 0);
  CHECK(log_of(folder.path(), 2) == "2 0 1 4 4711\n");
  CHECK(log_of(folder.path(), 3) == "3 1 1 4 4711\n");
}

TEST_CASE("a restarted job counts its attempts, and each has its own logs") {
  const test::TempDir folder;
  RunJobOptions options =
      logged(folder.path(), "echo attempt $TORCHELASTIC_RESTART_COUNT; exit $((2 - TORCHELASTIC_RESTART_COUNT))", 2);
  options.max_restarts = 5;
  CHECK(run_quietly(options) == 0);
  CHECK(log_of(folder.path(), 1, "stdout.log", 0) == "attempt 0\n");
  CHECK(log_of(folder.path(), 1, "stdout.log", 2) == "attempt 2\n");
  options.max_restarts = 1;
  CHECK(run_quietly(options) == 1);
}

TEST_CASE("the first rank that fails gives the code and takes the others down with all they started") {
  const test::TempDir folder;
  const std::string notes = folder.path().string();
  // The others outlive SIGTERM for a moment and leave a child of their own, whose number they note.
  const RunJobOptions options = shells(cat("test $RANK = 1 && { while ! test -e ", notes,
                                           "/2; do sleep 0.01; done; exit 9; }; "
                                           "trap 'exit 5' TERM; sleep 1000 & echo $! > ",
                                           notes, "/$RANK.new; mv ", notes, "/$RANK.new ", notes, "/$RANK; wait"),
                                       3);
  CHECK(run_quietly(options) == 9);
  const auto child = static_cast<pid_t>(std::stol(read(folder.path() / "2")));
  // Whoever adopted it may take a while to bury it.
  CHECK(is_dead(child));
}

TEST_CASE("a stop goes to all ranks, which may take longer to end in their own way than after a failure") {
  const test::TempDir folder;
  const test::LogCapture log;
  RunJobOptions options = logged(
      folder.path(), "trap 'sleep 1; echo saved; exit 143' TERM; echo ready; while true; do sleep 0.01; done", 2);
  options.term_end = 200ms;
  CHECK(run_and_stop(options, [] { kill(getpid(), SIGTERM); }) == 128 + SIGTERM);
  CHECK(log_of(folder.path(), 0) == "ready\nsaved\n");
  CHECK(log_of(folder.path(), 1) == "ready\nsaved\n");
  CHECK(log.text().find("signal 15 goes to all ranks; waiting for rank 0, 1, at most 600 s") != std::string::npos);
  CHECK(log.text().find("ERROR") == std::string::npos);
}

TEST_CASE("a second signal reaches the ranks, and those that it does not end are killed soon") {
  const test::TempDir folder;
  const test::LogCapture log;
  RunJobOptions options = logged(folder.path(),
                                 "n=0; trap 'n=$((n+1)); echo told $n; test $RANK$n = 02 && exit 5' TERM; echo ready; "
                                 "while true; do sleep 0.01; done",
                                 2);
  const auto began = std::chrono::steady_clock::now();
  const int code = run_and_stop(options, [&] {
    kill(getpid(), SIGTERM);
    comes_within_20_s([&] {
      return log_of(folder.path(), 0).ends_with("told 1\n") && log_of(folder.path(), 1).ends_with("told 1\n");
    });
    kill(getpid(), SIGTERM);  // within a moment: the same stop
    std::this_thread::sleep_for(2 * kOneStop + 200ms);
    kill(getpid(), SIGTERM);
  });
  CHECK(code == 128 + SIGTERM);
  CHECK(log_of(folder.path(), 0) == "ready\ntold 1\ntold 2\n");
  CHECK(log_of(folder.path(), 1) == "ready\ntold 1\ntold 2\n");
  CHECK(log.text().find("rank 1 was killed by signal 9") != std::string::npos);
  CHECK(std::chrono::steady_clock::now() - began < 60s);
}

TEST_CASE("ranks that take longer to stop than they may are killed, and an error names them") {
  const test::TempDir folder;
  const test::LogCapture log;
  RunJobOptions options =
      logged(folder.path(), "trap 'test $RANK = 1 || exit 143' TERM; echo ready; while true; do sleep 0.01; done", 2);
  options.stop_timeout = 1s;
  CHECK(run_and_stop(options, [] { kill(getpid(), SIGTERM); }) == 128 + SIGTERM);
  CHECK(log.text().find("ERROR - rank 1 did not end within 1 s after signal 15 and is killed") != std::string::npos);
  CHECK(log.text().find("--stop-timeout") != std::string::npos);
}

TEST_CASE("a rank that fails while a stop is under way takes the others down as ever") {
  const test::TempDir folder;
  const test::LogCapture log;
  const RunJobOptions options =
      logged(folder.path(), "trap 'test $RANK = 0 || exit 9' TERM; echo ready; while true; do sleep 0.01; done", 2);
  const auto began = std::chrono::steady_clock::now();
  CHECK(run_and_stop(options, [] { kill(getpid(), SIGTERM); }) == 128 + SIGTERM);
  CHECK(log.text().find("ERROR - rank 1 exited with code 9; the other ranks end too") != std::string::npos);
  CHECK(log.text().find("rank 0 was killed by signal 9") != std::string::npos);
  CHECK(std::chrono::steady_clock::now() - began < 60s);
}

TEST_CASE("lines of ranks above 0 are marked, whole, and on the stream that they were printed to") {
  const test::TempDir folder;
  RunJobOptions options = shells(
      "echo one $RANK; echo two >&2; i=0; while test $i -lt 200; do echo line $i; i=$((i+1)); done; test $RANK = 0 || "
      "printf end",
      3);
  options.output = RunOutput::kMarked;
  const std::string out = (folder.path() / "out").string();
  const std::string err = (folder.path() / "err").string();
  int code = -1;
  {
    const Redirected first(STDOUT_FILENO, out);
    const Redirected second(STDERR_FILENO, err);
    code = run_quietly(options);
  }
  CHECK(code == 0);
  const std::multiset<std::string> lines = lines_of(read_text_file(out));
  CHECK(lines.contains("one 0"));
  CHECK(lines.contains("[rank1]: one 1"));
  CHECK(lines.contains("[rank2]: one 2"));
  for (int i = 0; i < 200; ++i) {
    CHECK(lines.contains(cat("[rank1]: line ", i)));
    CHECK(lines.contains(cat("[rank2]: line ", i)));
  }
  CHECK(lines.contains("[rank1]: end"));
  CHECK(lines_of(read_text_file(err)) == std::multiset<std::string>{"two", "[rank1]: two", "[rank2]: two"});
}

TEST_CASE("a rank's last words arrive, and a process that it left behind holds nobody up") {
  const test::TempDir folder;
  // setsid leaves the rank's process group, so it outlives the rank and keeps its pipes.
  const RunJobOptions options =
      logged(folder.path(),
             cat("setsid sh -c 'echo $$ > ", folder.path().string(), "/left; exec sleep 1000' & while ! test -s ",
                 folder.path().string(), "/left; do sleep 0.01; done; echo out; echo err >&2; kill -9 $$"),
             1);
  CHECK(run_quietly(options) == 128 + SIGKILL);
  CHECK(log_of(folder.path(), 0) == "out\n");
  CHECK(log_of(folder.path(), 0, "stderr.log") == "err\n");
  kill(static_cast<pid_t>(std::stol(read(folder.path() / "left"))), SIGKILL);
}

TEST_CASE("a log folder that cannot be made is an error that names it") {
  const test::TempDir folder;
  RunJobOptions options = logged(folder.path() / "file", "true", 1);
  write_file_atomically(options.log_folder, "in the way");
  CHECK_THROWS_WITH_AS(run_quietly(options), doctest::Contains("file"), IoError);
}
