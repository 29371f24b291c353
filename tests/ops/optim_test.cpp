// Steps of SGD, Adam and Lamb on ranges: values against plain f64 loops, and the promise that cuts at block boundaries,
// threads and the compiler's vectors change no bit.
#include "core/ops/optim.h"

#include <algorithm>
#include <cmath>

#include <doctest/doctest.h>

#include "core/base/math.h"
#include "core/ops/random.h"
#include "tests/ops/optim_ranges.h"

namespace castor {
namespace {

using namespace castor::test;

const AdamOptions kAdamW{0.01, 0.9, 0.95, 1e-8, 0.1, true};

LambScalars lamb_scalars() {
  LambScalars s;
  s.gradient_factor = 0.5f;
  s.decay = 0.01f;
  return s;
}

void lamb_in_ranges(const Whole& whole, const std::vector<std::int64_t>& cuts) {
  LambSquares squares;
  for_ranges(cuts, whole.parameter.numel(), [&](std::int64_t offset, std::int64_t count) {
    const Whole part = range_of(whole, offset, count);
    squares = lamb_squares(tensors_of(part), part.first, part.second, lamb_scalars(), squares);
  });
  for_ranges(cuts, whole.parameter.numel(), [&](std::int64_t offset, std::int64_t count) {
    const Whole part = range_of(whole, offset, count);
    lamb_step(tensors_of(part), part.first, part.second, lamb_scalars(),
              0.01 * std::sqrt(squares.parameter / squares.update));
  });
}

}  // namespace

TEST_CASE("any cut at block boundaries and any number of threads give the bits of the uncut tensor") {
  constexpr std::int64_t kCount = 7 * kStatisticsBlock + 333;
  for (const bool largest : {false, true}) {
    check_cuts_and_threads(largest ? "amsgrad" : "adamw", kCount, [=](const Whole& whole, const auto& cuts) {
      for (int step = 1; step <= 2; ++step) {
        for_ranges(cuts, kCount, [&](std::int64_t offset, std::int64_t count) {
          const Whole part = range_of(whole, offset, count);
          adam_step(tensors_of(part), part.first, part.second, largest ? part.third : Tensor{},
                    adam_scalars(kAdamW, step, 0.5));
        });
      }
    });
  }
  check_cuts_and_threads("sgd", kCount, [=](const Whole& whole, const auto& cuts) {
    for_ranges(cuts, kCount, [&](std::int64_t offset, std::int64_t count) {
      const Whole part = range_of(whole, offset, count);
      sgd_step(tensors_of(part), part.first, {0.5f, 0.1f, 0.9f, 0.1f, 0.01f, true, false});
    });
  });
  check_cuts_and_threads("lamb", kCount, lamb_in_ranges);
}

TEST_CASE("sums of squares carry over from range to range with the bits of the uncut tensor") {
  constexpr std::int64_t kCount = 7 * kStatisticsBlock + 333;
  for (const DType dtype : kGradientDTypes) {
    const Tensor x = make_tensor(random_array({kCount}, 1), dtype);
    const double want = sum_squares(x);
    double exact = 0;
    for (const double value : to_array(x).values) exact += value * value;
    CHECK(want == doctest::Approx(exact).epsilon(1e-6));
    for (const auto& cuts : cuts_of(kCount)) {
      double carry = 0;
      for_ranges(cuts, kCount, [&](std::int64_t offset, std::int64_t count) {
        carry = sum_squares(x.narrow(0, offset, count), carry);
      });
      CHECK(carry == want);
    }
  }
  CHECK(sum_squares(Tensor::zeros({0}, DType::f32), 3) == 3);
  const Tensor infinite = full({2000}, HUGE_VAL, DType::bf16);
  CHECK(std::isinf(sum_squares(infinite)));
}

TEST_CASE("segments of values fold by blocks of 32 chains, short, long and empty ones, with the bits of plain loops") {
  constexpr std::int64_t kCount = 40000;
  const Array numbers = random_array({kCount}, 9);
  const Tensor values = make_tensor(numbers, DType::f64);
  const std::vector<std::int64_t> begins = {0, 1, 1, 33, 65, 97, 1200, 3500, 3500 + 1024, 40000};
  const std::vector<double> got = fold_segments(values, begins).to_vector<double>();
  const std::vector<double> plain = values.to_vector<double>();
  REQUIRE(got.size() == begins.size() - 1);
  for (std::size_t i = 0; i < got.size(); ++i) {
    double sum = 0;
    for (std::int64_t block = begins[i]; block < begins[i + 1]; block += 1024) {
      double chains[32] = {};
      for (std::int64_t j = block; j < std::min(block + 1024, begins[i + 1]); ++j)
        chains[(j - block) % 32] += plain[static_cast<std::size_t>(j)];
      for (int width = 16; width > 0; width /= 2) {
        for (int c = 0; c < width; ++c) chains[c] += chains[c + width];
      }
      sum += chains[0];
    }
    CHECK(got[i] == sum);
  }
  CHECK(fold_segments(values, {5}).numel() == 0);
  CHECK_THROWS_AS(fold_segments(values, {0, 10, 5}), ShapeError);
  CHECK_THROWS_AS(fold_segments(values, {0, kCount + 1}), ShapeError);
  CHECK_THROWS_AS(fold_segments(Tensor::zeros({4}, DType::f32), {0, 4}), DTypeError);
}

TEST_CASE("adam computes its documented steps one element at a time, to the bit") {
  constexpr std::int64_t kCount = 1100;
  const Whole x = make_whole(kCount, DType::f32, DType::bf16, 3);
  const Whole before = clone_of(x);
  const AdamScalars s = adam_scalars(kAdamW, 3, 0.25);
  adam_step(tensors_of(x), x.first, x.second, {}, s);
  const float* p = before.parameter.data<float>();
  const float* g = before.gradient.data<float>();
  for (std::int64_t i = 0; i < kCount; ++i) {
    volatile float scaled = s.gradient_factor * g[i];  // volatile: no vectors, no other contraction
    volatile float gradient = math::fma(s.decay, p[i], scaled);
    volatile float part = s.beta1_rest * gradient;
    volatile float mean = math::fma(s.beta1, before.first.data<float>()[i], part);
    volatile float half = s.beta2_rest * gradient;
    volatile float whole = half * gradient;
    volatile float square = math::fma(s.beta2, before.second.data<float>()[i], whole);
    volatile float root = math::sqrt(square);
    volatile float size = math::fma(root, s.root_factor, s.epsilon);
    volatile float ratio = mean / size;
    volatile float kept = s.keep * p[i];
    CHECK(x.parameter.data<float>()[i] == math::fma(-s.step_size, ratio, kept));
    CHECK(x.first.data<float>()[i] == mean);
    CHECK(x.second.data<float>()[i] == square);
  }
}

TEST_CASE("adam and adamw follow an f64 reference over several steps") {
  constexpr std::int64_t kCount = 50;
  for (const bool decoupled : {true, false}) {
    for (const bool largest : {true, false}) {
      AdamOptions options = kAdamW;
      options.is_decoupled = decoupled;
      const Whole x = make_whole(kCount, DType::f32, DType::f16, 11);
      for (const Tensor& state : {x.first, x.second, x.third}) fill(state, 0);
      Array p = to_array(x.parameter), m({kCount}), v({kCount}), top({kCount});
      for (int step = 1; step <= 6; ++step) {
        copy_into(make_tensor(random_array({kCount}, static_cast<std::uint64_t>(step)), DType::f32), x.gradient);
        const Array g = to_array(x.gradient);
        adam_step(tensors_of(x), x.first, x.second, largest ? x.third : Tensor{}, adam_scalars(options, step, 2));
        for (std::int64_t i = 0; i < kCount; ++i) {
          const double gradient = 2 * g[i] + (decoupled ? 0 : options.weight_decay * p[i]);
          if (decoupled) p[i] *= 1 - options.lr * options.weight_decay;
          m[i] = options.beta1 * m[i] + (1 - options.beta1) * gradient;
          v[i] = options.beta2 * v[i] + (1 - options.beta2) * gradient * gradient;
          top[i] = std::max(top[i], v[i]);
          const double size =
              std::sqrt((largest ? top[i] : v[i]) / (1 - std::pow(options.beta2, step))) + options.epsilon;
          p[i] -= options.lr / (1 - std::pow(options.beta1, step)) * m[i] / size;
        }
      }
      check_close(cat("adam, decoupled ", decoupled, ", amsgrad ", largest), x.parameter, p, DType::f32, 4e-6);
    }
  }
}

TEST_CASE("a missing gradient is a zero gradient") {
  for (int kind = 0; kind < 3; ++kind) {
    const Whole with = make_whole(1500, DType::f32, DType::bf16, 5);
    fill(with.gradient, 0);
    const Whole without = clone_of(with);
    const auto step = [&](const Whole& x, const Tensor& gradient) {
      const StepTensors tensors{x.parameter, gradient, x.copy};
      if (kind == 0) adam_step(tensors, x.first, x.second, {}, adam_scalars(kAdamW, 2));
      if (kind == 1) sgd_step(tensors, x.first, {1, 0.1f, 0.9f, 0, 0.01f, false, false});
      if (kind == 2) {
        const LambSquares squares = lamb_squares(tensors, x.first, x.second, lamb_scalars());
        lamb_step(tensors, x.first, x.second, lamb_scalars(), squares.update);
      }
    };
    step(with, with.gradient);
    step(without, {});
    check_same(cat("kind ", kind), without, with);
  }
}

TEST_CASE("the copy of a range too large for the caches is the parameter, rounded, at any alignment") {
  constexpr std::int64_t kCount = (std::int64_t{1} << 20) + 333;
  const Tensor parameter = full({kCount}, 0.3, DType::f32), gradient = Tensor::zeros({kCount}, DType::f32);
  fill_uniform(gradient, {1, 2}, -1, 1);
  for (const DType dtype : {DType::bf16, DType::f16}) {
    for (const std::int64_t start : {0, 3}) {
      const Tensor copy = Tensor::zeros({start + kCount + 1}, dtype).narrow(0, start, kCount);
      sgd_step({parameter, gradient, copy}, {}, {});
      check_same_bits(cat(dtype, " from element ", start), copy, cast(parameter, dtype));
    }
  }
}

TEST_CASE("sgd follows an f64 reference, with and without momentum, dampening and nesterov") {
  constexpr std::int64_t kCount = 50;
  for (const bool has_buffer : {true, false}) {
    for (const bool nesterov : {true, false}) {
      const SgdScalars base{0.5f, 0.1f, 0.9f, nesterov ? 0.0f : 0.25f, 0.01f, nesterov, false};
      const Whole x = make_whole(kCount, DType::f32, DType::bf16, 11);
      fill(x.first, std::nan(""));  // the first step must not read it
      Array p = to_array(x.parameter), b({kCount});
      for (int step = 1; step <= 4; ++step) {
        copy_into(make_tensor(random_array({kCount}, static_cast<std::uint64_t>(step)), DType::f32), x.gradient);
        const Array g = to_array(x.gradient);
        SgdScalars scalars = base;
        scalars.is_first_step = step == 1;
        sgd_step(tensors_of(x), has_buffer ? x.first : Tensor{}, scalars);
        for (std::int64_t i = 0; i < kCount; ++i) {
          const double gradient = 0.5 * g[i] + 0.01 * p[i];
          b[i] = step == 1 ? gradient : 0.9 * b[i] + (nesterov ? 1 : 0.75) * gradient;
          p[i] -= 0.1 * (!has_buffer ? gradient : nesterov ? gradient + 0.9 * b[i] : b[i]);
        }
      }
      check_close(cat("sgd, buffer ", has_buffer, ", nesterov ", nesterov), x.parameter, p, DType::f32, 4e-6);
    }
  }
}

TEST_CASE("lamb scales adam's direction by a ratio of norms of the whole parameter") {
  constexpr std::int64_t kCount = 3000;
  const Whole x = make_whole(kCount, DType::f32, DType::bf16, 21);
  Array p = to_array(x.parameter), m = to_array(x.first), v = to_array(x.second);
  const Array g = to_array(x.gradient);
  lamb_in_ranges(x, {kStatisticsBlock});
  double parameter_squares = 0, update_squares = 0;
  Array u({kCount});
  for (std::int64_t i = 0; i < kCount; ++i) {
    m[i] = 0.9 * m[i] + 0.1 * 0.5 * g[i];
    v[i] = 0.999 * v[i] + 0.001 * 0.25 * g[i] * g[i];
    u[i] = m[i] / (std::sqrt(v[i]) + 1e-6) + 0.01 * p[i];
    parameter_squares += p[i] * p[i];
    update_squares += u[i] * u[i];
  }
  for (std::int64_t i = 0; i < kCount; ++i) p[i] -= 0.01 * std::sqrt(parameter_squares / update_squares) * u[i];
  check_close("lamb", x.parameter, p, DType::f32, 4e-6);
  check_close("lamb's mean", x.first, m, DType::f32, 4e-6);
}

TEST_CASE("ranges stepped together have the bits of each by itself") {
  std::vector<Whole> one, together;
  std::vector<AdamStep> adam;
  std::vector<SgdStep> sgd;
  std::vector<BlockSquares> squares;
  for (int i = 0; i < 12; ++i) {
    const std::int64_t count = i == 4 ? 0 : 300 * i + 1;
    one.push_back(make_whole(count, kGradientDTypes[i % 3], i % 2 == 0 ? DType::bf16 : DType::f16,
                             static_cast<std::uint64_t>(10 * i)));
    together.push_back(clone_of(one.back()));
    const Whole &a = one.back(), &b = together.back();
    const AdamScalars scalars = adam_scalars({.lr = 0.01 * (i + 1)}, 2);
    adam_step(tensors_of(a), a.first, a.second, i % 3 == 0 ? a.third : Tensor{}, scalars);
    sgd_step(tensors_of(a), a.third, {0.5f, 0.1f, 0.9f, 0.1f, 0.01f, true, false});
    adam.push_back({tensors_of(b), b.first, b.second, i % 3 == 0 ? b.third : Tensor{}, scalars});
    sgd.push_back({tensors_of(b), b.third, {0.5f, 0.1f, 0.9f, 0.1f, 0.01f, true, false}});
    squares.push_back({b.gradient, Tensor::zeros({block_count(count)}, DType::f64)});
  }
  adam_steps(adam);
  sgd_steps(sgd);
  block_squares(squares);
  for (std::size_t i = 0; i < one.size(); ++i) {
    check_same(cat("range ", i), together[i], one[i]);
    double sum = 0;
    for (const double block : squares[i].sums.to_vector<double>()) sum += block;
    CHECK(sum == sum_squares(one[i].gradient));
  }
  adam_steps({});
  block_squares({});
  const Tensor elsewhere = Tensor::empty({8}, DType::f32, make_meta({DeviceType::cpu, "", 0}));
  const AdamStep far{{elsewhere, elsewhere, {}}, elsewhere, elsewhere, {}, {}};
  CHECK_THROWS_AS(adam_steps(std::vector<AdamStep>{adam[1], far}), DeviceError);
}

TEST_CASE("optimizer steps run on meta and on empty ranges") {
  const Device meta = make_meta({DeviceType::cpu, "", 0});
  for (const Device device : {meta, kCpu}) {
    const std::int64_t count = device.is_meta() ? 2000 : 0;
    const auto make = [&](DType dtype) { return Tensor::empty({count}, dtype, device); };
    const StepTensors tensors{make(DType::f32), make(DType::bf16), make(DType::bf16)};
    const Tensor first = make(DType::f32), second = make(DType::f32);
    adam_step(tensors, first, second, {}, adam_scalars({}, 1));
    sgd_step(tensors, first, {});
    lamb_step(tensors, first, second, {}, 0.1);
    CHECK(sum_squares(tensors.gradient, 5) == 5);
    CHECK(lamb_squares(tensors, first, second, {}, {1, 2}).update == 2);
  }
}

TEST_CASE("optimizer steps refuse tensors that do not fit") {
  const auto f32 = [](std::int64_t count) { return Tensor::zeros({count}, DType::f32); };
  const Tensor p = f32(8), state = f32(8);
  CHECK_THROWS_AS(adam_scalars({}, 0), ShapeError);
  CHECK_THROWS_AS(adam_step({p, f32(7), {}}, state, state, {}, {}), ShapeError);
  CHECK_THROWS_AS(adam_step({p, f32(8), {}}, state, {}, {}, {}), ShapeError);
  CHECK_THROWS_AS(adam_step({p, f32(8), {}}, state, Tensor::zeros({8}, DType::bf16), {}, {}), DTypeError);
  CHECK_THROWS_AS(adam_step({p, Tensor::zeros({8}, DType::f64), {}}, state, state, {}, {}), DTypeError);
  CHECK_THROWS_AS(adam_step({p, f32(8), f32(8)}, state, state, {}, {}), DTypeError);
  CHECK_THROWS_AS(adam_step({Tensor::zeros({8}, DType::bf16), f32(8), {}}, state, state, {}, {}), DTypeError);
  CHECK_THROWS_AS(sgd_step({f32(16).as_strided({8}, {2}, 0), f32(8), {}}, state, {}), ShapeError);
  CHECK_THROWS_AS(sum_squares(Tensor::zeros({4, 4}, DType::f32).transpose(0, 1)), ShapeError);
  const Device meta = make_meta({DeviceType::cpu, "", 0});
  CHECK_THROWS_AS(adam_step({p, Tensor::empty({8}, DType::f32, meta), {}}, state, state, {}, {}), DeviceError);
}

}  // namespace castor
