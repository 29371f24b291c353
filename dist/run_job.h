// The engine of `castor run`: starts this machine's ranks of a job with torchrun's environment, serves their store,
// forwards signals, ends all when one fails, and starts anew as often as it is allowed to.
//
// Delicate: when a rank dies, the others find out by themselves within seconds, say why and write their records; they
// are given that time before they are ended.
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
  std::vector<std::string> command;          ///< program and arguments, the same for all ranks
  int processes = 1;                         ///< ranks on this machine
  int nodes = 1;                             ///< machines, each running this engine with its own `node_rank`
  int node_rank = 0;                         ///< machine 0 serves the store
  std::string store_host = "127.0.0.1";      ///< machine 0's address; it listens there
  std::uint16_t store_port = 0;              ///< 0: any free one, for one machine
  int max_restarts = 0;                      ///< new attempts of the whole job after a failed one
  std::string secret;                        ///< the job's, equal on all machines; empty: a random one, for one machine
  std::string run_id = "castor";             ///< TORCHELASTIC_RUN_ID
  RunOutput output = RunOutput::kOwn;        ///< where what ranks print goes
  std::string log_folder;                    ///< kFiles: DIR/RUN_ID/attempt_0/RANK/stdout.log and stderr.log
  std::chrono::milliseconds own_end{6'000};  ///< how long ranks may end by themselves after one has failed
  std::chrono::milliseconds term_end{4'000};  ///< and after SIGTERM, before SIGKILL
};

/// Runs the job to its end and returns the exit code: 0 when all ranks of this machine ended with 0, else that of the
/// first that failed in the last attempt (128 + signal for a killed one); 128 + signal after SIGINT, SIGTERM or SIGHUP,
/// which go to all ranks. Call it from the main thread, before other threads that would take these signals.
/// Throws ConfigError for options that make no sense, IoError if the program cannot be started or a log opened,
/// CommError if the store cannot listen.
int run_job(const RunJobOptions& options);

}  // namespace castor::dist
