// Bytes between the GPUs of a group through NCCL: for GPUs that cannot reach each other's memory, such as those of
// several hosts.
#pragma once

#include <chrono>
#include <memory>

#include "dist/comm.h"
#include "dist/device_link.h"
#include "dist/failure.h"

namespace castor::dist {

/// Connects the GPUs of `host`'s ranks; all of them call it. Throws CommError naming NCCL's reason, CommTimeout after
/// `limit`, which fails the job, and as Comm::run when a rank fails meanwhile.
///   device  this rank's; no two ranks of a group share one
std::unique_ptr<DeviceLink> connect_nccl(Comm& host, Device device, Health& health, std::chrono::milliseconds limit);

}  // namespace castor::dist
