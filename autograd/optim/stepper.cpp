// Parts as ranges, and the order of a step; see stepper.h. Nothing is read back from the device but statistics.
#include "autograd/optim/stepper.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <optional>
#include <utility>

#include "core/device/trace.h"
#include "core/ops/cast.h"
#include "core/ops/optim.h"

namespace castor::autograd {
namespace {

constexpr const char* kMaster = "master";
// Parts of a GPU that are stepped together: a launch for each would cost more than small ones take. Not all at once:
// the GPU begins while the next ones are gathered.
constexpr std::size_t kTogether = 64;
constexpr std::size_t kMostAhead = 64;            // stretches that are fetched ahead of their step
constexpr std::size_t kStretchesAhead = 8;        // of parts of several; a part of one: half of a large one
constexpr std::size_t kPartsAhead = 16;           // parts of which the GPU may begin the last stretches
constexpr std::int64_t kLeastStreamed = 1 << 16;  // elements that are worth their launches

Tensor flat(const Tensor& x) { return x.reshape({x.numel()}); }

Tensor weights_of(const Part& part) { return part.weights.defined() ? part.weights : flat(part.variable.data()); }

Tensor gradient_of(const Part& part) {
  if (part.gradient.defined()) return part.gradient;
  const Tensor& whole = part.variable.grad();
  return whole.defined() ? flat(whole).narrow(0, part.offset, part.count) : Tensor{};
}

Device place_of(const Part& part) { return part.states_on.value_or(weights_of(part).device()); }

Tensor make_state(const Part& part, const Shape& shape, DType dtype) {
  return part.states_in != nullptr ? part.states_in->make_state(shape, dtype)
                                   : Tensor::zeros(shape, dtype, place_of(part));
}

// x itself where it is there already.
Tensor moved(const Tensor& x, Device device) {
  if (x.device() == device) return x;
  const Tensor there = Tensor::empty(x.shape(), x.dtype(), device);
  copy_across(x, there);
  return there;
}

// While it lives an optimizer has other groups.
class GroupsScope {
 public:
  GroupsScope(Optimizer& optimizer, std::vector<ParamGroup>& groups) : optimizer_(optimizer), groups_(groups) {
    std::swap(optimizer_.groups(), groups_);
  }
  ~GroupsScope() { std::swap(optimizer_.groups(), groups_); }
  GroupsScope(const GroupsScope&) = delete;
  GroupsScope& operator=(const GroupsScope&) = delete;

 private:
  Optimizer& optimizer_;
  std::vector<ParamGroup>& groups_;
};

}  // namespace

Part::Part(Variable parameter, int its_group)
    : variable(std::move(parameter)), group(its_group), count(variable.data().numel()) {}

Part::Part(Variable parameter, int its_group, std::int64_t its_offset, Tensor its_weights)
    : variable(std::move(parameter)),
      group(its_group),
      offset(its_offset),
      count(its_weights.numel()),
      weights(std::move(its_weights)) {}

Stepper::Stepper(Optimizer& optimizer, std::vector<Part> parts, const Options& options)
    : optimizer_(optimizer), parts_(std::move(parts)), options_(options) {
  for (const std::int64_t elements : {options.cut_elements, options.stretch_elements}) {
    if (elements < 0 || elements % kBlockElements != 0)
      throw InternalError(cat("Stepper: cuts fall on multiples of ", kBlockElements, " elements, got ", elements));
  }
  if (options.stretch_elements == 0) throw InternalError("Stepper: stretches have elements");
  const CategoryScope category(Category::optimizer);
  for (const Part& part : parts_) {
    const Tensor& x = part.variable.data();
    const std::string& name = part.variable.name();
    const bool is_half = x.dtype() == DType::bf16 || x.dtype() == DType::f16;
    if (!is_half && x.dtype() != DType::f32)
      throw DTypeError(cat("Stepper: '", name, "' must be f32, f16 or bf16, got ", x));
    if (!x.is_contiguous())
      throw ShapeError(cat("Stepper: '", name, "' must be row-major, got ", x, " with strides ", x.strides()));
    if (part.group < 0 || part.group >= static_cast<int>(optimizer.groups().size())) {
      throw InternalError(cat("Stepper: '", name, "' is in group ", part.group, " of ", optimizer.groups().size()));
    }
    if (part.offset % kBlockElements != 0 || part.offset + part.count > x.numel()) {
      throw InternalError(cat("Stepper: '", name, "' has ", x.numel(), " elements and no part [", part.offset, ", ",
                              part.offset + part.count, ") on a block's boundary"));
    }
    std::map<std::string, Tensor> states;
    for (const StateSpec& spec : optimizer.states(x.shape())) {
      const auto stretch = spec.stretch(x.shape(), part.offset, part.count);
      const bool is_cut = stretch && !part.is_whole();
      states[spec.name] = make_state(part, is_cut ? Shape{stretch->count} : spec.shape, spec.dtype);
    }
    if (is_half && options.keeps_masters)
      states[kMaster] = make_state(part, part.is_whole() ? x.shape() : Shape{part.count}, DType::f32);
    states_.push_back(std::move(states));
  }
  // Values come when all states are made: a home gives addresses only then.
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    for (const StateSpec& spec : optimizer.states(parts_[i].variable.shape())) {
      if (spec.initial != 0) fill(states_[i].at(spec.name), spec.initial);
    }
  }
  refresh_masters();
}

