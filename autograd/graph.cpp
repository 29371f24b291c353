// Recording and the backward walk. The walk's state is local to one call, so a recomputed segment can run a backward
// inside a backward.
#include "autograd/graph.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <queue>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "autograd/variable_state.h"
#include "core/ops/cast.h"
#include "core/ops/elementwise.h"

namespace castor::autograd {
namespace {

thread_local std::uint64_t next_sequence = 0;
thread_local std::vector<BackwardObserver*> observers;
thread_local LeafUseScope* innermost_leaf_use = nullptr;
thread_local ResultObserver* result_observer = nullptr;

/// False for tensors whose elements share bytes (expanded ones): those must not be written.
bool has_own_elements(const Tensor& x) {
  for (int i = 0; i < x.ndim(); ++i) {
    if (x.strides()[i] == 0 && x.shape()[i] > 1) return false;
  }
  return true;
}

/// sum = sum + part, reusing sum's bytes when nobody else holds them.
void add_to(Tensor& sum, Tensor part) {
  if (!sum.defined()) {
    sum = std::move(part);
  } else if (sum.storage().use_count() == 1 && has_own_elements(sum)) {
    binary_inplace(BinaryOp::add, sum, part);
  } else {
    sum = add(sum, part);
  }
}

class AccumulateSink final : public GradientSink {
 public:
  void deliver(const Variable& leaf, Tensor gradient) override {
    Tensor sum = leaf.grad();
    leaf.set_grad({});
    add_to(sum, std::move(gradient));
    leaf.set_grad(std::move(sum));
  }
};

}  // namespace

Node::Node(const char* name, std::vector<Variable> inputs, std::size_t result_count, BackwardFunction backward)
    : name_(name),
      sequence_(next_sequence++),
      inputs_(std::move(inputs)),
      result_count_(result_count),
      backward_(std::move(backward)) {}

BackwardObserverScope::BackwardObserverScope(BackwardObserver& observer) { observers.push_back(&observer); }
BackwardObserverScope::~BackwardObserverScope() { observers.pop_back(); }

ResultObserverScope::ResultObserverScope(ResultObserver& observer)
    : outer_(std::exchange(result_observer, &observer)) {}
ResultObserverScope::~ResultObserverScope() { result_observer = outer_; }

LeafUseScope::LeafUseScope(bool named_only) : named_only_(named_only), outer_(innermost_leaf_use) {
  innermost_leaf_use = this;
}
LeafUseScope::~LeafUseScope() { innermost_leaf_use = outer_; }

void note_leaf_uses(const std::vector<Variable>& inputs) {
  for (LeafUseScope* scope = innermost_leaf_use; scope != nullptr; scope = scope->outer_) {
    for (const Variable& input : inputs) {
      if (!input.defined() || !input.is_leaf() || !input.requires_grad()) continue;
      if (scope->named_only_ && input.name().empty()) continue;
      const auto same = [&](const Variable& leaf) { return leaf.identity() == input.identity(); };
      if (std::none_of(scope->leaves_.begin(), scope->leaves_.end(), same)) scope->leaves_.push_back(input);
    }
  }
}

bool needs_gradient(std::initializer_list<const Variable*> inputs) {
  if (!is_grad_enabled()) return false;
  return std::any_of(inputs.begin(), inputs.end(),
                     [](const Variable* input) { return input->defined() && input->requires_grad(); });
}

/// Builds and reads the links between variables and nodes.
class Graph {
 public:
  static std::vector<Variable> wrap(const char* name, std::vector<Tensor> results, std::vector<Variable> inputs,
                                    BackwardFunction backward) {
    if (innermost_leaf_use != nullptr) note_leaf_uses(inputs);
    if (result_observer != nullptr) {
      for (const Tensor& result : results) result_observer->on_result(name, inputs, result);
    }
    const bool is_recorded = is_grad_enabled() && std::any_of(inputs.begin(), inputs.end(), [](const Variable& input) {
                               return input.defined() && input.requires_grad();
                             });
    std::shared_ptr<Node> node;
    if (is_recorded) {
      for (Variable& input : inputs) {
        if (input.defined() && !input.is_leaf()) input = edge_to(input);
      }
      node = std::make_shared<Node>(name, std::move(inputs), results.size(), std::move(backward));
    }
    std::vector<Variable> variables;
    variables.reserve(results.size());
    for (std::size_t i = 0; i < results.size(); ++i) {
      auto state = std::make_shared<VariableState>();
      state->requires_grad = is_recorded && is_floating(results[i].dtype());
      state->data = std::move(results[i]);
      if (state->requires_grad) {
        state->node = node;
        state->result_index = i;
      }
      variables.push_back(Variable(std::move(state)));
    }
    return variables;
  }

