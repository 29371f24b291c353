// Pieces of pickles as bytes, and the archive around one: what tests of the PyTorch reader put together.
//
// Delicate: the pieces are written from the meaning of the opcodes (CPython, Lib/pickletools.py) and check nothing, so
// that wrong pickles are as easy to write as right ones.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tests/support/zip_writer.h"

namespace castor::test::pickle {

/// One opcode byte and a little-endian argument of `bytes` bytes.
inline std::string op(unsigned char opcode, std::uint64_t argument = 0, int bytes = 0) {
  std::string out(1, static_cast<char>(opcode));
  append_number(out, argument, bytes);
  return out;
}
/// A text (BINUNICODE).
inline std::string text(std::string_view value) { return op('X', value.size(), 4).append(value); }
/// An integer of 8 bytes (LONG1).
inline std::string integer(std::int64_t value) {
  std::string out = op(0x8A, 8, 1);
  append_number(out, static_cast<std::uint64_t>(value), 8);
  return out;
}
/// A class or function (GLOBAL).
inline std::string global(std::string_view module, std::string_view name) {
  return op('c').append(module).append("\n").append(name).append("\n");
}
/// The pieces between a mark and an opcode: 't' a tuple, 'l' a list, 'd' a dict.
inline std::string group(std::initializer_list<std::string> items, char opcode) {
  std::string out = "(";
  for (const std::string& item : items) out += item;
  return out + opcode;
}
inline std::string tuple(std::initializer_list<std::string> items) { return group(items, 't'); }
inline std::string list(std::initializer_list<std::string> items) { return group(items, 'l'); }
/// Keys and values in turn.
inline std::string dict(std::initializer_list<std::string> items) { return group(items, 'd'); }
inline std::string integers(const std::vector<std::int64_t>& values) {
  std::string out = "(";
  for (const std::int64_t value : values) out += integer(value);
  return out + "t";
}
/// A call (REDUCE).
inline std::string call(const std::string& callee, const std::string& args) { return callee + args + "R"; }
/// A whole pickle of protocol 2.
inline std::string whole(const std::string& value) { return op(0x80, 2, 1) + value + "."; }

/// The reference to a storage; `type` as "FloatStorage".
inline std::string storage(std::string_view type, std::string_view key, std::int64_t numel) {
  return tuple({text("storage"), global("torch", type), text(key), text("cpu"), integer(numel)}) + "Q";
}
/// A tensor as torch writes it.
inline std::string tensor(const std::string& storage_reference, std::int64_t offset,
                          const std::vector<std::int64_t>& shape, const std::vector<std::int64_t>& strides) {
  return call(global("torch._utils", "_rebuild_tensor_v2"),
              tuple({storage_reference, integer(offset), integers(shape), integers(strides), op(0x89),
                     call(global("collections", "OrderedDict"), ")")}));
}

/// A checkpoint "m" of this pickle and storages {key, bytes}, streamed as torch writes it.
inline WrittenZip checkpoint(const std::string& pickle_bytes,
                             const std::vector<std::pair<std::string, std::string>>& storages = {}) {
  std::vector<std::pair<std::string, std::string>> entries{{"m/data.pkl", pickle_bytes}};
  for (const auto& [key, bytes] : storages) entries.emplace_back("m/data/" + key, bytes);
  entries.emplace_back("m/version", "3\n");
  return write_zip(entries, true);
}

}  // namespace castor::test::pickle
