// Constraints and their wording.
#include "strategy/config/constraint.h"

#include <cmath>

#include "core/base/error.h"
#include "core/base/json.h"

namespace castor::strategy {
namespace {

/// 1 and not 1.0: bounds of integer fields are the common case.
std::string bound_text(double bound) {
  std::string text = dump_double(bound);
  if (text.ends_with(".0")) text.resize(text.size() - 2);
  return text;
}

}  // namespace

std::string Constraint::text() const {
  switch (kind) {
    case Kind::kAtLeast:
      return ">= " + bound_text(bound);
    case Kind::kAtMost:
      return "<= " + bound_text(bound);
    case Kind::kMoreThan:
      return "> " + bound_text(bound);
    case Kind::kLessThan:
      return "< " + bound_text(bound);
    case Kind::kOneOf: {
      std::string out = "one of ";
      for (std::size_t i = 0; i < words.size(); ++i) out += (i == 0 ? "" : ", ") + words[i];
      return out;
    }
    case Kind::kNonEmpty:
      return "not empty";
    case Kind::kRegistered:
    case Kind::kRequired:
    case Kind::kAllowInfinite:
    case Kind::kOrName:
      return "";
  }
  throw InternalError("config: unknown constraint");
}

Constraint at_least(double bound) { return Constraint(Constraint::Kind::kAtLeast, bound); }
Constraint at_most(double bound) { return Constraint(Constraint::Kind::kAtMost, bound); }
Constraint more_than(double bound) { return Constraint(Constraint::Kind::kMoreThan, bound); }
Constraint less_than(double bound) { return Constraint(Constraint::Kind::kLessThan, bound); }

Constraint one_of(std::initializer_list<std::string_view> words) {
  Constraint out(Constraint::Kind::kOneOf);
  out.words.assign(words.begin(), words.end());
  return out;
}

Constraint non_empty() { return Constraint(Constraint::Kind::kNonEmpty); }
Constraint allow_infinite() { return Constraint(Constraint::Kind::kAllowInfinite); }

Constraint registered(std::string_view kind) {
  Constraint out(Constraint::Kind::kRegistered);
  out.words.emplace_back(kind);
  return out;
}

Constraint or_name() { return Constraint(Constraint::Kind::kOrName); }

const Constraint* find_constraint(Constraints constraints, Constraint::Kind kind) {
  for (const Constraint& constraint : constraints) {
    if (constraint.kind == kind) return &constraint;
  }
  return nullptr;
}

}  // namespace castor::strategy
