// Philox4x32-10: random numbers as a pure function of a counter, so that what a dropout mask or an initial weight holds
// depends on *which* element it is, never on how work was split (the first promise). Both compilers read this file.
//
// Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 3.3.
#pragma once

#include <cstdint>

#include "core/base/host_device.h"

namespace castor {

/// Four 32-bit words: one Philox output or counter.
struct Philox4 {
  std::uint32_t word[4];
};

/// Names a stream of random numbers: a 64-bit key and the upper 64 bits of the counter; the lower 64 bits are
/// (element offset / 4).
struct RandomKey {
  std::uint64_t key = 0;
  std::uint64_t stream = 0;
};

/// Ten rounds of Philox4x32 for block `block` of the stream `key`.
CASTOR_HOST_DEVICE Philox4 philox(RandomKey key, std::uint64_t block) {
  std::uint32_t c0 = static_cast<std::uint32_t>(block), c1 = static_cast<std::uint32_t>(block >> 32);
  std::uint32_t c2 = static_cast<std::uint32_t>(key.stream), c3 = static_cast<std::uint32_t>(key.stream >> 32);
  std::uint32_t k0 = static_cast<std::uint32_t>(key.key), k1 = static_cast<std::uint32_t>(key.key >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = std::uint64_t{0xD2511F53u} * c0;
    const std::uint64_t p1 = std::uint64_t{0xCD9E8D57u} * c2;
    const std::uint32_t n0 = static_cast<std::uint32_t>(p1 >> 32) ^ c1 ^ k0;
    const std::uint32_t n2 = static_cast<std::uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<std::uint32_t>(p1);
    c3 = static_cast<std::uint32_t>(p0);
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

/// Uniform in [0, 1) with 24 bits, from one word.
CASTOR_HOST_DEVICE float uniform_from_word(std::uint32_t word) {
  return static_cast<float>(word >> 8) * (1.0f / 16777216.0f);
}

/// SplitMix64's finaliser: spreads the bits of `x`. Source: Steele, Lea & Flood, OOPSLA 2014.
CASTOR_HOST_DEVICE std::uint64_t mix_bits(std::uint64_t x) {
  x += 0x9E3779B97F4A7C15ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

/// A hash of `seed` and `value`; chain it to hash a tuple.
CASTOR_HOST_DEVICE std::uint64_t hash_combine(std::uint64_t seed, std::uint64_t value) {
  return mix_bits(seed ^ mix_bits(value));
}

/// FNV-1a of a text: turns a module's name into part of a counter.
template <class Text>
constexpr std::uint64_t hash_text(const Text& text) {
  std::uint64_t hash = 0xCBF29CE484222325ull;
  for (const char letter : text) hash = (hash ^ static_cast<unsigned char>(letter)) * 0x100000001B3ull;
  return hash;
}

}  // namespace castor
