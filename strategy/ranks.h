// Ranks: this process among those of a run: the device it computes on and the group in which it meets the others.
//
// Delicate: groups of GPUs use the job's own, so they go first.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "dist/comm.h"
#include "dist/comm_device.h"
#include "dist/job.h"

namespace castor::strategy {

/// The device of a rank: the GPU of its local number, or the CPU.
///   wanted  "cpu" or "cuda"; none: cuda where this build and machine have GPUs
///   path    of the setting, for errors
/// Throws ConfigError where there is no GPU, or none for this rank.
Device device_of_rank(const std::optional<std::string>& wanted, int local_rank, const std::string& path);

/// "auto", "peer" or "nccl"; throws ConfigError for another name.
///   path  of the setting, for errors
dist::GpuTransport gpu_transport_of(const std::string& name, const std::string& path);

class Ranks {
 public:
  /// Meets the others. Throws CommError or CommTimeout if they do not come.
  Ranks(const dist::RankInfo& info, Device device, const dist::JobOptions& options,
        dist::GpuTransport gpu_transport = dist::GpuTransport::kAuto);

  const dist::RankInfo& info() const { return job_.info(); }
  /// All ranks, for tensors on the CPU and on the device.
  dist::Comm& world() { return gpus_ != nullptr ? *gpus_ : job_.world(); }
  /// What they talk through, for logs.
  std::string transport_name() const;

 private:
  dist::Job job_;
  dist::GpuTransport gpu_transport_;
  std::unique_ptr<dist::Comm> gpus_;
};

}  // namespace castor::strategy
