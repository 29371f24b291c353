// Checking, completing and explaining configs by their `type`.
//
// Delicate: a short name is expanded before anything else, and the user's options are laid over its own; the marks stay
// the user's, so a mistake is reported where it was written.
#include "strategy/type_table.h"

#include <algorithm>

#include "core/base/error.h"
#include "core/base/json.h"
#include "strategy/config/diagnostics.h"
#include "strategy/config/option_help.h"

namespace castor::strategy {
namespace {

std::vector<std::string> usable_names(const std::vector<TypeTableBase::Entry>& entries) {
  std::vector<std::string> names;
  for (const TypeTableBase::Entry& entry : entries) {
    if (entry.refusal.empty()) names.push_back(entry.name);
  }
  return names;
}

}  // namespace

void TypeDirectory::enlist(const TypeTableBase& table) {
  if (find_table(table.kind()) != nullptr) throw InternalError(cat("registry: two tables of kind ", table.kind()));
  tables_.push_back(&table);
}

const TypeTableBase* TypeDirectory::find_table(std::string_view kind) const {
  for (const TypeTableBase* table : tables_) {
    if (table->kind() == kind) return table;
  }
  return nullptr;
}

TypeTableBase::TypeTableBase(std::string kind, TypeDirectory& directory)
    : kind_(std::move(kind)), directory_(directory) {
  directory.enlist(*this);
}

const TypeTableBase::Entry* TypeTableBase::find(std::string_view name) const {
  const auto found =
      std::find_if(entries_.begin(), entries_.end(), [name](const Entry& entry) { return entry.name == name; });
  return found == entries_.end() ? nullptr : &*found;
}

std::string TypeTableBase::names_text() const {
  std::string out;
  for (const std::string& name : usable_names(entries_)) out += cat(out.empty() ? "known: " : ", ", name);
  return out.empty() ? cat("no ", kind_, " is registered") : out;
}

void TypeTableBase::add_entry(Entry entry) {
  if (entry.name.empty()) throw ConfigError(cat("registry: a ", kind_, " needs a name"), "");
  if (find(entry.name) != nullptr) {
    throw ConfigError(cat("registry: two things called ", quote_json(entry.name), " among the ", kind_,
                          "s; register the second under another name"),
                      "");
  }
  entries_.push_back(std::move(entry));
}

void TypeTableBase::refuse(std::string name, std::string reason) {
  add_entry({std::move(name), "", nullptr, std::move(reason), {}});
}

void TypeTableBase::alias(std::string name, std::string doc, ConfigNode stands_for) {
  const ConfigNode* type = stands_for.find("type");
  if (type == nullptr || !type->is_string()) {
    throw ConfigError(cat("registry: ", quote_json(name), " must stand for a map with `type`"), "");
  }
  add_entry({std::move(name), std::move(doc), nullptr, "", std::move(stands_for)});
}

TypedConfig TypeTableBase::expanded(const TypedConfig& typed) const {
  const Entry* entry = find(typed.type);
  if (entry == nullptr || !entry->stands_for.is_map()) return typed;
  TypedConfig out = typed;
  out.node = entry->stands_for;
  out.node.set_mark(typed.node.mark());
  out.type = entry->stands_for.find("type")->as_string();
  for (const ConfigNode::Member& member : typed.node.as_map()) {
    if (member.key == "type") continue;
    out.node.erase(member.key);
    out.node.as_map().push_back(member);
  }
  return out;
}

std::string TypeTableBase::unknown_text(std::string_view name) const {
  const std::vector<std::string> names = usable_names(entries_);
  const std::string nearest = nearest_name(name, names);
  std::string out = cat("unknown ", kind_, " ", quote_json(name));
  if (!nearest.empty()) return cat(out, "; did you mean ", quote_json(nearest), "? ", names_text());
  for (const TypeTableBase* other : directory_.tables()) {
    if (other != this && other->find(name) != nullptr) out += cat("; that is a ", other->kind());
  }
  return cat(out, "; ", names_text());
}

TypeTableBase::Parsed TypeTableBase::parse(const TypedConfig& given, Diagnostics& diagnostics) const {
  const TypedConfig typed = expanded(given);
  const std::string type_path = join_config_path(typed.path, "type");
  const ConfigNode* type_node = given.node.find("type");
  const SourceMark& mark = type_node == nullptr ? given.node.mark() : type_node->mark();
  if (!typed.present()) {
    diagnostics.add(typed.path, mark, cat("missing: a map whose `type` names a ", kind_, "; ", names_text()));
    return {};
  }
  const Entry* entry = find(typed.type);
  if (entry == nullptr) {
    diagnostics.add(type_path, mark, unknown_text(typed.type));
    return {};
  }
  if (entry->options == nullptr) {
    diagnostics.add(type_path, mark, cat(entry->name, ": ", entry->refusal));
    return {};
  }
  const std::size_t mistakes_before = diagnostics.size();
  ParseContext context{diagnostics, &directory_};
  std::shared_ptr<void> options = entry->options->make();
  entry->options->parse_typed(typed.node, typed.path, context, options.get());
  if (diagnostics.size() != mistakes_before) options.reset();
  return {static_cast<std::size_t>(entry - entries_.data()), std::move(options)};
}

TypeTableBase::Parsed TypeTableBase::parse_or_throw(const TypedConfig& typed) const {
  Diagnostics diagnostics;
  Parsed parsed = parse(typed, diagnostics);
  diagnostics.throw_if_any(typed.path.empty() ? kind_ : typed.path);
  return parsed;
}

void TypeTableBase::check(const TypedConfig& typed, Diagnostics& diagnostics) const { parse(typed, diagnostics); }

ConfigNode TypeTableBase::effective(const TypedConfig& typed) const {
  Diagnostics diagnostics;
  const Parsed parsed = parse(typed, diagnostics);
  if (parsed.options == nullptr) return typed.node;
  const Entry& entry = entries_[parsed.index];
  ConfigNode out = ConfigNode::map();
  out.set("type", entry.name);
  ConfigNode options = entry.options->dump(parsed.options.get(), {}, &directory_);
  for (ConfigNode::Member& member : options.as_map()) out.as_map().push_back(std::move(member));
  return out;
}

std::string TypeTableBase::help(std::string_view name, int width) const {
  const Entry* entry = find(name);
  if (entry == nullptr) throw ConfigError(unknown_text(name), "");
  if (!entry->refusal.empty()) return cat(entry->name, " (", kind_, "): refused: ", entry->refusal, "\n");
  std::string out = cat(entry->name, " (", kind_, "): ", entry->doc, "\n");
  if (entry->options == nullptr) return cat(out, "short for:\n", to_yaml(entry->stands_for));
  return out + format_options(option_rows(*entry->options), width);
}

}  // namespace castor::strategy
