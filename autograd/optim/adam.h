// Adam and AdamW, as PyTorch computes them: they differ in where weight decay enters.
#pragma once

#include <array>
#include <memory>

#include "autograd/optim/optimizer.h"
#include "core/ops/optim.h"

namespace castor::autograd {

/// Options of Adam; those marked (group) are hyper-parameters of each group and start from here.
struct AdamConfig {
  double lr = 1e-3;                         ///< (group) >= 0
  std::array<double, 2> betas{0.9, 0.999};  ///< (group, as beta1 and beta2) each in [0, 1)
  double eps = 1e-8;                        ///< (group) >= 0
  double weight_decay = 0;                  ///< (group) >= 0
  bool bias_correction = true;
  bool amsgrad = false;
  bool maximize = false;
};
/// Options of AdamW: Adam's with another default.
struct AdamWConfig : AdamConfig {
  AdamWConfig() { weight_decay = 1e-2; }
};

/// Options of ColossalAI's HybridAdam, FusedAdam and CPUAdam, which are one optimizer here: where a step is computed is
/// the plugin's choice.
struct HybridAdamConfig : AdamConfig {
  bool adamw_mode = true;  ///< AdamW's decay; false: Adam's
};

/// What all of them have.
template <class V>
void describe_adam(V& v, AdamConfig& c) {
  v.field("lr", c.lr, "learning rate");
  v.field("betas", c.betas, "decay of the running mean of gradients and of their squares");
  v.field("eps", c.eps, "added to the square root in the denominator");
  v.field("weight_decay", c.weight_decay,
          "Adam: times the parameter is added to its gradient; AdamW: p *= 1 - lr weight_decay");
  v.field("bias_correction", c.bias_correction, "make up for running means that start at 0");
  v.check(
      "lr", [&] { return c.lr >= 0; }, "must be at least 0");
  v.check(
      "betas", [&] { return c.betas[0] >= 0 && c.betas[0] < 1 && c.betas[1] >= 0 && c.betas[1] < 1; },
      "must be in [0, 1)");
  v.check(
      "eps", [&] { return c.eps >= 0; }, "must be at least 0");
  v.check(
      "weight_decay", [&] { return c.weight_decay >= 0; }, "must be at least 0");
}

/// Names every option once.
template <class V>
void describe(V& v, AdamConfig& c) {
  describe_adam(v, c);
  v.field("amsgrad", c.amsgrad, "divide by the largest running mean of squares so far");
  v.field("maximize", c.maximize, "climb instead of descend");
}
template <class V>
void describe(V& v, AdamWConfig& c) {
  describe(v, static_cast<AdamConfig&>(c));
}
template <class V>
void describe(V& v, HybridAdamConfig& c) {
  describe_adam(v, c);
  v.field("adamw_mode", c.adamw_mode, "decay as AdamW; false: as Adam, in the gradient");
  v.retired("amsgrad", false, "the peer has none; Adam and AdamW take it");
  v.retired("nvme_offload_fraction", 0.0, "where optimizer states lie is the plugin's choice: its tiers");
  v.refuse("nvme_offload_dir", "where optimizer states lie is the plugin's choice: its tiers");
  v.retired("simd_log", false, "the instruction set is part of the numerics key, which is logged");
  v.retired("set_grad_none", true, "gradients are dropped after each step");
}

/// m = beta1 m + (1 - beta1) g and v = beta2 v + (1 - beta2) g^2, where g has weight_decay p added to it;
/// p -= lr / (1 - beta1^t) m / (sqrt(v / (1 - beta2^t)) + eps).
/// States: "exp_avg", "exp_avg_sq" and, with amsgrad, "max_exp_avg_sq".
/// Sources: Kingma & Ba 2015, arXiv:1412.6980; Reddi et al. 2018, arXiv:1904.09237 (amsgrad).
class Adam : public Optimizer {
 public:
  /// Throws ConfigError for options out of range.
  explicit Adam(const AdamConfig& config = {}, std::vector<ParamGroup> groups = {});
  const char* type_name() const override { return "Adam"; }
  std::vector<StateSpec> states(const Shape& shape) const override;
  void apply(const Range& range, const StepContext& context, const Stats& stats) const final;
  void apply_all(std::span<const Range> ranges, const StepContext& context) const final;
  bool takes_device_scale() const final { return true; }
  std::vector<std::byte> group_scalars(int group, const StepContext& context) const final;

 protected:
  Adam(const char* type, const AdamConfig& config, std::vector<ParamGroup> groups, bool decoupled);

 private:
  AdamScalars scalars_of(int group, const StepContext& context) const;
  AdamStep step_of(const Range& range, const StepContext& context) const;

  AdamConfig config_;
  bool is_decoupled_;
};

/// Adam with p *= 1 - lr weight_decay in place of the decay in the gradient.
/// Source: Loshchilov & Hutter 2019, arXiv:1711.05101.
class AdamW final : public Adam {
 public:
  explicit AdamW(const AdamWConfig& config = {}, std::vector<ParamGroup> groups = {});
  const char* type_name() const override { return "AdamW"; }
};

/// The AdamW or Adam that HybridAdam, FusedAdam and CPUAdam stand for; it goes on from checkpoints of either.
std::unique_ptr<Optimizer> make_hybrid_adam(const HybridAdamConfig& config);

}  // namespace castor::autograd
