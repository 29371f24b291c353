// Buffers that follow the data, over ranks: every rank applies the updates of all micro-batches of a window in the
// order of the micro-batches, so that a buffer's bits do not depend on how the window was split.
#pragma once

#include <cstdint>

#include "autograd/nn/buffer_update.h"
#include "dist/comm.h"

namespace castor::strategy {

/// Exchanges and applies what a window of `micro_steps` left in `pending`; all ranks call it together.
/// Throws CommError; InternalError if micro-steps posted different numbers of updates or statistics that are not f32.
void apply_updates_of_ranks(dist::Comm& comm, autograd::PendingBufferUpdates& pending, std::int64_t micro_steps);

}  // namespace castor::strategy
