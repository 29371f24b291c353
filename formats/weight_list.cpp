// Choosing and naming weights, and converting them on the way.
#include "formats/weight_list.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/base/error.h"
#include "core/base/file_error.h"
#include "core/ops/cast.h"
#include "formats/array_shape.h"

namespace castor::formats {
namespace {

// Few enough that the kernel stays on this thread: waking others costs more than a piece, and the disk is slower.
constexpr std::int64_t kCastElements = std::int64_t{1} << 14;

std::uint64_t count_non_finite(const void* data, DType dtype, std::int64_t count) {
  return visit_dtype(dtype, [&](auto tag) -> std::uint64_t {
    using T = typename decltype(tag)::type;
    std::uint64_t found = 0;
    const T* values = static_cast<const T*>(data);
    for (std::int64_t i = 0; i < count; ++i) {
      if constexpr (!std::is_integral_v<T>) found += std::isfinite(load(values[i])) ? 0 : 1;
    }
    return found;
  });
}

// Converts the bytes of `in`, piece by piece, through two small tensors.
class CastStream {
 public:
  CastStream(ByteSource in, DType from, DType to, CastCounts* counts)
      : in_(std::move(in)), from_(from), to_(to), counts_(counts) {}

  void operator()(std::uint64_t offset, std::span<std::byte> out) {
    const std::size_t from_size = dtype_size(from_), to_size = dtype_size(to_);
    if (offset % to_size != 0 || out.size() % to_size != 0) {
      throw InternalError(cat("cast while writing: bytes [", offset, ", +", out.size(), ") are no whole elements"));
    }
    std::uint64_t element = offset / to_size;
    while (!out.empty()) {
      const std::int64_t count = std::min<std::int64_t>(kCastElements, static_cast<std::int64_t>(out.size() / to_size));
      if (!x_.defined() || x_.numel() != count) {
        x_ = Tensor::empty({count}, from_);
        y_ = Tensor::empty({count}, to_);
      }
      in_(element * from_size, {static_cast<std::byte*>(x_.view().data), static_cast<std::size_t>(count) * from_size});
      copy_into(x_, y_);
      const std::size_t bytes = static_cast<std::size_t>(count) * to_size;
      std::memcpy(out.data(), y_.view().data, bytes);
      if (counts_ != nullptr) {
        const std::uint64_t after = count_non_finite(y_.view().data, to_, count);
        if (after > 0) counts_->overflowed += after - count_non_finite(x_.view().data, from_, count);
      }
      element += static_cast<std::uint64_t>(count);
      out = out.subspan(bytes);
    }
  }

 private:
  ByteSource in_;
  DType from_, to_;
  CastCounts* counts_;
  Tensor x_, y_;
};

// Gives names out, each once.
class Names {
 public:
  void take(const std::string& name, const std::string& old) {
    const auto [place, is_new] = taken_.emplace(name, old);
    if (is_new) return;
    throw ConfigError(cat("names: ", quote_name(place->second), " and ", quote_name(old), " would both be called ",
                          quote_name(name), "; change the map"),
                      "");
  }

 private:
  std::map<std::string, std::string> taken_;
};

}  // namespace

std::uint64_t WeightList::bytes() const {
  std::uint64_t total = 0;
  for (const NamedWeight& weight : weights) total += weight.tensor->numel() * dtype_size(weight.dtype);
  return total;
}

WeightList list_weights(const TensorSource& source, const NameMap& names, std::optional<DType> dtype, bool masters) {
  WeightList list;
  Names taken;
  std::map<std::string, std::vector<std::string>> aliases_of;
  for (const auto& [alias, name] : source.aliases) aliases_of[name].push_back(alias);
  for (const SourceTensor& tensor : source.tensors) {
    if (!is_weight_role(tensor.role)) {
      ++list.other_roles[tensor.role];
      continue;
    }
    std::vector<std::string> old_names = {tensor.name};
    if (const auto found = aliases_of.find(tensor.name); found != aliases_of.end()) {
      old_names.insert(old_names.end(), found->second.begin(), found->second.end());
    }
    NamedWeight weight{"", tensor.role, &tensor, tensor.dtype};
    if (const SourceTensor* master = masters ? source.find("master", tensor.name) : nullptr) {
      if (master->shape != tensor.shape) {
        throw FormatError(cat("weights of ", quote_name(source.path, 4096), ": the master of ", quote_name(tensor.name),
                              " is ", shape_text(master->shape), ", the param ", shape_text(tensor.shape)),
                          source.path, 0);
      }
      weight.tensor = master;
      weight.dtype = master->dtype;
      ++list.masters;
    }
    if (dtype && is_floating(weight.dtype)) weight.dtype = *dtype;
    for (const std::string& old_name : old_names) {
      const std::optional<std::string> name = names.apply(old_name);
      if (!name) {
        list.left_out.push_back(old_name);
      } else if (weight.name.empty()) {
        taken.take(*name, old_name);
        weight.name = *name;
      } else if (*name != weight.name) {
        taken.take(*name, old_name);
        list.aliases[*name] = weight.name;
      }
    }
    if (!weight.name.empty()) list.weights.push_back(std::move(weight));
  }
  std::sort(list.weights.begin(), list.weights.end(),
            [](const NamedWeight& a, const NamedWeight& b) { return a.name < b.name; });
  return list;
}

ByteSource weight_bytes(const NamedWeight& weight, CastCounts* counts, BytesProgress written) {
  SourceTensor tensor = *weight.tensor;
  if (tensor.dtype != weight.dtype) {
    tensor.open = [open = std::move(tensor.open), from = tensor.dtype, to = weight.dtype, counts] {
      auto stream = std::make_shared<CastStream>(open(), from, to, counts);
      return ByteSource([stream](std::uint64_t offset, std::span<std::byte> out) { (*stream)(offset, out); });
    };
    tensor.dtype = weight.dtype;
  }
  ByteSource bytes = deferred_source(tensor);
  if (!written) return bytes;
  return [bytes = std::move(bytes), written = std::move(written)](std::uint64_t offset, std::span<std::byte> out) {
    bytes(offset, out);
    written(out.size());
  };
}

BytesProgress sum_of_pieces(BytesProgress progress) {
  if (!progress) return {};
  auto total = std::make_shared<std::uint64_t>(0);
  return [total, progress = std::move(progress)](std::uint64_t bytes) { progress(*total += bytes); };
}

}  // namespace castor::formats
