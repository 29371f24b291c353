// Reading files, replacing variables, following bases.
//
// Delicate: replacement happens in the text, before YAML sees it, because `{{$X}}` unquoted is not valid YAML; so a
// value may not hold control characters, or a variable could add lines, that is keys, to a config. Circles are found by
// the canonical path, so that a link does not hide one.
#include "strategy/config/load.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <system_error>

#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/json.h"
#include "strategy/config/text_source.h"

namespace castor::strategy {
namespace {

constexpr std::size_t kMostFiles = 64;
constexpr std::string_view kBaseKey = "_base_";
constexpr std::string_view kDeleteKey = "_delete_";

bool is_name_char(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

/// `$NAME` or `$NAME:default`, without the braces.
std::string environment_value(std::string_view inner, const std::string& path, int line) {
  inner.remove_prefix(1);
  const std::size_t colon = inner.find(':');
  const std::string name(trimmed(inner.substr(0, colon)));
  if (name.empty() || !std::all_of(name.begin(), name.end(), is_name_char)) {
    refuse_config_text(path, line, cat("{{$NAME}} or {{$NAME:default}} expected, got {{$", inner, "}}"));
  }
  const char* value = std::getenv(name.c_str());
  if (value == nullptr) {
    if (colon == std::string_view::npos) {
      refuse_config_text(path, line,
                         cat("environment variable ", name, " is not set; set it, or write {{$", name, ":default}}"));
    }
    return std::string(trimmed(inner.substr(colon + 1)));
  }
  const std::string_view text = value;
  const auto is_control = [](char c) { return static_cast<unsigned char>(c) < 0x20; };
  if (std::any_of(text.begin(), text.end(), is_control)) {
    refuse_config_text(path, line, cat("environment variable ", name, " holds a line break or control character"));
  }
  return value;
}

/// The text that stands for `{{inner}}`, or false if it is left as it is.
bool variable_value(std::string_view inner, const std::string& path, int line, std::string& value) {
  const std::filesystem::path file(path);
  if (inner.starts_with('$')) {
    value = environment_value(inner, path, line);
  } else if (inner == "fileDirname") {
    value = directory_of(std::filesystem::absolute(file).string());
  } else if (inner == "fileBasename") {
    value = file.filename().string();
  } else if (inner == "fileBasenameNoExtension") {
    value = file.stem().string();
  } else if (inner == "fileExtname") {
    value = file.extension().string();
  } else if (inner.starts_with(kBaseKey)) {
    refuse_config_text(path, line,
                       cat("{{", inner, "}} is not in this version: write the value, or use a YAML anchor"));
  } else {
    return false;
  }
  return true;
}

class Loader {
 public:
  explicit Loader(Diagnostics& diagnostics) : diagnostics_(diagnostics) {}

  /// The file's tree with its bases merged in.
  ///   named_by   the `_base_` entry that names it; empty for the first file
  ConfigNode load(const std::string& path, const SourceMark& named_by) {
    std::error_code ignored;
    std::string canonical = std::filesystem::weakly_canonical(path, ignored).string();
    if (canonical.empty()) canonical = path;
    if (std::find(open_.begin(), open_.end(), canonical) != open_.end()) {
      std::string circle;
      for (const std::string& file : open_) circle += file + " -> ";
      throw ConfigError(cat(named_by.text(), ": _base_ goes in a circle: ", circle, canonical), "_base_");
    }
    if (++files_ > kMostFiles) {
      throw ConfigError(cat(named_by.text(), ": _base_ leads to more than ", kMostFiles, " files"), "_base_");
    }
    open_.push_back(canonical);
    ConfigNode own = read(path, named_by);
    ConfigNode config = ConfigNode::map();
    config.set_mark(own.mark());
    for (const ConfigNode& base : base_names(own)) {
      add_base(config, load(join_path(directory_of(path), base.as_string()), base.mark()));
    }
    own.erase(kBaseKey);
    merge_config(config, std::move(own), diagnostics_);
    open_.pop_back();
    return config;
  }

 private:
  static ConfigNode read(const std::string& path, const SourceMark& named_by) {
    const std::string extension = std::filesystem::path(path).extension().string();
    const bool is_json = extension == ".json";
    const std::string where = named_by.file == nullptr ? "" : named_by.text() + ": ";
    if (!is_json && extension != ".yaml" && extension != ".yml") {
      const std::string hint = extension == ".py" ? "; Python configs must be written as YAML" : "";
      throw ConfigError(cat(where, "config file ", path, ": a name ending in .yaml, .yml or .json expected", hint), "");
    }
    const ConfigTextLimits limits;
    std::string text;
    try {
      text = read_text_file(path, limits.max_bytes);
    } catch (const IoError& refused) {
      throw ConfigError(cat(where, "config file cannot be read: ", refused.what()), "");
    }
    check_config_bytes(text, path, limits);
    text = substitute_config_variables(text, path);
    ConfigNode node = is_json ? read_json_text(text, path) : read_yaml_text(text, path);
    if (node.is_null()) node = ConfigNode::map();
    if (!node.is_map()) {
      refuse_config_text(path, node.mark().line, cat("a config is a map of keys, got ", node.describe()));
    }
    if (node.mark().file == nullptr) node.set_mark({std::make_shared<const std::string>(path), 0});
    return node;
  }

  static std::vector<ConfigNode> base_names(const ConfigNode& config) {
    const ConfigNode* base = config.find(kBaseKey);
    if (base == nullptr) return {};
    std::vector<ConfigNode> names = base->is_list() ? base->as_list() : std::vector<ConfigNode>{*base};
    for (const ConfigNode& name : names) {
      if (!name.is_string()) {
        throw ConfigError(cat(name.mark().text(), ": _base_ takes a path or a list of paths, got ", name.describe()),
                          "_base_");
      }
    }
    return names;
  }

  void add_base(ConfigNode& config, ConfigNode base) {
    for (ConfigNode::Member& member : base.as_map()) {
      if (const ConfigNode::Member* held = config.find_member(member.key)) {
        diagnostics_.add(
            member.key, member.mark,
            cat("two files of _base_ set this key, the other at ", held->mark.text(), "; keep it in one of them"));
      } else {
        config.as_map().push_back(std::move(member));
      }
    }
  }

  Diagnostics& diagnostics_;
  std::vector<std::string> open_;  ///< canonical paths from the first file to the one being read
  std::size_t files_ = 0;
};

/// Takes `_delete_` out of a map. True if it was there and true.
bool take_delete_key(ConfigNode& map, const std::string& path, Diagnostics& diagnostics) {
  const ConfigNode* flag = map.find(kDeleteKey);
  if (flag == nullptr) return false;
  const bool set = flag->is_bool() && flag->as_bool();
  if (!flag->is_bool()) {
    diagnostics.add(join_config_path(path, kDeleteKey), flag->mark(),
                    cat("expected true or false, got ", flag->describe()));
  }
  map.erase(kDeleteKey);
  return set;
}

/// Takes all `_delete_` out of a tree that nothing was inherited into.
void drop_delete_keys(ConfigNode& node, const std::string& path, Diagnostics& diagnostics) {
  if (node.is_map()) {
    take_delete_key(node, path, diagnostics);
    for (ConfigNode::Member& member : node.as_map()) {
      drop_delete_keys(member.value, join_config_path(path, member.key), diagnostics);
    }
  } else if (node.is_list()) {
    for (std::size_t i = 0; i < node.as_list().size(); ++i) {
      drop_delete_keys(node.as_list()[i], join_config_path(path, std::to_string(i)), diagnostics);
    }
  }
}

void merge_at(ConfigNode& base, ConfigNode changes, const std::string& path, Diagnostics& diagnostics) {
  for (ConfigNode::Member& change : changes.as_map()) {
    const std::string at = join_config_path(path, change.key);
    const bool replaces = change.value.is_map() && take_delete_key(change.value, at, diagnostics);
    ConfigNode* held = base.find(change.key);
    if (held != nullptr && change.value.is_map() && !replaces && !held->is_null()) {
      if (held->is_map()) {
        merge_at(*held, std::move(change.value), at, diagnostics);
      } else {
        diagnostics.add(at, change.mark,
                        cat("a map cannot extend the inherited ", held->describe(), " of ", held->mark().text(),
                            "; add `_delete_: true` to it to replace the value"));
      }
      continue;
    }
    drop_delete_keys(change.value, at, diagnostics);
    if (held == nullptr) {
      base.as_map().push_back(std::move(change));
    } else {
      *held = std::move(change.value);
    }
  }
}

}  // namespace

std::string substitute_config_variables(std::string_view text, const std::string& path) {
  std::string out;
  out.reserve(text.size());
  int line_number = 0;
  while (!text.empty()) {
    ++line_number;
    const std::size_t line_break = text.find('\n');
    std::string_view line = text.substr(0, line_break == std::string_view::npos ? text.size() : line_break + 1);
    text.remove_prefix(line.size());
    const bool is_comment = trimmed(line).starts_with('#');
    while (!line.empty()) {
      const std::size_t open = is_comment ? std::string_view::npos : line.find("{{");
      const std::size_t close = open == std::string_view::npos ? open : line.find("}}", open);
      std::string value;
      if (close == std::string_view::npos ||
          !variable_value(trimmed(line.substr(open + 2, close - open - 2)), path, line_number, value)) {
        // Nothing here, or braces that are the text's own: go on behind them.
        const std::size_t kept = close == std::string_view::npos ? line.size() : open + 2;
        out += line.substr(0, kept);
        line.remove_prefix(kept);
        continue;
      }
      out += line.substr(0, open);
      out += value;
      line.remove_prefix(close + 2);
    }
  }
  return out;
}

void merge_config(ConfigNode& base, ConfigNode changes, Diagnostics& diagnostics) {
  take_delete_key(changes, "", diagnostics);
  merge_at(base, std::move(changes), "", diagnostics);
}

ConfigNode load_config(const std::string& path, const std::vector<std::string>& overrides) {
  Diagnostics diagnostics;
  ConfigNode config = Loader(diagnostics).load(path, {});
  apply_overrides(config, overrides, diagnostics);
  diagnostics.throw_if_any(path);
  return config;
}

}  // namespace castor::strategy
