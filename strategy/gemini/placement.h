// Where Gemini's chunks are: what is dropped when another chunk is needed, and what is fetched ahead.
//
// Delicate: every rank must decide alike, since gathering is collective. Decisions follow from the accesses of this and
// the last micro-step and from byte counts that are equal on all ranks, never from time or addresses.
#pragma once

#include <cstdint>
#include <memory>

#include "dist/chunk/chunk_manager.h"

namespace castor::strategy {

/// Keeps at most so many bytes of whole chunks: one that is needed pushes out those whose next use is furthest away
/// (Belady 1966, "A study of replacement algorithms"), or the longest unused while nothing is known yet.
class BudgetPlacement final : public dist::ChunkPolicy {
 public:
  /// `max_prefetch` chunks are fetched ahead of their use as soon as a micro-step has shown the order, as far as the
  /// budget allows; a budget of 0 drops every chunk after its use, and then the chunks fetched ahead are beside it.
  BudgetPlacement(dist::ChunkManager& chunks, std::int64_t budget_bytes, std::int64_t max_prefetch)
      : chunks_(chunks), budget_(budget_bytes), max_prefetch_(max_prefetch) {}

  void set_budget(std::int64_t bytes) { budget_ = bytes; }
  std::int64_t budget() const { return budget_; }

  void before_gather(std::size_t chunk) override;
  void after_access(std::size_t chunk) override;

 private:
  /// Drops chunks until `needed` more bytes fit, or no other may be dropped.
  void make_room(std::int64_t needed);

  dist::ChunkManager& chunks_;
  std::int64_t budget_;
  std::int64_t max_prefetch_;
};

}  // namespace castor::strategy
