// Reading a safetensors header from hostile bytes.
//
// Delicate: the JSON is read event by event, never as a tree, so that depth and memory are under control: what is kept
// is a few times the header, which is at most the file. The scanner refuses broken JSON, repeated keys and deep
// nesting; what the keys mean is checked here, in the order in which they come.
#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <numeric>
#include <optional>
#include <tuple>
#include <utility>

#include "core/base/file_error.h"
#include "core/base/json.h"
#include "formats/array_shape.h"
#include "formats/safetensors.h"

namespace castor::formats {
namespace {

static_assert(std::endian::native == std::endian::little, "lengths and elements are little-endian in the file");

constexpr std::uint64_t kLengthBytes = 8;
constexpr int kHeaderDepth = 3;  // the object, a tensor's object, its arrays

constexpr std::pair<DType, std::string_view> kDTypeNames[] = {
    {DType::f32, "F32"},        {DType::f16, "F16"},     {DType::bf16, "BF16"}, {DType::f8e4m3, "F8_E4M3"},
    {DType::f8e5m2, "F8_E5M2"}, {DType::f64, "F64"},     {DType::i64, "I64"},   {DType::i32, "I32"},
    {DType::u8, "U8"},          {DType::boolean, "BOOL"}};

[[noreturn]] void fail_at(const std::string& file, std::uint64_t offset, const std::string& what) {
  throw FormatError(cat("safetensors ", quote_name(file, 4096), ": at byte ", offset, ": ", what), file, offset);
}

std::string known_dtype_names() {
  std::string names;
  for (const auto& [dtype, name] : kDTypeNames) names += cat(names.empty() ? "" : " ", name);
  return names;
}

// Takes the events of one header.
class HeaderEvents : public JsonEvents {
 public:
  HeaderEvents(const std::string& file, std::uint64_t data_begin, std::uint64_t data_bytes)
      : file_(file), data_begin_(data_begin), data_bytes_(data_bytes) {}

  std::deque<TensorEntry> tensors;
  SafetensorsMetadata metadata;
  bool refused = false;  // the exception on its way was thrown here, not by the scanner

  void on_null(const JsonPosition& at) override { unexpected("null", at); }
  void on_bool(bool value, const JsonPosition& at) override { unexpected(value ? "true" : "false", at); }
  void on_float(double, const std::string& text, const JsonPosition& at) override {
    unexpected(cat("the number ", text.substr(0, 40)), at);
  }
  void on_large_integer(std::uint64_t value, const JsonPosition& at) override {
    unexpected(cat("the number ", value), at);
  }

  void on_integer(std::int64_t value, const JsonPosition& at) override {
    const bool wanted = place_ == Place::shape || place_ == Place::offsets;
    if (!wanted || value < 0) unexpected(cat("the number ", value), at);
    if (place_ == Place::shape) {
      if (tensor().shape.size() == kMaxSafetensorsAxes) {
        fail(in_tensor("shape has more than ", kMaxSafetensorsAxes, " axes"), at);
      }
      tensor().shape.push_back(value);
    } else {
      if (offset_count_ == 2) fail(in_tensor("data_offsets has more than 2 numbers"), at);
      offsets_[offset_count_++] = static_cast<std::uint64_t>(value);
      if (offset_count_ == 2) check_offsets(at);
    }
  }

  void on_string(std::string& value, const JsonPosition& at) override {
    if (place_ == Place::metadata) {
      metadata.emplace(std::move(key_), std::move(value));
      return;
    }
    if (place_ != Place::tensor || key_ != "dtype") unexpected("a text", at);
    const std::optional<DType> dtype = dtype_of_safetensors_name(value);
    if (!dtype) fail(in_tensor("expected a dtype of ", known_dtype_names(), ", got ", quote_name(value, 40)), at);
    tensor().dtype = *dtype;
    has_dtype_ = true;
  }

  void on_key(std::string& key, const JsonPosition& at) override {
    key_ = std::move(key);
    if (place_ == Place::tensor && key_ != "dtype" && key_ != "shape" && key_ != "data_offsets") {
      fail(in_tensor("expected the keys dtype, shape and data_offsets, got ", quote_name(key_, 40)), at);
    }
  }

  void on_object_begin(const JsonPosition& at) override {
    position_ = at;
    if (place_ == Place::outside) {
      place_ = Place::root;
    } else if (place_ != Place::root) {
      unexpected("an object", at);
    } else if (key_ == "__metadata__") {
      place_ = Place::metadata;
    } else {
      tensors.emplace_back().name = std::move(key_);
      place_ = Place::tensor;
      has_dtype_ = has_shape_ = has_offsets_ = false;
    }
  }

