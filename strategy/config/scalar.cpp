// The core schema's patterns by hand: a regular expression per scalar would dominate the loading time.
//
// Delicate: from_chars takes no leading '+', no "0x", and accepts "inf" and "nan" that YAML takes for strings; so the
// shape is checked first and only digits reach it.
#include "strategy/config/scalar.h"

#include <charconv>
#include <limits>
#include <optional>
#include <system_error>

#include "core/base/error.h"

namespace castor::strategy {
namespace {

bool is_one_of(std::string_view text, std::initializer_list<std::string_view> words) {
  for (const std::string_view word : words) {
    if (text == word) return true;
  }
  return false;
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }

std::size_t count_digits(std::string_view text, std::size_t from) {
  std::size_t n = 0;
  while (from + n < text.size() && is_digit(text[from + n])) ++n;
  return n;
}

[[noreturn]] void refuse_integer(std::string_view text) {
  throw ConfigError(cat("integer ", text, " does not fit 64 bits; write it as a float or quote it"), "");
}

/// [-+]?[0-9]+ or 0o[0-7]+ or 0x[0-9a-fA-F]+
std::optional<std::int64_t> as_integer(std::string_view text) {
  int base = 10;
  std::string_view digits = text;
  bool negative = false;
  if (text.starts_with("0x") || text.starts_with("0o")) {
    base = text[1] == 'x' ? 16 : 8;
    digits.remove_prefix(2);
  } else if (text.starts_with('-') || text.starts_with('+')) {
    negative = text.front() == '-';
    digits.remove_prefix(1);
  }
  std::uint64_t magnitude = 0;
  const std::from_chars_result read = std::from_chars(digits.data(), digits.data() + digits.size(), magnitude, base);
  if (read.ptr == digits.data() || read.ptr != digits.data() + digits.size()) return std::nullopt;
  constexpr auto kLargest = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
  if (read.ec == std::errc::result_out_of_range || magnitude > kLargest + (negative ? 1 : 0)) refuse_integer(text);
  return static_cast<std::int64_t>(negative ? ~magnitude + 1 : magnitude);
}

/// [-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)? and the infinities
std::optional<double> as_floating(std::string_view text) {
  std::string_view rest = text;
  bool negative = false;
  if (rest.starts_with('-') || rest.starts_with('+')) {
    negative = rest.front() == '-';
    rest.remove_prefix(1);
  }
  if (is_one_of(rest, {".inf", ".Inf", ".INF"})) {
    return negative ? -std::numeric_limits<double>::infinity() : std::numeric_limits<double>::infinity();
  }
  if (is_one_of(text, {".nan", ".NaN", ".NAN"})) return std::numeric_limits<double>::quiet_NaN();
  const std::size_t whole = count_digits(rest, 0);
  std::size_t at = whole;
  if (at < rest.size() && rest[at] == '.') {
    const std::size_t fraction = count_digits(rest, at + 1);
    if (whole == 0 && fraction == 0) return std::nullopt;
    at += 1 + fraction;
  } else if (whole == 0) {
    return std::nullopt;
  }
  if (at < rest.size() && (rest[at] == 'e' || rest[at] == 'E')) {
    ++at;
    if (at < rest.size() && (rest[at] == '-' || rest[at] == '+')) ++at;
    const std::size_t exponent = count_digits(rest, at);
    if (exponent == 0) return std::nullopt;
    at += exponent;
  }
  if (at != rest.size()) return std::nullopt;
  double value = 0;
  const std::from_chars_result read = std::from_chars(rest.data(), rest.data() + rest.size(), value);
  if (read.ec == std::errc::result_out_of_range) {
    throw ConfigError(cat("number ", text, " is outside the range of a double"), "");
  }
  return negative ? -value : value;
}

}  // namespace

ConfigNode resolve_plain_scalar(std::string_view text) {
  if (is_one_of(text, {"", "~", "null", "Null", "NULL"})) return {};
  if (is_one_of(text, {"true", "True", "TRUE"})) return ConfigNode(true);
  if (is_one_of(text, {"false", "False", "FALSE"})) return ConfigNode(false);
  const char first = text.front();
  if (is_digit(first) || first == '-' || first == '+' || first == '.') {
    if (const auto integer = as_integer(text)) return ConfigNode(*integer);
    if (const auto floating = as_floating(text)) return ConfigNode(*floating);
  }
  return ConfigNode(text);
}

}  // namespace castor::strategy
