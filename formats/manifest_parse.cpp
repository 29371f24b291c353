// Reading a manifest's text: tail and digest first, then the JSON event by event.
//
// Delicate: a manifest may hold millions of slices, so no tree of the whole text is built. Keys that this version does
// not know are skipped with all they hold: a later revision may add some without locking older readers out.
#include <limits>
#include <optional>
#include <utility>

#include "core/base/digest.h"
#include "core/base/error.h"
#include "core/base/file_error.h"
#include "core/base/json.h"
#include "formats/manifest.h"
#include "formats/manifest_check.h"
#include "formats/safetensors.h"

namespace castor::formats {
namespace {

constexpr std::string_view kTailStart = "\"xxh3\":\"";
constexpr std::string_view kTailEnd = "\"}\n";
constexpr std::size_t kTailBytes = kTailStart.size() + 16 + kTailEnd.size();
constexpr int kManifestDepth = 16;  // 5 are used: object, tensors, tensor, slices, slice

// Takes the events of one manifest.
class ManifestEvents : public JsonEvents {
 public:
  explicit ManifestEvents(const std::string& file) : file_(file) {}

  Manifest manifest;
  std::optional<std::int64_t> version, reads;
  bool refused = false;  // the exception on its way was thrown here, not by the scanner

  void on_null(const JsonPosition& at) override { other_scalar("null", at); }
  void on_bool(bool value, const JsonPosition& at) override { other_scalar(value ? "true" : "false", at); }
  void on_float(double, const std::string& text, const JsonPosition& at) override {
    other_scalar(cat("the number ", text.substr(0, 40)), at);
  }
  void on_large_integer(std::uint64_t value, const JsonPosition& at) override {
    other_scalar(cat("the number ", value), at);
  }

  void on_integer(std::int64_t value, const JsonPosition& at) override {
    if (is_skipping()) return;
    if (value < 0) fail(cat(key_, ": expected no negative number, got ", value), at);
    const auto count = static_cast<std::uint64_t>(value);
    switch (place_) {
      case Place::root:
        if (key_ == "version") {
          version = value;
        } else if (key_ == "reads") {
          reads = value;
        } else if (key_ == "save") {
          manifest.save_number = count;
        } else if (is_known(kRootKeys)) {
          unexpected(cat("the number ", value), at);
        }
        return;
      case Place::file:
        if (key_ == "bytes") {
          file().bytes = count;
          seen_ |= kBytes;
        } else if (key_ == "head_bytes") {
          file().head_bytes = count;
          seen_ |= kHeadBytes;
        } else if (is_known(kFileKeys)) {
          unexpected(cat("the number ", value), at);
        }
        return;
      case Place::tensor:
        if (is_known(kTensorKeys)) unexpected(cat("the number ", value), at);
        return;
      case Place::shape:
        if (tensor().shape.size() == kMaxSafetensorsAxes)
          fail(cat("shape: more than ", kMaxSafetensorsAxes, " axes"), at);
        tensor().shape.push_back(value);
        return;
      case Place::slice:
        slice_number(value, at);
        return;
      default:
        unexpected(cat("the number ", value), at);
    }
  }

  void on_string(std::string& value, const JsonPosition& at) override {
    if (is_skipping()) return;
    switch (place_) {
      case Place::root:
        if (key_ == "format") {
          if (value != kManifestFormat)
            fail(cat("format: expected \"", kManifestFormat, "\", got ", quote_name(value, 40)), at);
          has_format_ = true;
        } else if (is_known(kRootKeys) && key_ != "xxh3") {
          unexpected("a text", at);
        }
        return;
      case Place::aliases:
        manifest.aliases.emplace(std::move(key_), std::move(value));
        return;
      case Place::file:
        if (key_ == "name") {
          file().name = std::move(value);
          seen_ |= kName;
        } else if (key_ == "head_xxh3") {
          file().head_digest = digest(value, at);
          seen_ |= kHeadDigest;
        } else if (is_known(kFileKeys)) {
          unexpected("a text", at);
        }
        return;
      case Place::tensor:
        tensor_text(value, at);
        return;
      case Place::slice:
        if (slice_fields_ != 4) unexpected("a text", at);
        if (value.size() % 16 != 0)
          fail(cat("a slice's digests take ", value.size(), " digits, no multiple of 16"), at);
        slice().digests.reserve(value.size() / 16);
        for (std::size_t i = 0; i < value.size(); i += 16) {
          slice().digests.push_back(digest(std::string_view(value).substr(i, 16), at));
        }
        ++slice_fields_;
        return;
      default:
        unexpected("a text", at);
    }
  }

