// FashionMNIST: 28x28 grey images of clothes in ten classes, from the IDX files that Debian's dataset-fashion-mnist
// installs. Source: Xiao et al. 2017, arXiv:1708.07747.
//
// Delicate: images stay bytes in memory and become floats batch by batch; a value is (byte / 255 - mean) / std, each
// step rounded to f32, as PyTorch's ToTensor and Normalize compute it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "strategy/config/field.h"
#include "strategy/data/dataset.h"

namespace castor::samples {

/// Options of FashionMnist.
struct FashionMnistConfig {
  std::string data_root = "/usr/share/datasets/fashion-mnist";
  std::string split = "train";
  double mean = 0;
  double std = 1;
};

/// Names every option once.
template <class V>
void describe(V& v, FashionMnistConfig& c) {
  using strategy::more_than, strategy::non_empty, strategy::one_of;
  v.field("data_root", c.data_root,
          "folder of the four *-ubyte.gz files; the default is where Debian's package puts them", non_empty());
  v.field("split", c.split, "train: 60000 images; test: 10000", one_of({"train", "test"}));
  v.field("mean", c.mean, "subtracted from values in 0 .. 1");
  v.field("std", c.std, "values are divided by it", more_than(0));
}

/// A batch of n images has inputs f32 [n, 1, 28, 28] and targets i64 [n] in 0 .. 9.
class FashionMnist final : public strategy::Dataset {
 public:
  using Config = FashionMnistConfig;
  /// Reads one split. Throws IoError for a missing file, naming the Debian package; FormatError for a damaged one, or
  /// one that holds something else.
  explicit FashionMnist(const FashionMnistConfig& config = {});

  std::int64_t size() const override { return static_cast<std::int64_t>(labels_.size()); }
  autograd::Batch batch(std::span<const std::int64_t> samples) const override;

 private:
  float mean_;
  float std_;
  std::vector<std::uint8_t> pixels_;  // size() * 784
  std::vector<std::uint8_t> labels_;
};

}  // namespace castor::samples
