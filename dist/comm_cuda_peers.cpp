// Boxes, counters and the two streams of a rank; see comm_cuda_peers.h.
//
// Delicate: a driver may put streams of one process behind each other, so one that waits can hold another one back.
// Nobody waits for ever, because all ranks enqueue in one order: the pieces of an exchange by number, each sent before
// the piece of that number is received, and whatever a piece waits for has been enqueued by its rank before.
#include "dist/comm_cuda_peers.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstring>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <unistd.h>

#include "core/base/error.h"
#include "core/base/log.h"
#include "core/base/shared_memory.h"
#include "core/device/cuda_runtime.h"

namespace castor::dist {
namespace {

using Clock = std::chrono::steady_clock;

// Two slots suffice for one to be filled while the other is emptied. Measured between two H200 (GB/s each way): slots
// of 32 MiB 350, 16 MiB 320, 8 MiB 260, 4 MiB 210; the link gives 380.
constexpr std::uint32_t kSlots = 2;
constexpr std::size_t kLargestSlot = std::size_t{32} << 20;
constexpr std::size_t kUnit = 4096;
constexpr std::uint32_t kFarAhead = 1U << 30U;  // streams compare counters as distances of less than 2^31
constexpr std::chrono::seconds kAbortTime{10};  // after which an abort leaves the device to itself
constexpr std::chrono::seconds kCloseTime{1};   // how long a leaving rank waits for the others to leave, too

/// What one rank has sent another, both counted in pieces. Written by GPUs and, to end waits, by hosts.
struct alignas(64) Counter {
  std::atomic<std::uint32_t> value;
};
struct Pair {
  Counter arrived;  // counted up by the sender, awaited by the receiver
  Counter taken;    // and the other way round
};

/// The memory that all ranks map: a Pair for each ordered pair of ranks, then who has left.
std::size_t counter_bytes(int world_size) {
  const auto many = static_cast<std::size_t>(world_size);
  const std::size_t bytes = many * many * sizeof(Pair) + many * sizeof(Counter);
  return (bytes + kUnit - 1) / kUnit * kUnit;
}

std::size_t slot_bytes(int world_size, std::size_t box_bytes) {
  const std::size_t share = box_bytes / kSlots / static_cast<std::size_t>(std::max(1, world_size - 1));
  return std::min(kLargestSlot, share) / kUnit * kUnit;
}

/// What a rank tells the others.
struct Offer {
  long process = 0;
  bool is_made = false;              // the rest is there
  std::array<char, 128> counters{};  // rank 0's address of them
  cudaIpcMemHandle_t box{};
};

View view_of(void* data, std::size_t bytes) { return {data, DType::u8, 1, {static_cast<std::int64_t>(bytes)}, {1}}; }

/// The driver's calls that have no counterpart in the runtime.
struct Driver {
  CUresult (*wait)(CUstream, CUdeviceptr, cuuint32_t, unsigned) = nullptr;
  CUresult (*write)(CUstream, CUdeviceptr, cuuint32_t, unsigned) = nullptr;

  /// False where the driver has none.
  bool load() { return find("cuStreamWaitValue32", wait) && find("cuStreamWriteValue32", write); }

 private:
  template <class F>
  static bool find(const char* name, F& function) {
    constexpr unsigned kVersion = 11070;  // from which on all devices have them
    void* address = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    if (cudaGetDriverEntryPointByVersion(name, &address, kVersion, cudaEnableDefault, &found) != cudaSuccess)
      return false;
    function = reinterpret_cast<F>(address);
    return found == cudaDriverEntryPointSuccess;
  }
};

class PeerLink final : public DeviceLink {
 public:
  PeerLink(const Comm& host, Device device, const Health& health, std::size_t box_bytes)
      : device_(device),
        health_(health),
        own_(static_cast<std::size_t>(host.rank())),
        world_(static_cast<std::size_t>(host.world_size())),
        slot_(slot_bytes(host.world_size(), box_bytes)),
        peers_(world_) {}
  PeerLink(const PeerLink&) = delete;
  PeerLink& operator=(const PeerLink&) = delete;
  ~PeerLink() override { close(); }

