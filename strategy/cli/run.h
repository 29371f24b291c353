// `castor run PROGRAM ARG ...`: starts the ranks of a job on this machine, with torchrun's flags and environment; the
// work is dist/run_job.h.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "dist/launch.h"
#include "dist/run_job.h"
#include "strategy/cli/command_line.h"

namespace castor::strategy {

/// What `castor run` was given, as it was written.
struct RunArguments {
  std::optional<std::string> nproc_per_node;  ///< "4", "2:4", "cpu", "auto"; 1 if left out
  std::optional<std::string> nnodes;          ///< "2" or "1:2"; 1 if left out
  std::optional<std::int64_t> node_rank;
  std::optional<std::string> rdzv_backend;   ///< "c10d" or "static"
  std::optional<std::string> rdzv_endpoint;  ///< "host", "host:port" or "[address]:port"
  std::optional<std::string> rdzv_id;
  std::optional<std::string> rdzv_conf;  ///< "last_call_timeout=30,join_timeout=600"
  bool standalone = false;
  std::optional<std::string> master_addr;
  std::optional<std::int64_t> master_port;
  std::int64_t max_restarts = 0;
  std::int64_t stop_timeout = 600;  ///< seconds
  std::optional<std::string> log_dir;
  std::vector<std::string> program;  ///< and its arguments
};

/// The job that the arguments describe. Throws ConfigError naming the flag.
///   environment  CASTOR_JOB_SECRET, for jobs of several machines
dist::RunJobOptions run_job_options(const RunArguments& arguments, const dist::Environment& environment);

/// The subcommand over a function that runs a job and returns its exit code: dist::run_job.
Subcommand run_command(std::function<int(const dist::RunJobOptions&)> run_job);

}  // namespace castor::strategy