// Of a late part the gradient has been forgotten, but not its place.
Tensor Stepper::waiting_gradient(std::size_t index) const {
  const bool is_late = std::binary_search(late_.parts.begin(), late_.parts.end(), index);
  return is_late ? weights_of(parts_[index]) : gradient_of(parts_[index]);
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

std::vector<Range> Stepper::ranges_of(std::size_t index, const Work& work) const {
  const Part& part = parts_[index];
  const auto& states = states_[index];
  const Shape& shape = part.variable.shape();
  const Tensor &weights = work.weights, &gradient = work.gradient;
  const auto master = states.find(kMaster);
  const std::int64_t end = work.begin + weights.numel();
  const std::int64_t length = options_.cut_elements > 0 ? options_.cut_elements : std::max<std::int64_t>(part.count, 1);
  const std::vector<StateSpec> specs = optimizer_.states(shape);
  std::vector<Range> ranges;
  for (std::int64_t begin = work.begin; begin < end; begin += length) {
    const std::int64_t count = std::min(length, end - begin);
    const auto cut = [&](const Tensor& stretch) { return stretch.narrow(0, begin - work.begin, count); };
    Range range{&part.variable.name(), shape, part.offset + begin, count, part.group, {}, {}, {}, {}};
    if (weights.dtype() == DType::f32) {
      range.parameter = cut(weights);
    } else {
      range.parameter =
          master != states.end() ? flat(master->second).narrow(0, begin, count) : cast(cut(weights), DType::f32);
      range.copy = cut(weights);
    }
    if (gradient.defined()) range.gradient = cut(gradient);
    for (const StateSpec& spec : specs) {
      const auto state = states.find(spec.name);
      if (state == states.end()) continue;                     // an optimizer that changed its mind says so itself
      const auto stretch = spec.stretch(shape, begin, count);  // within the part, which starts at a block's boundary
      range.states[spec.name] =
          stretch ? flat(state->second).narrow(0, stretch->offset, stretch->count) : state->second;
    }
    ranges.push_back(std::move(range));
  }
  return ranges;
}

// Whether a part may be stepped together with others: what it needs lies on one GPU, stays there and is there already.
bool Stepper::joins_others(std::size_t index) const {
  const Part& part = parts_[index];
  const Tensor weights = weights_of(part);
  const bool is_there = place_of(part) == weights.device() && part.states_in == nullptr;
  const bool has_f32 = weights.dtype() == DType::f32 || states_[index].contains(kMaster);
  return weights.device().is_cuda() && is_there && has_f32 && optimizer_.stats_passes() == 0;
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
    const Work work{weights_of(parts_[i]).narrow(0, 0, count), waiting_gradient(i).narrow(0, 0, count)};
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

// Statistics of several owners are completed in the order of a step, so parts that need some are never late.
bool Stepper::is_late(std::size_t index) const {
  const Part& part = parts_[index];
  const bool has_place = part.gradient.defined() && part.gradient.storage() == weights_of(part).storage();
  return options_.may_be_late && has_place && place_of(part) != part.variable.device() &&
         optimizer_.stats_passes() == 0;
}

void Stepper::step(double gradient_scale) {
  finish();
  ++step_count_;
  StepContext context{step_count_, gradient_scale};
  if (optimizer_.needs_gradient_norm()) context.gradient_norm = gradient_norm() * gradient_scale;
  std::vector<std::size_t> stepped;
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    if (parts_[i].count == 0) continue;
    if (side_copies_ == nullptr) side_copies_ = std::make_unique<SideCopies>(weights_of(parts_[i]).device());
    (is_late(i) ? late_.parts : stepped).push_back(i);
  }
  if (side_copies_ == nullptr) return;
  side_copies_->begin();
  begun_.clear();  // of a step that failed
  ahead_.clear();
  most_ahead_ = 0;
  may_stream_.assign(parts_.size(), false);
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    if (parts_[i].count == 0) continue;
    may_stream_[i] = can_stream(i);
    const std::size_t bytes = moved_bytes(i);
    most_ahead_ = std::max(most_ahead_, stretch_of(i) < parts_[i].count ? kStretchesAhead * bytes : bytes / 2);
  }
  if (!late_.parts.empty()) {
    late_.context = context;
    late_.groups = optimizer_.groups();
  }
  step_all(stepped, context);
}

