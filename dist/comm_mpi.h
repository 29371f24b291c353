// Streams between ranks over MPI's messages, for clusters whose network only MPI knows. Optional: a build without MPI
// has the same function, which refuses.
//
// Delicate: MPI is started once a process, at the first group, and must allow calls from several threads. It is ended
// with the process, and only after a job that went well: its end waits for all ranks, some of which may be dead.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "dist/link.h"
#include "dist/store.h"

namespace castor::dist {

/// Connects a group as Fabric::connect does. Ranks of the job must be those of MPI's world, as under mpirun.
/// Throws ConfigError where this build or this MPI cannot do it; what Store throws, and JobFailed.
std::unique_ptr<Link> connect_mpi(Store& store, const Health& health, const std::string& name,
                                  const std::vector<int>& members, int rank, std::chrono::milliseconds limit);

}  // namespace castor::dist
