// Safetensors: what is written is read back bit for bit, is laid out as other readers need it, and every lie a header
// can tell is refused at its byte. Hostile headers are composed by hand from a JSON text and a number of data bytes.
#include "formats/safetensors.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "core/base/file_fault.h"
#include "core/base/file_memory.h"
#include "formats/array_shape.h"

namespace castor::formats {
namespace {

constexpr DType kAllDTypes[] = {DType::f32, DType::f16, DType::bf16, DType::f8e4m3, DType::f8e5m2,
                                DType::f64, DType::i64, DType::i32,  DType::u8,     DType::boolean};

std::vector<std::byte> random_bytes(std::size_t count, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> bytes(count);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random() & 0xff);
  return bytes;
}

std::string file_with_header(const std::string& json, std::size_t data_bytes) {
  const std::uint64_t length = json.size();
  std::string file(8, '\0');
  std::memcpy(file.data(), &length, 8);
  return file + json + std::string(data_bytes, '\1');
}

FormatError refusal_of(const std::string& contents) {
  MemoryFileSystem files;
  write_file_atomically("/model.safetensors", contents, files);
  try {
    SafetensorsFile::open("/model.safetensors", files);
  } catch (const FormatError& error) {
    CHECK(error.file == "/model.safetensors");
    CHECK(error.offset <= contents.size());
    return error;
  }
  FAIL("the file was accepted: " << contents);
  return {"", "", 0};
}

void check_refused(const std::string& json, std::size_t data_bytes, std::string_view reason) {
  const FormatError error = refusal_of(file_with_header(json, data_bytes));
  const std::string text = error.what();
  INFO(text);
  CHECK(text.find(reason) != std::string::npos);
}

TEST_CASE("tensors of every dtype come back with their bytes, shapes and metadata") {
  MemoryFileSystem files;
  std::vector<std::vector<std::byte>> data;
  std::vector<SafetensorsTensor> tensors;
  for (const DType dtype : kAllDTypes) data.push_back(random_bytes(15 * dtype_size(dtype), data.size()));
  for (std::size_t i = 0; i < data.size(); ++i) {
    tensors.push_back({cat("layer.", dtype_name(kAllDTypes[i])), kAllDTypes[i], {3, 5}, data[i]});
  }
  tensors.push_back({"scalar", DType::f32, {}, std::span(data[0]).first(4)});
  tensors.push_back({"empty", DType::f64, {4, 0, 2}, std::span<const std::byte>()});
  tensors.push_back({"na\"me\n\xc3\xa9", DType::u8, {1}, std::span(data[0]).first(1)});
  SafetensorsOptions options;
  options.metadata = {{"format", "pt"}, {"note", "line\nline \"quoted\""}};
  const SafetensorsHeader written = write_safetensors("/m", tensors, options, files);

  const SafetensorsFile file = SafetensorsFile::open("/m", files);
  CHECK(file.header().metadata == options.metadata);
  CHECK(file.header().tensors.size() == tensors.size());
  CHECK(written.file_bytes == file_size("/m", files));
  for (const SafetensorsTensor& tensor : tensors) {
    const TensorEntry& entry = file.at(tensor.name);
    CHECK(entry.dtype == tensor.dtype);
    CHECK(entry.shape == tensor.shape);
    CHECK(std::ranges::equal(file.read(entry), std::get<std::span<const std::byte>>(tensor.data)));
    CHECK(written.find(tensor.name)->begin == entry.begin);
  }
  const TensorEntry& matrix = file.at("layer.f32");
  std::vector<std::byte> part(8);
  file.read(matrix, 12, part);
  CHECK(std::ranges::equal(part, std::span(data[0]).subspan(12, 8)));
  CHECK_THROWS_AS(file.read(matrix, 56, part), ShapeError);
  CHECK_THROWS_AS(file.read(matrix, ~std::uint64_t{0}, part), ShapeError);
}

TEST_CASE("every tensor lies at a multiple of its element size, larger elements first, names in order") {
  MemoryFileSystem files;
  const std::vector<std::byte> data = random_bytes(64, 1);
  std::vector<SafetensorsTensor> tensors;
  for (const char* name : {"b", "a", "c"}) {
    for (const DType dtype : kAllDTypes) {
      tensors.push_back({cat(dtype_name(dtype), ".", name), dtype, {3}, std::span(data).first(3 * dtype_size(dtype))});
    }
  }
  for (const std::uint64_t alignment : {8, 64, 4096}) {
    SafetensorsOptions options;
    options.data_alignment = alignment;
    const SafetensorsHeader header = write_safetensors("/m", tensors, options, files);
    CHECK(header.data_begin % alignment == 0);
    for (std::size_t i = 0; i < header.tensors.size(); ++i) {
      const TensorEntry& entry = header.tensors[i];
      CHECK(entry.begin % dtype_size(entry.dtype) == 0);
      if (i == 0) continue;
      const TensorEntry& before = header.tensors[i - 1];
      const std::size_t size = dtype_size(entry.dtype);
      const std::size_t size_before = dtype_size(before.dtype);
      CHECK((size < size_before || (size == size_before && before.name < entry.name)));
    }
  }
}

TEST_CASE("a file's bytes depend on what is saved alone") {
  MemoryFileSystem files;
  const float values[] = {1.0f, 2.0f};
  SafetensorsOptions options;
  options.data_alignment = 8;
  const std::vector<SafetensorsTensor> tensors = {{"w", DType::f32, {2}, std::as_bytes(std::span(values))}};
  write_safetensors("/m", tensors, options, files);
  const std::string json = R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  const std::string padded = json + std::string((8 - json.size() % 8) % 8, ' ');
  std::string expected = file_with_header(padded, 8);
  std::memcpy(expected.data() + expected.size() - 8, values, 8);
  CHECK(read_text_file("/m", 1000, files) == expected);
}

TEST_CASE("a tensor that is produced in pieces is written through a bounded buffer") {
  MemoryFileSystem files;
  const std::vector<std::byte> data = random_bytes(10'000, 2);
  std::uint64_t next = 0;
  std::size_t largest = 0;
  const ByteSource source = [&](std::uint64_t offset, std::span<std::byte> out) {
    CHECK(offset == next);
    next += out.size();
    largest = std::max(largest, out.size());
    std::ranges::copy(std::span(data).subspan(offset, out.size()), out.begin());
  };
  SafetensorsOptions options;
  options.buffer_bytes = 768;
  const std::vector<SafetensorsTensor> tensors = {{"w", DType::u8, {100, 100}, source}};
  write_safetensors("/m", tensors, options, files);
  CHECK(next == data.size());
  CHECK(largest == 768);
  const SafetensorsFile file = SafetensorsFile::open("/m", files);
  CHECK(file.read(file.at("w")) == data);
}

TEST_CASE("a file without tensors is a file") {
  MemoryFileSystem files;
  write_safetensors("/m", {}, {}, files);
  CHECK(SafetensorsFile::open("/m", files).header().tensors.empty());
  write_file_atomically("/m", file_with_header("{}", 0), files);
  CHECK(SafetensorsFile::open("/m", files).header().data_begin == 10);
}

TEST_CASE("tensors that do not fit their description are refused before anything is written") {
  MemoryFileSystem files;
  const std::vector<std::byte> data(16);
  const auto write = [&](std::vector<SafetensorsTensor> tensors, SafetensorsOptions options = {}) {
    write_safetensors("/m", tensors, options, files);
  };
  CHECK_THROWS_AS(write({{"w", DType::f32, {5}, data}}), ShapeError);
  CHECK_THROWS_AS(write({{"w", DType::f32, {-4}, data}}), ShapeError);
  CHECK_THROWS_AS(write({{"w", DType::u8, std::vector<std::int64_t>(65, 1), data}}), ShapeError);
  CHECK_THROWS_AS(write({{"w", DType::u8, {std::int64_t{1} << 40, std::int64_t{1} << 40}, data}}), ShapeError);
  CHECK_THROWS_AS(write({{"w", DType::f32, {4}, ByteSource()}}), ShapeError);
  CHECK_THROWS_AS(write({{"w", DType::f32, {4}, data}, {"w", DType::f32, {4}, data}}), FormatError);
  CHECK_THROWS_AS(write({{"__metadata__", DType::f32, {4}, data}}), FormatError);
  CHECK_THROWS_AS(write({{"\xff", DType::f32, {4}, data}}), FormatError);
  SafetensorsOptions bad_text;
  bad_text.metadata = {{"key", "\xc3"}};
  CHECK_THROWS_AS(write({}, bad_text), FormatError);
  SafetensorsOptions bad_alignment;
  bad_alignment.data_alignment = 24;
  CHECK_THROWS_AS(write({}, bad_alignment), ShapeError);
  CHECK(list_directory("/", files).empty());
}

TEST_CASE("a write that fails at any operation leaves the previous file") {
  const std::vector<std::byte> data = random_bytes(5000, 3);
  const std::vector<SafetensorsTensor> tensors = {{"w", DType::u8, {5000}, data}};
  MemoryFileSystem untouched;
  FaultFileSystem counted(untouched);
  write_safetensors("/m", tensors, {}, counted);
  const std::uint64_t operations = counted.operations();
  for (std::uint64_t at = 0; at + 1 < operations; ++at) {
    MemoryFileSystem memory;
    write_safetensors("/m", {}, {}, memory);
    FaultFileSystem files(memory);
    files.inject({at, FaultKind::error, ENOSPC});
    CHECK_THROWS_AS(write_safetensors("/m", tensors, {}, files), IoError);
    CHECK(SafetensorsFile::open("/m", memory).header().tensors.empty());
    CHECK(list_directory("/", memory).size() == 1);
  }
}

TEST_CASE("a missing tensor is reported with the nearest name") {
  MemoryFileSystem files;
  const std::vector<std::byte> data(4);
  const std::vector<SafetensorsTensor> tensors = {{"blocks.0.attn.qkv.weight", DType::f32, {1}, data},
                                                  {"head", DType::f32, {1}, data}};
  write_safetensors("/m", tensors, {}, files);
  const SafetensorsFile file = SafetensorsFile::open("/m", files);
  CHECK(file.header().find("blocks.0.attn.qkv.bias") == nullptr);
  CHECK_THROWS_WITH_AS(
      file.at("blocks.0.attn.qvk.weight"),
      "safetensors \"/m\": no tensor is called \"blocks.0.attn.qvk.weight\" among 2; the nearest name is "
      "\"blocks.0.attn.qkv.weight\"",
      FormatError);
  CHECK_THROWS_WITH_AS(file.at("zzzzzzzz"), "safetensors \"/m\": no tensor is called \"zzzzzzzz\" among 2",
                       FormatError);
}

TEST_CASE("a length field that lies is refused without reading or allocating what it claims") {
  CHECK(refusal_of("").offset == 0);
  CHECK(refusal_of("1234567").offset == 0);
  const auto with_length = [](std::uint64_t length, const std::string& rest) {
    std::string file(8, '\0');
    std::memcpy(file.data(), &length, 8);
    return file + rest;
  };
  for (const std::uint64_t length :
       {std::uint64_t{0}, std::uint64_t{3}, std::uint64_t{100'000'001}, std::uint64_t{1} << 63, ~std::uint64_t{0}}) {
    CAPTURE(length);
    refusal_of(with_length(length, "{}"));
  }
  CHECK(refusal_of(with_length(2, "{")).offset == 0);
}

TEST_CASE("a header that is not the one JSON object it must be is refused") {
  check_refused(" {}", 0, "begin with '{'");
  check_refused("[]", 0, "begin with '{'");
  check_refused("{", 0, "header");
  check_refused("{}x", 0, "not valid JSON");
  check_refused("{}{}", 0, "not valid JSON");
  check_refused(std::string("{}\0\0", 4), 0, "not valid JSON");
  check_refused("{\"\xff\":{}}", 0, "not valid JSON");
  check_refused("{\"a\":" + std::string(10'000, '[') + "}", 0, "expected an object, got an array");
  check_refused("{\"a\":" + std::string(10'000, '{') + "}", 0, "not valid JSON");
  check_refused(R"({"a":{"dtype":{"x":1}}})", 0, "expected a text, got an object");
  check_refused(R"({"a":7})", 0, "expected an object, got the number 7");
  check_refused(R"({"a":null})", 0, "expected an object, got null");
  check_refused(R"({"__metadata__":{"a":1}})", 0, "__metadata__: \"a\": expected a text, got the number 1");
  check_refused(R"({"__metadata__":[]})", 0, "expected an object, got an array");
}

TEST_CASE("a tensor whose description is incomplete, repeated or of another kind is refused") {
  const auto entry = [](const std::string& inside) { return cat("{\"w\":{", inside, "}}"); };
  check_refused(entry(R"("shape":[1],"data_offsets":[0,4])"), 4, "the key dtype is missing");
  check_refused(entry(R"("dtype":"F32","data_offsets":[0,4])"), 4, "the key shape is missing");
  check_refused(entry(R"("dtype":"F32","shape":[1])"), 4, "the key data_offsets is missing");
  check_refused(entry(R"("dtype":"F32","shape":[1],"data_offsets":[0,4],"extra":1)"), 4, "got \"extra\"");
  check_refused(entry(R"("dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4])"), 4, "twice");
  check_refused(entry(R"("dtype":"F33","shape":[1],"data_offsets":[0,4])"), 4, "expected a dtype of F32 F16");
  check_refused(entry(R"("dtype":3,"shape":[1],"data_offsets":[0,4])"), 4, "dtype: expected a text");
  check_refused(entry(R"("dtype":"F32","shape":1,"data_offsets":[0,4])"), 4, "shape: expected an array");
  check_refused(entry(R"("dtype":"F32","shape":["1"],"data_offsets":[0,4])"), 4, "shape: expected whole numbers");
  check_refused(entry(R"("dtype":"F32","shape":[-1],"data_offsets":[0,4])"), 4, "got the number -1");
  check_refused(entry(R"("dtype":"F32","shape":[1.0],"data_offsets":[0,4])"), 4, "got the number 1.0");
  check_refused(entry(R"("dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,4])"), 4, "2^63 - 1");
  check_refused(entry(R"("dtype":"F32","shape":[99999999999999999999],"data_offsets":[0,4])"), 4, "2^63 - 1");
  check_refused(entry(R"("dtype":"F32","shape":[true],"data_offsets":[0,4])"), 4, "got true");
  check_refused(entry(R"("dtype":"F32","shape":[[1]],"data_offsets":[0,4])"), 4, "header");
  check_refused(entry(R"("dtype":"F32","shape":[1],"data_offsets":[0])"), 4, "fewer than 2");
  check_refused(entry(R"("dtype":"F32","shape":[1],"data_offsets":[0,4,4])"), 4, "more than 2");
  std::string axes = "1";
  for (int i = 0; i < 64; ++i) axes += ",1";
  check_refused(entry(cat(R"("dtype":"U8","shape":[)", axes, R"(],"data_offsets":[0,1])")), 1, "more than 64 axes");
}

TEST_CASE("offsets that overlap, leave holes, run backwards or leave the file are refused") {
  const auto tensor = [](const char* name, const char* dtype, const char* shape, const char* offsets) {
    return cat("\"", name, "\":{\"dtype\":\"", dtype, "\",\"shape\":[", shape, "],\"data_offsets\":[", offsets, "]}");
  };
  const auto refused = [&](std::initializer_list<std::string> tensors, std::size_t bytes, std::string_view reason) {
    std::string json;
    for (const std::string& text : tensors) json += (json.empty() ? "{" : ",") + text;
    check_refused(json + "}", bytes, reason);
  };
  refused({tensor("a", "U8", "4", "0,4"), tensor("b", "U8", "4", "2,6")}, 6, "overlaps \"a\"");
  refused({tensor("a", "U8", "4", "0,4"), tensor("b", "U8", "4", "0,4")}, 4, "overlaps \"a\"");
  refused({tensor("a", "U8", "4", "0,4"), tensor("b", "U8", "4", "6,10")}, 10, "leaves a hole after \"a\"");
  refused({tensor("a", "U8", "4", "2,6")}, 6, "leaves a hole after the header");
  refused({tensor("a", "U8", "4", "0,4"), tensor("a", "U8", "4", "4,8")}, 8, "twice");
  refused({tensor("a", "U8", "4", "0,4")}, 5, "1 bytes more");
  refused({}, 5, "header");
  refused({tensor("a", "U8", "4", "0,4")}, 3, "do not lie within the 3 bytes");
  refused({tensor("a", "U8", "4", "4,0")}, 4, "do not lie within");
  refused({tensor("a", "U8", "0", "9,9")}, 4, "do not lie within");
  refused({tensor("a", "U8", "3", "0,4")}, 4, "takes 3 bytes");
  refused({tensor("a", "F32", "4611686018427387905", "0,4")}, 4, "overflow");
  refused({tensor("a", "U8", "4294967296,4294967296", "0,0")}, 0, "overflow");
  refused({tensor("a", "U8", "0,9223372036854775807,9223372036854775807", "0,0")}, 0, "overflow");
}

TEST_CASE("the offset of an error points to the byte that is wrong") {
  const std::string json = R"({"w":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}})";
  CHECK(refusal_of(file_with_header(json, 4)).offset == 8 + json.find("F99") + 4);
  const std::string broken = R"({"w":{"dtype";"F32"}})";
  CHECK(refusal_of(file_with_header(broken, 4)).offset == 8 + broken.find(';'));
}

TEST_CASE("a file that is cut anywhere, or has a byte more, is refused") {
  MemoryFileSystem files;
  const std::vector<std::byte> data = random_bytes(40, 4);
  const std::vector<SafetensorsTensor> tensors = {{"w", DType::f32, {2, 5}, data}};
  write_safetensors("/m", tensors, {}, files);
  const std::string whole = read_text_file("/m", 10'000, files);
  for (std::size_t size = 0; size < whole.size(); ++size) refusal_of(whole.substr(0, size));
  refusal_of(whole + "x");
}

TEST_CASE("flipping any bit of a header gives a refusal or a file that is still consistent") {
  MemoryFileSystem files;
  const std::vector<std::byte> data = random_bytes(24, 5);
  const std::vector<SafetensorsTensor> tensors = {{"a", DType::f32, {5}, std::span(data).first(20)},
                                                  {"b", DType::u8, {2, 2}, std::span(data).first(4)}};
  write_safetensors("/m", tensors, {}, files);
  const std::string whole = read_text_file("/m", 10'000, files);
  const std::uint64_t data_begin = SafetensorsFile::open("/m", files).header().data_begin;
  int refused = 0;
  for (std::size_t bit = 0; bit < 8 * data_begin; ++bit) {
    std::string damaged = whole;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << bit % 8));
    try {
      const SafetensorsHeader header =
          parse_safetensors_header(std::as_bytes(std::span(damaged)), damaged.size(), "damaged");
      std::uint64_t reached = header.data_begin;
      for (const TensorEntry& entry : header.tensors) {
        CHECK(entry.begin == reached);
        CHECK(bytes_of_shape(entry.shape, entry.dtype) == entry.bytes());
        reached = entry.end;
      }
      CHECK(reached == damaged.size());
    } catch (const FormatError&) {
      ++refused;
    }
  }
  CHECK(refused > 500);
}

TEST_CASE("the bytes of a shape are counted without overflow") {
  CHECK(bytes_of_shape({}, DType::f64) == 8);
  const std::int64_t plain[] = {2, 3};
  CHECK(bytes_of_shape(plain, DType::bf16) == 12);
  const std::int64_t empty[] = {0, std::int64_t{1} << 40};
  CHECK(bytes_of_shape(empty, DType::f32) == 0);
  const std::int64_t absurd[] = {std::int64_t{1} << 40, 0, std::int64_t{1} << 40};
  CHECK_FALSE(bytes_of_shape(absurd, DType::u8).has_value());
  const std::int64_t most[] = {(std::int64_t{1} << 60) - 1};
  CHECK(bytes_of_shape(most, DType::f64) == (std::uint64_t{1} << 63) - 8);
  const std::int64_t beyond[] = {std::int64_t{1} << 60};
  CHECK_FALSE(bytes_of_shape(beyond, DType::f64).has_value());
}

}  // namespace
}  // namespace castor::formats
