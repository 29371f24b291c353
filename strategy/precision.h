// The precisions a model is trained in, by the names of `mixed_precision` and of the plugins' `precision`.
//
// In every precision sums of gradients and optimizer states are f32. fp16 and bf16 keep weights, activations and each
// micro-batch's gradients in 16 bits, beside f32 master weights; fp16 scales its losses (autograd/optim/grad_scaler.h).
// fp16_apex is fp16 with batch norm in f32 (NVIDIA Apex, amp, opt_level O2). fp8 is bf16 whose linear layers round what
// they multiply to 8 bits (core/ops/fp8.h); embeddings, norms, attention, convolutions and a model's output matrix
// stay in bf16.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "autograd/nn/module.h"
#include "autograd/optim/grad_scaler.h"
#include "core/base/dtype.h"

namespace castor::strategy {

enum class Precision : std::uint8_t { fp32, fp16, bf16, fp8, fp16_apex };

/// What `mixed_precision` asks for.
struct MixedPrecision {
  MixedPrecision(Precision its_type = Precision::fp32) : type(its_type) {}

  Precision type;
  std::optional<autograd::GradScalerConfig> grad_scaler = {};  ///< none: the plugin's, or GradScalerConfig's own
  bool keep_batchnorm_fp32 = true;                             ///< fp16_apex
};

/// "fp32", "fp16", "bf16", "fp8", "fp16_apex".
std::string_view precision_name(Precision precision);
/// The precision of this name. Throws ConfigError naming `path` and the names there are.
Precision precision_of(const std::string& name, const std::string& path);
/// What a plugin's `precision` and `use_fp8` say together. Throws ConfigError where they contradict each other.
Precision plugin_precision(const std::string& name, bool use_fp8);
/// What weights and activations are stored as.
DType compute_dtype(Precision precision);
/// True where losses are scaled and steps that overflow are skipped.
bool scales_losses(Precision precision);
/// What a model's tensors are in this precision, on `device`.
autograd::TensorOptions tensor_options(const MixedPrecision& precision, Device device);

}  // namespace castor::strategy
