// Collectives among ranks that can read each other's tensors: nobody sends, everybody reads.
//
// A rank offers its contributions by saying in its announcement where they lie; where all ranks of a group offer, an
// element's owner adds the contributions from where they are, in order of ranks, and the others copy its sum from the
// owner's tensor. That is the least traffic there can be: each contribution is read once, each result written once a
// rank, and no byte passes through a pipe. Delicate: ranks only read what is not theirs, so a rank that comes back late
// after a failure harms nobody; a rank leaves only when all have read what they need of it.
#pragma once

#include <span>
#include <vector>

#include "dist/algorithms.h"
#include "dist/announcement.h"
#include "dist/link.h"

namespace castor::dist {

/// Enters into what is said to each peer where this rank's contribution to it lies. False, and nothing is entered, if
/// one of them cannot be read from there, or if they are too small to be worth it.
bool offer(const Collective& collective, const Link& link, std::span<Announcement> to_peers);

/// Where the peers' contributions to this rank lie, by place (null for the own one); empty if a peer offered none.
/// Throws PeerLost.
std::vector<const std::byte*> find_offers(const Collective& collective, const Link& link,
                                          std::span<const Announcement> said);

/// Runs a collective whose ranks all offered and have agreed. Throws as Exchange.
void run_direct(const Collective& collective, AlgorithmContext& context);

}  // namespace castor::dist
