// How each collective moves its bytes, over any Link.
//
// All but the ring, which must be asked for, are exchanges between every pair of ranks, which move no more bytes than a
// ring does, need one or two phases instead of W, and bring every contribution to the element's owner unsummed: the
// owner adds them in order of ranks. Delicate: the order of bytes within each pair's stream is agreed by construction;
// sender and reader walk the same loops.
#pragma once

#include <cstddef>
#include <functional>
#include <vector>

#include "dist/comm.h"
#include "dist/exchange.h"

namespace castor::dist {

/// What one run of a collective works with.
struct AlgorithmContext {
  int rank = 0;
  int size = 1;
  Exchange& exchange;
  std::vector<std::byte>& scratch;     ///< grows to what is needed and is kept for the next run
  const std::function<void()>& agree;  ///< waits for all announcements and throws if they differ; again: nothing
  bool offered = false;                ///< all ranks were told where this rank's contributions lie
  const std::vector<const std::byte*>& at_peers;  ///< after `agree`: where theirs lie; empty if one of them did not say
};

/// Bytes that this rank sends to `peer` in all, or expects from it: what announcements state.
struct PairBytes {
  std::size_t sent = 0;
  std::size_t received = 0;
};
PairBytes pair_bytes(const Collective& collective, int rank, int peer);

/// Runs a collective that `Comm` has checked. The announcements are queued already; `agree` is called after the first
/// data is on its way and before any that came is used.
/// Where all ranks can read each other's contributions, they are taken from there (dist/direct.h).
void run_algorithm(const Collective& collective, AlgorithmContext& context);

}  // namespace castor::dist
