// Reading from where it lies. Large all-reduces go block by block, so that a sum is copied while it is still in the
// owner's cache. Delicate: one byte a block says that a sum is there; between two ranks' reads and writes of one byte
// of a tensor there is always such a byte.
#include "dist/direct.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "dist/combine.h"

namespace castor::dist {
namespace {

constexpr std::size_t kLeastBytes = std::size_t{64} << 10;   // below, a pipe is as fast
constexpr std::size_t kBlockBytes = std::size_t{128} << 10;  // of one rank's part of an all-reduce
constexpr std::size_t kBlocksBehind = 2;  // sums that wait to be copied, so that ranks need not keep in step

std::span<std::byte> bytes_of(const Buffer& buffer) { return {buffer.view.as<std::byte>(), buffer.view.bytes()}; }

/// What this rank contributes to a peer; nothing for collectives that are always sent.
const Buffer* contribution(const Collective& collective, int peer) {
  switch (collective.op) {
    case CollectiveOp::kAllReduce:
      return collective.order == SumOrder::kByRank ? &collective.out[0] : nullptr;
    case CollectiveOp::kAllGather:
      return &collective.in[0];
    case CollectiveOp::kReduceScatter:
    case CollectiveOp::kAllToAll:
      return &collective.in[static_cast<std::size_t>(peer)];
    default:
      return nullptr;
  }
}

/// How many bytes a peer contributes to this rank.
std::size_t expected_bytes(const Collective& collective, int rank, int peer) {
  if (collective.op == CollectiveOp::kAllReduce) return collective.out[0].view.bytes();
  return pair_bytes(collective, rank, peer).received;
}

class DirectRun {
 public:
  DirectRun(const Collective& collective, AlgorithmContext& context)
      : collective_(collective), context_(context), heard_(static_cast<std::size_t>(context.size)) {}

  void all_reduce();
  void reduce_scatter();
  /// all_gather and all_to_all: one piece from every rank, `own` from this one.
  void copy_pieces(const Buffer& own);

 private:
  template <class F>
  void each_peer(F&& f) {
    // Every rank starts behind itself, so that no rank's memory is everybody's first.
    for (int step = 1; step < context_.size; ++step) f((context_.rank + step) % context_.size);
  }
  const std::byte* at_peer(int peer) const { return context_.at_peers[static_cast<std::size_t>(peer)]; }
  void tell_all() {
    each_peer([&](int peer) { context_.exchange.send(peer, kWord); });
  }
  void hear_all() {
    each_peer([&](int peer) { context_.exchange.receive(peer, {&heard_[static_cast<std::size_t>(peer)], 1}); });
    context_.exchange.finish_receives();
  }
  /// Nobody leaves before all have read.
  void leave() {
    tell_all();
    hear_all();
    context_.exchange.finish();
  }

