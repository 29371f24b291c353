// JSON text in and out: a scanner of its own, trees by nlohmann, which is kept behind this header.
//
// Manifests, safetensors headers, logs and configs are all JSON that someone else may have written, so reading is
// strict: one document, UTF-8, no key twice in an object, bounded depth, bytes and number of values. nlohmann itself
// would keep one of two equal keys without a word and would recurse as deep as the text asks. Writing is canonical: one
// value, one text, and a double keeps its bits. `Json` keeps the order of keys; a lookup by key is therefore linear, so
// readers of large objects walk the members once instead of asking for each.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace castor {

/// A JSON value whose objects keep the order in which keys were added. Complete only where <nlohmann/json.hpp> is
/// included, which sources do and headers do not.
using Json = nlohmann::ordered_json;

/// What a reader accepts before it gives up on a text.
struct JsonLimits {
  std::size_t max_bytes = std::size_t{64} << 20;   ///< length of the text
  int max_depth = 64;                              ///< arrays and objects inside each other
  std::size_t max_values = std::size_t{16} << 20;  ///< scalars, arrays and objects in all
};

/// Where in the text an event was seen.
struct JsonPosition {
  std::uint64_t offset = 0;  ///< bytes from the start of the text, just past the token
  int line = 1;              ///< counted from 1
};

/// Receives a document one token at a time, in the order of the text.
class JsonEvents {
 public:
  virtual ~JsonEvents() = default;
  virtual void on_null(const JsonPosition& at) = 0;
  virtual void on_bool(bool value, const JsonPosition& at) = 0;
  /// An integer that fits 64 signed bits.
  virtual void on_integer(std::int64_t value, const JsonPosition& at) = 0;
  /// An integer above the signed range that fits 64 unsigned bits.
  virtual void on_large_integer(std::uint64_t value, const JsonPosition& at) = 0;
  /// A number with a fraction or exponent, or an integer beyond 64 bits.
  ///   text  the number as it was written
  virtual void on_float(double value, const std::string& text, const JsonPosition& at) = 0;
  virtual void on_string(std::string& value, const JsonPosition& at) = 0;
  virtual void on_object_begin(const JsonPosition& at) = 0;
  virtual void on_key(std::string& key, const JsonPosition& at) = 0;
  virtual void on_object_end() = 0;
  virtual void on_array_begin(const JsonPosition& at) = 0;
  virtual void on_array_end() = 0;
};

/// Reads one document and calls `events` for each token.
///   text    the whole document; a UTF-8 byte order mark at its start is skipped
///   file    the name that errors carry
/// Throws FormatError with the byte offset for text that is not strict JSON, has a key twice in one object or exceeds
/// a limit. What `events` throws passes through. No allocation is larger than the text, or 4 KiB; what is held at a
/// time is the keys of the objects that are open.
void scan_json(std::string_view text, const std::string& file, JsonEvents& events, const JsonLimits& limits = {});

/// Reads one document into a tree. Parameters and errors are those of `scan_json`. A tree takes more memory than its
/// text, in pieces that may be larger than the text: about 50 bytes a byte at worst, for many short members.
Json parse_json(std::string_view text, const std::string& file, const JsonLimits& limits = {});

/// Reads a whole JSON file. Throws IoError if it cannot be read or is longer than the limit, FormatError for its
/// contents.
Json read_json_file(const std::string& path, const JsonLimits& limits = {});

/// The shortest text that reads back as the same double, always with a '.', an 'e' or a name in it, so that a reader
/// keeps it a float: "1.0", "1e-05", "0.1". Non-finite values give "nan", "inf" and "-inf".
std::string dump_double(double value);

/// The canonical text of a value. Doubles are written by `dump_double`; JSON has no word for a non-finite number, so
/// those become the strings "nan", "inf" and "-inf", which `JsonCursor::number` reads back.
///   indent   spaces per level; negative gives one line without spaces after ',' and ':'
/// Throws FormatError if a string is not UTF-8.
std::string dump_json(const Json& value, int indent = -1);

/// `text` in double quotes with JSON's escapes; bytes above 127 stay as they are.
std::string quote_json(std::string_view text);

/// True if the bytes are well-formed UTF-8 (no overlong forms, no surrogates, nothing above U+10FFFF). On false,
/// `*bad_offset`, where given, is the first byte that does not fit.
bool is_utf8(std::string_view bytes, std::size_t* bad_offset = nullptr);

/// A value of a parsed document together with its place in it, so that a reader can ask for typed members and every
/// refusal names file and place: "manifest.json: at tensors/3/shape: expected an integer from 0 to 4096, got -1".
/// It refers to the document, which must outlive it. All accessors throw FormatError; its offset is 0, since a tree no
/// longer knows its bytes.
class JsonCursor {
 public:
  /// Starts at the root of a document.
  ///   file   the name that errors carry
  JsonCursor(const Json& root, std::string file);

  /// The member of an object. Throws if this is no object or lacks the key.
  JsonCursor at(std::string_view key) const;
  /// The element of an array, from 0. Throws if this is no array or is shorter.
  JsonCursor at(std::size_t index) const;
  /// True if this is an object that has the key. Throws if this is no object.
  bool has(std::string_view key) const;
  /// Number of elements of an array or members of an object. Throws for other values.
  std::size_t size() const;
  /// The members of an object in their order. Throws if this is no object.
  std::vector<std::pair<std::string, JsonCursor>> members() const;

  bool is_null() const;
  /// Throws if this is not a boolean.
  bool boolean() const;
  /// Throws if this is not an integer within [low, high].
  std::int64_t integer(std::int64_t low = std::numeric_limits<std::int64_t>::min(),
                       std::int64_t high = std::numeric_limits<std::int64_t>::max()) const;
  /// Throws if this is not an integer within [0, high].
  std::uint64_t unsigned_integer(std::uint64_t high = std::numeric_limits<std::uint64_t>::max()) const;
  /// A number, or one of the strings "nan", "inf", "-inf". Throws otherwise.
  double number() const;
  /// Throws if this is not a string.
  const std::string& string() const;

  /// The place in the document as "tensors/3/shape"; empty at the root.
  const std::string& place() const { return place_; }
  /// The value itself.
  const Json& value() const { return *value_; }
  /// Throws FormatError with file, place and `text`: for checks that only the reader knows.
  [[noreturn]] void fail(const std::string& text) const;

 private:
  JsonCursor(const Json* value, std::string file, std::string place);
  std::string child_place(std::string_view name) const;

  const Json* value_;
  std::string file_;
  std::string place_;
};

}  // namespace castor
