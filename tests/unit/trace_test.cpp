// The timeline of a training step: every op is there once, phases hold what they should, and spans on a lane lie beside
// or inside each other, never across.
#include "core/device/trace.h"

#include <algorithm>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "autograd/optim/adam.h"
#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/process_age.h"
#include "core/device/idle_time.h"
#include "core/ops/cast.h"
#include "core/ops/elementwise.h"
#include "samples/gpt/model.h"
#include "samples/sample_types.h"
#include "strategy/builtins.h"
#include "strategy/cli/bench.h"
#include "strategy/colossalai_strategy.h"
#include "strategy/registry.h"
#include "tests/support/temp_dir.h"

namespace castor {
namespace {

/// Op calls by name.
class Counter final : public DispatchObserver {
 public:
  void before(const OpCall& call) override { ++calls[call.name]; }
  std::map<std::string, int> calls;
};

struct Span {
  std::string name, category;
  double begin, end;
};

/// The spans of each lane, by its name.
std::map<std::string, std::vector<Span>> lanes_of(const std::string& text, int process) {
  const Json trace = parse_json(text, "trace");
  std::map<std::int64_t, std::string> names;
  std::map<std::string, std::vector<Span>> lanes;
  for (const Json& event : trace.at("traceEvents")) {
    CHECK(event.at("pid") == process);
    const auto lane = event.at("tid").get<std::int64_t>();
    if (event.at("ph") == "M") {
      names[lane] = event.at("args").at("name").get<std::string>();
      continue;
    }
    REQUIRE(event.at("ph") == "X");
    REQUIRE(names.count(lane) == 1);
    const double begin = event.at("ts").get<double>(), duration = event.at("dur").get<double>();
    CHECK(begin >= 0);
    CHECK(duration >= 0);
    lanes[names[lane]].push_back({event.at("name"), event.at("cat"), begin, begin + duration});
  }
  return lanes;
}

/// Longest first where two begin together, so that who holds another comes before it.
void check_nesting(std::vector<Span> spans) {
  std::stable_sort(spans.begin(), spans.end(),
                   [](const Span& a, const Span& b) { return a.begin != b.begin ? a.begin < b.begin : a.end > b.end; });
  constexpr double kRounding = 1e-6;  // microseconds
  std::vector<Span> open;
  for (const Span& span : spans) {
    while (!open.empty() && open.back().end <= span.begin + kRounding) open.pop_back();
    CAPTURE(span.name);
    if (!open.empty()) CHECK(span.end <= open.back().end + kRounding);
    open.push_back(span);
  }
}

}  // namespace

TEST_CASE("the timeline of a training step holds every op once, inside the step's phases") {
  strategy::ColossalAIStrategy training(kCpu, 1);
  strategy::PrepareOptions options;
  options.optimizer = [] { return std::make_unique<autograd::AdamW>(); };
  options.clip = strategy::ClipConfig{};
  options.clip->max_norm = 1.0;
  options.dispatch.max_iters = 4;
  training.prepare(
      [](const autograd::TensorOptions& where) {
        samples::GptConfig config;
        config.n_layer = 2;
        config.n_head = 2;
        config.n_embd = 32;
        config.block_size = 16;
        return std::make_shared<samples::Gpt>(config, where);
      },
      options);
  const autograd::Batch batch{Tensor::zeros({2, 16}, DType::i64), Tensor::zeros({2, 16}, DType::i64)};
  training.train_step(batch);

  Trace trace(kCpu);
  Counter counter;
  {
    const ObserverScope observe(trace), count(counter);
    const TraceSpan span("step", "phase", kCpu);
    training.train_step(batch);
  }
  const std::string text = trace.chrome_json(3);
  const auto lanes = lanes_of(text, 3);
  REQUIRE(lanes.count("cpu") == 1);
  std::map<std::string, int> ops;
  std::map<std::string, Span> phases;
  for (const Span& span : lanes.at("cpu")) {
    span.category == "op" ? void(++ops[span.name]) : void(phases[span.name] = span);
  }
  CHECK(ops == counter.calls);
  CHECK(ops.at("matmul") > 10);
  for (const auto& [name, spans] : lanes) check_nesting(spans);
  REQUIRE(phases.size() == 4);
  const Span &step = phases.at("step"), &forward = phases.at("forward"), &backward = phases.at("backward"),
             &update = phases.at("update");
  CHECK(step.begin <= forward.begin);
  CHECK(forward.end <= backward.begin);
  CHECK(backward.end <= update.begin);
  CHECK(update.end <= step.end);
  for (const Span& span : lanes.at("cpu")) {
    CHECK(span.begin >= step.begin);
    CHECK(span.end <= step.end);
    if (span.name == "adam") CHECK(span.begin >= update.begin);
  }
}

TEST_CASE("spans of other threads and queues have lanes of their own, and nothing is recorded without a trace") {
  {
    const TraceSpan lost("lost", "copy", nullptr, "elsewhere");
    CHECK_FALSE(is_tracing());
  }
  Trace trace(kCpu);
  CHECK(is_tracing());
  CHECK_THROWS_AS(Trace{kCpu}, InternalError);
  {
    const TraceSpan outer("gather of chunk 0", "collective", nullptr, "collectives of group world");
    const TraceSpan copy("to the host", "copy", nullptr, "copies");
    add(Tensor::zeros({4}, DType::f32), Tensor::zeros({4}, DType::f32));  // nobody observes this thread's ops
  }
  CHECK(trace.count() == 2);
  const auto lanes = lanes_of(trace.chrome_json(0), 0);
  CHECK_FALSE(is_tracing());
  REQUIRE(lanes.size() == 2);
  CHECK(lanes.at("collectives of group world").front().name == "gather of chunk 0");
  CHECK(lanes.at("copies").front().category == "copy");
}

TEST_CASE("what a queue waited for is told by what was on its way, each moment once") {
  const Device device{DeviceType::cuda, 0};
  const std::string queue = to_string(device);
  const std::vector<Trace::TimedSpan> spans = {
      {"step", "phase", queue, 1, 11, {}},
      {"early", "op", queue, 0, 2, {}},               // computes until 2
      {"matmul", "op", queue, 4, 6, {}},              // and in [4, 6),
      {"inner", "op", queue, 5, 5.5, {}},             // an op within it
      {"late", "op", queue, 10, 12, {}},              // and from 10 on
      {"gather", "collective", "links", 3, 5, {}},    // waited for in [3, 4)
      {"to the host", "copy", "copies", 2.5, 7, {}},  // in [2.5, 3) and [6, 6.5)
      {"adam", "op", "host", 6.5, 8, {}},             // in [6.5, 8)
      {"forward", "phase", queue, 1, 9, {}},
      {"outside", "collective", "links", 11, 13, {}}};
  const IdleTime idle = idle_time(spans, device, "step");
  CHECK(idle.stretch == 10);
  CHECK(idle.exchange == 1);
  CHECK(idle.host == 1.5);
  CHECK(idle.copies == 1);
  CHECK(idle.other == 2.5);  // [2, 2.5) and [8, 10)
  CHECK(idle.total() == 6);
  CHECK(idle_time(spans, device, "no such stretch").stretch == 0);
}

TEST_CASE("castor bench writes the timeline of a step, which holds the ops that it counts, and says when it began") {
  strategy::Registry registry;
  strategy::add_builtins(registry);
  samples::add_samples(registry);
  const test::TempDir folder;
  strategy::BenchArguments arguments;
  arguments.model = "tiny";
  arguments.batch = 1;
  arguments.context = 16;
  arguments.device = "cpu";
  arguments.precision = "fp8";
  arguments.steps = arguments.warmup = 1;
  arguments.ops = arguments.json = true;
  arguments.trace = (folder.path() / "step.json").string();
  std::ostringstream out;
  arguments.gpu_transport = "pigeons";
  CHECK_THROWS_WITH_AS(strategy::run_bench(arguments, registry, out), doctest::Contains("auto, peer, nccl"),
                       ConfigError);
  arguments.gpu_transport = "nccl";
  REQUIRE(strategy::run_bench(arguments, registry, out) == 0);
  const Json result = parse_json(out.str(), "bench");
  const double begun = result.at("first_forward_after_seconds").get<double>();
  CHECK(begun > 0);
  CHECK(begun < process_age_seconds());
  std::map<std::string, int> ops, counted;
  for (const Json& op : result.at("ops")) counted[op.at("name")] = op.at("calls");
  const auto lanes = lanes_of(read_text_file(*arguments.trace), 0);
  for (const auto& [name, spans] : lanes) check_nesting(spans);
  for (const Span& span : lanes.at("cpu")) {
    if (span.category == "op") ++ops[span.name];
  }
  CHECK(ops == counted);
  CHECK(ops.at("fp8_matmul") == 3 * 4 * 2);
  const Json &product = result.at("product"), &idle = result.at("not_overlapped");
  CHECK(product.at("dtype") == "bf16");
  const double rate = product.at("tflops_per_second").get<double>();
  CHECK(rate > 0);
  CHECK(product.at("share_of_it").get<double>() * rate ==
        doctest::Approx(result.at("tflops_per_second_per_rank").get<double>()));
  const double idle_seconds = idle.at("seconds").get<double>();
  CHECK(idle_seconds > 0);
  CHECK(idle_seconds < idle.at("traced_step_seconds").get<double>());
  CHECK(idle.at("exchange") == 0);
}

TEST_CASE("castor bench refuses numbers that time nothing, and options of a plugin that is not named") {
  strategy::Registry registry;
  const auto refusal = [&](const auto& change) {
    strategy::BenchArguments arguments;
    change(arguments);
    std::ostringstream out;
    CHECK_THROWS_AS(strategy::run_bench(arguments, registry, out), ConfigError);
    try {
      strategy::run_bench(arguments, registry, out);
    } catch (const ConfigError& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  CHECK(refusal([](auto& a) { a.steps = 0; }).find("--steps: at least 1 expected, got 0") == 0);
  CHECK(refusal([](auto& a) { a.warmup = -1; }).find("--warmup: at least 0") == 0);
  CHECK(refusal([](auto& a) { a.batch = 0; }).find("--batch: at least 1") == 0);
  CHECK(refusal([](auto& a) { a.context = -4; }).find("--context: at least 1") == 0);
  CHECK(refusal([](auto& a) { a.trace = "/dev/null"; }).find("--trace: expected a file") == 0);
  CHECK(refusal([](auto& a) { a.plugin_options = {"stage=1"}; }).find("--plugin") != std::string::npos);
}

TEST_CASE("the bench's Qwen2.5 models have as many parameters as Qwen2.5's own") {
  strategy::Registry registry;
  strategy::add_builtins(registry);
  samples::add_samples(registry);
  // What the published safetensors files hold.
  const std::map<std::string, std::int64_t> published = {{"qwen-0.5B", 494032768},
                                                         {"qwen-1.5B", 1543714304},
                                                         {"qwen-3B", 3085938688},
                                                         {"qwen-7B", 7615616512},
                                                         {"qwen-14B", 14770033664}};
  strategy::BenchArguments arguments;
  for (const auto& [name, count] : published) {
    CAPTURE(name);
    arguments.model = name;
    const auto model = registry.models.build(strategy::bench_model(arguments), {DType::bf16, make_meta({})});
    CHECK(model->parameter_count() == count);
  }
  arguments.model = "qwen-2B";
  CHECK_THROWS_WITH_AS(strategy::bench_model(arguments), doctest::Contains("qwen-1.5B"), ConfigError);
}

TEST_CASE("a process knows its age") {
  const double age = process_age_seconds();
  CHECK(age >= -0.02);  // the system counts its start in hundredths
  CHECK(age < 3600);
  CHECK(process_age_seconds() >= age);
}

}  // namespace castor
