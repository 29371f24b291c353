// CAME on the CPU: Adafactor's directions, and what an update is off their running mean.
#include "core/ops/came.h"
#include "core/ops/factored_cpu.h"

namespace castor {
namespace {

using namespace optim_cpu;

template <class T>
void add_residuals(const CameResidualsArgs& args) {
  const CameScalars s = args.scalars;
  const T* gradient = args.gradient.defined() ? args.gradient.as<T>() : nullptr;
  const float* mean = args.exp_avg.as<float>();
  const float* row_factor = args.row_factor.as<float>();
  const float* column_factor = args.column_factor.as<float>();
  const std::int64_t offset = args.offset;
  const auto add = [&](auto gradient_of) {
    add_factored_squares(args.shape, offset, args.exp_avg.numel(), args.row_sums, args.column_sums,
                         [=](std::int64_t at, std::int64_t row, std::int64_t column) {
                           const float direction = (s.gradient_factor * gradient_of(at - offset)) *
                                                   (row_factor[row] * column_factor[column]);
                           return optim::came_element(s, direction, mean[at - offset]).residual;
                         });
  };
  if (gradient != nullptr) {
    add([gradient](std::int64_t i) { return load(gradient[i]); });
  } else {
    add([](std::int64_t) { return 0.0f; });
  }
}

struct CameUpdate {
  CameScalars s;
  FactoredShape shape;
  std::int64_t offset;
  const float* row_factor;  // all four nullptr where `square` is used
  const float* column_factor;
  const float* row_confidence;
  const float* column_confidence;
  float* p;
  float* mean;
  float* square;  // or nullptr

  [[gnu::always_inline]] void fetch(std::int64_t begin) const {
    fetch_ahead(mean, begin);
    fetch_ahead(square, begin);
  }
  void operator()(const float* g, std::int64_t begin, std::int64_t count, float*) const {
    float update[kStretch];
    update_direction(shape, offset + begin, count, s, g, row_factor, column_factor,
                     square == nullptr ? nullptr : square + begin, update);
#pragma GCC ivdep
    for (std::int64_t i = 0; i < count; ++i)
      update[i] = mean[begin + i] = optim::came_element(s, update[i], mean[begin + i]).mean;
    if (square != nullptr) {
#pragma GCC ivdep
      for (std::int64_t i = 0; i < count; ++i) square[begin + i] = optim::second_moment(s, g[i], square[begin + i]);
    } else {
      factored_update(shape, offset + begin, count, 1.0f, update, row_confidence, column_confidence, update);
    }
#pragma GCC ivdep
    for (std::int64_t i = 0; i < count; ++i) p[begin + i] = math::fma(-s.lr, update[i], s.keep * p[begin + i]);
  }
};

}  // namespace

void run(const Cpu&, const CameResidualsArgs& args) {
  visit_training_float(args.gradient.defined() ? args.gradient.dtype : DType::f32, CameResidualsArgs::kName,
                       [&](auto tag) { add_residuals<typename decltype(tag)::type>(args); });
}

void run(const Cpu&, const CameArgs& args) {
  const CameUpdate update{args.scalars,
                          args.shape,
                          args.offset,
                          args.row_factor.as<float>(),
                          args.column_factor.as<float>(),
                          args.row_confidence.as<float>(),
                          args.column_confidence.as<float>(),
                          args.parameter.as<float>(),
                          args.exp_avg.as<float>(),
                          args.exp_avg_sq.as<float>()};
  update_all(update, args.gradient, args.copy, args.parameter.numel());
}

}  // namespace castor
