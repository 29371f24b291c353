// IDX files, plain or gzipped: arrays of bytes such as the images and labels of Fashion-MNIST.
//
// Layout: two zero bytes, an element type (8 = unsigned byte, the one read here), the number of axes, a big-endian
// 32-bit size for each axis, then the elements, row-major. Delicate: a gzipped file may say anything and inflate to
// anything; it is unpacked twice, and memory for the elements is taken once all have been seen to be there.
//
// Sources: Y. LeCun et al., "The MNIST database", section "File formats"; RFC 1952 (gzip).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/file.h"

namespace castor::formats {

/// What an IDX file holds.
struct IdxArray {
  std::vector<std::int64_t> shape;   ///< e.g. [60000, 28, 28] for images, [60000] for labels
  std::vector<std::uint8_t> values;  ///< row-major; as many as the product of `shape`
};

/// What the caller knows about the file.
struct IdxOptions {
  int axes = 0;                                      ///< axes it must have; 0 = any number from 1 to 8
  std::uint64_t max_bytes = std::uint64_t{1} << 30;  ///< most elements accepted
  std::string_view missing_hint = {};                ///< said when there is no such file, e.g. which package brings it
};

/// Reads a whole file; gzip is recognised by its first bytes.
/// Throws IoError (missing_hint is added for ENOENT); FormatError{file, offset} for another element type or number of
/// axes, for an array over max_bytes, for damaged gzip data, and if more or fewer bytes follow than the sizes say. The
/// offset is in the file on disk, for gzip of the compressed byte last looked at.
IdxArray read_idx_file(const std::string& path, const IdxOptions& options = {},
                       FileSystem& files = posix_file_system());

}  // namespace castor::formats
