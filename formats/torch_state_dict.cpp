// From the values of a checkpoint to names and tensors.
//
// Delicate: which part of a file is the model is a convention, not a fact; a guess that could take an optimizer's
// tensors for weights is refused instead. The tree was checked to be finite, so recursion over it is bounded; names are
// not, since each level may lengthen them, and have a limit.
#include <algorithm>
#include <array>
#include <map>
#include <tuple>

#include "core/base/error.h"
#include "core/base/file_error.h"
#include "formats/torch_file.h"

namespace castor::formats {
namespace {

constexpr std::array<std::string_view, 4> kUsualKeys{"state_dict", "model_state_dict", "model", "module"};
constexpr std::size_t kMaxNameBytes = 1024;                       // of one name
constexpr std::size_t kMaxAllNamesBytes = std::size_t{64} << 20;  // of all names together

struct Flattening {
  TorchStateDict result;
  std::size_t name_bytes = 0;
  std::string problem;

  // Returns false once there is a problem.
  bool add(const std::string& name, const PickleValue& value);
  bool add_inner(const std::string& name, const PickleValue& value);
};

bool Flattening::add_inner(const std::string& name, const PickleValue& value) {
  name_bytes += name.size();
  if (name_bytes > kMaxAllNamesBytes) {
    problem = cat("the tensors' names take more than ", kMaxAllNamesBytes, " bytes");
    return false;
  }
  return add(name, value);
}

bool Flattening::add(const std::string& name, const PickleValue& value) {
  const std::string prefix = name.empty() ? "" : name + ".";
  if (const auto* dict = value.get_if<PickleDict>()) {
    for (const auto& [key, item] : dict->items) {
      const auto* text = key->get_if<std::string>();
      const auto* number = key->get_if<std::int64_t>();
      if (text == nullptr && number == nullptr) {
        problem = cat("in ", quote_name(name), ": expected texts or integers as names, got ", key->kind_name());
        return false;
      }
      if (text != nullptr && prefix.size() + text->size() > kMaxNameBytes) {
        problem = cat("in ", quote_name(name), ": the name ", quote_name(*text), " makes one of more than ",
                      kMaxNameBytes, " bytes");
        return false;
      }
      if (!add_inner(text != nullptr ? prefix + *text : cat(prefix, *number), *item)) return false;
    }
    return true;
  }
  const auto* sequence = value.get_if<PickleSequence>();
  if (sequence != nullptr && sequence->kind != PickleSequence::Kind::set) {
    for (std::size_t i = 0; i < sequence->items.size(); ++i) {
      if (!add_inner(cat(prefix, i), *sequence->items[i])) return false;
    }
    return true;
  }
  if (const auto* tensor = value.get_if<TorchTensor>()) {
    result.tensors.push_back({name, tensor, std::nullopt});
  } else {
    result.skipped.push_back(name);
  }
  return true;
}

void find_aliases(SegmentedList<TorchStateTensor>& tensors) {
  using View = std::tuple<std::string_view, DType, std::uint64_t, std::vector<std::int64_t>, std::vector<std::int64_t>>;
  std::map<View, std::size_t> seen;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const TorchTensor& tensor = *tensors[i].tensor;
    if (tensor.bytes() == 0) continue;  // shares nothing
    const auto [first, is_new] =
        seen.emplace(View{tensor.storage->key, tensor.dtype, tensor.storage_offset, tensor.shape, tensor.strides}, i);
    if (!is_new) tensors[i].alias_of = first->second;
  }
}

std::string key_list(const PickleDict& dict) {
  std::string text;
  for (std::size_t i = 0; i < std::min<std::size_t>(dict.items.size(), 20); ++i) {
    const auto* key = dict.items[i].first->get_if<std::string>();
    text +=
        cat(i == 0 ? "" : ", ", key != nullptr ? quote_name(*key, 60) : std::string(dict.items[i].first->kind_name()));
  }
  return dict.items.size() > 20 ? text + ", ..." : text;
}

// The value to flatten, or null with a problem. `key` becomes the one that was taken.
const PickleValue* choose(const PickleValue& root, std::string& key, std::string& problem) {
  const auto* dict = root.get_if<PickleDict>();
  if (dict == nullptr) {
    problem = cat("expected a dict of tensors at the top, the file has ", root.kind_name());
    return nullptr;
  }
  if (!key.empty()) {
    const PickleValue* value = dict->find(key);
    if (value == nullptr || value->get_if<PickleDict>() == nullptr) {
      problem = cat("expected a dict under the key ", quote_name(key), ", the file has ",
                    value == nullptr ? "none" : value->kind_name(), "; its keys: ", key_list(*dict));
      return nullptr;
    }
    return value;
  }
  for (const std::string_view usual : kUsualKeys) {
    const PickleValue* value = dict->find(usual);
    if (value == nullptr || value->get_if<PickleDict>() == nullptr) continue;
    key = usual;
    return value;
  }
  const bool has_tensor = std::ranges::any_of(
      dict->items, [](const auto& item) { return item.second->template get_if<TorchTensor>() != nullptr; });
  if (has_tensor || dict->items.empty()) return &root;
  problem =
      cat("found no state dict: no tensor at the top and no dict under state_dict, model_state_dict, model or "
          "module; name the key to take, one of: ",
          key_list(*dict));
  return nullptr;
}

}  // namespace

const TorchStateTensor* TorchStateDict::find(std::string_view name) const {
  const auto found = std::ranges::lower_bound(
      by_name, name, {}, [this](std::uint32_t index) { return std::string_view(tensors[index].name); });
  return found == by_name.end() || tensors[*found].name != name ? nullptr : &tensors[*found];
}

TorchStateDict TorchFile::state_dict(std::string_view key) const {
  Flattening flattening;
  TorchStateDict& result = flattening.result;
  result.key = key;
  const PickleValue* top = choose(root(), result.key, flattening.problem);
  if (top != nullptr) flattening.add("", *top);

  for (std::uint32_t i = 0; i < result.tensors.size(); ++i) result.by_name.push_back(i);
  const auto name = [&](std::uint32_t index) -> const std::string& { return result.tensors[index].name; };
  std::ranges::sort(result.by_name, {}, name);
  const auto twice = std::ranges::adjacent_find(result.by_name, {}, name);
  if (twice != result.by_name.end()) flattening.problem = cat("two tensors are called ", quote_name(name(*twice)));

  find_aliases(result.tensors);
  std::uint64_t bytes = 0;
  for (const TorchStateTensor& tensor : result.tensors) {
    if (tensor.alias_of) continue;
    check_size(*tensor.tensor);
    if (__builtin_add_overflow(bytes, tensor.tensor->bytes(), &bytes) || bytes > max_logical_bytes_) {
      flattening.problem = cat("its tensors show more than ", max_logical_bytes_, " bytes, the file has ",
                               archive_->file_bytes(), ": save contiguous tensors or raise max_logical_bytes");
      break;
    }
  }
  if (!flattening.problem.empty()) {
    throw FormatError(cat("torch ", quote_name(path(), 4096), ": at byte ", pickle_at_, ": ", flattening.problem),
                      path(), pickle_at_);
  }
  return std::move(flattening.result);
}

}  // namespace castor::formats
