// Lookups in the table of names, and its JSON form.
//
// Delicate: members of the file are walked in their order and each may be wrong in its own way; JsonCursor names the
// place, and nothing of a file with a mistake is added.
#include "strategy/source/model_urls.h"

#include <array>
#include <nlohmann/json.hpp>

#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/file_error.h"
#include "core/base/json.h"
#include "strategy/config/diagnostics.h"
#include "strategy/source/url.h"

namespace castor::strategy {
namespace {

constexpr std::string_view kTorchvision = "torchvision";
constexpr std::array<std::string_view, 2> kOpenMmlab{"open-mmlab", "openmmlab"};

[[noreturn]] void refuse_hub(std::string_view hub) {
  throw ConfigError(cat("model names: ", quote_name(hub), " is no hub; known: \"torchvision\", \"open-mmlab\""), "");
}

}  // namespace

ModelUrls::ModelUrls() {
  for (auto& [name, url] : torchvision_urls()) torchvision_[name] = url;
  for (auto& [name, url] : open_mmlab_urls()) open_mmlab_[name] = url;
}

bool ModelUrls::is_hub(std::string_view hub) {
  return hub == kTorchvision || hub == kOpenMmlab[0] || hub == kOpenMmlab[1];
}

std::vector<std::string> ModelUrls::prefixes() {
  return {cat(kTorchvision, "://"), cat(kOpenMmlab[0], "://"), cat(kOpenMmlab[1], "://")};
}

const ModelUrls::Names& ModelUrls::hub_named(std::string_view hub) const {
  if (!is_hub(hub)) refuse_hub(hub);
  return hub == kTorchvision ? torchvision_ : open_mmlab_;
}

ModelUrls::Names& ModelUrls::hub_named(std::string_view hub) {
  if (!is_hub(hub)) refuse_hub(hub);
  return hub == kTorchvision ? torchvision_ : open_mmlab_;
}

void ModelUrls::add(std::string_view hub, const std::string& name, const std::string& location) {
  Names& names = hub_named(hub);
  if (name.empty() || location.empty()) {
    throw ConfigError(cat("model names of ", hub, ": a name and a location are needed, got ", quote_name(name), " and ",
                          quote_name(location)),
                      "");
  }
  const std::string scheme = scheme_of(location);
  if (!scheme.empty() && scheme != "http" && scheme != "https" && scheme != "file") {
    throw ConfigError(cat("model names of ", hub, ": ", quote_name(name), " stands for a ", quote_name(scheme + "://"),
                          " location; expected http://, https://, file:// or a path"),
                      "");
  }
  names[name] = location;
}

void ModelUrls::read(const std::string& path, FileSystem& files) {
  const Json root = parse_json(read_text_file(path, std::uint64_t{64} << 20, files), path);
  ModelUrls result = *this;
  const auto add_from_file = [&](std::string_view hub, const std::string& name, const JsonCursor& value) {
    const std::string& location = value.string();
    const bool relative = scheme_of(location).empty();
    result.add(hub, name, relative && !location.empty() ? join_path(directory_of(path), location) : location);
  };
  for (const auto& [key, value] : JsonCursor(root, path).members()) {
    if (!value.value().is_object()) {
      add_from_file(kOpenMmlab[0], key, value);
      continue;
    }
    if (!is_hub(key)) value.fail("expected a hub, \"torchvision\" or \"open-mmlab\"");
    for (const auto& [name, location] : value.members()) add_from_file(key, name, location);
  }
  *this = std::move(result);
}

const std::string& ModelUrls::find(std::string_view hub, const std::string& name) const {
  const Names& table = hub_named(hub);
  const auto found = table.find(name);
  if (found != table.end()) return found->second;
  const std::string nearest = nearest_name(name, names(hub));
  throw ConfigError(cat(quote_name(cat(hub, "://", name)), ": there is no such model among the ", table.size(),
                        " known; ", nearest.empty() ? "" : cat("did you mean ", quote_name(nearest), "? "),
                        "Give a URL, or add the name to a JSON file of model URLs"),
                    "");
}

std::vector<std::string> ModelUrls::names(std::string_view hub) const {
  std::vector<std::string> out;
  for (const auto& [name, location] : hub_named(hub)) out.push_back(name);
  return out;
}

}  // namespace castor::strategy
