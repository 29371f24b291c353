// The names behind torchvision://NAME and open-mmlab://NAME: a table from names to URLs that starts with the published
// ones and that users extend, in code or by a JSON file.
//
// Delicate: a table is data from elsewhere. Its values are URLs or local paths and never names again, so a lookup ends
// after one step.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/base/file_system.h"

namespace castor::strategy {

/// Two hubs, "torchvision" and "open-mmlab" ("openmmlab" is the same), each a table of names.
class ModelUrls {
 public:
  /// The built-in names. torchvision's "resnet50", and "resnet50.imagenet1k_v1", ".imagenet1k_v2" and ".default" where
  /// it has several; MMEngine's of open-mmlab ("detectron2/resnet50_caffe"), old spellings included.
  ModelUrls();

  /// True for the hubs above.
  static bool is_hub(std::string_view hub);
  /// Every hub's prefix: {"torchvision://", "open-mmlab://", "openmmlab://"}.
  static std::vector<std::string> prefixes();

  /// Adds a name, or gives it another place.
  ///   location   http://, https:// or file:// URL, or a local path
  /// Throws ConfigError for an unknown hub, an empty name or another scheme.
  void add(std::string_view hub, const std::string& name, const std::string& location);

  /// Adds the names of a JSON file, {"torchvision": {NAME: URL, ...}, "open-mmlab": {...}}; a name outside a hub,
  /// {NAME: URL}, is open-mmlab's, as in MMEngine's open_mmlab.json. Relative paths start at the file's folder.
  /// Throws IoError, FormatError (not such a file) or ConfigError (as `add`).
  void read(const std::string& path, FileSystem& files = posix_file_system());

  /// The location of a name. Throws ConfigError, naming the nearest, for one that is not in the table.
  const std::string& find(std::string_view hub, const std::string& name) const;

  /// The names of a hub, sorted. Throws ConfigError for an unknown hub.
  std::vector<std::string> names(std::string_view hub) const;

 private:
  using Names = std::map<std::string, std::string>;
  const Names& hub_named(std::string_view hub) const;
  Names& hub_named(std::string_view hub);

  Names torchvision_;
  Names open_mmlab_;
};

/// torchvision's image classifiers and their weights, as ModelUrls() expands them.
std::vector<std::pair<std::string, std::string>> torchvision_urls();
/// MMEngine's open-mmlab names.
std::vector<std::pair<std::string, std::string>> open_mmlab_urls();

}  // namespace castor::strategy
