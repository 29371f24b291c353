// Visitors that write option structs to JSON and read them back, so that a scheduler's saved state follows the same
// list of fields as its config (own_fields in schedule_config.h).
//
// Delicate: a state comes from a file and is not trusted: a missing key, an extra key, a wrong type or a count that
// could overflow is a FormatError that names it.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/json.h"
#include "strategy/scheduler/schedule_config.h"

namespace castor::strategy {

/// Writes fields into a JSON object that must outlive it.
class StateWriter {
 public:
  explicit StateWriter(Json& out) : out_(out) {}

  /// Writes one field; an empty optional becomes null. Doc and constraints of an option are of no interest here.
  template <class T, class... DocAndConstraints>
  void field(std::string_view name, const T& value, const DocAndConstraints&...) {
    write(name, value);
  }
  /// Conditions between options: nothing to write.
  template <class Condition>
  void check(std::string_view, const Condition&, std::string_view) {}

 private:
  void write(std::string_view name, const bool& value);
  void write(std::string_view name, const double& value);
  void write(std::string_view name, const std::int64_t& value);
  void write(std::string_view name, const std::string& value);
  void write(std::string_view name, const std::optional<double>& value);
  void write(std::string_view name, const std::optional<std::int64_t>& value);
  void write(std::string_view name, const std::vector<double>& value);
  void write(std::string_view name, const std::vector<std::int64_t>& value);
  void write(std::string_view name, const PerGroup& value);

  Json& out_;
};

/// Reads fields from a JSON object that must outlive it. Every read throws FormatError if the key is missing or holds
/// another type.
class StateReader {
 public:
  /// `what` names the state in messages, as "state of LinearLR".
  StateReader(const std::string& what, const Json& in) : in_(in, what) {}

  /// Reads one field. Constraints are not looked at: the reader of a whole struct validates it afterwards.
  template <class T, class... DocAndConstraints>
  void field(std::string_view name, T& value, const DocAndConstraints&...) {
    read(name, value);
  }
  /// Conditions between options: left to the validation.
  template <class Condition>
  void check(std::string_view, const Condition&, std::string_view) {}

  /// Reads a count that must lie in [least, kMaxSteps].
  void steps(std::string_view name, std::int64_t& value, std::int64_t least);
  /// Throws FormatError if the object has a key that nothing read.
  void finish() const;
  /// Throws FormatError about a key that was read.
  [[noreturn]] void fail(std::string_view name, const std::string& text) const { in_.at(name).fail(text); }

 private:
  void read(std::string_view name, bool& value);
  void read(std::string_view name, double& value);
  void read(std::string_view name, std::int64_t& value);
  void read(std::string_view name, std::string& value);
  void read(std::string_view name, std::optional<double>& value);
  void read(std::string_view name, std::optional<std::int64_t>& value);
  void read(std::string_view name, std::vector<double>& value);
  void read(std::string_view name, std::vector<std::int64_t>& value);
  void read(std::string_view name, PerGroup& value);
  JsonCursor at(std::string_view name);

  JsonCursor in_;
  std::set<std::string, std::less<>> read_;
};

}  // namespace castor::strategy
