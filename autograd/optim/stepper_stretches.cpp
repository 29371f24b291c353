// How a part that is stepped by itself is: stretch by stretch, by the host, which brings what it needs ahead of its
// use, and by the GPU (streamed_steps.h). Who takes which stretch depends on timing, what comes out does not.
#include <algorithm>
#include <optional>
#include <utility>

#include "autograd/optim/part_places.h"
#include "autograd/optim/stepper.h"

namespace castor::autograd {
namespace {

constexpr std::size_t kMostAhead = 64;            // stretches that are fetched ahead of their step
constexpr std::size_t kPartsAhead = 16;           // parts of which the GPU may begin the last stretches
constexpr std::int64_t kLeastStreamed = 1 << 16;  // elements that are worth their launches

}  // namespace

// A late part's own has been forgotten.
Tensor Stepper::waiting_gradient(std::size_t index) const {
  const auto late = late_.gradients.find(index);
  return late != late_.gradients.end() ? late->second : gradient_of(parts_[index]);
}

Stepper::Progress& Stepper::progress_of(std::size_t index) {
  return begun_.try_emplace(index, Progress{.streamed = parts_[index].count}).first->second;
}

void Stepper::tell(std::size_t index) {
  Progress& progress = progress_of(index);
  if (before_update_ && !progress.is_told) before_update_(parts_[index], states_[index]);
  progress.is_told = true;
}

Stepper::Fetching Stepper::fetch(std::size_t index, std::int64_t begin, std::int64_t count) {
  const Part& part = parts_[index];
  const Tensor weights = weights_of(part).narrow(0, begin, count);
  const Device place = place_of(part);
  Tensor gradient = waiting_gradient(index);
  if (gradient.defined()) gradient = gradient.narrow(0, begin, count);
  Fetching fetching{index,         begin,   side_copies_->fetch(gradient, place),
                    {weights, {}}, weights, weights.device() != place};
  if (!fetching.has_left) return fetching;
  // Weights with a master are only written.
  const bool has_master = options_.keeps_masters && weights.dtype() != DType::f32;
  fetching.weights = has_master ? SideCopies::Fetch{Tensor::empty(weights.shape(), weights.dtype(), place), {}}
                                : side_copies_->fetch(weights, place);
  return fetching;
}

// Whether the GPU may take stretches of a part whose states are on the host, and has its gradient.
bool Stepper::can_stream(std::size_t index) const {
  const Part& part = parts_[index];
  const Tensor weights = weights_of(part), gradient = gradient_of(part);
  const Device place = place_of(part);
  const bool is_apart = kernel_type(weights.device()) == DeviceType::cuda && kernel_type(place) == DeviceType::cpu;
  const bool has_f32 = weights.dtype() == DType::f32 || states_[index].contains(kMaster);
  if (!is_apart || !has_f32 || part.states_in != nullptr || optimizer_.stats_passes() > 0) return false;
  if (!gradient.defined() || (gradient.device() != weights.device() && gradient.device() != place)) return false;
  const Shape& shape = part.variable.shape();
  const std::vector<StateSpec> specs = optimizer_.states(shape);
  return std::all_of(specs.begin(), specs.end(),
                     [&](const StateSpec& spec) { return spec.stretch(shape, part.offset, part.count).has_value(); });
}

std::int64_t Stepper::stretch_of(std::size_t index) const {
  return may_stream_[index] ? options_.stretch_elements : parts_[index].count;
}

// Bytes of weights that the step of a stretch brings and takes away again.
std::size_t Stepper::moved_bytes(std::size_t index) const {
  const Tensor weights = weights_of(parts_[index]);
  const std::int64_t count = std::min(stretch_of(index), parts_[index].count);
  return weights.device() == place_of(parts_[index]) ? 0
                                                     : static_cast<std::size_t>(count) * dtype_size(weights.dtype());
}

// A part's next stretch for the host, its fetch begun now; nothing where none is left.
std::optional<Stepper::Fetching> Stepper::fetch_next(std::size_t index) {
  Progress& progress = progress_of(index);
  const std::int64_t count = std::min(stretch_of(index), progress.streamed - progress.fetched);
  if (count == 0) return {};
  Fetching fetching = fetch(index, progress.fetched, count);
  progress.fetched += count;
  return fetching;
}

// The same, of those whose fetch was begun before first.
std::optional<Stepper::Fetching> Stepper::take_next(std::size_t index) {
  const auto found =
      std::find_if(ahead_.begin(), ahead_.end(), [&](const Fetching& each) { return each.part == index; });
  if (found == ahead_.end()) return fetch_next(index);
  Fetching next = std::move(*found);
  ahead_.erase(found);
  return next;
}

// Begins to fetch stretches of a part and then of later ones, until enough is on its way: so a large one comes while
// the large one before it is stepped, whatever small ones lie between.
void Stepper::fetch_ahead(std::size_t index, std::span<const std::size_t> later) {
  if (!side_copies_->overlaps()) return;
  std::size_t bytes = 0;
  for (const Fetching& each : ahead_) {
    const bool is_expected = each.part == index || std::binary_search(later.begin(), later.end(), each.part);
    if (!is_expected) return;  // finished in another order than expected
    bytes += moved_bytes(each.part);
  }
  std::size_t n = 0;  // of the part that is next, among this one and the later ones
  if (!ahead_.empty() && ahead_.back().part != index)
    n = 1 + static_cast<std::size_t>(std::lower_bound(later.begin(), later.end(), ahead_.back().part) - later.begin());
  while (n <= later.size() && ahead_.size() < kMostAhead && bytes < most_ahead_) {
    const std::size_t part = n == 0 ? index : later[n - 1];
    if (std::optional<Fetching> next = fetch_next(part)) {
      ahead_.push_back(std::move(*next));
      bytes += moved_bytes(part);
    } else {
      ++n;
    }
  }
}

Stepper::Work Stepper::arrive(Fetching& fetching) {
  return {side_copies_->finish(fetching.weights), side_copies_->finish(fetching.gradient), fetching.begin};
}

// Of the largest range that the GPU steps.
std::size_t Stepper::most_streamed_bytes() const {
  std::size_t most = 0;
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    if (!may_stream_[i]) continue;
    const std::int64_t count = std::min(options_.stretch_elements, parts_[i].count);
    const Tensor gradient = waiting_gradient(i), weights = weights_of(parts_[i]);  // one that is done has no gradient
    const Work work{weights.narrow(0, 0, count), (gradient.defined() ? gradient : weights).narrow(0, 0, count)};
    for (const Range& range : ranges_of(i, work))
      most = std::max(most, StreamedSteps::moved_bytes(range, work.weights.device()));
  }
  return most;
}

