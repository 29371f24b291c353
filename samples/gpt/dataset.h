// ByteText: windows of a text as samples of a byte-level language model; a target is the byte after its input.
//
// Delicate: validation counts every held-out byte exactly once. Its windows overlap, so that a byte is predicted from
// at least context - stride bytes before it where the text has them; the targets that an earlier window has counted are
// kNotCounted.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "formats/token_file.h"
#include "strategy/config/field.h"
#include "strategy/data/dataset.h"

namespace castor::samples {

/// Options of ByteText.
struct ByteTextConfig {
  std::optional<std::string> path;
  std::string data_root = "data";
  std::string split = "train";
  std::int64_t context = 256;
  std::optional<std::int64_t> stride;
  double held_out_fraction = 0.05;
};

/// Names every option once.
template <class V>
void describe(V& v, ByteTextConfig& c) {
  using strategy::at_least, strategy::less_than, strategy::non_empty, strategy::one_of;
  v.field("path", c.path, "a text file of any encoding; null: the King James text that Debian's `bible` prints",
          non_empty());
  v.field("data_root", c.data_root, "folder where the King James text is kept once it was printed", non_empty());
  v.field("split", c.split, "train: the text without its held-out end; val: that end", one_of({"train", "val"}));
  v.field("context", c.context, "bytes of a window; at most the model's block_size", at_least(1));
  v.field("stride", c.stride, "bytes between the starts of two windows; null: 1 to train, half a context to validate",
          at_least(1));
  v.field("held_out_fraction", c.held_out_fraction, "share of the text, from its end, that is not trained on",
          at_least(0), less_than(1));
  v.check(
      "held_out_fraction", [&] { return c.split != "val" || c.held_out_fraction > 0; }, "must be above 0 to validate");
  v.check(
      "stride", [&] { return c.split != "val" || !c.stride || *c.stride <= c.context; },
      "must be at most context to validate, or bytes would be skipped");
}

/// A batch of n windows has inputs i64 [n, context] and targets i64 [n, context].
class ByteText final : public strategy::Dataset {
 public:
  using Config = ByteTextConfig;
  /// The target of a position that does not count: CrossEntropyLoss's default ignore_index.
  static constexpr std::int64_t kNotCounted = -100;

  /// Throws IoError for a file or program that is missing, FormatError for a text too short for one window, ConfigError
  /// for options out of range.
  explicit ByteText(const ByteTextConfig& config);
  /// Over a file that is open; the config's `path` and `data_root` are not looked at.
  ByteText(const ByteTextConfig& config, formats::TokenFile file);

  /// Windows. To train: one at every `stride`-th position whose targets lie before the held-out bytes.
  std::int64_t size() const override { return size_; }
  autograd::Batch batch(std::span<const std::int64_t> samples) const override;
  /// Bytes that the targets of all windows count: to validate, all held-out bytes.
  std::int64_t counted_bytes() const;

 private:
  struct Window {
    std::int64_t start;      ///< of the inputs in the file
    std::int64_t first_new;  ///< position of the first target that counts
  };
  Window window(std::int64_t sample) const;

  ByteTextConfig config_;
  formats::TokenFile file_;
  std::int64_t stride_;
  std::int64_t size_;
};

}  // namespace castor::samples
