// Random kernels on the CPU. Words are made a chunk at a time into a small array, then turned into numbers by plain
// loops that vectorise. Delicate: chunks are cut at multiples of kChunk of the logical offset, and pairs of elements
// share a Box-Muller draw, so an element never depends on where a range began.
#include <cmath>

#include "core/base/parallel.h"
#include "core/ops/random.h"
#include "core/ops/random_values.h"

namespace castor {
namespace {

constexpr std::int64_t kBlocks = 64;          // Philox blocks made at a time
constexpr std::int64_t kChunk = 4 * kBlocks;  // their words
constexpr std::int64_t kGrain = 16 * kChunk;

/// word[4 i + j] = word j of block first + i.
void make_words(RandomKey key, std::uint64_t first, std::uint32_t* word) {
  std::uint32_t c0[kBlocks], c1[kBlocks], c2[kBlocks], c3[kBlocks];
  for (std::uint64_t i = 0; i < kBlocks; ++i) {
    c0[i] = static_cast<std::uint32_t>(first + i);
    c1[i] = static_cast<std::uint32_t>((first + i) >> 32);
    c2[i] = static_cast<std::uint32_t>(key.stream);
    c3[i] = static_cast<std::uint32_t>(key.stream >> 32);
  }
  std::uint32_t k0 = static_cast<std::uint32_t>(key.key), k1 = static_cast<std::uint32_t>(key.key >> 32);
  for (int round = 0; round < 10; ++round) {
    for (std::int64_t i = 0; i < kBlocks; ++i) {
      const std::uint64_t p0 = std::uint64_t{0xD2511F53u} * c0[i];
      const std::uint64_t p1 = std::uint64_t{0xCD9E8D57u} * c2[i];
      c0[i] = static_cast<std::uint32_t>(p1 >> 32) ^ c1[i] ^ k0;
      c2[i] = static_cast<std::uint32_t>(p0 >> 32) ^ c3[i] ^ k1;
      c1[i] = static_cast<std::uint32_t>(p1);
      c3[i] = static_cast<std::uint32_t>(p0);
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  for (std::int64_t i = 0; i < kBlocks; ++i) {
    word[4 * i] = c0[i];
    word[4 * i + 1] = c1[i];
    word[4 * i + 2] = c2[i];
    word[4 * i + 3] = c3[i];
  }
}

/// Calls body(words, begin, count) for stretches that cover [0, n): words[i] belongs to element begin + i, and
/// make(words) has turned a whole chunk of words into what body reads.
template <class Made, class Make, class Body>
void for_each_chunk(RandomKey key, std::uint64_t offset, std::int64_t n, Make make, Body body) {
  parallel_for(n, kGrain, [&](std::int64_t begin, std::int64_t end) {
    std::uint32_t words[kChunk];
    Made made[kChunk];
    while (begin < end) {
      const std::uint64_t at = offset + static_cast<std::uint64_t>(begin);
      const std::int64_t skipped = static_cast<std::int64_t>(at % kChunk);
      const std::int64_t count = std::min(kChunk - skipped, end - begin);
      make_words(key, (at - static_cast<std::uint64_t>(skipped)) / 4, words);
      make(words, made);
      body(made + skipped, begin, count);
      begin += count;
    }
  });
}

template <class F>
void visit_float(DType dtype, const char* op, F&& f) {
  dtype == DType::f64 ? f(TypeTag<double>{}) : visit_training_float(dtype, op, f);
}

template <class T, class Make>
void fill_with(const RandomFillArgs& args, Make make) {
  for_each_chunk<float>(args.key, args.offset, args.y.numel(), make,
                        [&](const float* made, std::int64_t begin, std::int64_t count) {
                          T* y = args.y.as<T>() + begin;
                          for (std::int64_t i = 0; i < count; ++i) y[i] = store<T>(made[i]);
                        });
}

}  // namespace

void run(const Cpu&, const RandomFillArgs& args) {
  const float a = static_cast<float>(args.a), b = static_cast<float>(args.b);
  visit_float(args.y.dtype, RandomFillArgs::kName, [&](auto tag) {
    using T = typename decltype(tag)::type;
    switch (args.distribution) {
      case Distribution::uniform: {
        const float range = static_cast<float>(args.b - args.a);
        return fill_with<T>(args, [=](const std::uint32_t* word, float* made) {
          for (std::int64_t i = 0; i < kChunk; ++i) made[i] = random_values::uniform(word[i], a, range);
        });
      }
      case Distribution::normal:
        return fill_with<T>(args, [=](const std::uint32_t* word, float* made) {
          for (std::int64_t i = 0; i < kChunk; i += 2) {
            const random_values::NormalPair pair = random_values::normal_pair(word[i], word[i + 1]);
            made[i] = math::fma(pair.even, b, a);
            made[i + 1] = math::fma(pair.odd, b, a);
          }
        });
      case Distribution::truncated_normal: {
        const double low = (args.low - args.a) / args.b, high = (args.high - args.a) / args.b;
        const double erf_low = std::erf(low / std::sqrt(2.0)), erf_high = std::erf(high / std::sqrt(2.0));
        const float from = static_cast<float>(erf_low), range = static_cast<float>(erf_high - erf_low);
        const float least = static_cast<float>(low), most = static_cast<float>(high);
        return fill_with<T>(args, [=](const std::uint32_t* word, float* made) {
          const float lower = least, upper = most;  // copies: what a lambda holds is memory, which hinders vectorising
          for (std::int64_t i = 0; i < kChunk; ++i) {
            made[i] = math::fma(random_values::truncated_normal(word[i], from, range, lower, upper), b, a);
          }
        });
      }
    }
    throw InternalError("random_fill: a distribution outside the enumeration");
  });
}

void run(const Cpu&, const DropoutArgs& args) {
  const auto threshold = static_cast<std::uint32_t>(std::llround(args.probability * 16777216.0));
  visit_float(args.x.dtype, DropoutArgs::kName, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using C = decltype(load(T{}));
    const C factor = threshold == 16777216u ? C(0) : static_cast<C>(1.0 / (1.0 - args.probability));
    const auto make = [=](const std::uint32_t* word, std::uint32_t* kept) {
      for (std::int64_t i = 0; i < kChunk; ++i) kept[i] = random_values::is_kept(word[i], threshold) ? 1u : 0u;
    };
    for_each_chunk<std::uint32_t>(args.key, args.offset, args.x.numel(), make,
                                  [&](const std::uint32_t* kept, std::int64_t begin, std::int64_t count) {
                                    const T* x = args.x.as<T>() + begin;
                                    T* y = args.y.as<T>() + begin;
#pragma GCC ivdep
                                    for (std::int64_t i = 0; i < count; ++i)
                                      y[i] = store<T>(kept[i] != 0 ? load(x[i]) * factor : C(0));
                                  });
  });
}

}  // namespace castor
