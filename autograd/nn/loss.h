// Losses as modules, with PyTorch's names and options. They have no parameters; the module only keeps the options and gives
// strategies a place to hook in.
#pragma once

#include "autograd/nn/module.h"

namespace castor::autograd {

/// How the losses of the elements become one.
enum class Reduction : std::uint8_t { mean, sum };

/// Softmax and negative log-likelihood in one pass, without a full-size copy of the logits in f32.
class CrossEntropyLoss final : public Module {
 public:
  struct Options {
    std::int64_t ignore_index = -100;  ///< targets of this class count for nothing, not even in the mean's divisor
    double label_smoothing = 0;        ///< in [0, 1): this share of the target's weight is spread over all classes
    Reduction reduction = Reduction::mean;
  };
  CrossEntropyLoss() = default;
  /// Throws ConfigError for label_smoothing outside [0, 1].
  explicit CrossEntropyLoss(const Options& options);
  /// logits [..., classes] f32|bf16|f16, targets i64|i32 [...] -> f32 []; leading axes are merged
  Variable forward(const Variable& logits, const Tensor& targets);

 private:
  Options options_;
};

/// (prediction - target)^2.
class MSELoss final : public Module {
 public:
  explicit MSELoss(Reduction reduction = Reduction::mean) : reduction_(reduction) {}
  /// Equal shapes -> [].
  Variable forward(const Variable& prediction, const Tensor& target);

 private:
  Reduction reduction_;
};

}  // namespace castor::autograd
