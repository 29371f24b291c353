// JSON in and out for schedulers' states. Numbers that JSON cannot hold need no care here: dump_json writes them as
// strings, and JsonCursor::number reads those.
#include "strategy/scheduler/state_fields.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "core/base/error.h"
#include "strategy/scheduler/param_scheduler.h"

namespace castor::strategy {

void StateWriter::write(std::string_view name, const bool& value) { out_[std::string(name)] = value; }

void StateWriter::write(std::string_view name, const double& value) { out_[std::string(name)] = value; }

void StateWriter::write(std::string_view name, const std::int64_t& value) { out_[std::string(name)] = value; }

void StateWriter::write(std::string_view name, const std::string& value) { out_[std::string(name)] = value; }

void StateWriter::write(std::string_view name, const std::optional<double>& value) {
  out_[std::string(name)] = value ? Json(*value) : Json();
}

void StateWriter::write(std::string_view name, const std::optional<std::int64_t>& value) {
  out_[std::string(name)] = value ? Json(*value) : Json();
}

void StateWriter::write(std::string_view name, const std::vector<double>& value) { out_[std::string(name)] = value; }

void StateWriter::write(std::string_view name, const std::vector<std::int64_t>& value) {
  out_[std::string(name)] = value;
}

void StateWriter::write(std::string_view name, const PerGroup& value) {
  std::visit([&](const auto& held) { write(name, held); }, value);
}

JsonCursor StateReader::at(std::string_view name) {
  read_.emplace(name);
  return in_.at(name);
}

void StateReader::steps(std::string_view name, std::int64_t& value, std::int64_t least) {
  value = at(name).integer(least, kMaxSteps);
}

void StateReader::finish() const {
  for (const auto& [name, member] : in_.members()) {
    if (!read_.contains(name)) member.fail("the scheduler has no such key");
  }
}

void StateReader::read(std::string_view name, bool& value) { value = at(name).boolean(); }

void StateReader::read(std::string_view name, double& value) { value = at(name).number(); }

void StateReader::read(std::string_view name, std::int64_t& value) { value = at(name).integer(); }

void StateReader::read(std::string_view name, std::string& value) { value = at(name).string(); }

void StateReader::read(std::string_view name, std::optional<double>& value) {
  const JsonCursor entry = at(name);
  value = entry.is_null() ? std::nullopt : std::optional(entry.number());
}

void StateReader::read(std::string_view name, std::optional<std::int64_t>& value) {
  const JsonCursor entry = at(name);
  value = entry.is_null() ? std::nullopt : std::optional(entry.integer());
}

void StateReader::read(std::string_view name, std::vector<double>& value) {
  const JsonCursor entry = at(name);
  value.clear();
  for (std::size_t i = 0; i < entry.size(); ++i) value.push_back(entry.at(i).number());
}

void StateReader::read(std::string_view name, std::vector<std::int64_t>& value) {
  const JsonCursor entry = at(name);
  value.clear();
  for (std::size_t i = 0; i < entry.size(); ++i) value.push_back(entry.at(i).integer());
}

void StateReader::read(std::string_view name, PerGroup& value) {
  if (at(name).value().is_array()) {
    std::vector<double> list;
    read(name, list);
    value = std::move(list);
  } else {
    double one = 0;
    read(name, one);
    value = one;
  }
}

}  // namespace castor::strategy
