// Matching names and moving bytes.
#include "strategy/checkpoint/fill.h"

#include <algorithm>
#include <regex>
#include <set>

#include "core/base/console.h"
#include "core/base/file.h"
#include "core/ops/cast.h"
#include "formats/array_shape.h"
#include "strategy/source/source.h"

namespace castor::strategy {
namespace {

// Elements converted at a time: whole digest blocks of every dtype.
constexpr std::int64_t kConvertElements = std::int64_t{1} << 22;

// A bar for downloads that take long enough to be seen.
SourceOptions showing_progress() {
  SourceOptions options;
  options.progress = [bar = std::shared_ptr<ProgressBar>()](std::uint64_t bytes, std::uint64_t total) mutable {
    if (bar == nullptr) {
      bar = std::make_shared<ProgressBar>(Console::standard_output(), "download", static_cast<std::int64_t>(total),
                                          static_cast<std::int64_t>(bytes));
    }
    bar->update(static_cast<std::int64_t>(bytes), cat(bytes >> 20, " MiB"));
  };
  return options;
}

}  // namespace

LoadSource LoadSource::open(const std::string& source, FileSystem& files) {
  LoadSource opened;
  opened.path = has_scheme(source) ? resolve_source(source, showing_progress(), files) : source;
  if (exists(join_path(opened.path, formats::kManifestName), files)) {
    opened.checkpoint = std::make_shared<const formats::Checkpoint>(formats::Checkpoint::open(opened.path, files));
    opened.tensors = formats::checkpoint_source(opened.checkpoint);
  } else {
    opened.tensors = formats::open_tensor_source(opened.path, {}, files);
  }
  return opened;
}

const formats::SourceTensor* LoadSource::find(std::string_view role, std::string_view name) const {
  if (!formats::is_weight_role(role)) return tensors.find(role, name);
  const auto alias = tensors.aliases.find(std::string(name));
  for (const std::string_view wanted :
       {name, alias == tensors.aliases.end() ? name : std::string_view(alias->second)}) {
    for (const char* in_role : {"param", "buffer"}) {
      if (const formats::SourceTensor* tensor = tensors.find(in_role, wanted)) return tensor;
    }
  }
  return nullptr;
}

std::string LoadSource::state_text() const {
  return checkpoint != nullptr && checkpoint->has_text("state", "json") ? checkpoint->read_text("state", "json") : "{}";
}

std::vector<std::pair<std::string, autograd::Variable>> weights_of(const autograd::Module& model) {
  auto tensors = model.named_parameters();
  for (auto& buffer : model.named_buffers()) tensors.push_back(std::move(buffer));
  return tensors;
}

std::map<std::string, std::string> revised_names(const LoadSource& source, const ReviseKeys& keys) {
  std::vector<std::pair<std::regex, std::string>> rules;
  for (const auto& [pattern, replacement] : keys) {
    try {
      rules.emplace_back(std::regex(pattern), replacement);
    } catch (const std::regex_error& error) {
      throw ConfigError(cat("revise_keys: '", pattern, "' is no regular expression: ", error.what()), "revise_keys");
    }
  }
  std::map<std::string, std::string> names;
  const auto add = [&](const std::string& name) {
    std::string revised = name;
    for (const auto& [rule, replacement] : rules) revised = std::regex_replace(revised, rule, replacement);
    names[name] = revised;
  };
  for (const formats::SourceTensor& entry : source.tensors.tensors) {
    if (formats::is_weight_role(entry.role)) add(entry.name);
  }
  for (const auto& [alias, name] : source.tensors.aliases) add(alias);
  return names;
}

std::vector<Fill> match_weights(const LoadSource& source, const autograd::Module& model,
                                const std::map<std::string, std::string>& names, LoadReport& report,
                                const WeightPlaces& places) {
  const auto weights = weights_of(model);
  std::map<std::string, const autograd::Variable*> by_name;
  for (const auto& [name, variable] : weights) by_name[name] = &variable;
  std::map<std::string, std::string> first_name;  // of the model's tied weights
  for (const auto& [other, first] : model.aliases()) first_name[other] = first;

  // Model's name -> file's name; a weight's own name wins over one of a tied weight.
  std::map<std::string, std::string> chosen;
  for (const auto& [in_file, in_model] : names) {
    if (by_name.contains(in_model)) chosen[in_model] = in_file;
  }
  for (const auto& [in_file, in_model] : names) {
    const auto tied = first_name.find(in_model);
    const bool is_known = by_name.contains(in_model) || tied != first_name.end();
    if (tied != first_name.end()) chosen.try_emplace(tied->second, in_file);
    if (!is_known && !source.tensors.aliases.contains(in_file)) report.unexpected.push_back(in_model);
  }

  std::vector<Fill> fills;
  for (const auto& [name, variable] : weights) {
    const auto found = chosen.find(name);
    if (found == chosen.end()) {
      report.missing.push_back(name);
      continue;
    }
    const formats::SourceTensor* entry = source.find("param", found->second);
    const Tensor& target = variable.data();
    if (!(Shape(entry->shape) == target.shape())) {
      report.mismatched.push_back(
          cat(name, " is ", formats::shape_text(entry->shape), " in the file, ", target.shape(), " in the model"));
      continue;
    }
    if (target.dtype() == DType::f32 && entry->dtype != DType::f32) {
      const formats::SourceTensor* master = source.find("master", entry->name);
      if (master != nullptr && master->shape == entry->shape) entry = master;
    }
    ++report.loaded;
    if (const auto found_places = places.find(variable.identity()); found_places != places.end()) {
      for (const auto& [offset, piece] : found_places->second) fills.push_back({entry, piece, offset});
    } else {
      fills.push_back({entry, target});
    }
  }
  std::sort(report.unexpected.begin(), report.unexpected.end());
  return fills;
}

namespace {

// The bytes of an entry from a fill's offset on.
formats::ByteSource bytes_from(const LoadSource& source, const Fill& fill) {
  const auto element = static_cast<std::int64_t>(dtype_size(fill.entry->dtype));
  const bool is_whole = fill.offset == 0 && static_cast<std::uint64_t>(fill.target.numel()) == fill.entry->numel();
  if (is_whole) return fill.entry->open();
  if (source.checkpoint != nullptr) {
    const formats::LogicalTensor* tensor = source.checkpoint->manifest().find(fill.entry->role, fill.entry->name);
    return [checkpoint = source.checkpoint, tensor, element, first = fill.offset](std::uint64_t at,
                                                                                  std::span<std::byte> out) {
      checkpoint->read(*tensor, first + static_cast<std::int64_t>(at) / element, out);
    };
  }
  // Other files are streams: what lies before is read and dropped.
  const formats::ByteSource stream = fill.entry->open();
  const auto skipped = static_cast<std::uint64_t>(fill.offset * element);
  std::vector<std::byte> window(std::min<std::uint64_t>(skipped, kConvertElements));
  for (std::uint64_t at = 0; at < skipped; at += window.size())
    stream(at, std::span(window).first(std::min<std::uint64_t>(window.size(), skipped - at)));
  return [stream, skipped](std::uint64_t at, std::span<std::byte> out) { stream(skipped + at, out); };
}

}  // namespace

void fill(const LoadSource& source, std::span<const Fill> fills) {
  // Of our own checkpoints all tensors that need no conversion are read in one pass over each file.
  std::vector<formats::Checkpoint::Request> direct;
  std::vector<const Fill*> others;
  for (const Fill& each : fills) {
    const Tensor& target = each.target;
    if (target.numel() == 0) continue;
    if (source.checkpoint == nullptr || each.entry->dtype != target.dtype() || !target.device().is_cpu()) {
      others.push_back(&each);
      continue;
    }
    const std::size_t begin = static_cast<std::size_t>(target.offset()) * dtype_size(target.dtype());
    direct.push_back({source.checkpoint->manifest().find(each.entry->role, each.entry->name), each.offset,
                      target.numel(),
                      [to = target.storage(), begin](std::uint64_t at, std::span<const std::byte> bytes) {
                        to->write(begin + at, bytes);
                      }});
  }
  if (!direct.empty()) source.checkpoint->read(direct);
  for (const Fill* each : others) {
    const Tensor flat = each->target.reshape({-1});
    const formats::ByteSource bytes = bytes_from(source, *each);
    const std::uint64_t element = dtype_size(each->entry->dtype);
    for (std::int64_t offset = 0; offset < flat.numel(); offset += kConvertElements) {
      const std::int64_t count = std::min(kConvertElements, flat.numel() - offset);
      const Tensor host = Tensor::empty({count}, each->entry->dtype);
      bytes(static_cast<std::uint64_t>(offset) * element,
            {static_cast<std::byte*>(host.view().data), host.view().bytes()});
      copy_into(to_device(host, flat.device()), flat.narrow(0, offset, count));
    }
  }
}

}  // namespace castor::strategy
