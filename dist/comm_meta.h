// A group of ranks that exists on paper: its collectives move nothing and end at once. Planning runs a rank's real
// step with it, on meta tensors, for any number of ranks. Where these stand for a GPU's, a sum takes memory for the
// other ranks' terms until somebody waits for it, as it does there.
#pragma once

#include <memory>

#include "dist/comm.h"

namespace castor::dist {

/// What a rank would have exchanged.
struct MetaTraffic {
  std::int64_t collectives = 0;
  double bytes = 0;  ///< sent or received, whichever is more: links carry both ways at a time
};

/// Rank `rank` of `world_size`. Contents of buffers are left as they are, so nothing may be read back from them. The
/// group checks its arguments as every other does.
///   traffic  counts what this group and those split from it do; may be null
std::unique_ptr<Comm> make_meta_comm(int rank, int world_size, std::shared_ptr<MetaTraffic> traffic = nullptr);

/// Groups of `size` consecutive ranks each, of any group: split(rank / size, rank), which a group on paper could not
/// tell from another split.
std::unique_ptr<Comm> split_blocks(Comm& comm, int size);

}  // namespace castor::dist