  static const std::shared_ptr<Node>& node_of(const Variable& variable) { return variable.state_->node; }
  static std::size_t result_index(const Variable& variable) { return variable.state_->result_index; }

  /// What a node keeps of a computed input: where it came from and its shape. Its bytes live on only where some node's
  /// function saved them.
  static Variable edge_to(const Variable& input) {
    auto edge = std::make_shared<VariableState>();
    edge->requires_grad = input.requires_grad();
    edge->node = input.state_->node;
    edge->result_index = input.state_->result_index;
    edge->data = Tensor({}, input.shape(), input.data().strides(), 0, input.dtype());
    return Variable(std::move(edge));
  }

  static void run_gradient_hooks(const Variable& leaf) {
    for (const auto& hook : leaf.state_->gradient_hooks) hook(leaf);
  }

  static std::vector<Tensor> call(Node& node, BackwardContext& context) {
    if (!node.backward_) {
      throw InternalError(cat("backward: what node '", node.name_,
                              "' saved was freed by an earlier backward; pass retain_graph to walk a graph twice"));
    }
    return node.backward_(context);
  }

  /// Frees what the node saved. Inputs go too, so that a long chain is released step by step, not by recursion.
  static void release(Node& node) {
    node.backward_ = nullptr;
    node.inputs_.clear();
  }

  /// Takes apart what only `node` keeps alive, node by node: destructors that call each other would overflow the stack
  /// on a long graph that nobody walked.
  static void unwind(Node& node) {
    std::vector<Variable> doomed = std::move(node.inputs_);
    while (!doomed.empty()) {
      const Variable variable = std::move(doomed.back());
      doomed.pop_back();
      if (!variable.defined() || variable.state_.use_count() > 1) continue;
      const auto& producer = variable.state_->node;
      if (producer == nullptr || producer.use_count() > 1) continue;
      std::move(producer->inputs_.begin(), producer->inputs_.end(), std::back_inserter(doomed));
      producer->inputs_.clear();
    }
  }
};

Node::~Node() {
  if (!inputs_.empty()) Graph::unwind(*this);
}

namespace {

/// One backward's bookkeeping.
class Walk {
 public:
  Walk(GradientSink& sink, bool retain_graph) : sink_(sink), retain_graph_(retain_graph) {}

  void run(const std::vector<Variable>& roots, std::vector<Tensor> gradients) {
    for (const Variable& root : roots) count_uses(root);
    for (std::size_t i = 0; i < roots.size(); ++i) contribute(roots[i], std::move(gradients[i]));
    while (!ready_.empty()) {
      const std::shared_ptr<Node> node = ready_.top();
      ready_.pop();
      visit(*node);
    }
  }

 private:
  struct Newest {
    bool operator()(const std::shared_ptr<Node>& a, const std::shared_ptr<Node>& b) const {
      return a->sequence() < b->sequence();
    }
  };
  struct LeafSum {
    std::int64_t uses = 0;
    Tensor gradient;
    Tensor place;  // handed out for it
  };

  // Counts, for each leaf, the edges that will contribute to it, without recursion.
  void count_uses(const Variable& root) {
    std::vector<Node*> stack;
    const auto meet = [&](const Variable& variable) {
      if (!variable.defined() || !variable.requires_grad()) return;
      if (const auto& node = Graph::node_of(variable)) {
        if (seen_.insert(node.get()).second) stack.push_back(node.get());
      } else {
        ++leaves_[variable.identity()].uses;
      }
    };
    meet(root);
    while (!stack.empty()) {
      const Node* node = stack.back();
      stack.pop_back();
      for (const Variable& input : node->inputs()) meet(input);
    }
  }

  // The sink's, of a leaf whose gradient the asking node completes.
  Tensor place_of(const Variable& input) {
    if (!input.defined() || !input.requires_grad() || Graph::node_of(input)) return {};
    LeafSum& leaf = leaves_.at(input.identity());
    if (leaf.uses != 1 || leaf.gradient.defined()) return {};
    return leaf.place = sink_.place_of(input);
  }

  // The asking node gives it back with its own contribution.
  Tensor take_sum(const Variable& input) {
    if (!input.defined() || !input.requires_grad() || Graph::node_of(input)) return {};
    Tensor& sum = leaves_.at(input.identity()).gradient;
    const bool is_free = sum.defined() && sum.storage().use_count() == 1 && sum.is_contiguous();
    return is_free ? std::exchange(sum, {}) : Tensor{};
  }

