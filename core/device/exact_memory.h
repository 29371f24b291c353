// Memory as tools that watch it (compute-sanitizer, a debugger) need it: what they know of are the backend's
// allocations, so a read beyond a tensor, or of bytes that nobody has written, is hidden by a segment that many tensors
// share one after the other. Delicate: an allocator obeys from the next call on, blocks that it has given out before
// stay valid.
#pragma once

namespace castor {

/// True: from here on each tensor of this process gets memory of its own and of its very size, which goes back to the
/// backend when it is released. Slow, and a plan on meta sees other bytes. Safe from any thread.
void set_exact_memory(bool wanted);

}  // namespace castor
