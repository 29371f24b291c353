// Chunks, the policy that places them, and the tiers that their pieces and states live on.
#include "strategy/gemini/gemini_plugin.h"

#include <algorithm>
#include <cmath>

#include "core/base/host_memory.h"
#include "core/base/log.h"
#include "dist/chunk/chunk_manager.h"
#include "dist/chunk/chunk_search.h"
#include "strategy/gemini/placement.h"

namespace castor::strategy {
namespace {

constexpr double kMebiElements = 1 << 20;
constexpr double kGibibyte = 1 << 30;
constexpr std::int64_t kDefaultSearchStep = 1024;

// What a rank has of a device, or of the machine that a meta device stands for.
double bytes_of(Device device) {
  if (const std::size_t limit = allocator(device).limit(); limit > 0) return static_cast<double>(limit);
  if (device.is_cpu()) return static_cast<double>(host_memory_share().total);
  if (const std::size_t total = backend(device).total_bytes(); total > 0) return static_cast<double>(total);
  return device.is_meta() ? bytes_of(kCpu) : 0;
}

class GeminiSharding final : public Sharding {
 public:
  GeminiSharding(const ShardRequest& request, const GeminiPlugin::Config& config, const dist::ChunkOptions& options)
      : config_(config),
        device_(request.device),
        host_(host_tier(request.device)),
        limits_(request.limits),
        comm_(request.comm),
        forecast_(request.forecast),
        chunks_(request.comm, request.parameters, request.device, with_homes(options), request.fill),
        placement_(chunks_, 0, config.max_prefetch) {
    chunks_.set_policy(placement_);
    std::int64_t all = 0;
    for (std::size_t chunk = 0; chunk < chunks_.chunk_count(); ++chunk) all += chunks_.bytes(chunk);
    double kept = static_cast<double>(all) * (1 - config_.shard_param_frac);
    if (is_auto()) kept = memory_limit() * (1 - config_.warmup_non_model_data_ratio);
    if (forecast_ != nullptr) chunks_.expect(forecast_->accesses);
    if (is_auto() && forecast_ != nullptr) {
      kept = static_cast<double>(kept_bytes_);
    } else if (is_auto() && device_.is_meta()) {
      kept = 0;  // the forecast's own step keeps nothing
    }
    is_settled_ = !is_auto() || forecast_ != nullptr || device_.is_meta();
    forecast_ = nullptr;
    placement_.set_budget(smallest_of_ranks(kept));
    if (config_.verbose) {
      logger().info("gemini: ", chunks_.chunk_count(), " chunks of up to ", options.capacity, " elements, ",
                    bytes_text(static_cast<std::size_t>(all)), " of weights, whole chunks may take ",
                    bytes_text(static_cast<std::size_t>(placement_.budget())));
    }
  }

  ~GeminiSharding() override {
    if (!config_.verbose) return;
    const dist::ChunkTraffic& traffic = chunks_.traffic();
    logger().info("gemini: ", traffic.gathers, " gathers, ", traffic.prefetched, " of them ahead, ", traffic.waits,
                  " waits, ", traffic.reductions, " reductions; at most ",
                  bytes_text(static_cast<std::size_t>(traffic.peak_gathered_bytes)), " of whole chunks at a time");
    log_disk("optimizer states", chunks_.states_disk());
    log_disk("weights", chunks_.pieces_disk());
  }

  std::vector<autograd::Part> parts() const override { return chunks_.parts(); }
  autograd::StatsReducer* reducer() override { return &chunks_.sums(); }
  bool keeps_masters() const override { return config_.master_weights; }
  std::vector<autograd::Variable> sharded() const override { return chunks_.parameters(); }
  std::vector<autograd::Part> pieces() const override { return chunks_.pieces(); }
  bool has_whole_weights() const override { return false; }
  void set_before_change(std::function<void(const Tensor&)> before_change) override {
    chunks_.set_before_change(std::move(before_change));
  }
  bool overwrites_weights() const override { return config_.master_weights; }
  bool can_finish_late() const override { return true; }
  void set_finish_parts(FinishParts finish_parts) override { chunks_.set_finish_parts(std::move(finish_parts)); }