  static constexpr std::array<std::byte, 1> kWord{std::byte{1}};
  const Collective& collective_;
  AlgorithmContext& context_;
  std::vector<std::byte> heard_;
};

void DirectRun::all_reduce() {
  const std::span<std::byte> x = bytes_of(collective_.out[0]);
  const DType dtype = collective_.dtype();
  const std::size_t item = dtype_size(dtype);
  const auto ranks = static_cast<std::size_t>(context_.size);
  // Parts are whole cache lines; the last ones may be short or empty.
  const std::size_t each = ((x.size() + ranks - 1) / ranks + 63) / 64 * 64;
  const std::size_t blocks = (each + kBlockBytes - 1) / kBlockBytes;
  struct Range {
    std::size_t start;
    std::size_t bytes;
  };
  const auto range = [&](int part, std::size_t block) {
    const std::size_t part_start = static_cast<std::size_t>(part) * each;
    const std::size_t part_end = std::min(part_start + each, x.size());
    const std::size_t start = std::min(part_start + block * kBlockBytes, part_end);
    return Range{start, std::min(kBlockBytes, std::max(part_end, start) - start)};
  };
  std::vector<const void*> terms(ranks);
  const auto add_own = [&](std::size_t block) {
    const Range own = range(context_.rank, block);
    for (int r = 0; r < context_.size; ++r) {
      terms[static_cast<std::size_t>(r)] = (r == context_.rank ? x.data() : at_peer(r)) + own.start;
    }
    combine(collective_.reduce, dtype, terms, static_cast<std::int64_t>(own.bytes / item), x.data() + own.start, dtype,
            false);
    tell_all();
  };
  const auto copy_others = [&](std::size_t block) {
    hear_all();
    each_peer([&](int peer) {
      const Range other = range(peer, block);
      if (other.bytes > 0) std::memcpy(x.data() + other.start, at_peer(peer) + other.start, other.bytes);
    });
  };
  for (std::size_t block = 0; block < blocks; ++block) {
    add_own(block);
    if (block >= kBlocksBehind) copy_others(block - kBlocksBehind);
  }
  for (std::size_t block = blocks - std::min(kBlocksBehind, blocks); block < blocks; ++block) copy_others(block);
  leave();
}

void DirectRun::reduce_scatter() {
  const std::span<std::byte> own = bytes_of(collective_.in[static_cast<std::size_t>(context_.rank)]);
  const Buffer& result = collective_.out[0];
  std::vector<const void*> terms(context_.at_peers.begin(), context_.at_peers.end());
  terms[static_cast<std::size_t>(context_.rank)] = own.data();
  combine(collective_.reduce, collective_.dtype(), terms,
          static_cast<std::int64_t>(own.size() / dtype_size(collective_.dtype())), result.view.as<std::byte>(),
          result.view.dtype, collective_.accumulate);
  leave();
}

void DirectRun::copy_pieces(const Buffer& own) {
  each_peer([&](int peer) {
    const std::span<std::byte> out = bytes_of(collective_.out[static_cast<std::size_t>(peer)]);
    if (!out.empty()) std::memcpy(out.data(), at_peer(peer), out.size());
  });
  const std::span<std::byte> from = bytes_of(own);
  const std::span<std::byte> to = bytes_of(collective_.out[static_cast<std::size_t>(context_.rank)]);
  if (from.data() != to.data() && !from.empty()) std::memmove(to.data(), from.data(), from.size());
  leave();
}

}  // namespace

bool offer(const Collective& collective, const Link& link, std::span<Announcement> to_peers) {
  std::vector<std::size_t> places(to_peers.size());
  std::size_t total = 0;
  for (int peer = 0; peer < link.size(); ++peer) {
    if (peer == link.rank()) continue;
    const Buffer* piece = contribution(collective, peer);
    if (piece == nullptr) return false;
    total += piece->view.bytes();
    if (piece->view.bytes() == 0) continue;
    const auto place = link.place_of(bytes_of(*piece));
    if (!place) return false;
    places[static_cast<std::size_t>(peer)] = *place;
  }
  if (total < kLeastBytes) return false;
  for (std::size_t peer = 0; peer < to_peers.size(); ++peer) to_peers[peer].place = places[peer] + 1;
  return true;
}

std::vector<const std::byte*> find_offers(const Collective& collective, const Link& link,
                                          std::span<const Announcement> said) {
  std::vector<const std::byte*> found(said.size());
  for (int peer = 0; peer < link.size(); ++peer) {
    if (peer == link.rank()) continue;
    const auto at = static_cast<std::size_t>(peer);
    if (said[at].place == 0) return {};
    found[at] = link.at_peer(peer, said[at].place - 1, expected_bytes(collective, link.rank(), peer));
  }
  return found;
}

void run_direct(const Collective& collective, AlgorithmContext& context) {
  DirectRun run(collective, context);
  switch (collective.op) {
    case CollectiveOp::kAllReduce:
      return run.all_reduce();
    case CollectiveOp::kReduceScatter:
      return run.reduce_scatter();
    case CollectiveOp::kAllGather:
      return run.copy_pieces(collective.in[0]);
    case CollectiveOp::kAllToAll:
      return run.copy_pieces(collective.in[static_cast<std::size_t>(context.rank)]);
    default:
      throw InternalError(cat("run_direct: ", collective_name(collective.op), " is always sent"));
  }
}

}  // namespace castor::dist
