// Forward runs the segment unrecorded and notes which leaves it used; backward runs it again, recorded, walks that
// small graph and hands the leaves' gradients on as its own, so a leaf used inside and outside a segment is still
// delivered once.
#include "autograd/recompute.h"

#include <map>

#include "autograd/graph.h"
#include "autograd/random_state.h"

namespace castor::autograd {
namespace {

thread_local bool recomputing = false;

/// Keeps gradients by leaf instead of delivering them, in the places that the outer backward has for them.
class CollectSink final : public GradientSink {
 public:
  explicit CollectSink(BackwardContext& outer_context) : outer(outer_context) {}
  void deliver(const Variable& leaf, Tensor gradient) override { gradients[leaf.identity()] = std::move(gradient); }
  Tensor place_of(const Variable& leaf) override {
    const auto found = inputs.find(leaf.identity());
    return found == inputs.end() ? Tensor{} : outer.place(found->second);
  }
  BackwardContext& outer;
  std::map<const VariableState*, std::size_t> inputs;  // by leaf: of the outer node
  std::map<const VariableState*, Tensor> gradients;
};

class RecomputingScope {
 public:
  explicit RecomputingScope(const RandomState& start) : previous_(recomputing), saved_(random_state()) {
    recomputing = true;
    random_state() = start;
  }
  ~RecomputingScope() {
    recomputing = previous_;
    random_state() = saved_;
  }

 private:
  bool previous_;
  RandomState saved_;
};

}  // namespace

bool is_recomputing() { return recomputing; }

std::vector<Variable> recompute(const Segment& segment, const std::vector<Variable>& inputs) {
  if (!is_grad_enabled()) return segment(inputs);
  const RandomState start = random_state();
  std::vector<Tensor> results;
  std::vector<Variable> edges = inputs;
  {
    const LeafUseScope uses;
    const NoGradScope no_grad;
    for (const Variable& result : segment(inputs)) results.push_back(result.data());
    for (const Variable& leaf : uses.leaves()) {
      bool is_input = false;
      for (const Variable& input : inputs) is_input = is_input || input.identity() == leaf.identity();
      if (!is_input) edges.push_back(leaf);
    }
  }
  const std::vector<Variable> leaves(edges.begin() + static_cast<std::ptrdiff_t>(inputs.size()), edges.end());
  return record_all("recompute", std::move(results), std::move(edges), [=](BackwardContext& context) {
    std::vector<Variable> again;
    std::vector<Variable> outputs;
    {
      const NoGradScope record_again(true);
      const RecomputingScope replay(start);
      for (std::size_t i = 0; i < inputs.size(); ++i) {
        again.push_back(inputs[i].defined() ? Variable(inputs[i].data(), context.needs[i]) : Variable());
      }
      outputs = segment(again);
    }
    std::vector<Variable> roots;
    std::vector<Tensor> gradients;
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      if (!context.gradients[i].defined() || !outputs[i].requires_grad()) continue;
      roots.push_back(outputs[i]);
      gradients.push_back(std::move(context.gradients[i]));
    }
    outputs.clear();
    CollectSink sink(context);
    for (std::size_t i = 0; i < leaves.size(); ++i) sink.inputs[leaves[i].identity()] = inputs.size() + i;
    backward(roots, std::move(gradients), &sink);
    std::vector<Tensor> results_gradients;
    for (const Variable& input : again)
      results_gradients.push_back(input.defined() ? sink.gradients[input.identity()] : Tensor{});
    for (const Variable& leaf : leaves) results_gradients.push_back(sink.gradients[leaf.identity()]);
    return results_gradients;
  });
}

Variable recompute(const std::function<Variable(const Variable&)>& segment, const Variable& input) {
  return recompute([segment](const std::vector<Variable>& inputs) { return std::vector<Variable>{segment(inputs[0])}; },
                   std::vector<Variable>{input})[0];
}

}  // namespace castor::autograd
