// Collectives of GPU tensors on as many ranks as there are GPUs, against the same collectives of the same values on the
// CPU: the bits must be equal, whatever the sizes of the pieces. And what is left when a rank dies.
//
// Each body is run by ranks that are threads, through NCCL, and by ranks that are processes, from memory to memory:
// this program starts itself as each of them, with the skipped case below. Processes may share GPUs, which are not many
// where tests run: so there are groups of several ranks on one GPU, and of four on two.
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include <cuda_runtime_api.h>
#include <doctest/doctest.h>

#include "build_config.h"
#include "core/base/file.h"
#include "core/device/backend.h"
#include "core/device/cuda_runtime.h"
#include "core/ops/cast.h"
#include "core/ops/random.h"
#include "dist/comm_device.h"
#include "dist/comm_thread.h"
#include "dist/job.h"
#include "dist/run_job.h"
#include "tests/support/rank_processes.h"
#include "tests/support/temp_dir.h"

using namespace castor;
using namespace castor::dist;

namespace {

constexpr std::chrono::seconds kTimeout{60};
constexpr const char* kRankCase = "a rank's part of a job on GPUs";

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
    const std::int64_t count = r + 1 == world ? left : r % 2 == 0 ? (left + 1) / 2 : 0;
    pieces.emplace_back(whole.narrow(0, begin, count));
    begin += count;
  }
  return pieces;
}

void check_sums(Comm& host, Comm& gpus, Device gpu) {
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
        const Tensor mean = values_of(host.rank(), mine, dtype), gpu_mean = to_device(mean, gpu);
        host.run(Collective::reduce_scatter(pieces, mean, "mean", ReduceOp::kMean));
        gpus.run(
            Collective::reduce_scatter(uneven_pieces(there, host.world_size()), gpu_mean, "mean", ReduceOp::kMean));
        CHECK(bytes_of(gpu_mean) == bytes_of(mean));
        for (const ReduceOp reduce : {ReduceOp::kMean, ReduceOp::kSum}) {
          host.all_reduce(own, "all", reduce);
          gpus.all_reduce(there, "all", reduce);
          CHECK(bytes_of(there) == bytes_of(own));
        }
      }
    }
  }
}

void check_moves(Comm& host, Comm& gpus, Device gpu) {
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
}

void check_large_pieces(Comm& host, Comm& gpus, Device gpu) {
  const int world = host.world_size();
  const std::unique_ptr<Comm> other = gpus.split(0, host.rank());
  constexpr std::int64_t kLarge = (std::int64_t{100} << 20) + 77, kSmall = 1000;
  std::vector<Work> works;
  std::vector<Tensor> all, expected, small;
  for (int i = 0; i < 3; ++i) {
    const Tensor own = Tensor::empty({kLarge}, DType::u8);
    for (std::int64_t at = 0; at < kLarge; ++at)
      own.view().as<std::uint8_t>()[at] = static_cast<std::uint8_t>(at * 7 / 5 + 31 * host.rank() + i);
    all.push_back(Tensor::zeros({world * kLarge}, DType::u8, gpu));
    expected.push_back(Tensor::zeros({world * kLarge}, DType::u8));
    host.all_gather(own, expected.back());
    works.push_back(gpus.start(Collective::all_gather(to_device(own, gpu), {all.back()})));
    small.push_back(Tensor::zeros({kSmall}, DType::f32, gpu));
    fill(small.back(), host.rank() + i);
    works.push_back(other->start(Collective::all_reduce(small.back())));
  }
  for (const Work& work : works) work.wait();
  for (std::size_t i = 0; i < all.size(); ++i) {
    CHECK(bytes_of(all[i]) == bytes_of(expected[i]));
    const float sum = static_cast<float>(world * (world - 1) / 2 + world * static_cast<int>(i));
    CHECK(small[i].to_vector<float>() == std::vector<float>(kSmall, sum));
  }
}