void Stepper::step_all(const std::vector<std::size_t>& indices, const StepContext& context) {
  std::vector<Range> together;
  const auto apply_together = [&] {
    optimizer_.apply_all(together, context);
    together.clear();
  };
  std::vector<std::size_t> alone;
  for (const std::size_t i : indices) {
    if (!joins_others(i)) {
      alone.push_back(i);
      continue;
    }
    if (before_update_) before_update_(parts_[i], states_[i]);
    std::vector<Range> ranges = ranges_of(i, {weights_of(parts_[i]), gradient_of(parts_[i])});
    std::move(ranges.begin(), ranges.end(), std::back_inserter(together));
    if (together.size() >= kTogether) apply_together();
  }
  apply_together();
  for (std::size_t n = 0; n < alone.size(); ++n) step_part(alone[n], std::span(alone).subspan(n + 1), context);
  side_copies_->end();
}

void Stepper::finish(std::size_t first, std::size_t count) {
  std::vector<std::size_t>& late = late_.parts;
  auto next = std::lower_bound(late.begin(), late.end(), first);
  const auto is_over = [&] { return next == late.end() || *next >= first + count; };
  if (is_over()) return;
  const TraceSpan span("late update", "phase", parts_[*next].variable.device());
  const GroupsScope groups(optimizer_, late_.groups);
  while (!is_over()) {
    const std::size_t i = *next;
    step_part(i, {next + 1, late.end()}, late_.context);
    next = late.erase(next);  // one by one: what was stepped when another fails is not stepped again
  }
  side_copies_->end();
}

void Stepper::finish() {
  finish(0, parts_.size());
  if (streamed_ != nullptr) streamed_->wait();
}

// The block sums of a device's gradients, in one array: a read waits for the device, so there must be few.
struct Stepper::BlockSums {
  Tensor all;                        // f64
  std::vector<std::size_t> parts;    // whose gradients are there, in order
  std::vector<std::int64_t> begins;  // of each part's blocks, and the end
};

