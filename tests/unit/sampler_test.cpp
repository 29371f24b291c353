// The order of samples: a permutation by counter, cut the same way for any number of ranks, and entered anywhere.
#include "strategy/data/sampler.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include <doctest/doctest.h>

#include "core/base/error.h"

using namespace castor::strategy;

namespace {

SamplerOptions options(std::int64_t batch, std::int64_t world, std::int64_t rank) {
  SamplerOptions result;
  result.seed = 7;
  result.batch_size = batch;
  result.world_size = world;
  result.rank = rank;
  return result;
}

}  // namespace

TEST_CASE("a permutation meets every element once, for every size") {
  for (const std::int64_t n : {1, 2, 3, 4, 5, 17, 100, 1023, 1024, 1025}) {
    const Permutation order(n, 42);
    std::vector<std::int64_t> seen;
    for (std::int64_t i = 0; i < n; ++i) seen.push_back(order.at(i));
    std::vector<std::int64_t> sorted = seen;
    std::sort(sorted.begin(), sorted.end());
    std::vector<std::int64_t> all(static_cast<std::size_t>(n));
    std::iota(all.begin(), all.end(), 0);
    REQUIRE(sorted == all);
    if (n > 16) CHECK(seen != all);
  }
}

TEST_CASE("a batch whose global step cannot be counted is refused, and one beyond the data takes the data's room") {
  for (const std::int64_t batch : {std::int64_t{1} << 62, std::numeric_limits<std::int64_t>::max()}) {
    CHECK_THROWS_AS(Sampler(10, options(batch, 1, 0)), castor::ConfigError);
    CHECK_THROWS_AS(Sampler(10, options(batch / 4, 8, 7)), castor::ConfigError);
  }
  SamplerOptions evaluation = options(std::int64_t{1} << 60, 1, 0);
  evaluation.round_up = false;
  CHECK(Sampler(10, evaluation).micro_batch(0, 0).size() == 10);
}

TEST_CASE("epochs differ and seeds differ") {
  SamplerOptions a = options(100, 1, 0);
  CHECK(Sampler(100, a).micro_batch(0, 0) != Sampler(100, a).micro_batch(1, 0));
  SamplerOptions b = a;
  b.seed = 8;
  CHECK(Sampler(100, a).micro_batch(0, 0) != Sampler(100, b).micro_batch(0, 0));
  CHECK(Sampler(100, a).micro_batch(3, 0) == Sampler(100, a).micro_batch(3, 0));
}

TEST_CASE("micro-batch m * W + r does not depend on how the product W * M is split") {
  const Sampler one(96, options(4, 1, 0));
  for (const std::int64_t world : {2, 3, 4}) {
    for (std::int64_t rank = 0; rank < world; ++rank) {
      const Sampler part(96, options(4, world, rank));
      CHECK(part.micro_steps_per_epoch() == 24 / world);
      for (std::int64_t m = 0; m < part.micro_steps_per_epoch(); ++m) {
        CHECK(part.micro_batch(0, m) == one.micro_batch(0, m * world + rank));
      }
    }
  }
}

TEST_CASE("drop_last leaves the tail out, round_up repeats the start, neither gives shorter batches") {
  SamplerOptions padded = options(4, 2, 1);
  CHECK(Sampler(10, padded).micro_steps_per_epoch() == 2);
  padded.shuffle = false;
  CHECK(Sampler(10, padded).micro_batch(0, 1) == std::vector<std::int64_t>{2, 3, 4, 5});
  SamplerOptions dropped = padded;
  dropped.drop_last = true;
  CHECK(Sampler(10, dropped).micro_steps_per_epoch() == 1);
  SamplerOptions exact = padded;
  exact.round_up = false;
  CHECK(Sampler(10, exact).micro_batch(0, 1).empty());
  exact.rank = 0;
  CHECK(Sampler(10, exact).micro_batch(0, 1) == std::vector<std::int64_t>{8, 9});
}

TEST_CASE("data that cannot fill a batch is refused with the numbers") {
  SamplerOptions dropped = options(8, 2, 0);
  dropped.drop_last = true;
  CHECK_THROWS_WITH_AS(Sampler(15, dropped),
                       doctest::Contains("15 samples do not fill one micro-batch of 8 on each of 2 ranks"),
                       castor::ConfigError);
  CHECK_THROWS_AS(Sampler(0, options(1, 1, 0)), castor::ConfigError);
}
