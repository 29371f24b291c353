// Comparing two sources tensor by tensor, however each was cut, named its files or rounded its numbers.
//
// Delicate: what "equal" means. Tensors of one dtype are equal if their bits are (a NaN equals the same NaN, +0 does
// not equal -0); of two dtypes, if their values are, compared as f64. With a tolerance X values may differ by X *
// max(1, |a|, |b|). Files without roles hold weights only, and are compared with the weights of the other side.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "formats/tensor_source.h"

namespace castor::formats {

/// How values differ.
struct ValueDifference {
  std::uint64_t differing = 0;  ///< elements that are not equal
  std::uint64_t first = 0;      ///< the first of them, counted row-major
  double max_absolute = 0;      ///< over all elements; infinite if only one side is finite or a number
  double max_relative = 0;      ///< |a - b| / max(|a|, |b|)
};

/// One tensor that is not the same on both sides.
struct TensorDifference {
  enum class Kind { only_in_a, only_in_b, shape, values };
  Kind kind = Kind::values;
  std::string name, role;
  const SourceTensor* a = nullptr;  ///< null if only in b
  const SourceTensor* b = nullptr;  ///< null if only in a
  ValueDifference values = {};      ///< of kind `values`
};

struct CompareOptions {
  /// Only tensors of this role; param and buffer count as one. "master" beside a source without roles: masters, and
  /// weights where there is none.
  std::optional<std::string> role;
  double tolerance = 0;
  std::function<void(std::uint64_t bytes)> progress = {};  ///< bytes of both sides read so far
};

struct CompareReport {
  std::vector<TensorDifference> differences;  ///< by role, then name
  std::size_t compared = 0;                   ///< pairs whose values were compared
  std::size_t other_dtypes = 0;               ///< of these, pairs of two dtypes
  std::size_t skipped = 0;                    ///< tensors of roles that the other side has no room for
  std::size_t unnoted_aliases = 0;            ///< further names of tied tensors that a file without roles lacks

  bool equal() const { return differences.empty(); }
};

/// Compares. Memory: at most 192 MiB beside the names, whatever the size of the tensors.
/// Throws IoError; FormatError for damaged sources, and if neither has a tensor of the role.
CompareReport compare_sources(const TensorSource& a, const TensorSource& b, const CompareOptions& options = {});

/// Bytes that a comparison will read, for a progress bar.
std::uint64_t bytes_to_compare(const TensorSource& a, const TensorSource& b, const CompareOptions& options = {});

}  // namespace castor::formats
