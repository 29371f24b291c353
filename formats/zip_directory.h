// The directory of a zip archive, from its end record to the local headers: the part of ZipArchive that parses.
//
// Delicate: everything here is fed by bytes that anyone may have written; see zip_directory.cpp for the order in which
// they become trusted.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/base/file.h"
#include "formats/zip_archive.h"

namespace castor::formats {

/// Reads and checks everything that ZipArchive::open promises but the names' uniqueness.
///   file_bytes  size of the file, which must not shrink meanwhile
/// Throws FormatError, IoError.
std::vector<ZipEntry> read_zip_directory(const File& file, std::uint64_t file_bytes);

/// Indices of `entries` sorted by name. Throws FormatError for the file `path` if two entries share a name.
std::vector<std::uint32_t> zip_entries_by_name(const std::vector<ZipEntry>& entries, const std::string& path);

}  // namespace castor::formats
