// Access to config values, and their YAML and JSON forms.
//
// Delicate: the YAML writer must only leave a string unquoted if a reader would take it for a string again, so it asks
// the reader's own resolver (scalar.h).
#include "strategy/config/node.h"

#include <algorithm>
#include <cmath>

#include "core/base/error.h"
#include "core/base/json.h"
#include "strategy/config/scalar.h"

namespace castor::strategy {
namespace {

template <class Value, class Variant>
auto& expect(Variant& value, const char* wanted) {
  if (auto* held = std::get_if<Value>(&value)) return *held;
  throw InternalError(cat("config: value read as ", wanted, " without asking for its kind"));
}

/// True if the text needs no quotes: plain characters only, and it would be read back as a string.
bool is_plain_yaml(const std::string& text) {
  if (text.empty() || !resolve_plain_scalar(text).is_string()) return false;
  const auto plain = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-' ||
           c == '.' || c == '/' || c == '+' || c == '^' || c == '$';
  };
  const char first = text.front();
  return first != '-' && first != '.' && first != '$' && std::all_of(text.begin(), text.end(), plain);
}

std::string yaml_scalar(const ConfigNode& node) {
  switch (node.kind()) {
    case ConfigNode::Kind::kNull:
      return "null";
    case ConfigNode::Kind::kBool:
      return node.as_bool() ? "true" : "false";
    case ConfigNode::Kind::kInt:
      return std::to_string(node.as_int());
    case ConfigNode::Kind::kFloat: {
      const double value = node.as_float();
      if (std::isnan(value)) return ".nan";
      if (std::isinf(value)) return value > 0 ? ".inf" : "-.inf";
      return dump_double(value);
    }
    case ConfigNode::Kind::kString:
      return is_plain_yaml(node.as_string()) ? node.as_string() : quote_json(node.as_string());
    case ConfigNode::Kind::kList:
    case ConfigNode::Kind::kMap:
      break;
  }
  throw InternalError("config: a list or map is no scalar");
}

bool is_scalar(const ConfigNode& node) { return !node.is_list() && !node.is_map(); }

/// The node on one line if it has a one-line form, empty otherwise.
std::string yaml_inline(const ConfigNode& node) {
  if (is_scalar(node)) return yaml_scalar(node);
  if (node.is_map()) return node.as_map().empty() ? "{}" : "";
  std::string out = "[";
  for (const ConfigNode& element : node.as_list()) {
    if (!is_scalar(element)) return "";
    if (out.size() > 1) out += ", ";
    out += yaml_scalar(element);
  }
  return out + "]";
}

void append_yaml(const ConfigNode& node, int indent, std::string& out) {
  const std::string margin(static_cast<std::size_t>(indent), ' ');
  if (node.is_map() && !node.as_map().empty()) {
    for (const ConfigNode::Member& member : node.as_map()) {
      out += margin + yaml_scalar(ConfigNode(member.key)) + ":";
      const std::string short_form = yaml_inline(member.value);
      if (short_form.empty()) {
        out += '\n';
        append_yaml(member.value, indent + 2, out);
      } else {
        out += " " + short_form + "\n";
      }
    }
    return;
  }
  if (node.is_list() && yaml_inline(node).empty()) {
    for (const ConfigNode& element : node.as_list()) {
      const std::string short_form = yaml_inline(element);
      if (!short_form.empty()) {
        out += margin + "- " + short_form + "\n";
        continue;
      }
      // The element's first line moves up beside the dash; both take two columns.
      std::string block;
      append_yaml(element, indent + 2, block);
      block[static_cast<std::size_t>(indent)] = '-';
      out += block;
    }
    return;
  }
  out += margin + yaml_inline(node) + "\n";
}

}  // namespace

std::string SourceMark::text() const {
  if (file == nullptr) return "";
  return line > 0 ? cat(*file, ":", line) : *file;
}

ConfigNode ConfigNode::map() { return ConfigNode(Map{}); }

