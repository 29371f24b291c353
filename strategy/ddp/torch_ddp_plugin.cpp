// Buckets: filled as gradients appear, exchanged in order, summed by their owners, gathered at the window's end.
//
// Delicate: a bucket is one flat f32 array, cut into one piece a rank. Each micro-step its owner adds the ranks' pieces
// to what it has, rank by rank (dist::Collective::reduce_scatter), which is the order of the micro-batches; nobody ever
// adds partial sums of several micro-batches.
#include "strategy/ddp/torch_ddp_plugin.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <optional>

#include "core/ops/cast.h"
#include "core/ops/elementwise.h"

namespace castor::strategy {
namespace {

constexpr double kMebibyte = 1 << 20;

struct Slot {
  autograd::Variable parameter;
  std::int64_t offset = 0;  // elements in its bucket
  bool is_filled = false;   // in this micro-step
};

struct Bucket {
  std::string label;
  std::vector<Slot> slots;
  std::int64_t elements = 0;
  std::size_t filled = 0;
  Tensor flat;  // f32: this rank's contribution; at the window's end the finished gradients
  Tensor sum;   // f32: this rank's piece of the window's sum
  std::optional<dist::Work> exchange;
};

class DdpExchange final : public GradientExchange {
 public:
  DdpExchange(dist::Comm& comm, const std::vector<autograd::Variable>& parameters, std::int64_t bucket_elements)
      : comm_(comm) {
    // Backward reaches the last layers first.
    for (auto parameter = parameters.rbegin(); parameter != parameters.rend(); ++parameter) {
      if (parameter->dtype() != DType::f32) {
        throw DTypeError(cat("TorchDDPPlugin: '", parameter->name(), "' must be f32, got ", parameter->data()));
      }
      const std::int64_t count = parameter->data().numel();
      if (buckets_.empty() || (buckets_.back().elements > 0 && buckets_.back().elements + count > bucket_elements)) {
        buckets_.emplace_back().label = cat("gradients of bucket ", buckets_.size() - 1, " from ", parameter->name());
      }
      place_[parameter->identity()] = {buckets_.size() - 1, buckets_.back().slots.size()};
      buckets_.back().slots.push_back({*parameter, buckets_.back().elements});
      buckets_.back().elements += count;
    }
    const CategoryScope category(Category::gradients);
    for (Bucket& bucket : buckets_) {
      bucket.flat = Tensor::empty({bucket.elements}, DType::f32);
      bucket.sum = Tensor::empty({piece_end(bucket, comm.rank()) - piece_begin(bucket, comm.rank())}, DType::f32);
    }
  }

  ~DdpExchange() override { wait_quietly(); }

  void begin_micro_step(std::int64_t position) override {
    position_ = position;
    started_ = 0;
    for (Bucket& bucket : buckets_) {
      bucket.filled = 0;
      for (Slot& slot : bucket.slots) {
        slot.is_filled = false;
        slot.parameter.set_grad({});
      }
    }
  }

  void deliver(const autograd::Variable& leaf, Tensor gradient) override {
    const auto found = place_.find(leaf.identity());
    if (found == place_.end()) return;  // frozen after prepare
    Bucket& bucket = buckets_[found->second.first];
    Slot& slot = bucket.slots[found->second.second];
    if (slot.is_filled)
      throw InternalError(cat("TorchDDPPlugin: '", leaf.name(), "' got two gradients in one backward"));
    copy_into(gradient, part_of(bucket, slot));
    slot.is_filled = true;
    ++bucket.filled;
    start_full_buckets();
  }

  void end_micro_step() override {
    for (Bucket& bucket : buckets_) {
      for (Slot& slot : bucket.slots) {
        if (slot.is_filled) continue;
        part_of(bucket, slot).fill_zero();
        slot.is_filled = true;
        ++bucket.filled;
      }
      start_full_buckets();
    }
    for (Bucket& bucket : buckets_) {
      if (bucket.exchange) std::exchange(bucket.exchange, std::nullopt)->wait();
    }
  }

  void finish_window(std::int64_t micro_batches) override {
    for (Bucket& bucket : buckets_) {
      if (micro_batches > 1 && bucket.sum.numel() > 0) {
        unary_inplace(UnaryOp::affine, bucket.sum, 1.0 / static_cast<double>(micro_batches), 0);
      }
      comm_.run(dist::Collective::all_gather(bucket.sum, pieces_of(bucket), bucket.label));
      for (Slot& slot : bucket.slots) slot.parameter.set_grad(part_of(bucket, slot));
    }
  }

 private:
  std::int64_t piece_begin(const Bucket& bucket, int rank) const { return bucket.elements * rank / comm_.world_size(); }
  std::int64_t piece_end(const Bucket& bucket, int rank) const { return piece_begin(bucket, rank + 1); }

  std::vector<dist::Buffer> pieces_of(const Bucket& bucket) const {
    std::vector<dist::Buffer> pieces;
    for (int rank = 0; rank < comm_.world_size(); ++rank) {
      const std::int64_t begin = piece_begin(bucket, rank);
      pieces.emplace_back(bucket.flat.narrow(0, begin, piece_end(bucket, rank) - begin));
    }
    return pieces;
  }

  static Tensor part_of(const Bucket& bucket, const Slot& slot) {
    const Tensor& data = slot.parameter.data();
    return bucket.flat.narrow(0, slot.offset, data.numel()).reshape(data.shape());
  }

  // In order of the buckets, whatever order gradients appear in: all ranks must agree.
  void start_full_buckets() {
    while (started_ < buckets_.size() && buckets_[started_].filled == buckets_[started_].slots.size()) {
      Bucket& bucket = buckets_[started_++];
      bucket.exchange = comm_.start(dist::Collective::reduce_scatter(pieces_of(bucket), bucket.sum, bucket.label,
                                                                     dist::ReduceOp::kSum, position_ > 0));
    }
  }

  void wait_quietly() noexcept {
    for (Bucket& bucket : buckets_) {
      try {
        if (bucket.exchange) bucket.exchange->wait();
      } catch (const std::exception&) {  // whoever ended the step early has thrown already
      }
    }
  }

  dist::Comm& comm_;
  std::vector<Bucket> buckets_;
  std::map<autograd::VariableState*, std::pair<std::size_t, std::size_t>> place_;  // bucket and slot
  std::size_t started_ = 0;
  std::int64_t position_ = 0;
};

}  // namespace

std::unique_ptr<GradientExchange> TorchDDPPlugin::make_exchange(dist::Comm& comm,
                                                                const std::vector<autograd::Variable>& parameters) {
  const auto elements = static_cast<std::int64_t>(config_.bucket_cap_mb * kMebibyte / sizeof(float));
  return std::make_unique<DdpExchange>(comm, parameters, std::max<std::int64_t>(elements, 1));
}

}  // namespace castor::strategy
