// The order in which samples are seen: a pure function of (seed, epoch, position), so that a run can be cut between
// ranks, stopped and restarted anywhere without replaying anything.
//
// Micro-batch k of a global step is m * W + r (micro-step m, rank r, world size W). In the global order of an epoch,
// global micro-batch g = step * (W * M) + k holds positions [g * b, (g + 1) * b): equal W * M gives equal samples,
// whatever W is.
#pragma once

#include <cstdint>
#include <vector>

namespace castor::strategy {

/// A permutation of [0, n) by a keyed Feistel network with cycle walking: any element in O(1) time and no memory.
/// Source: Black & Rogaway 2002, "Ciphers with arbitrary finite domains", CT-RSA, section 4.
class Permutation {
 public:
  /// Throws ShapeError unless 0 < n.
  Permutation(std::int64_t n, std::uint64_t key);
  std::int64_t at(std::int64_t position) const;

 private:
  std::uint64_t n_;
  std::uint64_t key_;
  int half_bits_;
};

/// What a sampler is told by the config.
struct SamplerOptions {
  bool shuffle = true;  ///< false: positions are sample numbers
  std::uint64_t seed = 0;
  std::int64_t batch_size = 1;  ///< b: samples of a micro-batch
  std::int64_t world_size = 1;  ///< W
  std::int64_t rank = 0;        ///< r
  std::int64_t unit = 1;        ///< an epoch takes a multiple of so many micro-steps: where W stands for more ranks
  /// true: an epoch's tail that does not fill unit * W micro-batches is left out. false, in training: the order is
  /// continued from its start until it does (mmengine's round_up).
  bool drop_last = false;
  /// false: nothing is repeated; the last micro-batches are smaller or empty. For exact evaluation.
  bool round_up = true;
};

/// Where a loader stands; small enough to store in a checkpoint.
struct SamplerCursor {
  std::int64_t epoch = 0;
  std::int64_t micro_step = 0;  ///< micro-steps of this rank already taken in the epoch
  friend bool operator==(const SamplerCursor&, const SamplerCursor&) = default;
};

/// Sample numbers of this rank's micro-batches.
class Sampler {
 public:
  /// Throws ConfigError if a batch cannot be made: no samples, or fewer than one micro-batch with drop_last.
  Sampler(std::int64_t sample_count, const SamplerOptions& options);

  /// Micro-steps in an epoch, equal on every rank.
  std::int64_t micro_steps_per_epoch() const { return micro_steps_; }
  /// The samples of micro-step `micro_step` of `epoch` on this rank.
  std::vector<std::int64_t> micro_batch(std::int64_t epoch, std::int64_t micro_step) const;
  /// The global number of that micro-batch within its epoch: micro_step * W + r.
  std::int64_t global_index(std::int64_t micro_step) const { return micro_step * options_.world_size + options_.rank; }

 private:
  std::int64_t sample_count_;
  SamplerOptions options_;
  std::int64_t micro_steps_;
};

}  // namespace castor::strategy
