// Zip archives of stored entries, the container of PyTorch's checkpoints, read without believing a byte.
//
// A zip says everything twice (a directory at its end, a header before each entry, sometimes a descriptor after it) and
// readers that disagree on which to believe are how such files lie. Delicate: here all copies must agree. Only stored
// entries are read, so that nothing can unfold to more than the file; what is refused is refused by the entry's name.
//
// Source of the format: PKWARE, "APPNOTE.TXT - .ZIP File Format Specification", version 6.3.10, section 4.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/base/file.h"

namespace castor::formats {

/// One stored entry: its bytes are [offset, offset + bytes) of the file.
struct ZipEntry {
  std::string name;  ///< UTF-8, relative, without "..", backslashes or control characters
  std::uint64_t offset = 0;
  std::uint64_t bytes = 0;
  std::uint32_t crc32 = 0;  ///< of the bytes, as zlib computes it
};

/// An open archive: its directory, checked, and any range of any entry on request.
class ZipArchive {
 public:
  /// Opens and checks. Memory stays below a small multiple of the directory, which is at most the file.
  /// Throws IoError; FormatError{file, offset} unless: the file ends with the end record, without a comment; zip64
  /// records agree with the 32-bit ones; it is one disk, unencrypted, and every entry is stored; names are unique and
  /// as ZipEntry says; local headers and descriptors agree with the directory; no two entries share a byte.
  static ZipArchive open(const std::string& path, FileSystem& files = posix_file_system());

  const std::string& path() const { return file_.path(); }
  /// Bytes of the whole file.
  std::uint64_t file_bytes() const { return file_bytes_; }
  /// All entries, in the order of the directory.
  const std::vector<ZipEntry>& entries() const { return entries_; }
  /// The entry called `name`, or null.
  const ZipEntry* find(std::string_view name) const;

  /// Reads bytes [offset, offset + out.size()) of an entry; no checksum covers a part. Throws ShapeError if the entry
  /// is shorter, IoError.
  void read(const ZipEntry& entry, std::uint64_t offset, std::span<std::byte> out) const;
  /// All bytes of an entry. Throws FormatError if they do not have its CRC-32, IoError.
  std::vector<std::byte> read(const ZipEntry& entry) const;
  /// Reads an entry through a bounded buffer to compare its CRC-32. Throws FormatError if it differs, IoError.
  void verify(const ZipEntry& entry) const;

 private:
  ZipArchive(File file, std::uint64_t file_bytes, std::vector<ZipEntry> entries, std::vector<std::uint32_t> by_name)
      : file_(std::move(file)), file_bytes_(file_bytes), entries_(std::move(entries)), by_name_(std::move(by_name)) {}

  File file_;
  std::uint64_t file_bytes_;
  std::vector<ZipEntry> entries_;
  std::vector<std::uint32_t> by_name_;  // indices into entries_, sorted by name
};

}  // namespace castor::formats
