// Gradients are summed by their owners like in every plugin; then everyone gets all of them and steps everything.
#include "strategy/ddp/torch_ddp_plugin.h"

#include <algorithm>

#include "dist/gradient_buckets.h"

namespace castor::strategy {
namespace {

constexpr double kMebibyte = 1 << 20;

class DdpSharding final : public Sharding {
 public:
  DdpSharding(dist::Comm& comm, const std::vector<autograd::Variable>& parameters, std::int64_t bucket_elements,
              bool accumulates)
      : comm_(comm),
        parameters_(parameters),
        buckets_(comm, parameters,
                 {.capacity = bucket_elements,
                  .accumulates = accumulates,
                  .gathers_means = true,
                  .owner = "TorchDDPPlugin"}) {}

  std::vector<autograd::Part> parts() const override {
    std::vector<autograd::Part> parts;
    for (const autograd::Variable& parameter : parameters_) parts.push_back({parameter, 0});
    return parts;
  }

  bool can_defer() const override { return true; }
  void set_deferred(bool is_deferred) override { buckets_.set_deferred(is_deferred); }
  void begin_micro_step(std::int64_t position) override { buckets_.begin_micro_step(position); }
  void deliver(const autograd::Variable& leaf, Tensor gradient) override {
    buckets_.deliver(leaf, std::move(gradient));
  }
  Tensor place_of(const autograd::Variable& leaf) override { return buckets_.place_of(leaf); }
  void end_micro_step() override { buckets_.end_micro_step(); }

  void finish_window(std::int64_t micro_batches, std::vector<autograd::Part>& parts) override {
    for (std::size_t b = 0; b < buckets_.layout().size(); ++b) {
      const dist::FlatArray& array = buckets_.layout()[b];
      const Tensor& all = buckets_.contribution(b);  // was sent, and has the right size
      if (!buckets_.is_gathered(b)) {
        comm_.run(dist::Collective::all_gather(buckets_.mean(b, micro_batches), dist::pieces_of(all, array),
                                               buckets_.label(b)));
      }
      for (const dist::FlatSlot& slot : array.slots) {
        // Items are in reverse order of the parameters.
        parts[parameters_.size() - 1 - slot.item].gradient = all.narrow(0, slot.offset, slot.count);
      }
    }
  }

 private:
  dist::Comm& comm_;
  std::vector<autograd::Variable> parameters_;
  dist::GradientBuckets buckets_;
};

}  // namespace

std::unique_ptr<Sharding> TorchDDPPlugin::shard(const ShardRequest& request) {
  const auto elements = static_cast<std::int64_t>(config_.bucket_cap_mb * kMebibyte / sizeof(float));
  return std::make_unique<DdpSharding>(request.comm, request.trained(), std::max<std::int64_t>(elements, 1),
                                       request.accumulative_counts != 1);
}

}  // namespace castor::strategy
