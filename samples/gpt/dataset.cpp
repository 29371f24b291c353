// Where windows lie. Delicate: the last window to validate is moved back so that it ends with the text and is as long
// as the others; when the held-out part is shorter than one window, the only window begins in the trained part.
#include "samples/gpt/dataset.h"

#include <algorithm>

#include "core/base/file_error.h"
#include "samples/gpt/king_james.h"

namespace castor::samples {
namespace {

formats::TokenFile open_text(const ByteTextConfig& config) {
  return formats::TokenFile::open(config.path ? *config.path : king_james_file(config.data_root),
                                  config.held_out_fraction);
}

std::int64_t signed_size(std::span<const std::uint8_t> bytes) { return static_cast<std::int64_t>(bytes.size()); }

}  // namespace

ByteText::ByteText(const ByteTextConfig& config) : ByteText(config, open_text(config)) {}

ByteText::ByteText(const ByteTextConfig& config, formats::TokenFile file) : config_(config), file_(std::move(file)) {
  const bool trains = config_.split == "train";
  if (!trains && config_.split != "val") {
    throw ConfigError(cat("ByteText: split is train or val, got ", config_.split), "split");
  }
  if (config_.context < 1)
    throw ConfigError(cat("ByteText: context must be at least 1, got ", config_.context), "context");
  stride_ = config_.stride.value_or(trains ? 1 : std::max<std::int64_t>(1, config_.context / 2));
  if (stride_ < 1 || (!trains && stride_ > config_.context)) {
    throw ConfigError(cat("ByteText: stride must be at least 1, and to validate at most context; got ", stride_),
                      "stride");
  }
  const std::int64_t trained = signed_size(file_.train()), held_out = signed_size(file_.held_out());
  if (!trains && held_out == 0) {
    throw ConfigError("ByteText: nothing is held out to validate with; raise held_out_fraction", "held_out_fraction");
  }
  const std::int64_t usable = trains ? trained : trained + held_out;
  if (usable < config_.context + 1) {
    throw FormatError(
        cat("ByteText ", quote_name(file_.path(), 4096), ": ", usable, " bytes are too few for a window of ",
            config_.context, " bytes and the byte after it: give a longer text or a smaller context"),
        file_.path(), static_cast<std::uint64_t>(usable));
  }
  const std::int64_t steps =
      trains ? trained - config_.context - 1 : std::max<std::int64_t>(0, held_out - config_.context);
  size_ = (trains ? steps / stride_ : (steps + stride_ - 1) / stride_) + 1;
}

ByteText::Window ByteText::window(std::int64_t sample) const {
  const std::int64_t position = sample * stride_;
  if (config_.split == "train") return {position, 0};
  // Positions are counted from the first held-out byte, which is the target of the byte before it.
  const std::int64_t held_out = signed_size(file_.held_out());
  const std::int64_t start = std::min(position, held_out - config_.context);
  const std::int64_t counted = sample == 0 ? 0 : (sample - 1) * stride_ + config_.context;
  return {signed_size(file_.train()) - 1 + start, counted - start};
}

std::int64_t ByteText::counted_bytes() const {
  return config_.split == "train" ? size_ * config_.context : signed_size(file_.held_out());
}

autograd::Batch ByteText::batch(std::span<const std::int64_t> samples) const {
  const Shape shape{static_cast<std::int64_t>(samples.size()), config_.context};
  const autograd::Batch result{Tensor::empty(shape, DType::i64), Tensor::empty(shape, DType::i64)};
  std::int64_t* inputs = result.inputs.data<std::int64_t>();
  std::int64_t* targets = result.targets.data<std::int64_t>();
  for (const std::int64_t sample : samples) {
    if (sample < 0 || sample >= size_) {
      throw ShapeError(cat("ByteText: sample ", sample, " is outside the ", size_, " windows"));
    }
    const auto [start, first_new] = window(sample);
    const std::uint8_t* bytes = file_.all().data() + start;
    for (std::int64_t i = 0; i < config_.context; ++i) {
      *inputs++ = bytes[i];
      *targets++ = i < first_new ? kNotCounted : bytes[i + 1];
    }
  }
  return result;
}

}  // namespace castor::samples
