// Saved weights: a folder `iter_N` or `epoch_N` with model.safetensors (readable by other tools) and config.yaml (the effective
// config, so that the model can be built again), put in place in one step. `last_checkpoint` names the newest.
#pragma once

#include <string>
#include <vector>

#include "autograd/nn/module.h"

namespace castor::strategy {

inline constexpr const char* kWeightsFile = "model.safetensors";
inline constexpr const char* kConfigFile = "config.yaml";
inline constexpr const char* kLastCheckpointFile = "last_checkpoint";

/// Writes work_dir/name/{model.safetensors, config.yaml} and then work_dir/last_checkpoint. An older folder of that name is replaced.
/// After any failure or crash `last_checkpoint` names a complete folder or does not exist. Returns the folder.
std::string save_weights(const autograd::Module& model, const std::string& config_yaml, const std::string& work_dir, const std::string& name);

/// Fills the model's parameters and buffers from a safetensors file, or from the folder that holds model.safetensors.
/// Throws FormatError, before anything is changed, naming every missing, unexpected and mismatched tensor. Dtypes are converted.
void load_weights(const autograd::Module& model, const std::string& path);

/// The folder that work_dir/last_checkpoint names. Throws IoError if nothing was saved there.
std::string find_last_checkpoint(const std::string& work_dir);

}  // namespace castor::strategy
