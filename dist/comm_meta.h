// A group of ranks that exists on paper: its collectives move nothing and end at once. Planning runs a rank's real
// step with it, on meta tensors, for any number of ranks.
#pragma once

#include <memory>

#include "dist/comm.h"

namespace castor::dist {

/// Rank `rank` of `world_size`. Contents of buffers are left as they are, so nothing may be read back from them. The
/// group checks its arguments as every other does.
std::unique_ptr<Comm> make_meta_comm(int rank, int world_size);

}  // namespace castor::dist
