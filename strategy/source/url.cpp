// Taking URLs apart by hand: the little that is needed of RFC 3986.
//
// Delicate: whoever reads a URL differently than the library that sends it may check one host and contact another. So
// what is sent is put together again from the parts that were checked here, and odd characters are refused.
#include "strategy/source/url.h"

#include <algorithm>
#include <cctype>

#include "core/base/error.h"
#include "core/base/file_error.h"
#include "strategy/source/sha256.h"

namespace castor::strategy {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_lower_hex(char c) { return is_digit(c) || (c >= 'a' && c <= 'f'); }
bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return out;
}

int hex_value(char c) {
  if (is_digit(c)) return c - '0';
  const char low = static_cast<char>(c | 0x20);
  return low >= 'a' && low <= 'f' ? low - 'a' + 10 : -1;
}

[[noreturn]] void refuse(std::string_view shown, std::string_view reason) {
  throw ConfigError(cat("URL ", quote_name(shown), ": ", reason), "");
}

/// "20210831" reads as a day of this or the last century.
bool is_date(std::string_view digits) {
  if (digits.size() != 8 || !std::all_of(digits.begin(), digits.end(), is_digit)) return false;
  const int month = (digits[4] - '0') * 10 + digits[5] - '0';
  const int day = (digits[6] - '0') * 10 + digits[7] - '0';
  return (digits.starts_with("19") || digits.starts_with("20")) && month >= 1 && month <= 12 && day >= 1 && day <= 31;
}

}  // namespace

std::string scheme_of(std::string_view text) {
  const std::size_t end = text.find("://");
  if (end == std::string_view::npos || end == 0) return "";
  const std::string_view scheme = text.substr(0, end);
  // ':' for the peers' "cluster:s3://...".
  const auto fits = [](char c) {
    return is_letter(c) || is_digit(c) || c == '+' || c == '-' || c == '.' || c == ':' || c == '_';
  };
  return is_letter(scheme[0]) && std::all_of(scheme.begin(), scheme.end(), fits) ? lower(scheme) : "";
}

std::string percent_decoded(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      out += text[i];
      continue;
    }
    const int high = i + 2 < text.size() ? hex_value(text[i + 1]) : -1;
    const int low = i + 2 < text.size() ? hex_value(text[i + 2]) : -1;
    if (high < 0 || low < 0 || high + low == 0) {
      throw ConfigError(cat("URL: '%' at byte ", i, " of ", text.size(),
                            " is not followed by two hexadecimal digits other than 00; write a plain '%' as %25"),
                        "");
    }
    out += static_cast<char>(high * 16 + low);
    i += 2;
  }
  return out;
}

std::string Url::shown() const {
  const std::size_t query = target.find('?');
  return origin + (query == std::string::npos ? target : target.substr(0, query) + "?...");
}

Url parse_url(std::string_view text) {
  Url url;
  url.scheme = scheme_of(text);
  if (url.scheme != "http" && url.scheme != "https") refuse(url.scheme + "://...", "expected http:// or https://");
  std::string_view rest = text.substr(url.scheme.size() + 3);
  rest = rest.substr(0, rest.find('#'));
  const std::size_t host_end = std::min(rest.find_first_of("/?"), rest.size());
  std::string_view host = rest.substr(0, host_end);
  const std::size_t at = host.rfind('@');
  const std::string_view credentials = at == std::string_view::npos ? std::string_view() : host.substr(0, at);
  if (at != std::string_view::npos) host = host.substr(at + 1);
  url.origin = cat(url.scheme, "://", lower(host));
  url.target = rest.substr(host_end);
  if (!url.target.starts_with('/')) url.target = "/" + url.target;
  // Where URL readers differ about which part is the host, a backslash is the reason most often.
  const auto odd = [](char c) { return static_cast<unsigned char>(c) <= ' ' || c == '\x7f' || c == '\\'; };
  if (std::any_of(rest.begin(), rest.end(), odd)) {
    refuse(url.shown(), "it holds spaces, backslashes or control characters; write them as %20, %5C, ...");
  }
  if (host.empty() || host.starts_with(':')) refuse(url.shown(), "it names no host");
  const std::size_t colon = credentials.find(':');
  url.user = percent_decoded(credentials.substr(0, colon));
  if (colon != std::string_view::npos) url.password = percent_decoded(credentials.substr(colon + 1));
  const std::string path = url.target.substr(0, url.target.find('?'));
  url.file_name = path.substr(path.rfind('/') + 1);
  return url;
}

std::string cache_name(const Url& url) {
  constexpr std::size_t kLongestName = 120;
  std::string name = url.file_name.empty() ? "download" : url.file_name;
  if (name.size() > kLongestName) name = name.substr(name.size() - kLongestName);
  for (char& c : name) {
    if (!is_letter(c) && !is_digit(c) && c != '.' && c != '_' && c != '+' && c != '-') c = '_';
  }
  return cat(sha256_hex(url.request()).substr(0, 16), "_", name);
}

std::string hash_in_name(std::string_view file_name) {
  const std::size_t dot = file_name.rfind('.');
  if (dot == std::string_view::npos || (file_name.substr(dot) != ".pth" && file_name.substr(dot) != ".pt")) return "";
  const std::string_view stem = file_name.substr(0, dot);
  const std::size_t dash = stem.rfind('-');
  if (dash == std::string_view::npos) return "";
  const std::string_view digits = stem.substr(dash + 1);
  const bool fits =
      digits.size() >= 8 && digits.size() <= 64 && std::all_of(digits.begin(), digits.end(), is_lower_hex);
  return fits && !is_date(digits) ? std::string(digits) : "";
}

}  // namespace castor::strategy
