// Chunks, where they lie and how they are gathered; see chunk_manager.h. Their gradients: chunk_gradients.cpp.
#include "dist/chunk/chunk_manager.h"

#include <algorithm>
#include <utility>

#include "core/device/dispatch.h"
#include "core/ops/cast.h"
#include "dist/chunk/chunk.h"
#include "dist/comm_meta.h"
#include "dist/gradient_buckets.h"

namespace castor::dist {
namespace {

// Ops that must have begun after a chunk's last use before it may be dropped: an op may still be taking addresses when
// the next one is counted.
constexpr std::uint64_t kOpsInFlight = 2;

}  // namespace

std::string_view chunk_state_name(ChunkState state) {
  constexpr std::string_view kNames[] = {"away", "arriving", "gathered", "collecting", "reducing"};
  return kNames[static_cast<std::size_t>(state)];
}

// Ops of this thread but the manager's.
std::uint64_t ChunkManager::ops() const { return is_moving_ ? ops_at_move_ : dispatched_ops() - own_ops_; }

ChunkManager::ChunkManager(Comm& comm, const std::vector<autograd::Variable>& parameters, Device device,
                           const ChunkOptions& options, const Fill& fill)
    : comm_(comm),
      shards_(comm.world_size() / options.replicas),
      owners_(split_blocks(comm, shards_)),
      gather_group_(split_blocks(comm, shards_)),
      reduce_group_(comm.split(0, comm.rank())),
      device_(device),
      options_(options),
      parameters_(parameters) {
  const Moving moving(*this);
  for (const bool is_trained : {true, false}) {
    std::vector<std::size_t> numbers;
    std::vector<FlatItem> items;
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      const autograd::Variable& parameter = parameters_[i];
      if (parameter.requires_grad() != is_trained) continue;
      const DType dtype = parameter.dtype();
      if (dtype != DType::f32 && dtype != DType::bf16 && dtype != DType::f16) {
        throw DTypeError(
            cat(options_.owner, ": '", parameter.name(), "' must be f32, bf16 or f16, got ", parameter.data()));
      }
      numbers.push_back(i);
      items.push_back({parameter.data().numel(), dtype});
    }
    for (FlatArray& array : lay_out(items, options_.capacity, shards_)) {
      for (FlatSlot& slot : array.slots) slot.item = numbers[slot.item];
      Chunk& chunk = *chunks_.emplace_back(std::make_unique<Chunk>(*this, chunks_.size()));
      chunk.array = std::move(array);
      chunk.is_trained = is_trained;
      chunk.label = cat("chunk ", chunk.number, " from ", parameters_[chunk.array.slots.front().item].name());
      chunk.delivered.resize(chunk.array.slots.size());
    }
  }
  std::vector<ChunkInfo> infos;
  for (const auto& chunk : chunks_) {
    const auto element = static_cast<std::int64_t>(dtype_size(chunk->array.dtype));
    infos.push_back({chunk->array.elements * element, chunk->array.elements, chunk->is_trained});
  }
  const std::vector<ChunkHome> homes =
      options_.homes ? options_.homes(infos) : std::vector<ChunkHome>(infos.size(), {device_, device_});
  for (const auto& chunk : chunks_) chunk->home = homes.at(chunk->number);
  make_pieces();
  for (const auto& each : chunks_) {
    Chunk& chunk = *each;
    const FlatArray& array = chunk.array;
    chunk.storage = Storage::make_empty(static_cast<std::size_t>(infos[chunk.number].bytes), device_);
    chunk.whole = Tensor(chunk.storage, {array.elements}, {1}, 0, array.dtype);
    give_memory(chunk);
    chunk.whole.fill_zero();
    for (std::size_t s = 0; s < array.slots.size(); ++s) {
      const FlatSlot& slot = array.slots[s];
      const autograd::Variable& parameter = parameters_[slot.item];
      chunk.variables.push_back(parameter);
      place_[parameter.identity()] = {chunk.number, s};
      const Tensor part = chunk.whole.narrow(0, slot.offset, slot.count).reshape(parameter.shape());
      fill(parameter, part);
      parameter.set_data(part);
    }
    copy_across(chunk.whole.narrow(0, piece_begin(chunk), chunk.piece.numel()), chunk.piece);
    drop(chunk, "its piece was taken");
    chunk.storage->set_pager(&chunk);
  }
  std::size_t parts = 0;
  for (const auto& chunk : chunks_) {
    if (!chunk->is_trained) continue;
    chunk->first_part = parts;
    chunk->part_count = chunk->array.stretches(shard()).size();
    parts += chunk->part_count;
  }
  std::vector<std::string> names;
  for (const autograd::Variable& parameter : parameters_) names.push_back(parameter.name());
  sums_ = std::make_unique<PartSums>(*owners_, owned_stretches(), std::move(names), device_);
  traffic_ = {};
}

