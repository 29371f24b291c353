// The names that a PyTorch pickle may use, and what stands for each here. Everything else is refused by name.
//
// Delicate: this table is the whole of what a checkpoint can "call"; each entry becomes a constructor of plain data in
// torch_rebuild.cpp, and none reaches a file, a process or code. `torch.load`, `torch.storage._load_from_bytes` and
// their like are missing on purpose: they would unpickle again, past every check.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "core/base/dtype.h"

namespace castor::formats {

/// What a known name does when it is called.
enum class TorchGlobalKind {
  ordered_dict,                  ///< () gives an empty dict
  counter,                       ///< (dict) gives a dict
  set,                           ///< (list) gives a set; also frozenset
  bytes,                         ///< () gives empty bytes; also bytearray, of bytes
  encode,                        ///< _codecs.encode(text, "latin1") gives bytes: how protocol 2 writes them
  size,                          ///< torch.Size(tuple) gives the tuple
  device,                        ///< torch.device(type, index)
  dtype,                         ///< not called
  storage,                       ///< not called: the type in a reference to a storage
  rebuild_tensor,                ///< (storage, offset, size, stride), before torch 0.4
  rebuild_tensor_v2,             ///< the same, requires_grad, hooks, metadata
  rebuild_tensor_v3,             ///< the same, requires_grad, hooks, dtype, metadata; storages are untyped
  rebuild_parameter,             ///< (tensor, requires_grad, hooks)
  rebuild_parameter_with_state,  ///< the same, state, which is left out
};

/// A row of the table.
struct TorchGlobal {
  std::string_view name;  ///< module and name, joined by a dot
  TorchGlobalKind kind;
  std::optional<DType> dtype = std::nullopt;  ///< of a dtype or storage, where Castor has it
  std::uint64_t item_bytes = 0;               ///< bytes of an element of a storage or dtype
};

/// The whole table; fixed while the program runs.
std::span<const TorchGlobal> torch_globals();

/// The row of "module.name", or null. `__builtin__`, Python 2's name, is taken for builtins.
const TorchGlobal* find_torch_global(std::string_view module, std::string_view name);

}  // namespace castor::formats
