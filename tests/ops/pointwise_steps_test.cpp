// Adagrad, Lion, RMSprop and AdamW in 8 bits on ranges: values against plain f64 loops, and the promise that cuts at
// block boundaries, threads and the compiler's vectors change no bit.
#include "core/ops/pointwise_steps.h"

#include <cmath>

#include <doctest/doctest.h>

#include "core/ops/adam8bit.h"
#include "core/ops/dynamic_code.h"
#include "tests/ops/optim_ranges.h"

namespace castor {
namespace {

using namespace castor::test;

constexpr DynamicCode kSigned = make_dynamic_code(true);
constexpr DynamicCode kUnsigned = make_dynamic_code(false);

/// One step of a range whose states are those of `x`, as far as the optimizer has them.
struct StepCase {
  std::string name;
  std::function<void(const StepTensors&, const Whole& x)> step;
  /// The same of one element in f64: the gradient, then the parameter and three states.
  std::function<void(double g, double& p, double& first, double& second, double& third)> reference;
};

StepCase rmsprop_case(bool has_momentum, bool is_centered) {
  RmspropScalars s{2, 0.01f, 0.9f, 0.1f, 0.8f, 0.01f, 1e-3f};
  return {cat("rmsprop, momentum ", has_momentum, ", centered ", is_centered),
          [=](const StepTensors& tensors, const Whole& x) {
            rmsprop_step(tensors, x.second, has_momentum ? x.first : Tensor{}, is_centered ? x.third : Tensor{}, s);
          },
          [=](double g, double& p, double& first, double& second, double& third) {
            const double d = 2 * g + 0.01 * p;
            second = 0.9 * second + 0.1 * d * d;
            if (is_centered) third = 0.9 * third + 0.1 * d;
            const double square = is_centered ? std::max(0.0, second - third * third) : second;
            double u = d / (std::sqrt(square) + 1e-3);
            if (has_momentum) u = first = 0.8 * first + u;
            p -= 0.01 * u;
          }};
}

std::vector<StepCase> all_cases() {
  std::vector<StepCase> cases;
  cases.push_back({"adagrad",
                   [](const StepTensors& tensors, const Whole& x) {
                     adagrad_step(tensors, x.second, {0.5f, 0.1f, 0.01f, 1e-6f});
                   },
                   [](double g, double& p, double&, double& second, double&) {
                     const double d = 0.5 * g + 0.01 * p;
                     second += d * d;
                     p -= 0.1 * d / (std::sqrt(second) + 1e-6);
                   }});
  cases.push_back({"lion",
                   [](const StepTensors& tensors, const Whole& x) {
                     lion_step(tensors, x.first, {0.5f, 0.9f, 0.1f, 0.75f, 0.25f, 0.01f, 0.99f});
                   },
                   [](double g, double& p, double& first, double&, double&) {
                     const double direction = 0.9 * first + 0.1 * 0.5 * g;
                     p = 0.99 * p - 0.01 * (direction > 0 ? 1 : direction < 0 ? -1 : 0);
                     first = 0.75 * first + 0.25 * 0.5 * g;
                   }});
  for (const bool has_momentum : {false, true})
    for (const bool is_centered : {false, true}) cases.push_back(rmsprop_case(has_momentum, is_centered));
  return cases;
}

/// The 8-bit states of a parameter.
Adam8bitStates codes_for(std::int64_t count) {
  return {full({count}, kSignedZero, DType::u8), Tensor::zeros({count}, DType::u8),
          Tensor::zeros({block_count(count)}, DType::f32), Tensor::zeros({block_count(count)}, DType::f32)};
}

AdamScalars adam_numbers(int step) { return adam_scalars({0.01, 0.9, 0.95, 1e-8, 0.1, true}, step, 0.5); }

/// Three steps of a parameter that is visited in ranges.
void adam8bit_in_ranges(const Whole& whole, const Adam8bitStates& states, const std::vector<std::int64_t>& cuts) {
  for (int step = 1; step <= 3; ++step) {
    for_ranges(cuts, whole.parameter.numel(), [&](std::int64_t offset, std::int64_t count) {
      const auto scales = [&](const Tensor& all) {
        return all.narrow(0, offset / kStatisticsBlock, block_count(count));
      };
      adam8bit_step(tensors_of(range_of(whole, offset, count)),
                    {states.mean_codes.narrow(0, offset, count), states.square_codes.narrow(0, offset, count),
                     scales(states.mean_scales), scales(states.square_scales)},
                    adam_numbers(step));
    });
  }
}

/// The nearest code by trying all.
int search(const DynamicCode& code, double x) {
  int best = 0;
  for (int i = 1; i < DynamicCode::kSize; ++i) {
    const auto distance = [&](int at) { return std::abs(static_cast<double>(code.value[at]) - x); };
    if (distance(i) < distance(best)) best = i;
  }
  return best;
}

}  // namespace

TEST_CASE("steps that need their element alone give the same bits however a tensor is cut") {
  constexpr std::int64_t kCount = 7 * kStatisticsBlock + 333;
  for (const StepCase& c : all_cases()) {
    check_cuts_and_threads(c.name, kCount, [&](const Whole& whole, const auto& cuts) {
      for_ranges(cuts, kCount, [&](std::int64_t offset, std::int64_t count) {
        const Whole part = range_of(whole, offset, count);
        c.step(tensors_of(part), part);
      });
    });
  }
  Adam8bitStates want;
  check_cuts_and_threads("adamw in 8 bits", kCount, [&](const Whole& whole, const auto& cuts) {
    const Adam8bitStates states = codes_for(kCount);
    adam8bit_in_ranges(whole, states, cuts);
    if (cuts.empty()) want = states;
    check_same_bits("codes of means", states.mean_codes, want.mean_codes);
    check_same_bits("codes of squares", states.square_codes, want.square_codes);
    check_same_bits("scales of means", states.mean_scales, want.mean_scales);
    check_same_bits("scales of squares", states.square_scales, want.square_scales);
  });
}

TEST_CASE("steps that need their element alone follow an f64 reference, and a missing gradient is zero") {
  constexpr std::int64_t kCount = 1100;
  for (const StepCase& c : all_cases()) {
    const Whole x = make_whole(kCount, DType::f32, DType::bf16, 11);
    Array p = to_array(x.parameter), first = to_array(x.first), second = to_array(x.second), third = to_array(x.third);
    for (int step = 1; step <= 4; ++step) {
      copy_into(make_tensor(random_array({kCount}, static_cast<std::uint64_t>(step)), DType::f32), x.gradient);
      const Array g = to_array(x.gradient);
      const bool has_gradient = step != 3;
      c.step({x.parameter, has_gradient ? x.gradient : Tensor{}, x.copy}, x);
      for (std::int64_t i = 0; i < kCount; ++i)
        c.reference(has_gradient ? g[i] : 0, p[i], first[i], second[i], third[i]);
    }
    check_close(c.name, x.parameter, p, DType::f32, 2e-5);
    check_close(c.name + ": first state", x.first, first, DType::f32, 2e-5);
    check_close(c.name + ": second state", x.second, second, DType::f32, 4e-6);
    check_close(c.name + ": third state", x.third, third, DType::f32, 4e-6);
  }
}

TEST_CASE("lion stands still where its direction is 0, and a gradient that is no number shows") {
  const Tensor p = full({3}, 0.5, DType::f32), mean = Tensor::zeros({3}, DType::f32);
  lion_step({p, Tensor::from_values(std::vector<float>{0, 1, std::nanf("")}, {3}), {}}, mean, {});
  const std::vector<float> got = p.to_vector<float>();
  CHECK(got[0] == 0.5f);
  CHECK(got[1] == 0.5f - 1e-4f);
  CHECK(std::isnan(got[2]));
}

TEST_CASE("the dynamic code is the paper's: seven decades, ascending, nearest numbers found") {
  for (const bool is_signed : {true, false}) {
    const DynamicCode& code = is_signed ? kSigned : kUnsigned;
    int in_decade[7] = {};
    for (int i = 0; i < DynamicCode::kSize; ++i) {
      if (i > 0) CHECK(code.value[i] > code.value[i - 1]);
      for (int decade = 0; decade < 7; ++decade) {
        const double top = std::pow(10, decade - 6), value = static_cast<double>(code.value[i]);
        if (value > 0.1 * top && value < top) ++in_decade[decade];
      }
    }
    for (int decade = 0; decade < 7; ++decade) CHECK(in_decade[decade] == 1 << (is_signed ? decade : decade + 1));
    CHECK(code.value[is_signed ? kSignedZero : 0] == 0);
    CHECK(code.value[255] == 1);
    for (int i = 0; i < 2000; ++i) {
      const double size = std::pow(10, -7.5 * i / 2000) * 0.9971;
      const auto x = static_cast<float>(is_signed && i % 2 == 1 ? -size : size);
      CHECK(nearest_code(code.edge, x) == search(code, static_cast<double>(x)));
    }
    for (int i = 0; i < DynamicCode::kSize; ++i) CHECK(nearest_code(code.edge, code.value[i]) == i);
  }
}

TEST_CASE("adamw in 8 bits steps by the moments that its codes and scales stand for") {
  constexpr std::int64_t kCount = 2 * kStatisticsBlock + 100;
  const Whole x = make_whole(kCount, DType::f32, DType::bf16, 7);
  const Adam8bitStates states = codes_for(kCount);
  for (int step = 1; step <= 4; ++step) {
    copy_into(make_tensor(random_array({kCount}, static_cast<std::uint64_t>(step)), DType::f32), x.gradient);
    // The moments before the step, in f32, and plain Adam on them.
    const Whole plain = clone_of(x);
    for (std::int64_t i = 0; i < kCount; ++i) {
      const std::int64_t block = i / kStatisticsBlock;
      plain.first.data<float>()[i] =
          kSigned.value[states.mean_codes.data<std::uint8_t>()[i]] * states.mean_scales.data<float>()[block];
      plain.second.data<float>()[i] =
          kUnsigned.value[states.square_codes.data<std::uint8_t>()[i]] * states.square_scales.data<float>()[block];
    }
    adam_step(tensors_of(plain), plain.first, plain.second, {}, adam_numbers(step));
    adam8bit_step(tensors_of(x), states, adam_numbers(step));
    check_same_bits("the parameter", x.parameter, plain.parameter);
    check_same_bits("the copy", x.copy, plain.copy);
    for (std::int64_t block = 0; block < block_count(kCount); ++block) {
      float most_mean = 0, most_square = 0;
      const std::int64_t begin = block * kStatisticsBlock, end = std::min(kCount, begin + kStatisticsBlock);
      for (std::int64_t i = begin; i < end; ++i) {
        most_mean = std::max(most_mean, std::abs(plain.first.data<float>()[i]));
        most_square = std::max(most_square, plain.second.data<float>()[i]);
      }
      CHECK(states.mean_scales.data<float>()[block] == most_mean);
      CHECK(states.square_scales.data<float>()[block] == most_square);
      for (std::int64_t i = begin; i < end; ++i) {
        CHECK(states.mean_codes.data<std::uint8_t>()[i] ==
              nearest_code(kSigned.edge, plain.first.data<float>()[i] / most_mean));
        CHECK(states.square_codes.data<std::uint8_t>()[i] ==
              nearest_code(kUnsigned.edge, plain.second.data<float>()[i] / most_square));
      }
    }
  }
  // A block of zeros stays one.
  const Tensor p = full({10}, 0.5, DType::f32);
  const Adam8bitStates zeros = codes_for(10);
  adam8bit_step({p, {}, {}}, zeros, adam_numbers(1));
  CHECK(zeros.mean_codes.data<std::uint8_t>()[3] == kSignedZero);
  CHECK(zeros.mean_scales.data<float>()[0] == 0);
}

TEST_CASE("pointwise steps run on meta and on empty ranges, and refuse tensors that do not fit") {
  const Device meta = make_meta({DeviceType::cpu, "", 0});
  for (const Device device : {meta, kCpu}) {
    const std::int64_t count = device.is_meta() ? 2000 : 0;
    const auto make = [&](DType dtype) { return Tensor::empty({count}, dtype, device); };
    const StepTensors tensors{make(DType::f32), make(DType::bf16), make(DType::bf16)};
    const Tensor state = make(DType::f32), codes = make(DType::u8);
    adagrad_step(tensors, state, {});
    lion_step(tensors, state, {});
    rmsprop_step(tensors, state, {}, {}, {});
    const Tensor scales = Tensor::empty({block_count(count)}, DType::f32, device);
    adam8bit_step(tensors, {codes, codes, scales, scales}, adam_numbers(1));
  }
  const Tensor p = Tensor::zeros({8}, DType::f32), codes = Tensor::zeros({8}, DType::u8),
               scales = Tensor::zeros({1}, DType::f32);
  CHECK_THROWS_AS(adagrad_step({p, {}, {}}, {}, {}), ShapeError);
  CHECK_THROWS_AS(lion_step({p, {}, {}}, codes, {}), DTypeError);
  CHECK_THROWS_AS(rmsprop_step({p, {}, {}}, p, scales, {}, {}), ShapeError);
  CHECK_THROWS_AS(adam8bit_step({p, {}, {}}, {codes, p, scales, scales}, {}), DTypeError);
  CHECK_THROWS_AS(adam8bit_step({p, {}, {}}, {codes, codes, p, scales}, {}), ShapeError);
  CHECK_THROWS_AS(adam8bit_step({p, {}, {}}, {codes, codes, scales, {}}, {}), ShapeError);
}

}  // namespace castor
