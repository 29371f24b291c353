// TrainableModel: what a runner needs of a model, and no more. A sample's or a user's model derives from it; strategies
// and loops see nothing else of it.
//
// Delicate: which of a model's losses are minimised is told by their names, as in mmengine: those that contain "loss"
// are added, the others are only logged.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "autograd/nn/module.h"

namespace castor::autograd {

/// One micro-batch on the model's device.
struct Batch {
  Tensor inputs;   ///< what `forward` takes; axis 0 is the sample
  Tensor targets;  ///< what the losses compare with; undefined when there are none
};

/// What the loss of a batch is the mean over.
struct LossItems {
  std::int64_t counted = 1;  ///< tokens or samples that count
  std::int64_t all = 1;      ///< and those that do not: what follows from the batch's shape alone
};

class TrainableModel : public Module {
 public:
  /// Logits of `inputs`, recorded.
  virtual Variable forward(const Tensor& inputs) = 0;

  /// Scalars by name, recorded: "loss", "aux_loss", "acc". Their sum over the names that contain "loss" is what
  /// training minimises.
  virtual std::map<std::string, Variable> loss(const Batch& batch) = 0;

  /// How many items (tokens, samples) the loss of a batch is the mean over: its integer targets that are not -100; all
  /// elements of other targets, and samples where there are no targets. For losses that are weighted by it; a model
  /// whose loss counts otherwise says so here.
  ///   batch  on the host, or on meta, where every target counts
  virtual LossItems loss_items(const Batch& batch) const;

  /// Logits of the batch's inputs, not recorded. Call eval() first: dropout and batch statistics follow the module's
  /// mode.
  virtual Tensor predict(const Batch& batch);
};

/// What a step minimises and logs.
struct ParsedLosses {
  Variable total;  ///< the sum, in order of name, of the values whose names contain "loss"
  /// Scalars by name: the total first, as "loss", then the others in order.
  std::vector<std::pair<std::string, Variable>> values;
};

/// mmengine's rule: the mean of each tensor is its value, and values whose names contain "loss" are added. Throws
/// InternalError when no name does.
ParsedLosses parse_losses(const std::map<std::string, Variable>& losses);
/// The total alone.
Variable total_loss(const std::map<std::string, Variable>& losses);
/// Of a list of losses (one a level, one a head): the sum of their means. Throws InternalError for an empty list.
Variable sum_of_means(const std::vector<Variable>& losses);

}  // namespace castor::autograd
