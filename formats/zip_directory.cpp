// From the last 22 bytes of a file to a list of entries that can be believed.
//
// Order of trust: the end record lies at the very end (a comment after it would let a second one hide, and torch writes
// none); the zip64 record, if there is one, right before; the directory ends where those begin; each directory record
// leads to a local header that must repeat it. Delicate: torch writes its entries as a stream, so local headers hold
// zeros where the descriptor behind the data tells sizes and checksum, and zip64 extra fields that no 32-bit field asks
// for; the directory alone says where data ends, and the descriptor must then be found there. Sums of 64-bit numbers
// are compared by subtraction, so that none can wrap.
#include "formats/zip_directory.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <numeric>
#include <optional>

#include "core/base/file_error.h"
#include "core/base/json.h"

namespace castor::formats {
namespace {

static_assert(std::endian::native == std::endian::little, "zip's numbers are little-endian");

constexpr std::uint64_t kEndBytes = 22;
constexpr std::uint64_t kLocatorBytes = 20;
constexpr std::uint64_t kEnd64Bytes = 56;
constexpr std::uint64_t kRecordBytes = 46;
constexpr std::uint64_t kLocalBytes = 30;
// A record and a local header, a name of a byte in each.
constexpr std::uint64_t kLeastBytesOfEntry = kRecordBytes + kLocalBytes + 2;

constexpr std::uint32_t kEndSignature = 0x06054B50;
constexpr std::uint32_t kLocatorSignature = 0x07064B50;
constexpr std::uint32_t kEnd64Signature = 0x06064B50;
constexpr std::uint32_t kRecordSignature = 0x02014B50;
constexpr std::uint32_t kLocalSignature = 0x04034B50;
constexpr std::uint32_t kDescriptorSignature = 0x08074B50;

constexpr std::uint16_t kFull16 = 0xFFFF;      // "the zip64 record tells"
constexpr std::uint32_t kFull32 = 0xFFFFFFFF;  // the same
constexpr std::uint16_t kZip64Field = 0x0001;
constexpr std::uint16_t kEncryptedFlags = 0x2041;  // traditional, strong, masked headers
constexpr std::uint16_t kDescriptorFlag = 0x0008;
constexpr std::uint16_t kKnownFlags = 0x080E;  // compression effort, descriptor, UTF-8 name

[[noreturn]] void fail_at(const std::string& file, std::uint64_t offset, const std::string& what) {
  throw FormatError(cat("zip ", quote_name(file, 4096), ": at byte ", offset, ": ", what), file, offset);
}

template <class Number>
Number number_at(std::span<const std::byte> bytes, std::size_t offset) {
  Number value = 0;
  if (offset > bytes.size() || bytes.size() - offset < sizeof(Number)) {
    throw InternalError("zip: a number outside of the bytes at hand");
  }
  std::memcpy(&value, bytes.data() + offset, sizeof(Number));
  return value;
}

std::string_view method_name(std::uint16_t method) {
  switch (method) {
    case 8:
      return "deflate";
    case 9:
      return "deflate64";
    case 12:
      return "bzip2";
    case 14:
      return "LZMA";
    case 93:
      return "zstd";
    case 95:
      return "XZ";
    default:
      return "unknown";
  }
}

// Where the directory lies.
struct Directory {
  std::uint64_t begin = 0;
  std::uint64_t bytes = 0;
  std::uint64_t entries = 0;
};

// An entry of the directory with what its local header must repeat.
struct Record {
  ZipEntry entry;  // offset: of the local header, until that is read
  std::uint16_t flags = 0;
  std::uint64_t begin = 0;  // the first byte that belongs to the entry: its local header's
  std::uint64_t end = 0;    // past the last: the data's, or the descriptor's
};

class DirectoryReader {
 public:
  DirectoryReader(const File& file, std::uint64_t file_bytes) : file_(file), file_bytes_(file_bytes) {}

  std::vector<ZipEntry> read();

