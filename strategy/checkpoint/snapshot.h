// The state of training at one moment, readable while training goes on: what an asynchronous save writes from.
//
// Delicate: either everything is copied at once (the host has room), or a tensor is copied just before it changes and
// read in place until then. Writer and trainer meet under one lock a tensor; a trainer that finds no room for a copy
// waits until that tensor is written.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/tensor/tensor.h"
#include "formats/safetensors.h"

namespace castor::strategy {

/// A tensor of the training state, or this rank's piece of one.
struct StateTensor {
  std::string name;
  std::string role;
  Tensor tensor;                       ///< row-major
  std::optional<Shape> cut_from = {};  ///< set: `tensor` is a stretch of one of this shape
  std::int64_t offset = 0;             ///< where the stretch begins, in elements
};

class Snapshot {
 public:
  /// Takes the state as it is now.
  ///   room     memory for copies; must outlive the snapshot. If it holds all tensors they are copied now
  Snapshot(std::vector<StateTensor> tensors, std::span<std::byte> room);

  const std::vector<StateTensor>& tensors() const { return tensors_; }
  /// Bytes of all tensors.
  static std::uint64_t bytes_of(std::span<const StateTensor> tensors);
  /// Tensor `index` as it was. To be read once, from front to end; the last byte frees what was kept for it.
  formats::ByteSource source(std::size_t index);
  /// To be called before the bytes of `tensor` change; returns when that can no longer be seen by any source.
  void before_change(const Tensor& tensor);
  /// Nobody will read any more: waiting trainers go on.
  void abandon();

 private:
  struct Entry {
    std::mutex mutex;
    std::condition_variable is_written;
    const std::byte* copy = nullptr;
    bool is_done = false;
  };
  std::span<std::byte> take_room(std::size_t bytes);

  std::vector<StateTensor> tensors_;
  std::deque<Entry> entries_;
  std::multimap<const Storage*, std::size_t> by_storage_;
  std::mutex room_mutex_;
  std::span<std::byte> room_;
};

}  // namespace castor::strategy
