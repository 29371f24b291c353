// Blocks, buffers and their transfers; see disk_tier.h.
#include "dist/chunk/disk_tier.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace castor::dist {
namespace {

// Between the tensors of a block, so that each begins where kernels want it.
constexpr std::uint64_t kTensorAlignment = 256;
// Streams pass the file in pieces of this many bytes.
constexpr std::size_t kWindowBytes = std::size_t{1} << 20;

std::uint64_t round_down(std::uint64_t value, std::uint64_t to) { return value / to * to; }
std::uint64_t round_up(std::uint64_t value, std::uint64_t to) { return round_down(value + to - 1, to); }

}  // namespace

struct DiskTier::Block final : autograd::StateHome {
  struct Slot final : StoragePager {
    Slot(Block& its_block, std::uint64_t its_offset, std::shared_ptr<Storage> its_storage)
        : block(its_block), offset(its_offset), storage(std::move(its_storage)) {}
    void touch() override { block.tier.bring(block); }
    bool read(std::size_t at, std::span<std::byte> out) override { return block.tier.read(block, offset + at, out); }
    bool write(std::size_t at, std::span<const std::byte> data) override {
      return block.tier.write(block, offset + at, data);
    }

    Block& block;
    std::uint64_t offset;  // in the block
    std::shared_ptr<Storage> storage;
  };

  Block(DiskTier& its_tier, std::size_t its_number, std::string its_label)
      : tier(its_tier), number(its_number), label(std::move(its_label)) {}

  Tensor make_state(const Shape& shape, DType dtype) override {
    const std::lock_guard lock(tier.mutex_);
    if (tier.is_open_) throw InternalError(cat("disk tier: ", label, " got a state after the first use"));
    const std::size_t size = static_cast<std::size_t>(shape.numel()) * dtype_size(dtype);
    auto storage = Storage::make_empty(size, tier.options_.host);
    slots.push_back(std::make_unique<Slot>(*this, bytes, storage));
    storage->set_pager(slots.back().get());
    bytes = round_up(bytes + size, kTensorAlignment);
    Shape strides = shape;
    std::int64_t step = 1;
    for (int axis = shape.ndim() - 1; axis >= 0; --axis) {
      strides[axis] = step;
      step *= shape[axis];
    }
    return {storage, shape, strides, 0, dtype};
  }

  std::uint64_t file_bytes() const { return round_up(bytes, kDirectAlignment); }

  DiskTier& tier;
  std::size_t number;
  std::string label;
  std::vector<std::unique_ptr<Slot>> slots;
  std::uint64_t bytes = 0;
  std::uint64_t offset = 0;  // in the file
  Buffer* buffer = nullptr;
  ScratchFile::Transfer written;  // a write that nobody has waited for
};

// Errors of `action` name the block.
template <class Action>
void DiskTier::named(const char* doing, const Block& block, const Action& action) {
  try {
    action();
  } catch (const IoError& error) {
    throw IoError(cat(doing, " ", block.label, ": ", error.what()), error.path, error.code);
  }
}

DiskTier::DiskTier(const DiskOptions& options) : options_(options) {}

DiskTier::~DiskTier() {
  file_.reset();  // no transfer uses a buffer any more
  for (const auto& block : blocks_) {
    for (const auto& slot : block->slots) {
      slot->storage->set_pager(nullptr);
      slot->storage->drop("the disk tier is gone");
    }
  }
}

autograd::StateHome& DiskTier::add_block(const std::string& label) {
  const std::lock_guard lock(mutex_);
  return *blocks_.emplace_back(std::make_unique<Block>(*this, blocks_.size(), cat(options_.what, " of ", label)));
}

std::int64_t DiskTier::file_bytes() const {
  const std::lock_guard lock(mutex_);
  std::uint64_t all = 0;
  for (const auto& block : blocks_) all += block->file_bytes();
  return static_cast<std::int64_t>(all);
}

std::int64_t DiskTier::buffer_bytes() const {
  const std::lock_guard lock(mutex_);
  std::int64_t all = 0;
  for (const Buffer& buffer : buffers_) all += buffer.memory.defined() ? buffer.memory.numel() : 0;
  return all;
}

DiskTraffic DiskTier::traffic() const {
  const std::lock_guard lock(mutex_);
  return traffic_;
}

void DiskTier::open() {
  const std::lock_guard lock(mutex_);
  open_locked();
}

void DiskTier::open_locked() {
  if (std::exchange(is_open_, true)) return;
  std::uint64_t largest = 0, end = 0;
  for (const auto& block : blocks_) {
    block->offset = end;
    end += block->file_bytes();
    largest = std::max(largest, block->file_bytes());
  }
  if (!options_.host.is_meta()) file_ = std::make_unique<ScratchFile>(options_.directory, end, *options_.files);
  const CategoryScope category(options_.category);
  const std::size_t count = std::min(buffers_.size(), blocks_.size());
  for (std::size_t i = 0; i < count; ++i) {
    Buffer& buffer = buffers_[i];
    buffer.memory = Tensor::empty({static_cast<std::int64_t>(largest + kDirectAlignment)}, DType::u8, options_.host);
    const auto address = reinterpret_cast<std::uintptr_t>(buffer.memory.view().data);
    buffer.start = reinterpret_cast<std::byte*>(round_up(address, kDirectAlignment));
  }
}

// ------------------------------------------------------------------------------------------------ blocks

