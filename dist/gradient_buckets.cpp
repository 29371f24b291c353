// Filling, exchanging and adding; see gradient_buckets.h.
#include "dist/gradient_buckets.h"

#include <algorithm>
#include <utility>

#include "core/device/trace.h"
#include "core/ops/cast.h"
#include "core/ops/elementwise.h"

namespace castor::dist {
namespace {

constexpr std::size_t kMostSentOff = 4;  // sums of buckets

}  // namespace

std::vector<Buffer> pieces_of(const Tensor& whole, const FlatArray& array, int replicas) {
  std::vector<Buffer> pieces;
  for (int replica = 0; replica < replicas; ++replica) {
    for (std::size_t rank = 0; rank + 1 < array.cuts.size(); ++rank) {
      pieces.emplace_back(whole.narrow(0, array.cuts[rank], array.cuts[rank + 1] - array.cuts[rank]));
    }
  }
  return pieces;
}

GradientBuckets::GradientBuckets(Comm& comm, std::vector<autograd::Variable> parameters, const BucketOptions& options)
    : comm_(comm), options_(options), parameters_(std::move(parameters)) {
  std::reverse(parameters_.begin(), parameters_.end());
  std::vector<FlatItem> items;
  for (const autograd::Variable& parameter : parameters_) {
    const DType dtype = parameter.dtype();
    if (dtype != DType::f32 && dtype != DType::bf16 && dtype != DType::f16) {
      throw DTypeError(
          cat(options_.owner, ": '", parameter.name(), "' must be f32, bf16 or f16, got ", parameter.data()));
    }
    items.push_back({parameter.data().numel(), dtype});
  }
  const int owners = comm_.world_size() / options_.replicas;
  layout_ = lay_out(items, options_.capacity, owners);
  const CategoryScope category(Category::gradients);
  for (std::size_t b = 0; b < layout_.size(); ++b) {
    const FlatArray& array = layout_[b];
    Bucket& bucket = buckets_.emplace_back();
    bucket.label = cat("gradients of bucket ", b, " from ", parameters_[array.slots.front().item].name());
    bucket.filled.resize(array.slots.size());
    bucket.device = parameters_[array.slots.front().item].device();
    bucket.is_mean = !options_.accumulates && options_.exchange_dtype.value_or(array.dtype) == array.dtype;
    const Device sums_on = options_.sums_on.value_or(bucket.device);
    // What is kept is there from the start: the first step takes as much memory as all others.
    if (options_.keeps_buffers) make_contribution(b);
    const auto owner = static_cast<std::size_t>(comm_.rank() % owners);
    if (bucket.is_mean && options_.keeps_buffers && sums_on == bucket.device) {
      bucket.sum = bucket.contribution.narrow(0, array.cuts[owner], array.cuts[owner + 1] - array.cuts[owner]);
    } else {
      bucket.sum = Tensor::empty({array.piece_elements(static_cast<int>(owner))},
                                 bucket.is_mean ? array.dtype : DType::f32, sums_on);
    }
    for (std::size_t s = 0; s < array.slots.size(); ++s) {
      place_[parameters_[array.slots[s].item].identity()] = {b, s};
    }
  }
}

GradientBuckets::~GradientBuckets() {
  for (Bucket& bucket : buckets_) {
    try {
      if (bucket.exchange) bucket.exchange->wait();
      if (bucket.gather) bucket.gather->wait();
    } catch (const std::exception&) {  // whoever ended the step early has thrown already
    }
  }
  try {
    await_sent_off(0);
  } catch (const DeviceError&) {  // the device is lost, and with it what was on its way
  }
}

void GradientBuckets::begin_micro_step(std::int64_t position) {
  if (position > 0 && !options_.accumulates) {
    throw ConfigError(cat(options_.owner,
                          ": a second backward before the step, where windows of one were announced; say "
                          "how many there are in accumulative_counts"),
                      "accumulative_counts");
  }
  if (position == 0) has_sums_ = false;
  started_ = 0;
  for (Bucket& bucket : buckets_) {
    bucket.filled.assign(bucket.filled.size(), false);
    bucket.filled_count = 0;
  }
}

void GradientBuckets::make_contribution(std::size_t b) {
  const CategoryScope category(Category::gradients);
  const FlatArray& array = layout_[b];
  Bucket& bucket = buckets_[b];
  const DType dtype = options_.exchange_dtype.value_or(array.dtype);
  bucket.contribution = Tensor::empty({array.elements}, dtype, bucket.device);
  bucket.contribution.fill_zero();  // the gaps between parameters
}

Tensor GradientBuckets::part_of(std::size_t b, std::size_t s) {
  Bucket& bucket = buckets_[b];
  if (!bucket.contribution.defined()) make_contribution(b);
  const FlatSlot& slot = layout_[b].slots[s];
  return bucket.contribution.narrow(0, slot.offset, slot.count).reshape(parameters_[slot.item].shape());
}

Tensor GradientBuckets::held_part(std::size_t b, std::size_t s) {
  const FlatSlot& slot = layout_[b].slots[s];
  return buckets_[b].held.narrow(0, slot.offset, slot.count).reshape(parameters_[slot.item].shape());
}

void GradientBuckets::hold(std::size_t b, std::size_t s, const Tensor& gradient) {
  Bucket& bucket = buckets_[b];
  if (!bucket.held.defined()) {
    const CategoryScope category(Category::gradients);
    bucket.held = Tensor::empty({layout_[b].elements}, DType::f32, bucket.device);
    bucket.held.fill_zero();
  }
  binary_inplace(BinaryOp::add, held_part(b, s), cast(gradient, DType::f32));
}

void GradientBuckets::note_filled(std::size_t b, std::size_t s) {
  buckets_[b].filled[s] = true;
  ++buckets_[b].filled_count;
}

Tensor GradientBuckets::place_of(const autograd::Variable& leaf) {
  const auto found = place_.find(leaf.identity());
  if (found == place_.end() || is_deferred_) return {};
  const auto [b, s] = found->second;
  const bool is_rounded = options_.exchange_dtype.value_or(leaf.dtype()) != leaf.dtype();
  return is_rounded || buckets_[b].filled[s] || buckets_[b].held.defined() ? Tensor{} : part_of(b, s);
}

void GradientBuckets::deliver(const autograd::Variable& leaf, Tensor gradient) {
  const auto found = place_.find(leaf.identity());
  if (found == place_.end()) return;  // frozen after prepare
  const auto [b, s] = found->second;
  if (is_deferred_) return hold(b, s, gradient);
  if (buckets_[b].filled[s])
    throw InternalError(cat(options_.owner, ": '", leaf.name(), "' got two gradients in one backward"));
  if (buckets_[b].held.defined()) {
    hold(b, s, gradient);
    copy_into(held_part(b, s), part_of(b, s));
  } else {
    const Tensor place = part_of(b, s);
    if (!autograd::is_same_place(gradient, place)) copy_into(gradient, place);
  }
  note_filled(b, s);
  if (options_.overlaps) start_full();
}

void GradientBuckets::end_micro_step() {
  if (is_deferred_) return;
  for (std::size_t b = 0; b < buckets_.size(); ++b) {
    for (std::size_t s = 0; s < buckets_[b].filled.size(); ++s) {
      if (buckets_[b].filled[s]) continue;
      if (buckets_[b].held.defined()) {
        copy_into(held_part(b, s), part_of(b, s));
      } else {
        part_of(b, s).fill_zero();
      }
      note_filled(b, s);
    }
  }
  start_full();
  for (Bucket& bucket : buckets_) {
    finish(bucket);
    bucket.held = {};
  }
  await_sent_off(0);
  has_sums_ = true;
}

Tensor GradientBuckets::mean(std::size_t b, std::int64_t micro_batches) {
  const Tensor& sum = buckets_[b].sum;
  if (buckets_[b].is_mean) return sum;
  if (micro_batches > 1 && sum.numel() > 0)
    unary_inplace(UnaryOp::affine, sum, 1.0 / static_cast<double>(micro_batches), 0);
  const CategoryScope category(Category::gradients);
  return cast(sum, layout_[b].dtype);
}

void GradientBuckets::start_full() {
  while (started_ < buckets_.size() && buckets_[started_].filled_count == buckets_[started_].filled.size()) {
    start(started_++);
  }
}

void GradientBuckets::start(std::size_t b) {
  Bucket& bucket = buckets_[b];
  const bool is_elsewhere = bucket.sum.device() != bucket.device;
  if (is_elsewhere) {
    const CategoryScope category(Category::gradients);
    bucket.arriving = Tensor::empty(bucket.sum.shape(), bucket.sum.dtype(), bucket.device);
    if (has_sums_) copy_across(bucket.sum, bucket.arriving);
  }
  bucket.exchange = comm_.start(Collective::reduce_scatter(
      pieces_of(bucket.contribution, layout_[b], options_.replicas), is_elsewhere ? bucket.arriving : bucket.sum,
      bucket.label, bucket.is_mean ? ReduceOp::kMean : ReduceOp::kSum, has_sums_));
  // A group does one after another, so the piece is there when its turn comes.
  if (is_gathered(b))
    bucket.gather =
        comm_.start(Collective::all_gather(bucket.sum, pieces_of(bucket.contribution, layout_[b]), bucket.label));
  // At most one more is on its way where memory is given back.
  if ((!options_.keeps_buffers || is_elsewhere) && b > 0) finish(buckets_[b - 1]);
}

// Beside computing where the device can; on paper what is kept meanwhile counts, too.
void GradientBuckets::send_off(const Tensor& sum, const Tensor& home) {
  const Device device = sum.device();
  const bool overlaps = kernel_type(device) == DeviceType::cuda && kernel_type(home.device()) == DeviceType::cpu;
  if (!overlaps || device.is_meta() || sum.numel() == 0) {
    copy_across(sum, home);
    if (overlaps) sent_off_.push_back({sum, {}});
  } else {
    if (outgoing_ == nullptr) outgoing_ = backend(device).open_queue();
    outgoing_->wait(backend(device).record());
    const TraceSpan span("gradients to the host", "copy", outgoing_.get(), "copies to the host");
    outgoing_->copy(home.view().data, sum.view().data, sum.view().bytes());
    sent_off_.push_back({sum, outgoing_->record()});
  }
  await_sent_off(kMostSentOff);
}

// Until at most so many are on their way.
void GradientBuckets::await_sent_off(std::size_t most) {
  for (; sent_off_.size() > most; sent_off_.pop_front())
    backend(sent_off_.front().source.device()).wait_on_host(sent_off_.front().end);
}

void GradientBuckets::finish(Bucket& bucket) {
  if (bucket.exchange) std::exchange(bucket.exchange, std::nullopt)->wait();
  if (bucket.gather) std::exchange(bucket.gather, std::nullopt)->wait();
  if (bucket.arriving.defined()) send_off(std::exchange(bucket.arriving, {}), bucket.sum);
  if (!options_.keeps_buffers) bucket.contribution = {};
}

}  // namespace castor::dist
