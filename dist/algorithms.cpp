// The exchanges. Large all-reduces go block by block, so that what is added and passed on is still in cache, and the
// gathering of one block overlaps the reduction of the next.
#include "dist/algorithms.h"

#include <algorithm>
#include <cstring>

#include "dist/combine.h"
#include "dist/direct.h"

namespace castor::dist {
namespace {

using Bytes = std::span<std::byte>;

constexpr std::size_t kLentBytes = std::size_t{64} << 10;  // used in place before the sender gets its room back
constexpr std::int64_t kBlocksAhead = 2;  // contributions on their way before a rank waits for the others'
constexpr std::size_t kSmallReduce = std::size_t{16} << 10;  // below: everyone sends everything, one phase
constexpr std::size_t kSmallBroadcast = std::size_t{64} << 10;

Bytes bytes_of(const Buffer& buffer) { return {buffer.view.as<std::byte>(), buffer.view.bytes()}; }

/// An array of elements cut into blocks, each block into one part a rank. Parts are multiples of 64 elements, so that
/// owners never share a cache line.
class Blocks {
 public:
  ///   window  bytes of a part
  Blocks(const Buffer& whole, int parts, std::size_t window)
      : bytes_(bytes_of(whole)),
        item_(dtype_size(whole.view.dtype)),
        count_(whole.view.numel()),
        parts_(parts),
        block_(static_cast<std::int64_t>(window / item_) * parts) {}

  std::int64_t size() const { return (count_ + block_ - 1) / block_; }
  /// The bytes of one part of one block; empty ones exist at the end.
  Bytes part(std::int64_t block, int part) const {
    const std::int64_t start = block * block_;
    const std::int64_t length = std::min(block_, count_ - start);
    const std::int64_t each = ((length + parts_ - 1) / parts_ + 63) / 64 * 64;
    const std::int64_t from = std::min(part * each, length);
    const std::int64_t to = std::min(from + each, length);
    return bytes_.subspan(static_cast<std::size_t>(start + from) * item_, static_cast<std::size_t>(to - from) * item_);
  }

 private:
  Bytes bytes_;
  std::size_t item_;
  std::int64_t count_;
  int parts_;
  std::int64_t block_;
};

/// One collective under way.
class Run {
 public:
  Run(const Collective& collective, AlgorithmContext& context)
      : collective_(collective), context_(context), exchange_(context.exchange) {}

  void all_reduce();
  void all_reduce_ring();
  void reduce_scatter();
  void all_gather();
  void broadcast();
  void all_to_all();

  template <class F>
  void each_peer(F&& f) {
    // Every rank starts behind itself, so that no rank is everybody's first.
    for (int step = 1; step < context_.size; ++step) f((context_.rank + step) % context_.size);
  }

 private:
  const Buffer& in(int i) const { return collective_.in[static_cast<std::size_t>(i)]; }
  const Buffer& out(int i) const { return collective_.out[static_cast<std::size_t>(i)]; }
  std::byte* scratch(std::size_t bytes) {
    if (context_.scratch.size() < bytes) context_.scratch.resize(bytes);
    return context_.scratch.data();
  }
  void all_reduce_small();
  /// Takes everyone's version of `own`, where it lies if the transport lends, and combines them into `result`, in order
  /// of ranks.
  void reduce_own(std::span<const std::byte> own, void* result, DType result_dtype, bool accumulate);

