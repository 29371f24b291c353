// What a PyTorch pickle says, as a tree of values: numbers, texts, containers and descriptions of tensors.
//
// Values refer to each other by pointer, as a pickle's memo does; the tree owns them all. Delicate: sharing is kept, so
// a few bytes can describe what would be huge if it were copied out. A PickleTree that parse_torch_pickle returned has
// been checked: no value contains itself, and walking it as if nothing were shared meets at most
// PickleLimits::max_values values, kMaxPickleDepth deep. Recursion over it is safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "core/base/dtype.h"
#include "formats/segmented_list.h"
#include "formats/torch_globals.h"

namespace castor::formats {

/// Most containers inside each other in a checked tree.
inline constexpr int kMaxPickleDepth = 100;

struct PickleValue;

/// A list, tuple or set; a torch.Size is a tuple.
struct PickleSequence {
  enum class Kind { list, tuple, set };
  Kind kind = Kind::list;
  SegmentedList<const PickleValue*> items;
};

/// A dict, OrderedDict or Counter, in the order of the file; no two keys are the same text or integer.
struct PickleDict {
  SegmentedList<std::pair<const PickleValue*, const PickleValue*>> items;
  /// The value under a text key, or null.
  const PickleValue* find(std::string_view key) const;
};

/// Python's bytes or bytearray.
struct PickleBytes {
  std::string bytes;
};

/// A class or element type that is named and not called: "collections.OrderedDict", "torch.float32".
struct PickleName {
  const TorchGlobal* global = nullptr;  ///< a row of torch_globals()
};

/// torch.device("cuda", 1) as "cuda:1".
struct TorchDevice {
  std::string text;
};

/// A storage: bytes beside the pickle under the name "data/<key>", of which tensors are views.
struct TorchStorage {
  const TorchGlobal* type = nullptr;  ///< a row of torch_globals(): element type and its bytes
  std::string key;
  std::uint64_t numel = 0;    ///< elements of that type
  std::uint64_t file_at = 0;  ///< where in the file the pickle speaks of it

  /// numel x the element's bytes; fits 63 bits.
  std::uint64_t bytes() const { return numel * type->item_bytes; }
};

/// A tensor: a strided view of a storage. Sizes, strides and offset are checked to stay inside it.
struct TorchTensor {
  DType dtype = DType::f32;
  std::vector<std::int64_t> shape;        ///< every size >= 0; empty for a scalar
  std::vector<std::int64_t> strides;      ///< elements, >= 0; as many as `shape`
  const TorchStorage* storage = nullptr;  ///< of the same tree
  std::uint64_t storage_offset = 0;       ///< elements of `dtype` from the storage's start
  bool requires_grad = false;
  bool is_parameter = false;  ///< wrapped in torch.nn.Parameter

  /// Bytes of all elements, each counted as often as the view shows it.
  std::uint64_t bytes() const;
  /// True if the elements lie in row-major order without gaps.
  bool is_contiguous() const;
};

/// An object of a class that the caller allowed as inert: nothing was called, this is what the file says of it.
struct PickleObject {
  std::string name;                    ///< "numpy.ndarray"
  const PickleValue* args = nullptr;   ///< what it would be called with; null for the class itself
  const PickleValue* state = nullptr;  ///< what its __setstate__ would get; null if nothing
};

/// Any value. The monostate is None.
struct PickleValue {
  std::variant<std::monostate, bool, std::int64_t, double, std::string, PickleBytes, PickleSequence, PickleDict,
               PickleName, TorchDevice, std::unique_ptr<TorchStorage>, std::unique_ptr<TorchTensor>,
               std::unique_ptr<PickleObject>>
      data;
  std::uint32_t number = 0;  ///< its place in PickleTree::values

  /// The alternative T, or null if it is another.
  template <class T>
  const T* get_if() const {
    if constexpr (std::is_same_v<T, TorchStorage> || std::is_same_v<T, TorchTensor> ||
                  std::is_same_v<T, PickleObject>) {
      const auto* owner = std::get_if<std::unique_ptr<T>>(&data);
      return owner == nullptr ? nullptr : owner->get();
    } else {
      return std::get_if<T>(&data);
    }
  }
  /// "a list", "a tensor", "None": for errors.
  std::string_view kind_name() const;
};

/// All values of a pickle; moving it keeps their addresses.
struct PickleTree {
  SegmentedList<PickleValue> values;
  const PickleValue* root = nullptr;
};

}  // namespace castor::formats
