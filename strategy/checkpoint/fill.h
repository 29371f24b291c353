// Tensors of a source into tensors of a model: chosen first, checked, and only then filled.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "autograd/nn/module.h"
#include "formats/tensor_source.h"
#include "strategy/checkpoint.h"

namespace castor::strategy {

/// Where tensors are loaded from: a checkpoint of ours, or anybody's weights.
struct LoadSource {
  std::string path;
  formats::TensorSource tensors;
  std::shared_ptr<const formats::Checkpoint> checkpoint;  ///< null unless it is one

  /// Opens what open_tensor_source opens, or what resolve_source finds first. Throws as both.
  static LoadSource open(const std::string& source, FileSystem& files = posix_file_system());
  /// The tensor, or null. For params and buffers, which other files do not tell apart, either is found, and aliases are
  /// followed.
  const formats::SourceTensor* find(std::string_view role, std::string_view name) const;
  /// The text of a checkpoint's state.json; "{}" where there is none.
  std::string state_text() const;
};

/// One tensor to fill.
struct Fill {
  const formats::SourceTensor* entry = nullptr;
  Tensor target;            ///< of the entry's shape, row-major, any dtype
  std::int64_t offset = 0;  ///< where in the entry the target's first element lies: less than all of it may be wanted
};

/// Parameters and buffers of a model by name, tied ones once.
std::vector<std::pair<std::string, autograd::Variable>> weights_of(const autograd::Module& model);

/// Each weight's name in the file with the name it gets by `keys`. Throws ConfigError for an expression that is none.
std::map<std::string, std::string> revised_names(const LoadSource& source, const ReviseKeys& keys);

/// Chooses what fills the model's weights. A tied weight is found under any of its names, in the file as in the model;
/// of a weight that the file holds twice the f32 master is taken for an f32 target.
///   names   name in the file -> name in the model
std::vector<Fill> match_weights(const LoadSource& source, const autograd::Module& model,
                                const std::map<std::string, std::string>& names, LoadReport& report,
                                const WeightPlaces& places = {});

/// Reads and converts, with bounded memory beside the targets. Throws IoError, or FormatError for damage; targets are
/// then partly filled.
void fill(const LoadSource& source, std::span<const Fill> fills);

}  // namespace castor::strategy
