// Gathering blocks and passing carries on; see part_sums.h.
#include "dist/part_sums.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/device/caching_allocator.h"
#include "core/ops/cast.h"
#include "core/ops/index.h"
#include "core/ops/optim.h"

namespace castor::dist {
namespace {

// {names: zero-terminated texts} and {sizes, values}: what a Stats is on its way.
struct Packed {
  Tensor names;   // u8
  Tensor values;  // f64: for each name its size, then its values
};

Packed pack(const autograd::Stats& stats) {
  std::string names;
  std::vector<double> values;
  for (const auto& [name, array] : stats) {
    names += name;
    names += '\0';
    values.push_back(static_cast<double>(array.size()));
    values.insert(values.end(), array.begin(), array.end());
  }
  const Tensor text = Tensor::empty({static_cast<std::int64_t>(names.size())}, DType::u8);
  text.copy_from_host(names.data(), names.size());
  return {text, Tensor::from_values(values, {static_cast<std::int64_t>(values.size())})};
}

autograd::Stats unpack(const Packed& packed) {
  std::string names(static_cast<std::size_t>(packed.names.numel()), '\0');
  packed.names.copy_to_host(names.data(), names.size());
  const std::vector<double> values = packed.values.to_vector<double>();
  autograd::Stats stats;
  std::size_t at = 0, name_begin = 0;
  while (name_begin < names.size()) {
    const std::size_t name_end = names.find('\0', name_begin);
    const auto count = static_cast<std::size_t>(values.at(at++));
    if (at + count > values.size()) throw InternalError("PartSums: statistics came incomplete");
    const auto first = values.begin() + static_cast<std::ptrdiff_t>(at);
    stats[names.substr(name_begin, name_end - name_begin)] = {first, first + static_cast<std::ptrdiff_t>(count)};
    at += count;
    name_begin = name_end + 1;
  }
  return stats;
}

}  // namespace

PartSums::PartSums(Comm& comm, std::vector<std::vector<OwnedStretch>> owned, std::vector<std::string> names,
                   Device device)
    : comm_(comm), owned_(std::move(owned)), names_(std::move(names)), device_(device), owners_(names_.size()) {
  for (std::size_t parameter = 0; parameter < names_.size(); ++parameter) {
    std::vector<std::pair<std::int64_t, int>> found;  // offset and rank
    for (std::size_t rank = 0; rank < owned_.size(); ++rank) {
      for (const OwnedStretch& stretch : owned_[rank]) {
        if (stretch.parameter == parameter) found.push_back({stretch.offset, static_cast<int>(rank)});
      }
    }
    std::sort(found.begin(), found.end());
    for (const auto& [offset, rank] : found) owners_[parameter].push_back(rank);
  }
}

void PartSums::send(const autograd::Stats& stats, int to, const std::string& label) {
  const Packed packed = pack(stats);
  const Tensor sizes = Tensor::from_values(std::vector<std::int64_t>{packed.names.numel(), packed.values.numel()}, {2});
  comm_.send(sizes, to, label);
  if (sizes.data<std::int64_t>()[0] == 0) return;
  comm_.send(packed.names, to, label);
  comm_.send(packed.values, to, label);
}

autograd::Stats PartSums::receive(int from, const std::string& label) {
  const Tensor sizes = Tensor::empty({2}, DType::i64);
  comm_.recv(sizes, from, label);
  const std::int64_t* counts = sizes.data<std::int64_t>();
  if (counts[0] == 0) return {};
  const Packed packed{Tensor::empty({counts[0]}, DType::u8), Tensor::empty({counts[1]}, DType::f64)};
  comm_.recv(packed.names, from, label);
  comm_.recv(packed.values, from, label);
  return unpack(packed);
}

autograd::Stats PartSums::reduce(std::size_t part, const std::function<void(autograd::Stats& carry)>& add) {
  const auto rank = static_cast<std::size_t>(comm_.rank());
  const std::size_t parameter = owned_.at(rank).at(part).parameter;
  const std::vector<int>& owners = owners_[parameter];
  const auto own = static_cast<std::size_t>(std::find(owners.begin(), owners.end(), comm_.rank()) - owners.begin());
  const std::string label = cat("statistics of ", names_[parameter]);
  autograd::Stats stats;
  if (own > 0) stats = receive(owners[own - 1], label);
  add(stats);
  if (own + 1 < owners.size()) {
    send(stats, owners[own + 1], label);
    return receive(owners.back(), label);
  }
  for (std::size_t other = 0; other < own; ++other) send(stats, owners[other], label);
  return stats;
}

// Done by the first sum: a plan needs none.
void PartSums::order_blocks() {
  begins_ = {0};
  for (const std::vector<OwnedStretch>& stretches : owned_) {
    std::int64_t count = 0;
    for (const OwnedStretch& stretch : stretches) count += block_count(stretch.count);
    begins_.push_back(begins_.back() + count);
  }
  struct Blocks {
    std::int64_t offset, begin, end;
  };
  std::vector<std::vector<Blocks>> of_parameter(names_.size());
  for (std::size_t rank = 0; rank < owned_.size(); ++rank) {
    std::int64_t begin = begins_[rank];
    for (const OwnedStretch& stretch : owned_[rank]) {
      const std::int64_t end = begin + block_count(stretch.count);
      of_parameter[stretch.parameter].push_back({stretch.offset, begin, end});
      begin = end;
    }
  }
  std::vector<std::int64_t> order;
  segments_ = {0};
  for (auto& stretches : of_parameter) {
    std::ranges::sort(stretches, {}, &Blocks::offset);
    for (const Blocks& blocks : stretches) {
      for (std::int64_t i = blocks.begin; i < blocks.end; ++i) order.push_back(i);
    }
    segments_.push_back(static_cast<std::int64_t>(order.size()));
  }
  in_order_ = to_device(Tensor::from_values(order, {static_cast<std::int64_t>(order.size())}), device_);
}

Tensor PartSums::sum_blocks(const std::vector<autograd::BlockRun>& runs) {
  const CategoryScope category(Category::workspace);
  if (segments_.empty()) order_blocks();
  const Tensor all = Tensor::empty({begins_.back()}, DType::f64, device_);
  std::vector<Buffer> pieces;
  for (std::size_t rank = 0; rank < owned_.size(); ++rank)
    pieces.emplace_back(all.narrow(0, begins_[rank], begins_[rank + 1] - begins_[rank]));
  const auto rank = static_cast<std::size_t>(comm_.rank());
  const Tensor own = all.narrow(0, begins_[rank], begins_[rank + 1] - begins_[rank]);
  std::int64_t covered = 0;
  for (const autograd::BlockRun& run : runs) covered += run.sums.numel();
  if (covered != own.numel()) own.fill_zero();
  for (const autograd::BlockRun& run : runs) copy_across(run.sums, own.narrow(0, run.offset, run.sums.numel()));
  if (comm_.world_size() > 1) comm_.run(Collective::all_gather(own, std::move(pieces), "squares of gradients"));
  return fold_segments(index_select(all, 0, in_order_), segments_);
}

}  // namespace castor::dist
