// The weights of a source under the names that they get elsewhere: what an export writes and an import takes.
//
// Delicate: a tensor may have several names (tied weights). It moves once, under the first of its names that the map
// leaves in; the others become aliases. Two tensors that meet in one name are an error.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "formats/name_map.h"
#include "formats/tensor_source.h"

namespace castor::formats {

/// A weight and its new name.
struct NamedWeight {
  std::string name;
  std::string role;                      ///< param or buffer
  const SourceTensor* tensor = nullptr;  ///< of the source; may be a master copy
  DType dtype = DType::f32;              ///< that it gets
};

/// All of them.
struct WeightList {
  std::vector<NamedWeight> weights;                ///< by name
  std::map<std::string, std::string> aliases;      ///< alias -> name, both new
  std::vector<std::string> left_out;               ///< old names that the map left out
  std::map<std::string, std::size_t> other_roles;  ///< tensors of the source that are no weights, by role
  std::size_t masters = 0;                         ///< weights taken from the role master

  /// Bytes of all weights, in their new dtypes.
  std::uint64_t bytes() const;
};

/// Lists params and buffers.
///   dtype    what floating-point tensors become; none: what they are
///   masters  take the role master where a param has one
/// Throws ConfigError if two tensors get one name; FormatError if a master has another shape than its param.
WeightList list_weights(const TensorSource& source, const NameMap& names, std::optional<DType> dtype, bool masters);

/// Counts finite values that a conversion made infinite (f16 ends at 65504).
struct CastCounts {
  std::uint64_t overflowed = 0;
};

/// Told the bytes written so far; may throw to stop.
using BytesProgress = std::function<void(std::uint64_t bytes)>;

/// The weight's bytes in its dtype, to be called for whole elements in order; opened late and dropped at its end, as
/// deferred_source. Conversions are those of core/ops/cast, in pieces.
///   counts   added to; may be null; must outlive the source
///   written  called with the bytes of each piece; may be empty
ByteSource weight_bytes(const NamedWeight& weight, CastCounts* counts, BytesProgress written);

/// The progress of several sources as one: what it returns adds the bytes up and tells `progress` the sum.
BytesProgress sum_of_pieces(BytesProgress progress);

}  // namespace castor::formats
