// Sampling from the last position's logits, over a window of the latest tokens.
//
// Delicate: tokens are ordered by (logit, number) before the sum, so that the cumulative sum, and with it the choice,
// has one order; sums are in double.
#include "strategy/text_generation.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "autograd/nn/trainable.h"
#include "core/base/error.h"
#include "core/base/philox.h"
#include "core/ops/cast.h"

namespace castor::strategy {
namespace {

/// Logits of the last position as f32.
std::vector<float> last_logits(const Tensor& logits, std::int64_t tokens) {
  if (logits.ndim() != 3 || logits.size(0) != 1 || logits.size(1) != tokens || logits.size(2) < 1 ||
      logits.size(2) > 256) {
    throw ShapeError(
        cat("generate: logits [1,", tokens, ",V] with V from 1 to 256 expected from the model, got ", logits));
  }
  const Tensor last = logits.select(1, tokens - 1).select(0, 0);
  return contiguous(cast(last, DType::f32)).to_vector<float>();
}

}  // namespace

std::int64_t choose_token(std::span<const float> logits, double temperature, std::optional<std::int64_t> top_k,
                          double uniform) {
  if (logits.empty()) throw ShapeError("generate: at least one logit expected, got none");
  const auto value = [&](std::size_t token) {
    return std::isnan(logits[token]) ? -std::numeric_limits<double>::infinity() : static_cast<double>(logits[token]);
  };
  std::vector<std::size_t> order(logits.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return value(a) > value(b); });
  if (top_k) order.resize(std::min(order.size(), static_cast<std::size_t>(std::max<std::int64_t>(*top_k, 1))));
  const double largest = value(order.front());
  if (temperature == 0 || !std::isfinite(largest)) return static_cast<std::int64_t>(order.front());
  std::vector<double> cumulative;
  double sum = 0;
  for (const std::size_t token : order) {
    sum += std::exp((value(token) - largest) / temperature);
    cumulative.push_back(sum);
  }
  const auto chosen = std::upper_bound(cumulative.begin(), cumulative.end(), uniform * sum);
  const auto index = std::min<std::ptrdiff_t>(chosen - cumulative.begin(), std::ssize(order) - 1);
  return static_cast<std::int64_t>(order[static_cast<std::size_t>(index)]);
}

void generate_text(autograd::TrainableModel& model, const GenerationOptions& options,
                   const std::function<bool(std::string_view)>& on_text) {
  const auto* text_model = dynamic_cast<const TextModel*>(&model);
  if (text_model == nullptr) {
    throw ConfigError("generate: the model's type makes no text; it would have to derive from TextModel", "model");
  }
  model.eval();
  const auto context = static_cast<std::size_t>(std::max<std::int64_t>(text_model->context_length(), 1));
  std::vector<std::int64_t> tokens;
  for (const char c : options.prompt.empty() ? std::string("\n") : options.prompt) {
    tokens.push_back(static_cast<unsigned char>(c));
  }
  const RandomKey key{options.seed, hash_text(std::string_view("generate"))};
  for (std::int64_t step = 0; step < options.max_new_tokens; ++step) {
    const std::size_t used = std::min(context, tokens.size());
    const std::vector<std::int64_t> window(tokens.end() - static_cast<std::ptrdiff_t>(used), tokens.end());
    const auto length = static_cast<std::int64_t>(used);
    const Tensor logits = model.predict({Tensor::from_values(window, {1, length}), {}});
    const Philox4 random = philox(key, static_cast<std::uint64_t>(step));
    constexpr double kTwoToMinus53 = 1.0 / 9007199254740992.0;
    const std::uint64_t bits = (std::uint64_t{random.word[0]} << 32 | random.word[1]) >> 11;
    const std::int64_t token = choose_token(last_logits(logits, length), options.temperature, options.top_k,
                                            static_cast<double>(bits) * kTwoToMinus53);
    tokens.push_back(token);
    const char byte = static_cast<char>(static_cast<unsigned char>(token));
    if (!on_text(std::string_view(&byte, 1))) return;
  }
}

}  // namespace castor::strategy
