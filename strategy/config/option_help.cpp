// Walking `describe` for the help, and laying the table out.
//
// Delicate: structs may contain lists of themselves, so the walk stops at a depth.
#include "strategy/config/option_help.h"

#include <algorithm>

#include "core/base/error.h"

namespace castor::strategy {
namespace {

constexpr int kDeepest = 4;

/// A value in a few words: YAML on one line, the name alone for {type: name}, empty for what is too long.
std::string one_line(const ConfigNode& node) {
  if (node.is_map()) {
    const ConfigNode* type = node.find("type");
    if (type != nullptr && node.as_map().size() == 1) return one_line(*type);
    return node.as_map().empty() ? "{}" : "";
  }
  std::string text = to_yaml(node);
  while (text.ends_with('\n')) text.pop_back();
  return text.find('\n') == std::string::npos ? text : "";
}

/// The type as the help names it: parts that a registry makes by their kind, "list[hook]" for "list[{type: ...}]".
std::string shown_type(std::string type, Constraints constraints) {
  constexpr std::string_view kTyped = "{type: ...}";
  if (const Constraint* kind = find_constraint(constraints, Constraint::Kind::kRegistered)) {
    for (std::size_t at = type.find(kTyped); at != std::string::npos; at = type.find(kTyped)) {
      type.replace(at, kTyped.size(), kind->words.front());
    }
  }
  return type;
}

class RowCollector : public FieldVisitor {
 public:
  RowCollector(std::vector<OptionRow>& rows, std::string prefix, int depth)
      : rows_(rows), prefix_(std::move(prefix)), depth_(depth) {}

 protected:
  void on_field(const FieldInfo& info, const ValueCodec& codec, void* member) override {
    const bool is_required = find_constraint(info.constraints, Constraint::Kind::kRequired) != nullptr;
    OptionRow row;
    row.name = prefix_ + std::string(info.name);
    row.type = shown_type(codec.type_name(), info.constraints);
    const ConfigNode value = codec.dump(member, info.constraints, nullptr);
    row.default_text = is_required ? "required" : one_line(value);
    row.doc = info.doc;
    for (const Constraint& constraint : info.constraints) {
      const std::string text = constraint.text();
      if (!text.empty()) row.doc += cat("; ", text);
    }
    rows_.push_back(std::move(row));
    const StructCodec* nested = codec.nested();
    if (nested == nullptr || depth_ >= kDeepest) return;
    const bool direct = nested == &codec;
    const bool in_list = !direct && codec.type_name().starts_with("list[");
    const bool in_map = !direct && codec.type_name().starts_with("map[");
    const std::string prefix = cat(prefix_, info.name, in_list ? "[]." : in_map ? ".*." : ".");
    RowCollector inner(rows_, prefix, depth_ + 1);
    const std::shared_ptr<void> fresh = direct ? nullptr : nested->make();
    nested->visit(inner, direct ? member : fresh.get());
  }
  void on_refused(std::string_view name, std::string_view reason) override {
    rows_.push_back({prefix_ + std::string(name), "", "", std::string(reason), OptionRow::Status::kRefused});
  }
  void on_retired(std::string_view name, const ConfigNode& peers_default, std::string_view reason) override {
    rows_.push_back(
        {prefix_ + std::string(name), "", one_line(peers_default), std::string(reason), OptionRow::Status::kRetired});
  }

 private:
  std::vector<OptionRow>& rows_;
  std::string prefix_;
  int depth_;
};

std::string padded(std::string text, std::size_t columns) {
  if (text.size() < columns) text.append(columns - text.size(), ' ');
  return text;
}

}  // namespace

std::vector<OptionRow> option_rows(const StructCodec& codec) {
  std::vector<OptionRow> rows;
  const std::shared_ptr<void> defaults = codec.make();
  RowCollector collector(rows, "", 0);
  codec.visit(collector, defaults.get());
  return rows;
}

std::string wrap_text(const std::string& text, int used, int indent, int width) {
  std::string out;
  int column = used;
  std::size_t begin = 0;
  bool line_is_empty = true;
  while (begin < text.size()) {
    const std::size_t end = std::min(text.find(' ', begin), text.size());
    const int length = static_cast<int>(end - begin);
    if (!line_is_empty && column + 1 + length > width) {
      out += cat("\n", std::string(static_cast<std::size_t>(indent), ' '));
      column = indent;
      line_is_empty = true;
    }
    if (!line_is_empty) {
      out += ' ';
      ++column;
    }
    out += text.substr(begin, end - begin);
    column += length;
    line_is_empty = false;
    begin = end + 1;
  }
  return out;
}

std::string format_options(const std::vector<OptionRow>& rows, int width) {
  constexpr std::size_t kWidestName = 40;
  constexpr std::size_t kWidestType = 24;
  constexpr std::size_t kWidestDefault = 20;
  std::size_t name_columns = 4;
  std::size_t type_columns = 4;
  std::size_t default_columns = 7;
  bool any = false;
  for (const OptionRow& row : rows) {
    if (row.status != OptionRow::Status::kOption) continue;
    any = true;
    name_columns = std::max(name_columns, std::min(row.name.size(), kWidestName));
    type_columns = std::max(type_columns, std::min(row.type.size(), kWidestType));
    default_columns = std::max(default_columns, std::min(row.default_text.size(), kWidestDefault));
  }
  std::string out;
  const auto add_line = [&](const std::string& name, const std::string& type, const std::string& default_text,
                            const std::string& doc) {
    const int indent = static_cast<int>(2 + name_columns + 2 + type_columns + 2 + default_columns + 2);
    std::string line = "  " + padded(name, name_columns) + "  " + padded(type, type_columns) + "  " +
                       padded(default_text, default_columns) + "  ";
    line += wrap_text(doc, static_cast<int>(line.size()), indent, std::max(width, indent + 30));
    while (line.ends_with(' ')) line.pop_back();
    out += line + "\n";
  };
  if (any) {
    add_line("name", "type", "default", "what");
    for (const OptionRow& row : rows) {
      if (row.status == OptionRow::Status::kOption) add_line(row.name, row.type, row.default_text, row.doc);
    }
  } else {
    out += "  no options\n";
  }
  for (const OptionRow& row : rows) {
    if (row.status == OptionRow::Status::kOption) continue;
    const std::string lead = row.status == OptionRow::Status::kRefused
                                 ? cat("  ", row.name, ": refused: ")
                                 : cat("  ", row.name, ": retired, only ", row.default_text, ": ");
    out += lead + wrap_text(row.doc, static_cast<int>(lead.size()), 4, width) + "\n";
  }
  return out;
}

}  // namespace castor::strategy
