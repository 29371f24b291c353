// Fuzz target: any bytes as JSON. Either FormatError, or the values that nlohmann's parser finds in them, and texts
// that it refuses are refused. Anything else stops the program, which is the finding.
//
// Delicate: this reader is stricter on purpose (no key twice, bounded depth), so it may refuse what the other takes.
// Build and run: tests/fuzz/run json
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "core/base/error.h"
#include "core/base/json.h"
#include "tests/fuzz/parse_watch.h"

namespace {

using castor::Json;

void require(bool condition) {
  if (!condition) std::abort();
}

// Takes every event and keeps none.
class NoEvents : public castor::JsonEvents {
 public:
  void on_null(const castor::JsonPosition&) override {}
  void on_bool(bool, const castor::JsonPosition&) override {}
  void on_integer(std::int64_t, const castor::JsonPosition&) override {}
  void on_large_integer(std::uint64_t, const castor::JsonPosition&) override {}
  void on_float(double, const std::string&, const castor::JsonPosition&) override {}
  void on_string(std::string&, const castor::JsonPosition&) override {}
  void on_object_begin(const castor::JsonPosition&) override {}
  void on_key(std::string&, const castor::JsonPosition&) override {}
  void on_object_end() override {}
  void on_array_begin(const castor::JsonPosition&) override {}
  void on_array_end() override {}
};

// What nlohmann's parser makes of the text.
std::optional<Json> other_reading(const std::string& text) {
  // It takes a zero byte for the end of the text.
  if (text.find('\0') != std::string::npos) return std::nullopt;
  try {
    return Json::parse(text);
  } catch (const Json::exception&) {
    return std::nullopt;
  }
}

}  // namespace

// NOLINTNEXTLINE(readability-identifier-naming): libFuzzer prescribes the name
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  bool is_strict_refusal = false;
  std::optional<Json> tree;
  try {
    castor::test::watch_parse(size, [&] {
      NoEvents events;
      castor::scan_json(text, "j", events);
    });
    tree = castor::parse_json(text, "j");
  } catch (const castor::FormatError& error) {
    require(error.file == "j" && error.offset <= size);
    is_strict_refusal = std::string(error.what()).find("JSON refused") != std::string::npos;
  }
  const std::optional<Json> other = other_reading(text);
  require(tree == other || (is_strict_refusal && !tree));
  if (tree) require(castor::parse_json(castor::dump_json(*tree), "j").type() == tree->type());
  return 0;
}