  void on_object_end() override {
    if (place_ == Place::tensor) check_tensor();
    place_ = place_ == Place::root ? Place::outside : Place::root;
  }

  void on_array_begin(const JsonPosition& at) override {
    position_ = at;
    if (place_ == Place::tensor && key_ == "shape") {
      place_ = Place::shape;
      has_shape_ = true;
    } else if (place_ == Place::tensor && key_ == "data_offsets") {
      place_ = Place::offsets;
      has_offsets_ = true;
      offset_count_ = 0;
    } else {
      unexpected("an array", at);
    }
  }

  void on_array_end() override {
    if (place_ == Place::offsets && offset_count_ != 2) {
      fail(in_tensor("data_offsets has fewer than 2 numbers"), position_);
    }
    place_ = Place::tensor;
  }

 private:
  enum class Place { outside, root, metadata, tensor, shape, offsets };

  TensorEntry& tensor() { return tensors.back(); }

  [[noreturn]] void fail(const std::string& what, const JsonPosition& at) {
    refused = true;
    fail_at(file_, kLengthBytes + at.offset, what);
  }

  template <class... Parts>
  std::string in_tensor(const Parts&... parts) {
    return cat("tensor ", quote_name(tensor().name), ": ", parts...);
  }

  [[noreturn]] void unexpected(const std::string& what, const JsonPosition& at) {
    switch (place_) {
      case Place::outside:  // never: the header begins with '{'
      case Place::root:
        fail(cat(quote_name(key_), ": expected an object, got ", what), at);
      case Place::metadata:
        fail(cat("__metadata__: ", quote_name(key_), ": expected a text, got ", what), at);
      case Place::tensor:
        fail(in_tensor(key_, ": expected ", key_ == "dtype" ? "a text" : "an array of numbers", ", got ", what), at);
      case Place::shape:
        fail(in_tensor("shape: expected whole numbers from 0 to 2^63 - 1, got ", what), at);
      case Place::offsets:
        fail(in_tensor("data_offsets: expected whole numbers from 0 to 2^63 - 1, got ", what), at);
    }
    throw InternalError("safetensors: a place outside the enumeration");
  }

  void check_offsets(const JsonPosition& at) {
    if (offsets_[0] > offsets_[1] || offsets_[1] > data_bytes_) {
      fail(in_tensor("data_offsets [", offsets_[0], ",", offsets_[1], "] do not lie within the ", data_bytes_,
                     " bytes after the header"),
           at);
    }
  }

  // An object's end has no position of its own: complaints name the beginning of its last part.
  void check_tensor() {
    if (!has_dtype_) fail(in_tensor("the key dtype is missing"), position_);
    if (!has_shape_) fail(in_tensor("the key shape is missing"), position_);
    if (!has_offsets_) fail(in_tensor("the key data_offsets is missing"), position_);
    const std::optional<std::uint64_t> expected = bytes_of_shape(tensor().shape, tensor().dtype);
    if (!expected) fail(in_tensor("the bytes of shape ", shape_text(tensor().shape), " overflow 64 bits"), position_);
    if (offsets_[1] - offsets_[0] != *expected) {
      fail(in_tensor(tensor().dtype, shape_text(tensor().shape), " takes ", *expected, " bytes, data_offsets [",
                     offsets_[0], ",", offsets_[1], "] hold ", offsets_[1] - offsets_[0]),
           position_);
    }
    tensor().begin = data_begin_ + offsets_[0];
    tensor().end = data_begin_ + offsets_[1];
  }

