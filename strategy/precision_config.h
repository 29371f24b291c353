// The options of each `mixed_precision`, and how they become one MixedPrecision.
//
// Delicate: a dict form says everything about the loss scale, so its values win over the plugin's, which are always
// there. Sources of names and defaults: NVIDIA Apex's amp.initialize (opt_level O2: dynamic loss scale from 2^16,
// doubled after 2000 steps without overflow, at most 2^24); for fp16 ColossalAI's DynamicGradScaler.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>

#include "strategy/config/field.h"
#include "strategy/plugin.h"
#include "strategy/precision.h"

namespace castor::strategy {

/// `{type: fp16, ...}`.
struct Fp16Config {
  autograd::GradScalerConfig grad_scaler;
};

template <class V>
void describe(V& v, Fp16Config& c) {
  describe_grad_scaler(v, c.grad_scaler);
}

/// `{type: fp16_apex, ...}`.
struct Fp16ApexConfig {
  std::variant<double, std::string> loss_scale = "dynamic";
  bool keep_batchnorm_fp32 = true;
  double min_loss_scale = 1;
  double max_loss_scale = 16777216;  ///< 2^24
  std::int64_t max_skips = autograd::GradScalerConfig{}.max_skips;
};

template <class V>
void describe(V& v, Fp16ApexConfig& c) {
  v.field("loss_scale", c.loss_scale, "dynamic, or the number that losses are always multiplied by");
  v.field("keep_batchnorm_fp32", c.keep_batchnorm_fp32, "batch norm has f32 weights and computes in f32");
  v.field("min_loss_scale", c.min_loss_scale, "loss_scale dynamic: the smallest", more_than(0));
  v.field("max_loss_scale", c.max_loss_scale, "loss_scale dynamic: the largest", more_than(0));
  v.field("max_skips", c.max_skips, "updates skipped in a row at which training stops", at_least(1));
  v.retired("opt_level", ConfigNode("O2"),
            "fp32 is O0; O1 patches PyTorch's functions, which are not there; "
            "fp16 without f32 masters is a plugin's master_weights: false");
  v.retired("master_weights", ConfigNode(true), "f32 masters are what O2 means");
  v.retired("cast_model_type", ConfigNode(), "the type is fp16");
  v.retired("patch_torch_functions", ConfigNode(), "there are no functions of PyTorch to patch");
  v.retired("cast_model_outputs", ConfigNode(), "losses and predictions are f32");
  v.retired("num_losses", ConfigNode(1), "losses are added before backward, so one scale serves all");
  v.check(
      "loss_scale",
      [&] {
        const auto* text = std::get_if<std::string>(&c.loss_scale);
        return text != nullptr ? *text == "dynamic" : std::get<double>(c.loss_scale) > 0;
      },
      "must be dynamic or a number above 0");
  v.check(
      "max_loss_scale", [&] { return c.min_loss_scale <= c.max_loss_scale; }, "must be at least min_loss_scale");
}

MixedPrecision mixed_precision_of(const Fp16Config& config);
MixedPrecision mixed_precision_of(const Fp16ApexConfig& config);

}  // namespace castor::strategy
