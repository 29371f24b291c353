// The permutation and the cutting of the global order; see sampler.h.
#include "strategy/data/sampler.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "core/base/error.h"
#include "core/base/philox.h"

namespace castor::strategy {

Permutation::Permutation(std::int64_t n, std::uint64_t key) : n_(static_cast<std::uint64_t>(n)), key_(key) {
  if (n <= 0) throw ShapeError(cat("permutation: expected at least one element, got ", n));
  const int bits = std::bit_width(n_ - 1);
  half_bits_ = bits < 2 ? 1 : (bits + 1) / 2;
}

std::int64_t Permutation::at(std::int64_t position) const {
  const std::uint64_t mask = (std::uint64_t{1} << half_bits_) - 1;
  auto x = static_cast<std::uint64_t>(position);
  do {
    std::uint64_t left = x >> half_bits_, right = x & mask;
    for (std::uint64_t round = 0; round < 6; ++round) {
      const std::uint64_t mixed = left ^ (hash_combine(key_ + round, right) & mask);
      left = right;
      right = mixed;
    }
    x = (left << half_bits_) | right;
  } while (x >= n_);
  return static_cast<std::int64_t>(x);
}

Sampler::Sampler(std::int64_t sample_count, const SamplerOptions& options)
    : sample_count_(sample_count), options_(options) {
  if (options.batch_size < 1)
    throw ConfigError(cat("dataloader: batch_size must be at least 1, got ", options.batch_size), "batch_size");
  // Else the samples of a global step, beside those of an epoch, would leave 64 bits.
  constexpr std::int64_t kMaxPerStep = std::numeric_limits<std::int64_t>::max() / 2;
  if (options.batch_size > kMaxPerStep / options.world_size / options.unit) {
    throw ConfigError(cat("dataloader: batch_size must be at most ", kMaxPerStep / options.world_size / options.unit,
                          " on each of ", options.world_size * options.unit, " ranks, got ", options.batch_size),
                      "batch_size");
  }
  if (sample_count < 1) throw ConfigError("dataloader: the dataset has no samples", "dataset");
  const std::int64_t per_step = options.batch_size * options.world_size * options.unit;
  const std::int64_t whole = sample_count / per_step;
  micro_steps_ = options.unit * (options.drop_last ? whole : whole + (sample_count % per_step != 0 ? 1 : 0));
  if (micro_steps_ == 0) {
    throw ConfigError(cat("dataloader: ", sample_count, " samples do not fill one micro-batch of ", options.batch_size,
                          " on each of ", options.world_size * options.unit,
                          " ranks, and drop_last leaves the rest out; use a smaller batch_size"),
                      "batch_size");
  }
}

std::vector<std::int64_t> Sampler::micro_batch(std::int64_t epoch, std::int64_t micro_step) const {
  const Permutation order(sample_count_, hash_combine(options_.seed, static_cast<std::uint64_t>(epoch)));
  const std::int64_t begin = global_index(micro_step) * options_.batch_size;
  std::vector<std::int64_t> samples;
  // A batch that is larger than the data may be asked for where nothing is repeated.
  samples.reserve(
      static_cast<std::size_t>(options_.round_up ? options_.batch_size : std::min(options_.batch_size, sample_count_)));
  for (std::int64_t position = begin; position < begin + options_.batch_size; ++position) {
    if (position >= sample_count_ && !options_.round_up) break;
    const std::int64_t wrapped = position % sample_count_;
    samples.push_back(options_.shuffle ? order.at(wrapped) : wrapped);
  }
  return samples;
}

}  // namespace castor::strategy
