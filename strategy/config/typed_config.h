// A part of a config whose `type` key picks a class from a registry: a model, a dataset, a hook.
//
// The struct that holds it cannot know the class's options, so the subtree is kept as it came, with its path, until a
// TypeTable checks or builds it.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "strategy/config/node.h"

namespace castor::strategy {

class TypeTableBase;

/// `{type: FashionMNIST, root: ...}` as it stands in the config.
struct TypedConfig {
  /// Absent.
  TypedConfig() = default;
  /// `{type: name}`, for defaults.
  explicit TypedConfig(std::string_view name) : type(name), node(ConfigNode::map()) { node.set("type", name); }

  /// False if the config names nothing here.
  bool present() const { return !type.empty(); }

  std::string type;  ///< empty: absent
  ConfigNode node;   ///< the whole map, `type` included
  std::string path;  ///< "train_dataloader.dataset"
};

/// Finds the tables of a registry by the kind of thing that they make. Tables enlist themselves, so a registry declares
/// each in one line.
class TypeDirectory {
 public:
  TypeDirectory() = default;
  TypeDirectory(const TypeDirectory&) = delete;
  TypeDirectory& operator=(const TypeDirectory&) = delete;

  /// Called by a table's constructor; the table lives as long as the directory.
  /// Throws InternalError if the kind is taken.
  void enlist(const TypeTableBase& table);
  /// The table of a kind ("model", "dataset"), or null if there is none.
  const TypeTableBase* find_table(std::string_view kind) const;
  /// All tables in the order of their declaration.
  const std::vector<const TypeTableBase*>& tables() const { return tables_; }

 protected:
  ~TypeDirectory() = default;

 private:
  std::vector<const TypeTableBase*> tables_;
};

}  // namespace castor::strategy