  bool is_replica() const override { return comm_.rank() >= comm_.world_size() / config_.extra_dp_size; }
  std::optional<Device> host() const override { return host_; }
  std::int64_t disk_bytes() const override {
    std::int64_t all = 0;
    for (const dist::DiskTier* disk : {chunks_.states_disk(), chunks_.pieces_disk()})
      all += disk != nullptr ? disk->file_bytes() : 0;
    return all;
  }
  std::optional<StepForecast> forecast() const override {
    const bool needs_one = is_auto() || config_.max_prefetch > 0;
    if (!needs_one || !device_.is_meta()) return {};
    const MemoryStats stats = allocator(device_).stats();
    const auto peak = [&](Category category) {
      return static_cast<std::int64_t>(stats.peak[static_cast<std::size_t>(category)]);
    };
    StepForecast found;
    found.accesses = chunks_.accesses();
    found.gathered_bytes = chunks_.traffic().peak_gathered_bytes;
    found.beside_bytes =
        peak(Category::gradients) + peak(Category::activations) + peak(Category::workspace) + peak(Category::buffers);
    std::int64_t elements = 0;
    for (const autograd::Part& part : chunks_.parts()) elements += part.count;
    if (elements > 0)
      found.state_bytes_per_element = static_cast<double>(peak(Category::optimizer)) / static_cast<double>(elements);
    return found;
  }
  const dist::ChunkTraffic* chunk_traffic() const override { return &chunks_.traffic(); }
  dist::DiskTraffic disk_traffic() const override {
    dist::DiskTraffic all;
    for (const dist::DiskTier* disk : {chunks_.states_disk(), chunks_.pieces_disk()}) {
      if (disk != nullptr) all += disk->traffic();
    }
    return all;
  }

  void begin_pass(bool is_training) override { chunks_.begin_pass(is_training); }
  void begin_micro_step(std::int64_t position) override { chunks_.begin_micro_step(position); }
  Tensor place_of(const autograd::Variable& leaf) override { return chunks_.place_of(leaf); }
  void deliver(const autograd::Variable& leaf, Tensor gradient) override { chunks_.deliver(leaf, std::move(gradient)); }
  void end_micro_step() override {
    chunks_.end_micro_step();
    if (is_auto() && !is_settled_) settle_budget();
  }
  void finish_window(std::int64_t micro_batches, std::vector<autograd::Part>& parts) override {
    chunks_.finish_window(micro_batches, parts);
  }
  void publish_weights() override { chunks_.publish(); }
  void weights_loaded() override { chunks_.drop_all(); }

 private:
  static void log_disk(const char* what, const dist::DiskTier* disk) {
    if (disk == nullptr) return;
    const dist::DiskTraffic traffic = disk->traffic();
    const auto text = [](std::int64_t bytes) { return bytes_text(static_cast<std::size_t>(bytes)); };
    logger().info("gemini: ", text(disk->file_bytes()), " of ", what, " on disk", disk->is_direct() ? "" : " (cached)",
                  ": read ", text(traffic.read_bytes), ", wrote ", text(traffic.written_bytes), " through ",
                  text(disk->buffer_bytes()), " of memory; ", traffic.ahead, " of ", traffic.blocks,
                  " chunks came ahead of their use");
  }

  // The last chunks live on the host, until the share is reached: pieces by all chunks' bytes, states by the trained
  // ones'. Of these the very last live on disk. So the host steps its parts while the device computes the next forward
  // pass with those before them.
  dist::ChunkOptions with_homes(dist::ChunkOptions options) {
    options.disk.directory = config_.nvme_offload_dir.value_or("");
    if (is_auto()) {
      if (forecast_ == nullptr) return options;
      options.homes = [this](std::span<const dist::ChunkInfo> chunks) {
        const Placement placement = place_chunks(
            chunks, *forecast_,
            {device_, host_, memory_limit() * config_.steady_cuda_cap_ratio, host_limit(),
             config_.nvme_offload_dir.has_value(), comm_.world_size() / static_cast<int>(config_.extra_dp_size),
             kernel_type(device_) == DeviceType::cuda
                 ? autograd::StreamedSteps::device_bytes(forecast_->state_bytes_per_element)
                 : 0});
        kept_bytes_ = placement.kept_bytes;
        return placement.homes;
      };
      return options;
    }
    options.homes = [config = config_, device = device_, host = host_](std::span<const dist::ChunkInfo> chunks) {
      double all = 0, trained = 0, pieces_there = 0, states_there = 0;
      for (const dist::ChunkInfo& chunk : chunks) {
        all += static_cast<double>(chunk.bytes);
        if (chunk.is_trained) trained += static_cast<double>(chunk.bytes);
      }
      const double pieces = config.offload_param_frac * all, states = config.offload_optim_frac * trained;
      std::vector<dist::ChunkHome> homes(chunks.size(), {device, device});
      for (std::size_t i = chunks.size(); i-- > 0;) {
        const dist::ChunkInfo& chunk = chunks[i];
        dist::ChunkHome& home = homes[i];
        if (pieces_there < pieces) {
          home.piece = host;
          home.piece_on_disk = pieces_there < pieces * config.nvme_offload_param_fraction;
          pieces_there += static_cast<double>(chunk.bytes);
        }
        if (chunk.is_trained && states_there < states) {
          home.states = host;
          home.states_on_disk = states_there < states * config.nvme_offload_fraction;
          states_there += static_cast<double>(chunk.bytes);
        }
      }
      return homes;
    };
    return options;
  }

