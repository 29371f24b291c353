// paramwise_cfg: which parameter gets which multipliers, what shares a group, and what is warned of or refused.
#include "strategy/param_groups.h"

#include <functional>
#include <map>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "autograd/nn/layers.h"
#include "autograd/nn/vision.h"
#include "tests/support/log_capture.h"

using namespace castor;
using namespace castor::strategy;

namespace {

/// One module of each kind that a rule asks for, and a tied weight under another name.
class Kinds final : public autograd::Module {
 public:
  explicit Kinds(bool is_tied = false)
      : conv_(4, 6, {3, 3}),
        depthwise_(4, 4, {3, 3}, depthwise()),
        batch_norm_(4),
        group_norm_(2, 4),
        norm_(6),
        fc_(6, 6) {
    register_module("stem", conv_);
    register_module("dw", depthwise_);
    register_module("bn", batch_norm_);
    register_module("gn", group_norm_);
    register_module("norm", norm_);
    register_module("head", fc_);
    scale_ = register_parameter("scale", {6}, autograd::Init::ones(), {});
    if (is_tied) register_parameter("tied", fc_.weight());
    autograd::name_tree(*this);
  }

 private:
  static autograd::ConvOptions depthwise() {
    autograd::ConvOptions options;
    options.groups = 4;
    return options;
  }
  autograd::Conv2d conv_, depthwise_;
  autograd::BatchNorm2d batch_norm_;
  autograd::GroupNorm group_norm_;
  autograd::LayerNorm norm_;
  autograd::Linear fc_;
  autograd::Variable scale_;
};

/// What `action` logs.
std::string log_of(const std::function<void()>& action) {
  const test::LogCapture log;
  action();
  return log.text();
}

const autograd::ParamGroup kBase{"", {{"lr", 0.5}, {"weight_decay", 0.25}, {"eps", 1e-8}}};

/// The learning rate's and the decay's multipliers of each parameter.
std::map<std::string, Multipliers> multipliers_of(const ParamwiseConfig& config) {
  Kinds model;
  const ParamGrouping grouping = group_parameters(model, config, kBase);
  std::map<std::string, Multipliers> found;
  for (const auto& [name, parameter] : model.named_parameters()) {
    const auto& values =
        grouping.groups.at(static_cast<std::size_t>(grouping.group_of.at(parameter.identity()))).values;
    found[name] = {values.at("lr") / 0.5, values.at("weight_decay") / 0.25};
    CHECK(values.at("eps") == 1e-8);
  }
  return found;
}

}  // namespace

