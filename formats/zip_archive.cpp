// Zip: ranges of entries and their checksums. The directory is parsed in zip_directory.cpp.
#include "formats/zip_archive.h"

#include <algorithm>

#include <zlib.h>

#include "core/base/file_error.h"
#include "formats/zip_directory.h"

namespace castor::formats {
namespace {

constexpr std::size_t kVerifyBytes = std::size_t{1} << 20;

std::uint32_t add_crc(std::uint32_t crc, std::span<const std::byte> bytes) {
  return static_cast<std::uint32_t>(crc32_z(crc, reinterpret_cast<const Bytef*>(bytes.data()), bytes.size()));
}

void check_crc(const ZipArchive& archive, const ZipEntry& entry, std::uint32_t crc) {
  if (crc == entry.crc32) return;
  const std::string_view hint = entry.crc32 == 0 ? "; a recorded 0 may mean that it was saved with checksums turned off"
                                                 : ": the file is damaged, fetch it again";
  throw FormatError(cat("zip ", quote_name(archive.path(), 4096), ": entry ", quote_name(entry.name), ", at byte ",
                        entry.offset, ": expected bytes with the CRC-32 ", entry.crc32, ", they have ", crc, hint),
                    archive.path(), entry.offset);
}

}  // namespace

ZipArchive ZipArchive::open(const std::string& path, FileSystem& files) {
  File file = File::open(path, OpenMode::read, files);
  const std::uint64_t file_bytes = file.size();
  std::vector<ZipEntry> entries = read_zip_directory(file, file_bytes);
  std::vector<std::uint32_t> by_name = zip_entries_by_name(entries, path);
  return {std::move(file), file_bytes, std::move(entries), std::move(by_name)};
}

const ZipEntry* ZipArchive::find(std::string_view name) const {
  const auto found = std::lower_bound(
      by_name_.begin(), by_name_.end(), name,
      [this](std::uint32_t index, std::string_view wanted) { return std::string_view(entries_[index].name) < wanted; });
  return found == by_name_.end() || entries_[*found].name != name ? nullptr : &entries_[*found];
}

void ZipArchive::read(const ZipEntry& entry, std::uint64_t offset, std::span<std::byte> out) const {
  if (offset > entry.bytes || out.size() > entry.bytes - offset) {
    throw ShapeError(cat("read zip ", quote_name(path(), 4096), ": entry ", quote_name(entry.name), " has ",
                         entry.bytes, " bytes, asked for ", out.size(), " from ", offset));
  }
  file_.read_exact(out, entry.offset + offset);
}

std::vector<std::byte> ZipArchive::read(const ZipEntry& entry) const {
  std::vector<std::byte> bytes(entry.bytes);
  read(entry, 0, bytes);
  check_crc(*this, entry, add_crc(0, bytes));
  return bytes;
}

void ZipArchive::verify(const ZipEntry& entry) const {
  std::vector<std::byte> buffer(std::min<std::uint64_t>(entry.bytes, kVerifyBytes));
  std::uint32_t crc = 0;
  for (std::uint64_t offset = 0; offset < entry.bytes;) {
    const std::span<std::byte> part =
        std::span(buffer).first(static_cast<std::size_t>(std::min<std::uint64_t>(buffer.size(), entry.bytes - offset)));
    read(entry, offset, part);
    crc = add_crc(crc, part);
    offset += part.size();
  }
  check_crc(*this, entry, crc);
}

}  // namespace castor::formats
