// Flat weights, owners' parts, and gathering after the step.
#include "strategy/low_level_zero/low_level_zero_plugin.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <thread>
#include <utility>

#include "core/ops/cast.h"
#include "dist/comm_meta.h"
#include "dist/gradient_buckets.h"
#include "dist/part_sums.h"

namespace castor::strategy {
namespace {

constexpr double kMebiElements = 1 << 20;

class ZeroSharding final : public Sharding {
 public:
  ZeroSharding(dist::Comm& comm, const std::vector<autograd::Variable>& parameters, const dist::BucketOptions& options,
               Device device, std::optional<Device> states_on, bool keeps_masters, bool gathers_late)
      : shards_(comm.world_size() / options.replicas),
        is_replica_(comm.rank() >= shards_),
        comm_(dist::split_blocks(comm, shards_)),
        keeps_masters_(keeps_masters),
        keeps_buffers_(options.keeps_buffers),
        states_on_(states_on),
        buckets_(comm, parameters, options),
        sums_(*comm_, owned_stretches(), names_of(parameters), device) {
    const CategoryScope category(Category::parameters);
    for (const dist::FlatArray& array : buckets_.layout()) {
      const Tensor weights =
          Tensor::empty({array.elements}, array.dtype, buckets_.parameters()[array.slots.front().item].device());
      weights.fill_zero();
      for (const dist::FlatSlot& slot : array.slots) {
        const autograd::Variable& parameter = buckets_.parameters()[slot.item];
        const Tensor place = weights.narrow(0, slot.offset, slot.count).reshape(parameter.shape());
        copy_into(parameter.data(), place);
        parameter.set_data(place);
      }
      weights_.push_back(weights);
      if (can_finish_late()) {
        unfinished_.push_back(std::make_unique<Unfinished>(*this, weights_.size() - 1));
        weights.storage()->set_pager(unfinished_.back().get());
      }
      if (!gathers_late || shards_ == 1) continue;
      arrivals_.push_back(std::make_unique<Arrival>());
      weights.storage()->set_pager(arrivals_.back().get());
    }
    parts_from_.assign(weights_.size() + 1, 0);
    for_stretches(comm_->rank(), [this](std::size_t b, const dist::FlatStretch&) { ++parts_from_[b]; });
    for (std::size_t b = weights_.size(); b-- > 0;) parts_from_[b] += parts_from_[b + 1];
  }

  ~ZeroSharding() override {
    for (const Tensor& weights : weights_) weights.storage()->set_pager(nullptr);
    for (const auto& arrival : arrivals_) {
      try {
        arrival->touch();
      } catch (const std::exception&) {  // whoever ended the step early has thrown already
      }
    }
  }

  std::vector<autograd::Part> parts() const override {
    std::vector<autograd::Part> parts;
    for_stretches(comm_->rank(), [&](std::size_t b, const dist::FlatStretch& stretch) {
      parts.push_back({buckets_.parameters()[buckets_.layout()[b].slots[stretch.slot].item], 0, stretch.item_offset,
                       weights_[b].narrow(0, stretch.offset, stretch.count)});
      parts.back().states_on = states_on_;
    });
    return parts;
  }
  autograd::StatsReducer* reducer() override { return &sums_; }
  bool keeps_masters() const override { return keeps_masters_; }
  bool is_replica() const override { return is_replica_; }
  std::optional<Device> host() const override { return states_on_; }
  std::vector<autograd::Variable> sharded() const override { return buckets_.parameters(); }
  std::vector<autograd::Part> pieces() const override {
    finish_all();
    return parts();
  }

  // Where a rank has everything nobody waits for its weights but itself.
  bool can_finish_late() const override { return shards_ == 1 && states_on_.has_value(); }
  void set_finish_parts(FinishParts finish_parts) override { finish_parts_ = std::move(finish_parts); }

  bool can_defer() const override { return keeps_buffers_; }
  void set_deferred(bool is_deferred) override { buckets_.set_deferred(is_deferred); }
  void begin_micro_step(std::int64_t position) override {
    finish_all();  // of what forward did not use: its gradient's memory is used again
    buckets_.begin_micro_step(position);
  }
  void deliver(const autograd::Variable& leaf, Tensor gradient) override {
    buckets_.deliver(leaf, std::move(gradient));
  }
  Tensor place_of(const autograd::Variable& leaf) override { return buckets_.place_of(leaf); }
  void end_micro_step() override { buckets_.end_micro_step(); }

  void finish_window(std::int64_t micro_batches, std::vector<autograd::Part>& parts) override {
    std::vector<Tensor> gradients;
    for (std::size_t b = 0; b < weights_.size(); ++b) gradients.push_back(buckets_.mean(b, micro_batches));
    std::size_t part = 0;
    for_stretches(comm_->rank(), [&](std::size_t b, const dist::FlatStretch& stretch) {
      const std::int64_t begin = buckets_.layout()[b].cuts[static_cast<std::size_t>(comm_->rank())];
      parts[part++].gradient = gradients[b].narrow(0, stretch.count == 0 ? 0 : stretch.offset - begin, stretch.count);
    });
  }

  void publish_weights() override {
    stepped_by_ = std::this_thread::get_id();
    if (shards_ == 1) return;
    std::vector<dist::Work> gathers;
    for (std::size_t b = weights_.size(); b-- > 0;) {  // the last bucket has the weights that forward uses first
      std::vector<dist::Buffer> pieces = dist::pieces_of(weights_[b], buckets_.layout()[b]);
      const dist::Buffer own = pieces[static_cast<std::size_t>(comm_->rank())];
      dist::Work gather =
          comm_->start(dist::Collective::all_gather(own, std::move(pieces), cat("weights of bucket ", b)));
      if (arrivals_.empty()) {
        gathers.push_back(std::move(gather));
      } else {
        arrivals_[b]->expect(std::move(gather));
      }
    }
    for (const dist::Work& gather : gathers) gather.wait();
  }

