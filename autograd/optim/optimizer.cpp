// The groups' defaults, and LocalStepper: whole parameters of one process as ranges.
//
// Delicate: the order of calls is the contract (each pass over all ranges in order of offset, then its finish; then the
// updates); distributed steppers repeat it. Nothing is read back from the device but statistics.
#include "autograd/optim/optimizer.h"

#include "autograd/optim/clip.h"
#include "core/ops/cast.h"

namespace castor::autograd {

Optimizer::Optimizer(std::vector<ParamGroup> groups, std::map<std::string, double, std::less<>> defaults)
    : defaults_(std::move(defaults)) {
  set_param_groups(groups.empty() ? std::vector<ParamGroup>(1) : std::move(groups));
}

int Optimizer::add_param_group(ParamGroup group) {
  group.values.insert(defaults_.begin(), defaults_.end());
  groups_.push_back(std::move(group));
  return static_cast<int>(groups_.size()) - 1;
}

void Optimizer::set_param_groups(std::vector<ParamGroup> groups) {
  groups_.clear();
  for (ParamGroup& group : groups) add_param_group(std::move(group));
}

double Optimizer::value(int group, std::string_view name) const {
  const ParamGroup& values = groups_.at(static_cast<std::size_t>(group));
  const auto found = values.values.find(name);
  if (found == values.values.end()) {
    throw ConfigError(cat(type_name(), ": parameter group ", group, " '", values.name, "' has no '", name, "'"),
                      std::string(name));
  }
  return found->second;
}

bool Optimizer::any_nonzero(std::string_view name) const {
  for (std::size_t group = 0; group < groups_.size(); ++group) {
    if (value(static_cast<int>(group), name) != 0) return true;
  }
  return false;
}

void Optimizer::accumulate_stats(int, const Range&, const StepContext&, const Stats&, Stats&) const {}
void Optimizer::finish_pass(int, const Range&, const StepContext&, const Stats&) const {}

namespace {
constexpr const char* kMaster = "master";

Tensor flat(const Tensor& x) { return x.reshape({x.numel()}); }
}  // namespace

LocalStepper::LocalStepper(Optimizer& optimizer, std::vector<Parameter> parameters, std::int64_t cut_elements)
    : optimizer_(optimizer), parameters_(std::move(parameters)), cut_elements_(cut_elements) {
  if (cut_elements < 0 || cut_elements % kBlockElements != 0) {
    throw InternalError(
        cat("LocalStepper: cuts fall on multiples of ", kBlockElements, " elements, got ", cut_elements));
  }
  const CategoryScope category(Category::optimizer);
  for (const Parameter& parameter : parameters_) {
    const Tensor& x = parameter.variable.data();
    const std::string& name = parameter.variable.name();
    const bool is_half = x.dtype() == DType::bf16 || x.dtype() == DType::f16;
    if (!is_half && x.dtype() != DType::f32)
      throw DTypeError(cat("LocalStepper: '", name, "' must be f32, f16 or bf16, got ", x));
    if (!x.is_contiguous())
      throw ShapeError(cat("LocalStepper: '", name, "' must be row-major, got ", x, " with strides ", x.strides()));
    if (parameter.group < 0 || parameter.group >= static_cast<int>(optimizer.groups().size())) {
      throw InternalError(
          cat("LocalStepper: '", name, "' is in group ", parameter.group, " of ", optimizer.groups().size()));
    }
    std::map<std::string, Tensor> states;
    for (const StateSpec& spec : optimizer.states(x.shape()))
      states[spec.name] = Tensor::zeros(spec.shape, spec.dtype, x.device());
    if (is_half) states[kMaster] = cast(x, DType::f32);
    states_.push_back(std::move(states));
  }
}

std::vector<Range> LocalStepper::ranges_of(std::size_t index) const {
  const Variable& variable = parameters_[index].variable;
  const Tensor& data = variable.data();
  const auto& states = states_[index];
  const std::int64_t total = data.numel();
  const std::int64_t length = cut_elements_ > 0 ? cut_elements_ : std::max<std::int64_t>(total, 1);
  const auto master = states.find(kMaster);
  std::vector<Range> ranges;
  for (std::int64_t offset = 0; offset < total; offset += length) {
    const std::int64_t count = std::min(length, total - offset);
    const auto cut = [&](const Tensor& whole) { return flat(whole).narrow(0, offset, count); };
    Range range{&variable.name(), data.shape(), offset, count, parameters_[index].group, {}, {}, {}, {}};
    range.parameter = cut(master != states.end() ? master->second : data);
    if (master != states.end()) range.copy = cut(data);
    if (variable.grad().defined()) range.gradient = cut(variable.grad());
    for (const auto& [name, state] : states) {
      if (name != kMaster) range.states[name] = state.shape() == data.shape() ? cut(state) : state;
    }
    ranges.push_back(std::move(range));
  }
  return ranges;
}

void LocalStepper::step(double gradient_scale) {
  ++step_count_;
  const StepContext context{step_count_, gradient_scale};
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    const std::vector<Range> ranges = ranges_of(i);
    if (ranges.empty()) continue;
    if (before_update_) before_update_(parameters_[i].variable, states_[i]);
    Stats finished;
    for (int pass = 0; pass < optimizer_.stats_passes(); ++pass) {
      Stats carry;
      for (const Range& range : ranges) optimizer_.accumulate_stats(pass, range, context, finished, carry);
      finished.merge(carry);
      optimizer_.finish_pass(pass, ranges.front(), context, finished);
    }
    for (const Range& range : ranges) optimizer_.apply(range, context, finished);
  }
}

double LocalStepper::gradient_norm() const {
  std::vector<Variable> variables;
  for (const Parameter& parameter : parameters_) variables.push_back(parameter.variable);
  return total_gradient_norm(variables);
}

void LocalStepper::refresh_masters() {
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    const auto master = states_[i].find(kMaster);
    if (master != states_[i].end()) copy_into(parameters_[i].variable.data(), master->second);
  }
}

void LocalStepper::zero_grad() {
  for (const Parameter& parameter : parameters_) parameter.variable.set_grad({});
}

std::map<std::string, Tensor> LocalStepper::named_states() const {
  std::map<std::string, Tensor> found;
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    for (const auto& [name, state] : states_[i]) found[parameters_[i].variable.name() + "/" + name] = state;
  }
  return found;
}

}  // namespace castor::autograd