/// Ranks connect while their GPUs are busy with something else.
void check_busy_start(Comm& host, Comm& gpus, Device gpu) {
  constexpr std::int64_t kCount = 1 << 20;
  check_cuda(cudaSetDevice(gpu.index), "use the device", gpu);
  const auto dawdle = [](void*) { std::this_thread::sleep_for(std::chrono::milliseconds(300)); };
  check_cuda(cudaLaunchHostFunc(nullptr, dawdle, nullptr), "launch a function of the host's", gpu);
  const std::unique_ptr<Comm> group = gpus.split(0, host.rank());
  const Tensor all = Tensor::zeros({host.world_size() * kCount}, DType::f32, gpu);
  group->all_gather(full({kCount}, 1, DType::f32, gpu), all);
  check_cuda(cudaStreamSynchronize(nullptr), "wait for the device", gpu);
  CHECK(bytes_of(all) == bytes_of(full({all.numel()}, 1, DType::f32)));
}

void check_refusals(Comm& host, Comm& gpus, Device gpu) {
  const Tensor x = Tensor::zeros({8}, DType::f32, gpu);
  CHECK_THROWS_AS(gpus.all_reduce(x, "largest", ReduceOp::kMax), DTypeError);
  CHECK_THROWS_AS(host.all_reduce(x), DeviceError);
  if (host.world_size() > 1) CHECK_THROWS_AS(gpus.send(x, (host.rank() + 1) % host.world_size()), DeviceError);
}

/// Rank 0 waits on its GPU, in three groups, for rank 1, which has died: `die` ends it, or says that it has.
void check_death(Comm& host, Comm& gpus, Device gpu, const std::function<void()>& die) {
  std::vector<std::unique_ptr<Comm>> groups;
  for (int i = 0; i < 3; ++i) groups.push_back(gpus.split(0, host.rank()));
  const Tensor x = Tensor::zeros({1 << 16}, DType::f32, gpu);
  for (const auto& group : groups) group->all_reduce(x);  // connects
  backend(gpu).synchronize();
  if (host.rank() == 1) {
    host.barrier();  // behind rank 0's starts, however long a tool that watches it takes for them
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    return die();
  }
  std::vector<Work> works;
  std::vector<Tensor> sums(groups.size());
  for (std::size_t i = 0; i < groups.size(); ++i) {
    sums[i] = Tensor::zeros({1 << 16}, DType::f32, gpu);
    works.push_back(groups[i]->start(Collective::all_reduce(sums[i])));
  }
  host.barrier();
  const auto begin = std::chrono::steady_clock::now();
  backend(gpu).synchronize();  // until what waits there is ended
  for (const Work& work : works) REQUIRE_THROWS_WITH_AS(work.wait(), doctest::Contains("rank 1"), CommError);
  groups.clear();
  REQUIRE(std::chrono::steady_clock::now() - begin < std::chrono::seconds(4));
  REQUIRE(Tensor::zeros({3}, DType::f32, gpu).to_vector<float>() == std::vector<float>(3, 0.0f));  // the GPU works on
}

void check_death_of_process(Comm& host, Comm& gpus, Device gpu) {
  check_death(host, gpus, gpu, [] { raise(SIGKILL); });
  write_file_atomically(join_path(std::getenv("CASTOR_TEST_FOLDER"), "survived"), "");
}

/// What the ranks of a job do.
struct Body {
  const char* name;
  void (*run)(Comm& host, Comm& gpus, Device gpu);
};
constexpr Body kSums{"sums", check_sums}, kMoves{"moves", check_moves},
    kLargePieces{"large pieces", check_large_pieces}, kBusyStart{"busy start", check_busy_start},
    kRefusals{"refusals", check_refusals}, kDeath{"death", check_death_of_process};

/// Runs a body on as many processes. Returns run_job's code.
int as_processes(const Body& body, int ranks) {
  setenv("CASTOR_TEST_BODY", body.name, 1);
  return run_job(test::ranks_of(kRankCase, ranks));
}

void run_everywhere(const Body& body, int ranks_per_gpu = 2) {
  REQUIRE(visible_gpus() > 0);
  if constexpr (kHasNccl) {
    run_ranks(visible_gpus(), [&](Comm& host) {
      Health health;
      const Device gpu{DeviceType::cuda, static_cast<std::int16_t>(host.rank())};
      const std::unique_ptr<Comm> gpus = make_device_comm(host, gpu, health, {kTimeout, GpuTransport::kNccl});
      body.run(host, *gpus, gpu);
      backend(gpu).synchronize();
    });
  }
  for (int share = 1; share <= ranks_per_gpu; ++share) {
    CAPTURE(share);
    CHECK(as_processes(body, share * visible_gpus()) == 0);
  }
}

}  // namespace