  // Connecting, in this order. What fails says why in `reason()`, and nothing that follows does anything.
  Offer offer() {
    Offer offer;
    offer.process = getpid();
    if (!made(cudaSetDevice(device_.index), "use the device")) return offer;
    if (!driver_.load()) return refuse("the driver has no streams that wait for values"), offer;
    void* box = nullptr;
    if (!made(cudaMalloc(&box, kSlots * slot_ * (world_ - 1)), "make room for what others send")) return offer;
    box_ = static_cast<std::byte*>(box);
    if (!made(cudaIpcGetMemHandle(&offer.box, box_), "lend memory to other processes")) return offer;
    if (own_ == 0) {
      memory_ = SharedMemory::make(counter_bytes(static_cast<int>(world_)));
      if (memory_ == nullptr || memory_->address().size() >= offer.counters.size())
        return refuse("no memory can be shared with other processes"), offer;
      std::ranges::copy(memory_->address(), offer.counters.begin());
    }
    offer.is_made = true;
    return offer;
  }
  void take(const std::vector<Offer>& offers) {
    for (std::size_t r = 0; r < world_ && is_possible(); ++r) {
      if (!offers[r].is_made) return refuse(cat("place ", r, " of the group has nothing to offer"));
    }
    if (own_ != 0 && is_possible()) {
      memory_ = SharedMemory::take(offers[0].counters.data(), counter_bytes(static_cast<int>(world_)),
                                   SharedMemory::Access::kReadWrite);
      if (memory_ == nullptr) return refuse("its ranks do not share one host");
    }
    if (!is_possible()) return;
    if (!made(cudaHostRegister(memory_->data(), memory_->bytes(), cudaHostRegisterPortable | cudaHostRegisterMapped),
              "use shared memory"))
      return;
    is_registered_ = true;
    void* counters = nullptr;
    if (!made(cudaHostGetDevicePointer(&counters, memory_->data(), 0), "use shared memory")) return;
    counters_ = reinterpret_cast<CUdeviceptr>(counters);
    for (std::size_t r = 0; r < world_ && is_possible(); ++r) {
      if (r == own_) continue;
      // One process would wait for itself: while a call for one GPU waits for its streams, the driver holds back calls
      // for the other one, which those streams may be waiting for.
      if (offers[r].process == offers[own_].process) return refuse("ranks are threads of one process");
      void* box = nullptr;
      if (!made(cudaIpcOpenMemHandle(&box, offers[r].box, cudaIpcMemLazyEnablePeerAccess),
                "reach another one's memory"))
        return;
      peers_[r].mapped = box;
      peers_[r].slots = static_cast<std::byte*>(box) + place_in_box(own_, r) * kSlots * slot_;
    }
    if (is_possible()) open_streams();
  }
  /// Empty while all has gone well.
  const std::string& reason() const { return reason_; }
  void refuse(std::string reason) {
    if (is_possible()) reason_ = std::move(reason);
  }
  /// Lets go of the others' memory; after all have, the own memory may go.
  void let_go() {
    for (Peer& peer : peers_) {
      if (void* const mapped = std::exchange(peer.mapped, nullptr)) cudaIpcCloseMemHandle(mapped);
    }
  }
  void set_left_by_all() { is_left_by_all_ = true; }

