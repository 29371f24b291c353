// Numbers and units.
#include "strategy/cli/byte_size.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <string_view>

#include "core/base/error.h"
#include "core/base/json.h"

namespace castor::strategy {

std::uint64_t parse_size(const std::string& text, const char* flag) {
  struct Unit {
    std::string_view name;
    std::uint64_t bytes;
  };
  constexpr std::array<Unit, 10> kUnits{{{"", 1},
                                         {"B", 1},
                                         {"KB", 1000},
                                         {"MB", 1000000},
                                         {"GB", 1000000000},
                                         {"TB", 1000000000000},
                                         {"KiB", std::uint64_t{1} << 10},
                                         {"MiB", std::uint64_t{1} << 20},
                                         {"GiB", std::uint64_t{1} << 30},
                                         {"TiB", std::uint64_t{1} << 40}}};
  std::uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  std::string_view unit(end, static_cast<std::size_t>(text.data() + text.size() - end));
  while (unit.starts_with(' ')) unit.remove_prefix(1);
  const auto found = std::find_if(kUnits.begin(), kUnits.end(), [unit](const Unit& u) { return u.name == unit; });
  std::uint64_t bytes = 0;
  if (error != std::errc() || found == kUnits.end() || number == 0 ||
      __builtin_mul_overflow(number, found->bytes, &bytes)) {
    throw ConfigError(cat(flag, ": expected a size as 5GB, 512MiB or 1000000, got ", quote_json(text)), "");
  }
  return bytes;
}

}  // namespace castor::strategy
