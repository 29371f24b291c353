// Fuzz target: eight bytes as the fraction to hold out, any double, and the rest as a token file. Either a typed error,
// or parts that make up the file, of the lengths that the fraction says. Anything else stops the program: the finding.
//
// Build and run: tests/fuzz/run token_file
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "core/base/file_memory.h"
#include "formats/token_file.h"
#include "tests/fuzz/parse_watch.h"

namespace {

void require(bool condition) {
  if (!condition) std::abort();
}

}  // namespace

// NOLINTNEXTLINE(readability-identifier-naming): libFuzzer prescribes the name
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  double fraction = 0;
  const std::size_t taken = std::min(size, sizeof fraction);
  std::memcpy(&fraction, data, taken);
  const auto tokens = std::span(data, size).subspan(taken);
  castor::MemoryFileSystem files;
  castor::File::open("/f", castor::OpenMode::create, files).write_exact(std::as_bytes(tokens), 0);
  const bool is_fraction = fraction >= 0 && fraction < 1;
  const auto held_out = is_fraction ? static_cast<double>(tokens.size()) * fraction : 0;
  try {
    const auto file = castor::test::watch_parse(
        tokens.size(), [&] { return castor::formats::TokenFile::open("/f", fraction, files); });
    require(is_fraction && file.path() == "/f");
    require(std::equal(tokens.begin(), tokens.end(), file.all().begin(), file.all().end()));
    require(file.train().data() == file.all().data() && !file.train().empty());
    require(file.held_out().data() == file.train().data() + file.train().size());
    require(file.train().size() + file.held_out().size() == tokens.size());
    const auto length = static_cast<double>(file.held_out().size());
    require(length <= held_out && held_out < length + 1 && (fraction == 0 || length > 0));
  } catch (const castor::ConfigError& error) {
    require(!is_fraction && error.path == "held_out_fraction");
  } catch (const castor::FormatError& error) {
    require(error.file == "/f" && error.offset <= tokens.size());
    require(tokens.empty() || (fraction > 0 && held_out < 1));
  }
  return 0;
}
