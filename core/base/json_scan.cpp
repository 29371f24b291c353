// Strict JSON, read token by token from a text in memory.
//
// No library, for one promise that libraries do not make: whatever the text, no allocation here is larger than the
// text. A token is measured before it is copied, and what grows with the text (open containers, the keys of an object)
// lies in nodes or short segments. Delicate: a token's position is the byte just past it; errors name the byte at
// fault.
#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <deque>
#include <limits>
#include <set>
#include <system_error>

#include "core/base/error.h"
#include "core/base/file_error.h"
#include "core/base/json.h"

namespace castor {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// The value of a hexadecimal digit, or -1.
int hex_value(char c) {
  if (is_digit(c)) return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

void append_utf8(std::string& out, std::uint32_t code) {
  const auto tail = [&](int shift) { out += static_cast<char>(0x80 | (code >> shift & 0x3F)); };
  if (code < 0x80) {
    out += static_cast<char>(code);
  } else if (code < 0x800) {
    out += static_cast<char>(0xC0 | code >> 6);
    tail(0);
  } else if (code < 0x10000) {
    out += static_cast<char>(0xE0 | code >> 12);
    tail(6);
    tail(0);
  } else {
    out += static_cast<char>(0xF0 | code >> 18);
    tail(12);
    tail(6);
    tail(0);
  }
}

class Scanner {
 public:
  Scanner(std::string_view text, const std::string& file, JsonEvents& events, const JsonLimits& limits)
      : text_(text), file_(file), events_(events), limits_(limits) {}

  void run() {
    if (text_.starts_with("\xEF\xBB\xBF")) at_ = 3;
    value();
    while (!open_.empty()) {
      if (open_.back().is_object) {
        next_member();
      } else {
        next_element();
      }
    }
    skip_space();
    if (at_ < text_.size()) malformed("expected nothing after the value");
  }

 private:
  // An object or array that has begun and not ended.
  struct Open {
    bool is_object = false;
    bool is_empty = true;
    std::set<std::string> keys;
  };

  JsonPosition position() const { return {at_, line_}; }
  // The next byte, or 0, which no valid text has, at the end.
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  // Throws for the byte at `at_`.
  [[noreturn]] void malformed(std::string_view expected) const {
    throw FormatError(cat(file_, ":", line_, ": not valid JSON at byte ", at_, ": ",
                          at_ >= text_.size() ? std::string("the text ends too early")
                                              : cat(expected, ", got ", quote_name(text_.substr(at_, 1)))),
                      file_, at_);
  }
  [[noreturn]] void refuse(const std::string& what) const {
    throw FormatError(cat(file_, ":", line_, ": JSON refused at byte ", at_, ": ", what), file_, at_);
  }

  void skip_space() {
    for (; at_ < text_.size(); ++at_) {
      const char c = text_[at_];
      if (c == '\n') {
        ++line_;
      } else if (c != ' ' && c != '\t' && c != '\r') {
        return;
      }
    }
  }

  void count_value() {
    if (++values_ > limits_.max_values) refuse(cat("more than ", limits_.max_values, " values"));
  }

  void begin(bool is_object) {
    ++at_;
    count_value();
    if (open_.size() >= static_cast<std::size_t>(std::max(limits_.max_depth, 0))) {
      refuse(cat("arrays and objects nest deeper than ", limits_.max_depth));
    }
    open_.emplace_back().is_object = is_object;
    is_object ? events_.on_object_begin(position()) : events_.on_array_begin(position());
  }

  // Reads a whole scalar, or the beginning of an object or array.
  void value() {
    skip_space();
    switch (peek()) {
      case '{':
        return begin(true);
      case '[':
        return begin(false);
      case '"': {
        std::string text = string();
        count_value();
        return events_.on_string(text, position());
      }
      case 't':
        word("true");
        return events_.on_bool(true, position());
      case 'f':
        word("false");
        return events_.on_bool(false, position());
      case 'n':
        word("null");
        return events_.on_null(position());
      default:
        number();
    }
  }

  // Reads on in the innermost array: an element, or the end.
  void next_element() {
    skip_space();
    if (peek() == ']') {
      ++at_;
      open_.pop_back();
      return events_.on_array_end();
    }
    if (!open_.back().is_empty) {
      if (peek() != ',') malformed("expected ',' or ']'");
      ++at_;
    }
    open_.back().is_empty = false;
    value();
  }

  // Reads on in the innermost object: a key and its value, or the end.
  void next_member() {
    skip_space();
    if (peek() == '}') {
      ++at_;
      open_.pop_back();
      return events_.on_object_end();
    }
    Open& object = open_.back();
    if (!object.is_empty) {
      if (peek() != ',') malformed("expected ',' or '}'");
      ++at_;
      skip_space();
    }
    object.is_empty = false;
    if (peek() != '"') malformed("expected a key in double quotes");
    std::string key = string();
    if (!object.keys.insert(key).second) refuse(cat("key ", quote_name(key), " appears twice in one object"));
    events_.on_key(key, position());
    skip_space();
    if (peek() != ':') malformed("expected ':'");
    ++at_;
    value();
  }

  void word(std::string_view expected) {
    for (const char c : expected) {
      if (peek() != c) malformed(cat("expected the word ", expected));
      ++at_;
    }
    count_value();
  }

  // The string that begins at `at_`, decoded.
  std::string string() {
    const std::size_t begin = ++at_;
    bool has_escapes = false;
    for (; peek() != '"'; ++at_) {
      if (static_cast<unsigned char>(peek()) < 0x20) malformed("expected no control character in a string");
      if (peek() != '\\') continue;
      has_escapes = true;
      if (++at_ == text_.size()) malformed("");
    }
    const std::string_view raw = text_.substr(begin, at_ - begin);
    if (std::size_t bad = 0; !is_utf8(raw, &bad)) {
      at_ = begin + bad;
      malformed("expected UTF-8");
    }
    if (!has_escapes) {
      ++at_;
      return std::string(raw);
    }
    at_ = begin;
    std::string decoded;
    decoded.reserve(raw.size());
    while (peek() != '"') {
      const std::size_t run = text_.find_first_of("\\\"", at_) - at_;
      decoded += text_.substr(at_, run);
      at_ += run;
      if (peek() == '\\') escape(decoded);
    }
    ++at_;
    return decoded;
  }

  void escape(std::string& out) {
    constexpr std::string_view kLetters = "\"\\/bfnrt", kMeanings = "\"\\/\b\f\n\r\t";
    ++at_;
    if (peek() != 'u') {
      const std::size_t letter = kLetters.find(peek());
      if (letter == std::string_view::npos) malformed("expected one of \"\\/bfnrtu after a backslash");
      out += kMeanings[letter];
      ++at_;
      return;
    }
    std::uint32_t code = four_digits();
    if (code >= 0xDC00 && code <= 0xDFFF) malformed("expected the first half of a surrogate pair before this");
    if (code >= 0xD800 && code <= 0xDBFF) {
      if (text_.substr(at_, 2) != "\\u") malformed("expected the second half of a surrogate pair");
      ++at_;
      const std::uint32_t low = four_digits();
      if (low < 0xDC00 || low > 0xDFFF) malformed("expected the second half of a surrogate pair before this");
      code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    }
    append_utf8(out, code);
  }

  // The number after the 'u' at `at_`.
  std::uint32_t four_digits() {
    std::uint32_t code = 0;
    ++at_;
    for (int i = 0; i < 4; ++i, ++at_) {
      const int digit = hex_value(peek());
      if (digit < 0) malformed("expected four hexadecimal digits after \\u");
      code = code << 4 | static_cast<std::uint32_t>(digit);
    }
    return code;
  }

  void digits() {
    if (!is_digit(peek())) malformed("expected a digit");
    while (is_digit(peek())) ++at_;
  }

  void number() {
    const std::size_t begin = at_;
    if (peek() != '-' && !is_digit(peek())) malformed("expected a value");
    if (peek() == '-') ++at_;
    if (peek() == '0') {
      ++at_;
    } else {
      digits();
    }
    bool is_integer = true;
    if (peek() == '.') {
      is_integer = false;
      ++at_;
      digits();
    }
    if (peek() == 'e' || peek() == 'E') {
      is_integer = false;
      ++at_;
      if (peek() == '+' || peek() == '-') ++at_;
      digits();
    }
    count_value();
    const std::string_view text = text_.substr(begin, at_ - begin);
    const char* const end = text.data() + text.size();
    std::int64_t integer = 0;
    std::uint64_t large = 0;
    if (is_integer && std::from_chars(text.data(), end, integer).ec == std::errc()) {
      return events_.on_integer(integer, position());
    }
    if (is_integer && std::from_chars(text.data(), end, large).ec == std::errc()) {
      return events_.on_large_integer(large, position());
    }
    const std::string copy(text);
    double real = 0;
    if (std::from_chars(text.data(), end, real).ec != std::errc()) {
      real = std::strtod(copy.c_str(), nullptr);  // tells too large, infinite, from too small, zero
      if (real > std::numeric_limits<double>::max() || real < std::numeric_limits<double>::lowest()) {
        refuse(cat("the number ", quote_name(copy, 40), " is larger than a double can be"));
      }
    }
    events_.on_float(real, copy, position());
  }

  const std::string_view text_;
  const std::string& file_;
  JsonEvents& events_;
  const JsonLimits& limits_;
  std::size_t at_ = 0;
  int line_ = 1;
  std::size_t values_ = 0;
  std::deque<Open> open_;
};

}  // namespace

void scan_json(std::string_view text, const std::string& file, JsonEvents& events, const JsonLimits& limits) {
  if (text.size() > limits.max_bytes) {
    throw FormatError(cat(file, ": JSON of at most ", limits.max_bytes, " bytes expected, got ", text.size()), file,
                      limits.max_bytes);
  }
  Scanner(text, file, events, limits).run();
}

}  // namespace castor
