// The step goes through dispatch like an op, so that it is planned on meta and traced. Delicate: the gradient may be
// absent (zeros), and the 16-bit copy that half-precision training computes with is written in the same pass.
#include "samples/extend/signum.h"

#include "core/base/parallel.h"
#include "core/device/dispatch.h"

namespace extend {

using namespace castor;

namespace {

struct SignumArgs {
  static constexpr const char* kName = "signum";
  View parameter, gradient, copy, mean;
  float gradient_factor, lr, momentum, weight_decay;
};

Cost cost(const SignumArgs& args) {
  const std::size_t bytes =
      2 * args.parameter.bytes() + args.gradient.bytes() + args.copy.bytes() + 2 * args.mean.bytes();
  return {7 * static_cast<double>(args.parameter.numel()), static_cast<double>(bytes)};
}

template <class Gradient>
void update(const SignumArgs& args, const Gradient* gradient) {
  float* p = args.parameter.as<float>();
  float* m = args.mean.as<float>();
  parallel_for(args.parameter.numel(), 16384, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const float g = gradient == nullptr ? 0.0f : args.gradient_factor * load(gradient[i]);
      m[i] = args.momentum * m[i] + (1.0f - args.momentum) * g;
      const float sign = m[i] > 0.0f ? 1.0f : (m[i] < 0.0f ? -1.0f : 0.0f);
      p[i] -= args.lr * (sign + args.weight_decay * p[i]);
    }
  });
}

void run(const Cpu&, const SignumArgs& args) {
  if (args.gradient.defined()) {
    visit_training_float(args.gradient.dtype, SignumArgs::kName,
                         [&](auto tag) { update(args, args.gradient.as<typename decltype(tag)::type>()); });
  } else {
    update<float>(args, nullptr);
  }
  if (!args.copy.defined()) return;
  visit_training_float(args.copy.dtype, SignumArgs::kName, [&](auto tag) {
    using T = typename decltype(tag)::type;
    for (std::int64_t i = 0; i < args.copy.numel(); ++i) args.copy.as<T>()[i] = store<T>(args.parameter.as<float>()[i]);
  });
}

}  // namespace

Signum::Signum(const SignumConfig& config, std::vector<autograd::ParamGroup> groups)
    : Optimizer(std::move(groups),
                {{"lr", config.lr}, {"momentum", config.momentum}, {"weight_decay", config.weight_decay}}) {}

std::vector<autograd::StateSpec> Signum::states(const Shape& shape) const { return {{"exp_avg", shape, DType::f32}}; }

void Signum::apply(const autograd::Range& range, const autograd::StepContext& context, const autograd::Stats&) const {
  SignumArgs args;
  args.parameter = range.parameter.view();
  args.gradient = view_or_absent(range.gradient);
  args.copy = view_or_absent(range.copy);
  args.mean = range.states.at("exp_avg").view();
  args.gradient_factor = static_cast<float>(context.gradient_scale);
  args.lr = static_cast<float>(value(range.group, "lr"));
  args.momentum = static_cast<float>(value(range.group, "momentum"));
  args.weight_decay = static_cast<float>(value(range.group, "weight_decay"));
  dispatch(range.parameter.device(), args);
}

}  // namespace extend
