// Reads the pickle of a PyTorch checkpoint as data. Nothing in it is run.
//
// A pickle is a program for a small stack machine, and Python's own reader lets it call anything by name: loading a
// stranger's checkpoint there runs a stranger's code. Here the machine knows plain data and a fixed table of names
// (formats/torch_globals.h), each of which stands for a value; any other name is refused before anything can use it.
// Delicate: memory. The memo lets a few bytes repeat what is large, so values are shared, copies have a budget, and the
// finished tree is checked (formats/pickle_value.h).
//
// Source of the format: CPython, Lib/pickletools.py, whose comments define each opcode; PyTorch,
// torch/serialization.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "formats/pickle_value.h"

namespace castor::formats {

/// What a reader accepts.
struct PickleOptions {
  std::uint64_t max_bytes = std::uint64_t{64} << 20;  ///< length of the pickle
  std::size_t max_values = std::size_t{4} << 20;      ///< values made, and values met when walking the result
  /// Classes and functions, "module.name", that may stand in the result as PickleObject without being called, so that
  /// a checkpoint whose other parts use them can be read: "numpy.ndarray", say.
  std::vector<std::string> inert_globals;
};

/// Reads one pickle of protocol 2 to 5.
///   bytes        the whole pickle
///   file         its file's path, for errors
///   file_offset  where in the file `bytes` begins
/// Memory stays below about 100 bytes for a byte of the pickle and below what max_values values take; no allocation is
/// larger than the pickle, or kSegmentBytes.
/// Throws FormatError{file, offset} for anything else than such a pickle, for a name that is not in the table, for
/// tensors that leave their storage or have an element type that Castor lacks, for integers beyond 64 bits, for values
/// that contain themselves and for whatever exceeds the limits.
PickleTree parse_torch_pickle(std::span<const std::byte> bytes, const std::string& file, std::uint64_t file_offset = 0,
                              const PickleOptions& options = {});

}  // namespace castor::formats