  void contribute(const Variable& variable, Tensor gradient) {
    if (!variable.defined() || !variable.requires_grad()) return;
    if (gradient.defined() && !(gradient.shape() == variable.shape())) {
      throw InternalError(
          cat("backward: gradient ", gradient, " for a variable of ", variable.dtype(), variable.shape()));
    }
    if (const auto& node = Graph::node_of(variable)) {
      auto [found, is_new] = pending_.try_emplace(node.get());
      if (is_new) {
        found->second.resize(node->result_count());
        ready_.push(node);
      }
      if (gradient.defined()) add_to(found->second[Graph::result_index(variable)], std::move(gradient));
      return;
    }
    LeafSum& leaf = leaves_.at(variable.identity());
    if (gradient.defined()) {
      const CategoryScope category(Category::gradients);
      add_to(leaf.gradient, std::move(gradient));
    }
    if (--leaf.uses == 0 && leaf.gradient.defined()) {
      // Optimizers and communication take row-major gradients with bytes of their own, which they may write over.
      const bool is_in_place = leaf.place.defined() && is_same_place(leaf.gradient, leaf.place);
      if (!is_in_place && (!leaf.gradient.is_contiguous() || leaf.gradient.storage().use_count() > 1)) {
        const CategoryScope category(Category::gradients);
        leaf.gradient = clone(leaf.gradient);
      }
      if (!is_in_place) leaf.gradient.storage()->set_category(Category::gradients);
      sink_.deliver(variable, std::move(leaf.gradient));
      Graph::run_gradient_hooks(variable);
    }
  }

  void visit(Node& node) {
    BackwardContext context;
    const auto found = pending_.find(&node);
    context.gradients = std::move(found->second);
    context.is_graph_kept = retain_graph_;
    pending_.erase(found);
    const bool is_reached =
        std::any_of(context.gradients.begin(), context.gradients.end(), [](const Tensor& g) { return g.defined(); });
    std::vector<Tensor> results(node.inputs().size());
    if (is_reached) {
      for (const Variable& input : node.inputs()) context.needs.push_back(input.defined() && input.requires_grad());
      context.place = [this, &node](std::size_t input) { return place_of(node.inputs()[input]); };
      context.take_sum = [this, &node](std::size_t input) { return take_sum(node.inputs()[input]); };
      for (BackwardObserver* observer : observers) observer->before(node);
      results = Graph::call(node, context);
      for (auto observer = observers.rbegin(); observer != observers.rend(); ++observer) (*observer)->after(node);
      if (results.size() != node.inputs().size()) {
        throw InternalError(cat("backward: node '", node.name(), "' has ", node.inputs().size(), " inputs and gave ",
                                results.size(), " gradients"));
      }
    }
    context.gradients.clear();
    const std::vector<Variable> inputs = node.inputs();
    for (std::size_t i = 0; result_observer != nullptr && i < inputs.size(); ++i) {
      if (results[i].defined()) result_observer->on_gradient(node.name(), inputs[i], results[i]);
    }
    if (!retain_graph_) Graph::release(node);
    for (std::size_t i = 0; i < inputs.size(); ++i) contribute(inputs[i], std::move(results[i]));
  }

  GradientSink& sink_;
  bool retain_graph_;
  std::unordered_set<const Node*> seen_;
  std::unordered_map<const Node*, std::vector<Tensor>> pending_;
  std::unordered_map<const VariableState*, LeafSum> leaves_;
  std::priority_queue<std::shared_ptr<Node>, std::vector<std::shared_ptr<Node>>, Newest> ready_;
};

}  // namespace

Variable record(const char* name, Tensor result, std::vector<Variable> inputs, BackwardFunction backward) {
  std::vector<Tensor> results;
  results.push_back(std::move(result));
  return Graph::wrap(name, std::move(results), std::move(inputs), std::move(backward))[0];
}

std::vector<Variable> record_all(const char* name, std::vector<Tensor> results, std::vector<Variable> inputs,
                                 BackwardFunction backward) {
  return Graph::wrap(name, std::move(results), std::move(inputs), std::move(backward));
}

void backward(const std::vector<Variable>& roots, std::vector<Tensor> gradients, GradientSink* sink,
              bool retain_graph) {
  AccumulateSink accumulate;
  const NoGradScope no_grad;
  Walk(sink != nullptr ? *sink : accumulate, retain_graph).run(roots, std::move(gradients));
}

void backward(const Variable& root, const BackwardOptions& options) {
  if (!root.defined() || !root.requires_grad())
    throw InternalError("backward: the root records nothing; was it computed under NoGradScope?");
  Tensor gradient = options.gradient.defined() ? options.gradient : full(root.shape(), 1, root.dtype(), root.device());
  backward(std::vector<Variable>{root}, {std::move(gradient)}, options.sink, options.retain_graph);
}

}  // namespace castor::autograd