  void on_key(std::string& key, const JsonPosition&) override {
    if (!is_skipping()) key_ = std::move(key);
  }

  void on_object_begin(const JsonPosition& at) override {
    position_ = at;
    if (is_skipping()) {
      ++skipped_depth_;
    } else if (place_ == Place::outside) {
      place_ = Place::root;
    } else if (place_ == Place::files) {
      manifest.files.emplace_back();
      place_ = Place::file;
      seen_ = 0;
    } else if (place_ == Place::tensors) {
      manifest.tensors.emplace_back();
      place_ = Place::tensor;
      seen_ = 0;
    } else if (place_ == Place::root && key_ == "aliases") {
      place_ = Place::aliases;
    } else {
      begin_unknown("an object", at);
    }
  }

  void on_object_end() override {
    if (is_skipping()) {
      --skipped_depth_;
    } else if (place_ == Place::file) {
      if (seen_ != (kName | kBytes | kHeadBytes | kHeadDigest)) {
        fail("a file needs the keys name, bytes, head_bytes and head_xxh3", position_);
      }
      place_ = Place::files;
    } else if (place_ == Place::tensor) {
      if (seen_ != (kName | kRole | kDType | kShape | kSlices)) {
        fail("a tensor needs the keys name, role, dtype, shape and slices", position_);
      }
      place_ = Place::tensors;
    } else if (place_ == Place::aliases) {
      place_ = Place::root;
    } else {
      if (!has_format_) fail(cat("the key format is missing: this is no manifest of a checkpoint"), position_);
      if (!version || !reads) fail("the keys version and reads are needed", position_);
      place_ = Place::outside;
    }
  }

  void on_array_begin(const JsonPosition& at) override {
    position_ = at;
    if (is_skipping()) {
      ++skipped_depth_;
    } else if (place_ == Place::root && key_ == "files") {
      place_ = Place::files;
    } else if (place_ == Place::root && key_ == "tensors") {
      place_ = Place::tensors;
    } else if (place_ == Place::tensor && key_ == "shape") {
      place_ = Place::shape;
      seen_ |= kShape;
    } else if (place_ == Place::tensor && key_ == "slices") {
      place_ = Place::slices;
      seen_ |= kSlices;
    } else if (place_ == Place::slices) {
      place_ = Place::slice;
      tensor().slices.emplace_back();
      slice_fields_ = 0;
    } else {
      begin_unknown("an array", at);
    }
  }

  void on_array_end() override {
    if (is_skipping()) {
      --skipped_depth_;
      return;
    }
    if (place_ == Place::slice && slice_fields_ != 5) {
      fail("a slice is [file, begin, offset, count, \"digests\"]", position_);
    }
    place_ = place_ == Place::slice                              ? Place::slices
             : place_ == Place::slices || place_ == Place::shape ? Place::tensor
                                                                 : Place::root;
  }

 private:
  enum class Place { outside, root, files, file, tensors, tensor, shape, slices, slice, aliases };
  enum Seen : unsigned {
    kName = 1,
    kRole = 2,
    kDType = 4,
    kShape = 8,
    kSlices = 16,
    kBytes = 32,
    kHeadBytes = 64,
    kHeadDigest = 128
  };
  static constexpr std::string_view kRootKeys[] = {"format", "version", "reads",   "save",
                                                   "files",  "tensors", "aliases", "xxh3"};
  static constexpr std::string_view kFileKeys[] = {"name", "bytes", "head_bytes", "head_xxh3"};
  static constexpr std::string_view kTensorKeys[] = {"name", "role", "dtype", "shape", "slices"};

  bool is_skipping() const { return skipped_depth_ > 0; }
  CheckpointFile& file() { return manifest.files.back(); }
  LogicalTensor& tensor() { return manifest.tensors.back(); }
  TensorSlice& slice() { return tensor().slices.back(); }

  template <class Keys>
  bool is_known(const Keys& keys) const {
    for (const std::string_view known : keys) {
      if (known == key_) return true;
    }
    return false;
  }

  // True where a key is followed by a value and this version does not know the key.
  bool is_unknown_key() const {
    return (place_ == Place::root && !is_known(kRootKeys)) || (place_ == Place::file && !is_known(kFileKeys)) ||
           (place_ == Place::tensor && !is_known(kTensorKeys));
  }

  void begin_unknown(const char* what, const JsonPosition& at) {
    if (!is_unknown_key()) unexpected(what, at);
    skipped_depth_ = 1;
  }

