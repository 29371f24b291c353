// A resumed run says by name what may change its last bits.
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include <doctest/doctest.h>

#include "strategy/checkpoint/training_state.h"
#include "tests/support/log_capture.h"

using namespace castor;
using namespace castor::strategy;

namespace {

bool has(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

TEST_CASE(
    "a resumed run names every field of the numerics key that differs, either way, and is silent where none does") {
  const Json here = numerics_key(Precision::bf16, 4, 2, 3, false, kCpu);
  CHECK(here.at("global_batch") == 24);
  CHECK(here.at("processor") == "cpu");
  CHECK(has(here.at("product_library").get<std::string>(), "oneDNN "));
  CHECK(!here.contains("attention_library"));  // a GPU's
  const test::LogCapture log;
  warn_about_numerics(here, here);
  CHECK(log.text().empty());

  Json saved = here;
  saved["processor"] = "NVIDIA H200";
  saved["attention_library"] = "cudnn 9.19.0";
  saved.erase("threads_per_rank");
  warn_about_numerics(saved, here);
  const std::string text = log.text();
  CHECK(has(text, "another numerics key"));
  CHECK(has(text, "processor (\"NVIDIA H200\" was saved, now \"cpu\")"));
  CHECK(has(text, "attention_library (\"cudnn 9.19.0\" was saved, now none)"));
  CHECK(has(text, "threads_per_rank (not saved)"));
  CHECK(!has(text, "precision"));
}

}  // namespace
