// Fingerprints: made, compared, and told apart in words.
#include "dist/announcement.h"

#include <algorithm>
#include <cstring>
#include <string_view>

#include "core/base/digest.h"
#include "core/base/file.h"

namespace castor::dist {
namespace {

std::uint64_t digest_of_counts(const std::vector<Buffer>& pieces) {
  std::vector<std::int64_t> counts;
  for (const Buffer& piece : pieces) counts.push_back(piece.view.numel());
  return xxh3(std::as_bytes(std::span(counts)));
}

std::string list(const std::vector<int>& ranks) {
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  for (std::size_t i = 0; i < ranks.size(); ++i) text += cat(i == 0 ? "" : ", ", ranks[i]);
  return text;
}

}  // namespace

bool Announcement::same(const Announcement& other) const {
  return magic == other.magic && group == other.group && sequence == other.sequence && count == other.count &&
         layout == other.layout && label_hash == other.label_hash && root == other.root && op == other.op &&
         dtype == other.dtype && reduce == other.reduce && flags == other.flags;
}

std::string Announcement::describe() const {
  if (magic != kMagic) return "bytes that are no announcement";
  std::string text = cat(collective_name(static_cast<CollectiveOp>(op)), " #", sequence);
  const std::string_view start(label, strnlen(label, sizeof(label)));
  if (!start.empty()) text += cat(" '", start, start.size() == sizeof(label) ? "..." : "", "'");
  const auto kind = static_cast<CollectiveOp>(op);
  if (kind != CollectiveOp::kBarrier && dtype <= static_cast<std::uint8_t>(DType::boolean)) {
    text += cat(" ", static_cast<DType>(dtype));
    if (kind != CollectiveOp::kAllToAll) text += cat(" x ", count);
  }
  constexpr std::string_view kReduce[] = {"sum", "max", "min", "mean"};
  if ((kind == CollectiveOp::kAllReduce || kind == CollectiveOp::kReduceScatter) && reduce < std::size(kReduce)) {
    text += cat(" ", kReduce[reduce]);
    if ((flags & 1u) != 0) text += " accumulated";
    if ((flags & 2u) != 0) text += " into f32";
    if ((flags & 4u) != 0) text += " along the ring";
  }
  if (kind == CollectiveOp::kBroadcast) text += cat(" from ", root);
  return text;
}

Announcement announce(const Collective& collective, const std::string& group, std::uint64_t sequence) {
  Announcement said;
  said.group = xxh3(as_byte_span(group));
  said.sequence = sequence;
  said.op = static_cast<std::uint8_t>(collective.op);
  said.dtype = static_cast<std::uint8_t>(collective.dtype());
  said.reduce = static_cast<std::uint8_t>(collective.reduce);
  said.flags = collective.accumulate ? 1 : 0;
  if (collective.order == SumOrder::kRing) said.flags |= 4;
  said.label_hash = xxh3(as_byte_span(collective.label));
  std::memcpy(said.label, collective.label.data(), std::min(collective.label.size(), sizeof(said.label)));
  switch (collective.op) {
    case CollectiveOp::kReduceScatter:
      said.layout = digest_of_counts(collective.in);
      if (collective.out[0].view.dtype != collective.dtype()) said.flags |= 2;
      break;
    case CollectiveOp::kAllGather:
      said.layout = digest_of_counts(collective.out);
      break;
    case CollectiveOp::kBroadcast:
      said.root = collective.root;
      break;
    default:
      break;
  }
  if (collective.op != CollectiveOp::kAllToAll) said.count = static_cast<std::uint64_t>(collective.count());
  return said;
}

Failure find_disagreement(std::span<const Announcement> said, const std::vector<int>& members, int own_place,
                          const std::string& group) {
  // Places that say the same, in order of their first.
  std::vector<std::vector<std::size_t>> camps;
  for (std::size_t place = 0; place < said.size(); ++place) {
    auto camp = std::ranges::find_if(camps, [&](const auto& c) { return said[c.front()].same(said[place]); });
    if (camp == camps.end()) camp = camps.emplace(camps.end());
    camp->push_back(place);
  }
  Failure failure;
  if (camps.size() <= 1) return failure;
  // The smallest camp is at fault; of equal ones the later.
  const auto fault = std::ranges::min_element(camps.rbegin(), camps.rend(), {}, &std::vector<std::size_t>::size);
  const Announcement& own = said[static_cast<std::size_t>(own_place)];
  failure.rank = members[fault->front()];
  failure.op = collective_name(static_cast<CollectiveOp>(own.op));
  failure.sequence = own.sequence;
  failure.text = cat("the ranks of group ", group, " disagree: ");
  for (std::size_t i = 0; i < camps.size(); ++i) {
    std::vector<int> ranks;
    for (const std::size_t place : camps[i]) ranks.push_back(members[place]);
    failure.text += cat(i == 0 ? "" : "; ", list(ranks), ranks.size() == 1 ? " calls " : " call ",
                        said[camps[i].front()].describe());
  }
  failure.text += ". All ranks must call the same collectives, on tensors of one size, in the same order";
  return failure;
}

}  // namespace castor::dist