  bool is_auto() const { return config_.placement_policy == "auto"; }

  double memory_limit() const {
    if (config_.device_memory_gib) return *config_.device_memory_gib * kGibibyte;
    return limits_.device_bytes ? static_cast<double>(*limits_.device_bytes) : bytes_of(device_);
  }
  double host_limit() const {
    if (config_.host_memory_gib) return *config_.host_memory_gib * kGibibyte;
    return limits_.host_bytes ? static_cast<double>(*limits_.host_bytes) : bytes_of(host_);
  }

  // Ranks measure different peaks and may have different memory, but must drop and gather alike.
  std::int64_t smallest_of_ranks(double bytes) {
    const Tensor smallest = Tensor::from_values(std::vector<std::int64_t>{std::llround(bytes)}, {1});
    comm_.all_reduce(smallest, "budget of whole chunks", dist::ReduceOp::kMin);
    return smallest.data<std::int64_t>()[0];
  }

  // What the first micro-step used beside whole chunks stays free; the rest of the memory may hold chunks.
  void settle_budget() {
    is_settled_ = true;
    const auto peak = static_cast<double>(allocator(device_).stats().peak_total);
    const auto beside = peak - static_cast<double>(chunks_.traffic().peak_gathered_bytes);
    const double budget = memory_limit() * config_.steady_cuda_cap_ratio - beside;
    placement_.set_budget(std::max<std::int64_t>(smallest_of_ranks(budget), 0));
    if (config_.verbose)
      logger().info("gemini: whole chunks may take ", bytes_text(static_cast<std::size_t>(placement_.budget())));
  }

  GeminiPlugin::Config config_;
  Device device_, host_;
  MemoryLimits limits_;
  dist::Comm& comm_;
  const StepForecast* forecast_;  // while this is made
  std::int64_t kept_bytes_ = 0;   // what the forecast leaves for whole chunks
  dist::ChunkManager chunks_;
  BudgetPlacement placement_;
  bool is_settled_ = false;
};

}  // namespace

PluginSettings GeminiPlugin::settings() const {
  PluginSettings settings;
  settings.precision = plugin_precision(config_.precision, config_.use_fp8);
  settings.grad_scaler = config_.grad_scaler;
  settings.has_max_norm = true;
  if (config_.max_norm > 0) settings.max_norm = config_.max_norm;
  settings.builds_on_meta = true;
  return settings;
}

std::unique_ptr<Sharding> GeminiPlugin::shard(const ShardRequest& request) {
  if (request.accumulative_counts > 1 && !config_.enable_gradient_accumulation) {
    throw ConfigError(cat("GeminiPlugin: accumulative_counts is ", request.accumulative_counts,
                          ", which needs enable_gradient_accumulation: true (4 bytes more a parameter over all ranks)"),
                      "strategy.plugin.enable_gradient_accumulation");
  }
  std::vector<std::int64_t> sizes;
  for (const autograd::Variable& parameter : request.parameters) sizes.push_back(parameter.data().numel());
  dist::ChunkOptions options;
  options.capacity = dist::search_chunk_size(sizes, std::llround(config_.min_chunk_size_m * kMebiElements),
                                             std::llround(config_.search_range_m * kMebiElements),
                                             config_.hidden_dim.value_or(kDefaultSearchStep))
                         .elements;
  options.accumulates = config_.enable_gradient_accumulation;
  options.overlaps_reduce = config_.enable_async_reduce;
  options.keeps_masters = config_.master_weights;
  options.replicas = static_cast<int>(config_.extra_dp_size);
  check_replicas(request.comm.world_size(), config_.extra_dp_size, type_name());
  options.owner = "GeminiPlugin";
  return std::make_unique<GeminiSharding>(request, config_, options);
}

}  // namespace castor::strategy
