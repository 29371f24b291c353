// The device below the tensors: memory under a limit, reuse in stream order, events between streams, copies, and what
// happens when something is wrong: no such GPU, no memory, a kernel that lost the device.
//
// Delicate: ordering is shown by holding a stream back with a host function that sleeps, never by measuring time. The
// lost device gets a process of its own, because nothing on it works afterwards.
#include <chrono>
#include <climits>
#include <cstdio>
#include <thread>

#include <cuda_runtime_api.h>
#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/device/backend_cuda.h"
#include "core/device/cuda_runtime.h"
#include "core/ops/cast.h"
#include "core/ops/elementwise.h"
#include "tests/gpu/same_bits.h"

using namespace castor;
using namespace castor::test;

namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;

/// Holds back what is enqueued on `stream` from here on.
void delay(cudaStream_t stream) {
  const cudaHostFn_t sleep = [](void*) { std::this_thread::sleep_for(std::chrono::milliseconds(50)); };
  check_cuda(cudaLaunchHostFunc(stream, sleep, nullptr), "delay", kGpu);
}

cudaStream_t compute_stream() { return static_cast<cudaStream_t>(backend(kGpu).stream()); }

/// A stream beside the compute stream.
class SideStream {
 public:
  SideStream() { check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "create a stream", kGpu); }
  ~SideStream() { cudaStreamDestroy(stream_); }
  SideStream(const SideStream&) = delete;
  SideStream& operator=(const SideStream&) = delete;
  cudaStream_t get() const { return stream_; }

  /// The stream's end, as an Event of the backend.
  Event record() const {
    cudaEvent_t event = nullptr;
    check_cuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "create an event", kGpu);
    check_cuda(cudaEventRecord(event, stream_), "record an event", kGpu);
    return Event(event, [](void* held) { cudaEventDestroy(static_cast<cudaEvent_t>(held)); });
  }

 private:
  cudaStream_t stream_ = nullptr;
};

std::vector<float> filled(std::size_t count, float value) { return std::vector<float>(count, value); }

struct Outcome {
  std::string output;
  int status = -1;  ///< the exit code; -1: ended by a signal
};

/// Runs one test case of this program, skipped otherwise, in a process of its own.
Outcome run_alone(const std::string& name) {
  char program[PATH_MAX] = {};
  REQUIRE(readlink("/proc/self/exe", program, sizeof(program) - 1) > 0);
  FILE* const pipe = popen(cat("timeout 60 '", program, "' --no-skip --test-case='", name, "' 2>&1").c_str(), "r");
  REQUIRE(pipe != nullptr);
  std::string output;
  char buffer[4096];
  while (std::fgets(buffer, sizeof(buffer), pipe) != nullptr) output += buffer;
  const int status = pclose(pipe);
  return {output, WIFEXITED(status) ? WEXITSTATUS(status) : -1};
}

}  // namespace

TEST_CASE("a GPU that is not there is a DeviceError, and leaves the others alone") {
  const int count = cuda_device_count();
  const Device beyond{DeviceType::cuda, static_cast<std::int16_t>(count)};
  const char* const said = count == 0 ? "nvidia-smi" : "numbered from 0";
  for (int attempt = 0; attempt < 2; ++attempt) {
    CHECK_THROWS_WITH_AS(backend(beyond), doctest::Contains(said), DeviceError);
    CHECK_THROWS_WITH_AS(Tensor::empty({1}, DType::f32, beyond), doctest::Contains(said), DeviceError);
    CHECK(full({2}, 1.5, DType::f32).to_vector<float>() == filled(2, 1.5f));
  }
  CHECK_THROWS_AS(make_cuda_backend(-1), DeviceError);
}

TEST_CASE("an error says what was tried, CUDA's words and what to do") {
  CHECK_THROWS_WITH_AS(check_cuda(cudaErrorNoKernelImageForDevice, "unary", kGpu), doctest::Contains("-Dgpu_archs"),
                       DeviceError);
  CHECK_THROWS_WITH_AS(
      check_cuda(cudaErrorIllegalAddress, "copy to host", kGpu),
      doctest::Contains(
          "copy to host on cuda:0: CUDA says 'an illegal memory access was encountered' (cudaErrorIllegalAddress); "),
      DeviceError);
  CHECK_NOTHROW(check_cuda(cudaSuccess, "unary", kGpu));
}

