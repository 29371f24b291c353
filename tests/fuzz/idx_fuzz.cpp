// Fuzz target: any bytes as an IDX file, plain or gzipped. Either FormatError, or an array of exactly the values its
// sizes say. Anything else, a leak or an allocation beyond the limit included, stops the program: the finding.
//
// Build and run: tests/fuzz/run idx
#include <cstdlib>

#include "core/base/file_memory.h"
#include "formats/array_shape.h"
#include "formats/idx_file.h"
#include "tests/fuzz/parse_watch.h"

// NOLINTNEXTLINE(readability-identifier-naming): libFuzzer prescribes the name
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  castor::MemoryFileSystem files;
  castor::File::open("/f", castor::OpenMode::create, files).write_exact(std::as_bytes(std::span(data, size)), 0);
  castor::formats::IdxOptions options;
  options.max_bytes = 1 << 20;
  try {
    const bool is_gzip = size >= 2 && data[0] == 0x1f && data[1] == 0x8b;
    // What is unpacked may be larger than the file, but then it has been seen to be there.
    const auto array = castor::test::watch_parse(is_gzip ? options.max_bytes : size,
                                                 [&] { return castor::formats::read_idx_file("/f", options, files); });
    if (castor::formats::bytes_of_shape(array.shape, castor::DType::u8) != array.values.size()) std::abort();
  } catch (const castor::FormatError& error) {
    if (error.file != "/f" || error.offset > size) std::abort();
  }
  return 0;
}
