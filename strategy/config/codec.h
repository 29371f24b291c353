// How a value of each member type is read from a config, written back and named.
//
// One small object a type, found by `codec_of<T>()` and composed: the codec of vector<optional<int>> asks that of
// optional<int>. Everything that is the same for all element types is in codec.cpp behind void pointers, so that a
// config struct costs its users little to compile. Delicate: parse may leave a half-filled value behind a mistake;
// whoever parses must look at the diagnostics before using the value.
#pragma once

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "strategy/config/diagnostics.h"
#include "strategy/config/field.h"
#include "strategy/config/typed_config.h"

namespace castor::strategy {

class TypeDirectory;
class StructCodec;

/// What a parse works with.
struct ParseContext {
  Diagnostics& diagnostics;
  const TypeDirectory* types = nullptr;  ///< null: `registered` is not checked
};

/// Reading and writing of one type. `value` always points to an object of that type.
class ValueCodec {
 public:
  ValueCodec() = default;
  ValueCodec(const ValueCodec&) = delete;
  ValueCodec& operator=(const ValueCodec&) = delete;
  virtual ~ValueCodec() = default;

  /// For help and errors: "int", "list[str]", "float or null".
  virtual std::string type_name() const = 0;
  /// True if a node has the shape of this type; its contents may still be wrong.
  virtual bool accepts(const ConfigNode& node) const = 0;
  /// Reads `node` into `value`. Mistakes go to the context's diagnostics.
  ///   path   of the node in the config
  virtual void parse(const ConfigNode& node, const std::string& path, Constraints constraints, ParseContext& context,
                     void* value) const = 0;
  /// The value as a node that parses back to it.
  ///   types  null: options of a TypedConfig that were left out stay left out
  virtual ConfigNode dump(const void* value, Constraints constraints, const TypeDirectory* types) const = 0;
  /// The struct whose fields the help lists under this one, or null.
  virtual const StructCodec* nested() const { return nullptr; }

 protected:
  /// Adds "expected <type>, got <node>".
  void wrong_type(const ConfigNode& node, const std::string& path, ParseContext& context) const;
};

/// Codec of a struct with `describe`.
class StructCodec : public ValueCodec {
 public:
  std::string type_name() const override { return "map"; }
  bool accepts(const ConfigNode& node) const override { return node.is_map(); }
  void parse(const ConfigNode& node, const std::string& path, Constraints constraints, ParseContext& context,
             void* value) const override;
  ConfigNode dump(const void* value, Constraints constraints, const TypeDirectory* types) const override;
  const StructCodec* nested() const override { return this; }

  /// As parse, for a map in which `type` is not an option of the struct but what selected it.
  void parse_typed(const ConfigNode& node, const std::string& path, ParseContext& context, void* value) const;
  /// Calls the struct's `describe`.
  virtual void visit(FieldVisitor& visitor, void* value) const = 0;
  /// A struct with its defaults.
  virtual std::shared_ptr<void> make() const = 0;
};

/// A type that has `describe`.
template <class T>
concept Described = std::is_class_v<T> && requires(FieldVisitor& visitor, T& value) {
  describe(visitor, value);
};

namespace detail {

/// The codecs of the types that have but one.
const ValueCodec& bool_codec();
const ValueCodec& string_codec();
const ValueCodec& float_codec();   // float
const ValueCodec& double_codec();  // double
const ValueCodec& any_codec();     // ConfigNode
const ValueCodec& null_codec();    // std::monostate: null, for variants
const ValueCodec& typed_codec();   // TypedConfig

class IntegerCodec : public ValueCodec {
 public:
  IntegerCodec(std::int64_t low, std::int64_t high) : low_(low), high_(high) {}
  std::string type_name() const override { return "int"; }
  bool accepts(const ConfigNode& node) const override;
  void parse(const ConfigNode& node, const std::string& path, Constraints constraints, ParseContext& context,
             void* value) const override;
  ConfigNode dump(const void* value, Constraints constraints, const TypeDirectory* types) const override;

 protected:
  virtual void store(std::int64_t number, void* value) const = 0;
  virtual std::int64_t load(const void* value) const = 0;

 private:
  std::int64_t low_;
  std::int64_t high_;
};

template <std::integral T>
class IntegerCodecOf : public IntegerCodec {
 public:
  IntegerCodecOf()
      : IntegerCodec(static_cast<std::int64_t>(std::numeric_limits<T>::min()),
                     std::cmp_less(std::numeric_limits<std::int64_t>::max(), std::numeric_limits<T>::max())
                         ? std::numeric_limits<std::int64_t>::max()
                         : static_cast<std::int64_t>(std::numeric_limits<T>::max())) {}

