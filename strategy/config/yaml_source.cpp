// YAML through yaml-cpp's event interface.
//
// Its ready-made tree is not used: it keeps both of two equal keys, shares aliased nodes so that a later walk of the
// tree meets exponentially many, and loses which scalars were quoted. Delicate: yaml-cpp calls the handler from inside
// its recursion, so our depth limit (well under its own) is what bounds the stack; exceptions thrown by the handler
// pass through it safely. An anchor's number is announced with the node's start, hence an alias to a node that is still
// open is an error here.
#include <algorithm>
#include <istream>
#include <optional>
#include <streambuf>
#include <unordered_map>
#include <unordered_set>

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/mark.h>
#include <yaml-cpp/parser.h>

#include "core/base/error.h"
#include "core/base/json.h"
#include "strategy/config/scalar.h"
#include "strategy/config/text_source.h"

namespace castor::strategy {
namespace {

/// A stream over memory that copies nothing.
class ViewBuffer : public std::streambuf {
 public:
  explicit ViewBuffer(std::string_view text) {
    char* begin = const_cast<char*>(text.data());  // the get area is only read
    setg(begin, begin, begin + text.size());
  }
};

std::size_t count_values(const ConfigNode& node) {
  std::size_t n = 1;
  if (node.is_list()) {
    for (const ConfigNode& element : node.as_list()) n += count_values(element);
  } else if (node.is_map()) {
    for (const ConfigNode::Member& member : node.as_map()) n += count_values(member.value);
  }
  return n;
}

int depth_of(const ConfigNode& node) {
  int deepest = 0;
  if (node.is_list()) {
    for (const ConfigNode& element : node.as_list()) deepest = std::max(deepest, depth_of(element));
  } else if (node.is_map()) {
    for (const ConfigNode::Member& member : node.as_map()) deepest = std::max(deepest, depth_of(member.value));
  } else {
    return 0;
  }
  return deepest + 1;
}

class TreeHandler : public YAML::EventHandler {
 public:
  TreeHandler(const std::string& name, const ConfigTextLimits& limits)
      : name_(name), file_(std::make_shared<const std::string>(name)), limits_(limits) {}

