// Which format a file of weights has, by its content: names lie, and `.bin` says nothing.
//
// Delicate: an answer only says what a file claims to be; the format's reader checks the claim.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "core/base/file.h"

namespace castor::formats {

/// Formats that hold weights.
enum class WeightsFileKind {
  safetensors,   ///< formats/safetensors.h
  zip,           ///< torch.save since 1.6: formats/torch_file.h; other zip archives look the same
  torch_legacy,  ///< torch.save before 1.6: recognised, not read
  pickle,        ///< a bare pickle of another program: not read
  unknown,
};

/// "a safetensors file", "a PyTorch file from before 1.6", ...: for messages.
std::string_view weights_file_kind_text(WeightsFileKind kind);

/// The kind of a file of `file_bytes` bytes that begins with `start`, its first 16 bytes or all of a shorter one.
WeightsFileKind weights_file_kind(std::span<const std::byte> start, std::uint64_t file_bytes);

/// The kind of the file `path`. Throws IoError.
WeightsFileKind weights_file_kind(const std::string& path, FileSystem& files = posix_file_system());

}  // namespace castor::formats
