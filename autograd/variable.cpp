// Variable's accessors and the recording switch.
#include "autograd/variable.h"

#include "autograd/variable_state.h"

namespace castor::autograd {
namespace {
thread_local bool grad_enabled = true;
}

bool is_grad_enabled() { return grad_enabled; }
NoGradScope::NoGradScope(bool enabled) : previous_(grad_enabled) { grad_enabled = enabled; }
NoGradScope::~NoGradScope() { grad_enabled = previous_; }

Variable::Variable(Tensor data, bool requires_grad) : state_(std::make_shared<VariableState>()) {
  if (requires_grad && !is_floating(data.dtype()))
    throw DTypeError(cat("variable: only floats have gradients, got ", data));
  state_->data = std::move(data);
  state_->requires_grad = requires_grad;
}

const Tensor& Variable::data() const {
  if (state_ == nullptr) throw InternalError("variable: an undefined one has no data");
  return state_->data;
}

void Variable::set_data(Tensor data) const {
  const Tensor& old = this->data();
  if (old.defined() && !(old.shape() == data.shape()))
    throw ShapeError(cat("set_data: expected the shape of ", old, ", got ", data));
  if (old.defined() && old.dtype() != data.dtype()) throw DTypeError(cat("set_data: expected ", old, ", got ", data));
  state_->data = std::move(data);
}

bool Variable::requires_grad() const { return state_->requires_grad; }

void Variable::set_requires_grad(bool value) const {
  if (!is_leaf())
    throw InternalError(
        "set_requires_grad: only leaves can be frozen; detach() takes a computed variable out of the graph");
  state_->requires_grad = value;
}

bool Variable::is_leaf() const { return state_->node == nullptr; }
const Tensor& Variable::grad() const { return state_->grad; }
void Variable::set_grad(Tensor gradient) const { state_->grad = std::move(gradient); }
const std::string& Variable::name() const { return state_->name; }
void Variable::set_name(std::string name) const { state_->name = std::move(name); }
void Variable::add_gradient_hook(std::function<void(const Variable&)> hook) const {
  state_->gradient_hooks.push_back(std::move(hook));
}
Variable Variable::detach() const { return Variable(data()); }

}  // namespace castor::autograd
