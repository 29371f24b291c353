// Streams a strided view as contiguous bytes, row-major, through bounded buffers.
//
// Delicate: a view may be transposed, sliced or expanded, and is asked for in pieces that need not end at an element's
// end. Axes are merged first, so that a contiguous view is one run. What is not is gathered from a window of bounded
// size. Only a very large view with short runs, all of whose axes take long steps, costs a read for each run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "formats/safetensors.h"

namespace castor::formats {

/// Most bytes that a source holds (and a MiB of strips): an extent up to this is read as a whole.
inline constexpr std::uint64_t kMaxStridedWindowBytes = std::uint64_t{64} << 20;

/// A view of bytes. The product of the sizes and item_bytes, and the extent, fit 63 bits.
struct StridedBytes {
  std::vector<std::int64_t> shape;
  std::vector<std::int64_t> strides;  ///< elements, >= 0
  std::uint64_t begin = 0;            ///< byte of the first element, as `read` counts
  std::uint64_t item_bytes = 1;
};

/// The view's bytes as a source; each has its own window, so one source serves one thread at a time.
///   read  fills a span from a byte on; called only for bytes of the view and those between them
/// The source throws ShapeError for a range beyond the view, and what `read` throws.
ByteSource strided_source(const StridedBytes& view, ByteSource read);

}  // namespace castor::formats
