// The typed errors of every floor, and `cat`, which builds their texts.
//
// An error is named by what its reader can do about it. Its text says the operation, what was expected, what came,
// and, where one exists, the next step: "matmul: inner sizes differ: a is f32[8,512], b is f32[256,64]".
// Programming mistakes inside Castor are InternalError; input never meets an assert.
#pragma once

#include <cstddef>
#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

namespace castor {

/// Joins the printed forms of its arguments.
template <class... Parts>
std::string cat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return std::move(out).str();
}

/// Base of everything Castor throws.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Sizes, axes or strides do not fit the operation.
class ShapeError : public Error {
 public:
  using Error::Error;
};

/// An element type the operation does not take.
class DTypeError : public Error {
 public:
  using Error::Error;
};

/// Tensors on different devices, a device this build or machine lacks, or a value read from a meta tensor.
class DeviceError : public Error {
 public:
  using Error::Error;
};

/// An allocation that the device's byte limit refuses.
class OutOfMemory : public Error {
 public:
  OutOfMemory(const std::string& text, std::size_t requested_bytes, std::size_t free_bytes, std::size_t limit_bytes)
      : Error(text), requested(requested_bytes), free(free_bytes), limit(limit_bytes) {}
  std::size_t requested;  ///< bytes asked for
  std::size_t free;       ///< bytes left under the limit
  std::size_t limit;      ///< the limit in bytes
};

/// A mistake in a config or on the command line; `path` is where, as "train_cfg.max_epochs".
class ConfigError : public Error {
 public:
  ConfigError(const std::string& text, std::string config_path) : Error(text), path(std::move(config_path)) {}
  std::string path;
};

/// A file whose bytes do not follow its format.
class FormatError : public Error {
 public:
  FormatError(const std::string& text, std::string file_path, std::uint64_t byte_offset)
      : Error(text), file(std::move(file_path)), offset(byte_offset) {}
  std::string file;
  std::uint64_t offset;  ///< bytes from the file's start
};

/// The operating system refused an operation on a path.
class IoError : public Error {
 public:
  IoError(const std::string& text, std::string file_path, int error_number)
      : Error(text), path(std::move(file_path)), code(error_number) {}
  std::string path;
  int code;  ///< errno
};

/// A collective that cannot complete: another rank died, diverged or sent something else.
class CommError : public Error {
 public:
  CommError(const std::string& text, int at_rank, std::string operation, std::uint64_t sequence_number)
      : Error(text), rank(at_rank), op(std::move(operation)), sequence(sequence_number) {}
  int rank;
  std::string op;
  std::uint64_t sequence;
};

/// A collective that outlived its deadline.
class CommTimeout : public CommError {
 public:
  using CommError::CommError;
};

/// A broken invariant of Castor's own: a bug to report.
class InternalError : public Error {
 public:
  using Error::Error;
};

}  // namespace castor
