// One chunk and the mark of the manager's own uses of it: what the sources of ChunkManager share and nobody else sees.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/device/dispatch.h"
#include "dist/chunk/chunk_manager.h"

namespace castor::dist {

struct ChunkManager::Chunk final : StoragePager {
  Chunk(ChunkManager& its_manager, std::size_t its_number) : manager(its_manager), number(its_number) {}
  void touch() override { manager.touch(*this); }

  ChunkManager& manager;
  std::size_t number;
  std::string label;
  FlatArray array;
  std::vector<autograd::Variable> variables;  // by slot
  bool is_trained = false;
  ChunkHome home;
  autograd::StateHome* states_in = nullptr;
  std::size_t first_part = 0, part_count = 0;  // of parts()
  ChunkState state = ChunkState::kAway;
  std::shared_ptr<Storage> storage;
  Tensor whole;                 // over the storage
  Tensor piece;                 // this rank's weights, or the window's gradients in their place
  Tensor sum;                   // of this rank's piece, f32; where nothing accumulates the rounded mean
  Tensor gradient;              // of the finished window
  std::vector<bool> delivered;  // by slot
  std::size_t delivered_count = 0;
  std::optional<Work> work;  // the gather or the reduction that is on its way
  std::uint64_t last_op = 0;
  std::int64_t last_access = -1;
};

// While it lives the manager's own uses of storages are not accesses.
class ChunkManager::Moving {
 public:
  explicit Moving(ChunkManager& manager) : manager_(manager), was_moving_(manager.is_moving_) {
    if (was_moving_) return;
    manager_.ops_at_move_ = manager_.ops();
    manager_.is_moving_ = true;
  }
  ~Moving() {
    if (was_moving_) return;
    manager_.own_ops_ = dispatched_ops() - manager_.ops_at_move_;
    manager_.is_moving_ = false;
  }
  Moving(const Moving&) = delete;
  Moving& operator=(const Moving&) = delete;

 private:
  ChunkManager& manager_;
  bool was_moving_;
};

}  // namespace castor::dist
