// The precisions a model is trained in, by the names of `mixed_precision` and of the plugins' `precision`.
//
// In every precision sums of gradients and optimizer states are f32. fp16 and bf16 keep weights, activations and each
// micro-batch's gradients in 16 bits, beside f32 master weights; fp16 scales its losses (autograd/optim/grad_scaler.h).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "core/base/dtype.h"

namespace castor::strategy {

enum class Precision : std::uint8_t { fp32, fp16, bf16 };

/// "fp32", "fp16", "bf16".
std::string_view precision_name(Precision precision);
/// The precision of this name. Throws ConfigError naming `path` and the names there are.
Precision precision_of(const std::string& name, const std::string& path);
/// What weights and activations are stored as.
DType compute_dtype(Precision precision);

}  // namespace castor::strategy