  void other_scalar(const std::string& what, const JsonPosition& at) {
    if (!is_skipping() && !is_unknown_key()) unexpected(what, at);
  }

  void slice_number(std::int64_t value, const JsonPosition& at) {
    switch (slice_fields_++) {
      case 0:
        if (value > std::numeric_limits<std::uint32_t>::max()) fail(cat("there is no file number ", value), at);
        slice().file = static_cast<std::uint32_t>(value);
        return;
      case 1:
        slice().begin = static_cast<std::uint64_t>(value);
        return;
      case 2:
        slice().offset = value;
        return;
      case 3:
        slice().count = value;
        return;
      default:
        fail("a slice is [file, begin, offset, count, \"digests\"]", at);
    }
  }

  void tensor_text(std::string& value, const JsonPosition& at) {
    if (key_ == "name") {
      tensor().name = std::move(value);
      seen_ |= kName;
    } else if (key_ == "role") {
      tensor().role = std::move(value);
      seen_ |= kRole;
    } else if (key_ == "dtype") {
      const std::optional<DType> dtype = dtype_of_safetensors_name(value);
      if (!dtype) fail(cat("dtype: expected one of safetensors' names, got ", quote_name(value, 40)), at);
      tensor().dtype = *dtype;
      seen_ |= kDType;
    } else if (is_known(kTensorKeys)) {
      unexpected("a text", at);
    }
  }

  std::uint64_t digest(std::string_view text, const JsonPosition& at) {
    const std::optional<std::uint64_t> value = digest_of_hex(text);
    if (!value) fail(cat("expected 16 lower-case hexadecimal digits, got ", quote_name(text, 40)), at);
    return *value;
  }

  [[noreturn]] void fail(const std::string& what, const JsonPosition& at) {
    refused = true;
    std::string where;
    if (!manifest.tensors.empty() && place_ != Place::tensors) where = cat("tensor ", quote_name(tensor().name), ": ");
    throw FormatError(cat("manifest ", quote_name(file_, 4096), ": at byte ", at.offset, ": ", where, what), file_,
                      at.offset);
  }

  [[noreturn]] void unexpected(const std::string& what, const JsonPosition& at) {
    fail(cat("unexpected ", what, key_.empty() ? "" : " near the key ", quote_name(key_, 40)), at);
  }

  const std::string& file_;
  Place place_ = Place::outside;
  JsonPosition position_;  // of the object or array begun last
  std::string key_;
  unsigned seen_ = 0;
  int slice_fields_ = 0;
  int skipped_depth_ = 0;
  bool has_format_ = false;
};

}  // namespace

std::string manifest_tail(std::uint64_t digest) { return cat(kTailStart, hex_of_digest(digest), kTailEnd); }

Manifest unchecked_manifest(std::string_view text, const std::string& file) {
  const auto refuse = [&file](std::uint64_t offset, const std::string& what) {
    throw FormatError(cat("manifest ", quote_name(file, 4096), ": ", what), file, offset);
  };
  if (text.size() < kTailBytes || text.size() > kMaxManifestBytes) {
    refuse(text.size(), cat("expected ", kTailBytes, " to ", kMaxManifestBytes, " bytes, got ", text.size(),
                            ": the checkpoint is torn or this is no manifest"));
  }
  const std::string_view body = text.substr(0, text.size() - kTailBytes);
  if (text.substr(body.size()) != manifest_tail(xxh3(as_byte_span(body)))) {
    refuse(body.size(), "its digest does not match: it is torn, damaged or was edited; use another checkpoint");
  }

  ManifestEvents events(file);
  JsonLimits limits;
  limits.max_bytes = kMaxManifestBytes;
  limits.max_depth = kManifestDepth;
  limits.max_values = text.size();  // none is shorter than a byte
  try {
    scan_json(text, file, events, limits);
  } catch (const FormatError& error) {
    // Whatever a later revision looks like, its reader's number is what the user must hear of.
    if (events.reads.value_or(0) <= kCheckpointVersion) throw;
  }
  if (*events.reads > kCheckpointVersion) {
    refuse(0, cat("a newer Castor wrote it (revision ", events.version.value_or(0), "); it needs a reader of revision ",
                  *events.reads, ", this one knows ", kCheckpointVersion, ": update Castor"));
  }
  Manifest manifest = std::move(events.manifest);
  manifest.version = *events.version;
  manifest.manifest_bytes = text.size();
  return manifest;
}

Manifest parse_manifest(std::string_view text, const std::string& file) {
  Manifest manifest = unchecked_manifest(text, file);
  check_manifest(manifest, file);
  return manifest;
}

}  // namespace castor::formats
