// `castor plan` from its words to what it prints: each flag has an effect, mistakes are named, and the change that it
// proposes does fit when it is made.
#include <nlohmann/json.hpp>
#include <sstream>

#include <doctest/doctest.h>

#include "core/base/file.h"
#include "core/base/json.h"
#include "samples/gpt/model.h"
#include "strategy/cli/castor_main.h"
#include "strategy/cli/command_line.h"
#include "strategy/plan_cost.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_run.h"

namespace castor::strategy {
namespace {

/// Sequences of 64 tokens.
struct TokenSamplesConfig {
  std::int64_t count = 64;
};
template <class V>
void describe(V& v, TokenSamplesConfig& c) {
  v.field("count", c.count, "samples", at_least(1));
}
class TokenSamples final : public Dataset {
 public:
  explicit TokenSamples(const TokenSamplesConfig& config) : count_(config.count) {}
  std::int64_t size() const override { return count_; }
  autograd::Batch batch(std::span<const std::int64_t> samples) const override {
    const auto n = static_cast<std::int64_t>(samples.size());
    return {Tensor::zeros({n, 64}, DType::i64), Tensor::zeros({n, 64}, DType::i64)};
  }

 private:
  std::int64_t count_;
};

struct Result {
  int code = 0;
  std::string out, err;
  bool has(const std::string& text) const { return out.find(text) != std::string::npos; }
  Json json() const { return parse_json(out, "standard output"); }
};

/// A config of a perceptron of 3 MB, and one of a small GPT.
class Planner {
 public:
  Planner() {
    test::add_tiny_types(registry_);
    registry_.models.add<samples::GptConfig>(
        "Gpt", "a decoder", [](const samples::GptConfig& config, const autograd::TensorOptions& options) {
          return std::make_shared<samples::Gpt>(config, options);
        });
    registry_.datasets.add<TokenSamplesConfig>("TokenSamples", "sequences", [](const TokenSamplesConfig& config) {
      return std::make_shared<const TokenSamples>(config);
    });
    write("tiny.yaml",
          "model: {type: TinyClassifier, width: 65536}\n"
          "train_dataloader: {batch_size: 4, dataset: {type: TinySamples}}\n"
          "train_cfg: {max_epochs: 3}\n"
          "optim_wrapper: {optimizer: {type: AdamW, lr: 0.01}}\n"
          "strategy: {type: ColossalAIStrategy, plugin: {type: lowlevel-zero, precision: fp32}}\n");
    write("gpt.yaml",
          "model: {type: Gpt, n_layer: 4, n_head: 4, n_embd: 128, block_size: 64}\n"
          "train_dataloader: {batch_size: 8, dataset: {type: TokenSamples}}\n"
          "train_cfg: {max_epochs: 3}\n"
          "optim_wrapper: {optimizer: {type: AdamW, lr: 0.01}}\n"
          "strategy: {type: ColossalAIStrategy, plugin: null}\n");
  }

  Result operator()(const std::string& config, const std::vector<std::string>& flags) {
    std::vector<std::string> words = {"plan", (folder_.path() / config).string()};
    words.insert(words.end(), flags.begin(), flags.end());
    words.insert(words.end(), {"--cfg-options", "work_dir=" + (folder_.path() / "work").string(), "log_level=ERROR"});
    std::ostringstream out, err;
    const int code = run_command_line("castor", words, builtin_subcommands(), registry_, out, err);
    return {code, out.str(), err.str()};
  }

