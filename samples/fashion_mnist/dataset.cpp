// Reading, checking and normalising. Delicate: the two files are checked against each other here, because each alone
// can be a sound IDX file and still not be this data set.
#include "samples/fashion_mnist/dataset.h"

#include <algorithm>
#include <utility>

#include "core/base/file_error.h"
#include "core/base/parallel.h"
#include "formats/idx_file.h"

namespace castor::samples {
namespace {

constexpr std::int64_t kSide = 28;
constexpr std::int64_t kPixels = kSide * kSide;
constexpr std::uint8_t kClasses = 10;

formats::IdxArray read(const std::string& path, int axes) {
  formats::IdxOptions options;
  options.axes = axes;
  options.missing_hint =
      "it comes with Debian's package dataset-fashion-mnist: run `apt-get install dataset-fashion-mnist` as root, or "
      "set "
      "the data set's data_root to the folder that holds it";
  return formats::read_idx_file(path, options);
}

/// Byte of the file, unpacked, where element `index` of an array with `axes` axes lies.
std::uint64_t element_offset(int axes, std::int64_t index) { return static_cast<std::uint64_t>(4 + 4 * axes + index); }

}  // namespace

FashionMnist::FashionMnist(const FashionMnistConfig& config)
    : mean_(static_cast<float>(config.mean)), std_(static_cast<float>(config.std)) {
  if (!(std_ > 0)) throw ConfigError(cat("FashionMNIST: std must be above 0, got ", config.std), "std");
  if (config.split != "train" && config.split != "test") {
    throw ConfigError(cat("FashionMNIST: split is train or test, got ", config.split), "split");
  }
  const std::string prefix = config.split == "train" ? "train" : "t10k";
  const std::string image_path = join_path(config.data_root, prefix + "-images-idx3-ubyte.gz");
  const std::string label_path = join_path(config.data_root, prefix + "-labels-idx1-ubyte.gz");
  formats::IdxArray images = read(image_path, 3);
  formats::IdxArray labels = read(label_path, 1);
  if (images.shape[0] < 1 || images.shape[1] != kSide || images.shape[2] != kSide) {
    throw FormatError(cat("FashionMNIST ", quote_name(image_path, 4096), ": expected images of 28 x 28, got [",
                          images.shape[0], ", ", images.shape[1], ", ", images.shape[2], "]"),
                      image_path, 4);
  }
  if (labels.shape[0] != images.shape[0]) {
    throw FormatError(
        cat("FashionMNIST ", quote_name(label_path, 4096), ": ", labels.shape[0], " labels for the ", images.shape[0],
            " images of ", quote_name(image_path, 4096), "; both must come from one split"),
        label_path, 4);
  }
  const auto wrong =
      std::find_if(labels.values.begin(), labels.values.end(), [](std::uint8_t l) { return l >= kClasses; });
  if (wrong != labels.values.end()) {
    const std::int64_t index = wrong - labels.values.begin();
    throw FormatError(
        cat("FashionMNIST ", quote_name(label_path, 4096), ": label ", index, " is ", int{*wrong}, ", expected 0 to 9"),
        label_path, element_offset(1, index));
  }
  pixels_ = std::move(images.values);
  labels_ = std::move(labels.values);
}

autograd::Batch FashionMnist::batch(std::span<const std::int64_t> samples) const {
  for (const std::int64_t sample : samples) {
    if (sample < 0 || sample >= size()) {
      throw ShapeError(cat("FashionMNIST: sample ", sample, " is outside the ", size(), " images"));
    }
  }
  const auto count = static_cast<std::int64_t>(samples.size());
  const autograd::Batch result{Tensor::empty({count, 1, kSide, kSide}, DType::f32), Tensor::empty({count}, DType::i64)};
  float* out = result.inputs.data<float>();
  std::int64_t* targets = result.targets.data<std::int64_t>();
  const bool normalises = mean_ != 0.0f || std_ != 1.0f;
  parallel_for(count, 64, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      const std::int64_t sample = samples[static_cast<std::size_t>(row)];
      const std::uint8_t* from = pixels_.data() + sample * kPixels;
      float* to = out + row * kPixels;
      for (std::int64_t i = 0; i < kPixels; ++i) to[i] = static_cast<float>(from[i]) / 255.0f;
      if (normalises) {
        for (std::int64_t i = 0; i < kPixels; ++i) to[i] = (to[i] - mean_) / std_;
      }
      targets[row] = labels_[static_cast<std::size_t>(sample)];
    }
  });
  return result;
}

}  // namespace castor::samples
