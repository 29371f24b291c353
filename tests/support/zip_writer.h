// Zip archives of stored entries, composed byte by byte for tests and the fuzz target, with the places of their records
// so that a test can falsify any field.
//
// Delicate: it shares nothing with the reader, checksums included (zlib's), and writes two dialects: plain, as `zip -0`
// does, and streamed, as torch does (zeros in local headers, descriptors behind the data, padding, zip64 end records).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <zlib.h>

namespace castor::test {

/// Appends a little-endian number of `bytes` bytes; what a 64-bit number does not reach is 0.
inline void append_number(std::string& to, std::uint64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i, value >>= 8) to += static_cast<char>(value & 0xFF);
}

/// Overwrites a little-endian number of `bytes` bytes at `at`.
inline void patch(std::string& contents, std::size_t at, std::uint64_t value, int bytes) {
  std::string number;
  append_number(number, value, bytes);
  contents.replace(at, number.size(), number);
}

/// An archive and where its parts begin.
struct WrittenZip {
  std::string bytes;
  std::vector<std::size_t> locals;   ///< local headers, in the order of entries
  std::vector<std::size_t> data;     ///< data of the entries
  std::vector<std::size_t> records;  ///< the directory's records
  std::size_t directory = 0;
  std::size_t end64 = 0;  ///< zip64 end record; 0 without
  std::size_t end = 0;    ///< end record
};

/// Writes entries {name, data}. `streamed` as torch writes them.
inline WrittenZip write_zip(const std::vector<std::pair<std::string, std::string>>& entries, bool streamed = false) {
  WrittenZip zip;
  std::string& out = zip.bytes;
  const auto crc_of = [](const std::string& data) {
    return crc32_z(0, reinterpret_cast<const Bytef*>(data.data()), data.size());
  };
  const std::uint16_t flags = streamed ? 0x0808 : 0x0800;
  for (const auto& [name, data] : entries) {
    zip.locals.push_back(out.size());
    append_number(out, 0x04034B50, 4);
    append_number(out, 0, 2);
    append_number(out, flags, 2);
    append_number(out, 0, 6);  // method, time, date
    append_number(out, streamed ? 0 : crc_of(data), 4);
    append_number(out, streamed ? 0 : data.size(), 4);
    append_number(out, streamed ? 0 : data.size(), 4);
    append_number(out, name.size(), 2);
    const std::size_t before_padding = out.size() + 2 + name.size() + 4;
    const std::size_t padding = streamed ? (64 - before_padding % 64) % 64 : 0;
    append_number(out, streamed ? 4 + padding : 0, 2);
    out += name;
    if (streamed) {
      out += "FB";
      append_number(out, padding, 2);
      out.append(padding, 'Z');
    }
    zip.data.push_back(out.size());
    out += data;
    if (streamed) {
      append_number(out, 0x08074B50, 4);
      append_number(out, crc_of(data), 4);
      append_number(out, data.size(), 4);
      append_number(out, data.size(), 4);
    }
  }
  zip.directory = out.size();
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const auto& [name, data] = entries[i];
    zip.records.push_back(out.size());
    append_number(out, 0x02014B50, 4);
    append_number(out, 0, 4);
    append_number(out, flags, 2);
    append_number(out, 0, 6);
    append_number(out, crc_of(data), 4);
    append_number(out, data.size(), 4);
    append_number(out, data.size(), 4);
    append_number(out, name.size(), 2);
    append_number(out, 0, 12);  // extra, comment, disk, attributes
    append_number(out, zip.locals[i], 4);
    out += name;
  }
  const std::size_t directory_bytes = out.size() - zip.directory;
  if (streamed) {
    zip.end64 = out.size();
    append_number(out, 0x06064B50, 4);
    append_number(out, 44, 8);
    append_number(out, 0x032D031E, 4);
    append_number(out, 0, 8);
    append_number(out, entries.size(), 8);
    append_number(out, entries.size(), 8);
    append_number(out, directory_bytes, 8);
    append_number(out, zip.directory, 8);
    append_number(out, 0x07064B50, 4);
    append_number(out, 0, 4);
    append_number(out, zip.end64, 8);
    append_number(out, 1, 4);
  }
  zip.end = out.size();
  append_number(out, 0x06054B50, 4);
  append_number(out, 0, 4);
  append_number(out, entries.size(), 2);
  append_number(out, entries.size(), 2);
  append_number(out, directory_bytes, 4);
  append_number(out, zip.directory, 4);
  append_number(out, 0, 2);
  return zip;
}

}  // namespace castor::test
