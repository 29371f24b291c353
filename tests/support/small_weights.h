// Small files of weights in the formats of others, and the same weights read back as numbers: for tests that move
// weights between formats.
#pragma once

#include <cstring>
#include <initializer_list>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "core/base/file.h"
#include "formats/safetensors.h"
#include "formats/tensor_source.h"
#include "tests/support/pickle_writer.h"

namespace castor::test {

/// An f32 tensor.
struct Floats {
  std::vector<std::int64_t> shape;
  std::vector<float> values;

  std::string bytes() const { return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)}; }
};
using FloatsByName = std::vector<std::pair<std::string, Floats>>;

/// Writes a safetensors file.
inline void write_floats(const std::string& path, const FloatsByName& tensors, FileSystem& files,
                         const formats::SafetensorsMetadata& metadata = {}) {
  std::vector<formats::SafetensorsTensor> list;
  for (const auto& [name, tensor] : tensors) {
    list.push_back({name, DType::f32, tensor.shape, std::as_bytes(std::span(tensor.values))});
  }
  formats::SafetensorsOptions options;
  options.metadata = metadata;
  formats::write_safetensors(path, list, options, files);
}

/// A PyTorch archive of one state dict of contiguous tensors, each with a storage of its own; `aliases` are further
/// names of tensors before them. `key` is where in the file the dict lies; empty: at the top.
inline std::string torch_floats(const FloatsByName& tensors, const std::string& key = "",
                                const std::vector<std::pair<std::string, std::string>>& aliases = {}) {
  std::string state = "(";
  std::vector<std::pair<std::string, std::string>> storages;
  std::map<std::string, std::string> written;
  for (const auto& [name, tensor] : tensors) {
    const std::string number = std::to_string(storages.size());
    std::vector<std::int64_t> strides(tensor.shape.size());
    std::int64_t stride = 1;
    for (std::size_t axis = strides.size(); axis-- > 0;) {
      strides[axis] = stride;
      stride *= tensor.shape[axis];
    }
    const auto numel = static_cast<std::int64_t>(tensor.values.size());
    written[name] = pickle::tensor(pickle::storage("FloatStorage", number, numel), 0, tensor.shape, strides);
    state += pickle::text(name) + written[name];
    storages.emplace_back(number, tensor.bytes());
  }
  for (const auto& [alias, name] : aliases) state += pickle::text(alias) + written.at(name);
  state += "d";
  const std::string root = key.empty() ? state
                                       : pickle::dict({pickle::text("epoch"), pickle::integer(3), pickle::text(key),
                                                       state, pickle::text("optimizer"), pickle::dict({})});
  return pickle::checkpoint(pickle::whole(root), storages).bytes;
}

/// All bytes of a source's tensor.
inline std::vector<std::byte> bytes_of(const formats::SourceTensor& tensor) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(tensor.bytes()));
  if (!bytes.empty()) tensor.open()(0, bytes);
  return bytes;
}

/// An f32 tensor of a source.
inline std::vector<float> floats_of(const formats::TensorSource& source, const std::string& role,
                                    const std::string& name) {
  const formats::SourceTensor* tensor = source.find(role, name);
  if (tensor == nullptr || tensor->dtype != DType::f32) return {};
  const std::vector<std::byte> bytes = bytes_of(*tensor);
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

}  // namespace castor::test
