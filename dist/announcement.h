// Announcement: what a rank says it is about to do, sent ahead of the data of every collective and compared on every
// rank. It is the fingerprint by which divergence is found before it can do harm.
//
// Delicate: fixed size and trivially copyable, so that reading one never depends on what it says.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "dist/comm.h"
#include "dist/failure.h"

namespace castor::dist {

/// 128 bytes on the wire, in the byte order of the machine (a job runs on machines of one kind; the magic tells).
struct Announcement {
  static constexpr std::uint64_t kMagic = 0x31304d4d4f435443;  // "CTCOMM01" in little-endian order
  std::uint64_t magic = kMagic;
  std::uint64_t group = 0;       ///< digest of the group's name
  std::uint64_t sequence = 0;    ///< number of the collective in its group; of the message for send and recv
  std::uint64_t count = 0;       ///< elements all ranks agree on; 0 where ranks may differ
  std::uint64_t layout = 0;      ///< digest of the counts of pieces
  std::uint64_t bytes = 0;       ///< data that follows from this rank to the reader; not compared by `same`
  std::uint64_t label_hash = 0;  ///< digest of the whole label
  std::uint64_t place = 0;       ///< 1 + where that data can be read at its rank (Link::place_of), 0: it is sent
  std::int32_t root = -1;
  std::uint8_t op = 0;
  std::uint8_t dtype = 0;
  std::uint8_t reduce = 0;
  std::uint8_t flags = 0;  ///< 1: accumulates, 2: the output is wider, 4: sums along the ring
  char label[56] = {};     ///< its beginning, for errors

  /// True if both mean the same collective.
  bool same(const Announcement& other) const;
  /// "all_reduce #17 'blocks.3.w' f32 x 1024"
  std::string describe() const;
};
static_assert(sizeof(Announcement) == 128);

/// What this rank announces; `bytes` is left 0.
Announcement announce(const Collective& collective, const std::string& group, std::uint64_t sequence);

/// Compares what all members announced. Returns nothing to say (empty text) if they agree; otherwise the failure, which
/// is worded alike on all ranks: who calls what, and the rank that stands alone or, failing that, the first that
/// differs from the lowest.
///   said     by place in the group
///   members  the job's rank of each
Failure find_disagreement(std::span<const Announcement> said, const std::vector<int>& members, int own_place,
                          const std::string& group);

}  // namespace castor::dist
