// Where Gemini's chunks are: what is dropped when another chunk is needed, and what is fetched ahead.
//
// Delicate: every rank must decide alike, since gathering is collective. Decisions follow from the accesses of this and
// the last micro-step and from byte counts that are equal on all ranks, never from time or addresses.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "dist/chunk/chunk_manager.h"
#include "strategy/sharding.h"

namespace castor::strategy {

/// The tiers that `auto` places chunks on.
struct Tiers {
  Device device, host;
  double device_bytes = 0;  ///< that may be used
  double host_bytes = 0;
  bool has_disk = false;
  int shards = 1;              ///< pieces of a chunk, of which a rank has one
  double streaming_bytes = 0;  ///< of the device, for states that are stepped there but live on the host
};

/// Where `auto` puts what.
struct Placement {
  std::vector<dist::ChunkHome> homes;  ///< by chunk
  std::int64_t kept_bytes = 0;         ///< of whole chunks that may be kept on the device
};

/// Fills the device in the order of what leaving it would cost: what a step cannot do without, the pieces of weights,
/// optimizer states (off the device they are stepped by the host, on disk at the disk's speed), whole chunks (which
/// otherwise are gathered again). What does not fit goes to the host, and then to disk where there is one.
Placement place_chunks(std::span<const dist::ChunkInfo> chunks, const StepForecast& forecast, const Tiers& tiers);

/// Keeps at most so many bytes of whole chunks: one that is needed pushes out those whose next use is furthest away
/// (Belady 1966, "A study of replacement algorithms"), or the longest unused while nothing is known yet.
class BudgetPlacement final : public dist::ChunkPolicy {
 public:
  /// `max_prefetch` chunks are fetched ahead of their use as soon as the order is known, by a plan or a micro-step, as
  /// far as the budget allows without those that are used sooner; a budget of 0 drops every chunk after its use, and
  /// then the chunks fetched ahead are beside it.
  BudgetPlacement(dist::ChunkManager& chunks, std::int64_t budget_bytes, std::int64_t max_prefetch)
      : chunks_(chunks), budget_(budget_bytes), max_prefetch_(max_prefetch) {}

  void set_budget(std::int64_t bytes) { budget_ = bytes; }
  std::int64_t budget() const { return budget_; }

  void before_gather(std::size_t chunk) override;
  void after_access(std::size_t chunk) override;

 private:
  /// Drops chunks that are not used within `nearest` accesses until `needed` more bytes fit, or no other may be
  /// dropped.
  void make_room(std::int64_t needed, std::int64_t nearest);

  dist::ChunkManager& chunks_;
  std::int64_t budget_;
  std::int64_t max_prefetch_;
};

}  // namespace castor::strategy