 protected:
  void store(std::int64_t number, void* value) const override { *static_cast<T*>(value) = static_cast<T>(number); }
  std::int64_t load(const void* value) const override {
    return static_cast<std::int64_t>(*static_cast<const T*>(value));
  }
};

/// vector and array.
class ListCodec : public ValueCodec {
 public:
  /// fixed_size: of an array; negative for a vector.
  explicit ListCodec(std::int64_t fixed_size) : fixed_size_(fixed_size) {}
  std::string type_name() const override;
  bool accepts(const ConfigNode& node) const override { return node.is_list(); }
  void parse(const ConfigNode& node, const std::string& path, Constraints constraints, ParseContext& context,
             void* value) const override;
  ConfigNode dump(const void* value, Constraints constraints, const TypeDirectory* types) const override;
  const StructCodec* nested() const override { return element_codec().nested(); }

 protected:
  virtual const ValueCodec& element_codec() const = 0;
  virtual std::size_t size(const void* value) const = 0;
  virtual void reset(std::size_t size, void* value) const = 0;
  virtual void* element(void* value, std::size_t index) const = 0;

 private:
  std::int64_t fixed_size_;
};

template <class List, std::int64_t kFixedSize>
class ListCodecOf : public ListCodec {
 public:
  ListCodecOf() : ListCodec(kFixedSize) {}

 protected:
  const ValueCodec& element_codec() const override { return codec_of<typename List::value_type>(); }
  std::size_t size(const void* value) const override { return static_cast<const List*>(value)->size(); }
  void reset(std::size_t size, void* value) const override {
    List& list = *static_cast<List*>(value);
    if constexpr (kFixedSize < 0) {
      list.clear();
      list.resize(size);
    }
  }
  void* element(void* value, std::size_t index) const override { return &(*static_cast<List*>(value))[index]; }
};

class MapCodec : public ValueCodec {
 public:
  std::string type_name() const override;
  bool accepts(const ConfigNode& node) const override { return node.is_map(); }
  void parse(const ConfigNode& node, const std::string& path, Constraints constraints, ParseContext& context,
             void* value) const override;
  ConfigNode dump(const void* value, Constraints constraints, const TypeDirectory* types) const override;
  const StructCodec* nested() const override { return element_codec().nested(); }

 protected:
  virtual const ValueCodec& element_codec() const = 0;
  virtual void clear(void* value) const = 0;
  virtual void* insert(void* value, const std::string& key) const = 0;
  virtual std::vector<std::pair<std::string, const void*>> members(const void* value) const = 0;
};

template <class T>
class MapCodecOf : public MapCodec {
 protected:
  using Map = std::map<std::string, T>;
  const ValueCodec& element_codec() const override { return codec_of<T>(); }
  void clear(void* value) const override { static_cast<Map*>(value)->clear(); }
  void* insert(void* value, const std::string& key) const override { return &(*static_cast<Map*>(value))[key]; }
  std::vector<std::pair<std::string, const void*>> members(const void* value) const override {
    std::vector<std::pair<std::string, const void*>> out;
    for (const auto& [key, element] : *static_cast<const Map*>(value)) out.emplace_back(key, &element);
    return out;
  }
};

template <class T>
class OptionalCodec : public ValueCodec {
 public:
  std::string type_name() const override { return codec_of<T>().type_name() + " or null"; }
  bool accepts(const ConfigNode& node) const override { return node.is_null() || codec_of<T>().accepts(node); }
  void parse(const ConfigNode& node, const std::string& path, Constraints constraints, ParseContext& context,
             void* value) const override {
    auto& held = *static_cast<std::optional<T>*>(value);
    if (node.is_null()) {
      held.reset();
      return;
    }
    if (!codec_of<T>().accepts(node)) return wrong_type(node, path, context);
    if (!held) held.emplace();
    codec_of<T>().parse(node, path, constraints, context, &*held);
  }
  ConfigNode dump(const void* value, Constraints constraints, const TypeDirectory* types) const override {
    const auto& held = *static_cast<const std::optional<T>*>(value);
    return held ? codec_of<T>().dump(&*held, constraints, types) : ConfigNode();
  }
  const StructCodec* nested() const override { return codec_of<T>().nested(); }
};

/// The first alternative whose shape fits is taken.
template <class... Ts>
class VariantCodec : public ValueCodec {
 public:
  std::string type_name() const override {
    std::string out;
    ((out += (out.empty() ? "" : " or ") + codec_of<Ts>().type_name()), ...);
    return out;
  }
  bool accepts(const ConfigNode& node) const override { return (codec_of<Ts>().accepts(node) || ...); }
  void parse(const ConfigNode& node, const std::string& path, Constraints constraints, ParseContext& context,
             void* value) const override {
    auto& held = *static_cast<std::variant<Ts...>*>(value);
    const bool taken = try_each(node, path, constraints, context, held, std::index_sequence_for<Ts...>());
    if (!taken) wrong_type(node, path, context);
  }
  ConfigNode dump(const void* value, Constraints constraints, const TypeDirectory* types) const override {
    return std::visit([&]<class T>(const T& held) { return codec_of<T>().dump(&held, constraints, types); },
                      *static_cast<const std::variant<Ts...>*>(value));
  }
  const StructCodec* nested() const override {
    const StructCodec* found = nullptr;
    ((found = found != nullptr ? found : codec_of<Ts>().nested()), ...);
    return found;
  }

