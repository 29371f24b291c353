// What a run says of itself: the log file, its scalars, and where they go.
#include <cmath>
#include <set>
#include <string>

#include <doctest/doctest.h>

#include "core/base/error.h"
#include "tests/support/tiny_training.h"

namespace castor::strategy {
namespace {

using test::Run;

TEST_CASE("the log file has the peers' lines, the plan and its audit") {
  const Run run({"log_level=INFO", "experiment_name=small", "optim_wrapper.clip_grad={max_norm: 1}"});
  const std::string log = run.log();
  for (const char* part : {"castor - INFO - ", "experiment small_", "seed 5", "system environment",
                           "\n  processor: ", "\n  launcher: none", "plan for cpu", "plan against actual after step 1",
                           "Epoch(train) [1][1/3]  lr: 1.0000e-02  eta: ", "Epoch(train) [3][3/3]",
                           "grad_norm: ", "Epoch(val) [2]  accuracy/top1: ", "checkpoint saved to "}) {
    CHECK_MESSAGE(log.find(part) != std::string::npos, part);
  }
  const Json plan = read_json_file(join_path(run.log_dir(), "plan.json"));
  CHECK(plan.at("parameters") == 8 * 16 + 16 + 16 * 3 + 3);
  CHECK(plan.at("micro_batch") == 4);
  CHECK(plan.at("flops").get<double>() > 0);
  CHECK(plan.at("parameter_order") == Json({"first.weight", "first.bias", "second.weight", "second.bias"}));
  CHECK(plan.at("memory").at("total").at("peak").get<double>() > 0);
  CHECK(read_text_file(join_path(run.log_dir(), "plan_audit.txt")).find("activations") != std::string::npos);
}

TEST_CASE("parameter_norms says each parameter's gradient norm, of which the whole norm is made, where there is one") {
  const std::string logger = "default_hooks.logger={type: LoggerHook, interval: 1, parameter_norms: true}";
  const Run run({logger, "optim_wrapper.clip_grad={max_norm: 0.5}"});
  std::int64_t checked = 0;
  for (const Json& line : run.scalars()) {
    if (!line.contains("grad_norm")) continue;
    double squares = 0;
    std::set<std::string> names;
    for (const auto& [name, value] : line.items()) {
      if (!name.starts_with("grad_norm/")) continue;
      names.insert(name.substr(10));
      squares += value.get<double>() * value.get<double>();
    }
    CHECK(names == std::set<std::string>{"first.bias", "first.weight", "second.bias", "second.weight"});
    CHECK(std::sqrt(squares) == doctest::Approx(line.at("grad_norm").get<double>()).epsilon(1e-12));
    ++checked;
  }
  CHECK(checked == 9);
  CHECK_THROWS_WITH_AS(Run({logger, "optim_wrapper.clip_grad=null"}),
                       doctest::Contains("norms are computed only where they are limited"), ConfigError);
}

TEST_CASE("the log goes where log_kwargs says") {
  const test::TempDir elsewhere;
  const std::string file = (elsewhere.path() / "run.log").string();
  const Run run({"strategy.log_kwargs={log_level: INFO, log_file: " + file + "}", "log_level=INFO"});
  CHECK(read_text_file(file).find("Epoch(train) [3][3/3]") != std::string::npos);
}

}  // namespace
}  // namespace castor::strategy
