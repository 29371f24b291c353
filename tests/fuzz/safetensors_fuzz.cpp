// Fuzz target: any bytes as a safetensors file. Either FormatError, or a file whose tensors cover it exactly and whose
// names, shapes and bytes can be written and parsed again. Anything else stops the program, which is the finding.
//
// Build and run: tests/fuzz/run safetensors
#include <cstdlib>
#include <string>
#include <vector>

#include "core/base/file_memory.h"
#include "formats/array_shape.h"
#include "formats/safetensors.h"
#include "tests/fuzz/parse_watch.h"

namespace {

using castor::formats::SafetensorsFile;
using castor::formats::SafetensorsHeader;
using castor::formats::SafetensorsPlan;
using castor::formats::SafetensorsTensor;
using castor::formats::TensorEntry;

void require(bool condition) {
  if (!condition) std::abort();
}

// What was accepted must hold together, and must survive being laid out and parsed again.
void check(const SafetensorsFile& file) {
  const SafetensorsHeader& header = file.header();
  std::uint64_t reached = header.data_begin;
  std::vector<SafetensorsTensor> tensors;
  for (const TensorEntry& entry : header.tensors) {
    require(entry.begin == reached && entry.end >= entry.begin);
    require(castor::formats::bytes_of_shape(entry.shape, entry.dtype) == entry.bytes());
    require(header.find(entry.name) == &entry);
    require(file.read(entry).size() == entry.bytes());
    tensors.push_back({entry.name, entry.dtype, entry.shape, {}});
    reached = entry.end;
  }
  require(reached == header.file_bytes);

  castor::formats::SafetensorsOptions options;
  options.metadata = header.metadata;
  const SafetensorsPlan plan = castor::formats::plan_safetensors(tensors, options, "again");
  const SafetensorsHeader again = castor::formats::parse_safetensors_header(castor::as_byte_span(plan.header_bytes),
                                                                            plan.header.file_bytes, "again");
  require(again.metadata == header.metadata && again.tensors.size() == header.tensors.size());
  for (const TensorEntry& entry : header.tensors) {
    const TensorEntry* twin = again.find(entry.name);
    require(twin != nullptr && twin->dtype == entry.dtype && twin->shape == entry.shape);
  }
}

}  // namespace

// NOLINTNEXTLINE(readability-identifier-naming): libFuzzer prescribes the name
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  castor::MemoryFileSystem files;
  castor::File::open("/f", castor::OpenMode::create, files).write_exact(std::as_bytes(std::span(data, size)), 0);
  try {
    check(castor::test::watch_parse(size, [&] { return SafetensorsFile::open("/f", files); }));
  } catch (const castor::FormatError& error) {
    require(error.file == "/f" && error.offset <= size);
  }
  return 0;
}
