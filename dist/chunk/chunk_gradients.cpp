// A chunk's gradients: they take the weights' place in its memory, are reduced to each rank's piece while backward goes
// on, and wait there for the step; see chunk_manager.h.
#include <utility>

#include "core/ops/cast.h"
#include "core/ops/elementwise.h"
#include "dist/chunk/chunk.h"
#include "dist/gradient_buckets.h"

namespace castor::dist {
namespace {

// Reductions on their way at a time: one travels while the next one's gradients are computed.
constexpr std::size_t kMostReducing = 2;

}  // namespace

void ChunkManager::begin_pass(bool is_training) {
  accesses_.clear();
  is_training_ = is_training;
}

void ChunkManager::begin_micro_step(std::int64_t position) { position_ = position; }

Tensor ChunkManager::place_of(const autograd::Variable& leaf) {
  const auto found = place_.find(leaf.identity());
  if (found == place_.end()) return {};
  const auto [number, s] = found->second;
  Chunk& chunk = *chunks_[number];
  if (!chunk.is_trained || chunk.delivered[s]) return {};
  touch(chunk);
  chunk.state = ChunkState::kCollecting;  // from here on it must not be dropped
  const FlatSlot& slot = chunk.array.slots[s];
  return chunk.whole.narrow(0, slot.offset, slot.count).reshape(leaf.shape());
}

void ChunkManager::deliver(const autograd::Variable& leaf, Tensor gradient) {
  const auto found = place_.find(leaf.identity());
  if (found == place_.end()) return;
  const auto [number, s] = found->second;
  Chunk& chunk = *chunks_[number];
  if (!chunk.is_trained) return;
  if (chunk.delivered[s])
    throw InternalError(cat(options_.owner, ": '", leaf.name(), "' got two gradients in one backward"));
  touch(chunk);  // its other parameters may still be used
  {
    const Moving moving(*this);
    const FlatSlot& slot = chunk.array.slots[s];
    const Tensor place = chunk.whole.narrow(0, slot.offset, slot.count).reshape(leaf.shape());
    if (!autograd::is_same_place(gradient, place)) copy_into(gradient, place);
  }
  chunk.state = ChunkState::kCollecting;
  chunk.delivered[s] = true;
  if (++chunk.delivered_count == chunk.delivered.size()) start_reduce(chunk);
}

void ChunkManager::end_micro_step() {
  const Moving moving(*this);
  for (const auto& each : chunks_) {
    Chunk& chunk = *each;
    if (!chunk.is_trained || chunk.state == ChunkState::kReducing || chunk.delivered_count == chunk.delivered.size())
      continue;
    if (chunk.state == ChunkState::kArriving) {
      std::exchange(chunk.work, std::nullopt)->wait();
      chunk.state = ChunkState::kGathered;
    }
    if (chunk.state == ChunkState::kAway) give_memory(chunk);
    for (std::size_t s = 0; s < chunk.delivered.size(); ++s) {
      if (!chunk.delivered[s])
        chunk.whole.narrow(0, chunk.array.slots[s].offset, chunk.array.slots[s].count).fill_zero();
    }
    start_reduce(chunk);
  }
  while (!reducing_.empty()) finish_oldest_reduce();
  for (const auto& chunk : chunks_) {
    chunk->delivered.assign(chunk->delivered.size(), false);
    chunk->delivered_count = 0;
  }
  known_ = std::exchange(accesses_, {});
}

void ChunkManager::start_reduce(Chunk& chunk) {
  const Moving moving(*this);
  while (reducing_.size() >= kMostReducing) finish_oldest_reduce();
  if (!options_.accumulates && takes_piece(chunk) && chunk.home.piece == device_ && !chunk.home.piece_on_disk) {
    prepare_piece(chunk);
    chunk.sum = chunk.piece;
  } else if (!chunk.sum.defined()) {
    const CategoryScope category(Category::gradients);
    chunk.sum = Tensor::empty({chunk.piece.numel()}, options_.accumulates ? DType::f32 : chunk.array.dtype, device_);
  }
  chunk.delivered_count = chunk.delivered.size();
  chunk.work = reduce_group_->start(Collective::reduce_scatter(
      pieces_of(chunk.whole, chunk.array, options_.replicas), chunk.sum, cat("gradients of ", chunk.label),
      options_.accumulates ? ReduceOp::kSum : ReduceOp::kMean, position_ > 0));
  chunk.state = ChunkState::kReducing;
  reducing_.push_back(chunk.number);
  ++traffic_.reductions;
  if (!options_.overlaps_reduce) finish_oldest_reduce();
}

void ChunkManager::finish_oldest_reduce() { finish_reduce(*chunks_[reducing_.front()]); }

void ChunkManager::finish_reduce(Chunk& chunk) {
  const Moving moving(*this);
  std::exchange(chunk.work, std::nullopt)->wait();
  std::erase(reducing_, chunk.number);
  drop(chunk, "its gradients were reduced");
  if (!options_.accumulates) make_gradient(chunk, comm_.world_size());
}

// The weights are the masters' rounding: until the step writes them anew their place is the gradient's.
bool ChunkManager::takes_piece(const Chunk& chunk) const {
  return chunk.array.dtype != DType::f32 && options_.keeps_masters;
}

void ChunkManager::prepare_piece(const Chunk& chunk) const {
  finish_parts(chunk);
  if (before_change_) before_change_(chunk.piece);
}

void ChunkManager::make_gradient(Chunk& chunk, std::int64_t micro_batches) {
  finish_parts(chunk);
  const CategoryScope category(Category::gradients);
  Tensor mean = chunk.sum;
  if (options_.accumulates) {
    if (micro_batches > 1 && mean.numel() > 0)
      unary_inplace(UnaryOp::affine, mean, 1.0 / static_cast<double>(micro_batches), 0);
    mean = cast(mean, chunk.array.dtype);
  }
  chunk.gradient = mean;
  if (takes_piece(chunk)) {
    if (mean.storage() != chunk.piece.storage()) {
      prepare_piece(chunk);
      copy_across(mean, chunk.piece);
    }
    chunk.gradient = chunk.piece;
  } else if (chunk.home.states != device_) {
    chunk.gradient = Tensor::empty(mean.shape(), mean.dtype(), chunk.home.states);
    copy_across(mean, chunk.gradient);
  }
  if (!options_.accumulates) chunk.sum = {};
}

void ChunkManager::finish_window(std::int64_t micro_batches, std::vector<autograd::Part>& parts) {
  const Moving moving(*this);
  std::size_t part = 0;
  for (const auto& each : chunks_) {
    Chunk& chunk = *each;
    if (!chunk.is_trained) continue;
    if (options_.accumulates) {
      make_gradient(chunk, micro_batches);
    } else if (micro_batches != comm_.world_size()) {
      throw InternalError(cat(options_.owner, ": a window of ", micro_batches, " micro-batches on ", comm_.world_size(),
                              " ranks needs sums that are kept between micro-steps"));
    }
    const std::int64_t begin = piece_begin(chunk);
    for (const FlatStretch& stretch : chunk.array.stretches(shard())) {
      parts[part++].gradient = chunk.gradient.narrow(0, stretch.count == 0 ? 0 : stretch.offset - begin, stretch.count);
    }
    chunk.gradient = {};
  }
}

void ChunkManager::publish() {
  for (const auto& chunk : chunks_) {
    if (!chunk->is_trained) continue;
    if (chunk->state == ChunkState::kArriving) {
      std::exchange(chunk->work, std::nullopt)->wait();
      chunk->state = ChunkState::kGathered;
    }
    if (chunk->state == ChunkState::kGathered) drop(*chunk, "its weights were stepped");
  }
}

}  // namespace castor::dist
