// Who a process is in its job, as the launcher that started it tells through the environment: torchrun (and
// `castor run`, which speaks the same), slurm, mpirun, or nobody.
//
// Delicate: the same binary runs under each of them; what a launcher does not say is derived here, in one place, or
// refused by name.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

namespace castor::dist {

/// Where a rank stands and how it finds the others.
struct RankInfo {
  int rank = 0;
  int world_size = 1;
  int local_rank = 0;
  int local_world_size = 1;
  int restart_count = 0;          ///< how often `castor run` has started the job anew
  int full_world_size = 1;        ///< ranks that the job was asked for; after a loss it may go on with fewer
  std::string job_id;             ///< the same for all attempts of a job, and no other's; empty: the launcher has none
  std::string launcher = "none";  ///< "pytorch", "slurm", "mpi" or "none"
  std::string store_host = "127.0.0.1";
  std::uint16_t store_port = 0;  ///< 0: any free one, for a job of one process
  bool holds_store = true;       ///< this process runs the store
  std::string store_listen_address = "127.0.0.1";
  std::string secret;  ///< the job's, the same on all ranks
};

/// Looks a variable up; nothing if it is not set.
using Environment = std::function<std::optional<std::string>(const std::string&)>;
/// The process's own.
Environment process_environment();

/// The launcher that started this process: WORLD_SIZE -> "pytorch", SLURM_NTASKS -> "slurm",
/// OMPI_COMM_WORLD_LOCAL_RANK -> "mpi", else "none".
std::string infer_launcher(const Environment& environment);

/// Reads a launcher's variables.
///   launcher  "pytorch", "slurm", "mpi", "none" or "auto"
/// pytorch: RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT. slurm: SLURM_PROCID SLURM_NTASKS
/// SLURM_LOCALID, this node's entry (SLURM_NODEID) of SLURM_STEP_TASKS_PER_NODE, SLURM_NTASKS_PER_NODE or
/// SLURM_TASKS_PER_NODE, first host of SLURM_STEP_NODELIST or SLURM_NODELIST. mpi: OMPI_COMM_WORLD_RANK, _SIZE,
/// _LOCAL_RANK, _LOCAL_SIZE (or PMI_RANK, PMI_SIZE, MPI_LOCALRANKID, MPI_LOCALNRANKS of MPICH), MASTER_ADDR (this
/// machine's loopback where these say that all ranks are on it). The port is MASTER_PORT, 29500 if unset. Restarts:
/// TORCHELASTIC_RESTART_COUNT, CASTOR_JOB_ID (or TORCHELASTIC_RUN_ID), CASTOR_FULL_WORLD_SIZE. CASTOR_JOB_SECRET is the
/// secret; without it a job on loopback uses one made of the launcher's job id, and a job over a network is refused.
/// Throws ConfigError naming the variable that is missing or makes no sense.
RankInfo rank_info_from(const Environment& environment, const std::string& launcher = "auto");

}  // namespace castor::dist
