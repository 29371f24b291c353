// Sizes, random tokens, clocks and the table. The step is the trained one: clip 1.0, AdamW, f32 masters.
//
// Delicate: a step is timed from one read of its loss to the next, and nothing else waits for the device: the end of a
// step's update runs while the host prepares the next step, as it does in training.
#include "strategy/cli/bench.h"

#include <algorithm>
#include <array>
#include <iomanip>
#include <memory>
#include <nlohmann/json.hpp>
#include <ostream>

#include "autograd/optim/adam.h"
#include "core/base/file.h"
#include "core/base/host_memory.h"
#include "core/base/interrupt.h"
#include "core/base/json.h"
#include "core/base/process_age.h"
#include "core/device/idle_time.h"
#include "core/device/trace.h"
#include "core/ops/cast.h"
#include "core/ops/random.h"
#include "dist/comm_meta.h"
#include "dist/launch.h"
#include "strategy/cli/bench_clocks.h"
#include "strategy/colossalai_strategy.h"
#include "strategy/config/load.h"
#include "strategy/plan.h"
#include "strategy/ranks.h"
#include "strategy/registry.h"

namespace castor::strategy {
namespace {

/// Of GPT-2's kind: learned positions, layer norm, gelu, biases, a tied head. With `hidden` of Qwen2's: rotary
/// positions, rms norm, SwiGLU of that width, biases of queries, keys and values alone.
struct Size {
  const char* name;
  std::int64_t layers, heads, width;
  std::int64_t vocabulary = 50304, key_heads = 0, hidden = 0;
  bool is_tied = true;
};
// GPT-2's sizes, and GPT-3's from 2.7B on; "tiny" runs anywhere in a second. Then those of Qwen2.5 (Qwen Team 2024,
// arXiv:2412.15115, table 1).
constexpr std::array<Size, 13> kSizes{{{"tiny", 2, 2, 32},
                                       {"124M", 12, 12, 768},
                                       {"350M", 24, 16, 1024},
                                       {"774M", 36, 20, 1280},
                                       {"1.5B", 48, 25, 1600},
                                       {"2.7B", 32, 32, 2560},
                                       {"6.7B", 32, 32, 4096},
                                       {"13B", 40, 40, 5120},
                                       {"qwen-0.5B", 24, 14, 896, 151936, 2, 4864},
                                       {"qwen-1.5B", 28, 12, 1536, 151936, 2, 8960},
                                       {"qwen-3B", 36, 16, 2048, 151936, 2, 11008},
                                       {"qwen-7B", 28, 28, 3584, 152064, 4, 18944, false},
                                       {"qwen-14B", 48, 40, 5120, 152064, 8, 13824, false}}};

std::string size_names() {
  std::string names;
  for (const Size& size : kSizes) names += cat(names.empty() ? "" : ", ", size.name);
  return names;
}

const Size& size_of(const std::string& name) {
  const auto found = std::ranges::find_if(kSizes, [&](const Size& size) { return name == size.name; });
  if (found == kSizes.end()) throw ConfigError(cat("no model ", name, "; there are: ", size_names()), "--model");
  return *found;
}

autograd::Batch tokens_on(Device device, const BenchArguments& arguments, std::uint64_t number) {
  const auto vocabulary = static_cast<double>(size_of(arguments.model).vocabulary);
  const auto make = [&](std::uint64_t stream) {
    const Tensor values = Tensor::empty({arguments.batch, arguments.context}, DType::f32);
    fill_uniform(values, {number, stream}, 0, vocabulary);
    return to_device(cast(values, DType::i64), device);
  };
  return {make(0), make(1)};
}

/// The plugin's config with what the command line says.
TypedConfig plugin_config(const BenchArguments& arguments) {
  TypedConfig config{*arguments.plugin};
  config.node = ConfigNode::map();
  config.node.set("type", *arguments.plugin);
  if (*arguments.plugin != "TorchDDPPlugin") config.node.set("precision", arguments.precision);
  Diagnostics diagnostics;
  apply_overrides(config.node, arguments.plugin_options, diagnostics);
  diagnostics.throw_if_any("--plugin-options");
  return config;
}

}  // namespace

TypedConfig bench_model(const BenchArguments& arguments) {
  const Size& size = size_of(arguments.model);
  TypedConfig config{"Gpt"};
  config.node = ConfigNode::map();
  config.node.set("type", "Gpt");
  config.node.set("n_layer", size.layers);
  config.node.set("n_head", size.heads);
  config.node.set("n_embd", size.width);
  config.node.set("block_size", arguments.context);
  config.node.set("vocab_size", size.vocabulary);
  config.node.set("tie_weights", size.is_tied);
  const bool is_qwen = size.hidden != 0;
  config.node.set("position", is_qwen ? "rotary" : "learned");
  config.node.set("bias", !is_qwen);
  if (is_qwen) {
    config.node.set("qkv_bias", true);
    config.node.set("n_kv_head", size.key_heads);
    config.node.set("n_hidden", size.hidden);
    config.node.set("norm", "rms");
    config.node.set("mlp", "swiglu");
    config.node.set("rotary_base", 1e6);
  }
  config.node.set("init_std", 0.02);
  config.node.set("recompute", arguments.recompute);
  config.node.set("recompute_activation", arguments.recompute_activation);
  return config;
}

namespace {

void check(const BenchArguments& arguments) {
  const auto at_least = [](const char* name, std::int64_t value, std::int64_t least) {
    if (value < least) throw ConfigError(cat(name, ": at least ", least, " expected, got ", value), name);
  };
  at_least("--batch", arguments.batch, 1);
  at_least("--context", arguments.context, 1);
  at_least("--steps", arguments.steps, 1);
  at_least("--warmup", arguments.warmup, 0);
  FileStatus status;
  if (arguments.trace && posix_file_system().status(*arguments.trace, status) == 0 && status.kind != FileKind::file) {
    throw ConfigError(cat("--trace: expected a file or a new name, ", *arguments.trace, " is a folder, device or pipe"),
                      "--trace");
  }
  if (!arguments.plugin && !arguments.plugin_options.empty()) {
    throw ConfigError("--plugin-options are a plugin's: name it with --plugin", "--plugin-options");
  }
}

}  // namespace

int run_bench(const BenchArguments& arguments, Registry& registry, std::ostream& out) {
  check(arguments);
  const dist::Environment environment = dist::process_environment();
  const dist::RankInfo info = dist::rank_info_from(environment, dist::infer_launcher(environment));
  share_host_memory(info.local_world_size);
  const bool is_named = arguments.device && arguments.device->starts_with("cuda:");
  const Device device =
      is_named ? device_from_name(*arguments.device) : device_of_rank(arguments.device, info.local_rank, "--device");
  if (info.world_size > 1 && !arguments.plugin)
    throw ConfigError(cat(info.world_size, " ranks need a --plugin"), "--plugin");
  const dist::GpuTransport gpu_transport = gpu_transport_of(arguments.gpu_transport, "--gpu-transport");
  const std::unique_ptr<Ranks> ranks =
      arguments.plugin ? std::make_unique<Ranks>(info, device, dist::JobOptions{}, gpu_transport) : nullptr;
  const bool is_main = info.rank == 0;
  const Precision precision = precision_of(arguments.precision, "--precision");
  const TypedConfig config = bench_model(arguments);
  const ModelFactory model = [&](const autograd::TensorOptions& where) { return registry.models.build(config, where); };
  PrepareOptions options;
  options.optimizer = [] {
    autograd::AdamWConfig adamw;
    adamw.lr = 3e-4;
    adamw.weight_decay = 0.1;
    return std::make_unique<autograd::AdamW>(adamw);
  };
  options.clip = ClipConfig{};
  options.clip->max_norm = 1.0;
  options.dispatch.train_micro_batch_size_per_gpu = arguments.batch;
  options.compile = arguments.compile;
  const auto paper = dist::make_meta_comm(info.rank, info.world_size);
  const auto make_strategy = [&](Device where) {
    if (ranks == nullptr) return std::make_unique<ColossalAIStrategy>(where, 0, AutoScaleConfig{}, precision);
    return std::make_unique<ColossalAIStrategy>(where, 0, AutoScaleConfig{},
                                                registry.plugins.build(plugin_config(arguments)),
                                                where.is_meta() ? *paper : ranks->world(), precision);
  };
  options.limits.device_bytes = limits_here(device).device_bytes;
  const Plan plan = make_plan(make_strategy, model, options,
                              {Tensor::zeros({arguments.batch, arguments.context}, DType::i64),
                               Tensor::zeros({arguments.batch, arguments.context}, DType::i64)},
                              device.type);
  options.forecast = plan.forecast;
  check_fits(plan, limits_here(device), cat(arguments.model, " with a batch of ", arguments.batch),
             "use a smaller --batch or --recompute, or a plugin that offloads less");

  const auto begin = BenchClock::now();
  std::unique_ptr<ColossalAIStrategy> strategy = make_strategy(device);
  strategy->prepare(model, options);
  const double setup = seconds_since(begin);
  std::vector<double> seconds;
  double loss = 0, begun = 0;
  auto last_read = BenchClock::now();
  for (std::int64_t i = 0; i < arguments.warmup + arguments.steps; ++i) {
    const auto number = static_cast<std::uint64_t>(i * info.world_size + info.rank);
    const autograd::Batch batch = tokens_on(device, arguments, number);
    if (i == 0) begun = process_age_seconds();
    loss = strategy->train_step(batch).losses.at("loss");
    if (i >= arguments.warmup) seconds.push_back(seconds_since(last_read));
    last_read = BenchClock::now();
    // Ranks would not all stop after the same step.
    if (stop_requested() && info.world_size == 1) throw Error(cat("stopped after ", i + 1, " steps"));
  }
  backend(device).synchronize();
  const double step = median(seconds);
  const auto tokens = static_cast<double>(arguments.batch * arguments.context * info.world_size);
  const MemoryStats memory = allocator(device).stats();
  nlohmann::ordered_json json;
  json["model"] = arguments.model;
  json["parameters"] = plan.parameters;
  json["device"] = to_string(device);
  json["precision"] = arguments.precision;
  json["plugin"] = arguments.plugin.value_or("");
  json["ranks"] = info.world_size;
  json["batch"] = arguments.batch;
  json["context"] = arguments.context;
  json["recompute"] = arguments.recompute;
  json["recompute_activation"] = arguments.recompute_activation;
  json["compile"] = arguments.compile;
  json["steps"] = arguments.steps;
  json["setup_seconds"] = setup;
  json["first_forward_after_seconds"] = begun;
  json["step_seconds"] = step;
  json["step_seconds_min"] = *std::min_element(seconds.begin(), seconds.end());
  json["step_seconds_max"] = *std::max_element(seconds.begin(), seconds.end());
  json["tokens_per_second"] = tokens / step;
  json["flops_of_a_step"] = plan.flops;
  json["tokens_per_second_per_rank"] = tokens / step / info.world_size;
  json["tflops_per_second_per_rank"] = plan.flops / step / 1e12;
  json["loss"] = loss;
  for (int i = 0; i < kCategoryCount; ++i) {
    const std::string name(category_name(static_cast<Category>(i)));
    json["memory"][name] = {{"peak", memory.peak[i]}, {"planned", plan.memory.peak[i]}};
  }
  json["memory"]["total"] = {{"peak", memory.peak_total}, {"planned", plan.memory.peak_total}};
  json["memory"]["reserved"] = memory.peak_reserved;
  const std::size_t host_peak = ranks == nullptr ? 0 : allocator(kHost).stats().peak_total;
  json["memory"]["host"] = {{"peak", host_peak}, {"planned", plan.host.peak_total}};
  OpTimer timer(device);
  if (arguments.ops) {
    const autograd::Batch batch = tokens_on(device, arguments, 0);
    const ObserverScope observe(timer);
    strategy->train_step(batch);
    for (const auto& [name, op] : timer.sorted()) {
      json["ops"].push_back({{"name", name},
                             {"calls", op.calls},
                             {"seconds", op.seconds},
                             {"tflops_per_second", op.flops / op.seconds / 1e12},
                             {"gigabytes_per_second", op.bytes / op.seconds / 1e9}});
    }
  }
  // Recorded passes have no ops of their own to be seen.
  IdleTime idle;
  if (arguments.trace || !arguments.compile) {
    Trace trace(device);
    {
      const autograd::Batch batch = tokens_on(device, arguments, 0);
      const ObserverScope observe(trace);
      const TraceSpan span("step", "phase", device);
      strategy->train_step(batch);
    }
    if (!arguments.compile) idle = idle_time(trace.spans(), device, "step");
    if (arguments.trace) {
      write_file_atomically(is_main ? *arguments.trace : cat(*arguments.trace, ".", info.rank),
                            trace.chrome_json(info.rank));
    }
  }
  if (!arguments.compile) {
    json["not_overlapped"] = {{"traced_step_seconds", idle.stretch},
                              {"seconds", idle.total()},
                              {"exchange", idle.exchange},
                              {"host", idle.host},
                              {"copies", idle.copies},
                              {"other", idle.other}};
  }
  autograd::Stepper::SharedElements shared;
  if (OptimWrapper* const wrapper = strategy->optim_wrapper()) shared = wrapper->stepper().shared_elements();
  const double by_gpu = static_cast<double>(shared.by_gpu),
               gpu_share = by_gpu / std::max(1.0, by_gpu + static_cast<double>(shared.by_host));
  if (shared.by_gpu > 0) json["gpu_share_of_host_states"] = gpu_share;
  strategy.reset();  // a product needs room
  const ProductRate product = measure_product_rate(device, plan.compute_dtype);
  json["product"] = {{"size", product.size},
                     {"dtype", dtype_name(product.dtype)},
                     {"tflops_per_second", product.flops / 1e12},
                     {"share_of_it", plan.flops / step / product.flops}};
  if (!is_main) return kExitOk;
  if (arguments.json) {
    out << dump_json(Json(json), 2) << "\n";
    return kExitOk;
  }
  out << arguments.model << " on " << device << ", " << arguments.precision;
  if (ranks != nullptr) {
    out << ", " << *arguments.plugin;
    for (const std::string& option : arguments.plugin_options) out << " " << option;
    out << " on " << info.world_size << (info.world_size == 1 ? " rank" : " ranks");
  }
  out << ", " << arguments.batch << " x " << arguments.context << " tokens"
      << (arguments.recompute ? ", recompute" : "") << (arguments.recompute_activation ? ", recompute activation" : "")
      << (arguments.compile ? ", compile" : "") << ": " << std::fixed << std::setprecision(0)
      << tokens / step / info.world_size << (info.world_size == 1 ? " tokens/s, " : " tokens/s a rank, ")
      << std::setprecision(1) << plan.flops / step / 1e12 << " TFLOP/s, a step takes " << std::setprecision(1)
      << step * 1e3 << " ms (" << *std::min_element(seconds.begin(), seconds.end()) * 1e3 << " to "
      << *std::max_element(seconds.begin(), seconds.end()) * 1e3 << " in " << arguments.steps << " steps), set up in "
      << setup << " s, first forward " << begun << " s after the program's start, loss " << std::setprecision(3) << loss
      << "\n"
      << std::setprecision(1) << 100 * plan.flops / step / product.flops << " % of what a product of " << product.size
      << " x " << product.size << " in " << dtype_name(product.dtype) << " makes here, " << product.flops / 1e12
      << " TFLOP/s\n";
  if (!arguments.compile) out << "not overlapped in a traced step: " << idle_text(idle) << "\n";
  if (shared.by_gpu > 0)
    out << "of the states on the host the GPU stepped " << 100 * gpu_share << " %, over the link\n";
  out << std::left << std::setw(14) << "memory" << std::right << std::setw(12) << "peak" << std::setw(12) << "planned"
      << "\n";
  for (int i = 0; i < kCategoryCount; ++i) {
    out << std::left << std::setw(14) << category_name(static_cast<Category>(i)) << std::right << std::setw(12)
        << bytes_text(memory.peak[i]) << std::setw(12) << bytes_text(plan.memory.peak[i]) << "\n";
  }
  const auto line = [&](const char* name, std::size_t peak, std::size_t planned) {
    out << std::left << std::setw(14) << name << std::right << std::setw(12) << bytes_text(peak) << std::setw(12)
        << bytes_text(planned) << "\n";
  };
  line("total", memory.peak_total, plan.memory.peak_total);
  if (host_peak > 0 || plan.host.peak_total > 0) line("on the host", host_peak, plan.host.peak_total);
  if (arguments.ops) {
    out << std::left << std::setw(28) << "op, timed alone" << std::right << std::setw(8) << "calls" << std::setw(10)
        << "ms" << std::setw(10) << "TFLOP/s" << std::setw(10) << "GB/s"
        << "\n";
    for (const auto& [name, op] : timer.sorted()) {
      out << std::left << std::setw(28) << name << std::right << std::setw(8) << op.calls << std::setprecision(3)
          << std::setw(10) << op.seconds * 1e3 << std::setprecision(1) << std::setw(10) << op.flops / op.seconds / 1e12
          << std::setprecision(0) << std::setw(10) << op.bytes / op.seconds / 1e9 << "\n";
    }
  }
  return kExitOk;
}

Subcommand bench_command() {
  auto arguments = std::make_shared<BenchArguments>();
  Subcommand command;
  command.name = "bench";
  command.summary = "time whole training steps of a model of GPT-2's or Qwen2's kind on random tokens";
  command.configure = [arguments](ArgumentList& list) {
    *arguments = {};
    list.option("--model", arguments->model, "SIZE", size_names());
    list.option("--batch", arguments->batch, "N", "sequences of a step");
    list.option("--context", arguments->context, "N", "tokens of a sequence");
    list.option("--device", arguments->device, "DEVICE", "cpu, cuda or cuda:N; left out: a GPU where there is one");
    list.option("--plugin", arguments->plugin, "NAME",
                "TorchDDPPlugin, lowlevel-zero or gemini: under castor run, too");
    list.option("--plugin-options", arguments->plugin_options, "KEY=VALUE ...", "of the plugin's config");
    list.option("--gpu-transport", arguments->gpu_transport, "NAME",
                "what several GPUs talk through: auto, peer or nccl, as env_cfg.dist_cfg.gpu_transport");
    list.option("--precision", arguments->precision, "NAME", "fp32, bf16, fp16, fp16_apex or fp8");
    list.option("--steps", arguments->steps, "N", "steps that are timed; the median counts");
    list.option("--warmup", arguments->warmup, "N", "steps before them");
    list.flag("--recompute", arguments->recompute, "keep only each block's input and run it again in backward");
    list.flag("--recompute-activation", arguments->recompute_activation,
              "keep only the input of each activation and compute it again in backward");
    list.flag("--compile", arguments->compile, "record the passes of a step and run them as one, and so its update");
    list.flag("--ops", arguments->ops, "after the timed steps, one with each op timed by itself");
    list.option("--trace", arguments->trace, "FILE",
                "after the timed steps, one whose timeline is written there (Chrome's trace format)");
    list.flag("--json", arguments->json, "print JSON");
  };
  command.run = [arguments](Registry& registry, std::ostream& out) { return run_bench(*arguments, registry, out); };
  return command;
}

}  // namespace castor::strategy
