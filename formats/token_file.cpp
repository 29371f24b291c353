// The split of a token file. Delicate: the one rounding lies here; size * fraction is exact to a double's 53 bits, and
// floor makes it a whole number of tokens on every machine alike.
#include "formats/token_file.h"

#include <cmath>
#include <utility>

#include "core/base/file_error.h"

namespace castor::formats {

TokenFile TokenFile::open(const std::string& path, double held_out_fraction, FileSystem& files) {
  if (!(held_out_fraction >= 0 && held_out_fraction < 1)) {
    throw ConfigError(cat("held_out_fraction: expected a number from 0 to below 1, got ", held_out_fraction),
                      "held_out_fraction");
  }
  MappedFile file = MappedFile::open(path, files);
  const std::size_t size = file.bytes().size();
  if (size == 0)
    throw FormatError(cat("tokens ", quote_name(path, 4096), ": expected text, the file is empty"), path, 0);
  const auto held_out = static_cast<std::size_t>(std::floor(static_cast<double>(size) * held_out_fraction));
  if (held_out_fraction > 0 && held_out == 0) {
    throw FormatError(cat("tokens ", quote_name(path, 4096), ": ", size, " bytes are too few to hold out the fraction ",
                          held_out_fraction, ": give a longer text or a larger fraction"),
                      path, size);
  }
  return {std::move(file), size - held_out};
}

std::span<const std::uint8_t> TokenFile::all() const {
  const std::span<const std::byte> bytes = file_.bytes();
  return {reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size()};
}

}  // namespace castor::formats
