// Writing safetensors files, and reading ranges of their arrays.
//
// Delicate: an array's bytes come from elsewhere (a device, other ranks) in pieces, and memory stays bounded whatever
// the array's size; the header goes first, so everything about every array must be known and checked before the first
// byte.
#include "formats/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <numeric>
#include <tuple>
#include <utility>

#include "core/base/file_error.h"
#include "core/base/json.h"
#include "formats/array_shape.h"

namespace castor::formats {
namespace {

constexpr std::uint64_t kLengthBytes = 8;

[[noreturn]] void refuse(const std::string& file, const std::string& what) {
  throw FormatError(cat("write safetensors ", quote_name(file, 4096), ": ", what), file, 0);
}

[[noreturn]] void refuse_shape(const std::string& file, const std::string& what) {
  throw ShapeError(cat("write safetensors ", quote_name(file, 4096), ": ", what));
}

std::string json_string(const std::string& text, const std::string& file, std::string_view what) {
  if (!is_utf8(text)) refuse(file, cat("expected ", what, " in UTF-8, got ", quote_name(text)));
  return quote_json(text);
}

std::uint64_t checked_bytes(const SafetensorsTensor& tensor, const std::string& file) {
  for (const std::int64_t size : tensor.shape) {
    if (size < 0) {
      refuse_shape(file, cat("tensor ", quote_name(tensor.name), ": the shape ", shape_text(tensor.shape),
                             " has a negative size"));
    }
  }
  if (tensor.shape.size() > kMaxSafetensorsAxes) {
    refuse_shape(file, cat("tensor ", quote_name(tensor.name), ": expected at most ", kMaxSafetensorsAxes,
                           " axes, got ", tensor.shape.size()));
  }
  const std::optional<std::uint64_t> bytes = bytes_of_shape(tensor.shape, tensor.dtype);
  if (!bytes) {
    refuse_shape(file, cat("tensor ", quote_name(tensor.name), ": ", tensor.dtype, shape_text(tensor.shape),
                           " takes more bytes than 64 bits count"));
  }
  return *bytes;
}

std::string entry_json(const TensorEntry& entry, const std::string& file) {
  const std::string name = json_string(entry.name, file, "tensor names");
  return cat(name, ":{\"dtype\":\"", safetensors_dtype_name(entry.dtype), "\",\"shape\":", shape_text(entry.shape),
             ",\"data_offsets\":[", entry.begin, ",", entry.end, "]}");
}

std::string header_json(const SafetensorsHeader& header, const std::string& file) {
  std::string json = "{";
  if (!header.metadata.empty()) {
    json += "\"__metadata__\":{";
    bool first = true;
    for (const auto& [key, value] : header.metadata) {
      if (!std::exchange(first, false)) json += ',';
      json += json_string(key, file, "metadata keys");
      json += ':';
      json += json_string(value, file, "metadata values");
    }
    json += '}';
  }
  for (const TensorEntry& entry : header.tensors) {
    if (json.size() > 1) json += ',';
    json += entry_json(entry, file);
  }
  return json + "}";
}

// `sources` sorted into file order.
std::vector<std::size_t> file_order(std::span<const SafetensorsTensor> tensors) {
  std::vector<std::size_t> order(tensors.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(), [tensors](std::size_t a, std::size_t b) {
    const std::size_t size_a = dtype_size(tensors[a].dtype);
    const std::size_t size_b = dtype_size(tensors[b].dtype);
    return size_a != size_b ? size_a > size_b : tensors[a].name < tensors[b].name;
  });
  return order;
}

void write_data(const SafetensorsTensor& tensor, const TensorEntry& entry, BufferedWriter& writer,
                std::vector<std::byte>& buffer, std::size_t buffer_bytes) {
  if (const auto* bytes = std::get_if<std::span<const std::byte>>(&tensor.data)) {
    writer.write(*bytes);
    return;
  }
  const ByteSource& source = std::get<ByteSource>(tensor.data);
  for (std::uint64_t offset = 0; offset < entry.bytes();) {
    buffer.resize(std::min<std::uint64_t>(buffer_bytes, entry.bytes() - offset));
    source(offset, buffer);
    writer.write(buffer);
    offset += buffer.size();
  }
}

// Letters to change, insert or remove to get from `a` to `b`; names are short.
std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i + 1);
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, row[j] + 1, diagonal + 1});
    }
  }
  return row[b.size()];
}

}  // namespace

