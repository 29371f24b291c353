// The tree of modules: names, ties, hooks, modes, weights that depend on the seed and the name only, and dropout's
// masks.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "autograd/nn/layers.h"
#include "autograd/nn/trainable.h"
#include "autograd/random_state.h"
#include "core/base/error.h"
#include "core/base/philox.h"
#include "core/ops/cast.h"
#include "core/ops/recorded_keys.h"

namespace castor::autograd {
namespace {

using Names = std::vector<std::string>;
using Values = std::vector<float>;

Tensor random_tensor(const Shape& shape, std::uint64_t stream) {
  Values values;
  for (std::int64_t i = 0; i < shape.numel(); ++i) {
    values.push_back(2 * uniform_from_word(philox({3, stream}, static_cast<std::uint64_t>(i)).word[0]) - 1);
  }
  return Tensor::from_values(values, shape);
}
Values values_of(const Tensor& x) { return contiguous(x).to_vector<float>(); }

Names names_of(const std::vector<std::pair<std::string, Variable>>& named) {
  Names names;
  for (const auto& [name, variable] : named) names.push_back(name);
  return names;
}

/// Two layers, one of them in a list, and an output tied to the first.
class Tied final : public Module {
 public:
  Tied() : out_(in_.weight()) {
    register_module("in", in_);
    layers_.emplace(4, 4);
    layers_.emplace(4, 4, LinearOptions{.bias = false});
    register_module("layers", layers_);
    register_module("out", out_);
  }
  ModuleList<Linear>& layers() { return layers_; }

 private:
  Linear in_{4, 4};
  ModuleList<Linear> layers_;
  Linear out_;
};

TEST_CASE("parameters have dotted names in order of registration, tied ones under the first") {
  Tied model;
  CHECK(names_of(model.named_parameters()) ==
        Names{"in.weight", "in.bias", "layers.0.weight", "layers.0.bias", "layers.1.weight"});
  CHECK(model.aliases() == std::vector<std::pair<std::string, std::string>>{{"out.weight", "in.weight"}});
  CHECK(model.parameter_count() == 16 + 4 + 16 + 4 + 16);
  name_tree(model);
  CHECK(model.layers()[1].name() == "layers.1");
  CHECK(model.layers()[1].weight().name() == "layers.1.weight");
  CHECK(model.layers()[0].name_hash() != model.layers()[1].name_hash());
}

/// The same three parameters in another order and beside others.
class Ordered final : public Module {
 public:
  explicit Ordered(bool reversed) {
    if (reversed) register_module("extra", extra_);
    register_module(reversed ? "b" : "a", reversed ? b_ : a_);
    register_module(reversed ? "a" : "b", reversed ? a_ : b_);
  }

