// DeviceComm: the Comm of ranks that compute on GPUs. Tensors on the CPU travel through the host's group as ever;
// tensors on the GPU from GPU to GPU, on a queue beside the compute queue, so that exchange overlaps computing.
//
// Delicate: sums are exchange, then addition in the order of ranks by the piece's owner (core/ops/ordered_sum_cuda.h):
// the same bits as on the CPU, for any number of ranks. A collective of GPU tensors is launched at once, and compared
// with the other ranks' beside it, on the host; one that differs, is late or whose rank died fails the job, which ends
// the kernels that wait on the GPU, and with it every wait of the host.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>

#include "dist/comm.h"
#include "dist/failure.h"

namespace castor::dist {

/// What a rank does whose job has failed and that is still there kUnwindTime later: its GPU does not come back, so
/// nothing that waits for it ends. Called on a thread of its own.
using GiveUp = std::function<void(const Failure& failure)>;
inline constexpr std::chrono::milliseconds kUnwindTime{3000};

/// How bytes travel between the GPUs of a group. kAuto: from memory to memory where all GPUs of it reach each other's
/// (comm_cuda_peers.h), else through NCCL.
enum class GpuTransport : std::uint8_t { kAuto, kPeer, kNccl };

struct DeviceCommOptions {
  std::chrono::milliseconds timeout;  ///< the longest an exchange between GPUs may take
  GpuTransport transport = GpuTransport::kAuto;
  GiveUp give_up = nullptr;  ///< called unless the process has ended by then; none: it waits for its GPU
};

/// A group of the same ranks as `host`, which must outlive it, for tensors on `device` and on the CPU.
///   health   of the job
/// GPU tensors: all_reduce and reduce_scatter take sums and means (f32, bf16, f16), all others move any dtype; send and
/// recv are for the CPU. At the first of them with several ranks it throws DeviceError where no transport reaches all
/// GPUs: kPeer and one of them cannot be reached, NCCL and this build has none.
std::unique_ptr<Comm> make_device_comm(Comm& host, Device device, Health& health, DeviceCommOptions options);

}  // namespace castor::dist
