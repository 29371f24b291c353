// Radius and error of the angle come from one Philox block a sample.
#include "samples/extend/spirals.h"

#include <cmath>
#include <numbers>

#include "core/base/philox.h"

namespace extend {

using namespace castor;

autograd::Batch Spirals::batch(std::span<const std::int64_t> samples) const {
  const auto count = static_cast<std::int64_t>(samples.size());
  const autograd::Batch result{Tensor::empty({count, 2}, DType::f32), Tensor::empty({count}, DType::i64)};
  float* point = result.inputs.data<float>();
  std::int64_t* target = result.targets.data<std::int64_t>();
  for (const std::int64_t sample : samples) {
    const Philox4 random =
        philox({hash_text("spirals"), static_cast<std::uint64_t>(config_.seed)}, static_cast<std::uint64_t>(sample));
    const std::int64_t arm = sample % config_.arms;
    const double radius = uniform_from_word(random.word[0]);
    const double error = config_.noise * (2.0 * uniform_from_word(random.word[1]) - 1.0);
    const double start = static_cast<double>(arm) / static_cast<double>(config_.arms);
    const double angle = 2 * std::numbers::pi * (start + config_.turns * radius) + error;
    *point++ = static_cast<float>(radius * std::cos(angle));
    *point++ = static_cast<float>(radius * std::sin(angle));
    *target++ = arm;
  }
  return result;
}

}  // namespace extend
