// Sizes of arrays described by files: products that may overflow, checked before anything is allocated.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "core/base/dtype.h"

namespace castor::formats {

/// Bytes of an array of `shape` (every size >= 0; no axes = a scalar) and `dtype`, or nothing if the product of the
/// sizes other than 0, or the bytes, exceed a signed 64-bit number: a size of 0 does not excuse absurd ones beside it.
std::optional<std::uint64_t> bytes_of_shape(std::span<const std::int64_t> shape, DType dtype);

/// "[2,3]"; "[]" for a scalar.
std::string shape_text(std::span<const std::int64_t> shape);

}  // namespace castor::formats
