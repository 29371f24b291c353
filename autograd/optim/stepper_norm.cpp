// The squares of gradients, by block and parameter, and steps that limit the norm which they make: by the device
// itself, while the host reads them, wherever all that is needed is there.
#include <algorithm>
#include <cmath>
#include <utility>

#include "autograd/optim/clip.h"
#include "autograd/optim/part_places.h"
#include "autograd/optim/stepper.h"
#include "core/ops/optim.h"

namespace castor::autograd {

std::vector<double> Stepper::BlockSums::spread(const std::vector<double>& folded, std::size_t count) const {
  std::vector<double> of_part(count, 0.0);
  for (std::size_t i = 0; i < parts.size(); ++i) of_part[parts[i]] = folded[i];
  return of_part;
}

// A device each, in the order in which parts come to them.
std::vector<Stepper::BlockSums> Stepper::block_layout() const {
  std::vector<Device> devices;
  std::vector<BlockSums> found;
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    const Tensor gradient = gradient_of(parts_[i]);
    if (!gradient.defined()) continue;
    const auto known = std::find(devices.begin(), devices.end(), gradient.device());
    if (known == devices.end()) found.emplace_back();
    BlockSums& sums = found[static_cast<std::size_t>(known - devices.begin())];
    if (known == devices.end()) devices.push_back(gradient.device());
    sums.parts.push_back(i);
    sums.begins.push_back(sums.begins.back() + block_count(parts_[i].count));
  }
  return found;
}

void Stepper::sum_blocks(BlockSums& sums) const {
  const CategoryScope category(Category::workspace);
  const Device device = gradient_of(parts_[sums.parts.front()]).device();
  sums.all = Tensor::empty({sums.begins.back()}, DType::f64, device);
  std::vector<BlockSquares> wanted;
  for (std::size_t i = 0; i < sums.parts.size(); ++i) {
    const std::int64_t begin = sums.begins[i], count = sums.begins[i + 1] - begin;
    wanted.push_back({gradient_of(parts_[sums.parts[i]]), sums.all.narrow(0, begin, count)});
    // On the host a gradient may have an address only until the next one gets its own.
    if (!device.is_cuda()) block_squares(std::exchange(wanted, {}));
  }
  block_squares(wanted);
}

std::vector<Stepper::BlockSums> Stepper::summed_blocks() const {
  std::vector<BlockSums> found = block_layout();
  for (BlockSums& sums : found) sum_blocks(sums);
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

std::vector<BlockRun> Stepper::runs_of(const std::vector<BlockSums>& found) const {
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
  return runs;
}

std::vector<double> Stepper::gradient_squares() const {
  const std::vector<BlockSums> found = summed_blocks();
  if (!parts_.empty() && parts_.front().variable.device().is_meta()) {
    for (const BlockSums& sums : found) fold_segments(sums.all, sums.begins);
    return {};
  }
  if (reducer_ != nullptr) {
    const Tensor sums = reducer_->sum_blocks(runs_of(found));
    // A rank that owns nothing knows only by this that it is planned.
    return sums.device().is_meta() ? std::vector<double>{} : sums.to_vector<double>();
  }
  std::vector<double> of_part(parts_.size(), 0.0);
  for (const BlockSums& sums : found) {
    const std::vector<double> folded = fold_segments(sums.all, sums.begins).to_vector<double>();
    for (std::size_t i = 0; i < sums.parts.size(); ++i) of_part[sums.parts[i]] = folded[i];
  }
  return of_part;
}

// Where all that the limit takes, and all that is stepped with it, is; nothing where the host has to help.
std::optional<Device> Stepper::limiting_device() const {
  if (!optimizer_.takes_device_scale() || optimizer_.needs_gradient_norm()) return std::nullopt;
  std::optional<Device> device;
  const auto is_same = [&](Device other) { return other == device.value_or(other); };
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    if (parts_[i].count == 0) continue;
    const Device place = weights_of(parts_[i]).device();
    const Tensor gradient = gradient_of(parts_[i]);
    const bool is_there = place_of(parts_[i]) == place && (!gradient.defined() || gradient.device() == place);
    if (!is_same(place) || !is_there || is_late(i)) return std::nullopt;
    device = place;
  }
  if (reducer_ != nullptr && device && device->is_meta()) return std::nullopt;  // a plan exchanges nothing
  return device;
}

std::vector<double> Stepper::step_limited(double scale, std::optional<double> max_norm) {
  finish();
  const auto factor_of = [&](const std::vector<double>& squares) {
    return max_norm ? 1 / scale * clip_factor(norm_of(squares) / scale, *max_norm) : 1 / scale;
  };
  if (const Recorded* made = recorded(true, max_norm ? std::optional(Limit{scale, *max_norm}) : std::nullopt))
    return run(*made, 1 / scale);
  const std::optional<Device> device = limiting_device();
  std::vector<BlockSums> found;
  if (device) found = summed_blocks();
  if (found.empty()) {
    std::vector<double> squares = gradient_squares();
    step(factor_of(squares));
    return squares;
  }
  const BlockSums& sums = found.front();  // and there are no others
  const Tensor folded =
      reducer_ != nullptr ? reducer_->sum_blocks(runs_of(found)) : fold_segments(sums.all, sums.begins);
  const auto all_squares = [&](const Tensor& read) {
    if (folded.device().is_meta()) return std::vector<double>();
    const std::vector<double> values = read.to_vector<double>();
    return reducer_ != nullptr ? values : sums.spread(values, parts_.size());
  };
  if (folded.device() != *device) {
    std::vector<double> squares = all_squares(folded);
    step(factor_of(squares));
    return squares;
  }
  StepContext context;
  context.gradient_scale = 1 / scale;
  if (max_norm) context.device_scale = norm_limit(folded, scale, *max_norm);
  SideCopies::Fetch read = begin_read(folded);
  step_as(std::move(context));
  return all_squares(side_copies_->finish(read));
}

SideCopies::Fetch Stepper::begin_read(const Tensor& squares) {
  const Device device = squares.device();
  if (side_copies_ == nullptr) side_copies_ = std::make_unique<SideCopies>(device);
  side_copies_->begin();
  return side_copies_->fetch(squares, device.is_cuda() ? kHost : device);
}

}  // namespace castor::autograd