 private:
  // Weights on their way: whoever takes their address waits, a save's thread too.
  class Arrival final : public StoragePager {
   public:
    void expect(dist::Work gather) {
      const std::lock_guard lock(mutex_);
      gather_.emplace(std::move(gather));
    }
    void touch() override {
      const std::lock_guard lock(mutex_);
      if (gather_) std::exchange(gather_, std::nullopt)->wait();
    }

   private:
    std::mutex mutex_;
    std::optional<dist::Work> gather_;
  };

  // Weights that the last step may have left: whoever takes their address finishes them first. A save's thread has had
  // them finished, and what it copies is not stepped again before it is told.
  class Unfinished final : public StoragePager {
   public:
    Unfinished(ZeroSharding& sharding, std::size_t bucket) : sharding_(sharding), bucket_(bucket) {}
    void touch() override {
      if (std::this_thread::get_id() != sharding_.stepped_by_.load()) return;
      const std::vector<std::size_t>& from = sharding_.parts_from_;
      sharding_.finish_parts_(from[bucket_ + 1], from[bucket_] - from[bucket_ + 1]);
    }

   private:
    ZeroSharding& sharding_;
    std::size_t bucket_;
  };

  void finish_all() const {
    if (finish_parts_) finish_parts_(0, parts_from_[0]);
  }

  /// Calls f(bucket, stretch) for a rank's stretches in the order in which forward uses them: the reverse of the
  /// buckets'.
  template <class F>
  void for_stretches(int rank, F&& f) const {
    for (std::size_t b = buckets_.layout().size(); b-- > 0;) {
      std::vector<dist::FlatStretch> stretches = buckets_.layout()[b].stretches(rank);
      for (auto stretch = stretches.rbegin(); stretch != stretches.rend(); ++stretch) f(b, *stretch);
    }
  }

  std::vector<std::vector<dist::OwnedStretch>> owned_stretches() const {
    std::vector<std::vector<dist::OwnedStretch>> owned;
    const std::size_t last = buckets_.parameters().size() - 1;  // the buckets' items are in reverse order
    for (int rank = 0; rank < comm_->world_size(); ++rank) {
      std::vector<dist::OwnedStretch>& stretches = owned.emplace_back();
      for_stretches(rank, [&](std::size_t b, const dist::FlatStretch& stretch) {
        const std::size_t item = buckets_.layout()[b].slots[stretch.slot].item;
        stretches.push_back({last - item, stretch.item_offset, stretch.count});
      });
    }
    return owned;
  }

  static std::vector<std::string> names_of(const std::vector<autograd::Variable>& parameters) {
    std::vector<std::string> names;
    for (const autograd::Variable& parameter : parameters) names.push_back(parameter.name());
    return names;
  }

  int shards_;
  bool is_replica_;
  std::unique_ptr<dist::Comm> comm_;  // ranks that have every shard once
  bool keeps_masters_;
  bool keeps_buffers_;               // of gradients, between micro-steps
  std::optional<Device> states_on_;  // none: where the model is
  dist::GradientBuckets buckets_;
  dist::PartSums sums_;
  std::vector<Tensor> weights_;                          // by bucket: all of it
  std::vector<std::unique_ptr<Arrival>> arrivals_;       // by bucket; none where nobody goes on meanwhile
  std::vector<std::unique_ptr<Unfinished>> unfinished_;  // by bucket; none where no step is late
  std::vector<std::size_t> parts_from_;                  // by bucket: parts() of it and of those behind it; at last 0
  FinishParts finish_parts_;
  std::atomic<std::thread::id> stepped_by_;
};

}  // namespace

LowLevelZeroPlugin::LowLevelZeroPlugin(const Config& config) : config_(config) {}

PluginSettings LowLevelZeroPlugin::settings() const {
  PluginSettings settings;
  settings.precision = plugin_precision(config_.precision, config_.use_fp8);
  settings.grad_scaler = config_.grad_scaler;
  settings.has_max_norm = true;
  if (config_.max_norm > 0) settings.max_norm = config_.max_norm;
  return settings;
}

std::unique_ptr<Sharding> LowLevelZeroPlugin::shard(const ShardRequest& request) {
  dist::BucketOptions options;
  options.capacity =
      std::max<std::int64_t>(static_cast<std::int64_t>(config_.reduce_bucket_size_in_m * kMebiElements), 1);
  if (config_.communication_dtype) {
    options.exchange_dtype =
        compute_dtype(precision_of(*config_.communication_dtype, "strategy.plugin.communication_dtype"));
  }
  options.accumulates = request.accumulative_counts != 1;
  options.keeps_buffers = config_.stage == 1;
  options.overlaps = config_.overlap_communication;
  options.owner = "LowLevelZeroPlugin";
  options.replicas = static_cast<int>(config_.extra_dp_size);
  check_replicas(request.comm.world_size(), config_.extra_dp_size, type_name());
  std::optional<Device> states_on;
  if (config_.cpu_offload) states_on = host_tier(request.device);
  // Gradients that stay in buckets on the device anyway are stepped from there.
  if (options.accumulates || !options.keeps_buffers) options.sums_on = states_on;
  return std::make_unique<ZeroSharding>(request.comm, request.trained(), options, request.device, states_on,
                                        config_.master_weights, config_.overlap_allgather);
}

}  // namespace castor::strategy
