// One table of a registry: the types of one kind (models, datasets, hooks, ...) by the name that `type:` gives.
//
//   TypeTable<std::unique_ptr<Dataset>(const DataContext&)> datasets{"dataset", *this};
//   datasets.add<FashionMnistConfig>("FashionMNIST", "28x28 grey images of clothes, 10 classes", make_fashion_mnist);
//
// The table knows each type's config struct, so it can check, complete and explain a config without building anything.
// Delicate: tables are filled by plain calls (builtins.cpp and the program's main), never by static initialisers, which
// a linker drops from static libraries.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "strategy/config/codec.h"
#include "strategy/config/typed_config.h"

namespace castor::strategy {

/// Options of a type that has none.
struct NoOptions {};
template <class V>
void describe(V&, NoOptions&) {}

/// What a table can do without knowing what it makes.
class TypeTableBase {
 public:
  /// One name of the table.
  struct Entry {
    std::string name;
    std::string doc;                       ///< one line
    const StructCodec* options = nullptr;  ///< null: refused, or short for something else
    std::string refusal;                   ///< why, if the name is known but refused
    ConfigNode stands_for;                 ///< a map with `type` and options, if the name is short for them
  };

  TypeTableBase(const TypeTableBase&) = delete;
  TypeTableBase& operator=(const TypeTableBase&) = delete;

  /// "model", "dataset": the word for one of its things.
  const std::string& kind() const { return kind_; }
  /// In the order of registration.
  const std::vector<Entry>& entries() const { return entries_; }
  /// The entry of a name, or null.
  const Entry* find(std::string_view name) const;
  /// The usable names, for messages: "known: A, B, C".
  std::string names_text() const;

  /// Makes `name` known but refused with a reason, as for a peer's type that is not in this version.
  /// Throws ConfigError if the name is taken.
  void refuse(std::string name, std::string reason);
  /// Makes `name` short for a type with options, as "gemini" for {type: GeminiPlugin, precision: bf16}. Options written
  /// beside the short name win.
  /// Throws ConfigError if the name is taken or `stands_for` is no map with a `type`.
  void alias(std::string name, std::string doc, ConfigNode stands_for);

  /// Adds every mistake of the type's name and options, parts chosen by `type` inside included.
  void check(const TypedConfig& typed, Diagnostics& diagnostics) const;
  /// The whole map: `type` first, then every option, defaults included. A config with mistakes comes back as it is.
  ConfigNode effective(const TypedConfig& typed) const;
  /// The type's doc and the table of its options.
  /// Throws ConfigError for an unknown name, naming the nearest.
  std::string help(std::string_view name, int width = 110) const;

 protected:
  TypeTableBase(std::string kind, TypeDirectory& directory);
  ~TypeTableBase() = default;

  /// Throws ConfigError if the name is empty or taken.
  void add_entry(Entry entry);

  /// A config read and found good.
  struct Parsed {
    std::size_t index = 0;          ///< of the entry
    std::shared_ptr<void> options;  ///< the type's config struct; null after a mistake
  };
  Parsed parse(const TypedConfig& typed, Diagnostics& diagnostics) const;
  /// As above; throws ConfigError with all mistakes.
  Parsed parse_or_throw(const TypedConfig& typed) const;

 private:
  /// The type and options behind a short name; other configs as they are.
  TypedConfig expanded(const TypedConfig& typed) const;
  std::string unknown_text(std::string_view name) const;

  std::string kind_;
  const TypeDirectory& directory_;
  std::vector<Entry> entries_;
};

template <class Signature>
class TypeTable;

/// A table whose types are made by functions of (options, context...).
///   Result    what `build` returns, usually a std::unique_ptr or std::shared_ptr of a class that may be incomplete
///   here Context   what every factory of this kind needs from the run
template <class Result, class... Context>
class TypeTable<Result(Context...)> : public TypeTableBase {
 public:
  /// An empty table. Its kind must be new in the directory, which is the registry that holds the table.
  TypeTable(std::string kind, TypeDirectory& directory) : TypeTableBase(std::move(kind), directory) {}

  /// Adds a type.
  ///   Options   its config struct, with `describe`
  ///   name      what `type:` gives
  ///   doc       one line for the help
  ///   factory   callable as Result(const Options&, Context...)
  /// Returns the table, so that calls can be chained. Throws ConfigError if the name is taken.
  template <Described Options, class Factory>
  TypeTable& add(std::string name, std::string doc, Factory factory) {
    add_entry({std::move(name), std::move(doc), &struct_codec_of<Options>(), "", {}});
    makers_.resize(entries().size());
    makers_.back() = [factory = std::move(factory)](const void* options, Context... context) -> Result {
      return factory(*static_cast<const Options*>(options), std::forward<Context>(context)...);
    };
    return *this;
  }

  /// Makes what the config describes.
  /// Throws ConfigError with all mistakes of the config; what the factory throws passes through.
  Result build(const TypedConfig& typed, Context... context) const {
    const Parsed parsed = parse_or_throw(typed);
    return makers_[parsed.index](parsed.options.get(), std::forward<Context>(context)...);
  }

 private:
  std::vector<std::function<Result(const void*, Context...)>> makers_;  ///< by entry; empty for refused and short names
};

}  // namespace castor::strategy
