// Saved weights: a folder `iter_N` or `epoch_N` with model.safetensors (readable by other tools) and config.yaml (the
// effective config, so that the model can be built again). `last_checkpoint` names the newest.
//
// Delicate: a folder is complete before it gets its name, and one that it replaces (a second run in the same work_dir)
// stays beside it under a hidden name until the new one is in place, so that at no moment is there nothing to load.
#pragma once

#include <string>
#include <vector>

#include "autograd/nn/module.h"
#include "core/base/file_system.h"

namespace castor::strategy {

inline constexpr const char* kWeightsFile = "model.safetensors";
inline constexpr const char* kConfigFile = "config.yaml";
inline constexpr const char* kLastCheckpointFile = "last_checkpoint";

/// Writes work_dir/name/{model.safetensors, config.yaml} and then work_dir/last_checkpoint. An older folder of that
/// name is replaced. After any failure or crash find_last_checkpoint gives a complete folder, the one before or this,
/// or none if there was none before. What a crash leaves behind is removed by the next save of that name. Returns the
/// folder. Throws IoError; what it had written by then is removed, unless the folder was already in place.
std::string save_weights(const autograd::Module& model, const std::string& config_yaml, const std::string& work_dir,
                         const std::string& name, FileSystem& files = posix_file_system());

/// Fills the model's parameters and buffers from a safetensors file, or from the folder that holds model.safetensors.
/// Throws FormatError, before anything is changed, naming every missing, unexpected and mismatched tensor. Dtypes are
/// converted.
void load_weights(const autograd::Module& model, const std::string& path, FileSystem& files = posix_file_system());

/// The folder that work_dir/last_checkpoint names. Throws IoError if nothing was saved there, FormatError if the file
/// holds no name.
std::string find_last_checkpoint(const std::string& work_dir, FileSystem& files = posix_file_system());

}  // namespace castor::strategy