TEST_CASE("an allocator over the GPU keeps its limit, reuses blocks and counts by category") {
  const std::unique_ptr<Backend> gpu = make_cuda_backend(0);
  CachingAllocator memory(*gpu, kGpu);
  memory.set_limit(64 * kMiB);
  const CategoryScope scope(Category::optimizer);
  CachingAllocator::Block* const first = memory.allocate(40 * kMiB);
  void* const address = CachingAllocator::data(first);
  CHECK(reinterpret_cast<std::uintptr_t>(address) % 256 == 0);
  CHECK_THROWS_WITH_AS(memory.allocate(30 * kMiB), doctest::Contains("free of the limit of 64.0 MiB"), OutOfMemory);
  memory.release(first);
  CachingAllocator::Block* const second = memory.allocate(40 * kMiB);
  CHECK(CachingAllocator::data(second) == address);
  CachingAllocator::Block* const small = memory.allocate(1000);
  MemoryStats stats = memory.stats();
  CHECK(stats.system_allocations == 2);
  CHECK(stats.allocations == 3);
  CHECK(stats.current[static_cast<int>(Category::optimizer)] == 40 * kMiB + 1024);
  CHECK(stats.reserved == 42 * kMiB);
  memory.release(second);
  memory.release(small);
  memory.release_cached();
  stats = memory.stats();
  CHECK(stats.reserved == 0);
  CHECK(stats.peak_total == 40 * kMiB + 1024);
}

TEST_CASE("memory that the GPU does not have is OutOfMemory, and the GPU works on") {
  const std::size_t total = backend(kGpu).total_bytes();
  CHECK(total > 0);
  CHECK(backend(kGpu).allocate(total + kMiB) == nullptr);
  const auto too_many = static_cast<std::int64_t>(total + kMiB);
  CHECK_THROWS_WITH_AS(Tensor::empty({too_many}, DType::u8, kGpu), doctest::Contains("smaller micro-batch"),
                       OutOfMemory);
  CHECK(full({3}, 2, DType::f32, kGpu).to_vector<float>() == filled(3, 2));
}

TEST_CASE("a freed block is written by later work only") {
  constexpr std::int64_t kCount = std::int64_t{1} << 20;
  std::vector<Tensor> kept;
  const std::uint64_t before = allocator(kGpu).stats().system_allocations;
  delay(compute_stream());
  for (int i = 0; i < 100; ++i) {
    const Tensor block = full({kCount}, i, DType::f32, kGpu);  // the bytes of the one before
    kept.push_back(clone(block.narrow(0, kCount - 3, 3)));
  }
  for (int i = 0; i < 100; ++i)
    CHECK(kept[static_cast<std::size_t>(i)].to_vector<float>() == filled(3, static_cast<float>(i)));
  CHECK(allocator(kGpu).stats().system_allocations <= before + 2);
}

TEST_CASE("a storage that is pointed elsewhere waits for the bytes to be ready") {
  constexpr std::size_t kCount = 1000;
  const Tensor x = full({kCount}, 1, DType::f32, kGpu);
  const Tensor tail = x.narrow(0, 10, kCount - 10);
  auto brought = std::make_shared<Tensor>(full({kCount}, -1, DType::f32, kGpu));
  const Tensor source = full({kCount}, 5, DType::f32, kGpu);
  backend(kGpu).synchronize();
  const SideStream side;
  delay(side.get());
  void* const address = brought->storage()->data();
  check_cuda(cudaMemcpyAsync(address, source.view().data, kCount * sizeof(float), cudaMemcpyDeviceToDevice, side.get()),
             "copy", kGpu);
  x.storage()->point_to(address, brought, side.record(), "gathered");
  CHECK(unary(UnaryOp::affine, tail, 2, 0).to_vector<float>() == filled(kCount - 10, 10));
  x.storage()->drop("released");
  CHECK(brought.use_count() == 1);
  CHECK_THROWS_WITH_AS(tail.view(), doctest::Contains("history: gathered, released."), DeviceError);
  x.storage()->allocate("materialised");
  fill(x, 3);
  CHECK(tail.to_vector<float>() == filled(kCount - 10, 3));
}