 private:
  void write(const std::string& name, const std::string& text) {
    write_file_atomically((folder_.path() / name).string(), text);
  }
  test::TempDir folder_;
  Registry registry_;
};

std::int64_t peak(const Json& json, const char* category) {
  return json.at("memory").at(category).at("peak").get<std::int64_t>();
}

TEST_CASE("plan prints what a run will use by category, and as JSON the same") {
  Planner plan;
  const Result text = plan("tiny.yaml", {});
  INFO(text.err);
  CHECK(text.code == 0);
  for (const char* word :
       {"plan for cpu", "parameters", "gradients", "optimizer", "activations", "total", "a step on cpu"})
    CHECK_MESSAGE(text.has(word), word);
  CHECK_FALSE(text.has("limit"));
  const Json json = plan("tiny.yaml", {"--json"}).json();
  CHECK(json.at("parameters") == 8 * 65536 + 65536 + 3 * 65536 + 3);
  CHECK_FALSE(json.contains("fits"));
  CHECK(json.at("estimate").at("total").get<double>() > 0);
  CHECK(json.at("estimate").at("machine") == "cpu");
}

TEST_CASE("more ranks hold less of the states each, and exchange") {
  Planner plan;
  const Json one = plan("tiny.yaml", {"--json", "--world-size", "1"}).json(),
             four = plan("tiny.yaml", {"--json", "--world-size", "4"}).json();
  CHECK(static_cast<double>(peak(four, "optimizer")) ==
        doctest::Approx(static_cast<double>(peak(one, "optimizer")) / 4).epsilon(0.05));
  CHECK(peak(four, "parameters") == peak(one, "parameters"));
  CHECK(one.at("exchanged_bytes") == 0);
  CHECK(four.at("exchanged_bytes").get<double>() > 0);
  CHECK(four.at("world_size") == 4);
}

TEST_CASE("limits of device and host say whether a run fits") {
  Planner plan;
  const Result fits = plan("tiny.yaml", {"--device-memory", "1GiB", "--host-memory", "1GiB"});
  CHECK(fits.has("(fits)"));
  CHECK_FALSE(fits.has("it does not fit"));
  CHECK(plan("tiny.yaml", {"--json", "--device-memory", "1GiB"}).json().at("fits") == true);
  const Result tight = plan("tiny.yaml", {"--device-memory", "8MiB"});
  CHECK(tight.code == 0);
  CHECK(tight.has("(does not fit)"));
  CHECK(tight.has("it does not fit"));
  const std::vector<std::string> on_host = {"--json", "--device-memory", "1GiB", "--cfg-options",
                                            "strategy.plugin.cpu_offload=true"};
  std::vector<std::string> small_host = {"--host-memory", "4MiB"}, large_host = {"--host-memory", "1GiB"};
  small_host.insert(small_host.end(), on_host.begin(), on_host.end());
  large_host.insert(large_host.end(), on_host.begin(), on_host.end());
  const Json json = plan("tiny.yaml", small_host).json();
  CHECK(json.at("fits") == false);
  CHECK(json.at("host").at("optimizer").at("peak").get<std::int64_t>() > 4 << 20);
  CHECK(plan("tiny.yaml", large_host).json().at("fits") == true);
  // Copies for saves have what the limit leaves of the host's memory, and not what this machine has.
  CHECK(json.at("checkpoint").at("asynchronous_copy") == "on_write");
  CHECK(plan("tiny.yaml", large_host).json().at("checkpoint").at("asynchronous_copy") == "whole");
}

TEST_CASE("a target has its own memory, kernels and rates") {
  Planner plan;
  const Result h100 = plan("tiny.yaml", {"--target", "h100"});
  CHECK(h100.has("plan for cuda"));
  CHECK(h100.has("a step on h100"));
  CHECK(h100.has("80.0 GiB"));
  CHECK(plan("tiny.yaml", {"--target", "h200"}).has("141.0 GiB"));
  CHECK(plan("tiny.yaml", {"--target", "h100", "--device-memory", "8MiB"}).has("(does not fit)"));
  CHECK(plan("tiny.yaml", {"--target", "cpu"}).has("plan for cpu"));
  const auto seconds = [&](const char* target) {
    return plan("tiny.yaml", {"--json", "--target", target}).json().at("estimate").at("total").get<double>();
  };
  CHECK(seconds("h200") < seconds("h100"));
  CHECK(seconds("h100") < seconds("a100"));
  CHECK(seconds("a100") < seconds("cpu"));
}

TEST_CASE("the change that is proposed makes the run fit, and no other that fits costs less") {
  Planner plan;
  for (const std::string target : {"h100", "cpu"}) {
    for (const std::string memory : {"20MiB", "16MiB", "10MiB"}) {
      CAPTURE(target);
      CAPTURE(memory);
      const std::vector<std::string> limits = {"--json", "--target", target, "--device-memory", memory};
      const auto with = [&](const std::vector<std::string>& options) {
        std::vector<std::string> flags = limits;
        flags.push_back("--cfg-options");
        flags.insert(flags.end(), options.begin(), options.end());
        return plan("gpt.yaml", flags).json();
      };
      const Json before = plan("gpt.yaml", limits).json();
      CHECK(before.at("fits") == false);
      REQUIRE(before.contains("change"));
      const std::string text = before.at("change").at("cfg_options").get<std::string>();
      CAPTURE(text);
      std::vector<std::string> words;  // an option may have blanks inside its braces
      for (std::size_t at = 0, depth = 0, begin = 0; at <= text.size(); ++at) {
        const char c = at < text.size() ? text[at] : ' ';
        if (c == '{') ++depth;
        if (c == '}') --depth;
        if (c == ' ' && depth == 0) {
          words.push_back(text.substr(begin, at - begin));
          begin = at + 1;
        }
      }
      const Json after = with(words);
      CHECK(after.at("fits") == true);
      const double cost = before.at("change").at("estimate").at("total").get<double>();
      CHECK(after.at("estimate").at("total").get<double>() == doctest::Approx(cost));
      const std::vector<std::vector<std::string>> others = {
          {"model.recompute=true"},
          {"train_dataloader.batch_size=2", "optim_wrapper.accumulative_counts=4"},
          {"strategy.plugin={type: gemini, precision: fp32, placement_policy: auto, "
           "enable_gradient_accumulation: true}"},
          {"strategy.plugin={type: gemini, precision: fp32, placement_policy: auto, "
           "enable_gradient_accumulation: true}",
           "model.recompute=true"}};
      for (const std::vector<std::string>& other : others) {
        const Json json = with(other);
        if (json.at("fits") == true) CHECK(json.at("estimate").at("total").get<double>() >= cost * 0.9999);
      }
    }
  }
}

TEST_CASE("what nothing makes fit is said, and more ranks are proposed only where nothing else helps") {
  Planner plan;
  const Result none = plan("gpt.yaml", {"--device-memory", "4KiB"});
  CHECK(none.has("nor does any plugin"));
  CHECK_FALSE(plan("gpt.yaml", {"--json", "--device-memory", "4KiB"}).json().contains("change"));
}

TEST_CASE("mistakes in plan's words exit with 2 and name them") {
  Planner plan;
  const auto refused = [&](const std::vector<std::string>& flags, const std::string& text) {
    const Result result = plan("tiny.yaml", flags);
    CAPTURE(result.err);
    CHECK(result.code == 2);
    CHECK(result.out.empty());
    CHECK(result.err.find(text) != std::string::npos);
  };
  refused({"--world-size", "0"}, "--world-size: expected a number from 1, got 0");
  refused({"--world-size=-2"}, "--world-size: expected a number from 1, got -2");
  refused({"--world-size", "many"}, "--world-size");
  refused({"--device-memory", "80 GiBs"}, "--device-memory: expected a size");
  refused({"--device-memory", "0"}, "--device-memory: expected a size");
  refused({"--host-memory=-1GiB"}, "--host-memory: expected a size");
  refused({"--target", "h1000"}, "h100");
  const Result alone = plan("gpt.yaml", {"--world-size", "2"});
  CHECK(alone.code == 2);
  CHECK(alone.err.find("several ranks need a plugin") != std::string::npos);
}

}  // namespace
}  // namespace castor::strategy
