// Zip archives: entries come back with their bytes, and every lie that the format allows (sizes, offsets, names, zip64
// fields, copies that disagree, shared bytes) is refused at its byte. Archives are composed by
// tests/support/zip_writer.h and falsified field by field.
#include "formats/zip_archive.h"

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

#include "core/base/file_memory.h"
#include "tests/support/zip_writer.h"

namespace castor::formats {
namespace {

using test::patch;
using test::write_zip;
using test::WrittenZip;

// Offsets of fields in the records.
constexpr std::size_t kLocalFlags = 6, kLocalMethod = 8, kLocalCrc = 14, kLocalStored = 18, kLocalBytes = 22,
                      kLocalName = 26, kLocalExtra = 28;
constexpr std::size_t kFlags = 8, kMethod = 10, kCrc = 16, kStored = 20, kBytes = 24, kNameBytes = 28, kExtraBytes = 30,
                      kDisk = 34, kLocalOffset = 42;

std::string text_of(const std::vector<std::byte>& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

WrittenZip two_entries(bool streamed = false) {
  return write_zip({{"m/data.pkl", "pickle"}, {"m/data/0", std::string(100, 'x')}}, streamed);
}

ZipArchive open(const std::string& contents, MemoryFileSystem& files) {
  write_file_atomically("/a.zip", contents, files);
  return ZipArchive::open("/a.zip", files);
}

void check_refused(const std::string& contents, std::string_view reason) {
  MemoryFileSystem files;
  try {
    open(contents, files);
  } catch (const FormatError& error) {
    const std::string text = error.what();
    INFO(text);
    CHECK(text.find(reason) != std::string::npos);
    CHECK(error.file == "/a.zip");
    CHECK(error.offset <= contents.size());
    return;
  }
  FAIL("accepted, expected: " << reason);
}

// The plain archive of two entries with one field of the second changed.
void check_changed(std::size_t place_in_record, std::uint64_t value, int bytes, std::string_view reason) {
  WrittenZip zip = two_entries();
  patch(zip.bytes, zip.records[1] + place_in_record, value, bytes);
  check_refused(zip.bytes, reason);
}

void check_local_changed(std::size_t place_in_header, std::uint64_t value, int bytes, std::string_view reason,
                         bool streamed = false) {
  WrittenZip zip = two_entries(streamed);
  patch(zip.bytes, zip.locals[1] + place_in_header, value, bytes);
  check_refused(zip.bytes, reason);
}

// Replaces the directory and what follows by `directory` and end records for `entries`.
std::string with_directory(const WrittenZip& zip, const std::string& directory, std::size_t entries) {
  std::string out = zip.bytes.substr(0, zip.directory) + directory;
  test::append_number(out, 0x06054B50, 4);
  test::append_number(out, 0, 4);
  test::append_number(out, entries, 2);
  test::append_number(out, entries, 2);
  test::append_number(out, directory.size(), 4);
  test::append_number(out, zip.directory, 4);
  test::append_number(out, 0, 2);
  return out;
}

TEST_CASE("entries of plain and of streamed archives come back whole and in parts") {
  for (const bool streamed : {false, true}) {
    MemoryFileSystem files;
    std::string large(3'000'000, '\0');
    for (std::size_t i = 0; i < large.size(); ++i) large[i] = static_cast<char>(i * i >> 7);
    const WrittenZip zip =
        write_zip({{"m/b", "two"}, {"m/empty", ""}, {"m/\xc3\xa9", large}, {"m/folder/", ""}}, streamed);
    const ZipArchive archive = open(zip.bytes, files);
    CHECK(archive.file_bytes() == zip.bytes.size());
    REQUIRE(archive.entries().size() == 4);
    CHECK(archive.entries()[0].name == "m/b");
    CHECK(text_of(archive.read(*archive.find("m/b"))) == "two");
    CHECK(archive.read(*archive.find("m/empty")).empty());
    const ZipEntry& entry = *archive.find("m/\xc3\xa9");
    CHECK(entry.offset == zip.data[2]);
    CHECK(entry.bytes == large.size());
    CHECK(text_of(archive.read(entry)) == large);
    CHECK_NOTHROW(archive.verify(entry));
    std::vector<std::byte> part(1000);
    archive.read(entry, 1'234'567, part);
    CHECK(text_of(part) == large.substr(1'234'567, 1000));
    CHECK_THROWS_AS(archive.read(entry, large.size() - 999, part), ShapeError);
    CHECK_THROWS_AS(archive.read(entry, ~std::uint64_t{0}, part), ShapeError);
    CHECK(archive.find("m/nothing") == nullptr);
  }
}

TEST_CASE("an archive without entries is an archive") {
  MemoryFileSystem files;
  CHECK(open(write_zip({}).bytes, files).entries().empty());
  CHECK(open(write_zip({}, true).bytes, files).entries().empty());
}

TEST_CASE("a changed byte of an entry is found by its checksum") {
  for (const bool streamed : {false, true}) {
    MemoryFileSystem files;
    WrittenZip zip = two_entries(streamed);
    zip.bytes[zip.data[1] + 50] ^= 1;
    const ZipArchive archive = open(zip.bytes, files);
    const ZipEntry& entry = *archive.find("m/data/0");
    CHECK_THROWS_WITH_AS(archive.read(entry), doctest::Contains("CRC-32"), FormatError);
    CHECK_THROWS_WITH_AS(archive.verify(entry), doctest::Contains("\"m/data/0\""), FormatError);
    CHECK_NOTHROW(archive.verify(*archive.find("m/data.pkl")));
  }
}

TEST_CASE("a file that is cut anywhere, or has bytes added, is refused") {
  for (const bool streamed : {false, true}) {
    const std::string whole = two_entries(streamed).bytes;
    for (std::size_t length = 0; length < whole.size(); ++length) check_refused(whole.substr(0, length), "zip");
    check_refused(whole + '\0', "end record");
    check_refused("x" + whole, streamed ? "in the 56 bytes before" : "expected it to end at");
  }
}

TEST_CASE("what is compressed, encrypted, on another disk or commented is refused by name") {
  check_changed(kMethod, 8, 2, "\"m/data/0\": is compressed (deflate, method 8)");
  check_changed(kMethod, 99, 2, "is compressed (unknown, method 99)");
  check_changed(kFlags, 0x0801, 2, "\"m/data/0\": is encrypted");
  check_changed(kFlags, 0x0820, 2, "unknown flags");
  check_changed(kDisk, 1, 2, "another disk");
  WrittenZip zip = two_entries();
  patch(zip.bytes, zip.end + 4, 1, 2);
  check_refused(zip.bytes, "several disks");
  zip = two_entries();
  patch(zip.bytes, zip.end + 20, 4, 2);
  check_refused(zip.bytes + "note", "without a comment");
}

TEST_CASE("names that leave their folder or mean something to a file system are refused") {
  const std::pair<std::string, std::string_view> names[] = {{"../x", "leaves its folder"},
                                                            {"m/../../x", "leaves its folder"},
                                                            {"m/..", "leaves its folder"},
                                                            {"/etc/passwd", "an absolute"},
                                                            {"C:/x", "an absolute"},
                                                            {"m\\x", "a backslash"},
                                                            {"..\\x", "a backslash"},
                                                            {"", "is empty"},
                                                            {std::string("m/\0x", 4), "a control"},
                                                            {"m/\nx", "a control"},
                                                            {"m/\xff", "not UTF-8"}};
  for (const auto& [name, reason] : names) {
    INFO(name);
    check_refused(write_zip({{"m/a", "1"}, {name, "2"}}).bytes, reason);
  }
  MemoryFileSystem files;
  CHECK(open(write_zip({{"m/..a", "1"}, {"m/a..", "2"}, {"...", "3"}}).bytes, files).entries().size() == 3);
}

TEST_CASE("two entries of one name are refused") {
  check_refused(write_zip({{"m/a", "1"}, {"m/b", "2"}, {"m/a", "3"}}).bytes, "two entries are called \"m/a\"");
}

TEST_CASE("entries that share bytes are refused, so that a small file stays small") {
  // Both records lead to one local header.
  WrittenZip zip = write_zip({{"m/a", "same"}, {"m/b", "same"}});
  const std::string record = zip.bytes.substr(zip.records[0], 49);
  std::string second = record;
  second[48] = 'b';
  check_refused(with_directory(zip, record + second, 2), "disagree on the name");
  check_refused(with_directory(zip, record + record, 2), "share bytes");

  // An entry whose data is the next entry, header and all.
  zip = write_zip({{"m/a", std::string(10, 'x')}, {"m/b", "inner"}});
  const std::size_t grown = zip.directory - zip.data[0];
  for (const std::size_t place : {kStored, kBytes}) patch(zip.bytes, zip.records[0] + place, grown, 4);
  for (const std::size_t place : {kLocalStored, kLocalBytes}) patch(zip.bytes, zip.locals[0] + place, grown, 4);
  check_refused(zip.bytes, "\"m/a\" and \"m/b\" share bytes");
}

TEST_CASE("sizes and offsets outside of the file are refused, whatever their sums wrap to") {
  check_changed(kLocalOffset, 0x7FFFFFFF, 4, "does not lie before the directory");
  check_changed(kLocalOffset, 1, 4, "has no local header");
  WrittenZip zip = two_entries();
  for (const std::size_t place : {kStored, kBytes}) patch(zip.bytes, zip.records[1] + place, 0x7FFFFFFF, 4);
  check_refused(zip.bytes, "go past the directory");
  check_changed(kNameBytes, 0xFFFF, 2, "go past the directory");
  check_changed(kExtraBytes, 0xFFFF, 2, "go past the directory");
  check_changed(kStored, 99, 4, "is stored, and yet");
  check_local_changed(kLocalExtra, 0xFFFF, 2, "go past the directory");

  zip = two_entries();
  patch(zip.bytes, zip.end + 16, zip.directory + 1, 4);
  check_refused(zip.bytes, "expected it to end at");
  zip = two_entries();
  patch(zip.bytes, zip.end + 12, 0x7FFFFFFF, 4);
  check_refused(zip.bytes, "expected it to end at");
}

TEST_CASE("a false number of entries is refused before anything is made from it") {
  for (const std::uint64_t entries : {1, 3, 60000}) {
    WrittenZip zip = two_entries();
    patch(zip.bytes, zip.end + 8, entries, 2);
    patch(zip.bytes, zip.end + 10, entries, 2);
    check_refused(zip.bytes, entries == 1   ? "the directory goes on"
                             : entries == 3 ? "expected the directory's record"
                                            : "cannot hold so many");
  }
  WrittenZip zip = two_entries(true);
  for (const std::size_t place : {24, 32}) patch(zip.bytes, zip.end64 + place, std::uint64_t{1} << 60, 8);
  for (const std::size_t place : {8, 10}) patch(zip.bytes, zip.end + place, 0xFFFF, 2);
  check_refused(zip.bytes, "cannot hold so many");
}

TEST_CASE("local headers and descriptors must repeat what the directory says") {
  check_local_changed(0, 0, 1, "has no local header");
  check_local_changed(kLocalFlags, 0, 2, "disagree on the flags");
  check_local_changed(kLocalMethod, 8, 2, "disagree on the compression");
  check_local_changed(kLocalCrc, 1, 4, "disagree on the checksum");
  check_local_changed(kLocalStored, 99, 4, "disagree on the size");
  check_local_changed(kLocalBytes, 0, 4, "disagree on the size");
  check_local_changed(kLocalName, 7, 2, "disagree on the name");
  check_local_changed(kLocalName + 4, 'n', 1, "disagree on the name");
  check_local_changed(kLocalBytes, 99, 4, "disagree on the size", true);
  check_local_changed(kLocalCrc, 1, 4, "disagree on the checksum", true);
  for (const std::size_t place : {0, 4, 8, 12}) {
    WrittenZip zip = two_entries(true);
    zip.bytes[zip.data[1] + 100 + place] ^= 1;
    check_refused(zip.bytes, "expected a descriptor");
  }
}

TEST_CASE("a descriptor may lack its signature and may count in 64 bits") {
  const WrittenZip streamed = write_zip({{"m/a", "last"}}, true);
  const std::string signature_and_crc = streamed.bytes.substr(streamed.data[0] + 4, 8);
  const std::string record = streamed.bytes.substr(streamed.directory, streamed.end64 - streamed.directory);
  for (const int number_bytes : {4, 8}) {
    for (const std::size_t start : {0, 4}) {
      WrittenZip zip = streamed;
      zip.bytes = zip.bytes.substr(0, zip.data[0] + 4) + signature_and_crc.substr(start);
      for (int i = 0; i < 2; ++i) test::append_number(zip.bytes, 4, number_bytes);
      zip.directory = zip.bytes.size();
      MemoryFileSystem files;
      const ZipArchive archive = open(with_directory(zip, record, 1), files);
      CHECK(text_of(archive.read(archive.entries()[0])) == "last");
    }
  }
}

// One entry whose record says its sizes, its offset or both in a zip64 field of the given numbers.
std::string with_zip64_field(const std::vector<std::uint64_t>& numbers, bool sizes, bool offset, int repeats = 1) {
  const WrittenZip zip = write_zip({{"m/a", "1234"}});
  std::string record = zip.bytes.substr(zip.records[0], 49);
  for (const std::size_t place : {kStored, kBytes}) {
    if (sizes) patch(record, place, 0xFFFFFFFF, 4);
  }
  if (offset) patch(record, kLocalOffset, 0xFFFFFFFF, 4);
  patch(record, kExtraBytes, static_cast<std::uint64_t>(repeats) * (4 + 8 * numbers.size()), 2);
  for (int i = 0; i < repeats; ++i) {
    test::append_number(record, 1, 2);
    test::append_number(record, 8 * numbers.size(), 2);
    for (const std::uint64_t number : numbers) test::append_number(record, number, 8);
  }
  return with_directory(zip, record, 1);
}

TEST_CASE("zip64 fields count where 32 bits are full, and nowhere else") {
  MemoryFileSystem files;
  CHECK(open(with_zip64_field({4, 4, 0}, true, true), files).entries()[0].bytes == 4);
  CHECK(open(with_zip64_field({4, 4}, true, false), files).entries()[0].bytes == 4);
  CHECK(open(with_zip64_field({0}, false, true), files).entries()[0].offset == 33);
  check_refused(with_zip64_field({4, 4}, false, false), "expected a zip64 field of 0 bytes");
  check_refused(with_zip64_field({4, 4, 0}, true, false), "expected a zip64 field of 16 bytes");
  check_refused(with_zip64_field({4}, true, false), "expected a zip64 field of 16 bytes");
  check_refused(with_zip64_field({4, 4}, true, false, 0), "has none");
  check_refused(with_zip64_field({4, 4}, true, false, 2), "two zip64 fields");
  check_refused(with_zip64_field({5, 4}, true, false), "is stored, and yet");
  check_refused(with_zip64_field({~std::uint64_t{0}, ~std::uint64_t{0}}, true, false), "go past the directory");
  check_refused(with_zip64_field({4, 4, ~std::uint64_t{0} - 20}, true, true), "does not lie before the directory");
}

TEST_CASE("zip64 end records must lie where they are said to and agree with the short one") {
  const auto changed = [](std::size_t place, std::uint64_t value, int bytes) {
    WrittenZip zip = two_entries(true);
    patch(zip.bytes, zip.end64 + place, value, bytes);
    return zip.bytes;
  };
  check_refused(changed(0, 0, 4), "expected a zip64 end record");
  check_refused(changed(4, 45, 8), "expected a zip64 end record");
  check_refused(changed(16, 1, 4), "several disks");
  check_refused(changed(24, 3, 8), "several disks");
  check_refused(changed(40, 1, 8), "tell different sizes");
  check_refused(changed(48, 1, 8), "tell different sizes");
  check_refused(changed(56 + 8, 0, 8), "in the 56 bytes before");
  check_refused(changed(56 + 16, 2, 4), "several disks");
  WrittenZip zip = two_entries();
  patch(zip.bytes, zip.end + 12, 0xFFFFFFFF, 4);
  check_refused(zip.bytes, "there is none before it");
  zip = two_entries(true);
  for (const std::size_t place : {12, 16}) patch(zip.bytes, zip.end + place, 0xFFFFFFFF, 4);
  MemoryFileSystem files;
  CHECK(open(zip.bytes, files).entries().size() == 2);
}

TEST_CASE("every changed byte of an archive is refused, or changes nothing that is read") {
  for (const bool streamed : {false, true}) {
    const WrittenZip zip = two_entries(streamed);
    for (std::size_t at = 0; at < zip.bytes.size(); ++at) {
      std::string contents = zip.bytes;
      contents[at] = static_cast<char>(contents[at] ^ 0x15);
      MemoryFileSystem files;
      try {
        const ZipArchive archive = open(contents, files);
        for (const ZipEntry& entry : archive.entries()) {
          const std::string text = text_of(archive.read(entry));
          CHECK((text == "pickle" || text == std::string(100, 'x')));
        }
      } catch (const FormatError& error) {
        CHECK(error.offset <= contents.size());
      }
    }
  }
}

}  // namespace
}  // namespace castor::formats