TEST_CASE("another stream that waits for an event does not overtake the compute stream") {
  constexpr std::size_t kCount = 1000;
  const Tensor x = full({kCount}, 1, DType::f32, kGpu);
  backend(kGpu).synchronize();
  const SideStream side;
  delay(compute_stream());
  const Tensor read = clone(x);
  x.storage()->record_use();
  const Event done = backend(kGpu).record();
  check_cuda(cudaStreamWaitEvent(side.get(), static_cast<cudaEvent_t>(done.get()), 0), "wait for an event", kGpu);
  check_cuda(cudaMemsetAsync(x.view().data, 0, kCount * sizeof(float), side.get()), "fill with zeros", kGpu);
  backend(kGpu).wait(side.record());
  CHECK(x.to_vector<float>() == filled(kCount, 0));
  CHECK(read.to_vector<float>() == filled(kCount, 1));
}

TEST_CASE("events are taken from a pool and outlive their backend") {
  Event kept;
  {
    const std::unique_ptr<Backend> gpu = make_cuda_backend(0);
    const void* const first = gpu->record().get();
    CHECK(first != nullptr);
    CHECK(gpu->record().get() == first);
    kept = gpu->record();
    CHECK(gpu->record().get() != kept.get());
    gpu->wait(kept);
    gpu->wait({});
  }
  backend(kGpu).wait(kept);
  CHECK(kept.use_count() == 1);
}

TEST_CASE("the source of a copy to the GPU may change when the copy returns") {
  constexpr std::size_t kCount = 8 * kMiB;
  const Tensor x = Tensor::empty({kCount}, DType::u8, kGpu);
  std::vector<std::uint8_t> pageable(kCount, 1);
  void* pinned = nullptr;
  check_cuda(cudaMallocHost(&pinned, kCount), "allocate pinned memory", kGpu);
  for (std::uint8_t* const source : {pageable.data(), static_cast<std::uint8_t*>(pinned)}) {
    std::memset(source, 1, kCount);
    delay(compute_stream());
    x.copy_from_host(source, kCount);
    std::memset(source, 2, kCount);
    CHECK(x.to_vector<std::uint8_t>() == std::vector<std::uint8_t>(kCount, 1));
  }
  cudaFreeHost(pinned);
}

TEST_CASE("threads share the GPU") {
  constexpr int kThreads = 4;
  std::vector<std::vector<float>> results(kThreads);
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&results, i] {
      Tensor x = full({5000}, i, DType::f32, kGpu);
      for (int step = 0; step < 50; ++step) x = add(x, x.narrow(0, 0, 1));
      results[static_cast<std::size_t>(i)] = scale(x, 1.0 / 1125899906842624.0).to_vector<float>();  // 2^-50
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (int i = 0; i < kThreads; ++i) CHECK(results[static_cast<std::size_t>(i)] == filled(5000, static_cast<float>(i)));
}

TEST_CASE("every GPU computes, and bytes travel between them") {
  if (cuda_device_count() < 2) {
    MESSAGE("one GPU here: moves between two are not shown");
    return;
  }
  const Device second{DeviceType::cuda, 1};
  const Tensor x = full({100}, 3, DType::f32, kGpu);
  const Tensor y = add(to_device(x, second), full({100}, 1, DType::f32, second));
  CHECK(y.device() == second);
  CHECK(to_device(y, kGpu).to_vector<float>() == filled(100, 4));
  CHECK(add(x, x).to_vector<float>() == filled(100, 6));
}

TEST_CASE("alone: after a kernel lost the device every call says so, and the program ends in order" * doctest::skip()) {
  const Tensor x = full({1000}, 1, DType::f32, kGpu);
  const Tensor y = full({1000}, 1, DType::f32, kGpu);
  y.storage()->record_use();
  View nowhere = x.view();
  nowhere.data = reinterpret_cast<void*>(std::uintptr_t{4096});
  dispatch(kGpu, UnaryArgs{nowhere, y.view(), UnaryOp::exp, 0, 0});
  CHECK_THROWS_WITH_AS(y.to_vector<float>(), doctest::Contains("this process has lost the device"), DeviceError);
  CHECK_THROWS_AS(clone(y), DeviceError);
  CHECK_THROWS_AS(Tensor::empty({std::int64_t{1} << 30}, DType::u8, kGpu), DeviceError);
  CHECK_THROWS_AS(backend(kGpu).synchronize(), DeviceError);
}

TEST_CASE("a kernel that lost the device ends in a typed error") {
  const Outcome alone = run_alone("alone: after a kernel lost the device*");
  CHECK_MESSAGE(alone.status == 0, alone.output);
  CHECK_MESSAGE(alone.output.find("1 passed, 0 failed") != std::string::npos, alone.output);
}
