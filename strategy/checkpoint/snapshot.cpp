// Copies now, or copies before a change.
#include "strategy/checkpoint/snapshot.h"

#include <algorithm>
#include <cstring>

#include "core/base/parallel.h"

namespace castor::strategy {
namespace {

constexpr std::size_t kAlignment = 64;
constexpr std::int64_t kCopyPiece = std::int64_t{1} << 20;

std::size_t bytes_of(const Tensor& tensor) {
  return static_cast<std::size_t>(tensor.numel()) * dtype_size(tensor.dtype());
}

std::size_t room_of(const Tensor& tensor) { return (bytes_of(tensor) + kAlignment - 1) / kAlignment * kAlignment; }

// Copies bytes [offset, offset + out.size()) of a row-major tensor to the host.
void copy_range(const Tensor& tensor, std::uint64_t offset, std::span<std::byte> out) {
  tensor.storage()->read(static_cast<std::size_t>(tensor.offset()) * dtype_size(tensor.dtype()) + offset, out);
}

}  // namespace

Snapshot::Snapshot(std::vector<StateTensor> tensors, std::span<std::byte> room)
    : tensors_(std::move(tensors)), entries_(tensors_.size()), room_(room) {
  for (std::size_t i = 0; i < tensors_.size(); ++i) by_storage_.emplace(tensors_[i].tensor.storage().get(), i);
  if (bytes_of(tensors_) > room.size()) return;
  struct Piece {
    std::size_t index;
    std::uint64_t offset;
    std::span<std::byte> to;
  };
  std::vector<Piece> pieces;
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    const std::span<std::byte> copy = take_room(strategy::bytes_of(tensors_[i].tensor));
    entries_[i].copy = copy.data();
    for (std::size_t at = 0; at < copy.size(); at += kCopyPiece) {
      pieces.push_back({i, at, copy.subspan(at, std::min<std::size_t>(kCopyPiece, copy.size() - at))});
    }
  }
  parallel_for(static_cast<std::int64_t>(pieces.size()), 4, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const Piece& piece = pieces[static_cast<std::size_t>(i)];
      copy_range(tensors_[piece.index].tensor, piece.offset, piece.to);
    }
  });
}

std::uint64_t Snapshot::bytes_of(std::span<const StateTensor> tensors) {
  std::uint64_t total = 0;
  for (const StateTensor& each : tensors) total += room_of(each.tensor);
  return total;
}

std::span<std::byte> Snapshot::take_room(std::size_t bytes) {
  const std::lock_guard lock(room_mutex_);
  const std::size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  if (rounded > room_.size()) return {};
  const std::span<std::byte> taken = room_.first(bytes);
  room_ = room_.subspan(rounded);
  return taken;
}

formats::ByteSource Snapshot::source(std::size_t index) {
  return [this, index](std::uint64_t offset, std::span<std::byte> out) {
    const Tensor& tensor = tensors_[index].tensor;
    Entry& entry = entries_[index];
    const std::lock_guard lock(entry.mutex);
    if (entry.copy != nullptr) {
      std::memcpy(out.data(), entry.copy + offset, out.size());
    } else {
      copy_range(tensor, offset, out);
    }
    if (offset + out.size() == strategy::bytes_of(tensor)) {
      entry.is_done = true;
      entry.is_written.notify_all();
    }
  };
}

void Snapshot::before_change(const Tensor& tensor) {
  const auto [first, last] = by_storage_.equal_range(tensor.storage().get());
  for (auto found = first; found != last; ++found) {
    Entry& entry = entries_[found->second];
    std::unique_lock lock(entry.mutex);
    const Tensor& original = tensors_[found->second].tensor;
    if (entry.is_done || entry.copy != nullptr || original.numel() == 0) continue;
    const std::span<std::byte> copy = take_room(strategy::bytes_of(original));
    if (copy.empty()) {
      entry.is_written.wait(lock, [&] { return entry.is_done; });
    } else {
      copy_range(original, 0, copy);
      entry.copy = copy.data();
    }
  }
}

void Snapshot::abandon() {
  for (Entry& entry : entries_) {
    const std::lock_guard lock(entry.mutex);
    entry.is_done = true;
    entry.is_written.notify_all();
  }
}

}  // namespace castor::strategy