 private:
  Linear a_{300, 50}, b_{7, 900};
  Linear extra_{5, 5};
};

TEST_CASE("what a weight starts as depends on the seed and its name, not on what else there is") {
  Ordered one(false), other(true), third(false);
  initialize(one, 42);
  initialize(other, 42);
  initialize(third, 43);
  const auto named = other.named_parameters();
  for (const auto& [name, parameter] : one.named_parameters()) {
    const auto same = std::find_if(named.begin(), named.end(),
                                   [&, wanted = name](const auto& entry) { return entry.first == wanted; });
    REQUIRE(same != named.end());
    CHECK(values_of(parameter.data()) == values_of(same->second.data()));
  }
  CHECK(values_of(one.named_parameters()[0].second.data()) != values_of(third.named_parameters()[0].second.data()));
}

TEST_CASE("linear weights start uniform within one over the root of the fan-in") {
  Linear layer(400, 50);
  initialize(layer, 1);
  const Values weight = values_of(layer.weight().data());
  const auto [low, high] = std::minmax_element(weight.begin(), weight.end());
  CHECK(*low >= -0.05f);
  CHECK(*low < -0.049f);
  CHECK(*high < 0.05f);
  CHECK(*high > 0.049f);
}

TEST_CASE("hooks run around forward, outer module first and last, and the mode reaches the whole tree") {
  Names log;
  const auto watch = [&](Module& module, const std::string& label) {
    module.add_forward_hook([&log, label](Module&) { log.push_back("before " + label); },
                            [&log, label](Module&) { log.push_back("after " + label); });
  };
  Sequential model;
  Linear& first = model.emplace<Linear>(3, 3);
  Dropout& second = model.emplace<Dropout>(0.5);
  initialize(model, 0);
  watch(model, "model");
  watch(first, "0");
  watch(second, "1");
  model.eval();
  CHECK_FALSE(second.is_training());
  const Variable x(random_tensor({2, 3}, 0));
  (void)model(x);
  CHECK(log == Names{"before model", "before 0", "after 0", "before 1", "after 1", "after model"});
  log.clear();
  CHECK_THROWS_AS(model(Variable(random_tensor({2, 4}, 0))), ShapeError);
  CHECK(log == Names{"before model", "before 0"});
  model.train();
  CHECK(second.is_training());
}

TEST_CASE("dropout draws by name and call, and is the identity in evaluation") {
  const auto mask = [](Dropout& module) {
    return values_of(module(Variable(Tensor::from_values(Values(2000, 1.0f), {2000}))).data());
  };
  Sequential model;
  Dropout& a = model.emplace<Dropout>(0.25);
  Dropout& b = model.emplace<Dropout>(0.25);
  name_tree(model);
  random_state().begin(5, 0, 0);
  const Values first = mask(a), second = mask(a), other = mask(b);
  CHECK(first != second);
  CHECK(first != other);
  random_state().begin(5, 0, 0);
  CHECK(mask(b) == other);
  CHECK(mask(a) == first);
  random_state().begin(5, 0, 1);
  CHECK(mask(a) != first);
  const auto kept = static_cast<double>(std::count(first.begin(), first.end(), 1 / 0.75f));
  CHECK(kept + static_cast<double>(std::count(first.begin(), first.end(), 0.0f)) == 2000);
  CHECK(std::abs(kept - 1500) < 100);
  model.eval();
  CHECK(mask(a) == Values(2000, 1.0f));
  CHECK_THROWS_AS(Dropout(1.0), ConfigError);
}

TEST_CASE("a recording's places hold each run's keys, in the order in which the recorded run drew them") {
  std::vector<std::uint64_t> modules;
  RecordedKeys places(kCpu, 3);
  RandomState state;
  const RandomKey unknown = state.next(1);
  const auto draw = [&](RandomState& from) { return std::vector{from.next(8), from.next(9), from.next(8)}; };
  state.begin(5, 2, 0);
  std::vector<RandomKey> recorded;
  {
    const RandomLogScope log([&](std::uint64_t module, RandomKey key) {
      if (places.add(key)) modules.push_back(module);
    });
    recorded = draw(state);
    RandomState again;  // what runs a second time in backward draws the same
    again.begin(5, 2, 0);
    again.next(8);
  }
  CHECK(modules == std::vector<std::uint64_t>{8, 9, 8});
  state.begin(5, 3, 1);
  const std::vector<RandomKey> next = draw(state);
  places.write(next);
  CHECK(recorded_place(recorded[0]) == nullptr);
  const RecordedKeysScope scope(places);
  for (std::size_t i = 0; i < recorded.size(); ++i) {
    const RandomKey* const place = recorded_place(recorded[i]);
    REQUIRE(place != nullptr);
    CHECK(place->key == next[i].key);
    CHECK(place->stream == next[i].stream);
  }
  CHECK(recorded_place(unknown) == nullptr);
  CHECK_THROWS_AS(places.write({unknown}), InternalError);
  CHECK_THROWS_AS(places.add(unknown), InternalError);  // no room
}

TEST_CASE("the total of losses is the sum of those named so") {
  const Variable a(Tensor::from_values<float>({1.5f}, {}), true), b(Tensor::from_values<float>({2}, {1}), true),
      c(Tensor::from_values<float>({7}, {}));
  const Variable total = total_loss({{"loss", a}, {"aux_loss", b}, {"acc", c}});
  CHECK(total.data().item() == 3.5);
  CHECK(total.requires_grad());
  CHECK_THROWS_AS(total_loss({{"acc", c}}), InternalError);
  CHECK(total_loss({{"loss", Variable(Tensor::from_values<float>({1, 3}, {2}))}}).data().item() == 2);
}

}  // namespace
}  // namespace castor::autograd