  void exchange(std::span<const DeviceBytes> sends, std::span<const DeviceBytes> receives, void* stream) override {
    const std::lock_guard lock(mutex_);
    const auto cuda_stream = static_cast<cudaStream_t>(stream);
    check_cuda(cudaSetDevice(device_.index), "use the device", device_);
    check_cuda(cudaEventRecord(event_, cuda_stream), "record an event", device_);
    for (cudaStream_t side : {out_, in_})
      check_cuda(cudaStreamWaitEvent(side, event_, 0), "wait for an event", device_);
    std::size_t longest = 0;
    for (std::size_t r = 0; r < world_; ++r) {
      if (r != own_) longest = std::max({longest, sends[r].bytes, receives[r].bytes});
    }
    for (std::size_t begin = 0; begin < longest; begin += slot_) {
      for (std::size_t step = 1; step < world_; ++step) {
        const std::size_t to = (own_ + step) % world_, from = (own_ + world_ - step) % world_;
        if (begin < sends[to].bytes) send(to, piece(sends[to], begin));
        if (begin < receives[from].bytes) receive(from, piece(receives[from], begin));
      }
    }
    for (cudaStream_t side : {out_, in_}) {
      check_cuda(cudaEventRecord(event_, side), "record an event", device_);
      check_cuda(cudaStreamWaitEvent(cuda_stream, event_, 0), "wait for an event", device_);
    }
  }

  void abort() noexcept override {
    is_aborted_ = true;
    const auto until = Clock::now() + kAbortTime;
    // Again and again: a peer that still lives counts on from where it is, and callers may be about to wait.
    while (memory_ != nullptr && Clock::now() < until) {
      for (std::size_t r = 0; r < world_; ++r) {
        if (r == own_) continue;
        pair(r, own_).arrived.value = peers_[r].received + kFarAhead;
        pair(own_, r).taken.value = peers_[r].sent + kFarAhead;
      }
      constexpr std::chrono::milliseconds kTurn{1};
      std::this_thread::sleep_for(kTurn);
      const std::unique_lock lock(mutex_, std::try_to_lock);
      if (lock.owns_lock() && !is_busy(out_) && !is_busy(in_)) return;
    }
  }

 private:
  struct Peer {
    void* mapped = nullptr;                           // its box
    std::byte* slots = nullptr;                       // this rank's in it
    std::atomic<std::uint32_t> sent{0}, received{0};  // pieces enqueued
  };

  bool is_possible() const { return reason_.empty(); }
  bool made(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return true;
    cudaGetLastError();
    refuse(cat(device_, " cannot ", what, ": ", cudaGetErrorString(status)));
    return false;
  }

  void open_streams() {
    int lowest = 0, highest = 0;
    if (!made(cudaDeviceGetStreamPriorityRange(&lowest, &highest), "create a stream")) return;
    for (cudaStream_t* side : {&out_, &in_}) {
      if (!made(cudaStreamCreateWithPriority(side, cudaStreamNonBlocking, highest), "create a stream")) return;
    }
    made(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "create an event");
  }

  /// The place of `rank`'s slots among those that it has in another rank's box.
  static std::size_t place_in_box(std::size_t rank, std::size_t owner) { return rank - (rank > owner ? 1 : 0); }

  Pair& pair(std::size_t from, std::size_t to) const {
    return reinterpret_cast<Pair*>(memory_->data())[from * world_ + to];
  }
  Counter& left(std::size_t rank) const {
    return reinterpret_cast<Counter*>(memory_->data() + world_ * world_ * sizeof(Pair))[rank];
  }
  CUdeviceptr on_device(const Counter& counter) const {
    return counters_ + static_cast<CUdeviceptr>(reinterpret_cast<const std::byte*>(&counter) - memory_->data());
  }

  DeviceBytes piece(const DeviceBytes& whole, std::size_t begin) const {
    return {static_cast<std::byte*>(whole.data) + begin, std::min(slot_, whole.bytes - begin)};
  }
  void send(std::size_t to, const DeviceBytes& bytes) {
    Peer& peer = peers_[to];
    const std::uint32_t number = peer.sent++;
    wait_for(out_, pair(own_, to).taken, number + 1 - kSlots);
    copy(out_, peer.slots + number % kSlots * slot_, bytes.data, bytes.bytes);
    count_up(out_, pair(own_, to).arrived, number + 1);
  }
  void receive(std::size_t from, const DeviceBytes& bytes) {
    Peer& peer = peers_[from];
    const std::uint32_t number = peer.received++;
    wait_for(in_, pair(from, own_).arrived, number + 1);
    copy(in_, bytes.data, box_ + (place_in_box(from, own_) * kSlots + number % kSlots) * slot_, bytes.bytes);
    count_up(in_, pair(from, own_).taken, number + 1);
  }

