// The parameter groups and their defaults, and how states are cut.
#include "autograd/optim/optimizer.h"

namespace castor::autograd {

std::optional<StateStretch> StateSpec::stretch(const Shape& parameter, std::int64_t offset, std::int64_t count) const {
  if (is_per_block) return StateStretch{offset / kBlockElements, (count + kBlockElements - 1) / kBlockElements};
  if (shape == parameter) return StateStretch{offset, count};
  return std::nullopt;
}

Shape block_shape(const Shape& parameter) { return {(parameter.numel() + kBlockElements - 1) / kBlockElements}; }

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

std::vector<std::byte> Optimizer::group_scalars(int, const StepContext&) const { return {}; }

void Optimizer::apply_all(std::span<const Range> ranges, const StepContext& context) const {
  for (const Range& range : ranges) apply(range, context, {});
}

}  // namespace castor::autograd
