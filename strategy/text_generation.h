// Text from a trained model, one byte at a time: what `castor generate` does once the model is loaded.
//
// Delicate: the choice of a token is a function of (logits, seed, position) only, so the same weights and seed give the
// same text on any number of threads.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace castor::autograd {
class TrainableModel;
}  // namespace castor::autograd

namespace castor::strategy {

/// What a model must say of itself, beyond TrainableModel, to generate: a model over bytes derives from this too. Its
/// `predict` maps inputs i64 [1, T], T <= context_length(), to logits [1, T, V] with V <= 256; logits at t are of byte
/// t + 1.
class TextModel {
 public:
  virtual ~TextModel() = default;
  /// Most tokens that `predict` takes.
  virtual std::int64_t context_length() const = 0;
};

/// How to continue a text.
struct GenerationOptions {
  std::string prompt;                 ///< bytes; a newline if empty
  std::int64_t max_new_tokens = 400;  ///< at least 1
  double temperature = 0.8;           ///< divides the logits; 0 takes the likeliest token
  std::optional<std::int64_t> top_k;  ///< choose among the k likeliest only
  std::uint64_t seed = 0;
};

/// Continues the prompt and hands over each new byte as it comes.
///   model     also a TextModel; put into eval mode
///   on_text   called with each new byte; false ends the text
/// Throws ConfigError if the model is no TextModel, ShapeError if its logits are not as TextModel says.
void generate_text(autograd::TrainableModel& model, const GenerationOptions& options,
                   const std::function<bool(std::string_view)>& on_text);

/// The token that a uniform number in [0, 1) picks from softmax(logits / temperature) over the `top_k` likeliest; ties
/// go to the lower token. NaN logits count as impossible.
///   logits   at least one
std::int64_t choose_token(std::span<const float> logits, double temperature, std::optional<std::int64_t> top_k,
                          double uniform);

}  // namespace castor::strategy