void DiskTier::bring(Block& block) {
  const std::lock_guard lock(mutex_);
  if (used_ != nullptr && used_ == block.buffer) return;
  open_locked();
  if (used_ != nullptr) begin_write(*std::exchange(used_, nullptr));
  ++traffic_.blocks;
  if (block.buffer == nullptr) {
    begin_read(block);
  } else {
    ++traffic_.ahead;
  }
  settle(block);
  Buffer& buffer = *block.buffer;
  used_ = &buffer;
  buffer.stamp = ++stamp_;
  for (const auto& slot : block.slots)
    slot->storage->point_to(buffer.start + slot->offset, buffer.memory.storage(), {}, "read from disk");
  read_ahead(block);
  last_ = block.number;
}

void DiskTier::read_ahead(const Block& block) {
  const std::size_t count = blocks_.size();
  const bool goes_down = last_ && *last_ == block.number + 1;
  const bool goes_up = !last_ || (*last_ + 1) % count == block.number;
  if (!goes_up && !goes_down) return;
  Block& next = *blocks_[goes_up ? (block.number + 1) % count : (block.number + count - 1) % count];
  if (next.buffer == nullptr) begin_read(next);
}

// A free buffer, or the one whose block was used or asked for longest ago; never the one in use.
DiskTier::Buffer& DiskTier::oldest_buffer() {
  Buffer* oldest = nullptr;
  for (Buffer& buffer : buffers_) {
    if (!buffer.memory.defined() || &buffer == used_) continue;
    if (oldest == nullptr || buffer.stamp < oldest->stamp) oldest = &buffer;
  }
  return *oldest;
}

void DiskTier::begin_read(Block& block) {
  Buffer& buffer = oldest_buffer();
  buffer.before = std::exchange(buffer.block, &block);
  if (buffer.before != nullptr) buffer.before->buffer = nullptr;
  buffer.stamp = ++stamp_;
  block.buffer = &buffer;
  traffic_.read_bytes += static_cast<std::int64_t>(block.file_bytes());
  if (file_ == nullptr) return;
  wait_for_write(block);
  buffer.arrival = file_->read({buffer.start, static_cast<std::size_t>(block.file_bytes())}, block.offset,
                               buffer.before == nullptr ? ScratchFile::Transfer{} : buffer.before->written);
}

void DiskTier::begin_write(Buffer& buffer) {
  Block& block = *buffer.block;
  for (const auto& slot : block.slots) slot->storage->drop("written to disk");
  traffic_.written_bytes += static_cast<std::int64_t>(block.file_bytes());
  if (file_ == nullptr) return;
  block.written = file_->write({buffer.start, static_cast<std::size_t>(block.file_bytes())}, block.offset);
}

// When it returns the block's buffer holds its bytes and no transfer uses them.
void DiskTier::settle(Block& block) {
  Buffer& buffer = *block.buffer;
  if (Block* before = std::exchange(buffer.before, nullptr)) wait_for_write(*before);
  if (buffer.arrival.valid()) named("reading", block, [&] { std::exchange(buffer.arrival, {}).get(); });
  wait_for_write(block);
}

void DiskTier::wait_for_write(Block& block) {
  if (block.written.valid()) named("writing", block, [&] { std::exchange(block.written, {}).get(); });
}

// ------------------------------------------------------------------------------------------------ streams

bool DiskTier::read(Block& block, std::uint64_t offset, std::span<std::byte> out) {
  const std::lock_guard lock(mutex_);
  open_locked();
  if (block.buffer != nullptr) {
    settle(block);
    if (file_ != nullptr) std::memcpy(out.data(), block.buffer->start + offset, out.size());
    return true;
  }
  wait_for_write(block);
  stream(block, offset, out.size(), [&](std::span<std::byte> bytes, std::uint64_t at) {
    if (!bytes.empty()) std::memcpy(out.data() + at, bytes.data(), bytes.size());
    return false;
  });
  return true;
}

bool DiskTier::write(Block& block, std::uint64_t offset, std::span<const std::byte> data) {
  const std::lock_guard lock(mutex_);
  open_locked();
  if (block.buffer != nullptr) {
    settle(block);
    if (file_ != nullptr) std::memcpy(block.buffer->start + offset, data.data(), data.size());
    if (block.buffer == used_) return true;  // will be written
  }
  wait_for_write(block);
  stream(block, offset, data.size(), [&](std::span<std::byte> bytes, std::uint64_t at) {
    if (!bytes.empty()) std::memcpy(bytes.data(), data.data() + at, bytes.size());
    return true;
  });
  return true;
}

// Hands out bytes [offset, offset + count) of the block in windows that are read from the file, and written back where
// `change` says so. On meta windows are empty, and what would move is counted.
void DiskTier::stream(Block& block, std::uint64_t offset, std::size_t count, const Change& change) {
  if (file_ != nullptr && window_.bytes().empty()) window_ = AlignedBuffer(kWindowBytes);
  const std::uint64_t end = offset + count;
  for (std::uint64_t at = offset; at < end;) {
    const std::uint64_t begin = round_down(at, kDirectAlignment);
    const std::uint64_t stop = std::min(begin + kWindowBytes, round_up(end, kDirectAlignment));
    const std::size_t used = static_cast<std::size_t>(std::min(stop, end) - at);
    std::span<std::byte> window, part;
    if (file_ != nullptr) {
      window = window_.bytes().first(static_cast<std::size_t>(stop - begin));
      part = window.subspan(static_cast<std::size_t>(at - begin), used);
      named("reading", block, [&] { file_->read(window, block.offset + begin).get(); });
    }
    traffic_.read_bytes += static_cast<std::int64_t>(stop - begin);
    if (change(part, at - offset)) {
      if (file_ != nullptr) named("writing", block, [&] { file_->write(window, block.offset + begin).get(); });
      traffic_.written_bytes += static_cast<std::int64_t>(stop - begin);
    }
    at += used;
  }
}

}  // namespace castor::dist