  void copy(cudaStream_t stream, void* to, const void* from, std::size_t bytes) {
    if (is_aborted_) throw JobFailed();
    check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream), "copy between GPUs", device_);
  }
  void wait_for(cudaStream_t stream, const Counter& counter, std::uint32_t value) {
    check_driver(driver_.wait(stream, on_device(counter), value, CU_STREAM_WAIT_VALUE_GEQ), "wait for another GPU");
  }
  /// After all that precedes it in the stream is there for everyone (the driver's default).
  void count_up(cudaStream_t stream, const Counter& counter, std::uint32_t value) {
    check_driver(driver_.write(stream, on_device(counter), value, CU_STREAM_WRITE_VALUE_DEFAULT), "tell another GPU");
  }
  void check_driver(CUresult result, const char* what) const {
    if (result != CUDA_SUCCESS) check_cuda(static_cast<cudaError_t>(result), what, device_);  // the same numbers
  }

  static bool is_busy(cudaStream_t stream) {
    const bool busy = cudaStreamQuery(stream) == cudaErrorNotReady;
    cudaGetLastError();
    return busy;
  }

  void close() noexcept {
    if (cudaSetDevice(device_.index) != cudaSuccess) return;
    const bool has_failed = is_aborted_ || health_.failed();
    if (has_failed && !is_aborted_) abort();
    for (cudaStream_t side : {out_, in_}) {
      if (side == nullptr) continue;
      cudaStreamSynchronize(side);
      cudaStreamDestroy(side);
    }
    if (event_ != nullptr) cudaEventDestroy(event_);
    let_go();
    // Memory that another process still maps is left to this process's end.
    if (is_left_by_all_ || (is_possible() && !has_failed && have_all_left())) cudaFree(box_);
    if (is_registered_) cudaHostUnregister(memory_->data());
  }
  bool have_all_left() {
    if (memory_ == nullptr) return false;  // connecting was broken off: others may have the own memory by now
    left(own_).value = 1;
    const auto until = Clock::now() + kCloseTime;
    const auto has_left = [this](std::size_t r) { return left(r).value != 0; };
    for (std::size_t r = 0; r < world_; ++r) {
      while (!has_left(r)) {
        if (Clock::now() > until) return false;
        std::this_thread::yield();
      }
    }
    return true;
  }

  Device device_;
  const Health& health_;
  std::size_t own_, world_, slot_;  // slot_: bytes
  Driver driver_;
  std::string reason_;
  std::byte* box_ = nullptr;
  std::unique_ptr<SharedMemory> memory_;
  CUdeviceptr counters_ = 0;  // memory_, as this device sees it
  bool is_registered_ = false, is_left_by_all_ = false;
  std::vector<Peer> peers_;
  cudaStream_t out_ = nullptr, in_ = nullptr;
  cudaEvent_t event_ = nullptr;
  std::mutex mutex_;
  std::atomic<bool> is_aborted_{false};
};

}  // namespace

std::unique_ptr<DeviceLink> connect_peers(Comm& host, Device device, const Health& health, std::size_t box_bytes) {
  auto link = std::make_unique<PeerLink>(host, device, health, box_bytes);
  Offer own = link->offer();
  std::vector<Offer> offers(static_cast<std::size_t>(host.world_size()));
  host.all_gather(view_of(&own, sizeof(own)), view_of(offers.data(), offers.size() * sizeof(own)), "GPUs' memory");
  link->take(offers);
  std::int32_t is_reached = link->reason().empty() ? 1 : 0;
  host.all_reduce(View{&is_reached, DType::i32, 1, {1}, {1}}, "are the GPUs' memories reached", ReduceOp::kMin);
  if (is_reached == 1) return link;
  if (!link->reason().empty())
    logger().info("group ", host.name(), ": GPUs do not write into each other's memory, since ", link->reason());
  link->let_go();
  host.barrier("the GPUs' memories are let go");
  link->set_left_by_all();
  return nullptr;
}

}  // namespace castor::dist
