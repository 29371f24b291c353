// The codecs of scalars, lists and maps.
//
// Delicate: an int field takes 1e4, since people write steps so, but not 1.5 and nothing beyond 2^53, where a double no
// longer knows its neighbours; a float field takes 3. A field of strings does not take 123: whoever means text quotes
// it.
#include "strategy/config/codec.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "core/base/error.h"
#include "core/base/json.h"
#include "strategy/config/scalar.h"
#include "strategy/type_table.h"

namespace castor::strategy {
namespace {

constexpr double kExactIntegers = 9007199254740992.0;  // 2^53

/// What a number breaks, as ">= 1", or empty.
std::string broken_bound(double number, Constraints constraints) {
  for (const Constraint& constraint : constraints) {
    const double bound = constraint.bound;
    const bool broken = (constraint.kind == Constraint::Kind::kAtLeast && !(number >= bound)) ||
                        (constraint.kind == Constraint::Kind::kAtMost && !(number <= bound)) ||
                        (constraint.kind == Constraint::Kind::kMoreThan && !(number > bound)) ||
                        (constraint.kind == Constraint::Kind::kLessThan && !(number < bound));
    if (broken) return constraint.text();
  }
  return "";
}

/// Reports a number out of bounds. True if it is within.
bool check_bounds(double number, const ConfigNode& node, const std::string& path, Constraints constraints,
                  ParseContext& context) {
  const std::string broken = broken_bound(number, constraints);
  if (broken.empty()) return true;
  context.diagnostics.add(path, node.mark(), cat("must be ", broken, ", got ", node.describe()));
  return false;
}

void check_size(std::size_t size, const ConfigNode& node, const std::string& path, Constraints constraints,
                ParseContext& context) {
  if (size == 0 && find_constraint(constraints, Constraint::Kind::kNonEmpty) != nullptr) {
    context.diagnostics.add(path, node.mark(), cat("must not be empty, got ", node.describe()));
  }
}

class BoolCodec : public ValueCodec {
 public:
  std::string type_name() const override { return "bool"; }
  bool accepts(const ConfigNode& node) const override { return node.is_bool(); }
  void parse(const ConfigNode& node, const std::string& path, Constraints, ParseContext& context,
             void* value) const override {
    if (!accepts(node)) return wrong_type(node, path, context);
    *static_cast<bool*>(value) = node.as_bool();
  }
  ConfigNode dump(const void* value, Constraints, const TypeDirectory*) const override {
    return ConfigNode(*static_cast<const bool*>(value));
  }
};

class StringCodec : public ValueCodec {
 public:
  std::string type_name() const override { return "str"; }
  bool accepts(const ConfigNode& node) const override { return node.is_string(); }
  void parse(const ConfigNode& node, const std::string& path, Constraints constraints, ParseContext& context,
             void* value) const override {
    if (!accepts(node)) return wrong_type(node, path, context);
    const std::string& text = node.as_string();
    check_size(text.size(), node, path, constraints, context);
    if (const Constraint* choice = find_constraint(constraints, Constraint::Kind::kOneOf)) {
      if (std::find(choice->words.begin(), choice->words.end(), text) == choice->words.end()) {
        const std::string nearest = nearest_name(text, choice->words);
        context.diagnostics.add(path, node.mark(),
                                cat("must be ", choice->text(), "; got ", node.describe(),
                                    nearest.empty() ? "" : cat("; did you mean ", quote_json(nearest), "?")));
        return;
      }
    }
    *static_cast<std::string*>(value) = text;
  }
  ConfigNode dump(const void* value, Constraints, const TypeDirectory*) const override {
    return ConfigNode(*static_cast<const std::string*>(value));
  }
};

/// float and double.
template <class Real>
class RealCodec : public ValueCodec {
 public:
  std::string type_name() const override { return "float"; }
  bool accepts(const ConfigNode& node) const override { return node.is_float() || node.is_int(); }
  void parse(const ConfigNode& node, const std::string& path, Constraints constraints, ParseContext& context,
             void* value) const override {
    const bool infinite_allowed = find_constraint(constraints, Constraint::Kind::kAllowInfinite) != nullptr;
    double number = 0;
    if (node.is_float()) {
      number = node.as_float();
    } else if (node.is_int()) {
      number = static_cast<double>(node.as_int());
    } else if (infinite_allowed && node.is_string() && (node.as_string() == "inf" || node.as_string() == "-inf")) {
      number = node.as_string() == "inf" ? HUGE_VAL : -HUGE_VAL;
    } else {
      return wrong_type(node, path, context);
    }
    if (node.is_int() && std::abs(number) > kExactIntegers) {
      context.diagnostics.add(path, node.mark(), cat("an integer beyond 2^53 would be rounded, got ", node.describe()));
      return;
    }
    if (std::isnan(number) || (std::isinf(number) && !infinite_allowed)) {
      context.diagnostics.add(path, node.mark(), cat("must be finite, got ", node.describe()));
      return;
    }
    if (std::isfinite(number) && std::abs(number) > static_cast<double>(std::numeric_limits<Real>::max())) {
      context.diagnostics.add(path, node.mark(), cat("does not fit 32 bits, got ", node.describe()));
      return;
    }
    if (check_bounds(number, node, path, constraints, context)) *static_cast<Real*>(value) = static_cast<Real>(number);
  }
  ConfigNode dump(const void* value, Constraints, const TypeDirectory*) const override {
    const Real number = *static_cast<const Real*>(value);
    if (sizeof(Real) == sizeof(double) || !std::isfinite(number)) return ConfigNode(number);
    // The double nearest to the float's shortest text, so that 0.1f is shown as 0.1.
    char text[32];
    const std::to_chars_result written = std::to_chars(text, text + sizeof text, number);
    double shown = 0;
    std::from_chars(text, written.ptr, shown);
    return ConfigNode(shown);
  }
};

class AnyCodec : public ValueCodec {
 public:
  std::string type_name() const override { return "any"; }
  bool accepts(const ConfigNode&) const override { return true; }
  void parse(const ConfigNode& node, const std::string&, Constraints, ParseContext&, void* value) const override {
    *static_cast<ConfigNode*>(value) = node;
  }
  ConfigNode dump(const void* value, Constraints, const TypeDirectory*) const override {
    return *static_cast<const ConfigNode*>(value);
  }
};

/// std::monostate, the alternative of a variant that stands for "not given".
class NullCodec : public ValueCodec {
 public:
  std::string type_name() const override { return "null"; }
  bool accepts(const ConfigNode& node) const override { return node.is_null(); }
  void parse(const ConfigNode& node, const std::string& path, Constraints, ParseContext& context,
             void*) const override {
    if (!accepts(node)) wrong_type(node, path, context);
  }
  ConfigNode dump(const void*, Constraints, const TypeDirectory*) const override { return {}; }
};

class TypedConfigCodec : public ValueCodec {
 public:
  std::string type_name() const override { return "{type: ...}"; }
  bool accepts(const ConfigNode& node) const override { return node.is_map() || node.is_string(); }

