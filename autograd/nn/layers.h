// The modules most models are made of, with PyTorch's names for the classes, their arguments and their parameters, and
// its default initialisation. `Layer` is the common case of one variable in and one out; `Sequential` chains them,
// `ModuleList` holds modules of one class under the names "0", "1", ...
//
// Delicate: a module is constructed with uninitialised parameters; `initialize` on the root of the tree fills them.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "autograd/nn/module.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/norm.h"
#include "core/ops/matmul.h"

namespace castor::autograd {

/// A module that maps one variable to one.
class Layer : public Module {
 public:
  virtual Variable forward(const Variable& x) = 0;
  Variable operator()(const Variable& x) { return forward(x); }
};

/// Layers one after another; their names are "0", "1", ...
class Sequential final : public Layer {
 public:
  Sequential() = default;
  explicit Sequential(std::vector<std::shared_ptr<Layer>> layers);
  /// Makes a layer at the end and returns it.
  template <class L, class... Arguments>
  L& emplace(Arguments&&... arguments) {
    auto layer = std::make_shared<L>(std::forward<Arguments>(arguments)...);
    L& made = *layer;
    push_back(std::move(layer));
    return made;
  }
  void push_back(std::shared_ptr<Layer> layer);
  std::size_t size() const { return layers_.size(); }
  Variable forward(const Variable& x) override;

 private:
  std::vector<std::shared_ptr<Layer>> layers_;
};

/// Modules of one class, registered as "0", "1", ...; it has no forward of its own.
template <class M>
class ModuleList final : public Module {
 public:
  /// Makes a module at the end and returns it.
  template <class... Arguments>
  M& emplace(Arguments&&... arguments) {
    modules_.push_back(std::make_shared<M>(std::forward<Arguments>(arguments)...));
    register_module(std::to_string(modules_.size() - 1), modules_.back());
    return *modules_.back();
  }
  std::size_t size() const { return modules_.size(); }
  M& operator[](std::size_t index) { return *modules_[index]; }

 private:
  std::vector<std::shared_ptr<M>> modules_;
};

/// The input itself.
class Identity final : public Layer {
 public:
  Variable forward(const Variable& x) override;
};

/// An elementwise function without parameters.
template <UnaryOp kOp>
class ElementwiseLayer final : public Layer {
 public:
  Variable forward(const Variable& x) override {
    const ForwardScope scope(*this);
    return unary(kOp, x);
  }
};
using ReLU = ElementwiseLayer<UnaryOp::relu>;
using SiLU = ElementwiseLayer<UnaryOp::silu>;
using Tanh = ElementwiseLayer<UnaryOp::tanh>;
using Sigmoid = ElementwiseLayer<UnaryOp::sigmoid>;
using GELU = ElementwiseLayer<UnaryOp::gelu_erf>;
using GELUTanh = ElementwiseLayer<UnaryOp::gelu_tanh>;

/// Merges all axes but the first.
class Flatten final : public Layer {
 public:
  Variable forward(const Variable& x) override;
};

/// In training, zeroes each element with probability p and multiplies the others by 1/(1 - p); the identity in
/// evaluation. The mask is a function of the seed, the step, the micro-batch, this module's name and its call number
/// (see RandomState). Source: Srivastava et al. 2014, "Dropout", JMLR 15.
class Dropout final : public Layer {
 public:
  /// Throws ConfigError unless 0 <= p < 1.
  explicit Dropout(double p = 0.5);
  Variable forward(const Variable& x) override;

 private:
  double p_;
};

/// What Linear and convolutions can be given beside their sizes.
struct LinearOptions {
  bool bias = true;
  std::optional<Init> weight_init = {};  ///< unset: uniform in +-1/sqrt(fan_in)
  std::optional<Init> bias_init = {};    ///< unset: uniform in +-1/sqrt(fan_in), or zeros if weight_init is set
  TensorOptions tensor = {};
};

/// x weight^T + bias over the last axis; in 8 bits (linear_fp8) where TensorOptions ask for it, which a model should
/// not do for its output matrix.
///   weight  [out_features, in_features]
///   bias    [out_features], if asked for
class Linear final : public Layer {
 public:
  Linear(std::int64_t in_features, std::int64_t out_features, const LinearOptions& options = {});
  /// A layer that uses another module's weight (tied weights) and no bias.
  explicit Linear(const Variable& tied_weight);
  /// x [..., in_features] -> [..., out_features]
  Variable forward(const Variable& x) override;
  /// activation(x weight^T + bias), in one pass.
  Variable forward(const Variable& x, Activation activation);

  const Variable& weight() const { return weight_; }
  const Variable& bias() const { return bias_; }  ///< undefined without one

 private:
  Variable weight_;
  Variable bias_;
  bool is_fp8_ = false;
};

/// Rows of a table, by index.
///   weight  [num_embeddings, embedding_dim], normal(0, 1) unless told otherwise
class Embedding final : public Module {
 public:
  Embedding(std::int64_t num_embeddings, std::int64_t embedding_dim, const Init& weight_init = Init::normal(0, 1),
            const TensorOptions& options = {});
  /// indices i64|i32 [...] -> [..., embedding_dim]
  Variable forward(const Tensor& indices);
  /// Rows start .. start + count - 1 as a view [count, embedding_dim]: learned positions.
  Variable forward_range(std::int64_t start, std::int64_t count);
  Variable operator()(const Tensor& indices) { return forward(indices); }

  const Variable& weight() const { return weight_; }

 private:
  Variable weight_;
};

/// A norm over the last axis that can take in the addition before it.
class Norm : public Layer {
 public:
  /// The norm of x + residual, and that sum, in one pass over memory.
  virtual NormedSum forward_add(const Variable& x, const Variable& residual) = 0;
};

/// (x - mean) / sqrt(variance + eps) * weight + bias over the last axis. Source: Ba et al. 2016, arXiv:1607.06450.
///   weight  [size], ones
///   bias    [size], zeros, if asked for
class LayerNorm final : public Norm {
 public:
  explicit LayerNorm(std::int64_t size, double eps = 1e-5, bool bias = true, const TensorOptions& options = {});
  Variable forward(const Variable& x) override;
  NormedSum forward_add(const Variable& x, const Variable& residual) override;

  const Variable& weight() const { return weight_; }
  const Variable& bias() const { return bias_; }  ///< undefined without one

 private:
  double eps_;
  Variable weight_;
  Variable bias_;
};

/// x / sqrt(mean(x^2) + eps) * weight over the last axis. Source: Zhang & Sennrich 2019, arXiv:1910.07467.
///   weight  [size], ones
class RMSNorm final : public Norm {
 public:
  explicit RMSNorm(std::int64_t size, double eps = 1e-6, const TensorOptions& options = {});
  Variable forward(const Variable& x) override;
  NormedSum forward_add(const Variable& x, const Variable& residual) override;

  const Variable& weight() const { return weight_; }

 private:
  double eps_;
  Variable weight_;
};

}  // namespace castor::autograd