  const Collective& collective_;
  AlgorithmContext& context_;
  Exchange& exchange_;
};

void Run::reduce_own(std::span<const std::byte> own, void* result, DType result_dtype, bool accumulate) {
  const DType dtype = collective_.dtype();
  const std::size_t item = dtype_size(dtype);
  const std::size_t result_item = dtype_size(result_dtype);
  std::vector<const void*> terms(static_cast<std::size_t>(context_.size));
  for (std::size_t done = 0; done < own.size();) {
    const std::size_t left = own.size() - done;
    std::size_t length = exchange_.borrow(item, std::min(left, kLentBytes), terms);
    const bool lent = length > 0;
    if (!lent) {
      length = left;
      std::byte* room = scratch(length * static_cast<std::size_t>(context_.size));
      each_peer([&](int peer) {
        std::byte* at = room + static_cast<std::size_t>(peer) * length;
        exchange_.receive(peer, {at, length});
        terms[static_cast<std::size_t>(peer)] = at;
      });
      exchange_.finish_receives();
    }
    terms[static_cast<std::size_t>(context_.rank)] = own.data() + done;
    combine(collective_.reduce, dtype, terms, static_cast<std::int64_t>(length / item),
            static_cast<std::byte*>(result) + done / item * result_item, result_dtype, accumulate);
    if (lent) exchange_.give_back(length);
    done += length;
  }
}

void Run::all_reduce_small() {
  const Bytes x = bytes_of(out(0));
  each_peer([&](int peer) { exchange_.send(peer, x); });
  context_.agree();
  std::vector<std::byte> result(x.size());
  reduce_own(x, result.data(), collective_.dtype(), false);
  exchange_.finish();  // x is still being sent until here
  std::memcpy(x.data(), result.data(), x.size());
}

void Run::all_reduce_ring() {
  // Part p's sum starts at rank p and goes once around; then the finished parts go around.
  const Bytes x = bytes_of(out(0));
  const DType dtype = collective_.dtype();
  const std::size_t item = dtype_size(dtype);
  const int size = context_.size;
  const int next = (context_.rank + 1) % size;
  const int before = (context_.rank + size - 1) % size;
  const std::size_t each =
      (x.size() / item + static_cast<std::size_t>(size) - 1) / static_cast<std::size_t>(size) * item;
  const auto part = [&](int index) {
    const std::size_t from = std::min(static_cast<std::size_t>((index + 2 * size) % size) * each, x.size());
    return x.subspan(from, std::min(each, x.size() - from));
  };
  context_.agree();
  const std::size_t most = exchange_.window_bytes();
  std::byte* room = scratch(most);
  exchange_.send(next, part(context_.rank));
  for (int step = 1; step < size; ++step) {
    const Bytes own = part(context_.rank - step);
    for (std::size_t at = 0; at < own.size(); at += most) {
      const Bytes window = own.subspan(at, std::min(most, own.size() - at));
      exchange_.receive(before, {room, window.size()});
      exchange_.finish_receives();
      const void* terms[] = {room, window.data()};
      combine(collective_.reduce, dtype, terms, static_cast<std::int64_t>(window.size() / item), window.data(), dtype,
              false);
      exchange_.send(next, window);
    }
  }
  for (int step = 0; step + 1 < size; ++step) {
    const Bytes finished = part(context_.rank - step);
    exchange_.receive(before, finished);
    exchange_.finish_receives();
    if (step + 2 < size) exchange_.send(next, finished);
  }
  exchange_.finish();
}

void Run::all_reduce() {
  if (context_.size == 1) return context_.agree();
  if (collective_.order == SumOrder::kRing) return all_reduce_ring();
  if (bytes_of(out(0)).size() <= kSmallReduce) return all_reduce_small();
  const Blocks blocks(out(0), context_.size, exchange_.window_bytes());
  const auto contribute = [&](std::int64_t block) {
    each_peer([&](int peer) { exchange_.send(peer, blocks.part(block, peer)); });
  };
  const auto gather = [&](std::int64_t block) {
    each_peer([&](int peer) { exchange_.receive(peer, blocks.part(block, peer)); });
    exchange_.finish_receives();
  };
  const std::int64_t ahead = std::min(kBlocksAhead, blocks.size());
  for (std::int64_t block = 0; block < ahead; ++block) contribute(block);
  context_.agree();
  // A peer's part is overwritten by its sum only after the peer had all contributions, ours included: in place is safe.
  for (std::int64_t block = 0; block < blocks.size(); ++block) {
    if (block + ahead < blocks.size()) contribute(block + ahead);
    const Bytes own = blocks.part(block, context_.rank);
    reduce_own(own, own.data(), collective_.dtype(), false);
    each_peer([&](int peer) { exchange_.send(peer, own); });
    if (block >= ahead) gather(block - ahead);
  }
  for (std::int64_t block = blocks.size() - ahead; block < blocks.size(); ++block) gather(block);
  exchange_.finish();
}

void Run::reduce_scatter() {
  each_peer([&](int peer) { exchange_.send(peer, bytes_of(in(peer))); });
  context_.agree();
  const Bytes own = bytes_of(in(context_.rank));
  const Buffer& result = out(0);
  const std::size_t item = dtype_size(collective_.dtype());
  const std::size_t result_item = dtype_size(result.view.dtype);
  const std::size_t most = exchange_.window_bytes();
  for (std::size_t at = 0; at < own.size(); at += most) {
    reduce_own(own.subspan(at, std::min(most, own.size() - at)), result.view.as<std::byte>() + at / item * result_item,
               result.view.dtype, collective_.accumulate);
  }
  exchange_.finish();
}

void Run::all_gather() {
  const Bytes own = bytes_of(in(0));
  each_peer([&](int peer) { exchange_.send(peer, own); });
  context_.agree();
  each_peer([&](int peer) { exchange_.receive(peer, bytes_of(out(peer))); });
  const Bytes place = bytes_of(out(context_.rank));
  if (place.data() != own.data() && !own.empty()) std::memmove(place.data(), own.data(), own.size());
  exchange_.finish();
}

void Run::broadcast() {
  const int root = collective_.root;
  const Bytes x = bytes_of(out(0));
  const bool from_here = context_.rank == root;
  if (context_.size <= 2 || x.size() <= kSmallBroadcast) {
    if (from_here) each_peer([&](int peer) { exchange_.send(peer, x); });
    context_.agree();
    if (!from_here) exchange_.receive(root, x);
    return exchange_.finish();
  }
  // The root hands a different part to each of the others, who pass them on: it sends everything once, not W - 1 times.
  const Blocks blocks(out(0), context_.size - 1, exchange_.window_bytes());
  const auto place = [&](int rank) { return rank < root ? rank : rank - 1; };
  if (from_here) {
    for (std::int64_t block = 0; block < blocks.size(); ++block) {
      each_peer([&](int peer) { exchange_.send(peer, blocks.part(block, place(peer))); });
    }
    context_.agree();
    return exchange_.finish();
  }
  context_.agree();
  for (std::int64_t block = 0; block < blocks.size(); ++block) {
    const Bytes own = blocks.part(block, place(context_.rank));
    exchange_.receive(root, own);
    exchange_.finish_receives();
    each_peer([&](int peer) {
      if (peer == root) return;
      exchange_.send(peer, own);
      exchange_.receive(peer, blocks.part(block, place(peer)));
    });
  }
  exchange_.finish();
}

void Run::all_to_all() {
  each_peer([&](int peer) { exchange_.send(peer, bytes_of(in(peer))); });
  context_.agree();
  each_peer([&](int peer) { exchange_.receive(peer, bytes_of(out(peer))); });
  const Bytes from = bytes_of(in(context_.rank));
  const Bytes to = bytes_of(out(context_.rank));
  if (from.data() != to.data() && !from.empty()) std::memmove(to.data(), from.data(), from.size());
  exchange_.finish();
}

}  // namespace

PairBytes pair_bytes(const Collective& collective, int rank, int peer) {
  const auto at = static_cast<std::size_t>(peer);
  const auto own = static_cast<std::size_t>(rank);
  switch (collective.op) {
    case CollectiveOp::kReduceScatter:
      return {collective.in[at].view.bytes(), collective.in[own].view.bytes()};
    case CollectiveOp::kAllGather:
      return {collective.in[0].view.bytes(), collective.out[at].view.bytes()};
    case CollectiveOp::kAllToAll:
      return {collective.in[at].view.bytes(), collective.out[at].view.bytes()};
    case CollectiveOp::kSend:
      return {collective.in[0].view.bytes(), 0};
    case CollectiveOp::kRecv:
      return {0, collective.out[0].view.bytes()};
    default:
      return {};  // follows from the count alone
  }
}

void run_algorithm(const Collective& collective, AlgorithmContext& context) {
  if (context.offered) {
    context.agree();
    if (!context.at_peers.empty()) return run_direct(collective, context);
  }
  Run run(collective, context);
  switch (collective.op) {
    case CollectiveOp::kAllReduce:
      return run.all_reduce();
    case CollectiveOp::kReduceScatter:
      return run.reduce_scatter();
    case CollectiveOp::kAllGather:
      return run.all_gather();
    case CollectiveOp::kBroadcast:
      return run.broadcast();
    case CollectiveOp::kAllToAll:
      return run.all_to_all();
    case CollectiveOp::kSend:
      context.exchange.send(collective.root, bytes_of(collective.in[0]));
      return context.exchange.finish();
    case CollectiveOp::kRecv:
      context.agree();
      context.exchange.receive(collective.root, bytes_of(collective.out[0]));
      return context.exchange.finish();
    case CollectiveOp::kBarrier:
      context.agree();
      return context.exchange.finish();
  }
}

}  // namespace castor::dist
