// Adagrad, Lion and RMSprop on CUDA: their functors over the walk of optim_cuda.cuh, with the CPU's bits.
#include "core/ops/optim_cuda.cuh"
#include "core/ops/pointwise_steps_element.h"

namespace castor {
namespace {

template <class Element>
struct PointwiseUpdate {
  Element element;
  __device__ void operator()(std::int64_t, float g, float (&x)[Element::kStates]) const { element(g, x); }
};

template <class Args, class Element, class... Views>
void update_with(const Cuda& cuda, const Args& args, const Element& element, const Views&... states) {
  const cuda::States<Element::kStates> all{{states.template as<float>()...}};
  cuda::step(cuda, Args::kName, PointwiseUpdate<Element>{element}, all, args.gradient, args.copy,
             args.parameter.numel());
}

}  // namespace

void run(const Cuda& cuda, const AdagradArgs& args) {
  update_with(cuda, args, optim::AdagradElement{args.scalars}, args.parameter, args.sum);
}

void run(const Cuda& cuda, const LionArgs& args) {
  update_with(cuda, args, optim::LionElement{args.scalars}, args.parameter, args.exp_avg);
}

void run(const Cuda& cuda, const RmspropArgs& args) {
  optim::visit_rmsprop(
      args, [&](const auto& element, const auto&... states) { update_with(cuda, args, element, states...); });
}

}  // namespace castor