bool ConfigNode::as_bool() const { return expect<bool>(value_, "bool"); }
std::int64_t ConfigNode::as_int() const { return expect<std::int64_t>(value_, "int"); }
double ConfigNode::as_float() const { return expect<double>(value_, "float"); }
const std::string& ConfigNode::as_string() const { return expect<std::string>(value_, "string"); }
const ConfigNode::List& ConfigNode::as_list() const { return expect<List>(value_, "list"); }
ConfigNode::List& ConfigNode::as_list() { return expect<List>(value_, "list"); }
const ConfigNode::Map& ConfigNode::as_map() const { return expect<Map>(value_, "map"); }
ConfigNode::Map& ConfigNode::as_map() { return expect<Map>(value_, "map"); }

const ConfigNode::Member* ConfigNode::find_member(std::string_view key) const {
  if (!is_map()) return nullptr;
  for (const Member& member : as_map()) {
    if (member.key == key) return &member;
  }
  return nullptr;
}

const ConfigNode* ConfigNode::find(std::string_view key) const {
  const Member* member = find_member(key);
  return member == nullptr ? nullptr : &member->value;
}

ConfigNode* ConfigNode::find(std::string_view key) {
  return const_cast<ConfigNode*>(static_cast<const ConfigNode*>(this)->find(key));
}

ConfigNode& ConfigNode::set(std::string key, ConfigNode value) {
  if (ConfigNode* held = find(key)) {
    *held = std::move(value);
    return *held;
  }
  SourceMark mark = value.mark();
  as_map().push_back(Member{std::move(key), std::move(value), std::move(mark)});
  return as_map().back().value;
}

bool ConfigNode::erase(std::string_view key) {
  if (!is_map()) return false;
  return std::erase_if(as_map(), [key](const Member& member) { return member.key == key; }) > 0;
}

bool ConfigNode::same_value(const ConfigNode& other) const {
  if (is_int() && other.is_float()) return static_cast<double>(as_int()) == other.as_float();
  if (is_float() && other.is_int()) return other.same_value(*this);
  if (kind() != other.kind()) return false;
  if (is_list()) {
    return std::equal(as_list().begin(), as_list().end(), other.as_list().begin(), other.as_list().end(),
                      [](const ConfigNode& a, const ConfigNode& b) { return a.same_value(b); });
  }
  if (is_map()) {
    return as_map().size() == other.as_map().size() &&
           std::all_of(as_map().begin(), as_map().end(), [&other](const Member& member) {
             const ConfigNode* twin = other.find(member.key);
             return twin != nullptr && member.value.same_value(*twin);
           });
  }
  switch (kind()) {
    case Kind::kBool:
      return as_bool() == other.as_bool();
    case Kind::kInt:
      return as_int() == other.as_int();
    case Kind::kFloat:
      return as_float() == other.as_float() || (std::isnan(as_float()) && std::isnan(other.as_float()));
    case Kind::kString:
      return as_string() == other.as_string();
    default:
      return true;
  }
}

std::string ConfigNode::describe() const {
  switch (kind()) {
    case Kind::kNull:
      return "null";
    case Kind::kBool:
      return as_bool() ? "true" : "false";
    case Kind::kInt:
      return cat("int ", as_int());
    case Kind::kFloat:
      return cat("float ", dump_double(as_float()));
    case Kind::kString: {
      constexpr std::size_t kShown = 60;
      const std::string& text = as_string();
      if (text.size() <= kShown) return "string " + quote_json(text);
      std::size_t end = kShown - 3;
      while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) --end;
      return "string " + quote_json(text.substr(0, end) + "...");
    }
    case Kind::kList:
      return as_list().empty() ? "an empty list" : cat("a list of ", as_list().size());
    case Kind::kMap:
      return as_map().empty() ? "an empty map" : "a map";
  }
  throw InternalError("config: unknown kind");
}

std::string join_config_path(std::string_view parent, std::string_view child) {
  return parent.empty() ? std::string(child) : cat(parent, ".", child);
}

std::string to_yaml(const ConfigNode& node) {
  std::string out;
  append_yaml(node, 0, out);
  return out;
}

}  // namespace castor::strategy
