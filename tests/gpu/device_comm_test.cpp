// Collectives of GPU tensors on as many ranks as there are GPUs (one thread each), against the same collectives of the
// same values on the CPU: the bits must be equal, whatever the sizes of the pieces. And what is left when a rank dies.
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include <doctest/doctest.h>

#include "core/device/backend.h"
#include "core/ops/cast.h"
#include "core/ops/random.h"
#include "dist/comm_device.h"
#include "dist/comm_thread.h"

using namespace castor;
using namespace castor::dist;

namespace {

constexpr std::chrono::seconds kTimeout{60};

/// Runs fn on a thread for each GPU with the group of CPUs and that of GPUs.
void on_gpus(const std::function<void(Comm& host, Comm& gpus, Device gpu)>& fn) {
  REQUIRE(visible_gpus() > 0);
  run_ranks(visible_gpus(), [&](Comm& host) {
    Health health;
    const Device gpu{DeviceType::cuda, static_cast<std::int16_t>(host.rank())};
    const std::unique_ptr<Comm> gpus = make_device_comm(host, gpu, health, kTimeout);
    fn(host, *gpus, gpu);
    backend(gpu).synchronize();
  });
}

Tensor values_of(int rank, std::int64_t count, DType dtype) {
  const Tensor values = Tensor::empty({count}, DType::f32);
  fill_normal(values, {7, static_cast<std::uint64_t>(rank)}, 0, 1);
  return cast(values, dtype);
}

std::vector<std::byte> bytes_of(const Tensor& x) {
  std::vector<std::byte> bytes(x.view().bytes());
  x.copy_to_host(bytes.data(), bytes.size());
  return bytes;
}

/// Pieces of different sizes, one of them empty where there are several.
std::vector<Buffer> uneven_pieces(const Tensor& whole, int world) {
  std::vector<Buffer> pieces;
  std::int64_t begin = 0;
  for (int r = 0; r < world; ++r) {
    const std::int64_t left = whole.numel() - begin;
    const std::int64_t count = r + 1 == world ? left : r % 2 == 0 ? left / 2 + 1 : 0;
    pieces.emplace_back(whole.narrow(0, begin, count));
    begin += count;
  }
  return pieces;
}

}  // namespace

TEST_CASE("sums of GPU tensors have the bits of the CPU's, with and without a first term, in f32 and rounded") {
  on_gpus([](Comm& host, Comm& gpus, Device gpu) {
    for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
      for (const std::int64_t count : {1, 5000, 1 << 20}) {
        for (const bool accumulates : {false, true}) {
          const Tensor own = values_of(host.rank(), count, dtype), there = to_device(own, gpu);
          const std::vector<Buffer> pieces = uneven_pieces(own, host.world_size());
          const std::int64_t mine = pieces[static_cast<std::size_t>(host.rank())].view.numel();
          for (const DType wide : {DType::f32, dtype}) {
            const Tensor sum = values_of(100 + host.rank(), mine, wide), gpu_sum = to_device(sum, gpu);
            host.run(Collective::reduce_scatter(pieces, sum, "sum", ReduceOp::kSum, accumulates));
            gpus.run(Collective::reduce_scatter(uneven_pieces(there, host.world_size()), gpu_sum, "sum", ReduceOp::kSum,
                                                accumulates));
            CHECK(bytes_of(gpu_sum) == bytes_of(sum));
          }
          host.all_reduce(own);
          gpus.all_reduce(there);
          CHECK(bytes_of(there) == bytes_of(own));
        }
      }
    }
  });
}

TEST_CASE("GPU tensors are gathered, sent around and broadcast whole, beside collectives of the CPU") {
  on_gpus([](Comm& host, Comm& gpus, Device gpu) {
    const int world = host.world_size();
    for (const DType dtype : {DType::bf16, DType::i64, DType::u8}) {
      constexpr std::int64_t kCount = 4099;
      const Tensor own = cast(values_of(host.rank(), kCount, DType::f32), dtype), there = to_device(own, gpu);
      const Tensor all = Tensor::zeros({world * kCount}, dtype), gpu_all = Tensor::zeros({world * kCount}, dtype, gpu);
      host.all_gather(own, all);
      const Work gather = gpus.start(Collective::all_gather(there, {gpu_all}));
      host.barrier();
      gather.wait();
      CHECK(bytes_of(gpu_all) == bytes_of(all));

      const Tensor swapped = Tensor::zeros({world * kCount}, dtype),
                   gpu_swapped = Tensor::zeros({world * kCount}, dtype, gpu);
      host.all_to_all(all, swapped);
      gpus.all_to_all(gpu_all, gpu_swapped);
      CHECK(bytes_of(gpu_swapped) == bytes_of(swapped));

      host.broadcast(own, world - 1);
      gpus.broadcast(there, world - 1);
      CHECK(bytes_of(there) == bytes_of(own));
    }
  });
}