 private:
  template <std::size_t... kIndices>
  static bool try_each(const ConfigNode& node, const std::string& path, Constraints constraints, ParseContext& context,
                       std::variant<Ts...>& held, std::index_sequence<kIndices...>) {
    return (try_one<kIndices>(node, path, constraints, context, held) || ...);
  }
  template <std::size_t kIndex>
  static bool try_one(const ConfigNode& node, const std::string& path, Constraints constraints, ParseContext& context,
                      std::variant<Ts...>& held) {
    const ValueCodec& codec = codec_of<std::variant_alternative_t<kIndex, std::variant<Ts...>>>();
    if (!codec.accepts(node)) return false;
    if (held.index() != kIndex) held.template emplace<kIndex>();
    codec.parse(node, path, constraints, context, &std::get<kIndex>(held));
    return true;
  }
};

template <Described T>
class StructCodecOf : public StructCodec {
 public:
  void visit(FieldVisitor& visitor, void* value) const override { describe(visitor, *static_cast<T*>(value)); }
  std::shared_ptr<void> make() const override { return std::make_shared<T>(); }
};

/// Type to codec class, for the types built from others.
template <class T>
struct CodecFor {
  static_assert(Described<T>, "a config field of this type needs describe(v, value) in the type's own namespace");
  using type = StructCodecOf<T>;
};
template <class T, class Allocator>
struct CodecFor<std::vector<T, Allocator>> {
  static_assert(!std::same_as<T, bool>, "vector<bool> has no elements to point at; use vector<int> or array<bool, N>");
  using type = ListCodecOf<std::vector<T, Allocator>, -1>;
};
template <class T, std::size_t kSize>
struct CodecFor<std::array<T, kSize>> {
  using type = ListCodecOf<std::array<T, kSize>, static_cast<std::int64_t>(kSize)>;
};
template <class T>
struct CodecFor<std::map<std::string, T>> {
  using type = MapCodecOf<T>;
};
template <class T>
struct CodecFor<std::optional<T>> {
  using type = OptionalCodec<T>;
};
template <class... Ts>
struct CodecFor<std::variant<Ts...>> {
  using type = VariantCodec<Ts...>;
};

}  // namespace detail

template <class T>
const ValueCodec& codec_of() {
  if constexpr (std::same_as<T, bool>) {
    return detail::bool_codec();
  } else if constexpr (std::same_as<T, std::string>) {
    return detail::string_codec();
  } else if constexpr (std::same_as<T, float>) {
    return detail::float_codec();
  } else if constexpr (std::same_as<T, double>) {
    return detail::double_codec();
  } else if constexpr (std::same_as<T, ConfigNode>) {
    return detail::any_codec();
  } else if constexpr (std::same_as<T, std::monostate>) {
    return detail::null_codec();
  } else if constexpr (std::same_as<T, TypedConfig>) {
    return detail::typed_codec();
  } else if constexpr (std::integral<T>) {
    static const detail::IntegerCodecOf<T> codec;
    return codec;
  } else {
    static const typename detail::CodecFor<T>::type codec;
    return codec;
  }
}

/// The codec of a struct with `describe`.
template <Described T>
const StructCodec& struct_codec_of() {
  return static_cast<const StructCodec&>(codec_of<T>());
}

}  // namespace castor::strategy