// On disk all of them are made before the first is used.
void ChunkManager::make_pieces() {
  const auto tier = [this](std::unique_ptr<DiskTier>& made, Device host, Category category, const char* what) {
    if (made != nullptr) return;
    DiskOptions disk = options_.disk;
    disk.host = host;
    disk.category = category;
    disk.what = what;
    made = std::make_unique<DiskTier>(disk);
  };
  const CategoryScope category(Category::parameters);
  for (const auto& each : chunks_) {
    Chunk& chunk = *each;
    const Shape shape = {chunk.array.piece_elements(shard())};
    if (chunk.home.states_on_disk && chunk.is_trained) {
      tier(states_disk_, chunk.home.states, Category::optimizer, "optimizer states");
      chunk.states_in = &states_disk_->add_block(chunk.label);
    }
    if (chunk.home.piece_on_disk) {
      tier(pieces_disk_, chunk.home.piece, Category::parameters, "weights");
      chunk.piece = pieces_disk_->add_block(chunk.label).make_state(shape, chunk.array.dtype);
    } else {
      chunk.piece = Tensor::empty(shape, chunk.array.dtype, chunk.home.piece);
    }
  }
  if (pieces_disk_ != nullptr) pieces_disk_->open();
}

ChunkManager::~ChunkManager() {
  for (const auto& chunk : chunks_) {
    chunk->storage->set_pager(nullptr);
    try {
      if (chunk->work) chunk->work->wait();
    } catch (const std::exception&) {  // whoever ended the step early has thrown already
    }
  }
}

std::int64_t ChunkManager::piece_begin(const Chunk& chunk) const {
  return chunk.array.cuts[static_cast<std::size_t>(shard())];
}

std::vector<std::vector<OwnedStretch>> ChunkManager::owned_stretches() const {
  std::vector<std::vector<OwnedStretch>> owned(static_cast<std::size_t>(shards_));
  for (std::size_t rank = 0; rank < owned.size(); ++rank) {
    for (const auto& chunk : chunks_) {
      if (!chunk->is_trained) continue;
      for (const FlatStretch& stretch : chunk->array.stretches(static_cast<int>(rank))) {
        owned[rank].push_back({chunk->array.slots[stretch.slot].item, stretch.item_offset, stretch.count});
      }
    }
  }
  return owned;
}

// ------------------------------------------------------------------------------------------------ what policies see

ChunkState ChunkManager::state(std::size_t chunk) const { return chunks_.at(chunk)->state; }
bool ChunkManager::is_trained(std::size_t chunk) const { return chunks_.at(chunk)->is_trained; }
std::int64_t ChunkManager::bytes(std::size_t chunk) const {
  return static_cast<std::int64_t>(chunks_.at(chunk)->storage->bytes());
}
std::int64_t ChunkManager::last_use(std::size_t chunk) const { return chunks_.at(chunk)->last_access; }

bool ChunkManager::can_release(std::size_t number) const {
  const Chunk& chunk = *chunks_.at(number);
  return chunk.state == ChunkState::kGathered && chunk.last_op + kOpsInFlight <= ops();
}

void ChunkManager::release(std::size_t number) {
  Chunk& chunk = *chunks_.at(number);
  if (!can_release(number)) {
    throw InternalError(cat(options_.owner, ": ", chunk.label, " is ", chunk_state_name(chunk.state),
                            " or in use and cannot be dropped"));
  }
  drop(chunk, "released");
}

void ChunkManager::prefetch(std::size_t number) {
  Chunk& chunk = *chunks_.at(number);
  if (chunk.state != ChunkState::kAway) return;
  begin_gather(chunk);
  ++traffic_.prefetched;
}

std::int64_t ChunkManager::next_use(std::size_t chunk) const {
  const auto all = static_cast<std::int64_t>(known_.size());
  if (!is_training_) return all;
  for (std::size_t i = accesses_.size(); i < known_.size(); ++i) {
    if (known_[i] == chunk) return static_cast<std::int64_t>(i - accesses_.size());
  }
  return all;
}

std::optional<std::size_t> ChunkManager::upcoming(std::int64_t ahead) const {
  const std::size_t at = accesses_.size() + static_cast<std::size_t>(ahead) - 1;
  return is_training_ && ahead >= 1 && at < known_.size() ? std::optional(known_[at]) : std::nullopt;
}

// ------------------------------------------------------------------------------------------------ gathering

