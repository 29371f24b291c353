// Ranks that mpirun starts and that talk over MPI: the cases of every other transport, and what a build without MPI
// says. This program starts itself again under mpirun.
//
// Delicate: a job that failed ends without MPI's farewell, on which mpirun ends with an error of its own; so ranks
// write down that they are through, and the test looks for that.
#include <cstdlib>
#include <filesystem>

#include <doctest/doctest.h>
#include <fcntl.h>
#include <unistd.h>

#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "dist/job.h"
#include "dist/socket.h"
#include "tests/dist/collective_cases.h"
#include "tests/support/temp_dir.h"

namespace {

using namespace castor;
using namespace castor::dist;

std::string variable(const char* name) { return process_environment()(name).value_or(""); }

void note(const char* what, int rank, const std::string& text) {
  write_file_atomically(join_path(variable("CASTOR_TEST_FOLDER"), cat(what, "_", rank)), text);
}

/// Runs a body under mpirun; its notes are in `folder` then. Returns mpirun's exit code.
int run_under_mpi(const std::string& folder, int ranks, const std::string& body) {
  const std::string program = std::filesystem::read_symlink("/proc/self/exe").string();
  const Listener listener("127.0.0.1", 0);
  return std::system(cat("CASTOR_TEST_FOLDER=", folder, " MASTER_PORT=", listener.port(),
                         " mpirun --allow-run-as-root --oversubscribe --bind-to none -n ", ranks, " ", program,
                         " --no-skip=true --minimal=true '--test-case=", body, "' >", folder, "/output 2>&1 </dev/null")
                         .c_str());
}

bool has_mpirun() { return std::system("command -v mpirun >/dev/null 2>&1") == 0; }

/// A rank's part: meets the others over MPI and does something.
void with_job(const std::function<void(Job&)>& fn) {
  if (variable("CASTOR_TEST_FOLDER").empty()) return;
  const RankInfo info = rank_info_from(process_environment());
  JobOptions options;
  options.transport = Transport::kMpi;
  options.comm.timeout = std::chrono::seconds(60);
  LogOptions quiet;
  quiet.use_console = false;
  Logger log(quiet);
  const LogScope scope(log);
  try {
    Job job(info, options);
    CHECK(job.transport_name() == "mpi");
    fn(job);
    note("through", info.rank, "");
  } catch (const ConfigError& error) {
    note("refused", info.rank, error.what());
  }
}

}  // namespace

TEST_CASE("rank body: every case over mpi" * doctest::skip()) {
  with_job([](Job& job) {
    test::check_collectives(job.world());
    test::check_started_work(job.world());
    test::check_split(job.world());
  });
}

TEST_CASE("rank body: a disagreement over mpi" * doctest::skip()) {
  with_job([](Job& job) { test::check_disagreement(job.world()); });
}

TEST_CASE("ranks that talk over MPI pass every case, or a build without MPI says so") {
  if (!has_mpirun()) {
    MESSAGE("skipped: there is no mpirun here (Debian: openmpi-bin)");
    return;
  }
  for (const int ranks : {2, 3}) {
    const test::TempDir folder;
    const std::string at = folder.path().string();
    const int code = run_under_mpi(at, ranks, "rank body: every case over mpi");
    const std::string output = read_text_file(join_path(at, "output"));
    CAPTURE(output);
    if (exists(join_path(at, "refused_0"))) {
      CHECK(read_text_file(join_path(at, "refused_0")).find("build with -Dmpi=enabled") != std::string::npos);
      MESSAGE("skipped: this build has no MPI");
      return;
    }
    CHECK(code == 0);
    for (int rank = 0; rank < ranks; ++rank) CHECK(exists(join_path(at, cat("through_", rank))));
  }
  const test::TempDir folder;
  const std::string at = folder.path().string();
  run_under_mpi(at, 3, "rank body: a disagreement over mpi");
  const std::string output = read_text_file(join_path(at, "output"));
  CAPTURE(output);
  CHECK(output.find("is NOT correct") == std::string::npos);
  for (int rank = 0; rank < 3; ++rank) CHECK(exists(join_path(at, cat("through_", rank))));
}