TEST_CASE("a rank's part of a job on GPUs" * doctest::skip()) {
  const std::string name = std::getenv("CASTOR_TEST_BODY");
  Job job(rank_info_from(process_environment()), {});
  const Device gpu{DeviceType::cuda, static_cast<std::int16_t>(job.info().local_rank % visible_gpus())};
  const std::unique_ptr<Comm> gpus = make_device_comm(job.world(), gpu, job.health(), {kTimeout, GpuTransport::kPeer});
  for (const Body& body : {kSums, kMoves, kLargePieces, kBusyStart, kRefusals, kDeath}) {
    if (name == body.name) body.run(job.world(), *gpus, gpu);
  }
  backend(gpu).synchronize();
}

TEST_CASE(
    "sums and means of GPU tensors have the bits of the CPU's, with and without a first term, in f32 and rounded") {
  run_everywhere(kSums);
}

TEST_CASE("GPU tensors are gathered, sent around and broadcast whole, beside collectives of the CPU") {
  run_everywhere(kMoves);
}

TEST_CASE("pieces larger than what a transport holds at a time arrive whole, while others are on their way") {
  run_everywhere(kLargePieces, visible_gpus() > 1 ? 1 : 2);
}

TEST_CASE("ranks whose GPUs are busy when they connect lose nothing of what is sent first") {
  run_everywhere(kBusyStart);
}

TEST_CASE("what GPUs are not for is refused, and where ranks disagree they are named and nobody hangs") {
  run_everywhere(kRefusals);
}

TEST_CASE("when a rank has died, what others await on their GPUs ends in time, in all groups at once, and names it") {
  const test::TempDir folder;
  setenv("CASTOR_TEST_FOLDER", folder.path().c_str(), 1);
  CHECK(as_processes(kDeath, 2) == 128 + SIGKILL);
  CHECK(std::filesystem::exists(folder.path() / "survived"));
  if constexpr (kHasNccl) {
    if (visible_gpus() < 2) return;  // NCCL's ranks have GPUs of their own
    Health health;                   // of the job
    run_ranks(2, [&](Comm& host) {
      const Device gpu{DeviceType::cuda, static_cast<std::int16_t>(host.rank())};
      const std::unique_ptr<Comm> gpus = make_device_comm(host, gpu, health, {kTimeout, GpuTransport::kNccl});
      check_death(host, *gpus, gpu, [&] {
        health.report({1, "", 0, false, "rank 1 was killed"});
        host.abort("rank 1 was killed");
      });
    });
  }
}

TEST_CASE("ranks that are threads of one process are told that their GPUs do not reach each other, or use NCCL") {
  if (visible_gpus() < 2) {
    MESSAGE("one GPU here: nothing to reach");
    return;
  }
  run_ranks(2, [&](Comm& host) {
    Health health;
    const Device gpu{DeviceType::cuda, static_cast<std::int16_t>(host.rank())};
    const Tensor x = full({8}, host.rank(), DType::f32, gpu);
    const std::unique_ptr<Comm> peers = make_device_comm(host, gpu, health, {kTimeout, GpuTransport::kPeer});
    CHECK_THROWS_WITH_AS(peers->all_reduce(x), doctest::Contains("use auto or nccl"), DeviceError);
    if (!kHasNccl) return;
    const std::unique_ptr<Comm> any = make_device_comm(host, gpu, health, {kTimeout});
    any->all_reduce(x);
    CHECK(x.to_vector<float>() == std::vector<float>(8, 1.0f));
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
    const std::unique_ptr<Comm> gpus = make_device_comm(host, {DeviceType::cuda, 0}, health,
                                                        {kTimeout, GpuTransport::kAuto, [told](const Failure& failure) {
                                                           const std::lock_guard lock(told->mutex);
                                                           told->text = failure.text;
                                                           told->changed.notify_all();
                                                         }});
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
