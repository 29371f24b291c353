// A training step of the 6 x 384 GPT over ranks of this machine, each a process with one thread and a batch of its own:
// under each of our plugins, with a plain ring all-reduce in place of one, and under PyTorch's DDP over gloo, in turn.
//
// The program starts itself as ranks (jobs.h) and peers/torch_ddp.py as the peer's. "ring" is what a sum costs whose
// bits depend on the number of ranks: the same backward, then rings over 25 MiB of gradients at a time, then the step.
// Arguments: --ranks N (2), --rounds N (5), --max-other PCT (5), --repeats N (5), --only SIDE (without the peer).
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "autograd/optim/adam.h"
#include "core/base/error.h"
#include "dist/job.h"
#include "samples/gpt/dataset.h"
#include "samples/gpt/model.h"
#include "strategy/colossalai_strategy.h"
#include "strategy/data/data_loader.h"
#include "strategy/ddp/torch_ddp_plugin.h"
#include "strategy/gemini/gemini_plugin.h"
#include "strategy/low_level_zero/low_level_zero_plugin.h"
#include "tests/bench/jobs.h"

using namespace castor;

namespace {

constexpr const char* kPeerProgram = "tests/bench/peers/torch_ddp.py";
constexpr const char* kPeerLibraries = "LD_LIBRARY_PATH=/usr/lib/x86_64-linux-gnu/openblas-openmp";
constexpr std::int64_t kContext = 256;
constexpr std::int64_t kBatch = 8;  // of a rank
constexpr int kWarmups = 2;

std::shared_ptr<autograd::TrainableModel> make_model(const autograd::TensorOptions& options) {
  samples::GptConfig config;
  config.n_layer = 6;
  config.n_head = 6;
  config.n_embd = 384;
  config.block_size = kContext;
  config.vocab_size = 256;
  return std::make_shared<samples::Gpt>(config, options);
}

std::unique_ptr<autograd::Optimizer> make_optimizer() {
  autograd::AdamWConfig config;
  config.lr = 3e-4;
  config.betas = {0.9, 0.95};
  config.weight_decay = 0.1;
  return std::make_unique<autograd::AdamW>(config);
}

std::unique_ptr<strategy::Plugin> make_plugin(const std::string& name) {
  if (name == "ddp") return std::make_unique<strategy::TorchDDPPlugin>(strategy::TorchDDPPlugin::Config{});
  if (name == "zero-2") {
    strategy::LowLevelZeroPlugin::Config config;
    config.stage = 2;
    config.precision = "fp32";
    return std::make_unique<strategy::LowLevelZeroPlugin>(config);
  }
  if (name == "gemini") {
    strategy::GeminiPlugin::Config config;
    config.precision = "fp32";
    return std::make_unique<strategy::GeminiPlugin>(config);
  }
  throw ConfigError(cat("--only ", name, ": there are ddp, zero-2, gemini and ring"), "--only");
}

strategy::DataLoader make_loader(const dist::Comm& world) {
  samples::ByteTextConfig text;
  text.context = kContext;
  text.held_out_fraction = 0;
  strategy::SamplerOptions order;
  order.batch_size = kBatch;
  order.drop_last = true;
  order.rank = world.rank();
  order.world_size = world.world_size();
  return strategy::DataLoader(std::make_shared<const samples::ByteText>(text), order);
}

/// Data-parallel training as it is done where bits may depend on the number of ranks.
class RingTraining {
 public:
  explicit RingTraining(dist::Comm& world) : world_(world), optimizer_(make_optimizer()) {
    model_ = make_model({});
    autograd::initialize(*model_, 0);
    std::int64_t elements = 0;
    for (const auto& [name, parameter] : model_->named_parameters()) elements += parameter.data().numel();
    gradients_ = Tensor::zeros({elements}, DType::f32);
    std::vector<autograd::Part> parts;
    for (const auto& [name, parameter] : model_->named_parameters()) parts.emplace_back(parameter, 0);
    stepper_ = std::make_unique<autograd::Stepper>(*optimizer_, std::move(parts));
  }

