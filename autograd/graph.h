// The graph of recorded operations and the engine that walks it backwards.
//
// An op wrapper computes its result with core, then calls `record` with a function that maps the results' gradients to
// the inputs'. Backward visits nodes newest first, which is a topological order, on the calling thread, so sums of
// gradients have one fixed order. A leaf's gradient is delivered once for each backward, when its last use has
// contributed: that is the micro-batch contribution the first promise speaks of.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <span>
#include <vector>

#include "autograd/variable.h"

namespace castor::autograd {

/// What a backward function sees.
struct BackwardContext {
  /// Gradients of the node's results, in order. Undefined where none flowed. A function may take one (std::move) to
  /// reuse its bytes.
  std::vector<Tensor> gradients;
  /// Which inputs want a gradient; the others' may be left undefined.
  std::vector<bool> needs;
  /// What was saved is wanted by another backward: a function must not write over it.
  bool is_graph_kept = false;
  /// Memory for an input's gradient, row-major, of its shape and dtype, which a function may write to and return in
  /// place of new memory. It may be the input's own: write when the input is not read any more. Undefined where there
  /// is none; see GradientSink::place_of.
  std::function<Tensor(std::size_t input)> place;
  /// What other uses of an input, a leaf, have contributed so far, row-major, for a function that can add to it in its
  /// place: it must then return it for that input. Undefined where there is nothing, or others hold it.
  std::function<Tensor(std::size_t input)> take_sum;
};

/// Gradients of the inputs, in the order they were given to `record`.
using BackwardFunction = std::function<std::vector<Tensor>(BackwardContext&)>;

/// One recorded operation.
class Node {
 public:
  Node(const char* name, std::vector<Variable> inputs, std::size_t result_count, BackwardFunction backward);
  ~Node();
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;

  const char* name() const { return name_; }
  /// Grows by one with each node: the order of recording.
  std::uint64_t sequence() const { return sequence_; }
  /// Leaves as they are; of computed inputs the place in the graph, shape and dtype, without their values.
  const std::vector<Variable>& inputs() const { return inputs_; }
  std::size_t result_count() const { return result_count_; }

 private:
  friend class Graph;
  const char* name_;
  std::uint64_t sequence_;
  std::vector<Variable> inputs_;
  std::size_t result_count_;
  BackwardFunction backward_;
};

/// True if an op on these inputs would be recorded now: wrappers ask before computing what only backward needs.
bool needs_gradient(std::initializer_list<const Variable*> inputs);

/// Wraps `result` as the outcome of an operation. Records a node when `needs_gradient`; otherwise `backward` is
/// dropped.
Variable record(const char* name, Tensor result, std::vector<Variable> inputs, BackwardFunction backward);
/// The same for several results.
std::vector<Variable> record_all(const char* name, std::vector<Tensor> results, std::vector<Variable> inputs,
                                 BackwardFunction backward);

/// True for the same elements at the same addresses.
inline bool is_same_place(const Tensor& a, const Tensor& b) {
  return a.storage() == b.storage() && a.offset() == b.offset() && a.dtype() == b.dtype() && a.shape() == b.shape() &&
         a.strides() == b.strides();
}

/// Receives each leaf's gradient of one backward. The default adds it to `leaf.grad()`.
class GradientSink {
 public:
  virtual ~GradientSink() = default;
  virtual void deliver(const Variable& leaf, Tensor gradient) = 0;
  /// Where the gradient of a leaf may be written by the op that completes it, which is asked for just before it is
  /// delivered. What is delivered may still lie elsewhere.
  virtual Tensor place_of(const Variable& /*leaf*/) { return {}; }
};

/// Watches backward on this thread: called around every node.
class BackwardObserver {
 public:
  virtual ~BackwardObserver() = default;
  virtual void before(const Node&) {}
  virtual void after(const Node&) {}
};

/// Sees what ops give on this thread, as it arises: how the first value that is not finite is found.
class ResultObserver {
 public:
  virtual ~ResultObserver() = default;
  /// An op's result; `inputs` may hold undefined ones.
  virtual void on_result(const char* op, const std::vector<Variable>& inputs, const Tensor& result) = 0;
  /// A gradient that backward computed for an input of an op.
  virtual void on_gradient(const char* op, const Variable& input, const Tensor& gradient) = 0;
};

/// Installs an observer for this thread while the scope lives, in place of an outer one.
class ResultObserverScope {
 public:
  explicit ResultObserverScope(ResultObserver& observer);
  ~ResultObserverScope();
  ResultObserverScope(const ResultObserverScope&) = delete;
  ResultObserverScope& operator=(const ResultObserverScope&) = delete;

 private:
  ResultObserver* outer_;
};

/// Installs an observer for this thread while the scope lives.
class BackwardObserverScope {
 public:
  explicit BackwardObserverScope(BackwardObserver& observer);
  ~BackwardObserverScope();
  BackwardObserverScope(const BackwardObserverScope&) = delete;
  BackwardObserverScope& operator=(const BackwardObserverScope&) = delete;
};

struct BackwardOptions {
  Tensor gradient = {};          ///< of the root; undefined = ones (a scalar root's usual seed)
  GradientSink* sink = nullptr;  ///< nullptr = add to leaf.grad()
  bool retain_graph = false;     ///< keep saved tensors for another backward
};

/// Computes gradients of `root` for every leaf that requires one and delivers each when complete. Frees what the graph
/// saved. Throws InternalError if root records nothing, or if its graph was freed by an earlier backward.
void backward(const Variable& root, const BackwardOptions& options = {});
/// The same for several roots at once, with their gradients (undefined = no gradient flows from that root).
void backward(const std::vector<Variable>& roots, std::vector<Tensor> gradients, GradientSink* sink,
              bool retain_graph = false);

/// The leaves that ops used on this thread while the scope lives, recorded or not, in order of first use. Recompute and
/// the planner learn from it which parameters a stretch of code touches.
class LeafUseScope {
 public:
  /// named_only   leave out leaves without a name, such as the inputs of recomputed segments: a scope keeps what it
  /// lists alive
  explicit LeafUseScope(bool named_only = false);
  ~LeafUseScope();
  LeafUseScope(const LeafUseScope&) = delete;
  LeafUseScope& operator=(const LeafUseScope&) = delete;
  const std::vector<Variable>& leaves() const { return leaves_; }

 private:
  friend void note_leaf_uses(const std::vector<Variable>& inputs);
  std::vector<Variable> leaves_;
  bool named_only_;
  LeafUseScope* outer_;
};

}  // namespace castor::autograd