  void parse(const ConfigNode& node, const std::string& path, Constraints constraints, ParseContext& context,
             void* value) const override {
    TypedConfig& typed = *static_cast<TypedConfig*>(value);
    const TypeTableBase* table = table_of(constraints, context.types);
    if (node.is_null() && find_constraint(constraints, Constraint::Kind::kRequired) == nullptr) {
      typed = {};
      return;
    }
    TypedConfig read;
    read.path = path;
    if (node.is_string() && find_constraint(constraints, Constraint::Kind::kOrName) != nullptr) {
      read.type = node.as_string();
      read.node = ConfigNode::map();
      read.node.set("type", node);
    } else if (node.is_map()) {
      const ConfigNode* type = node.find("type");
      if (type == nullptr || !type->is_string() || type->as_string().empty()) {
        const std::string names = table == nullptr ? "" : cat(": ", table->names_text());
        context.diagnostics.add(join_config_path(path, "type"), type == nullptr ? node.mark() : type->mark(),
                                type == nullptr ? cat("missing; it names the class", names)
                                                : cat("expected a name, got ", type->describe(), names));
        return;
      }
      read.type = type->as_string();
      read.node = node;
    } else {
      return wrong_type(node, path, context);
    }
    if (table != nullptr) table->check(read, context.diagnostics);
    typed = std::move(read);
  }

  ConfigNode dump(const void* value, Constraints constraints, const TypeDirectory* types) const override {
    const TypedConfig& typed = *static_cast<const TypedConfig*>(value);
    if (!typed.present()) return {};
    const TypeTableBase* table = table_of(constraints, types);
    return table == nullptr ? typed.node : table->effective(typed);
  }

