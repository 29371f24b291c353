// Ranks as threads of one process: how tests run a job of several ranks, with the same collectives, agreement and
// failures as between processes.
#pragma once

#include <functional>

#include "dist/comm.h"
#include "dist/host_comm.h"

namespace castor::dist {

/// Runs fn(comm) on `world_size` threads, each with its rank of the group "world", and returns when all have ended.
/// Fails the job as soon as one of them throws, so that the others' waits end too, and rethrows the first exception.
/// Each thread inherits nothing of the caller's thread-local state (loggers, categories).
void run_ranks(int world_size, const std::function<void(Comm&)>& fn, const CommOptions& options = {});

}  // namespace castor::dist
