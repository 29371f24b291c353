// Collectives of GPU tensors on as many ranks as there are GPUs (one thread each), against the same collectives of the
// same values on the CPU: the bits must be equal, whatever the sizes of the pieces.
#include <chrono>
#include <functional>
#include <memory>
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