TEST_CASE("each rule of paramwise_cfg reaches the parameters that mmengine's reaches, and no others") {
  struct Case {
    const char* name;
    std::function<void(ParamwiseConfig&)> set;
    std::map<std::string, Multipliers> changed;
  };
  const std::vector<Case> cases = {
      {"nothing", [](auto&) {}, {}},
      {"bias_lr_mult",
       [](auto& c) { c.bias_lr_mult = 2; },
       {{"stem.bias", {2, 1}}, {"dw.bias", {2, 1}}, {"head.bias", {2, 1}}}},
      {"bias_decay_mult",
       [](auto& c) { c.bias_decay_mult = 0; },
       // Norms have biases, too: only norm_decay_mult keeps them from this rule.
       {{"stem.bias", {1, 0}},
        {"dw.bias", {1, 0}},
        {"head.bias", {1, 0}},
        {"bn.bias", {1, 0}},
        {"gn.bias", {1, 0}},
        {"norm.bias", {1, 0}}}},
      {"norm_decay_mult",
       [](auto& c) { c.norm_decay_mult = 0, c.bias_decay_mult = 1; },
       {{"bn.weight", {1, 0}},
        {"bn.bias", {1, 0}},
        {"gn.weight", {1, 0}},
        {"gn.bias", {1, 0}},
        {"norm.weight", {1, 0}},
        {"norm.bias", {1, 0}}}},
      {"dwconv_decay_mult",
       [](auto& c) { c.dwconv_decay_mult = 0.5, c.bias_decay_mult = 2, c.norm_decay_mult = 1; },
       {{"dw.weight", {1, 0.5}}, {"stem.bias", {1, 2}}, {"dw.bias", {1, 2}}, {"head.bias", {1, 2}}}},
      {"flat_decay_mult",
       [](auto& c) { c.flat_decay_mult = 0, c.norm_decay_mult = 1, c.bias_decay_mult = 0.5; },
       {{"scale", {1, 0}}, {"stem.bias", {1, 0.5}}, {"dw.bias", {1, 0.5}}, {"head.bias", {1, 0.5}}}},
      {"custom keys: the longest wins, and no other rule is asked",
       [](auto& c) {
         c.custom_keys = {{"head", {0.1, 1}}, {"head.bias", {3, 0}}, {".scale", {1, 4}}};
         c.bias_lr_mult = 2;
       },
       {{"head.weight", {0.1, 1}},
        {"head.bias", {3, 0}},
        {"scale", {1, 4}},
        {"stem.bias", {2, 1}},
        {"dw.bias", {2, 1}}}}};
  for (const Case& c : cases) {
    CAPTURE(c.name);
    ParamwiseConfig config;
    c.set(config);
    for (const auto& [name, got] : multipliers_of(config)) {
      CAPTURE(name);
      const auto found = c.changed.find(name);
      const Multipliers want = found == c.changed.end() ? Multipliers{} : found->second;
      CHECK(got.lr_mult == doctest::Approx(want.lr_mult));
      CHECK(got.decay_mult == doctest::Approx(want.decay_mult));
    }
  }
}

TEST_CASE("parameters with equal multipliers share a group, and the first group has the optimizer's own values") {
  ParamwiseConfig config;
  config.custom_keys = {{"stem", {0.1, 0}}, {"head", {0.1, 0}}};
  config.norm_decay_mult = 0;
  Kinds model;
  const ParamGrouping grouping = group_parameters(model, config, kBase);
  REQUIRE(grouping.groups.size() == 3);
  CHECK(grouping.groups[0].values == kBase.values);
  CHECK(grouping.groups[0].name.empty());
  CHECK(grouping.groups[1].name == "lr x 0.1, weight_decay x 0");
  CHECK(grouping.groups[2].name == "lr x 1, weight_decay x 0");
  CHECK(grouping.group_of.size() == model.named_parameters().size());
}

TEST_CASE("custom keys that match nothing are named, and multiples of what an optimizer has not are refused") {
  Kinds model;
  ParamwiseConfig config;
  config.custom_keys = {{"backbone", {0.1, 1}}, {"head", {0.5, 1}}, {"neck", {}}};
  const std::string log = log_of([&] { group_parameters(model, config, kBase); });
  CHECK(log.find("contains 'backbone', 'neck'") != std::string::npos);
  CHECK(log.find("'head'") == std::string::npos);
  CHECK_THROWS_WITH_AS(group_parameters(model, config, {"", {{"weight_decay", 0.1}}}), doctest::Contains("lr"),
                       ConfigError);
}

TEST_CASE("a tied parameter whose names ask for different multipliers is refused, or takes its first name's") {
  Kinds model(true);  // "tied" lies in the root, which is visited first
  ParamwiseConfig config;
  config.custom_keys = {{"head", {0.5, 1}}};
  CHECK_THROWS_WITH_AS(group_parameters(model, config, kBase), doctest::Contains("bypass_duplicate"), ConfigError);
  config.bypass_duplicate = true;
  const std::string log = log_of([&] { group_parameters(model, config, kBase); });
  CHECK(log.find("'head.weight' is tied to 'tied'") != std::string::npos);
  config = {};
  config.custom_keys = {{"head", {0.5, 1}}, {"tied", {0.5, 1}}};
  CHECK(group_parameters(model, config, kBase).groups.size() == 2);
}
