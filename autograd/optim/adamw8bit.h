// AdamW with its two moments in 8 bits: 2 bytes a parameter and a scale for each block of 1024 elements of the logical
// tensor, in place of 8 bytes. Blocks do not depend on cuts, so neither do results.
#pragma once

#include <array>
#include <cstdint>

#include "autograd/optim/optimizer.h"

namespace castor::autograd {

/// Options of AdamW8bit; those marked (group) are hyper-parameters of each group and start from here.
struct AdamW8bitConfig {
  double lr = 1e-3;                         ///< (group) >= 0
  std::array<double, 2> betas{0.9, 0.999};  ///< (group, as beta1 and beta2) each in [0, 1)
  double eps = 1e-8;                        ///< (group) >= 0
  double weight_decay = 1e-2;               ///< (group) >= 0
  std::int64_t min_8bit_size = 4096;        ///< elements; smaller parameters keep f32 moments
};

/// Names every option once.
template <class V>
void describe(V& v, AdamW8bitConfig& c) {
  v.field("lr", c.lr, "learning rate");
  v.field("betas", c.betas, "decay of the running mean of gradients and of their squares");
  v.field("eps", c.eps, "added to the square root in the denominator");
  v.field("weight_decay", c.weight_decay, "p *= 1 - lr weight_decay");
  v.field("min_8bit_size", c.min_8bit_size, "elements: parameters that have fewer keep their moments in f32");
  v.retired("amsgrad", false, "the peer has none");
  v.retired("optim_bits", 8, "AdamW keeps its states in 32");
  v.retired("percentile_clipping", 100, "gradients are limited by the plugin's max_norm or clip_grad");
  v.retired("block_wise", true, "one scale a tensor is worse and would need the whole tensor");
  v.retired("is_paged", false, "where optimizer states lie is the plugin's choice: its tiers");
  v.refuse("args", "every option has its name");
  v.check(
      "lr", [&] { return c.lr >= 0; }, "must be at least 0");
  v.check(
      "betas", [&] { return c.betas[0] >= 0 && c.betas[0] < 1 && c.betas[1] >= 0 && c.betas[1] < 1; },
      "must be in [0, 1)");
  v.check(
      "eps", [&] { return c.eps >= 0; }, "must be at least 0");
  v.check(
      "weight_decay", [&] { return c.weight_decay >= 0; }, "must be at least 0");
  v.check(
      "min_8bit_size", [&] { return c.min_8bit_size >= 0; }, "must be at least 0");
}

/// AdamW's step on moments that are the dynamic code's numbers times their block's scale; the new moments are rounded
/// to the code after the step. States: "exp_avg_code", "exp_avg_sq_code" u8, "exp_avg_scale", "exp_avg_sq_scale" f32
/// [blocks]; of parameters with fewer than min_8bit_size elements "exp_avg" and "exp_avg_sq". Source: Dettmers et al.
/// 2022, arXiv:2110.02861.
class AdamW8bit final : public Optimizer {
 public:
  /// Throws ConfigError for options out of range.
  explicit AdamW8bit(const AdamW8bitConfig& config = {}, std::vector<ParamGroup> groups = {});
  const char* type_name() const override { return "AdamW8bit"; }
  std::vector<StateSpec> states(const Shape& shape) const override;
  void apply(const Range& range, const StepContext& context, const Stats& stats) const override;

 private:
  bool has_codes(const Shape& shape) const { return shape.numel() >= config_.min_8bit_size; }

  AdamW8bitConfig config_;
};

}  // namespace castor::autograd