SafetensorsPlan plan_safetensors(std::span<const SafetensorsTensor> tensors, const SafetensorsOptions& options,
                                 const std::string& file) {
  const std::uint64_t alignment = options.data_alignment;
  if (!std::has_single_bit(alignment) || alignment < 8 || alignment > 65536) {
    refuse_shape(file, cat("expected a data alignment of 8, 16, ... 65536 bytes, got ", alignment));
  }
  SafetensorsPlan plan;
  plan.header.metadata = options.metadata;
  plan.sources = file_order(tensors);
  std::uint64_t end = 0;
  for (const std::size_t index : plan.sources) {
    const SafetensorsTensor& tensor = tensors[index];
    const std::uint64_t bytes = checked_bytes(tensor, file);
    if (bytes > (std::uint64_t{1} << 62) - end) refuse_shape(file, "the tensors take more than 2^62 bytes together");
    plan.header.tensors.push_back({tensor.name, tensor.dtype, tensor.shape, end, end + bytes});
    end += bytes;
  }
  if (const std::string* name = plan.header.index_names()) {
    refuse(file, cat("two tensors are called ", quote_name(*name)));
  }
  if (plan.header.find("__metadata__") != nullptr) refuse(file, "no tensor may be called \"__metadata__\"");

  const std::string json = header_json(plan.header, file);
  const std::uint64_t data_begin = (kLengthBytes + json.size() + alignment - 1) / alignment * alignment;
  const std::uint64_t length = data_begin - kLengthBytes;
  if (length > kMaxSafetensorsHeaderBytes) {
    refuse(file, cat("the header would take ", length, " bytes, the format allows ", kMaxSafetensorsHeaderBytes,
                     ": split the tensors over several files"));
  }
  plan.header_bytes.resize(data_begin, ' ');
  std::memcpy(plan.header_bytes.data(), &length, kLengthBytes);
  std::memcpy(plan.header_bytes.data() + kLengthBytes, json.data(), json.size());
  for (TensorEntry& entry : plan.header.tensors) {
    entry.begin += data_begin;
    entry.end += data_begin;
  }
  plan.header.data_begin = data_begin;
  plan.header.file_bytes = data_begin + end;
  return plan;
}

SafetensorsHeader write_safetensors(const std::string& path, std::span<const SafetensorsTensor> tensors,
                                    const SafetensorsOptions& options, FileSystem& files) {
  SafetensorsPlan plan = plan_safetensors(tensors, options, path);
  for (std::size_t i = 0; i < plan.sources.size(); ++i) {
    const SafetensorsTensor& tensor = tensors[plan.sources[i]];
    const TensorEntry& entry = plan.header.tensors[i];
    const auto* bytes = std::get_if<std::span<const std::byte>>(&tensor.data);
    if (bytes != nullptr && bytes->size() != entry.bytes()) {
      refuse_shape(path, cat("tensor ", quote_name(tensor.name), ": ", tensor.dtype, shape_text(tensor.shape),
                             " takes ", entry.bytes(), " bytes, got ", bytes->size()));
    }
    if (bytes == nullptr && !std::get<ByteSource>(tensor.data)) {
      refuse_shape(path, cat("tensor ", quote_name(tensor.name), ": its ByteSource is empty"));
    }
  }
  write_file_atomically(
      path,
      [&](BufferedWriter& writer) {
        writer.expect_bytes(plan.header.file_bytes);
        writer.write(plan.header_bytes);
        const std::size_t buffer_bytes = std::max<std::size_t>(options.buffer_bytes, 1);
        std::vector<std::byte> buffer;
        for (std::size_t i = 0; i < plan.sources.size(); ++i) {
          write_data(tensors[plan.sources[i]], plan.header.tensors[i], writer, buffer, buffer_bytes);
        }
      },
      files);
  return std::move(plan.header);
}

SafetensorsFile SafetensorsFile::open(const std::string& path, FileSystem& files) {
  File file = File::open(path, OpenMode::read, files);
  const std::uint64_t file_bytes = file.size();
  std::array<std::byte, kLengthBytes> length_field{};
  const std::size_t got = file.read_up_to(length_field, 0);
  const std::uint64_t length = safetensors_header_bytes(std::span(length_field).first(got), file_bytes, path);
  std::vector<std::byte> start(kLengthBytes + length);
  file.read_exact(start, 0);
  // The length may have changed between the two reads if someone writes the file: then parsing finds it shorter or
  // longer.
  std::copy(length_field.begin(), length_field.end(), start.begin());
  SafetensorsHeader header = parse_safetensors_header(start, file_bytes, path);
  return {std::move(file), std::move(header)};
}

const TensorEntry& SafetensorsFile::at(std::string_view name) const {
  if (const TensorEntry* entry = header_.find(name)) return *entry;
  std::string hint;
  std::size_t best = name.size() / 3 + 2;  // farther names would be guesses
  for (const TensorEntry& entry : header_.tensors) {
    if (entry.name.size() > 1000 || name.size() > 1000) continue;
    const std::size_t distance = edit_distance(name, entry.name);
    if (distance >= best) continue;
    best = distance;
    hint = cat("; the nearest name is ", quote_name(entry.name));
  }
  throw FormatError(cat("safetensors ", quote_name(path(), 4096), ": no tensor is called ", quote_name(name), " among ",
                        header_.tensors.size(), hint),
                    path(), 0);
}

void SafetensorsFile::read(const TensorEntry& entry, std::uint64_t offset, std::span<std::byte> out) const {
  if (offset > entry.bytes() || out.size() > entry.bytes() - offset) {
    throw ShapeError(cat("read safetensors ", quote_name(path(), 4096), ": tensor ", quote_name(entry.name), " has ",
                         entry.bytes(), " bytes, asked for ", out.size(), " from ", offset));
  }
  file_.read_exact(out, entry.begin + offset);
}

std::vector<std::byte> SafetensorsFile::read(const TensorEntry& entry) const {
  std::vector<std::byte> bytes(entry.bytes());
  read(entry, 0, bytes);
  return bytes;
}

}  // namespace castor::formats