void ChunkManager::touch(Chunk& chunk) {
  if (is_moving_) return;
  chunk.last_op = ops();
  note_access(chunk);
  if (chunk.state == ChunkState::kReducing) finish_reduce(chunk);
  if (chunk.state == ChunkState::kAway) gather(chunk);
  if (chunk.state == ChunkState::kArriving) {
    ++traffic_.waits;
    std::exchange(chunk.work, std::nullopt)->wait();
    chunk.state = ChunkState::kGathered;
  }
}

void ChunkManager::note_access(Chunk& chunk) {
  if (!accesses_.empty() && accesses_.back() == chunk.number) return;
  chunk.last_access = access_number_++;
  accesses_.push_back(chunk.number);
  const bool is_there = chunk.state != ChunkState::kAway && chunk.state != ChunkState::kReducing;
  if (is_there && policy_ != nullptr) {
    const Moving moving(*this);
    policy_->after_access(chunk.number);
  }
}

void ChunkManager::gather(Chunk& chunk) {
  if (policy_ == nullptr) throw InternalError(cat(options_.owner, ": a chunk was used before there was a policy"));
  const Moving moving(*this);
  policy_->before_gather(chunk.number);
  begin_gather(chunk);
  ++traffic_.waits;
  std::exchange(chunk.work, std::nullopt)->wait();
  chunk.state = ChunkState::kGathered;
  policy_->after_access(chunk.number);
}

void ChunkManager::give_memory(Chunk& chunk) {
  const CategoryScope category(Category::parameters);
  chunk.storage->allocate("gathered");
  gathered_bytes_ += bytes(chunk.number);
  traffic_.peak_gathered_bytes = std::max(traffic_.peak_gathered_bytes, gathered_bytes_);
}

void ChunkManager::finish_parts(const Chunk& chunk) const {
  if (finish_parts_ && chunk.part_count > 0) finish_parts_(chunk.first_part, chunk.part_count);
}

void ChunkManager::begin_gather(Chunk& chunk) {
  const Moving moving(*this);
  finish_parts(chunk);
  give_memory(chunk);
  const Tensor own = chunk.whole.narrow(0, piece_begin(chunk), chunk.piece.numel());
  if (chunk.home.piece_on_disk && kernel_type(device_) == DeviceType::cpu) {
    // Only read: taking the address would write the piece back.
    const View view = own.view();
    chunk.piece.storage()->read(0, {static_cast<std::byte*>(view.data), view.bytes()});
  } else {
    copy_across(chunk.piece, own);
  }
  chunk.work = gather_group_->start(Collective::all_gather(own, pieces_of(chunk.whole, chunk.array), chunk.label));
  chunk.state = ChunkState::kArriving;
  ++traffic_.gathers;
}

void ChunkManager::drop(Chunk& chunk, const char* reason) {
  chunk.storage->drop(reason);
  gathered_bytes_ -= bytes(chunk.number);
  chunk.state = ChunkState::kAway;
}

void ChunkManager::drop_all() {
  for (const auto& chunk : chunks_) {
    if (chunk->state == ChunkState::kArriving) {
      std::exchange(chunk->work, std::nullopt)->wait();
      chunk->state = ChunkState::kGathered;
    }
    if (chunk->state == ChunkState::kGathered) drop(*chunk, "other weights were loaded");
  }
}

std::vector<autograd::Part> ChunkManager::parts() const {
  std::vector<autograd::Part> parts;
  for (const auto& chunk : chunks_) {
    if (!chunk->is_trained) continue;
    const std::int64_t begin = piece_begin(*chunk);
    for (const FlatStretch& stretch : chunk->array.stretches(shard())) {
      parts.push_back({chunk->variables[stretch.slot], 0, stretch.item_offset,
                       chunk->piece.narrow(0, stretch.count == 0 ? 0 : stretch.offset - begin, stretch.count)});
      parts.back().states_on = chunk->home.states;
      parts.back().states_in = chunk->states_in;
    }
  }
  return parts;
}

std::vector<autograd::Part> ChunkManager::pieces() const {
  std::vector<autograd::Part> pieces;
  for (const auto& chunk : chunks_) {
    finish_parts(*chunk);
    const std::int64_t begin = piece_begin(*chunk);
    for (const FlatStretch& stretch : chunk->array.stretches(shard())) {
      pieces.push_back({chunk->variables[stretch.slot], 0, stretch.item_offset,
                        chunk->piece.narrow(0, stretch.count == 0 ? 0 : stretch.offset - begin, stretch.count)});
    }
  }
  return pieces;
}

}  // namespace castor::dist
