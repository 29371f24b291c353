// Optimizers on ranges: a step sees flat pieces of parameters, never whole tensors it could rely on, so any optimizer
// works on sharded, chunked or offloaded storage and gives the same bits as on the uncut tensor.
//
// A step has two phases. `accumulate_stats` adds what this range contributes to its parameter's named small f64 arrays,
// in block order: ranges of one parameter are visited in order of offset with one carry, so a cut at a block boundary
// changes nothing; a distributed caller passes the carry from owner to owner. `apply` updates the range with the
// finished statistics. A few statistics need others first: hence passes, and `finish_pass` between them for the states
// that every owner keeps whole.
// Delicate: cuts fall on multiples of kBlockElements of the *logical* tensor.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "autograd/optim/param_group.h"
#include "autograd/variable.h"

namespace castor::autograd {

/// Statistics are taken over blocks of this many elements of a logical tensor; shard cuts fall on their boundaries.
inline constexpr std::int64_t kBlockElements = 1024;

/// Elements [offset, offset + count) of a state.
struct StateStretch {
  std::int64_t offset = 0, count = 0;
};

/// One state of a parameter, e.g. "exp_avg". A state whose shape is the parameter's is cut with it, and so is one with
/// an element a block; any other is kept whole by every owner.
struct StateSpec {
  std::string name;
  Shape shape;
  DType dtype = DType::f32;
  double initial = 0;         ///< what its elements start as
  bool is_per_block = false;  ///< element i belongs to block i of the parameter; the shape is {blocks}

  /// What of this state belongs to elements [offset, offset + count) of a parameter of shape `parameter`, the offset
  /// being a block's boundary; nothing for a state that is kept whole.
  std::optional<StateStretch> stretch(const Shape& parameter, std::int64_t offset, std::int64_t count) const;
};

/// The blocks that a parameter of this shape has: the shape of a state with an element a block.
Shape block_shape(const Shape& parameter);

/// A piece [offset, offset + count) of a parameter's row-major elements, with its bytes.
struct Range {
  const std::string* name = nullptr;  ///< the parameter's dotted name
  Shape shape;                        ///< the whole parameter's
  std::int64_t offset = 0;            ///< a multiple of kBlockElements
  std::int64_t count = 0;
  int group = 0;                         ///< index into the parameter groups
  Tensor parameter;                      ///< f32 [count]: the master weights
  Tensor gradient;                       ///< f32|bf16|f16 [count]; undefined = zero by contract
  Tensor copy;                           ///< bf16|f16 [count] or undefined: the compute copy, written in the same pass
  std::map<std::string, Tensor> states;  ///< by name; cut ones [count] or [blocks], whole ones of their own shape
};

/// A parameter's named arrays of f64.
using Stats = std::map<std::string, std::vector<double>>;

/// What is the same for every range of a step.
struct StepContext {
  std::int64_t step = 1;        ///< counts from 1
  double gradient_scale = 1.0;  ///< multiplies every gradient: 1/loss scale and the clip factor
  Tensor device_scale;          ///< f64 [1] on all ranges' device: in place of gradient_scale; for takes_device_scale
  Tensor device_scalars;        ///< u8 [groups, n] there: each group's group_scalars, which recorded steps find there
  double gradient_norm = 0;     ///< L2 norm of all parameters' gradients times gradient_scale; for needs_gradient_norm
};

class Optimizer {
 public:
  /// groups    each keeps the hyper-parameters it names and takes the others from `defaults`; none = one of defaults
  /// defaults  every hyper-parameter a group has
  Optimizer(std::vector<ParamGroup> groups, std::map<std::string, double, std::less<>> defaults);
  virtual ~Optimizer() = default;
  Optimizer(const Optimizer&) = delete;
  Optimizer& operator=(const Optimizer&) = delete;

  /// "AdamW", ...
  virtual const char* type_name() const = 0;
  /// The states a parameter of this shape needs.
  virtual std::vector<StateSpec> states(const Shape& shape) const = 0;
  /// True: StepContext has the norm of all gradients.
  virtual bool needs_gradient_norm() const { return false; }
  /// How many statistics passes a step needs: 0 for SGD and Adam, more for Lamb and Adafactor.
  virtual int stats_passes() const { return 0; }
  /// Adds this range's share of pass `pass` to `carry`. Earlier passes' results are in `finished`.
  virtual void accumulate_stats(int pass, const Range& range, const StepContext& context, const Stats& finished,
                                Stats& carry) const;
  /// Called when pass `pass` is complete, once by every owner of the parameter with any of its ranges: brings the
  /// states that are kept whole up to date, in the same way everywhere.
  virtual void finish_pass(int pass, const Range& range, const StepContext& context, const Stats& finished) const;
  /// Updates the range's parameter, copy and cut states, when all passes are finished.
  virtual void apply(const Range& range, const StepContext& context, const Stats& stats) const = 0;
  /// True: a StepContext may have device_scale, what only the device knows of.
  virtual bool takes_device_scale() const { return false; }
  /// All that a step's kernels take from the group and the context, for device_scalars; empty: this optimizer's steps
  /// are not recorded.
  virtual std::vector<std::byte> group_scalars(int group, const StepContext& context) const;
  /// The same for ranges of any parameters on one device, where there are no statistics passes.
  virtual void apply_all(std::span<const Range> ranges, const StepContext& context) const;

  std::vector<ParamGroup>& groups() { return groups_; }
  const std::vector<ParamGroup>& groups() const { return groups_; }
  /// Adds a group, completed from the defaults, and returns its index.
  int add_param_group(ParamGroup group);
  /// Puts these groups, completed from the defaults, in place of all others.
  void set_param_groups(std::vector<ParamGroup> groups);

 protected:
  /// A hyper-parameter of a group. Throws ConfigError naming the optimizer, the group and the hyper-parameter when the
  /// group lacks it.
  double value(int group, std::string_view name) const;
  /// True if any group's hyper-parameter is not 0.
  bool any_nonzero(std::string_view name) const;

 private:
  std::vector<ParamGroup> groups_;
  std::map<std::string, double, std::less<>> defaults_;
};

}  // namespace castor::autograd
