// Safetensors files: named arrays behind a JSON header, written for other tools to read and read without trusting a
// byte.
//
// Layout: an 8-byte little-endian length, a JSON object of that length padded with spaces, then the arrays without
// holes. Delicate: a reader must believe nothing (lengths, offsets, shapes, names) before it has checked it against the
// file's size; a writer must order arrays by element size, largest first, because readers view them in place and no
// padding may stand between them. This floor knows bytes, dtypes and shapes, not tensors.
//
// Source of the format: https://github.com/huggingface/safetensors, README, section "Format".
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "core/base/dtype.h"
#include "core/base/file.h"

namespace castor::formats {

/// A header may not be longer than this, as every safetensors reader requires.
inline constexpr std::uint64_t kMaxSafetensorsHeaderBytes = 100'000'000;
/// Most axes an array may have here; the format itself sets no bound.
inline constexpr std::size_t kMaxSafetensorsAxes = 64;

/// The dtype's name in a safetensors file: "F32", "BF16", "F8_E4M3", ...
std::string_view safetensors_dtype_name(DType dtype);
/// The dtype of that name, or nothing for one that Castor does not know.
std::optional<DType> dtype_of_safetensors_name(std::string_view name);

/// Where one array lies in a file. Bytes [begin, end) count from the file's start; elements are row-major,
/// little-endian.
struct TensorEntry {
  std::string name;
  DType dtype = DType::f32;
  std::vector<std::int64_t> shape;  ///< every size >= 0; empty for a scalar
  std::uint64_t begin = 0;
  std::uint64_t end = 0;

  std::uint64_t bytes() const { return end - begin; }
};

/// Free text about the file, written under the key "__metadata__".
using SafetensorsMetadata = std::map<std::string, std::string>;

/// What a file says about itself, checked.
struct SafetensorsHeader {
  std::deque<TensorEntry> tensors;  ///< in file order: each begins where the one before ends
  SafetensorsMetadata metadata;
  std::uint64_t data_begin = 0;  ///< offset of the first array
  std::uint64_t file_bytes = 0;  ///< size of the whole file

  /// The array called `name`, or null.
  const TensorEntry* find(std::string_view name) const;

  /// Fills `by_name`. Returns a name that two arrays share, or null.
  const std::string* index_names();

  /// Indices into `tensors`, sorted by name: what `find` searches.
  std::vector<std::uint32_t> by_name;
};

/// The header's length in bytes, as the file's first 8 bytes say. Throws FormatError if `start` is shorter than those,
/// or the length exceeds the file or kMaxSafetensorsHeaderBytes.
std::uint64_t safetensors_header_bytes(std::span<const std::byte> start, std::uint64_t file_bytes,
                                       const std::string& file);

/// Parses and checks a header.
///   start       the file's first bytes: at least the length field and the header it announces
///   file_bytes  size of the file
///   file        its path, for errors
/// Throws FormatError{file, offset} unless: the length fits the file and kMaxSafetensorsHeaderBytes; the header is one
/// JSON object of the known depth; every array has exactly a known dtype, a shape of at most kMaxSafetensorsAxes axes
/// whose product does not overflow, and offsets of just that many bytes; names are unique; arrays fill the rest of the
/// file without hole or overlap; metadata maps texts to texts.
SafetensorsHeader parse_safetensors_header(std::span<const std::byte> start, std::uint64_t file_bytes,
                                           const std::string& file);

/// Fills `out` with an array's bytes from `offset` on. Called for consecutive ranges that fit a bounded buffer.
using ByteSource = std::function<void(std::uint64_t offset, std::span<std::byte> out)>;

/// An array to write. `data` is its bytes, or what produces them piece by piece (from a device, or from shards).
struct SafetensorsTensor {
  std::string name;  ///< UTF-8, unique, not "__metadata__"
  DType dtype = DType::f32;
  std::vector<std::int64_t> shape;
  std::variant<std::span<const std::byte>, ByteSource> data;
};

/// How a file is written.
struct SafetensorsOptions {
  SafetensorsMetadata metadata;                     ///< left out of the header when empty
  std::uint64_t data_alignment = 64;                ///< the first array's offset is a multiple: 8, 16, ... 65536
  std::size_t buffer_bytes = std::size_t{4} << 20;  ///< most bytes held while a ByteSource is written
};

/// Header and offsets of a file yet to be written.
struct SafetensorsPlan {
  SafetensorsHeader header;
  std::string header_bytes;          ///< length field, JSON and padding: the file's first header.data_begin bytes
  std::vector<std::size_t> sources;  ///< header.tensors[i] is the tensor given as number sources[i]
};

/// Lays a file out: arrays by element size, largest first, then by name. Looks at no data.
/// Throws FormatError{file} for names that are repeated, reserved or not UTF-8 and for a header that would be too long;
/// ShapeError for negative sizes, too many axes, a product that overflows, or an alignment that is not allowed.
SafetensorsPlan plan_safetensors(std::span<const SafetensorsTensor> tensors, const SafetensorsOptions& options,
                                 const std::string& file);

/// Writes a file atomically and durably (write_file_atomically), with at most options.buffer_bytes of memory beside the
/// tensors. Returns what was written where. Throws as plan_safetensors; ShapeError if a tensor's bytes do not fit its
/// dtype and shape; IoError. A failed write leaves what was at `path` before.
SafetensorsHeader write_safetensors(const std::string& path, std::span<const SafetensorsTensor> tensors,
                                    const SafetensorsOptions& options = {}, FileSystem& files = posix_file_system());

/// An open safetensors file: its header, and any range of any array on request.
class SafetensorsFile {
 public:
  /// Opens and checks. Throws IoError, or FormatError as parse_safetensors_header does.
  static SafetensorsFile open(const std::string& path, FileSystem& files = posix_file_system());

  const std::string& path() const { return file_.path(); }
  const SafetensorsHeader& header() const { return header_; }
  /// The array called `name`. Throws FormatError, naming a similar one if there is any.
  const TensorEntry& at(std::string_view name) const;
  /// Reads bytes [offset, offset + out.size()) of an array. Throws ShapeError if it is shorter, IoError.
  void read(const TensorEntry& entry, std::uint64_t offset, std::span<std::byte> out) const;
  /// All bytes of an array.
  std::vector<std::byte> read(const TensorEntry& entry) const;

 private:
  SafetensorsFile(File file, SafetensorsHeader header) : file_(std::move(file)), header_(std::move(header)) {}

  File file_;
  SafetensorsHeader header_;
};

}  // namespace castor::formats
