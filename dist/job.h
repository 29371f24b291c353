// Job: this process's part in a job of several processes. It meets the others at the store, is watched, and opens the
// group "world", from which all others are split.
//
// Delicate: whoever holds the store stays until the others have left, so leave in good order: destroy groups first,
// then the job.
#pragma once

#include <memory>
#include <string>

#include "dist/host_comm.h"
#include "dist/launch.h"

namespace castor::dist {

class StoreServer;

/// How bytes travel between ranks of a group.
enum class Transport : std::uint8_t { kAuto, kSharedMemory, kTcp, kMpi };

struct JobOptions {
  CommOptions comm;
  Transport transport = Transport::kAuto;  ///< auto: shared memory for groups on one machine, TCP for others
  std::string record_folder;  ///< where the last collectives are written when the job fails; empty: nowhere
};

class Job {
 public:
  /// Meets the other ranks. Throws CommError or CommTimeout if they do not come or one fails meanwhile.
  Job(const RankInfo& info, const JobOptions& options);
  Job(const Job&) = delete;
  Job& operator=(const Job&) = delete;
  ~Job();

  const RankInfo& info() const { return info_; }
  /// The group of all ranks.
  Comm& world() { return *world_; }
  /// Whether the job goes on; outlives its groups.
  Health& health();
  /// "shared memory", "tcp" or "mpi" (for logs): what the world's ranks talk through; "none" for one rank.
  const std::string& transport_name() const;

 private:
  class Members;
  RankInfo info_;
  std::chrono::milliseconds farewell_;  // how long the holder of the store waits for the others at the end
  std::unique_ptr<StoreServer> server_;
  std::shared_ptr<Members> members_;
  std::unique_ptr<HostComm> world_;
};

}  // namespace castor::dist
