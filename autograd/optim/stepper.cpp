// Parts, their states and the order of a step; see stepper.h. How one part is stepped: stepper_stretches.cpp; the
// gradients' norm and its limit: stepper_norm.cpp. Nothing is read back from the device but statistics.
#include "autograd/optim/stepper.h"

#include <algorithm>
#include <iterator>
#include <optional>
#include <utility>

#include "autograd/optim/part_places.h"
#include "core/device/trace.h"
#include "core/ops/cast.h"

namespace castor::autograd {
namespace {

// Parts of a GPU that are stepped together: a launch for each would cost more than small ones take. Not all at once:
// the GPU begins while the next ones are gathered.
constexpr std::size_t kTogether = 64;
constexpr std::size_t kStretchesAhead = 8;  // of parts of several; a part of one: half of a large one

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

// While it lives parts are being stepped.
class SteppingScope {
 public:
  explicit SteppingScope(bool& is_stepping) : is_stepping_(is_stepping) { is_stepping_ = true; }
  ~SteppingScope() { is_stepping_ = false; }
  SteppingScope(const SteppingScope&) = delete;
  SteppingScope& operator=(const SteppingScope&) = delete;

 private:
  bool& is_stepping_;
};

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

// Statistics of several owners are completed in the order of a step, so parts that need some are never late.
bool Stepper::is_late(std::size_t index) const {
  const Part& part = parts_[index];
  return options_.may_be_late && part.gradient.defined() && place_of(part) != part.variable.device() &&
         optimizer_.stats_passes() == 0;
}

void Stepper::step(double gradient_scale) {
  finish();
  if (const Recorded* made = recorded(false, std::nullopt)) {
    run(*made, gradient_scale);
    return;
  }
  StepContext context;
  context.gradient_scale = gradient_scale;
  if (optimizer_.needs_gradient_norm()) context.gradient_norm = gradient_norm() * gradient_scale;
  step_as(std::move(context));
}

void Stepper::step_as(StepContext context) {
  context.step = ++step_count_;
  std::vector<std::size_t> stepped;
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    if (parts_[i].count == 0) continue;
    if (side_copies_ == nullptr) side_copies_ = std::make_unique<SideCopies>(weights_of(parts_[i]).device());
    if (is_late(i)) {
      late_.parts.push_back(i);
      late_.gradients[i] = parts_[i].gradient;
    } else {
      stepped.push_back(i);
    }
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
  const SteppingScope stepping(is_stepping_);
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
  if (is_stepping_) return;
  std::vector<std::size_t>& late = late_.parts;
  auto next = std::lower_bound(late.begin(), late.end(), first);
  const auto is_over = [&] { return next == late.end() || *next >= first + count; };
  if (is_over()) return;
  const SteppingScope stepping(is_stepping_);
  const TraceSpan span("late update", "phase", parts_[*next].variable.device());
  const GroupsScope groups(optimizer_, late_.groups);
  while (!is_over()) {
    const std::size_t i = *next;
    step_part(i, {next + 1, late.end()}, late_.context);
    late_.gradients.erase(i);
    next = late.erase(next);  // one by one: what was stepped when another fails is not stepped again
  }
  side_copies_->end();
}

void Stepper::finish() {
  finish(0, parts_.size());
  if (streamed_ != nullptr) streamed_->wait();
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
