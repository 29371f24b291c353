// Adagrad, Lion and RMSprop on the CPU: their functors over the stretches of optim_stretch.h. Delicate: the small array
// of one element's numbers must stay in registers, or the loop is not vectorised.
#include <array>

#include "core/ops/optim_stretch.h"
#include "core/ops/pointwise_steps_element.h"

namespace castor {
namespace {

using namespace optim_cpu;

template <class Element>
struct PointwiseUpdate {
  static constexpr int kStates = Element::kStates;
  Element element;
  float* p;
  std::array<float*, kStates> states;  // the parameter first

  [[gnu::always_inline]] void fetch(std::int64_t begin) const {
    for (int k = 1; k < kStates; ++k) fetch_ahead(states[k], begin);
  }
  [[gnu::always_inline]] void operator()(const float* g, std::int64_t begin, std::int64_t count, float*) const {
#pragma GCC ivdep
    for (std::int64_t i = 0; i < count; ++i) {
      float x[kStates];
#pragma GCC unroll 4
      for (int k = 0; k < kStates; ++k) x[k] = states[k][begin + i];
      element(g[i], x);
#pragma GCC unroll 4
      for (int k = 0; k < kStates; ++k) states[k][begin + i] = x[k];
    }
  }
};

template <class Args, class Element, class... Views>
void update_with(const Args& args, const Element& element, const Views&... states) {
  const PointwiseUpdate<Element> update{element, args.parameter.template as<float>(), {states.template as<float>()...}};
  update_all(update, args.gradient, args.copy, args.parameter.numel());
}

}  // namespace

void run(const Cpu&, const AdagradArgs& args) {
  update_with(args, optim::AdagradElement{args.scalars}, args.parameter, args.sum);
}

void run(const Cpu&, const LionArgs& args) {
  update_with(args, optim::LionElement{args.scalars}, args.parameter, args.exp_avg);
}

void run(const Cpu&, const RmspropArgs& args) {
  optim::visit_rmsprop(args,
                       [&](const auto& element, const auto&... states) { update_with(args, element, states...); });
}

}  // namespace castor
