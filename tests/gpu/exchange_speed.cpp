// What sums of gradients with the same bits for any number of GPUs cost, beside NCCL's own reduce-scatter, which adds
// along a ring and rounds at each hop: the rate of each alone, and by how much products that run beside it take longer.
//
// usage: gpu_exchange     needs two GPUs or more of one host; starts itself as a rank for each; prints a table
//
// Each way is timed in turn with the others, from a barrier until the last rank is done; medians. Products are those of
// the feed-forward layer of the 1.5B model with batches of 16, on the compute queue, while exchanges follow each other.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <cuda_runtime_api.h>
#include <nccl.h>

#include "core/base/clock.h"
#include "core/base/error.h"
#include "core/device/backend.h"
#include "core/device/cuda_runtime.h"
#include "core/ops/matmul.h"
#include "core/ops/random.h"
#include "dist/comm_device.h"
#include "dist/job.h"
#include "dist/run_job.h"

using namespace castor;
using namespace castor::dist;

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kRounds = 9, kWarmUps = 2;
constexpr double kRoundSeconds = 0.03;  // exchanges follow each other for about as long
constexpr int kProducts = 60;
constexpr const char* kAsRank = "--as-rank";

/// Sums the ranks' tensors; each rank keeps its piece.
struct Way {
  std::string name;
  std::function<void(const Tensor& whole, const Tensor& piece)> start;
  std::function<void()> finish;  ///< returns when all that was started is done
};

Way castor_way(const std::string& name, Comm& gpus, Device gpu) {
  const auto works = std::make_shared<std::vector<Work>>();
  return {name,
          [&gpus, works](const Tensor& whole, const Tensor& piece) {
            works->push_back(gpus.start(Collective::reduce_scatter({whole}, piece, "sum")));
          },
          [works, gpu] {
            for (const Work& work : *works) work.wait();
            works->clear();
            backend(gpu).synchronize();
          }};
}

void check_nccl(ncclResult_t result) {
  if (result != ncclSuccess) throw CommError(cat("NCCL: ", ncclGetErrorString(result)), -1, "nccl", 0);
}

/// A communicator and the stream it is used on.
class NcclGroup {
 public:
  NcclGroup(Comm& host, Device gpu) : gpu_(gpu) {
    ncclUniqueId id{};
    if (host.rank() == 0) check_nccl(ncclGetUniqueId(&id));
    host.broadcast(View{&id, DType::u8, 1, {static_cast<std::int64_t>(sizeof(id))}, {1}}, 0);
    check_cuda(cudaSetDevice(gpu.index), "use the device", gpu);
    check_nccl(ncclCommInitRank(&comm_, host.world_size(), id, host.rank()));
    int lowest = 0, highest = 0;
    check_cuda(cudaDeviceGetStreamPriorityRange(&lowest, &highest), "create a stream", gpu);
    check_cuda(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, highest), "create a stream", gpu);
  }
  NcclGroup(const NcclGroup&) = delete;
  NcclGroup& operator=(const NcclGroup&) = delete;
  ~NcclGroup() {
    ncclCommDestroy(comm_);
    cudaStreamDestroy(stream_);
  }

  void reduce_scatter(const Tensor& whole, const Tensor& piece) {
    check_nccl(ncclReduceScatter(whole.view().data, piece.view().data, static_cast<std::size_t>(piece.numel()),
                                 ncclBfloat16, ncclSum, comm_, stream_));
  }
  void finish() { check_cuda(cudaStreamSynchronize(stream_), "wait for a stream", gpu_); }

 private:
  Device gpu_;
  ncclComm_t comm_ = nullptr;
  cudaStream_t stream_ = nullptr;
};

Way nccl_way(Comm& host, Device gpu) {
  const auto group = std::make_shared<NcclGroup>(host, gpu);
  return {"NCCL's own", [group](const Tensor& whole, const Tensor& piece) { group->reduce_scatter(whole, piece); },
          [group] { group->finish(); }};
}

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

class Race {
 public:
  Race(Comm& host, Device gpu, std::vector<Way> ways) : host_(host), gpu_(gpu), ways_(std::move(ways)) {
    x_ = Tensor::empty({16384, 1600}, DType::bf16, gpu);
    w_ = Tensor::empty({1600, 6400}, DType::bf16, gpu);
    fill_normal(x_, {1, 1});
    fill_normal(w_, {2, 1});
  }

