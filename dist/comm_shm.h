// Links through memory that the processes of one machine share.
//
// The memory has no name: the first rank makes it (memfd), the others open it through that process's descriptor, and it
// vanishes with the last process that maps it, killed or not. Delicate: whether all ranks share a machine is found out
// by trying: only when every rank has the memory mapped do they use it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "dist/link.h"
#include "dist/store.h"

namespace castor::dist {

/// Connects a group, or returns null on all its ranks if one of them cannot reach the memory (another machine, or
/// another container). Parameters as Fabric::connect. Throws SocketError, CommTimeout, JobFailed.
std::unique_ptr<Link> connect_shared_memory(Store& store, const Health& health, const std::string& name,
                                            const std::vector<int>& members, int rank, std::chrono::milliseconds limit);

}  // namespace castor::dist
