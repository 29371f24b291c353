// Trees of JSON: built from the scanner's events (json_scan.cpp), written canonically, and read through cursors.
//
// Delicate: objects are filled through the vector that an ordered_map is, because its own insertion searches all
// earlier keys: an object of 100 000 members would take minutes.
#include "core/base/json.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "core/base/error.h"
#include "core/base/file.h"

namespace castor {
namespace {

/// Builds the tree. Open containers are addressed by pointer: a child's address is stable until its parent grows, and
/// the parent does not grow while the child is open.
class TreeBuilder : public JsonEvents {
 public:
  explicit TreeBuilder(Json& root) : root_(root) {}
  void on_null(const JsonPosition&) override { add(Json(nullptr)); }
  void on_bool(bool value, const JsonPosition&) override { add(Json(value)); }
  void on_integer(std::int64_t value, const JsonPosition&) override { add(Json(value)); }
  void on_large_integer(std::uint64_t value, const JsonPosition&) override { add(Json(value)); }
  void on_float(double value, const std::string&, const JsonPosition&) override { add(Json(value)); }
  void on_string(std::string& value, const JsonPosition&) override { add(Json(std::move(value))); }
  void on_object_begin(const JsonPosition&) override { open_.push_back(add(Json::object())); }
  void on_key(std::string& key, const JsonPosition&) override { key_ = std::move(key); }
  void on_object_end() override { open_.pop_back(); }
  void on_array_begin(const JsonPosition&) override { open_.push_back(add(Json::array())); }
  void on_array_end() override { open_.pop_back(); }

