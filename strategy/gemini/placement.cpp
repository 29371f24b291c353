// Choosing victims and what to fetch ahead.
#include "strategy/gemini/placement.h"

#include <algorithm>
#include <optional>
#include <tuple>

namespace castor::strategy {
namespace {

// Blocks of a disk tier that have memory at a time.
constexpr double kDiskBuffers = 3;

}  // namespace

Placement place_chunks(std::span<const dist::ChunkInfo> chunks, const StepForecast& forecast, const Tiers& tiers) {
  const auto piece_bytes = [&](const dist::ChunkInfo& chunk) {
    return static_cast<double>(chunk.bytes) / tiers.shards;
  };
  const auto state_bytes = [&](const dist::ChunkInfo& chunk) {
    return chunk.is_trained ? static_cast<double>(chunk.elements) / tiers.shards * forecast.state_bytes_per_element : 0;
  };
  Placement placement;
  double room = tiers.device_bytes - static_cast<double>(forecast.beside_bytes + forecast.gathered_bytes);
  double states = 0, largest_piece = 0, largest_states = 0;
  for (const dist::ChunkInfo& chunk : chunks) {
    placement.homes.push_back({tiers.device, tiers.device});
    room -= piece_bytes(chunk);
    states += state_bytes(chunk);
    largest_piece = std::max(largest_piece, piece_bytes(chunk));
    largest_states = std::max(largest_states, state_bytes(chunk));
  }
  if (states > room) room -= tiers.streaming_bytes;
  double host = tiers.host_bytes;
  const bool needs_disk = tiers.has_disk && states - std::max(room, 0.0) - std::min(room, 0.0) > host;
  if (needs_disk) host -= kDiskBuffers * (largest_piece + largest_states);
  const auto leave = [&](double bytes) {  // true: for the disk
    const bool is_on_disk = tiers.has_disk && bytes > host;
    if (!is_on_disk) host -= bytes;
    return is_on_disk;
  };
  for (std::size_t i = chunks.size(); i-- > 0 && room < 0;) {
    placement.homes[i].piece = tiers.host;
    placement.homes[i].piece_on_disk = leave(piece_bytes(chunks[i]));
    room += piece_bytes(chunks[i]);
  }
  for (std::size_t i = 0; i < chunks.size(); ++i) {
    if (!chunks[i].is_trained) continue;
    const double bytes = state_bytes(chunks[i]);
    if (bytes <= room && !placement.homes[i].piece_on_disk) {
      room -= bytes;
    } else {
      placement.homes[i].states = tiers.host;
      placement.homes[i].states_on_disk = leave(bytes);
    }
  }
  placement.kept_bytes = forecast.gathered_bytes + static_cast<std::int64_t>(std::max(room, 0.0));
  return placement;
}

// Victims are whole chunks whose next use is more than `nearest` accesses away; the one furthest away goes first.
void BudgetPlacement::make_room(std::int64_t needed, std::int64_t nearest) {
  while (chunks_.gathered_bytes() + needed > budget_) {
    std::optional<std::size_t> victim;
    const auto rank_of = [&](std::size_t chunk) {
      // Of equals the one unused for longest.
      return std::tuple(-chunks_.next_use(chunk), chunks_.last_use(chunk));
    };
    for (std::size_t chunk = 0; chunk < chunks_.chunk_count(); ++chunk) {
      const bool may_go = chunks_.can_release(chunk) && chunks_.next_use(chunk) > nearest;
      if (may_go && (!victim || rank_of(chunk) < rank_of(*victim))) victim = chunk;
    }
    if (!victim) return;
    chunks_.release(*victim);
  }
}

void BudgetPlacement::before_gather(std::size_t chunk) { make_room(chunks_.bytes(chunk), -1); }

void BudgetPlacement::after_access(std::size_t chunk) {
  std::vector<std::size_t> coming;  // which chunks are used next
  for (std::int64_t ahead = 1; static_cast<std::int64_t>(coming.size()) < max_prefetch_; ++ahead) {
    const std::optional<std::size_t> next = chunks_.upcoming(ahead);
    if (!next) return;
    if (*next == chunk || std::find(coming.begin(), coming.end(), *next) != coming.end()) continue;
    coming.push_back(*next);
    if (chunks_.state(*next) != dist::ChunkState::kAway) continue;
    make_room(chunks_.bytes(*next), ahead - 1);
    if (budget_ > 0 && chunks_.gathered_bytes() + chunks_.bytes(*next) > budget_) return;
    chunks_.prefetch(*next);
  }
}

}  // namespace castor::strategy
