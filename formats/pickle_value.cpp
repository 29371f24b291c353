// Small questions about values. The walks over whole trees are in pickle_check.cpp.
#include "formats/pickle_value.h"

#include <array>
#include <optional>

#include "core/base/error.h"
#include "formats/array_shape.h"

namespace castor::formats {

const PickleValue* PickleDict::find(std::string_view key) const {
  for (const auto& [name, value] : items) {
    const std::string* text = name->get_if<std::string>();
    if (text != nullptr && *text == key) return value;
  }
  return nullptr;
}

std::uint64_t TorchTensor::bytes() const {
  const std::optional<std::uint64_t> bytes = bytes_of_shape(shape, dtype);
  if (!bytes) throw InternalError("torch tensor: a shape that was not checked");
  return *bytes;
}

bool TorchTensor::is_contiguous() const {
  std::int64_t expected = 1;
  for (std::size_t axis = shape.size(); axis-- > 0;) {
    if (shape[axis] == 0) return true;
    if (shape[axis] != 1 && strides[axis] != expected) return false;
    expected *= shape[axis];
  }
  return true;
}

std::string_view PickleValue::kind_name() const {
  if (const PickleSequence* sequence = get_if<PickleSequence>()) {
    constexpr std::array<std::string_view, 3> kSequences{"a list", "a tuple", "a set"};
    return kSequences[static_cast<std::size_t>(sequence->kind)];
  }
  constexpr std::array<std::string_view, std::variant_size_v<decltype(data)>> kNames{
      "None",           "a bool",    "an integer",
      "a float",        "a text",    "bytes",
      "a sequence",     "a dict",    "a class, type or function",
      "a device",       "a storage", "a tensor",
      "an inert object"};
  return kNames[data.index()];
}

}  // namespace castor::formats