  const std::string& file_;
  std::uint64_t data_begin_;
  std::uint64_t data_bytes_;
  Place place_ = Place::outside;
  JsonPosition position_;  // of the object or array begun last
  std::string key_;
  std::uint64_t offsets_[2] = {0, 0};
  int offset_count_ = 0;
  bool has_dtype_ = false;
  bool has_shape_ = false;
  bool has_offsets_ = false;
};

// Arrays must follow each other from the end of the header to the end of the file.
void check_order(std::deque<TensorEntry>& tensors, std::uint64_t data_begin, std::uint64_t file_bytes,
                 const std::string& file) {
  std::sort(tensors.begin(), tensors.end(), [](const TensorEntry& a, const TensorEntry& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  std::uint64_t reached = data_begin;
  std::string before = "the header";
  for (const TensorEntry& entry : tensors) {
    if (entry.begin != reached) {
      fail_at(file, std::min(entry.begin, reached),
              cat("tensor ", quote_name(entry.name), (entry.begin < reached ? " overlaps " : " leaves a hole after "),
                  before, ": expected it to begin at byte ", reached, ", it begins at ", entry.begin));
    }
    reached = entry.end;
    before = quote_name(entry.name);
  }
  if (reached != file_bytes) {
    fail_at(file, reached,
            cat("expected the file to end here, after ", before, ", but it has ", file_bytes - reached, " bytes more"));
  }
}

}  // namespace

std::string_view safetensors_dtype_name(DType dtype) {
  for (const auto& [known, name] : kDTypeNames) {
    if (known == dtype) return name;
  }
  throw InternalError(cat("safetensors: no name for the dtype ", dtype));
}

std::optional<DType> dtype_of_safetensors_name(std::string_view name) {
  for (const auto& [dtype, known] : kDTypeNames) {
    if (known == name) return dtype;
  }
  return std::nullopt;
}

const std::string* SafetensorsHeader::index_names() {
  const auto name = [this](std::uint32_t index) -> const std::string& { return tensors[index].name; };
  by_name.resize(tensors.size());
  std::iota(by_name.begin(), by_name.end(), 0u);
  std::sort(by_name.begin(), by_name.end(), [&name](std::uint32_t a, std::uint32_t b) { return name(a) < name(b); });
  const auto twice = std::adjacent_find(by_name.begin(), by_name.end(),
                                        [&name](std::uint32_t a, std::uint32_t b) { return name(a) == name(b); });
  return twice == by_name.end() ? nullptr : &name(*twice);
}

const TensorEntry* SafetensorsHeader::find(std::string_view name) const {
  const auto found = std::lower_bound(
      by_name.begin(), by_name.end(), name,
      [this](std::uint32_t index, std::string_view wanted) { return std::string_view(tensors[index].name) < wanted; });
  if (found == by_name.end() || tensors[*found].name != name) return nullptr;
  return &tensors[*found];
}

std::uint64_t safetensors_header_bytes(std::span<const std::byte> start, std::uint64_t file_bytes,
                                       const std::string& file) {
  if (start.size() < kLengthBytes || file_bytes < kLengthBytes) {
    fail_at(file, 0, cat("expected 8 bytes with the header's length, the file has ", file_bytes));
  }
  std::uint64_t length = 0;
  std::memcpy(&length, start.data(), kLengthBytes);
  if (length > kMaxSafetensorsHeaderBytes) {
    fail_at(file, 0,
            cat("expected a header of at most ", kMaxSafetensorsHeaderBytes, " bytes, it says ", length,
                ": this is no safetensors file, or it is damaged"));
  }
  if (length > file_bytes - kLengthBytes) {
    fail_at(file, 0,
            cat("the header says ", length, " bytes, the file has ", file_bytes - kLengthBytes,
                " after the length: it was cut short"));
  }
  return length;
}

SafetensorsHeader parse_safetensors_header(std::span<const std::byte> start, std::uint64_t file_bytes,
                                           const std::string& file) {
  const std::uint64_t length = safetensors_header_bytes(start, file_bytes, file);
  if (start.size() - kLengthBytes < length) throw InternalError("safetensors: parsing needs the whole header");
  const std::string_view text(reinterpret_cast<const char*>(start.data()) + kLengthBytes, length);
  if (!text.starts_with('{')) fail_at(file, kLengthBytes, "expected the header to begin with '{'");

  SafetensorsHeader header;
  header.data_begin = kLengthBytes + length;
  header.file_bytes = file_bytes;
  HeaderEvents events(file, header.data_begin, file_bytes - header.data_begin);
  JsonLimits limits;
  limits.max_bytes = kMaxSafetensorsHeaderBytes;
  limits.max_depth = kHeaderDepth;
  limits.max_values = length;  // none is shorter than a byte
  try {
    scan_json(text, file, events, limits);
  } catch (const FormatError& error) {
    if (events.refused) throw;
    const std::string_view reason = error.what();
    throw FormatError(cat("safetensors header, from byte 8: ", reason.substr(0, file.size() + 300)), file,
                      std::min(kLengthBytes + error.offset, file_bytes));
  }
  header.tensors = std::move(events.tensors);
  header.metadata = std::move(events.metadata);
  check_order(header.tensors, header.data_begin, file_bytes, file);
  header.index_names();  // the scanner has refused repeated keys
  return header;
}

}  // namespace castor::formats