  void report(std::int64_t mib) {
    const Tensor whole = Tensor::zeros({mib << 19}, DType::bf16, gpu_),
                 piece = Tensor::empty({whole.numel() / host_.world_size()}, DType::bf16, gpu_);
    backend(gpu_).synchronize();
    std::vector<int> calls;
    for (const Way& way : ways_) {
      seconds(way, whole, piece, 2);
      calls.push_back(std::max(1, static_cast<int>(kRoundSeconds / seconds(way, whole, piece, 4) * 4)));
    }
    std::vector<std::vector<double>> times(ways_.size()), products(ways_.size());
    std::vector<double> alone;
    for (int round = 0; round < kRounds + kWarmUps; ++round) {
      const double product = seconds_of_products(nullptr, whole, piece, 0);
      if (round >= kWarmUps) alone.push_back(product);
      for (std::size_t i = 0; i < ways_.size(); ++i) {
        const double own = seconds(ways_[i], whole, piece, calls[i]) / calls[i];
        // Twice as many: the last product is done before the last exchange.
        const double beside = seconds_of_products(&ways_[i], whole, piece, 2 * calls[i]);
        if (round < kWarmUps) continue;
        times[i].push_back(own);
        products[i].push_back(beside);
      }
    }
    if (host_.rank() != 0) return;
    std::printf("%5lld MiB bf16", static_cast<long long>(mib));
    const double sent = static_cast<double>(mib << 20) * (host_.world_size() - 1) / host_.world_size();
    for (std::size_t i = 0; i < ways_.size(); ++i) {
      std::printf(" | %s %7.3f ms %4.0f GB/s, products +%4.1f %%", ways_[i].name.c_str(), median(times[i]) * 1e3,
                  sent / median(times[i]) * 1e-9, 100 * (median(products[i]) / median(alone) - 1));
    }
    std::printf("\n");
    std::fflush(stdout);
  }

 private:
  double slowest(double seconds) {
    host_.all_reduce(View{&seconds, DType::f64, 1, {1}, {1}}, "seconds", ReduceOp::kMax);
    return seconds;
  }
  double seconds(const Way& way, const Tensor& whole, const Tensor& piece, int calls) {
    host_.barrier();
    const auto begin = Clock::now();
    for (int call = 0; call < calls; ++call) way.start(whole, piece);
    way.finish();
    return slowest(seconds_since(begin));
  }
  double seconds_of_products(const Way* way, const Tensor& whole, const Tensor& piece, int calls) {
    host_.barrier();
    for (int call = 0; call < calls; ++call) way->start(whole, piece);
    const auto begin = Clock::now();
    for (int product = 0; product < kProducts; ++product) matmul(x_, w_);
    const Event end = backend(gpu_).record();
    while (!backend(gpu_).has_passed(end)) continue;
    const double seconds = seconds_since(begin);
    if (way != nullptr) way->finish();
    return slowest(seconds);
  }

  Comm& host_;
  Device gpu_;
  std::vector<Way> ways_;
  Tensor x_, w_;
};

int run_rank() {
  constexpr std::chrono::seconds kTimeout{60};
  Job job(rank_info_from(process_environment()), {});
  Comm& host = job.world();
  const Device gpu{DeviceType::cuda, static_cast<std::int16_t>(job.info().local_rank)};
  std::vector<Way> ways;
  const auto peers = make_device_comm(host, gpu, job.health(), {kTimeout, GpuTransport::kPeer});
  ways.push_back(castor_way("from memory to memory", *peers, gpu));
  const auto through_nccl = make_device_comm(host, gpu, job.health(), {kTimeout, GpuTransport::kNccl});
  ways.push_back(castor_way("through NCCL", *through_nccl, gpu));
  ways.push_back(nccl_way(host, gpu));
  {
    Race race(host, gpu, std::move(ways));
    for (const std::int64_t mib : {4, 16, 64, 256, 1024}) race.report(mib);
  }
  backend(gpu).synchronize();
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc == 2 && std::string(argv[1]) == kAsRank) return run_rank();
    if (argc != 1) {
      std::fprintf(stderr, "usage: gpu_exchange\n");
      return 2;
    }
    if (visible_gpus() < 2) {
      std::fprintf(stderr, "gpu_exchange: expected two GPUs or more, there are %d here\n", visible_gpus());
      return 2;
    }
    std::printf("%d GPUs, reduce-scatter; GB/s: what each sends\n", visible_gpus());
    std::fflush(stdout);
    RunJobOptions options;
    options.command = {"/proc/self/exe", kAsRank};
    options.processes = visible_gpus();
    return run_job(options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "gpu_exchange: %s\n", error.what());
    return 1;
  }
}
