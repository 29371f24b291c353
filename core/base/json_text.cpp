// The pieces of JSON text that need no JSON library: doubles, quoted strings, the UTF-8 check.
//
// Apart from json.cpp because configs and logs use them too, and a file that includes nlohmann takes seconds to
// compile. Delicate: dump_double stands in manifests and digests, so its text must not depend on locale or library
// version; to_chars promises the shortest form that reads back to the same bits.
#include <charconv>
#include <cmath>

#include "core/base/json.h"

namespace castor {

std::string dump_double(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char buffer[32];
  const std::to_chars_result written = std::to_chars(buffer, buffer + sizeof buffer, value);
  std::string text(buffer, written.ptr);
  if (text.find_first_of(".e") == std::string::npos) text += ".0";
  return text;
}

std::string quote_json(std::string_view text) {
  constexpr char kHex[] = "0123456789abcdef";
  std::string out = "\"";
  for (const char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
          out += "\\u00";
          out += kHex[(static_cast<unsigned char>(c) >> 4) & 15];
          out += kHex[static_cast<unsigned char>(c) & 15];
        } else {
          out += c;
        }
    }
  }
  out += '"';
  return out;
}

bool is_utf8(std::string_view bytes, std::size_t* bad_offset) {
  std::size_t i = 0;
  const auto byte = [&](std::size_t at) { return static_cast<unsigned char>(bytes[at]); };
  while (i < bytes.size()) {
    const unsigned char lead = byte(i);
    std::size_t more = 0;
    std::uint32_t code = 0;
    if (lead < 0x80) {
      ++i;
      continue;
    }
    if (lead >= 0xc2 && lead <= 0xdf) {
      more = 1;
      code = lead & 0x1fu;
    } else if (lead >= 0xe0 && lead <= 0xef) {
      more = 2;
      code = lead & 0x0fu;
    } else if (lead >= 0xf0 && lead <= 0xf4) {
      more = 3;
      code = lead & 0x07u;
    }
    bool good = more != 0 && i + more < bytes.size();
    for (std::size_t k = 1; good && k <= more; ++k) {
      good = (byte(i + k) & 0xc0) == 0x80;
      code = code << 6 | (byte(i + k) & 0x3fu);
    }
    constexpr std::uint32_t kSmallest[] = {0, 0x80, 0x800, 0x10000};
    good = good && code >= kSmallest[more] && code <= 0x10ffff && (code < 0xd800 || code > 0xdfff);
    if (!good) {
      if (bad_offset != nullptr) *bad_offset = i;
      return false;
    }
    i += more + 1;
  }
  return true;
}

}  // namespace castor
