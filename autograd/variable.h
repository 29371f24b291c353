// Variable: a tensor with a place in the graph of what was computed. Copies share identity, so a module's parameter,
// the optimizer's and a hook's are one. Tensors do the storing (core), variables the remembering.
//
// Delicate: a saved tensor holds its storage by reference. A strategy may drop or re-point a parameter's storage
// between forward and backward; the backward kernel takes the address it finds at its launch.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/tensor/tensor.h"

namespace castor::autograd {

class Node;
struct VariableState;

class Variable {
 public:
  Variable() = default;  ///< undefined: the absent optional operand
  /// A leaf holding `data`. Throws DTypeError when a gradient is asked of integers or bools.
  explicit Variable(Tensor data, bool requires_grad = false);

  bool defined() const { return state_ != nullptr; }
  const Tensor& data() const;
  /// Puts another tensor in this leaf's place (same shape and dtype, other storage). Throws ShapeError or DTypeError
  /// otherwise.
  void set_data(Tensor data) const;
  const Shape& shape() const { return data().shape(); }
  std::int64_t size(int axis) const { return data().size(axis); }
  int ndim() const { return data().ndim(); }
  DType dtype() const { return data().dtype(); }
  Device device() const { return data().device(); }

  bool requires_grad() const;
  void set_requires_grad(bool value) const;  ///< leaves only; throws InternalError for a computed variable
  bool is_leaf() const;

  /// The accumulated gradient of a leaf; undefined before the first backward.
  const Tensor& grad() const;
  void set_grad(Tensor gradient) const;

  /// The dotted name a module tree gave this leaf; empty without one. Used in errors, checkpoints and counters.
  const std::string& name() const;
  void set_name(std::string name) const;

  /// Called by backward each time the leaf's gradient for that backward is complete and has been delivered.
  void add_gradient_hook(std::function<void(const Variable&)> hook) const;

  /// The same values outside the graph.
  Variable detach() const;

  /// One object a variable: equal for copies, distinct for different variables.
  VariableState* identity() const { return state_.get(); }

 private:
  friend class Graph;
  explicit Variable(std::shared_ptr<VariableState> state) : state_(std::move(state)) {}
  std::shared_ptr<VariableState> state_;
};

/// True while operations are recorded on this thread (the default).
bool is_grad_enabled();

/// Nothing is recorded on this thread while the scope lives.
class NoGradScope {
 public:
  explicit NoGradScope(bool enabled = false);  ///< `enabled` = true turns recording back on inside an outer scope
  ~NoGradScope();
  NoGradScope(const NoGradScope&) = delete;
  NoGradScope& operator=(const NoGradScope&) = delete;

 private:
  bool previous_;
};

}  // namespace castor::autograd
