// Reading a map into a struct and writing it back, by walking the struct's `describe`.
//
// Delicate: unknown keys can only be told once `describe` has named all known ones, so the walk collects names first. A
// check between fields runs only if this struct brought no mistake so far: it may divide by what a bound forbids to be
// 0.
#include <algorithm>

#include "core/base/error.h"
#include "core/base/json.h"
#include "strategy/config/codec.h"

namespace castor::strategy {
namespace {

class StructParser : public FieldVisitor {
 public:
  StructParser(const ConfigNode& node, const std::string& path, ParseContext& context)
      : node_(node), path_(path), context_(context), mistakes_before_(context.diagnostics.size()) {}

  /// Reports keys that `describe` did not name.
  ///   typed   the key `type` is not an option
  void finish(bool typed) {
    for (const ConfigNode::Member& member : node_.as_map()) {
      if (typed && member.key == "type") continue;
      if (std::find(options_.begin(), options_.end(), member.key) != options_.end()) continue;
      if (std::find(others_.begin(), others_.end(), member.key) != others_.end()) continue;
      const std::string suggestion = suggest_name(member.key, options_);
      std::string text = "unknown key";
      if (!suggestion.empty()) text += "; " + suggestion;
      if (typed && nearest_name(member.key, options_).empty() && is_inherited(member)) {
        text +=
            "; it comes from another place than `type` does: write `_delete_: true` beside `type` to drop "
            "inherited options";
      }
      context_.diagnostics.add(join_config_path(path_, member.key), member.mark, text);
    }
  }

 protected:
  void on_field(const FieldInfo& info, const ValueCodec& codec, void* member) override {
    add_name(options_, info.name);
    const std::string path = join_config_path(path_, info.name);
    const ConfigNode* value = node_.find(info.name);
    if (value != nullptr) {
      codec.parse(*value, path, info.constraints, context_, member);
    } else if (find_constraint(info.constraints, Constraint::Kind::kRequired) != nullptr) {
      context_.diagnostics.add(path, node_.mark(), cat("missing: ", codec.type_name(), ", ", info.doc));
    }
  }

  void on_refused(std::string_view name, std::string_view reason) override {
    add_name(others_, name);
    const ConfigNode::Member* member = node_.find_member(name);
    if (member != nullptr && !member->value.is_null()) {
      context_.diagnostics.add(join_config_path(path_, name), member->mark, std::string(reason));
    }
  }

  void on_retired(std::string_view name, const ConfigNode& peers_default, std::string_view reason) override {
    add_name(others_, name);
    const ConfigNode::Member* member = node_.find_member(name);
    if (member != nullptr && !member->value.same_value(peers_default)) {
      context_.diagnostics.add(join_config_path(path_, name), member->mark,
                               cat("has no meaning here (", reason, "); only ", peers_default.describe(),
                                   " is accepted, got ", member->value.describe()));
    }
  }

  bool wants_checks() const override { return context_.diagnostics.size() == mistakes_before_ + broken_checks_; }

  void on_broken(std::string_view name, std::string_view text) override {
    const ConfigNode::Member* member = node_.find_member(name);
    const std::size_t before = context_.diagnostics.size();
    context_.diagnostics.add(join_config_path(path_, name), member != nullptr ? member->mark : node_.mark(),
                             std::string(text));
    broken_checks_ += context_.diagnostics.size() - before;
  }

 private:
  void add_name(std::vector<std::string>& names, std::string_view name) {
    const auto named = [name](const std::vector<std::string>& list) {
      return std::find(list.begin(), list.end(), name) != list.end();
    };
    if (named(options_) || named(others_)) throw InternalError(cat("config: describe names ", name, " twice"));
    names.emplace_back(name);
  }

  bool is_inherited(const ConfigNode::Member& member) const {
    const ConfigNode::Member* type = node_.find_member("type");
    if (type == nullptr || type->value.mark().file == nullptr || member.mark.file == nullptr) return false;
    return *type->value.mark().file != *member.mark.file;
  }

  const ConfigNode& node_;
  const std::string& path_;
  ParseContext& context_;
  std::size_t mistakes_before_;
  std::size_t broken_checks_ = 0;  ///< mistakes that checks added
  std::vector<std::string> options_;
  std::vector<std::string> others_;  ///< refused and retired
};

class StructDumper : public FieldVisitor {
 public:
  explicit StructDumper(const TypeDirectory* types) : types_(types) {}
  ConfigNode take() { return std::move(out_); }

 protected:
  void on_field(const FieldInfo& info, const ValueCodec& codec, void* member) override {
    out_.set(std::string(info.name), codec.dump(member, info.constraints, types_));
  }
  void on_refused(std::string_view, std::string_view) override {}
  void on_retired(std::string_view, const ConfigNode&, std::string_view) override {}

 private:
  const TypeDirectory* types_;
  ConfigNode out_ = ConfigNode::map();
};

}  // namespace

void StructCodec::parse(const ConfigNode& node, const std::string& path, Constraints, ParseContext& context,
                        void* value) const {
  if (!node.is_map()) return wrong_type(node, path, context);
  StructParser parser(node, path, context);
  visit(parser, value);
  parser.finish(/*typed=*/false);
}

void StructCodec::parse_typed(const ConfigNode& node, const std::string& path, ParseContext& context,
                              void* value) const {
  StructParser parser(node, path, context);
  visit(parser, value);
  parser.finish(/*typed=*/true);
}

ConfigNode StructCodec::dump(const void* value, Constraints, const TypeDirectory* types) const {
  StructDumper dumper(types);
  // `describe` takes the struct as mutable because parsing fills it; the dumper only reads.
  visit(dumper, const_cast<void*>(value));
  return dumper.take();
}

}  // namespace castor::strategy
