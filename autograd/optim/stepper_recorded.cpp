// Steps that are recorded and run as one (`compile`). A run needs the addresses of its recording and finds what changes
// from step to step, the numbers of the groups, in the device's memory. The first step of a kind goes op by op, the
// second is recorded.
#include <algorithm>
#include <iterator>
#include <utility>

#include "autograd/optim/part_places.h"
#include "autograd/optim/stepper.h"
#include "core/device/caching_allocator.h"
#include "core/device/dispatch.h"
#include "core/device/recording_scope.h"
#include "core/ops/optim.h"

namespace castor::autograd {
namespace {

constexpr std::size_t kMostRecorded = 16;  // kinds; where gradients are elsewhere each time, none comes again

const void* address_of(const Tensor& x) { return x.defined() ? x.view().data : nullptr; }

}  // namespace

std::vector<const void*> Stepper::addresses() const {
  std::vector<const void*> all;
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    all.push_back(address_of(weights_of(parts_[i])));
    all.push_back(address_of(gradient_of(parts_[i])));
  }
  return all;
}

Stepper::Recorded* Stepper::recorded(bool has_squares, std::optional<Limit> limit) {
  if (!records_ || innermost_observer != nullptr) return nullptr;  // who watches ops wants to see them
  const std::optional<Device> device = limiting_device();
  if (!device || !device->is_cuda() || reducer_ != nullptr || optimizer_.group_scalars(0, {}).empty()) return nullptr;
  bool has_gradients = false;
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    if (parts_[i].count > 0 && !joins_others(i)) return nullptr;
    has_gradients = has_gradients || gradient_of(parts_[i]).defined();
  }
  if (has_squares && !has_gradients) return nullptr;
  std::vector<const void*> here = addresses();
  const std::size_t groups = optimizer_.groups().size();
  const auto found = std::ranges::find_if(recorded_, [&](const Recorded& each) {
    return each.has_squares == has_squares && each.limit == limit && each.groups == groups && each.addresses == here;
  });
  if (found == recorded_.end()) {
    if (recorded_.size() < kMostRecorded) recorded_.push_back({has_squares, limit, groups, std::move(here)});
    return nullptr;
  }
  if (found->recording == nullptr) record(*found, *device);
  return found->recording != nullptr ? &*found : nullptr;
}

void Stepper::record(Recorded& made, Device device) {
  const CategoryScope category(Category::workspace);
  const auto bytes = static_cast<std::int64_t>(optimizer_.group_scalars(0, {}).size());
  const Tensor scalars = Tensor::empty({static_cast<std::int64_t>(made.groups), bytes}, DType::u8, device);
  BlockSums sums;
  Tensor begins;
  if (made.has_squares) {
    sums = std::move(block_layout().front());
    begins = Tensor::from_values(sums.begins, {static_cast<std::int64_t>(sums.begins.size())}, device);
  }
  const CachingAllocator::PrivateScope memory(allocator(device));
  StepContext context;
  context.device_scalars = scalars;
  Tensor folded;
  RecordingScope recording(backend(device));
  records_ = recording.has_begun();
  if (!records_) return;
  if (made.has_squares) {
    sum_blocks(sums);
    folded = fold_segments(sums.all, begins);
    if (made.limit) context.device_scale = norm_limit(folded, made.limit->scale, made.limit->max_norm);
  }
  std::vector<Range> ranges;
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    if (parts_[i].count == 0) continue;
    std::ranges::move(ranges_of(i, {weights_of(parts_[i]), gradient_of(parts_[i])}), std::back_inserter(ranges));
  }
  optimizer_.apply_all(ranges, context);
  made.recording = recording.end();
  made.scalars = scalars;
  made.factor = context.device_scale;
  made.folded = folded;
  made.begins = begins;
  made.sums = std::move(sums);
}

std::vector<double> Stepper::run(const Recorded& made, double gradient_scale) {
  StepContext context;
  context.step = ++step_count_;
  context.gradient_scale = gradient_scale;
  context.device_scale = made.factor;
  std::vector<std::byte> scalars;
  for (std::size_t group = 0; group < made.groups; ++group)
    std::ranges::copy(optimizer_.group_scalars(static_cast<int>(group), context), std::back_inserter(scalars));
  made.scalars.copy_from_host(scalars.data(), scalars.size());
  for (std::size_t i = 0; before_update_ && i < parts_.size(); ++i) {
    if (parts_[i].count > 0) before_update_(parts_[i], states_[i]);
  }
  made.recording->run();
  ++recorded_steps_;
  if (!made.has_squares) return {};
  SideCopies::Fetch read = begin_read(made.folded);
  return made.sums.spread(side_copies_->finish(read).to_vector<double>(), parts_.size());
}

}  // namespace castor::autograd
