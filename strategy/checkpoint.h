// Checkpoints as a strategy's user sees them: what save_checkpoint, load_checkpoint and resume take and give, and the
// folder of a run in which they lie.
//
// The names and arguments are mmengine's. A checkpoint is a folder (formats/SPEC.md); its state.json holds everything
// of a training run that is no tensor. Delicate: what a callback changes is what is saved or loaded.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "autograd/nn/module.h"
#include "core/base/file_system.h"
#include "core/base/json.h"
#include "core/tensor/tensor.h"
#include "formats/checkpoint_list.h"

namespace castor::strategy {

inline constexpr const char* kLastCheckpointFile = "last_checkpoint";
/// The weights and the config in a checkpoint's folder, unless it was saved into twice.
inline constexpr const char* kWeightsFile = "model.safetensors";
inline constexpr const char* kConfigFile = "config.yaml";

/// A checkpoint between training and disk, as callbacks see and may change it.
class CheckpointContents {
 public:
  CheckpointContents();
  ~CheckpointContents();
  CheckpointContents(CheckpointContents&&) noexcept;
  CheckpointContents& operator=(CheckpointContents&&) noexcept;

  /// state.json: "optimizer", "param_schedulers", "seed", "inner_count", "numerics", what `extra_ckpt` held, and
  /// whatever a callback adds. An object.
  Json& state() { return *state_; }
  const Json& state() const { return *state_; }

  /// Tensors beside weights and optimizer states: role -> name -> tensor. What a callback adds before a save is saved;
  /// what a checkpoint has of them is here when it is loaded, on the device that map_location names.
  std::map<std::string, std::map<std::string, Tensor>> tensors;
  /// Loading only: name in the file -> name in the model, for every weight of the file, after revise_keys. A callback
  /// may rename entries, or erase them to leave a weight as it is.
  std::map<std::string, std::string> names;

 private:
  std::unique_ptr<Json> state_;
};

using CheckpointCallback = std::function<void(CheckpointContents&)>;

/// save_checkpoint's arguments after the file name.
struct SaveOptions {
  bool save_optimizer = true;              ///< optimizer states, masters, hyper-parameters and counts
  bool save_param_scheduler = true;        ///< the schedulers' states
  std::shared_ptr<const Json> extra_ckpt;  ///< an object whose members go into state.json
  CheckpointCallback callback;             ///< called before anything is written
  /// Return once the state is copied; write in the background. A failure is reported by the next save, or by
  /// wait_for_saves.
  bool asynchronous = false;
  std::string config_yaml;  ///< kept as config.yaml, so that the model can be built again; empty: none
  /// Called with the folder once the checkpoint is committed, on the thread that wrote it.
  std::function<void(const std::string& folder)> committed;
};

/// A regular expression (ECMAScript) and what each match of it in a weight's name becomes.
using ReviseKeys = std::vector<std::pair<std::string, std::string>>;

/// load_checkpoint's arguments after the file name.
struct LoadOptions {
  std::string map_location = "cpu";  ///< where CheckpointContents::tensors lie: "cpu", or "default": the model's device
  bool strict = false;               ///< true: every name and shape must fit; false: what fits is loaded
  ReviseKeys revise_keys = {{"^module\\.", ""}};  ///< applied in order to every name of the file
  CheckpointCallback callback;  ///< called with what the file holds, before it is loaded into the model
};

/// resume's arguments after the file name.
struct ResumeOptions {
  bool resume_optimizer = true;
  bool resume_param_scheduler = true;
  std::string map_location = "default";
  CheckpointCallback callback;
};

/// How names and shapes of a file met the model's.
struct LoadReport {
  std::vector<std::string> missing;     ///< names of the model that the file lacks
  std::vector<std::string> unexpected;  ///< names of the file (revised) that the model lacks
  std::vector<std::string> mismatched;  ///< "fc.weight is [5,4] in the file, [3,4] in the model"
  std::int64_t loaded = 0;              ///< tensors that were loaded

  bool fits() const { return missing.empty() && unexpected.empty() && mismatched.empty(); }
  /// A line for each problem, indented; empty if there is none.
  std::string text() const;
};

/// Where this process has its stretches of a parameter: {offset, tensor}. A parameter that is not listed has its own
/// data.
using WeightPlaces = std::map<const autograd::VariableState*, std::vector<std::pair<std::int64_t, Tensor>>>;

/// Fills the model's parameters and buffers from any source of weights (formats/weights_source.h): a local path, or
/// what resolve_source takes. Dtypes are converted; f32 masters are preferred to rounded weights where the file has
/// both. Throws FormatError, before anything is changed, if nothing fits, or if `options.strict` and anything does not
/// fit; IoError; ConfigError for a regular expression or map_location that is none.
///   places  where weights go that are not whole in this process
LoadReport load_weights(const autograd::Module& model, const std::string& source, const LoadOptions& options = {},
                        FileSystem& files = posix_file_system(), const WeightPlaces& places = {});

/// The newest valid checkpoint of a run's folder, by save number; torn ones are skipped and logged. Throws IoError
/// (ENOENT) if there is none.
std::string find_last_checkpoint(const std::string& work_dir, FileSystem& files = posix_file_system());

/// What a run does each time a checkpoint was committed: `last_checkpoint` names it, then those that `retention` does
/// not keep go, oldest first. `scores` of retention are read from and kept in work_dir/scores.json. Throws IoError.
void finish_save(const std::string& work_dir, const std::string& name, const formats::Retention& retention,
                 FileSystem& files = posix_file_system());
/// True if a score would be among the best `count` of those in work_dir/scores.json; NaN never is.
bool is_among_best(const std::string& work_dir, double score, std::int64_t count, bool greater_is_better,
                   FileSystem& files = posix_file_system());
/// Notes a checkpoint's score for keep_best, in work_dir/scores.json.
void note_score(const std::string& work_dir, const std::string& name, double score,
                FileSystem& files = posix_file_system());

}  // namespace castor::strategy
