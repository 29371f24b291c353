// The tree walk, hooks and initialisation of modules.
#include "autograd/nn/module.h"

#include <cmath>
#include <exception>
#include <map>
#include <set>

#include "core/base/philox.h"
#include "core/ops/cast.h"
#include "core/ops/random.h"

namespace castor::autograd {
namespace {

std::string join(const std::string& prefix, const std::string& name) {
  return prefix.empty() ? name : prefix + "." + name;
}

}  // namespace

Init Init::fan_in_uniform(std::int64_t fan_in) {
  const double bound = fan_in > 0 ? 1.0 / std::sqrt(static_cast<double>(fan_in)) : 0.0;
  return uniform(-bound, bound);
}

Variable Module::register_parameter(std::string name, const Shape& shape, const Init& init,
                                    const TensorOptions& options) {
  const CategoryScope category(Category::parameters);
  Variable parameter(Tensor::empty(shape, options.dtype, options.parameters_on.value_or(options.device)), true);
  parameters_.push_back({std::move(name), parameter, init});
  return parameter;
}

void Module::register_parameter(std::string name, Variable parameter) {
  parameters_.push_back({std::move(name), std::move(parameter), {}});
}

Variable Module::register_buffer(std::string name, const Shape& shape, const Init& init, const TensorOptions& options) {
  const CategoryScope category(Category::buffers);
  Variable buffer(Tensor::empty(shape, options.dtype, options.device));
  buffers_.push_back({std::move(name), buffer, init});
  return buffer;
}

void Module::register_module(std::string name, Module& child) { children_.emplace_back(std::move(name), &child); }

void Module::register_module(std::string name, std::shared_ptr<Module> child) {
  children_.emplace_back(std::move(name), child.get());
  owned_.push_back(std::move(child));
}

std::vector<std::pair<std::string, Module*>> Module::named_modules() {
  std::vector<std::pair<std::string, Module*>> found{{"", this}};
  for (std::size_t i = 0; i < children_.size(); ++i) {
    for (auto& [name, module] : children_[i].second->named_modules()) {
      found.emplace_back(name.empty() ? children_[i].first : join(children_[i].first, name), module);
    }
  }
  return found;
}

std::vector<std::pair<std::string, Variable>> Module::named_parameters() const {
  std::vector<std::pair<std::string, Variable>> found;
  std::set<const VariableState*> seen;
  for (const auto& [prefix, module] : const_cast<Module*>(this)->named_modules()) {
    for (const Entry& entry : module->parameters_) {
      if (seen.insert(entry.variable.identity()).second) found.emplace_back(join(prefix, entry.name), entry.variable);
    }
  }
  return found;
}

std::vector<std::pair<std::string, std::string>> Module::aliases() const {
  std::vector<std::pair<std::string, std::string>> found;
  std::map<const VariableState*, std::string> first;
  for (const auto& [prefix, module] : const_cast<Module*>(this)->named_modules()) {
    for (const Entry& entry : module->parameters_) {
      const std::string name = join(prefix, entry.name);
      const auto [known, is_new] = first.try_emplace(entry.variable.identity(), name);
      if (!is_new) found.emplace_back(name, known->second);
    }
  }
  return found;
}

std::vector<std::pair<std::string, Variable>> Module::named_buffers() const {
  std::vector<std::pair<std::string, Variable>> found;
  for (const auto& [prefix, module] : const_cast<Module*>(this)->named_modules()) {
    for (const Entry& entry : module->buffers_) found.emplace_back(join(prefix, entry.name), entry.variable);
  }
  return found;
}

std::int64_t Module::parameter_count() const {
  std::int64_t count = 0;
  for (const auto& [name, parameter] : named_parameters()) count += parameter.data().numel();
  return count;
}

void Module::train(bool is_training) {
  is_training_ = is_training;
  for (auto& [name, child] : children_) child->train(is_training);
}

void Module::add_forward_hook(ForwardHook before, ForwardHook after) {
  hooks_.emplace_back(std::move(before), std::move(after));
}

ForwardScope::ForwardScope(Module& module) : module_(module), exceptions_(std::uncaught_exceptions()) {
  for (auto& [before, after] : module_.hooks_) {
    if (before) before(module_);
  }
}

ForwardScope::~ForwardScope() noexcept(false) {
  if (std::uncaught_exceptions() > exceptions_) return;
  for (auto hook = module_.hooks_.rbegin(); hook != module_.hooks_.rend(); ++hook) {
    if (hook->second) hook->second(module_);
  }
}

void name_tree(Module& root) {
  for (auto& [name, module] : root.named_modules()) {
    module->name_ = name;
    module->name_hash_ = hash_text(name);
  }
  for (auto& [name, parameter] : root.named_parameters()) parameter.set_name(name);
  for (auto& [name, buffer] : root.named_buffers()) buffer.set_name(name);
}

Initializers initializers(Module& root, std::uint64_t seed) {
  name_tree(root);
  Initializers found;
  const auto add = [&](const Module::Entry& entry) {
    const RandomKey key{seed, hash_text(entry.variable.name())};
    found.try_emplace(entry.variable.identity(), [init = entry.init, key](const Tensor& x) {
      switch (init.kind) {
        case Init::Kind::zeros:
          return x.fill_zero();
        case Init::Kind::ones:
          return fill(x, 1);
        case Init::Kind::constant:
          return fill(x, init.a);
        case Init::Kind::normal:
          return fill_normal(x, key, init.a, init.b);
        case Init::Kind::uniform:
          return fill_uniform(x, key, init.a, init.b);
        case Init::Kind::truncated_normal:
          return fill_truncated_normal(x, key, init.a, init.b, init.a - 2 * init.b, init.a + 2 * init.b);
      }
    });
  };
  for (auto& [name, module] : root.named_modules()) {
    for (const Module::Entry& entry : module->parameters_) add(entry);
    for (const Module::Entry& entry : module->buffers_) add(entry);
  }
  return found;
}

void initialize(Module& root, std::uint64_t seed) {
  const Initializers fills = initializers(root, seed);
  const auto run = [&](const auto& named) {
    for (const auto& [name, variable] : named) fills.at(variable.identity())(variable.data());
  };
  run(root.named_parameters());
  run(root.named_buffers());
}

}  // namespace castor::autograd
