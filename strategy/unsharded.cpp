// One process: gradients are kept where autograd keeps them, as the parameters' grad(). Only what is needed is copied:
// nothing for a window of one micro-step, and f32 sums beside 16-bit gradients otherwise.
#include <set>
#include <utility>

#include "core/ops/cast.h"
#include "core/ops/elementwise.h"
#include "strategy/sharding.h"

namespace castor::strategy {
namespace {

class Unsharded final : public Sharding {
 public:
  explicit Unsharded(std::vector<autograd::Variable> parameters) : parameters_(std::move(parameters)) {
    for (const autograd::Variable& parameter : parameters_) known_.insert(parameter.identity());
  }

  std::vector<autograd::Part> parts() const override {
    std::vector<autograd::Part> parts;
    for (const autograd::Variable& parameter : parameters_) parts.push_back({parameter, 0});
    return parts;
  }

  bool can_record() const override { return true; }
  bool can_defer() const override { return true; }  // there is nobody to send to
  void begin_micro_step(std::int64_t) override {}

  void deliver(const autograd::Variable& leaf, Tensor gradient) override {
    if (!known_.contains(leaf.identity())) return;  // frozen after prepare
    const CategoryScope category(Category::gradients);
    Tensor sum = leaf.grad();
    if (!sum.defined()) {
      const bool is_ours = gradient.is_contiguous() && gradient.storage().use_count() == 1;
      sum = is_ours ? std::move(gradient) : clone(gradient);
      sum.storage()->set_category(Category::gradients);
    } else {
      if (sum.dtype() != DType::f32) sum = cast(sum, DType::f32);
      binary_inplace(BinaryOp::add, sum, cast(gradient, DType::f32));
    }
    leaf.set_grad(std::move(sum));
  }

  void end_micro_step() override {}

  void finish_window(std::int64_t micro_batches, std::vector<autograd::Part>& parts) override {
    for (std::size_t i = 0; i < parts.size(); ++i) {
      Tensor sum = parameters_[i].grad();
      if (!sum.defined()) continue;
      parameters_[i].set_grad({});
      const DType dtype = parameters_[i].dtype();
      if (micro_batches > 1) {
        const CategoryScope category(Category::gradients);
        if (sum.dtype() != DType::f32) sum = cast(sum, DType::f32);  // only one micro-batch reached it
        unary_inplace(UnaryOp::affine, sum, 1.0 / static_cast<double>(micro_batches), 0);
        if (dtype != DType::f32) sum = cast(sum, dtype);
      }
      parts[i].gradient = sum.reshape({sum.numel()});
    }
  }

 private:
  std::vector<autograd::Variable> parameters_;
  std::set<const autograd::VariableState*> known_;
};

}  // namespace

std::unique_ptr<Sharding> make_unsharded(std::vector<autograd::Variable> parameters) {
  return std::make_unique<Unsharded>(std::move(parameters));
}

}  // namespace castor::strategy
