// `--cfg-options a.b=c`: dotted paths into a tree, with values typed as YAML types them.
//
// Delicate: a shell user writes `lr=1e-3`, `milestones=8,11` and `color=#fff` without quotes; only what begins with a
// bracket or quote goes through the YAML reader, or '#' would start a comment and ': ' a map.
#include <algorithm>
#include <charconv>
#include <cstdint>
#include <utility>

#include "core/base/error.h"
#include "core/base/json.h"
#include "strategy/config/load.h"
#include "strategy/config/scalar.h"
#include "strategy/config/text_source.h"

namespace castor::strategy {
namespace {

constexpr std::size_t kMostSegments = 64;

struct Override {
  std::vector<std::string> segments;
  std::string path;
  ConfigNode value;
};

/// Splits at commas outside brackets and quotes.
std::vector<std::string_view> split_list(std::string_view text) {
  std::vector<std::string_view> parts;
  int depth = 0;
  char quote = 0;
  std::size_t begin = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (quote != 0) {
      if (c == quote) quote = 0;
    } else if (c == '"' || c == '\'') {
      quote = c;
    } else if (c == '[' || c == '{') {
      ++depth;
    } else if (c == ']' || c == '}') {
      --depth;
    } else if (c == ',' && depth == 0) {
      parts.push_back(text.substr(begin, i - begin));
      begin = i + 1;
    }
  }
  parts.push_back(text.substr(begin));
  return parts;
}

ConfigNode parse_value(std::string_view text, const std::string& name) {
  const std::vector<std::string_view> parts = split_list(text);
  if (parts.size() > 1) {
    ConfigNode::List list;
    for (const std::string_view part : parts) list.push_back(parse_value(part, name));
    return ConfigNode(std::move(list));
  }
  if (!text.empty() && std::string_view("[{\"'").find(text.front()) != std::string_view::npos) {
    return read_yaml_text(text, name);
  }
  if (text == "None") return {};
  return resolve_plain_scalar(text);
}

void mark_all(ConfigNode& node, const SourceMark& mark) {
  node.set_mark(mark);
  if (node.is_list()) {
    for (ConfigNode& element : node.as_list()) mark_all(element, mark);
  } else if (node.is_map()) {
    for (ConfigNode::Member& member : node.as_map()) {
      member.mark = mark;
      mark_all(member.value, mark);
    }
  }
}

/// Throws ConfigError for text that is no `path=value`.
Override parse_override(const std::string& text, const SourceMark& mark) {
  const std::size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0) {
    throw ConfigError(
        cat("key=value expected, got ", quote_json(text), "; the config file itself goes before --cfg-options"), "");
  }
  check_config_bytes(text, *mark.file, {});
  Override out;
  out.path = text.substr(0, equals);
  std::size_t begin = 0;
  while (begin <= out.path.size()) {
    const std::size_t dot = std::min(out.path.find('.', begin), out.path.size());
    out.segments.push_back(out.path.substr(begin, dot - begin));
    if (out.segments.back().empty()) throw ConfigError(cat("path ", quote_json(out.path), " has an empty part"), "");
    begin = dot + 1;
  }
  if (out.segments.size() > kMostSegments)
    throw ConfigError(cat("a path of at most ", kMostSegments, " parts expected, got ", out.segments.size()), "");
  out.value = parse_value(std::string_view(text).substr(equals + 1), *mark.file);
  mark_all(out.value, mark);
  return out;
}

/// The element of a list that a segment names; throws ConfigError if it names none.
ConfigNode& list_element(ConfigNode& list, const std::string& segment, const std::string& at) {
  std::size_t index = 0;
  const std::from_chars_result read = std::from_chars(segment.data(), segment.data() + segment.size(), index);
  ConfigNode::List& elements = list.as_list();
  if (read.ec != std::errc() || read.ptr != segment.data() + segment.size() || index >= elements.size()) {
    throw ConfigError(cat(at.empty() ? "the value" : at, " is a list of ", elements.size(), "; ", quote_json(segment),
                          " is no index from 0 to ", elements.empty() ? 0 : elements.size() - 1),
                      "");
  }
  return elements[index];
}

void apply(ConfigNode& config, Override change, const SourceMark& mark, Diagnostics& diagnostics) {
  ConfigNode* node = &config;
  std::string at;
  for (std::size_t i = 0; i < change.segments.size(); ++i) {
    const std::string& segment = change.segments[i];
    if (node->is_list()) {
      node = &list_element(*node, segment, at);
    } else if (node->is_map() || node->is_null()) {
      if (node->is_null()) {
        *node = ConfigNode::map();
        node->set_mark(mark);
      }
      ConfigNode* child = node->find(segment);
      if (child == nullptr) {
        node->as_map().push_back({segment, ConfigNode(), mark});
        child = &node->as_map().back().value;
        child->set_mark(mark);
      }
      node = child;
    } else {
      throw ConfigError(cat(at, " is ", node->describe(), "; it has no ", quote_json(segment)), "");
    }
    at = join_config_path(at, segment);
  }
  if (!change.value.is_map()) {
    *node = std::move(change.value);
    return;
  }
  // The same rules as a file that inherits: wrap both sides so that `_delete_` is seen where it stands.
  ConfigNode base = ConfigNode::map();
  base.as_map().push_back({change.path, std::move(*node), mark});
  ConfigNode changes = ConfigNode::map();
  changes.as_map().push_back({change.path, std::move(change.value), mark});
  merge_config(base, std::move(changes), diagnostics);
  *node = std::move(base.as_map().front().value);
}

}  // namespace

void apply_overrides(ConfigNode& config, const std::vector<std::string>& overrides, Diagnostics& diagnostics) {
  for (const std::string& text : overrides) {
    constexpr std::size_t kShown = 80;
    const std::size_t shown = std::min(text.find('='), std::min(text.size(), kShown));
    const SourceMark mark{std::make_shared<const std::string>("--cfg-options " + text.substr(0, shown)), 0};
    try {
      apply(config, parse_override(text, mark), mark, diagnostics);
    } catch (const ConfigError& refused) {
      diagnostics.add(text.substr(0, shown), mark, refused.what());
    }
  }
}

}  // namespace castor::strategy