  ConfigNode take_root() { return std::move(root_); }

  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}

  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    if (expects_key()) fail(mark, "a key is empty");
    add(mark, ConfigNode(), anchor);
  }

  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    if (expects_key()) fail(mark, "an alias cannot be a key");
    const auto held = anchored_.find(anchor);
    if (held == anchored_.end()) fail(mark, "the alias refers to a value that contains it");
    if (static_cast<int>(open_.size()) + held->second.depth > limits_.max_depth) fail_depth(mark);
    count(mark, held->second.values);
    ConfigNode copy = held->second.node;
    attach(std::move(copy));
  }

  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    if (expects_key()) {
      take_key(mark, value);
      return;
    }
    add(mark, scalar_value(mark, tag, value), anchor);
  }

  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    check_tag(mark, tag, "tag:yaml.org,2002:seq");
    open(mark, ConfigNode::list(), anchor);
  }
  void OnSequenceEnd() override { close(); }

  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    check_tag(mark, tag, "tag:yaml.org,2002:map");
    open(mark, ConfigNode::map(), anchor);
  }
  void OnMapEnd() override {
    merge_defaults();
    close();
  }

 private:
  /// A list or map that is still being read.
  struct Open {
    ConfigNode node;
    YAML::anchor_t anchor = 0;
    std::optional<std::string> key;  ///< read, its value is not
    SourceMark key_mark;
    std::unordered_set<std::string> keys;  ///< all so far
    std::vector<ConfigNode> defaults;      ///< maps named by `<<`
  };
  struct Anchored {
    ConfigNode node;
    std::size_t values = 0;
    int depth = 0;
  };

  [[noreturn]] void fail(const YAML::Mark& mark, const std::string& text) const {
    refuse_config_text(name_, mark.line + 1, text);
  }
  [[noreturn]] void fail_depth(const YAML::Mark& mark) const {
    fail(mark, cat("maps and lists nest deeper than ", limits_.max_depth));
  }
  SourceMark source(const YAML::Mark& mark) const { return {file_, mark.line + 1}; }
  void count(const YAML::Mark& mark, std::size_t values) {
    values_ += values;
    if (values_ > limits_.max_values) {
      fail(mark, cat("more than ", limits_.max_values, " values, aliases expanded; a config is not a place for data"));
    }
  }
  bool expects_key() const { return !open_.empty() && open_.back().node.is_map() && !open_.back().key; }

  void take_key(const YAML::Mark& mark, const std::string& value) {
    Open& map = open_.back();
    if (!map.keys.insert(value).second && value != "<<") fail(mark, cat("key ", quote_json(value), " appears twice"));
    map.key = value;
    map.key_mark = source(mark);
  }

  void check_tag(const YAML::Mark& mark, const std::string& tag, std::string_view allowed) const {
    if (!tag.empty() && tag != "?" && tag != "!" && tag != allowed) fail_tag(mark, tag);
  }
  [[noreturn]] void fail_tag(const YAML::Mark& mark, const std::string& tag) const {
    fail(mark, cat("tag ", quote_json(tag), " is not supported; write the plain value"));
  }

  ConfigNode scalar_value(const YAML::Mark& mark, const std::string& tag, const std::string& value) const {
    if (tag == "!" || tag == "tag:yaml.org,2002:str") return ConfigNode(value);
    if (!tag.empty() && tag != "?") fail_tag(mark, tag);
    try {
      return resolve_plain_scalar(value);
    } catch (const ConfigError& refused) {
      fail(mark, refused.what());
    }
  }

  void add(const YAML::Mark& mark, ConfigNode node, YAML::anchor_t anchor) {
    count(mark, 1);
    node.set_mark(source(mark));
    if (anchor != 0) {
      count(mark, 1);
      anchored_[anchor] = Anchored{node, 1, 0};
    }
    attach(std::move(node));
  }

  void open(const YAML::Mark& mark, ConfigNode node, YAML::anchor_t anchor) {
    if (expects_key())
      fail(mark, "a key must be a scalar; close every '{' and '[', and quote text that begins with one");
    count(mark, 1);
    if (static_cast<int>(open_.size()) >= limits_.max_depth) fail_depth(mark);
    node.set_mark(source(mark));
    Open entry;
    entry.node = std::move(node);
    entry.anchor = anchor;
    open_.push_back(std::move(entry));
  }

  void close() {
    Open done = std::move(open_.back());
    open_.pop_back();
    if (done.anchor != 0) {
      // The kept copy counts as values too, or nested anchors would multiply the memory by their depth.
      const std::size_t values = count_values(done.node);
      values_ += values;
      if (values_ > limits_.max_values) {
        refuse_config_text(name_, done.node.mark().line, cat("more than ", limits_.max_values, " values"));
      }
      anchored_[done.anchor] = Anchored{done.node, values, depth_of(done.node)};
    }
    attach(std::move(done.node));
  }

  void attach(ConfigNode node) {
    if (open_.empty()) {
      root_ = std::move(node);
      return;
    }
    Open& parent = open_.back();
    if (parent.node.is_list()) {
      parent.node.as_list().push_back(std::move(node));
    } else if (*parent.key == "<<") {
      take_defaults(std::move(node));
      parent.key.reset();
    } else {
      parent.node.as_map().push_back({std::move(*parent.key), std::move(node), parent.key_mark});
      parent.key.reset();
    }
  }

  void take_defaults(ConfigNode node) {
    Open& map = open_.back();
    if (node.is_map()) {
      map.defaults.push_back(std::move(node));
      return;
    }
    const bool all_maps = node.is_list() && std::all_of(node.as_list().begin(), node.as_list().end(),
                                                        [](const ConfigNode& element) { return element.is_map(); });
    if (!all_maps) refuse_config_text(name_, map.key_mark.line, "<< takes a map or a list of maps");
    for (ConfigNode& element : node.as_list()) map.defaults.push_back(std::move(element));
  }

  /// Adds the keys of `<<` that the map itself lacks; the first of several maps wins.
  void merge_defaults() {
    Open& map = open_.back();
    for (ConfigNode& defaults : map.defaults) {
      for (ConfigNode::Member& member : defaults.as_map()) {
        if (map.keys.insert(member.key).second) map.node.as_map().push_back(std::move(member));
      }
    }
    map.defaults.clear();
  }

  const std::string& name_;
  std::shared_ptr<const std::string> file_;
  const ConfigTextLimits& limits_;
  ConfigNode root_;
  std::vector<Open> open_;
  std::unordered_map<YAML::anchor_t, Anchored> anchored_;
  std::size_t values_ = 0;
};

}  // namespace

ConfigNode read_yaml_text(std::string_view text, const std::string& name, const ConfigTextLimits& limits) {
  check_config_bytes(text, name, limits);
  ViewBuffer buffer(text);
  std::istream stream(&buffer);
  try {
    YAML::Parser parser(stream);
    TreeHandler handler(name, limits);
    if (!parser.HandleNextDocument(handler)) return {};
    ConfigNode root = handler.take_root();
    TreeHandler rest(name, limits);
    if (parser.HandleNextDocument(rest)) refuse_config_text(name, 0, "one YAML document expected, got several");
    return root;
  } catch (const YAML::Exception& refused) {
    refuse_config_text(name, refused.mark.is_null() ? 0 : refused.mark.line + 1, cat("not valid YAML: ", refused.msg));
  }
}

}  // namespace castor::strategy
