// The engine of `castor run`: starts this machine's ranks of a job with torchrun's environment, serves their store,
// forwards signals, ends all when one fails, and starts anew as often as it is allowed to, with fewer machines or ranks
// where that is allowed too.
//
// Delicate: when a rank dies, the others find out by themselves within seconds, say why and write their records; they
// are given that time before they are ended. A stop that the user asks for is another thing: ranks finish their step
// and save, which may take minutes, and a second signal would make them give that up.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

namespace castor::dist {

/// Where the output of ranks goes: to this process's own, to the same with lines of ranks above 0 marked "[rank1]: ",
/// or to files.
enum class RunOutput : std::uint8_t { kOwn, kMarked, kFiles };

struct RunJobOptions {
  std::vector<std::string> command;      ///< program and arguments, the same for all ranks
  int processes = 1;                     ///< ranks on each machine
  int least_processes = 0;               ///< with how few a job of one machine may go on; 0: `processes`
  int nodes = 1;                         ///< machines, each running this engine with its own `node_rank`
  int least_nodes = 0;                   ///< with how few it may start, and start again; 0: `nodes`
  int node_rank = 0;                     ///< machine 0 serves the store
  std::string store_host = "127.0.0.1";  ///< machine 0's address; it listens there
  std::uint16_t store_port = 0;          ///< 0: any free one, for one machine
  int max_restarts = 0;                  ///< new attempts of the whole job after a failed one
  std::string secret;                    ///< the job's, equal on all machines; empty: a random one, for one machine
  std::string run_id = "castor";         ///< TORCHELASTIC_RUN_ID
  std::string job_id;                    ///< CASTOR_JOB_ID: tells this job's checkpoints; empty: a random one
  std::chrono::milliseconds last_call{30'000};      ///< how long machines that may be missing are waited for at first
  std::chrono::milliseconds join_timeout{600'000};  ///< and those that must be there
  RunOutput output = RunOutput::kOwn;               ///< where what ranks print goes
  std::string log_folder;                           ///< kFiles: DIR/RUN_ID/attempt_0/RANK/stdout.log and stderr.log
  std::chrono::milliseconds stop_timeout{600'000};  ///< how long ranks may take to end after the first signal
  std::chrono::milliseconds own_end{6'000};         ///< how long ranks may end by themselves after one has failed
  std::chrono::milliseconds term_end{4'000};        ///< and after SIGTERM or a second signal, before SIGKILL
};

/// Runs the job to its end and returns the exit code: 0 when all ranks of this machine ended with 0, else that of the
/// first that failed in the last attempt (128 + signal for a killed one); 128 + signal after SIGINT, SIGTERM or SIGHUP,
/// which go to all ranks: the first lets them end in their own way within `stop_timeout`, the second within `term_end`,
/// and a rank that fails meanwhile ends the others as ever. On one machine a new attempt has as many ranks, or fewer if
/// the same rank was the first to fail twice in a row and `least_processes` allows it; on several it has the machines
/// that are left. Call it from the main thread, before other threads that would take these signals. Throws ConfigError
/// for options that make no sense, IoError if the program cannot be started or a log opened, CommError if the store
/// cannot listen.
int run_job(const RunJobOptions& options);

}  // namespace castor::dist
