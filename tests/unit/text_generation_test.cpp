// Choosing tokens and the loop that makes text, with a model whose text is known.
#include "strategy/text_generation.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "autograd/nn/trainable.h"
#include "core/base/error.h"

namespace {

using namespace castor;
using namespace castor::strategy;

/// After byte b comes b + 1, almost surely; sees at most four bytes.
class Alphabet : public autograd::TrainableModel, public TextModel {
 public:
  std::int64_t context_length() const override { return 4; }
  autograd::Variable forward(const Tensor&) override { throw InternalError("unused"); }
  std::map<std::string, autograd::Variable> loss(const autograd::Batch&) override { return {}; }
  Tensor predict(const autograd::Batch& batch) override {
    longest = std::max(longest, batch.inputs.size(1));
    const std::vector<std::int64_t> tokens = batch.inputs.to_vector<std::int64_t>();
    std::vector<float> logits(tokens.size() * 256, 0.0f);
    for (std::size_t t = 0; t < tokens.size(); ++t)
      logits[t * 256 + static_cast<std::size_t>(tokens[t] + 1) % 256] = 50;
    return Tensor::from_values(logits, {1, static_cast<std::int64_t>(tokens.size()), 256});
  }
  std::int64_t longest = 0;
};

class NoText : public autograd::TrainableModel {
 public:
  autograd::Variable forward(const Tensor&) override { throw InternalError("unused"); }
  std::map<std::string, autograd::Variable> loss(const autograd::Batch&) override { return {}; }
};

TEST_CASE("temperature 0 takes the likeliest token and ties go to the lower one") {
  const std::vector<float> logits = {1, 3, 3, 2};
  CHECK(choose_token(logits, 0, {}, 0.99) == 1);
  CHECK(choose_token(logits, 1, 1, 0.99) == 1);
}

TEST_CASE("a token is chosen in proportion to its softmax") {
  const std::vector<float> logits = {0, std::log(3.0f), -std::numeric_limits<float>::infinity(), std::nanf("")};
  std::vector<int> counts(4);
  for (int i = 0; i < 1000; ++i) ++counts[static_cast<std::size_t>(choose_token(logits, 1, {}, (i + 0.5) / 1000))];
  CHECK(counts == std::vector<int>{250, 750, 0, 0});
  std::vector<int> flat(4);
  for (int i = 0; i < 1000; ++i) ++flat[static_cast<std::size_t>(choose_token(logits, 1e9, 2, (i + 0.5) / 1000))];
  CHECK(std::abs(flat[0] - 500) <= 1);
  CHECK_THROWS_AS(choose_token({}, 1, {}, 0.5), ShapeError);
}

TEST_CASE("text follows the prompt, inside the model's context, and stops when told") {
  Alphabet model;
  std::string text;
  GenerationOptions options;
  options.prompt = "zzza";
  options.max_new_tokens = 10;
  options.temperature = 1;
  generate_text(model, options, [&](std::string_view more) {
    text += more;
    return true;
  });
  CHECK(text == "bcdefghijk");
  CHECK(model.longest == 4);
  CHECK_FALSE(model.is_training());
  text.clear();
  generate_text(model, options, [&](std::string_view more) {
    text += more;
    return text.size() < 3;
  });
  CHECK(text == "bcd");
  options.prompt.clear();
  options.max_new_tokens = 1;
  text.clear();
  generate_text(model, options, [&](std::string_view more) {
    text += more;
    return true;
  });
  CHECK(text == "\x0b");
}

TEST_CASE("a model that makes no text is refused") {
  NoText model;
  CHECK_THROWS_AS(generate_text(model, {}, [](std::string_view) { return true; }), ConfigError);
}

}  // namespace
