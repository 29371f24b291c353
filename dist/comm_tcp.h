// Links over TCP: one connection for each pair of ranks of a group, made when the group is.
//
// Delicate: a rank listens only while its group connects, where the job's store is reached from (loopback for a job on
// one machine), and through a gate, so that nobody outside the job gets a byte in.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "dist/link.h"
#include "dist/secret.h"
#include "dist/store.h"

namespace castor::dist {

/// Connects a group; parameters as Fabric::connect.
/// Throws SocketError, CommTimeout, or JobFailed if `health` says so meanwhile.
std::unique_ptr<Link> connect_tcp(Store& store, const JobSecret& secret, const Health& health, const std::string& name,
                                  const std::vector<int>& members, int rank, std::chrono::milliseconds limit);

}  // namespace castor::dist
