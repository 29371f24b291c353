// The formula by which a recording script and its replay agree on weights, gradients, tokens and pixels without a file
// between them: record_losses.py has the other half.
//
// Delicate: written out here and not taken from core, so that a change of core's own generators cannot move both sides
// of a comparison. A float is rounded once, from f64.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace castor::test {

/// Word `i` of the stream `name`: SplitMix64 started at the FNV-1a hash of the name.
/// Source: Steele, Lea & Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
inline std::uint64_t counted_word(std::string_view name, std::uint64_t i) {
  std::uint64_t x = 0xCBF29CE484222325ull;
  for (const char letter : name) x = (x ^ static_cast<unsigned char>(letter)) * 0x100000001B3ull;
  x += 0x9E3779B97F4A7C15ull * (i + 1);
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

/// `count` numbers in [offset - scale, offset + scale).
inline std::vector<float> counted_floats(std::string_view name, std::int64_t count, double offset = 0,
                                         double scale = 1) {
  std::vector<float> values;
  for (std::int64_t i = 0; i < count; ++i) {
    const double unit = static_cast<double>(counted_word(name, static_cast<std::uint64_t>(i)) >> 11) * 0x1p-53;
    values.push_back(static_cast<float>(offset + scale * (2 * unit - 1)));
  }
  return values;
}

/// `count` integers in [0, bound).
inline std::vector<std::int64_t> counted_integers(std::string_view name, std::int64_t count, std::uint64_t bound) {
  std::vector<std::int64_t> values;
  for (std::int64_t i = 0; i < count; ++i) {
    values.push_back(static_cast<std::int64_t>((counted_word(name, static_cast<std::uint64_t>(i)) >> 32) % bound));
  }
  return values;
}

}  // namespace castor::test