 private:
  static const TypeTableBase* table_of(Constraints constraints, const TypeDirectory* types) {
    const Constraint* wanted = find_constraint(constraints, Constraint::Kind::kRegistered);
    if (wanted == nullptr || types == nullptr) return nullptr;
    const TypeTableBase* table = types->find_table(wanted->words.front());
    if (table == nullptr) throw InternalError(cat("config: no table of kind ", wanted->words.front()));
    return table;
  }
};

}  // namespace

void ValueCodec::wrong_type(const ConfigNode& node, const std::string& path, ParseContext& context) const {
  std::string hint;
  const std::string wanted = type_name();
  if (node.is_string()) {
    const std::string& text = node.as_string();
    if (wanted.starts_with("bool") && nearest_name(text, std::vector<std::string>{"yes", "no", "on", "off"}) == text) {
      hint = "; write true or false";
    } else if (text.size() < 64) {
      try {
        const ConfigNode unquoted = resolve_plain_scalar(text);
        if (!unquoted.is_string() && accepts(unquoted)) hint = "; remove the quotes";
      } catch (const ConfigError&) {
        // A number that no type holds: no hint.
      }
    }
  } else if (accepts(ConfigNode("text")) && wanted.starts_with("str") && !node.is_list() && !node.is_map()) {
    hint = "; put it in quotes if it is text";
  }
  context.diagnostics.add(path, node.mark(), cat("expected ", wanted, ", got ", node.describe(), hint));
}

namespace detail {

const ValueCodec& bool_codec() {
  static const BoolCodec codec;
  return codec;
}
const ValueCodec& string_codec() {
  static const StringCodec codec;
  return codec;
}
const ValueCodec& float_codec() {
  static const RealCodec<float> codec;
  return codec;
}
const ValueCodec& double_codec() {
  static const RealCodec<double> codec;
  return codec;
}
const ValueCodec& any_codec() {
  static const AnyCodec codec;
  return codec;
}
const ValueCodec& null_codec() {
  static const NullCodec codec;
  return codec;
}
const ValueCodec& typed_codec() {
  static const TypedConfigCodec codec;
  return codec;
}

bool IntegerCodec::accepts(const ConfigNode& node) const {
  if (node.is_int()) return true;
  return node.is_float() && std::abs(node.as_float()) <= kExactIntegers &&
         std::trunc(node.as_float()) == node.as_float();
}

void IntegerCodec::parse(const ConfigNode& node, const std::string& path, Constraints constraints,
                         ParseContext& context, void* value) const {
  if (!accepts(node)) return wrong_type(node, path, context);
  const std::int64_t number = node.is_int() ? node.as_int() : static_cast<std::int64_t>(node.as_float());
  if (number < low_ || number > high_) {
    context.diagnostics.add(path, node.mark(), cat("must be from ", low_, " to ", high_, ", got ", node.describe()));
    return;
  }
  if (check_bounds(static_cast<double>(number), node, path, constraints, context)) store(number, value);
}

ConfigNode IntegerCodec::dump(const void* value, Constraints, const TypeDirectory*) const {
  return ConfigNode(load(value));
}

std::string ListCodec::type_name() const {
  return fixed_size_ < 0 ? cat("list[", element_codec().type_name(), "]")
                         : cat("list[", element_codec().type_name(), " x ", fixed_size_, "]");
}

void ListCodec::parse(const ConfigNode& node, const std::string& path, Constraints constraints, ParseContext& context,
                      void* value) const {
  if (!node.is_list()) return wrong_type(node, path, context);
  const ConfigNode::List& elements = node.as_list();
  if (fixed_size_ >= 0 && elements.size() != static_cast<std::size_t>(fixed_size_)) {
    context.diagnostics.add(path, node.mark(), cat("expected a list of ", fixed_size_, ", got ", node.describe()));
    return;
  }
  check_size(elements.size(), node, path, constraints, context);
  reset(elements.size(), value);
  for (std::size_t i = 0; i < elements.size(); ++i) {
    element_codec().parse(elements[i], join_config_path(path, std::to_string(i)), constraints, context,
                          element(value, i));
  }
}

ConfigNode ListCodec::dump(const void* value, Constraints constraints, const TypeDirectory* types) const {
  ConfigNode out = ConfigNode::list();
  for (std::size_t i = 0; i < size(value); ++i) {
    // `element` serves reading and writing; nothing is written here.
    out.as_list().push_back(element_codec().dump(element(const_cast<void*>(value), i), constraints, types));
  }
  return out;
}

std::string MapCodec::type_name() const { return cat("map[str, ", element_codec().type_name(), "]"); }

void MapCodec::parse(const ConfigNode& node, const std::string& path, Constraints constraints, ParseContext& context,
                     void* value) const {
  if (!node.is_map()) return wrong_type(node, path, context);
  check_size(node.as_map().size(), node, path, constraints, context);
  clear(value);
  for (const ConfigNode::Member& member : node.as_map()) {
    element_codec().parse(member.value, join_config_path(path, member.key), constraints, context,
                          insert(value, member.key));
  }
}

ConfigNode MapCodec::dump(const void* value, Constraints constraints, const TypeDirectory* types) const {
  ConfigNode out = ConfigNode::map();
  for (const auto& [key, element] : members(value)) out.set(key, element_codec().dump(element, constraints, types));
  return out;
}

}  // namespace detail
}  // namespace castor::strategy
