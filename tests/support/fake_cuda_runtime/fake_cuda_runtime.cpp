// Device memory that other processes can map, and streams, each a thread that does one thing after another and dawdles
// before most, so that whatever is not waited for comes in another order now and then.
//
// Delicate: a stream waits for a value as the driver's does, by distances of less than 2^31, and for an event as it was
// recorded last when the wait was asked for.
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <thread>

#include <cuda.h>

#include "core/base/error.h"
#include "core/base/shared_memory.h"
#include "core/device/cuda_runtime.h"

struct CUevent_st {
  std::shared_ptr<std::atomic<bool>> last = std::make_shared<std::atomic<bool>>(true);
};

struct CUstream_st {
  CUstream_st() : thread([this] { run(); }) {}
  ~CUstream_st() {
    give([this] { is_over = true; });
    thread.join();
  }
  void give(std::function<void()> work) {
    const std::lock_guard lock(mutex);
    waiting.push_back(std::move(work));
    ++left;
    changed.notify_all();
  }
  void run() {
    std::minstd_rand random(static_cast<unsigned>(reinterpret_cast<std::uintptr_t>(this) >> 6U));
    while (!is_over) {
      std::function<void()> next;
      {
        std::unique_lock lock(mutex);
        changed.wait(lock, [this] { return !waiting.empty(); });
        next = std::move(waiting.front());
        waiting.pop_front();
      }
      std::this_thread::sleep_for(std::chrono::microseconds(random() % 4 == 0 ? random() % 200 : 0));
      next();
      const std::lock_guard lock(mutex);
      --left;
      changed.notify_all();
    }
  }

  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::function<void()>> waiting;
  std::size_t left = 0;
  bool is_over = false;
  std::thread thread;  // the last: it uses all of them
};

namespace {

using castor::SharedMemory;

std::mutex mutex;
std::map<void*, std::unique_ptr<SharedMemory>> own, mapped;

constexpr std::size_t kPage = 4096;

/// What a handle holds: who made the memory, as SharedMemory says, and how much.
struct Handle {
  char address[56];
  std::size_t bytes;
};
static_assert(sizeof(Handle) == sizeof(cudaIpcMemHandle_t));

template <class F>
void wait_until(F&& came) {
  constexpr std::chrono::microseconds kTurn{20};
  while (!came()) std::this_thread::sleep_for(kTurn);
}

std::atomic<std::uint32_t>& value_at(CUdeviceptr address) {
  return *reinterpret_cast<std::atomic<std::uint32_t>*>(address);
}

CUresult wait_value(CUstream stream, CUdeviceptr address, cuuint32_t value, unsigned) {
  stream->give([=] { wait_until([=] { return static_cast<std::int32_t>(value_at(address).load() - value) >= 0; }); });
  return CUDA_SUCCESS;
}

CUresult write_value(CUstream stream, CUdeviceptr address, cuuint32_t value, unsigned) {
  stream->give([=] { value_at(address).store(value); });
  return CUDA_SUCCESS;
}

/// CASTOR_TEST_UNREACHED names the rank that cannot map what others lend.
bool is_unreached() {
  const char* const wanted = std::getenv("CASTOR_TEST_UNREACHED");
  const char* const rank = std::getenv("RANK");
  return wanted != nullptr && rank != nullptr && std::strcmp(wanted, rank) == 0;
}

}  // namespace

cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t status) { return status == cudaSuccess ? "no error" : "some error"; }

cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** address, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* found) {
  *address = std::strcmp(name, "cuStreamWaitValue32") == 0 ? reinterpret_cast<void*>(&wait_value)
                                                           : reinterpret_cast<void*>(&write_value);
  *found = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** data, std::size_t bytes) {
  std::unique_ptr<SharedMemory> memory = SharedMemory::make((bytes + kPage - 1) / kPage * kPage);
  if (memory == nullptr) return cudaErrorMemoryAllocation;
  *data = memory->data();
  const std::lock_guard lock(mutex);
  own[*data] = std::move(memory);
  return cudaSuccess;
}

cudaError_t cudaFree(void* data) {
  const std::lock_guard lock(mutex);
  own.erase(data);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  stream->give([=] { std::memcpy(to, from, bytes); });
  return cudaSuccess;
}

cudaError_t cudaHostRegister(void*, std::size_t, unsigned) { return cudaSuccess; }
cudaError_t cudaHostUnregister(void*) { return cudaSuccess; }
cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned) {
  *device = host;
  return cudaSuccess;
}

cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t* handle, void* data) {
  const std::lock_guard lock(mutex);
  const SharedMemory& memory = *own.at(data);
  Handle made{};
  if (memory.address().size() >= sizeof(made.address)) return cudaErrorInvalidValue;
  std::memcpy(made.address, memory.address().data(), memory.address().size());
  made.bytes = memory.bytes();
  std::memcpy(handle, &made, sizeof(made));
  return cudaSuccess;
}

cudaError_t cudaIpcOpenMemHandle(void** data, cudaIpcMemHandle_t handle, unsigned) {
  if (is_unreached()) return cudaErrorInvalidValue;
  Handle made{};
  std::memcpy(&made, &handle, sizeof(made));
  std::unique_ptr<SharedMemory> memory = SharedMemory::take(made.address, made.bytes, SharedMemory::Access::kReadWrite);
  if (memory == nullptr) return cudaErrorInvalidValue;
  *data = memory->data();
  const std::lock_guard lock(mutex);
  mapped[*data] = std::move(memory);
  return cudaSuccess;
}

cudaError_t cudaIpcCloseMemHandle(void* data) {
  const std::lock_guard lock(mutex);
  mapped.erase(data);
  return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int* lowest, int* highest) {
  *lowest = *highest = 0;
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) {
  *stream = new CUstream_st;
  return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
  const std::lock_guard lock(stream->mutex);
  return stream->left == 0 ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  std::unique_lock lock(stream->mutex);
  stream->changed.wait(lock, [=] { return stream->left == 0; });
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  stream->give([passed = event->last] { wait_until([&] { return passed->load(); }); });
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new CUevent_st;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  event->last = std::make_shared<std::atomic<bool>>(false);
  stream->give([passed = event->last] { passed->store(true); });
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}

namespace castor {

void check_cuda(cudaError_t status, const char* what, Device device) {
  if (status != cudaSuccess) throw DeviceError(cat(what, " on ", device, ": ", cudaGetErrorString(status)));
}

}  // namespace castor
