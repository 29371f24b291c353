// How a config struct says what it is: one function that names each field once.
//
//   struct LoaderConfig { int batch_size = 1; std::optional<int> num_workers; };
//   template <class V> void describe(V& v, LoaderConfig& c) {
//     v.field("batch_size", c.batch_size, "samples per micro-batch and rank", required, at_least(1));
//     v.field("num_workers", c.num_workers, "threads that prepare samples; null picks", at_least(0));
//     v.refuse("persistent_workers", "not in this version: workers always persist");
//     v.check("batch_size", [&] { return c.batch_size % 2 == 0; }, "must be even");
//   }
//
// Parsing, help and the dump of the effective config all walk the fields through this one function, so they cannot
// disagree. Delicate: `describe` must be found by ADL, in the struct's own namespace, and must not depend on the
// values: it is also called on defaults. Conditions between fields go into `check`.
#pragma once

#include <array>
#include <cstddef>
#include <string_view>
#include <utility>

#include "strategy/config/constraint.h"
#include "strategy/config/node.h"

namespace castor::strategy {

class ValueCodec;

/// The codec of a member type: codec.h.
template <class T>
const ValueCodec& codec_of();

/// What a visitor learns about a field besides its value. Valid during the call.
struct FieldInfo {
  std::string_view name;
  std::string_view doc;
  Constraints constraints;
};

/// Walks the fields of a struct: the `v` of `describe`.
class FieldVisitor {
 public:
  virtual ~FieldVisitor() = default;

  /// One option.
  ///   name         its key
  ///   member       where the value lives; the value it has when the struct is made is the default
  ///   doc          one line for the help; units belong here
  ///   constraints  see constraint.h
  /// Member types: bool, integers, float, double, std::string, ConfigNode (anything), TypedConfig, structs with
  /// `describe`, and std::optional, vector, array, map<std::string, T> and variant of these (std::monostate is null).
  template <class T, class... Demands>
  void field(std::string_view name, T& member, std::string_view doc, Demands&&... constraints) {
    const std::array<Constraint, sizeof...(Demands)> list{Constraint(std::forward<Demands>(constraints))...};
    on_field(FieldInfo{name, doc, Constraints(list.data(), list.size())}, codec_of<T>(), &member);
  }

  /// A key that the peers have and this version refuses, with the reason. Null is accepted: it asks for nothing.
  void refuse(std::string_view name, std::string_view reason) { on_refused(name, reason); }

  /// A key of the peers that has no meaning here: accepted at the peers' default, refused otherwise.
  ///   peers_default  the value that is accepted
  ///   reason         why it has no meaning
  void retired(std::string_view name, const ConfigNode& peers_default, std::string_view reason) {
    on_retired(name, peers_default, reason);
  }

  /// A condition between fields. `holds` is only called when a config is read and this struct's fields before it were
  /// all within their bounds; other checks may have failed.
  ///   name  the field that the mistake is reported at
  ///   text  what should be, as "must divide embed_dims"
  template <class Condition>
  void check(std::string_view name, Condition&& holds, std::string_view text) {
    if (wants_checks() && !std::forward<Condition>(holds)()) on_broken(name, text);
  }

 protected:
  virtual void on_field(const FieldInfo& info, const ValueCodec& codec, void* member) = 0;
  virtual void on_refused(std::string_view name, std::string_view reason) = 0;
  virtual void on_retired(std::string_view name, const ConfigNode& peers_default, std::string_view reason) = 0;
  virtual bool wants_checks() const { return false; }
  virtual void on_broken(std::string_view, std::string_view) {}
};

}  // namespace castor::strategy