 private:
  Json* add(Json value) {
    if (open_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    Json& parent = *open_.back();
    if (parent.is_array()) {
      auto& elements = parent.get_ref<Json::array_t&>();
      elements.push_back(std::move(value));
      return &elements.back();
    }
    std::vector<std::pair<const std::string, Json>>& members = parent.get_ref<Json::object_t&>();
    members.emplace_back(std::move(key_), std::move(value));
    return &members.back().second;
  }

  Json& root_;
  std::vector<Json*> open_;
  std::string key_;
};

void append_newline(std::string& out, int indent, int level) {
  if (indent < 0) return;
  out += '\n';
  out.append(static_cast<std::size_t>(indent) * static_cast<std::size_t>(level), ' ');
}

void append_json(const Json& value, int indent, int level, std::string& out) {
  switch (value.type()) {
    case Json::value_t::null:
    case Json::value_t::discarded:
    case Json::value_t::binary:
      out += "null";
      return;
    case Json::value_t::boolean:
      out += value.get<bool>() ? "true" : "false";
      return;
    case Json::value_t::number_integer:
      out += std::to_string(value.get<std::int64_t>());
      return;
    case Json::value_t::number_unsigned:
      out += std::to_string(value.get<std::uint64_t>());
      return;
    case Json::value_t::number_float: {
      const double number = value.get<double>();
      out += std::isfinite(number) ? dump_double(number) : quote_json(dump_double(number));
      return;
    }
    case Json::value_t::string: {
      const auto& text = value.get_ref<const std::string&>();
      std::size_t bad = 0;
      if (!is_utf8(text, &bad)) throw FormatError("dump_json: a string is not UTF-8", "", bad);
      out += quote_json(text);
      return;
    }
    case Json::value_t::array: {
      out += '[';
      bool first = true;
      for (const Json& element : value.get_ref<const Json::array_t&>()) {
        if (!first) out += ',';
        first = false;
        append_newline(out, indent, level + 1);
        append_json(element, indent, level + 1, out);
      }
      if (!first) append_newline(out, indent, level);
      out += ']';
      return;
    }
    case Json::value_t::object: {
      out += '{';
      bool first = true;
      for (const auto& [key, member] : value.get_ref<const Json::object_t&>()) {
        if (!first) out += ',';
        first = false;
        append_newline(out, indent, level + 1);
        out += quote_json(key);
        out += indent < 0 ? ":" : ": ";
        append_json(member, indent, level + 1, out);
      }
      if (!first) append_newline(out, indent, level);
      out += '}';
      return;
    }
  }
}

/// What a value is, for "got ...". Long strings are cut.
std::string describe_value(const Json& value) {
  if (value.is_object()) return cat("an object of ", value.size(), " members");
  if (value.is_array()) return cat("an array of ", value.size(), " elements");
  if (value.is_string()) {
    const auto& text = value.get_ref<const std::string&>();
    return "string " + quote_json(text.size() <= 60 ? text : text.substr(0, 57) + "...");
  }
  std::string text;
  append_json(value, -1, 0, text);
  return text;
}

}  // namespace

Json parse_json(std::string_view text, const std::string& file, const JsonLimits& limits) {
  Json root;
  TreeBuilder builder(root);
  scan_json(text, file, builder, limits);
  return root;
}

Json read_json_file(const std::string& path, const JsonLimits& limits) {
  return parse_json(read_text_file(path, limits.max_bytes), path, limits);
}

std::string dump_json(const Json& value, int indent) {
  std::string out;
  append_json(value, indent, 0, out);
  return out;
}

JsonCursor::JsonCursor(const Json& root, std::string file) : value_(&root), file_(std::move(file)) {}

JsonCursor::JsonCursor(const Json* value, std::string file, std::string place)
    : value_(value), file_(std::move(file)), place_(std::move(place)) {}

std::string JsonCursor::child_place(std::string_view name) const {
  return place_.empty() ? std::string(name) : cat(place_, "/", name);
}

void JsonCursor::fail(const std::string& text) const {
  throw FormatError(cat(file_, ": at ", place_.empty() ? "the root" : place_, ": ", text), file_, 0);
}

JsonCursor JsonCursor::at(std::string_view key) const {
  if (!value_->is_object())
    fail(cat("expected an object with key ", quote_json(key), ", got ", describe_value(*value_)));
  const auto& members = value_->get_ref<const Json::object_t&>();
  for (const auto& [name, member] : members) {
    if (name == key) return JsonCursor(&member, file_, child_place(key));
  }
  fail(cat("key ", quote_json(key), " is missing"));
}

JsonCursor JsonCursor::at(std::size_t index) const {
  if (!value_->is_array()) fail(cat("expected an array, got ", describe_value(*value_)));
  if (index >= value_->size()) fail(cat("expected more than ", index, " elements, got ", value_->size()));
  return JsonCursor(&(*value_)[index], file_, child_place(std::to_string(index)));
}

bool JsonCursor::has(std::string_view key) const {
  if (!value_->is_object()) fail(cat("expected an object, got ", describe_value(*value_)));
  for (const auto& [name, member] : value_->get_ref<const Json::object_t&>()) {
    if (name == key) return true;
  }
  return false;
}

std::size_t JsonCursor::size() const {
  if (!value_->is_structured()) fail(cat("expected an array or object, got ", describe_value(*value_)));
  return value_->size();
}

std::vector<std::pair<std::string, JsonCursor>> JsonCursor::members() const {
  if (!value_->is_object()) fail(cat("expected an object, got ", describe_value(*value_)));
  std::vector<std::pair<std::string, JsonCursor>> out;
  out.reserve(value_->size());
  for (const auto& [name, member] : value_->get_ref<const Json::object_t&>()) {
    out.emplace_back(name, JsonCursor(&member, file_, child_place(name)));
  }
  return out;
}

bool JsonCursor::is_null() const { return value_->is_null(); }

bool JsonCursor::boolean() const {
  if (!value_->is_boolean()) fail(cat("expected true or false, got ", describe_value(*value_)));
  return value_->get<bool>();
}

std::int64_t JsonCursor::integer(std::int64_t low, std::int64_t high) const {
  const bool too_large = value_->is_number_unsigned() &&
                         value_->get<std::uint64_t>() > std::uint64_t{std::numeric_limits<std::int64_t>::max()};
  if (value_->is_number_integer() && !too_large) {
    const auto number = value_->get<std::int64_t>();
    if (number >= low && number <= high) return number;
  }
  fail(cat("expected an integer from ", low, " to ", high, ", got ", describe_value(*value_)));
}

std::uint64_t JsonCursor::unsigned_integer(std::uint64_t high) const {
  if (value_->is_number_integer() && (value_->is_number_unsigned() || value_->get<std::int64_t>() >= 0)) {
    const auto number = value_->get<std::uint64_t>();
    if (number <= high) return number;
  }
  fail(cat("expected an integer from 0 to ", high, ", got ", describe_value(*value_)));
}

double JsonCursor::number() const {
  if (value_->is_number()) return value_->get<double>();
  if (value_->is_string()) {
    const auto& text = value_->get_ref<const std::string&>();
    if (text == "nan") return std::numeric_limits<double>::quiet_NaN();
    if (text == "inf") return std::numeric_limits<double>::infinity();
    if (text == "-inf") return -std::numeric_limits<double>::infinity();
  }
  fail(cat("expected a number, got ", describe_value(*value_)));
}

const std::string& JsonCursor::string() const {
  if (!value_->is_string()) fail(cat("expected a string, got ", describe_value(*value_)));
  return value_->get_ref<const std::string&>();
}

}  // namespace castor
