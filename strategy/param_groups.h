// Parameter groups from a config, as mmengine's DefaultOptimWrapperConstructor makes them: multipliers of the learning
// rate and the decay for parameters by name, by kind and by the module they belong to.
//
// Delicate: group 0 has the optimizer's own values, whether or not any parameter is in it, so that what is logged and
// scheduled as "the" learning rate is the configured one; parameters with equal multipliers share a group.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "autograd/nn/module.h"
#include "autograd/optim/param_group.h"
#include "strategy/config/field.h"

namespace castor::strategy {

/// Multipliers of a group's learning rate and weight decay.
struct Multipliers {
  double lr_mult = 1, decay_mult = 1;
  friend auto operator<=>(const Multipliers&, const Multipliers&) = default;
};

template <class V>
void describe(V& v, Multipliers& c) {
  v.field("lr_mult", c.lr_mult, "times the learning rate", at_least(0));
  v.field("decay_mult", c.decay_mult, "times the weight decay", at_least(0));
}

/// `optim_wrapper.paramwise_cfg`.
struct ParamwiseConfig {
  std::map<std::string, Multipliers> custom_keys;
  std::optional<double> bias_lr_mult, bias_decay_mult, norm_decay_mult, flat_decay_mult, dwconv_decay_mult;
  bool bypass_duplicate = false;
};

template <class V>
void describe(V& v, ParamwiseConfig& c) {
  v.field("custom_keys", c.custom_keys,
          "multipliers of parameters whose name contains the key; the longest key wins, and no other rule applies");
  v.field("bias_lr_mult", c.bias_lr_mult, "learning rate of biases, those of norms excepted", at_least(0));
  v.field("bias_decay_mult", c.bias_decay_mult, "decay of biases; of those of norms unless norm_decay_mult is given",
          at_least(0));
  v.field("norm_decay_mult", c.norm_decay_mult, "decay of weights and biases of norms", at_least(0));
  v.field("flat_decay_mult", c.flat_decay_mult, "decay of other parameters with one axis", at_least(0));
  v.field("dwconv_decay_mult", c.dwconv_decay_mult, "decay of weights of depthwise convolutions", at_least(0));
  v.field("bypass_duplicate", c.bypass_duplicate,
          "a tied parameter whose names ask for different multipliers takes its first name's; false: is refused");
  v.refuse("dcn_offset_lr_mult", "there is no deformable convolution");
}

/// Groups, and which parameter is in which.
struct ParamGrouping {
  std::vector<autograd::ParamGroup> groups;
  std::map<const autograd::VariableState*, int> group_of;  ///< of every parameter
};

/// The groups of a model.
///   base  group 0: the optimizer's values
/// Keys that match no parameter are a warning. Throws ConfigError for multipliers of a hyper-parameter that `base` has
/// not, and for tied parameters as bypass_duplicate says.
ParamGrouping group_parameters(autograd::Module& model, const ParamwiseConfig& config,
                               const autograd::ParamGroup& base);

}  // namespace castor::strategy
