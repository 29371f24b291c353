// What a build without MPI links in the place of comm_mpi.cpp: the refusal.
//
// Delicate: it must say how to get a build that can.
#include "core/base/error.h"
#include "dist/comm_mpi.h"

namespace castor::dist {

std::unique_ptr<Link> connect_mpi(Store&, const Health&, const std::string&, const std::vector<int>&, int,
                                  std::chrono::milliseconds) {
  throw ConfigError(
      "transport mpi: this build has no MPI; build with -Dmpi=enabled (Debian: libopenmpi-dev), or use "
      "auto, which needs none under mpirun either",
      "env_cfg.dist_cfg.transport");
}

}  // namespace castor::dist