  void step(const autograd::Batch& batch) {
    constexpr std::int64_t kBucket = std::int64_t{25} << 18;  // elements of 25 MiB
    stepper_->zero_grad();
    autograd::backward(autograd::total_loss(model_->loss(batch)));
    std::int64_t offset = 0;
    for (autograd::Part& part : stepper_->parts()) {
      const std::int64_t count = part.variable.data().numel();
      part.gradient = gradients_.narrow(0, offset, count);
      std::memcpy(part.gradient.view().data, part.variable.grad().view().data, part.gradient.view().bytes());
      offset += count;
    }
    for (std::int64_t start = 0; start < offset; start += kBucket) {
      dist::Collective sum =
          dist::Collective::all_reduce(gradients_.narrow(0, start, std::min(kBucket, offset - start)), "gradients");
      sum.order = dist::SumOrder::kRing;
      world_.run(sum);
    }
    stepper_->step(1.0 / world_.world_size());
  }

 private:
  dist::Comm& world_;
  std::unique_ptr<autograd::Optimizer> optimizer_;
  std::shared_ptr<autograd::TrainableModel> model_;
  Tensor gradients_;
  std::unique_ptr<autograd::Stepper> stepper_;
};

/// A rank: --rank RESULT_FILE REPEATS SIDE.
int run_rank(const std::vector<std::string>& arguments) {
  const dist::RankInfo info = dist::rank_info_from(dist::process_environment());
  bench::pin_rank(info.rank, info.world_size);
  const int repeats = std::stoi(arguments.at(1));
  const std::string& side = arguments.at(2);
  dist::Job job(info, {});
  strategy::DataLoader loader = make_loader(job.world());
  if (side == "ring") {
    RingTraining training(job.world());
    bench::time_rank(job.world(), kWarmups, repeats, arguments.at(0), [&] { training.step(loader.next()); });
    return 0;
  }
  strategy::ColossalAIStrategy strategy(kCpu, 0, {}, make_plugin(side), job.world());
  strategy::PrepareOptions options;
  options.optimizer = make_optimizer;
  strategy.prepare(make_model, options);
  bench::time_rank(job.world(), kWarmups, repeats, arguments.at(0), [&] { strategy.train_step(loader.next()); });
  return 0;
}

void drive(std::vector<std::string> words) {
  setenv("GLOO_SOCKET_IFNAME", "lo", 1);
  setenv("OMP_NUM_THREADS", "1", 1);
  bench::JobTiming timing;
  timing.repeats = 5;
  timing.read(words);
  std::vector<std::string> sides = {"ddp", "zero-2", "gemini", "ring"};
  bool with_peer = true;
  if (words.size() == 2 && words[0] == "--only") {
    sides = {words[1]};
    with_peer = false;
  } else if (!words.empty()) {
    throw ConfigError(cat(words[0], ": unknown, or without its value"), words[0]);
  }
  const std::string repeats = cat(timing.repeats);
  bench::JobRace race;
  race.name = cat("gpt-6x384-t256-b8-adamw-%-", timing.ranks, "ranks");
  race.unit = "tokens/s";
  race.items = static_cast<double>(timing.ranks * kBatch * kContext);
  for (const std::string& side : sides) {
    race.ours.push_back({side, [=](const std::string& result, const std::string&) -> std::vector<std::string> {
                           return {"/proc/self/exe", "--rank", result, repeats, side};
                         }});
  }
  if (with_peer) {
    race.peer.push_back(
        {"torch-ddp-gloo", [=](const std::string& result, const std::string& folder) -> std::vector<std::string> {
           return {"/usr/bin/env", kPeerLibraries, "/usr/bin/python3", "-B", kPeerProgram, folder + "/meeting",
                   result,         repeats};
         }});
  }
  race_jobs(timing, race);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc > 1 && std::string(argv[1]) == "--rank") return run_rank({argv + 2, argv + argc});
    drive({argv + 1, argv + argc});
    return 0;
  } catch (const ConfigError& error) {
    std::fprintf(stderr, "ddp: %s\n", error.what());
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "ddp: %s\n", error.what());
    return 1;
  }
}
