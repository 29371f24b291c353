// Choosing victims and what to fetch ahead.
#include "strategy/gemini/placement.h"

#include <optional>
#include <tuple>

namespace castor::strategy {

void BudgetPlacement::make_room(std::int64_t needed) {
  while (chunks_.gathered_bytes() + needed > budget_) {
    std::optional<std::size_t> victim;
    const auto rank_of = [&](std::size_t chunk) {
      // Furthest next use first; of equals the one unused for longest.
      return std::tuple(-chunks_.next_use(chunk), chunks_.last_use(chunk));
    };
    for (std::size_t chunk = 0; chunk < chunks_.chunk_count(); ++chunk) {
      if (chunks_.can_release(chunk) && (!victim || rank_of(chunk) < rank_of(*victim))) victim = chunk;
    }
    if (!victim) return;
    chunks_.release(*victim);
  }
}

void BudgetPlacement::before_gather(std::size_t chunk) { make_room(chunks_.bytes(chunk)); }

void BudgetPlacement::after_access(std::size_t) {
  std::int64_t fetched = 0;
  for (std::int64_t ahead = 1; fetched < max_prefetch_; ++ahead) {
    const std::optional<std::size_t> next = chunks_.upcoming(ahead);
    if (!next) return;
    const dist::ChunkState state = chunks_.state(*next);
    if (state == dist::ChunkState::kAway) {
      if (budget_ > 0 && chunks_.gathered_bytes() + chunks_.bytes(*next) > budget_) return;
      chunks_.prefetch(*next);
    }
    if (state == dist::ChunkState::kAway || state == dist::ChunkState::kArriving) ++fetched;
    if (ahead > static_cast<std::int64_t>(chunks_.chunk_count())) return;
  }
}

}  // namespace castor::strategy
