// JSON configs through core's strict scanner, and the byte checks that both formats share.
//
// JSON is read as JSON and not as the YAML that it nearly is: YAML refuses tabs and `\/`, and accepts much that a JSON
// reader elsewhere would not.
#include <optional>

#include "core/base/error.h"
#include "core/base/json.h"
#include "strategy/config/text_source.h"

namespace castor::strategy {
namespace {

class TreeEvents : public JsonEvents {
 public:
  explicit TreeEvents(const std::string& name) : name_(name), file_(std::make_shared<const std::string>(name)) {}

  ConfigNode take_root() { return std::move(root_); }

  void on_null(const JsonPosition& at) override { attach(marked(ConfigNode(), at)); }
  void on_bool(bool value, const JsonPosition& at) override { attach(marked(ConfigNode(value), at)); }
  void on_integer(std::int64_t value, const JsonPosition& at) override { attach(marked(ConfigNode(value), at)); }
  void on_large_integer(std::uint64_t value, const JsonPosition& at) override {
    refuse_config_text(name_, at.line, cat("integer ", value, " does not fit 64 signed bits"));
  }
  void on_float(double value, const std::string& text, const JsonPosition& at) override {
    if (text.find_first_of(".eE") == std::string::npos) {
      refuse_config_text(name_, at.line, cat("integer ", text, " does not fit 64 bits; write it as a float"));
    }
    attach(marked(ConfigNode(value), at));
  }
  void on_string(std::string& value, const JsonPosition& at) override {
    attach(marked(ConfigNode(std::move(value)), at));
  }
  void on_object_begin(const JsonPosition& at) override { open_.push_back({marked(ConfigNode::map(), at), {}, {}}); }
  void on_key(std::string& key, const JsonPosition& at) override {
    open_.back().key = std::move(key);
    open_.back().key_mark = {file_, at.line};
  }
  void on_object_end() override { close(); }
  void on_array_begin(const JsonPosition& at) override { open_.push_back({marked(ConfigNode::list(), at), {}, {}}); }
  void on_array_end() override { close(); }

 private:
  struct Open {
    ConfigNode node;
    std::string key;
    SourceMark key_mark;
  };

  ConfigNode marked(ConfigNode node, const JsonPosition& at) const {
    node.set_mark({file_, at.line});
    return node;
  }
  void close() {
    ConfigNode done = std::move(open_.back().node);
    open_.pop_back();
    attach(std::move(done));
  }
  void attach(ConfigNode node) {
    if (open_.empty()) {
      root_ = std::move(node);
    } else if (Open& parent = open_.back(); parent.node.is_list()) {
      parent.node.as_list().push_back(std::move(node));
    } else {
      parent.node.as_map().push_back({std::move(parent.key), std::move(node), parent.key_mark});
    }
  }

  const std::string& name_;
  std::shared_ptr<const std::string> file_;
  ConfigNode root_;
  std::vector<Open> open_;
};

}  // namespace

void refuse_config_text(const std::string& name, int line, const std::string& text) {
  throw ConfigError(line > 0 ? cat(name, ":", line, ": ", text) : cat(name, ": ", text), "");
}

void check_config_bytes(std::string_view text, const std::string& name, const ConfigTextLimits& limits) {
  if (text.size() > limits.max_bytes) {
    refuse_config_text(name, 0, cat("a config of at most ", limits.max_bytes, " bytes expected, got ", text.size()));
  }
  const auto line_of = [text](std::size_t offset) {
    int line = 1;
    for (const char c : text.substr(0, offset)) line += c == '\n' ? 1 : 0;
    return line;
  };
  std::size_t bad = 0;
  if (!is_utf8(text, &bad)) {
    refuse_config_text(name, line_of(bad), cat("not UTF-8 at byte ", bad, "; save the file as UTF-8"));
  }
  bad = text.find('\0');
  if (bad != std::string_view::npos) refuse_config_text(name, line_of(bad), cat("a NUL byte at byte ", bad));
}

ConfigNode read_json_text(std::string_view text, const std::string& name, const ConfigTextLimits& limits) {
  check_config_bytes(text, name, limits);
  TreeEvents events(name);
  try {
    scan_json(text, name, events, {limits.max_bytes, limits.max_depth, limits.max_values});
  } catch (const FormatError& refused) {
    throw ConfigError(refused.what(), "");
  }
  return events.take_root();
}

}  // namespace castor::strategy