// Starts a step of a part's last stretch on the GPU; false where none is left that is worth it.
bool Stepper::stream_one(std::size_t index, const StepContext& context) {
  Progress& progress = progress_of(index);
  const std::int64_t length = options_.stretch_elements;
  if (!may_stream_[index] || progress.streamed <= progress.fetched) return false;
  const std::int64_t begin = std::max(progress.fetched, (progress.streamed - 1) / length * length);
  const std::int64_t count = progress.streamed - begin;
  if (count < std::min(kLeastStreamed, length)) return false;
  tell(index);
  const Work work{weights_of(parts_[index]).narrow(0, begin, count), waiting_gradient(index).narrow(0, begin, count),
                  begin};
  if (streamed_ == nullptr) streamed_ = std::make_unique<StreamedSteps>(work.weights.device(), most_streamed_bytes());
  for (const Range& range : ranges_of(index, work))
    progress.ends.push_back(streamed_->step(optimizer_, range, context, side_copies_->ready()));
  progress.streamed = begin;
  shared_.by_gpu += count;
  return true;
}

// Gives the GPU what it has room for: of this part, then of later ones, in the order in which they are needed. On paper
// it is as fast as the host.
void Stepper::stream(std::size_t index, std::span<const std::size_t> later, const StepContext& context) {
  if (!side_copies_->overlaps()) return;
  const bool is_on_paper = weights_of(parts_[index]).device().is_meta();
  for (std::size_t n = 0; n <= std::min(later.size(), kPartsAhead); ++n) {
    const std::size_t part = n == 0 ? index : later[n - 1];
    while (is_on_paper ? shared_.by_gpu <= shared_.by_host : streamed_ == nullptr || streamed_->has_room()) {
      if (!stream_one(part, context)) break;
    }
  }
}

// A part by itself, by the host and the GPU. What fails may be tried again: nothing is stepped twice.
void Stepper::step_part(std::size_t index, std::span<const std::size_t> later, const StepContext& context) {
  while (std::optional<Fetching> next = take_next(index)) {
    try {
      stream(index, later, context);
      fetch_ahead(index, later);
      const Work work = arrive(*next);
      tell(index);
      step_alone(*next, work, context);
      if (may_stream_[index]) shared_.by_host += work.weights.numel();
    } catch (...) {
      ahead_.push_front(std::move(*next));
      throw;
    }
  }
  const auto done = begun_.find(index);
  for (const Event& end : done->second.ends) backend(weights_of(parts_[index]).device()).wait(end);
  begun_.erase(done);
}

// A stretch on the host: its statistics, its ranges, its way back.
void Stepper::step_alone(const Fetching& fetching, const Work& work, const StepContext& context) {
  const std::vector<Range> ranges = ranges_of(fetching.part, work);
  Stats finished;
  for (int pass = 0; pass < optimizer_.stats_passes(); ++pass) {
    const auto add = [&](Stats& carry) {
      for (const Range& range : ranges) optimizer_.accumulate_stats(pass, range, context, finished, carry);
    };
    Stats sums;
    if (reducer_ != nullptr && !ranges.front().parameter.device().is_meta()) {
      sums = reducer_->reduce(fetching.part, add);
    } else {
      add(sums);
    }
    finished.merge(sums);
    optimizer_.finish_pass(pass, ranges.front(), context, finished);
  }
  for (const Range& range : ranges) optimizer_.apply(range, context, finished);
  if (fetching.has_left) side_copies_->store(work.weights, fetching.home);
}

}  // namespace castor::autograd