std::vector<Stepper::BlockSums> Stepper::sum_blocks() const {
  std::vector<Device> devices;
  std::vector<BlockSums> found;
  std::vector<Tensor> gradients;
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    gradients.push_back(gradient_of(parts_[i]));
    if (!gradients[i].defined()) continue;
    const auto known = std::find(devices.begin(), devices.end(), gradients[i].device());
    if (known == devices.end()) found.push_back({{}, {}, {0}});
    BlockSums& sums = found[static_cast<std::size_t>(known - devices.begin())];
    if (known == devices.end()) devices.push_back(gradients[i].device());
    sums.parts.push_back(i);
    sums.begins.push_back(sums.begins.back() + block_count(parts_[i].count));
  }
  const CategoryScope category(Category::workspace);
  for (std::size_t d = 0; d < found.size(); ++d) {
    BlockSums& sums = found[d];
    sums.all = Tensor::empty({sums.begins.back()}, DType::f64, devices[d]);
    std::vector<BlockSquares> wanted;
    for (std::size_t i = 0; i < sums.parts.size(); ++i) {
      const std::int64_t begin = sums.begins[i], count = sums.begins[i + 1] - begin;
      wanted.push_back({gradients[sums.parts[i]], sums.all.narrow(0, begin, count)});
      // On the host a gradient may have an address only until the next one gets its own.
      if (!devices[d].is_cuda()) block_squares(std::exchange(wanted, {}));
    }
    block_squares(wanted);
  }
  return found;
}

double Stepper::gradient_norm() const { return norm_of(gradient_squares()); }

double Stepper::norm_of(const std::vector<double>& squares) {
  double total = 0;
  for (const double sum : squares) total += sum;
  return std::sqrt(total);
}

std::vector<std::string> Stepper::gradient_names() const {
  if (reducer_ != nullptr) return reducer_->names();
  std::vector<std::string> names;
  for (const Part& part : parts_) names.push_back(part.variable.name());
  return names;
}

std::vector<double> Stepper::gradient_squares() const {
  const std::vector<BlockSums> found = sum_blocks();
  if (!parts_.empty() && parts_.front().variable.device().is_meta()) {
    for (const BlockSums& sums : found) fold_segments(sums.all, sums.begins);
    return {};
  }
  if (reducer_ != nullptr) {
    std::vector<std::int64_t> offsets = {0};
    for (const Part& part : parts_) offsets.push_back(offsets.back() + block_count(part.count));
    std::vector<BlockRun> runs;
    for (const BlockSums& sums : found) {
      std::size_t first = 0;
      for (std::size_t i = 1; i <= sums.parts.size(); ++i) {
        if (i < sums.parts.size() && offsets[sums.parts[i]] == offsets[sums.parts[i - 1] + 1]) continue;
        const std::int64_t begin = sums.begins[first];
        runs.push_back({offsets[sums.parts[first]], sums.all.narrow(0, begin, sums.begins[i] - begin)});
        first = i;
      }
    }
    return reducer_->sum_blocks(runs);
  }
  std::vector<double> of_part(parts_.size(), 0.0);
  for (const BlockSums& sums : found) {
    const std::vector<double> folded = fold_segments(sums.all, sums.begins).to_vector<double>();
    for (std::size_t i = 0; i < sums.parts.size(); ++i) of_part[sums.parts[i]] = folded[i];
  }
  return of_part;
}

void Stepper::restore_weights() {
  finish();
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    const auto master = states_[i].find(kMaster);
    if (master == states_[i].end()) continue;
    const Tensor weights = weights_of(parts_[i]);
    copy_across(cast(flat(master->second), weights.dtype()), weights);
  }
}

void Stepper::refresh_masters() {
  finish();
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    const auto master = states_[i].find(kMaster);
    if (master == states_[i].end() || parts_[i].count == 0) continue;
    copy_into(moved(weights_of(parts_[i]), place_of(parts_[i])), flat(master->second));
  }
}

void Stepper::zero_grad() {
  for (Part& part : parts_) {
    part.gradient = {};
    part.variable.set_grad({});
  }
}

std::map<std::string, StatePiece> Stepper::named_states() {
  finish();
  std::map<std::string, StatePiece> found;
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    const Part& part = parts_[i];
    const Shape& shape = part.variable.shape();
    std::vector<StateSpec> specs = optimizer_.states(shape);
    if (states_[i].contains(kMaster)) specs.push_back({kMaster, shape});
    for (const StateSpec& spec : specs) {
      const auto state = states_[i].find(spec.name);
      if (state == states_[i].end()) continue;
      const auto stretch = spec.stretch(shape, part.offset, part.count);
      found[part.variable.name() + "/" + spec.name] = {spec.shape, stretch ? stretch->offset : 0, state->second,
                                                       stretch || part.offset == 0};
    }
  }
  return found;
}

}  // namespace castor::autograd
