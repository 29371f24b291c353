// Bytes between the GPUs of one host by their copy engines, which write into the other GPU's memory. No kernel takes
// part, so what computes beside it keeps all multiprocessors: NCCL's kernels took some from products whose tiles then
// ran in two waves instead of one.
//
// Each rank lends every other one a box in its GPU's memory: two slots that are filled by the sender and emptied by the
// owner in turns. Delicate: who waits for whom is told by counters in host memory that all the processes map. Streams
// wait for them and count them up by themselves; the host may count them up, too, which ends every wait (`abort`) of a
// rank whose peer has died, without a call of the driver's.
#pragma once

#include <cstddef>
#include <memory>

#include "dist/comm.h"
#include "dist/device_link.h"
#include "dist/failure.h"

namespace castor::dist {

inline constexpr std::size_t kPeerBoxBytes = std::size_t{128} << 20;

/// Connects the GPUs of `host`'s ranks, or returns null on all of them where one cannot reach the memory of another
/// (another host, no link between the GPUs) or ranks share a process; a line in the log says why. All ranks call it.
/// Throws as Comm::run when a rank fails meanwhile.
///   box_bytes  of each GPU for what the others send, at most; two ranks need half of the default
std::unique_ptr<DeviceLink> connect_peers(Comm& host, Device device, const Health& health,
                                          std::size_t box_bytes = kPeerBoxBytes);

}  // namespace castor::dist
