// Module: a named tree of parameters and buffers. Modules are plain classes: each has its own `forward`, whatever its
// arguments, and opens it with a ForwardScope, where strategies hook in.
//
// The dotted name ("blocks.3.attn.qkv.weight") is the key everywhere: checkpoints, random numbers, logs and errors.
// Parameters are allocated by the constructor and filled later, by `initialize`, from a counter: what a weight starts
// as depends on the seed, its name and the element's position only, so a shard can be filled without the rest.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "autograd/variable.h"

namespace castor::autograd {

class Module;

/// How a parameter starts. Source of the kaiming bound: He et al. 2015, arXiv:1502.01852, section 2.2.
struct Init {
  enum class Kind : std::uint8_t { zeros, ones, constant, normal, uniform, truncated_normal };
  Kind kind = Kind::zeros;
  double a = 0;  ///< constant: the value; normal, truncated_normal: the mean; uniform: the lower bound
  double b = 1;  ///< normal, truncated_normal: the standard deviation; uniform: the upper bound

  static Init zeros() { return {Kind::zeros, 0, 0}; }
  static Init ones() { return {Kind::ones, 1, 0}; }
  static Init normal(double mean, double deviation) { return {Kind::normal, mean, deviation}; }
  /// Normal, conditioned on at most two deviations from the mean.
  static Init truncated_normal(double mean, double deviation) { return {Kind::truncated_normal, mean, deviation}; }
  static Init uniform(double low, double high) { return {Kind::uniform, low, high}; }
  /// Uniform in [-sqrt(1/fan_in), sqrt(1/fan_in)): PyTorch's default for linear and convolution weights and biases.
  static Init fan_in_uniform(std::int64_t fan_in);
};

/// Where and as what modules allocate.
struct TensorOptions {
  DType dtype = DType::f32;
  Device device = kCpu;  ///< where the model computes
  /// Where parameters are allocated, if it is another place: on meta, when whoever shards them brings their memory.
  std::optional<Device> parameters_on = {};
  /// Linear layers round what they multiply to 8 bits: autograd/ops/matmul.h, linear_fp8.
  bool has_fp8_products = false;
  /// What batch norm's weights are, and it computes in, if not `dtype`.
  std::optional<DType> batch_norm_dtype = {};
};

/// Called around a module's forward.
using ForwardHook = std::function<void(Module&)>;

class Module {
 public:
  Module() = default;
  virtual ~Module() = default;
  Module(const Module&) = delete;
  Module& operator=(const Module&) = delete;

  /// Parameters of this module and those below it, depth first in order of registration, with dotted names. A tensor
  /// registered twice (tied) appears under its first name only.
  std::vector<std::pair<std::string, Variable>> named_parameters() const;
  std::vector<std::pair<std::string, Variable>> named_buffers() const;
  std::vector<std::pair<std::string, Module*>> named_modules();
  /// Further names of tied parameters: {other name, first name}.
  std::vector<std::pair<std::string, std::string>> aliases() const;
  std::int64_t parameter_count() const;  ///< elements, tied ones once

  bool is_training() const { return is_training_; }
  void train(bool is_training = true);  ///< this module and all below
  void eval() { train(false); }

  void add_forward_hook(ForwardHook before, ForwardHook after);

  /// The hash of this module's dotted name: its part of a random counter. Set by `initialize` or `name_tree`.
  std::uint64_t name_hash() const { return name_hash_; }
  const std::string& name() const { return name_; }

 protected:
  /// Allocates and registers a trainable parameter.
  Variable register_parameter(std::string name, const Shape& shape, const Init& init, const TensorOptions& options);
  /// Registers an existing parameter under another name (tied weights).
  void register_parameter(std::string name, Variable parameter);
  /// State that is saved but not trained, e.g. running statistics.
  Variable register_buffer(std::string name, const Shape& shape, const Init& init, const TensorOptions& options);
  void register_module(std::string name, Module& child);
  void register_module(std::string name, std::shared_ptr<Module> child);

 private:
  friend class ForwardScope;
  friend std::map<const VariableState*, std::function<void(const Tensor&)>> initializers(Module& root,
                                                                                         std::uint64_t seed);
  friend void name_tree(Module& root);
  struct Entry {
    std::string name;
    Variable variable;
    Init init;
  };
  std::vector<Entry> parameters_;
  std::vector<Entry> buffers_;
  std::vector<std::pair<std::string, Module*>> children_;
  std::vector<std::shared_ptr<Module>> owned_;
  std::vector<std::pair<ForwardHook, ForwardHook>> hooks_;
  std::string name_;
  std::uint64_t name_hash_ = 0;
  bool is_training_ = true;
};

/// The body of every `forward`: runs the hooks before now and those after when the scope ends normally.
class ForwardScope {
 public:
  explicit ForwardScope(Module& module);
  ~ForwardScope() noexcept(false);
  ForwardScope(const ForwardScope&) = delete;
  ForwardScope& operator=(const ForwardScope&) = delete;

 private:
  Module& module_;
  int exceptions_;
};

/// Names every module and parameter of the tree.
void name_tree(Module& root);

/// How the tree's parameters and buffers start, by what they are: each fills a tensor of the shape and dtype of its
/// parameter, wherever that lies. Names the tree.
using Initializers = std::map<const VariableState*, std::function<void(const Tensor& into)>>;
Initializers initializers(Module& root, std::uint64_t seed);

/// Names the tree and fills every parameter and buffer: element i of parameter `name` is a function of (seed, name, i).
void initialize(Module& root, std::uint64_t seed);

}  // namespace castor::autograd