 private:
  [[noreturn]] void fail(std::uint64_t offset, const std::string& what) const { fail_at(file_.path(), offset, what); }
  Directory find_directory() const;
  void merge_zip64(Directory& directory, std::uint64_t& directory_end, std::span<const std::byte> end) const;
  Record parse_record(std::span<const std::byte> directory, std::uint64_t& at, std::uint64_t directory_begin) const;
  void check_name(const std::string& name, std::uint64_t offset) const;
  void read_zip64_field(std::span<const std::byte> extra, std::uint64_t offset, const std::string& what,
                        std::span<std::uint64_t*> wanted) const;
  void check_local_header(Record& record, std::uint64_t directory_begin) const;
  std::uint64_t descriptor_bytes(const Record& record, std::uint64_t at, std::uint64_t limit) const;

  const File& file_;
  std::uint64_t file_bytes_;
};

Directory DirectoryReader::find_directory() const {
  if (file_bytes_ < kEndBytes) fail(0, cat("expected a zip archive of at least 22 bytes, the file has ", file_bytes_));
  const std::uint64_t end_begin = file_bytes_ - kEndBytes;
  std::array<std::byte, kEndBytes> end{};
  file_.read_exact(end, end_begin);
  if (number_at<std::uint32_t>(end, 0) != kEndSignature || number_at<std::uint16_t>(end, 20) != 0) {
    fail(end_begin,
         "expected the end record of a zip archive without a comment: the file was cut short, has bytes added to it, "
         "or is no zip archive");
  }
  Directory directory;
  directory.entries = number_at<std::uint16_t>(end, 10);
  directory.bytes = number_at<std::uint32_t>(end, 12);
  directory.begin = number_at<std::uint32_t>(end, 16);
  std::uint64_t directory_end = end_begin;
  merge_zip64(directory, directory_end, end);
  if (directory.begin > directory_end || directory.bytes != directory_end - directory.begin) {
    fail(end_begin, cat("the directory is said to be ", directory.bytes, " bytes at ", directory.begin,
                        ", expected it to end at ", directory_end, ", where the end records begin"));
  }
  if (directory.entries > file_bytes_ / kLeastBytesOfEntry) {
    fail(end_begin,
         cat("the file says ", directory.entries, " entries, its ", file_bytes_, " bytes cannot hold so many"));
  }
  return directory;
}

void DirectoryReader::merge_zip64(Directory& directory, std::uint64_t& directory_end,
                                  std::span<const std::byte> end) const {
  const std::uint64_t end_begin = directory_end;
  const auto disk = number_at<std::uint16_t>(end, 4);
  const auto directory_disk = number_at<std::uint16_t>(end, 6);
  const auto entries_here = number_at<std::uint16_t>(end, 8);
  std::array<std::byte, kLocatorBytes> locator{};
  bool zip64 = false;
  if (end_begin >= kLocatorBytes) {
    file_.read_exact(locator, end_begin - kLocatorBytes);
    zip64 = number_at<std::uint32_t>(locator, 0) == kLocatorSignature;
  }
  if (!zip64) {
    if (disk != 0 || directory_disk != 0 || entries_here != directory.entries) {
      fail(end_begin, "archives over several disks are not read: put it together first");
    }
    if (directory.entries == kFull16 || directory.bytes == kFull32 || directory.begin == kFull32) {
      fail(end_begin, "the end record points to a zip64 record, and there is none before it");
    }
    return;
  }
  const std::uint64_t locator_begin = end_begin - kLocatorBytes;
  if (number_at<std::uint32_t>(locator, 4) != 0 || number_at<std::uint32_t>(locator, 16) != 1) {
    fail(locator_begin, "archives over several disks are not read: put it together first");
  }
  const auto end64_begin = number_at<std::uint64_t>(locator, 8);
  if (locator_begin < kEnd64Bytes || end64_begin != locator_begin - kEnd64Bytes) {
    fail(locator_begin,
         cat("expected the zip64 end record in the 56 bytes before this, it is said to lie at ", end64_begin));
  }
  std::array<std::byte, kEnd64Bytes> end64{};
  file_.read_exact(end64, end64_begin);
  if (number_at<std::uint32_t>(end64, 0) != kEnd64Signature || number_at<std::uint64_t>(end64, 4) != kEnd64Bytes - 12) {
    fail(end64_begin, "expected a zip64 end record of 56 bytes");
  }
  const auto entries = number_at<std::uint64_t>(end64, 32);
  const auto bytes = number_at<std::uint64_t>(end64, 40);
  const auto begin = number_at<std::uint64_t>(end64, 48);
  if (number_at<std::uint32_t>(end64, 16) != 0 || number_at<std::uint32_t>(end64, 20) != 0 ||
      number_at<std::uint64_t>(end64, 24) != entries || (disk != 0 && disk != kFull16) ||
      (directory_disk != 0 && directory_disk != kFull16)) {
    fail(end64_begin, "archives over several disks are not read: put it together first");
  }
  const auto agrees = [](std::uint64_t narrow, std::uint64_t full, std::uint64_t wide) {
    return narrow == full || narrow == wide;
  };
  if (!agrees(directory.entries, kFull16, entries) || !agrees(entries_here, kFull16, entries) ||
      !agrees(directory.bytes, kFull32, bytes) || !agrees(directory.begin, kFull32, begin)) {
    fail(end64_begin, "the zip64 end record and the end record tell different sizes");
  }
  directory = {begin, bytes, entries};
  directory_end = end64_begin;
}

void DirectoryReader::check_name(const std::string& name, std::uint64_t offset) const {
  std::string_view problem;
  if (name.empty()) problem = "is empty";
  if (!is_utf8(name)) problem = "is not UTF-8";
  const auto forbidden = [](char c) { return c == '\\' || static_cast<unsigned char>(c) < 0x20 || c == 0x7F; };
  if (std::ranges::any_of(name, forbidden)) problem = "has a backslash or a control character";
  if (name.starts_with('/') || (name.size() > 1 && name[1] == ':')) problem = "is an absolute path";
  for (std::size_t begin = 0; begin < name.size();) {
    const std::size_t end = std::min(name.find('/', begin), name.size());
    if (std::string_view(name).substr(begin, end - begin) == "..") problem = "leaves its folder";
    begin = end + 1;
  }
  if (!problem.empty()) fail(offset, cat("the entry's name ", quote_name(name), " ", problem));
}

// Fills the wanted numbers, in the format's order, from the zip64 field of a directory record.
void DirectoryReader::read_zip64_field(std::span<const std::byte> extra, std::uint64_t offset, const std::string& what,
                                       std::span<std::uint64_t*> wanted) const {
  bool found = false;
  for (std::size_t at = 0; at < extra.size();) {
    if (extra.size() - at < 4) fail(offset + at, cat(what, "extra fields do not fill their space"));
    const auto kind = number_at<std::uint16_t>(extra, at);
    const std::size_t bytes = number_at<std::uint16_t>(extra, at + 2);
    if (extra.size() - at - 4 < bytes) fail(offset + at, cat(what, "an extra field goes past its space"));
    if (kind == kZip64Field) {
      if (found) fail(offset + at, cat(what, "has two zip64 fields"));
      if (bytes != 8 * wanted.size()) {
        fail(offset + at, cat(what, "expected a zip64 field of ", 8 * wanted.size(), " bytes, for just the numbers ",
                              "that 32 bits do not hold, it has ", bytes));
      }
      found = true;
      for (std::size_t i = 0; i < wanted.size(); ++i) *wanted[i] = number_at<std::uint64_t>(extra, at + 4 + 8 * i);
    }
    at += 4 + bytes;
  }
  if (!found && !wanted.empty()) fail(offset, cat(what, "says its sizes are in a zip64 field, and has none"));
}

Record DirectoryReader::parse_record(std::span<const std::byte> directory, std::uint64_t& at,
                                     std::uint64_t directory_begin) const {
  const std::uint64_t offset = directory_begin + at;
  const std::span<const std::byte> rest = directory.subspan(at);
  if (rest.size() < kRecordBytes || number_at<std::uint32_t>(rest, 0) != kRecordSignature) {
    fail(offset, "expected the directory's record of an entry");
  }
  Record record;
  record.flags = number_at<std::uint16_t>(rest, 8);
  const auto method = number_at<std::uint16_t>(rest, 10);
  record.entry.crc32 = number_at<std::uint32_t>(rest, 16);
  std::uint64_t stored = number_at<std::uint32_t>(rest, 20);
  record.entry.bytes = number_at<std::uint32_t>(rest, 24);
  const std::size_t name_bytes = number_at<std::uint16_t>(rest, 28);
  const std::size_t extra_bytes = number_at<std::uint16_t>(rest, 30);
  const std::size_t comment_bytes = number_at<std::uint16_t>(rest, 32);
  const auto disk = number_at<std::uint16_t>(rest, 34);
  record.begin = number_at<std::uint32_t>(rest, 42);
  if (rest.size() - kRecordBytes < name_bytes + extra_bytes + comment_bytes) {
    fail(offset, "the record's name, extra fields and comment go past the directory");
  }
  record.entry.name.assign(reinterpret_cast<const char*>(rest.data()) + kRecordBytes, name_bytes);
  check_name(record.entry.name, offset);
  const std::string what = cat("entry ", quote_name(record.entry.name), ": ");
  if (disk != 0) fail(offset, cat(what, "lies on another disk"));
  if ((record.flags & kEncryptedFlags) != 0) fail(offset, cat(what, "is encrypted: decrypt the archive first"));
  if ((record.flags & ~kKnownFlags) != 0) fail(offset, cat(what, "has the unknown flags ", record.flags));
  if (method != 0) {
    fail(offset, cat(what, "is compressed (", method_name(method), ", method ", method,
                     "): torch stores its entries; unpack it and pack it again with `zip -0`"));
  }
  std::array<std::uint64_t*, 3> wanted{};
  std::size_t wanted_count = 0;
  if (record.entry.bytes == kFull32) wanted[wanted_count++] = &record.entry.bytes;
  if (stored == kFull32) wanted[wanted_count++] = &stored;
  if (record.begin == kFull32) wanted[wanted_count++] = &record.begin;
  read_zip64_field(rest.subspan(kRecordBytes + name_bytes, extra_bytes), offset + kRecordBytes + name_bytes, what,
                   std::span(wanted).first(wanted_count));
  if (stored != record.entry.bytes) {
    fail(offset, cat(what, "is stored, and yet has ", stored, " bytes here and ", record.entry.bytes, " unpacked"));
  }
  at += kRecordBytes + name_bytes + extra_bytes + comment_bytes;
  return record;
}

// Bytes of the descriptor at `at`: with or without a signature, with sizes of 4 or 8 bytes.
std::uint64_t DirectoryReader::descriptor_bytes(const Record& record, std::uint64_t at, std::uint64_t limit) const {
  std::array<std::byte, 24> buffer{};
  const std::span<std::byte> bytes = std::span(buffer).first(std::min<std::uint64_t>(buffer.size(), limit - at));
  file_.read_exact(bytes, at);
  const ZipEntry& entry = record.entry;
  for (const std::size_t start : {4, 0}) {
    if (start == 4 && (bytes.size() < 4 || number_at<std::uint32_t>(bytes, 0) != kDescriptorSignature)) continue;
    if (bytes.size() >= start + 20 && number_at<std::uint32_t>(bytes, start) == entry.crc32 &&
        number_at<std::uint64_t>(bytes, start + 4) == entry.bytes &&
        number_at<std::uint64_t>(bytes, start + 12) == entry.bytes) {
      return start + 20;
    }
    if (bytes.size() >= start + 12 && number_at<std::uint32_t>(bytes, start) == entry.crc32 &&
        number_at<std::uint32_t>(bytes, start + 4) == entry.bytes &&
        number_at<std::uint32_t>(bytes, start + 8) == entry.bytes) {
      return start + 12;
    }
  }
  fail(at,
       cat("entry ", quote_name(entry.name), ": expected a descriptor with the directory's checksum and size here"));
}

void DirectoryReader::check_local_header(Record& record, std::uint64_t directory_begin) const {
  ZipEntry& entry = record.entry;
  const std::string what = cat("entry ", quote_name(entry.name), ": ");
  if (record.begin > directory_begin || directory_begin - record.begin < kLocalBytes + entry.name.size()) {
    fail(std::min(record.begin, file_bytes_), cat(what, "its local header does not lie before the directory"));
  }
  std::vector<std::byte> header(kLocalBytes + entry.name.size());
  file_.read_exact(header, record.begin);
  const auto disagrees = [&](std::string_view field) {
    fail(record.begin, cat(what, "its local header and the directory disagree on ", field));
  };
  if (number_at<std::uint32_t>(header, 0) != kLocalSignature) fail(record.begin, cat(what, "has no local header here"));
  if (number_at<std::uint16_t>(header, 6) != record.flags) disagrees("the flags");
  if (number_at<std::uint16_t>(header, 8) != 0) disagrees("the compression");
  if (number_at<std::uint16_t>(header, 26) != entry.name.size() ||
      std::memcmp(header.data() + kLocalBytes, entry.name.data(), entry.name.size()) != 0) {
    disagrees("the name");
  }
  const std::uint64_t extra_bytes = number_at<std::uint16_t>(header, 28);
  const std::uint64_t after_name = directory_begin - record.begin - kLocalBytes - entry.name.size();
  if (after_name < extra_bytes || after_name - extra_bytes < entry.bytes) {
    fail(record.begin, cat(what, "its ", entry.bytes, " bytes go past the directory at ", directory_begin));
  }
  entry.offset = record.begin + kLocalBytes + entry.name.size() + extra_bytes;
  record.end = entry.offset + entry.bytes;

  // With a descriptor, 0 means "see there". A size of 32 full bits means "see the zip64 field", which must tell both.
  const bool streamed = (record.flags & kDescriptorFlag) != 0;
  const auto crc = number_at<std::uint32_t>(header, 14);
  if (crc != entry.crc32 && !(streamed && crc == 0)) disagrees("the checksum");
  std::uint64_t stored = number_at<std::uint32_t>(header, 18);
  std::uint64_t bytes = number_at<std::uint32_t>(header, 22);
  if (stored == kFull32 || bytes == kFull32) {
    std::vector<std::byte> extra(extra_bytes);
    const std::uint64_t extra_begin = record.begin + kLocalBytes + entry.name.size();
    file_.read_exact(extra, extra_begin);
    std::array<std::uint64_t*, 2> both{&bytes, &stored};
    read_zip64_field(extra, extra_begin, what, both);
  }
  const auto size_agrees = [&](std::uint64_t size) { return size == entry.bytes || (streamed && size == 0); };
  if (!size_agrees(stored) || !size_agrees(bytes)) disagrees("the size");
  if (streamed) record.end += descriptor_bytes(record, record.end, directory_begin);
}

std::vector<ZipEntry> DirectoryReader::read() {
  const Directory place = find_directory();
  std::vector<std::byte> directory(place.bytes);
  file_.read_exact(directory, place.begin);
  std::vector<ZipEntry> entries;
  std::vector<std::pair<std::uint64_t, std::uint64_t>> extents;
  std::vector<std::uint32_t> order;
  entries.reserve(place.entries);
  extents.reserve(place.entries);
  order.reserve(place.entries);
  std::uint64_t at = 0;
  for (std::uint64_t i = 0; i < place.entries; ++i) {
    Record record = parse_record(directory, at, place.begin);
    check_local_header(record, place.begin);
    extents.emplace_back(record.begin, record.end);
    order.push_back(static_cast<std::uint32_t>(i));
    entries.push_back(std::move(record.entry));
  }
  if (at != directory.size()) {
    fail(place.begin + at, cat("the directory goes on after the ", place.entries, " entries it is said to have"));
  }
  std::ranges::sort(order, {}, [&](std::uint32_t index) { return extents[index]; });
  for (std::size_t i = 1; i < order.size(); ++i) {
    if (extents[order[i]].first < extents[order[i - 1]].second) {
      fail(extents[order[i]].first, cat("the entries ", quote_name(entries[order[i - 1]].name), " and ",
                                        quote_name(entries[order[i]].name), " share bytes"));
    }
  }
  return entries;
}

}  // namespace

std::vector<ZipEntry> read_zip_directory(const File& file, std::uint64_t file_bytes) {
  return DirectoryReader(file, file_bytes).read();
}

std::vector<std::uint32_t> zip_entries_by_name(const std::vector<ZipEntry>& entries, const std::string& path) {
  const auto name = [&](std::uint32_t index) -> const std::string& { return entries[index].name; };
  std::vector<std::uint32_t> by_name(entries.size());
  std::iota(by_name.begin(), by_name.end(), 0u);
  std::ranges::sort(by_name, {}, name);
  const auto twice = std::ranges::adjacent_find(by_name, {}, name);
  if (twice != by_name.end()) {
    fail_at(path, entries[*twice].offset, cat("two entries are called ", quote_name(name(*twice))));
  }
  return by_name;
}

}  // namespace castor::formats
