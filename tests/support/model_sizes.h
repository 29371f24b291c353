// Sizes of the parameters of well-known models, in their order: for layouts, which need nothing else of a model.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace castor::test {

/// GPT-2: Radford et al. 2019.
inline std::vector<std::int64_t> gpt2_sizes(int layers, std::int64_t d) {
  std::vector<std::int64_t> sizes = {50257 * d, 1024 * d};
  for (int i = 0; i < layers; ++i) {
    for (const std::int64_t size : {d, d, 3 * d * d, 3 * d, d * d, d, d, d, 4 * d * d, 4 * d, 4 * d * d, d})
      sizes.push_back(size);
  }
  sizes.insert(sizes.end(), {d, d});
  return sizes;
}

/// Llama and, with several experts, Mixtral: Touvron et al. 2023, Jiang et al. 2024.
///   kv  width of keys and values
inline std::vector<std::int64_t> llama_sizes(int layers, std::int64_t d, std::int64_t kv, std::int64_t hidden,
                                             std::int64_t experts) {
  std::vector<std::int64_t> sizes = {32000 * d};
  for (int i = 0; i < layers; ++i) {
    for (const std::int64_t size : {d, d * d, d * kv, d * kv, d * d, d}) sizes.push_back(size);
    if (experts > 1) sizes.push_back(d * experts);
    for (std::int64_t e = 0; e < 3 * experts; ++e) sizes.push_back(d * hidden);
  }
  sizes.insert(sizes.end(), {d, 32000 * d});
  return sizes;
}

/// By name.
inline std::vector<std::pair<std::string, std::vector<std::int64_t>>> model_sizes() {
  return {{"GPT-2 124M", gpt2_sizes(12, 768)},
          {"GPT-2 350M", gpt2_sizes(24, 1024)},
          {"GPT-2 1.5B", gpt2_sizes(48, 1600)},
          {"Llama 7B", llama_sizes(32, 4096, 4096, 11008, 1)},
          {"Mixtral 8x7B", llama_sizes(32, 4096, 1024, 14336, 8)}};
}

}  // namespace castor::test
