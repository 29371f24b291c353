// The value tree that a config file becomes: null, bool, int, float, string, list and map, each with the file and line
// it came from.
//
// A tree of its own, and not nlohmann's or yaml-cpp's, because a mistake must be reported at its line after bases were
// merged and overrides applied, and because headers that describe options must stay cheap to include. Delicate: maps
// keep the order of the text and hold each key once, which the loaders check; a lookup is linear.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace castor::strategy {

/// Where a key or value was written.
struct SourceMark {
  std::shared_ptr<const std::string> file;  ///< null if it was not written anywhere (a default)
  int line = 0;                             ///< counted from 1; 0 where lines mean nothing, as on a command line

  /// "gpt.yaml:12", "--cfg-options a.b=c", or empty.
  std::string text() const;
};

/// One value of a config.
class ConfigNode {
 public:
  enum class Kind { kNull, kBool, kInt, kFloat, kString, kList, kMap };
  struct Member;
  using List = std::vector<ConfigNode>;
  using Map = std::vector<Member>;

  /// Null.
  ConfigNode() = default;
  template <std::same_as<bool> T>
  ConfigNode(T value) : value_(value) {}
  template <std::integral T>
  requires(!std::same_as<T, bool>) ConfigNode(T value) : value_(static_cast<std::int64_t>(value)) {}
  template <std::floating_point T>
  ConfigNode(T value) : value_(static_cast<double>(value)) {}
  template <std::convertible_to<std::string_view> T>
  ConfigNode(const T& value) : value_(std::string(std::string_view(value))) {}
  ConfigNode(List value) : value_(std::move(value)) {}
  ConfigNode(Map value) : value_(std::move(value)) {}

  static ConfigNode list() { return ConfigNode(List{}); }
  static ConfigNode map();

  Kind kind() const { return static_cast<Kind>(value_.index()); }
  bool is_null() const { return kind() == Kind::kNull; }
  bool is_bool() const { return kind() == Kind::kBool; }
  bool is_int() const { return kind() == Kind::kInt; }
  bool is_float() const { return kind() == Kind::kFloat; }
  bool is_string() const { return kind() == Kind::kString; }
  bool is_list() const { return kind() == Kind::kList; }
  bool is_map() const { return kind() == Kind::kMap; }

  /// The value of each kind. Throws InternalError if the kind is another: callers ask `kind` first.
  bool as_bool() const;
  std::int64_t as_int() const;
  double as_float() const;
  const std::string& as_string() const;
  const List& as_list() const;
  List& as_list();
  const Map& as_map() const;
  Map& as_map();

  /// The member of a map, or null if this is no map or lacks the key.
  const ConfigNode* find(std::string_view key) const;
  ConfigNode* find(std::string_view key);
  const Member* find_member(std::string_view key) const;
  /// Sets a member of a map; a new key goes to the end. Throws InternalError if this is no map.
  ConfigNode& set(std::string key, ConfigNode value);
  /// Removes a member of a map. Returns false if there was none.
  bool erase(std::string_view key);

  const SourceMark& mark() const { return mark_; }
  void set_mark(SourceMark mark) { mark_ = std::move(mark); }

  /// Equal kinds and values, marks apart; a map's order counts not, an int and a float of one value are equal.
  bool same_value(const ConfigNode& other) const;
  /// For errors: `string "ten"`, `int 3`, `a list of 2`, `a map`, `null`. Long strings are cut.
  std::string describe() const;

 private:
  std::variant<std::monostate, bool, std::int64_t, double, std::string, List, Map> value_;
  SourceMark mark_;
};

/// One key of a map with its value. The mark is the key's.
struct ConfigNode::Member {
  std::string key;
  ConfigNode value;
  SourceMark mark;
};

/// "a" + "b" = "a.b"; an empty parent gives the child alone.
std::string join_config_path(std::string_view parent, std::string_view child);

/// The tree as JSON. Non-finite floats become the strings "nan", "inf" and "-inf" when dumped.
nlohmann::ordered_json to_json(const ConfigNode& node);

/// The tree as YAML in block style that loads back to the same values; lists of scalars stay on one line.
std::string to_yaml(const ConfigNode& node);

}  // namespace castor::strategy