TEST_CASE("what GPUs are not for is refused, and where ranks disagree they are named and nobody hangs") {
  on_gpus([](Comm& host, Comm& gpus, Device gpu) {
    const Tensor x = Tensor::zeros({8}, DType::f32, gpu);
    CHECK_THROWS_AS(gpus.all_reduce(x, "largest", ReduceOp::kMax), DTypeError);
    CHECK_THROWS_AS(host.all_reduce(x), DeviceError);
    if (host.world_size() > 1) CHECK_THROWS_AS(gpus.send(x, (host.rank() + 1) % host.world_size()), DeviceError);
  });
}

TEST_CASE("when a rank has died, what others await on their GPUs ends in time, in all groups at once, and names it") {
  if (visible_gpus() < 2) {
    MESSAGE("one GPU here: a rank that waits for another one is not shown");
    return;
  }
  Health health;  // of the job
  run_ranks(2, [&](Comm& host) {
    const Device gpu{DeviceType::cuda, static_cast<std::int16_t>(host.rank())};
    const std::unique_ptr<Comm> world = make_device_comm(host, gpu, health, kTimeout);
    std::vector<std::unique_ptr<Comm>> groups;
    for (int i = 0; i < 3; ++i) groups.push_back(world->split(0, host.rank()));
    const Tensor x = Tensor::zeros({1 << 16}, DType::f32, gpu);
    for (const auto& group : groups) group->all_reduce(x);  // connects
    backend(gpu).synchronize();
    if (host.rank() == 1) {
      std::this_thread::sleep_for(std::chrono::milliseconds(300));
      health.report({1, "", 0, false, "rank 1 was killed"});
      host.abort("rank 1 was killed");
      return;
    }
    const auto begin = std::chrono::steady_clock::now();
    std::vector<Work> works;
    std::vector<Tensor> sums(groups.size());
    for (std::size_t i = 0; i < groups.size(); ++i) {
      sums[i] = Tensor::zeros({1 << 16}, DType::f32, gpu);
      works.push_back(groups[i]->start(Collective::all_reduce(sums[i])));
    }
    backend(gpu).synchronize();  // until what waits there is ended
    for (const Work& work : works) CHECK_THROWS_WITH_AS(work.wait(), doctest::Contains("rank 1 was killed"), CommError);
    groups.clear();
    CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(4));
    CHECK(Tensor::zeros({3}, DType::f32, gpu).to_vector<float>() == std::vector<float>(3, 0.0f));  // the GPU works on
  });
}

TEST_CASE("a rank that is still there a while after its job has failed is told to give its GPU up") {
  struct Told {
    std::mutex mutex;
    std::condition_variable changed;
    std::string text;
  };
  const auto told = std::make_shared<Told>();
  run_ranks(1, [&](Comm& host) {
    Health health;
    const std::unique_ptr<Comm> gpus =
        make_device_comm(host, {DeviceType::cuda, 0}, health, kTimeout, [told](const Failure& failure) {
          const std::lock_guard lock(told->mutex);
          told->text = failure.text;
          told->changed.notify_all();
        });
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    CHECK(told->text.empty());
    const auto begin = std::chrono::steady_clock::now();
    health.report({3, "", 0, false, "rank 3 was killed"});
    std::unique_lock lock(told->mutex);
    REQUIRE(told->changed.wait_for(lock, kUnwindTime + std::chrono::seconds(2), [&] { return !told->text.empty(); }));
    CHECK(told->text == "rank 3 was killed");
    CHECK(std::chrono::steady_clock::now() - begin >= kUnwindTime);
  });
}
