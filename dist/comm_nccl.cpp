// NCCL's communicator behind DeviceLink.
//
// Delicate: NCCL waits without limit. A rank that dies or hangs while others connect is noticed because connecting runs
// on a thread of its own, which is left behind when the job fails or the time is up; one that dies later by whoever
// watches the job's health and calls abort. Abort may find a caller inside NCCL (which it frees): it waits for the
// caller a moment, then goes on. Nobody else waits for an abort, which itself may wait for the device.
#include "dist/comm_nccl.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include <nccl.h>

#include "core/base/error.h"
#include "core/base/log.h"
#include "core/device/cuda_runtime.h"

namespace castor::dist {
namespace {

[[noreturn]] void fail(ncclResult_t result, const std::string& what, int rank, ncclComm_t comm) {
  const char* detail = ncclGetLastError(comm);
  throw CommError(cat("rank ", rank, ": ", what, ": NCCL says '", ncclGetErrorString(result), "'",
                      detail != nullptr && detail[0] != '\0' ? cat(" (", detail, ")") : std::string(),
                      "; NCCL_DEBUG=INFO shows what it tried"),
                  rank, "nccl", 0);
}

/// What the connecting thread leaves for the waiting one.
struct Connecting {
  std::mutex mutex;
  std::condition_variable changed;
  bool is_done = false, is_given_up = false;
  ncclResult_t result = ncclSuccess;
  cudaError_t device_result = cudaSuccess;
  ncclComm_t comm = nullptr;
};

class NcclLink final : public DeviceLink {
 public:
  NcclLink(ncclComm_t comm, const Health& health, int rank, int own_place)
      : comm_(comm), health_(health), rank_(rank), own_place_(own_place) {}
  NcclLink(const NcclLink&) = delete;
  NcclLink& operator=(const NcclLink&) = delete;
  ~NcclLink() override {
    ncclComm_t const comm = comm_.exchange(nullptr);
    if (comm == nullptr) return;
    health_.failed() ? ncclCommAbort(comm) : ncclCommDestroy(comm);  // whom to wait for may be gone
  }

  void exchange(std::span<const DeviceBytes> sends, std::span<const DeviceBytes> receives, void* stream) override {
    const std::lock_guard lock(mutex_);
    ncclComm_t const comm = comm_;
    if (comm == nullptr) throw JobFailed();
    const auto cuda_stream = static_cast<cudaStream_t>(stream);
    ncclResult_t result = ncclGroupStart();
    for (int peer = 0; peer < static_cast<int>(sends.size()) && result == ncclSuccess; ++peer) {
      if (peer == own_place_) continue;
      const DeviceBytes& out = sends[static_cast<std::size_t>(peer)];
      const DeviceBytes& in = receives[static_cast<std::size_t>(peer)];
      if (out.bytes > 0) result = ncclSend(out.data, out.bytes, ncclInt8, peer, comm, cuda_stream);
      if (in.bytes > 0 && result == ncclSuccess)
        result = ncclRecv(in.data, in.bytes, ncclInt8, peer, comm, cuda_stream);
    }
    const ncclResult_t ended = ncclGroupEnd();
    if (result == ncclSuccess) result = ended;
    if (result == ncclSuccess) return;
    if (health_.failed()) throw JobFailed();
    fail(result, "exchange between GPUs", rank_, comm);
  }

  void abort() noexcept override {
    constexpr std::chrono::milliseconds kPatience{1000};
    std::unique_lock lock(mutex_, kPatience);
    ncclComm_t const comm = comm_.exchange(nullptr);
    if (lock.owns_lock()) lock.unlock();
    if (comm != nullptr) ncclCommAbort(comm);
  }

 private:
  std::timed_mutex mutex_;
  std::atomic<ncclComm_t> comm_;
  const Health& health_;
  int rank_, own_place_;
};

}  // namespace

std::unique_ptr<DeviceLink> connect_nccl(Comm& host, Device device, Health& health, std::chrono::milliseconds limit) {
  const int own_place = host.rank(), world_size = host.world_size();
  const int rank = host.members()[static_cast<std::size_t>(own_place)];
  ncclUniqueId id{};
  if (own_place == 0) {
    if (const ncclResult_t result = ncclGetUniqueId(&id); result != ncclSuccess)
      fail(result, "start NCCL", rank, nullptr);
  }
  const View bytes{&id, DType::u8, 1, {static_cast<std::int64_t>(sizeof(id))}, {1}};
  host.broadcast(bytes, 0, "NCCL's address");

  const auto shared = std::make_shared<Connecting>();
  std::thread([shared, id, device, own_place, world_size] {
    ncclComm_t comm = nullptr;
    ncclResult_t result = ncclSuccess;
    const cudaError_t device_result = cudaSetDevice(device.index);
    if (device_result == cudaSuccess) result = ncclCommInitRank(&comm, world_size, id, own_place);
    const std::lock_guard lock(shared->mutex);
    shared->is_done = true;
    shared->result = result;
    shared->device_result = device_result;
    shared->comm = comm;
    if (shared->is_given_up && comm != nullptr) ncclCommAbort(comm);
    shared->changed.notify_all();
  }).detach();
  std::unique_lock lock(shared->mutex);
  constexpr std::chrono::milliseconds kLook{50};
  const auto deadline = std::chrono::steady_clock::now() + limit;
  while (!shared->changed.wait_for(lock, kLook, [&] { return shared->is_done; })) {
    const bool is_late = std::chrono::steady_clock::now() >= deadline;
    if (!health.failed() && !is_late) continue;
    shared->is_given_up = true;
    lock.unlock();  // a report takes its time, and the thread ends what comes too late
    const std::string doing = cat("connecting the GPUs of group ", host.name());
    if (health.failed()) throw_failure(health.failure(), doing);
    throw_failure(
        health.report({rank, "connect", 0, true,
                       cat("rank ", rank, " waits in vain for NCCL, which is not done with ", doing, " within ",
                           limit.count(), " ms; NCCL_DEBUG=INFO shows on each rank how far it came")}));
  }
  check_cuda(shared->device_result, "use the device", device);
  if (shared->result != ncclSuccess)
    fail(shared->result, cat("connect the GPUs of group ", host.name()), rank, shared->comm);
  return std::make_unique<NcclLink>(shared->comm, health, rank, own_place);
}

}  // namespace castor::dist
