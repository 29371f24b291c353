// Sizes on the command line, which people write with units.
#pragma once

#include <cstdint>
#include <string>

namespace castor::strategy {

/// Bytes of "5GB", "512 MiB" or "1000000". Throws ConfigError naming `flag` for anything else, and for 0.
std::uint64_t parse_size(const std::string& text, const char* flag);

}  // namespace castor::strategy
