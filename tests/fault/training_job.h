// A small training run of several real processes under `castor run`'s engine, for tests that hurt it: this program
// starts itself as a launcher, which starts it again as ranks.
//
// Delicate: processes are found by a variable in their environment that only this job has, so that orphans are seen
// whatever they do; ranks talk to the test through files in the job's folder.
#pragma once

#include <chrono>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include <sys/types.h>

#include "dist/processes.h"
#include "tests/support/temp_dir.h"

namespace castor::test {

/// What starts the ranks: the engine of `castor run`, this test by the variables of torchrun or of slurm, or mpirun.
enum class Starter : std::uint8_t { kCastorRun, kTorchrun, kSlurm, kMpirun };

/// What a job trains and under which launcher options.
struct TrainingJobOptions {
  Starter starter = Starter::kCastorRun;
  int ranks = 2;  ///< on each machine
  int least_ranks = 0;
  int nodes = 1;  ///< launchers that play machines, all on this one
  int least_nodes = 0;
  std::string store_host = "127.0.0.1";
  std::vector<std::string> node_prefixes;  ///< what stands before each launcher's command, e.g. "ip netns exec a"
  int max_restarts = 0;
  int timeout_s = 30;                             ///< env_cfg.dist_cfg.timeout
  std::string plugin = "{type: TorchDDPPlugin}";  ///< strategy.plugin
  std::string misdeed;                            ///< what rank 1 does wrong; empty: nothing. See training_job.cpp
  std::vector<std::string> overrides;             ///< of the config
  std::string work_dir;                           ///< empty: a folder in the job's own
};

/// One rank's error as it wrote it down before it ended.
struct RankError {
  long long at_ms = 0;  ///< on the machine's steady clock
  int named = -1;       ///< CommError::rank
  std::string text;
};

class TrainingJob {
 public:
  /// Starts the launchers.
  explicit TrainingJob(const TrainingJobOptions& options);
  TrainingJob(const TrainingJob&) = delete;
  TrainingJob& operator=(const TrainingJob&) = delete;

  const std::string& work_dir() const { return work_dir_; }
  /// Where ranks meet, unless castor run chose the port.
  std::uint16_t port() const { return port_; }
  std::filesystem::path folder() const { return folder_.path(); }
  /// The exit code of the first machine's launcher, if all launchers end within the limit.
  std::optional<int> wait(std::chrono::milliseconds limit);
  pid_t launcher_of(int node) const { return launchers_.id(static_cast<std::size_t>(node)); }
  /// The process of a rank of any attempt; 0 if there is none now.
  pid_t process_of(int rank) const;
  /// Sockets that the job's processes were seen to listen on, by their numbers, while it was waited for.
  const std::set<std::string>& listeners() const { return listeners_; }
  /// What ranks wrote down: their errors, by rank.
  std::map<int, RankError> errors() const;
  /// Processes of the job that live, temporary files that are left, ports that still listen, shared memory with a name:
  /// what must not be there once it has ended. One line each. (The ranks' shared memory has no name, and ends with the
  /// last process that has it.)
  ///   files   also files: a job that went on after a death has cleared up behind it, one that ended with it has not
  std::vector<std::string> leftovers(bool files = true) const;
  /// What the launcher and the ranks printed.
  std::string output() const;

 private:
  void start(const TrainingJobOptions& options, const std::map<std::string, std::string>& variables);
  void note_listeners();

  TempDir folder_;
  std::uint16_t port_;
  std::string work_dir_;
  dist::Processes launchers_;
  std::optional<int> code_;
  std::set<std::string> listeners_, memory_before_;
  long long noted_ms_ = 0;
};

/// Twenty epochs on so many ranks in all, with two micro-steps an update, a checkpoint after each of these, in bf16.
TrainingJobOptions job_with(const std::string& plugin);
/// A job_with that nothing disturbed.
struct Reference {
  std::string checkpoint;                ///< its last one
  std::chrono::milliseconds duration{};  ///< from its start to its end
};
/// It is run once for each number of ranks. Its plugin does not matter, which other tests show.
const Reference& reference(int ranks);
/// Checks with doctest that a job ended with a reference's weights and states, and that it left nothing behind.
void check_equal_end(const TrainingJob& job, const std::string& expected);
void check_no_leftovers(const TrainingJob& job, bool files = true);

/// Milliseconds on the machine's steady clock, alike in all processes.
long long steady_ms();
/// Waits for something, at most `limit`; returns whether it came.
bool comes_within(std::chrono::milliseconds limit, const std::function<bool()>& came);
/// Differences between the tensors of two checkpoints, weights and optimizer states, bit by bit; empty: equal.
std::string differences(const std::string& checkpoint, const std::string& other);
/// The newest checkpoint of a work folder, with its path.
std::string newest_checkpoint(const std::string& work_dir);

}  // namespace castor::test
