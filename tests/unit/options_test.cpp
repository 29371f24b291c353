// Nothing is ignored: every option of the strategy block, of every plugin and precision, of optim_wrapper and env_cfg
// is changed from its default, and something that can be seen must change: a number, a byte count, a collective, a log
// line, a file, an error. The options come from `describe`; one without a row in the tables below fails the test.
//
// A row says which value to try and what else must be set for the option to matter. Delicate: what is compared must not
// change by itself, so each base is run twice; bytes are only counted in runs of one rank.
#include <algorithm>
#include <filesystem>
#include <mutex>
#include <set>
#include <sstream>

#include <doctest/doctest.h>
#include <sys/resource.h>

#include "core/base/file.h"
#include "core/base/log.h"
#include "core/base/parallel.h"
#include "core/device/backend.h"
#include "core/ops/cast.h"
#include "dist/comm_thread.h"
#include "strategy/config/option_help.h"
#include "strategy/data/data_loader.h"
#include "strategy/runner/runner.h"
#include "strategy/runner/runner_config.h"
#include "tests/support/mixed_model.h"
#include "tests/support/muted_output.h"
#include "tests/support/penalty_wrapper.h"
#include "tests/support/rank_training.h"
#include "tests/support/recording_comm.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_run.h"

namespace castor::strategy {
namespace {

/// What could be seen of a run, by kind.
using Seen = std::map<std::string, std::string>;

/// How one option is tried.
struct Probe {
  std::string option;                  ///< dotted name
  std::string value;                   ///< YAML
  std::vector<std::string> base = {};  ///< "path=value" that must hold for the option to matter
  int world_size = 1;
};

Registry& types() {
  static Registry registry;
  static const bool is_filled = (test::add_tiny_types(registry), test::add_penalty_wrapper(registry), true);
  (void)is_filled;
  return registry;
}

void apply(ConfigNode& node, const std::vector<std::string>& overrides) {
  Diagnostics diagnostics;
  apply_overrides(node, overrides, diagnostics);
  diagnostics.throw_if_any("overrides");
}

/// The messages of a log file, without their times.
std::string messages(const std::string& file) {
  std::istringstream in(read_text_file(file));
  std::string text, line;
  while (std::getline(in, line)) {
    const std::size_t level = line.find("INFO") != std::string::npos ? line.find("INFO") : line.find("WARNING");
    text += (level == std::string::npos ? line : line.substr(level)) + "\n";
  }
  return text;
}

std::string bytes_of_tiers(const std::vector<MemoryStats>& before) {
  std::string text;
  for (std::size_t tier = 0; tier < 2; ++tier) {
    const MemoryStats now = allocator(tier == 0 ? kCpu : kHost).stats();
    for (std::size_t i = 0; i < kCategoryCount; ++i) {
      text += cat(tier, "/", i, ": now ", now.current[i] - before[tier].current[i], ", peak ",
                  now.peak[i] - before[tier].current[i], "\n");
    }
  }
  return text;
}

/// Puts ops between the collectives of a rank.
class OpNotes final : public DispatchObserver {
 public:
  explicit OpNotes(test::RecordingComm& comm) : comm_(comm) {}
  void before(const OpCall& call) override { comm_.note(call.name); }

 private:
  test::RecordingComm& comm_;
};

/// Three updates of the mixed model with a `strategy` block.
Seen see_strategy(const ConfigNode& block, int world_size) {
  Seen seen;
  const test::TempDir folder;
  std::mutex mutex;
  std::vector<MemoryStats> before;
  for (const Device tier : {kCpu, kHost}) {
    allocator(tier).reset_peaks();
    before.push_back(allocator(tier).stats());
  }
  const auto run = [&](dist::Comm& inner) {
    test::RecordingComm comm(inner);
    LogOptions log;
    log.use_console = false;
    log.file = (folder.path() / cat("rank", inner.rank(), ".log")).string();
    Logger logger(log);
    const LogScope scope(logger);
    OpNotes notes(comm);
    const ObserverScope observe(notes);
    std::ostringstream numbers;
    std::string states;
    {
      TypedConfig typed;
      typed.type = "ColossalAIStrategy";
      typed.node = block;
      const auto strategy = types().strategies.build(typed, kCpu, 7, &comm);
      PrepareOptions options;
      options.optimizer = test::make_adamw;
      options.dispatch.train_micro_batch_size_per_gpu = 4;
      options.dispatch.max_iters = 3;
      strategy->prepare(
          [](const autograd::TensorOptions& tensor) { return std::make_shared<test::MixedModel>(tensor, false); },
          options);
      SamplerOptions loading;
      loading.batch_size = 4;
      loading.world_size = inner.world_size();
      loading.rank = inner.rank();
      DataLoader loader(std::make_shared<test::CountedSamples>(), loading);
      for (int i = 0; i < 3; ++i) {
        const StepResult step = strategy->train_step(loader.next());
        numbers << step.losses.at("loss") << ' ' << step.update.grad_norm.value_or(-1) << ' '
                << step.update.loss_scale.value_or(0) << '\n';
      }
      if (inner.rank() == 0 && inner.world_size() == 1) seen["bytes"] = bytes_of_tiers(before);
      for (const auto& [name, variable] : strategy->model().named_parameters()) {
        const std::vector<float> values = cast(variable.data(), DType::f32).to_vector<float>();
        numbers << name << ' ' << values.front() << ' ' << values.back() << '\n';
      }
      for (const auto& [name, state] : strategy->optim_wrapper()->stepper().named_states()) states += name + "\n";
      strategy->save_checkpoint((folder.path() / "iter_3").string());
    }
    const std::lock_guard lock(mutex);
    if (inner.rank() != 0) return;
    seen["numbers"] = numbers.str();
    seen["states"] = states;
    seen["trace"] = comm.text();
    seen["log"] = messages(log.file);
  };
  try {
    dist::run_ranks(world_size, run);
  } catch (const Error& error) {
    seen["error"] = error.what();
  }
  return seen;
}

/// A whole run of the tiny config, in one process.
Seen see_run(const std::vector<std::string>& overrides) {
  const test::TempDir folder;
  Seen seen;
  rlimit files{};
  getrlimit(RLIMIT_NOFILE, &files);
  const rlimit few{std::min<rlim_t>(files.rlim_max, 256), files.rlim_max};
  setrlimit(RLIMIT_NOFILE, &few);
  try {
    const test::MutedOutput muted;
    Runner runner(test::tiny_config(folder.path().string(), overrides), "tiny.yaml", types());
    runner.train();
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder.path())) {
      if (entry.path().extension() != ".safetensors") continue;
      seen["files"] += cat(entry.path().filename().string(), " ",
                           std::hash<std::string>{}(read_text_file(entry.path().string())), "\n");
    }
  } catch (const Error& error) {
    seen["error"] = error.what();
  }
  set_process_logger(nullptr);
  rlimit now{};
  getrlimit(RLIMIT_NOFILE, &now);
  seen["open files"] = cat(now.rlim_cur);
  seen["threads"] = cat(num_threads());
  setrlimit(RLIMIT_NOFILE, &files);
  set_num_threads(1);
  return seen;
}

/// The rows of a struct that have no probe, and the probes of options that are not there.
///   elsewhere  options whose effect other tests show
void check_complete(const std::string& type, const StructCodec& codec, const std::vector<Probe>& probes,
                    const std::vector<std::string>& elsewhere = {}) {
  std::set<std::string> known, tried(elsewhere.begin(), elsewhere.end());
  for (const OptionRow& row : option_rows(codec)) {
    if (row.status == OptionRow::Status::kOption) known.insert(row.name);
  }
  for (const Probe& probe : probes) tried.insert(probe.option);
  for (const std::string& name : known)
    CHECK_MESSAGE(tried.contains(name), type << "." << name << ": accepted, but no probe shows that it does anything");
  for (const std::string& name : tried) CHECK_MESSAGE(known.contains(name), type << "." << name << ": no such option");
}

/// A value of the same kind that is not `value`.
ConfigNode another(const ConfigNode& value) {
  if (value.is_bool()) return !value.as_bool();
  if (value.is_int()) return value.as_int() + 1;
  if (value.is_float()) return value.as_float() + 1;
  return "something else";
}

/// Finds retired options and tries each at the peers' default and at another value.
class RetiredOptions final : public FieldVisitor {
 public:
  std::vector<std::pair<std::string, ConfigNode>> found;

 protected:
  void on_field(const FieldInfo&, const ValueCodec&, void*) override {}
  void on_refused(std::string_view, std::string_view) override {}
  void on_retired(std::string_view name, const ConfigNode& peers_default, std::string_view) override {
    found.emplace_back(name, peers_default);
  }
};

void check_retired(const std::string& type, const StructCodec& codec) {
  RetiredOptions retired;
  codec.visit(retired, codec.make().get());
  for (const auto& [name, peers_default] : retired.found) {
    const auto mistakes_about = [&, option = name](const ConfigNode& value) {
      ConfigNode node = ConfigNode::map();
      node.set(option, value);
      Diagnostics diagnostics;
      ParseContext context{diagnostics, nullptr};
      codec.parse(node, "", {}, context, codec.make().get());
      return std::count_if(diagnostics.mistakes().begin(), diagnostics.mistakes().end(),
                           [&](const Mistake& mistake) { return mistake.path == option; });
    };
    CHECK_MESSAGE(mistakes_about(peers_default) == 0, type << "." << name << " at the peers' default");
    CHECK_MESSAGE(mistakes_about(another(peers_default)) == 1, type << "." << name << " at another value");
  }
}

/// Runs every probe; `see` gets overrides and ranks.
template <class See>
void check_probes(const std::string& type, const std::vector<Probe>& probes, const std::string& prefix,
                  const See& see) {
  std::map<std::pair<std::vector<std::string>, int>, Seen> bases;
  for (const Probe& probe : probes) {
    const auto key = std::pair(probe.base, probe.world_size);
    if (!bases.contains(key)) {
      see(probe.base, probe.world_size);  // what is made once a process is there now
      bases[key] = see(probe.base, probe.world_size);
      INFO(type << "." << probe.option << ": its base");
      CHECK(see(probe.base, probe.world_size) == bases[key]);
    }
    std::vector<std::string> changed = probe.base;
    changed.push_back(prefix + probe.option + "=" + probe.value);
    CHECK_MESSAGE(see(changed, probe.world_size) != bases[key], type << "." << probe.option << " changes nothing");
  }
}

/// As check_probes, with overrides of the `strategy` block.
void check_strategy_probes(const std::string& type, const std::vector<Probe>& probes, const std::string& block,
                           const std::string& prefix) {
  check_probes(type, probes, prefix, [&](const std::vector<std::string>& overrides, int world_size) {
    ConfigNode node = read_yaml_text(block, type);
    try {
      apply(node, overrides);
    } catch (const Error& error) {
      return Seen{{"error", error.what()}};
    }
    return see_strategy(node, world_size);
  });
}

/// The loss scale's options, at a place in the `strategy` block.
///   others  what else the base needs
std::vector<Probe> scaler_probes(const std::string& at, const std::vector<std::string>& others) {
  const auto with = [&](std::vector<std::string> base) {
    for (std::string& each : base) each = at + each;
    base.insert(base.begin(), others.begin(), others.end());
    return base;
  };
  const std::vector<std::string> overflows = with({"initial_scale=4294967296", "hysteresis=1"});
  return {{"initial_scale", "1024", with({"initial_scale=64"})},
          {"min_scale", "4294967296", overflows},
          {"growth_factor", "4", with({"initial_scale=64", "growth_interval=1"})},
          {"backoff_factor", "0.25", overflows},
          {"growth_interval", "1", with({"initial_scale=64"})},
          {"hysteresis", "3", overflows},
          {"max_scale", "64", with({"initial_scale=64", "growth_interval=1"})},
          {"max_skips", "2", overflows}};
}

std::vector<Probe> joined(std::vector<Probe> probes, const std::vector<Probe>& more) {
  probes.insert(probes.end(), more.begin(), more.end());
  return probes;
}

const std::vector<std::string> kFp32 = {"plugin.precision=fp32"}, kBf16 = {"plugin.precision=bf16"};

std::vector<Probe> ddp_probes() { return {{"bucket_cap_mb", "0.001", {}, 2}}; }

std::vector<Probe> zero_probes() {
  return joined(
      {{"stage", "2", kFp32},
       {"precision", "fp32"},
       {"use_fp8", "true", kBf16},
       {"max_norm", "0.01", kFp32},
       {"norm_type", "3", kFp32},
       {"reduce_bucket_size_in_m", "0.0003", kFp32, 2},
       {"communication_dtype", "fp16", kFp32, 2},
       {"overlap_communication", "false", {"plugin.precision=fp32", "plugin.reduce_bucket_size_in_m=0.0003"}, 2},
       {"overlap_allgather", "true", kFp32, 2},
       {"cpu_offload", "true", kFp32},
       {"extra_dp_size", "2", kFp32, 2},
       {"master_weights", "false", kBf16}},
      scaler_probes("plugin.", {"plugin.precision=fp16"}));
}

std::vector<Probe> gemini_probes() {
  const std::vector<std::string> small = {"plugin.precision=fp32", "plugin.min_chunk_size_m=0.0003",
                                          "plugin.search_range_m=0.0001", "plugin.hidden_dim=16"};
  const auto with = [&](std::vector<std::string> base) {
    base.insert(base.begin(), small.begin(), small.end());
    return base;
  };
  const std::string folder = "plugin.nvme_offload_dir=" + std::filesystem::temp_directory_path().string();
  const std::vector<std::string> tight = with({"plugin.placement_policy=auto", "plugin.device_memory_gib=8e-6"});
  return joined(
      {{"placement_policy", "auto", small, 2},
       {"precision", "bf16", small},
       {"use_fp8", "true", kBf16},
       {"enable_gradient_accumulation", "true", small},
       {"max_prefetch", "2", small, 2},
       {"shard_param_frac", "0", small, 2},
       {"offload_optim_frac", "1", small},
       {"offload_param_frac", "1", small},
       {"nvme_offload_fraction", "1", with({"plugin.offload_optim_frac=1", folder})},
       {"nvme_offload_param_fraction", "1",
        with({"plugin.offload_optim_frac=1", "plugin.offload_param_frac=1", folder})},
       {"nvme_offload_dir", "/dev/null/folder",
        with({"plugin.offload_optim_frac=1", "plugin.nvme_offload_fraction=1", folder})},
       {"extra_dp_size", "2", small, 2},
       {"warmup_non_model_data_ratio", "0.1", tight, 2},
       {"steady_cuda_cap_ratio", "1e-6", with({"plugin.placement_policy=auto", "plugin.device_memory_gib=1"}), 2},
       {"device_memory_gib", "1e-6", with({"plugin.placement_policy=auto"}), 2},
       {"master_weights", "false", kBf16},
       {"min_chunk_size_m", "0.001", small, 2},
       {"search_range_m", "0.001", small, 2},
       {"hidden_dim", "1000", with({"plugin.search_range_m=0.001"}), 2},
       {"enable_async_reduce", "false", small},
       {"max_norm", "0.01", small},
       {"norm_type", "3", small},
       {"verbose", "true", small}},
      scaler_probes("plugin.", {"plugin.precision=fp16"}));
}

std::vector<Probe> apex_probes() {
  return {{"loss_scale", "128"},
          {"keep_batchnorm_fp32", "false"},
          {"min_loss_scale", "1048576"},
          {"max_loss_scale", "1024"},
          {"max_skips", "2", {"mixed_precision.loss_scale=1e30"}}};
}

}  // namespace

TEST_CASE("every option of every plugin changes something that can be seen") {
  // Host memory counts with a plan only (gemini_auto_test).
  const std::map<std::string, std::vector<std::string>> elsewhere = {{"GeminiPlugin", {"host_memory_gib"}}};
  const std::map<std::string, std::vector<Probe>> tables = {
      {"TorchDDPPlugin", ddp_probes()}, {"LowLevelZeroPlugin", zero_probes()}, {"GeminiPlugin", gemini_probes()}};
  std::set<const StructCodec*> seen;
  for (const TypeTableBase::Entry& entry : types().plugins.entries()) {
    if (entry.options == nullptr) continue;
    seen.insert(entry.options);
    const auto table = tables.find(entry.name);
    if (table == tables.end()) continue;
    CAPTURE(entry.name);
    const auto others = elsewhere.find(entry.name);
    check_complete(entry.name, *entry.options, table->second,
                   others == elsewhere.end() ? std::vector<std::string>{} : others->second);
    check_retired(entry.name, *entry.options);
    check_strategy_probes(entry.name, table->second,
                          cat("{type: ColossalAIStrategy, plugin: {type: ", entry.name, "}}"), "plugin.");
  }
  CHECK(seen.size() == tables.size());  // another plugin needs another table
}

TEST_CASE("every option of every precision changes something that can be seen") {
  const std::map<std::string, std::vector<Probe>> tables = {{"fp16", scaler_probes("mixed_precision.", {})},
                                                            {"fp16_apex", apex_probes()}};
  for (const TypeTableBase::Entry& entry : types().precisions.entries()) {
    CAPTURE(entry.name);
    const auto table = tables.find(entry.name);
    const std::vector<Probe> probes = table == tables.end() ? std::vector<Probe>{} : table->second;
    check_complete(entry.name, *entry.options, probes);
    check_retired(entry.name, *entry.options);
    check_strategy_probes(
        entry.name, probes,
        cat("{type: ColossalAIStrategy, plugin: TorchDDPPlugin, mixed_precision: {type: ", entry.name, "}}"),
        "mixed_precision.");
  }
}

TEST_CASE("every option of the strategy block changes something that can be seen") {
  const TypeTableBase::Entry& entry = *types().strategies.find("ColossalAIStrategy");
  const std::vector<Probe> probes = {
      {"plugin", "{type: lowlevel-zero, precision: fp32}"},
      {"mixed_precision", "bf16"},
      {"model_wrapper", "{type: PenaltyWrapper, weight: 1}"},
      // An error without a runner; what they do in a run: strategy_surface_test.
      {"work_dir", "x"},
      {"experiment_name", "x"},
      {"env_kwargs", "{resource_limit: 300}"},
      {"log_kwargs", "{log_level: ERROR}"},
      {"auto_scale_lr", "{enable: true, base_batch_size: 2}"},
      {"auto_scale_lr.enable", "true", {"auto_scale_lr.base_batch_size=2"}},
      {"auto_scale_lr.base_batch_size", "8", {"auto_scale_lr={enable: true, base_batch_size: 2}"}}};
  check_complete(entry.name, *entry.options, probes);
  check_retired(entry.name, *entry.options);
  check_strategy_probes(entry.name, probes, "{type: ColossalAIStrategy, plugin: TorchDDPPlugin}", "");
}

TEST_CASE("every option of optim_wrapper and env_cfg changes something that can be seen") {
  const std::vector<std::string> by_norm = {"optim_wrapper.clip_grad={max_norm: 1}"},
                                 by_value = {"optim_wrapper.clip_grad={type: value, clip_value: 1}"};
  const std::vector<Probe> wrapper = {{"type", "AmpOptimWrapper"},
                                      {"optimizer", "{type: SGD, lr: 0.01}"},
                                      {"accumulative_counts", "2"},
                                      {"clip_grad", "{max_norm: 0.01}"},
                                      {"clip_grad.type", "value", by_norm},
                                      {"clip_grad.max_norm", "0.01", by_norm},
                                      {"clip_grad.norm_type", "1", by_norm},
                                      {"clip_grad.clip_value", "0.001", by_value},
                                      {"paramwise_cfg", "{bias_lr_mult: 2}"},
                                      {"paramwise_cfg.custom_keys", "{first: {lr_mult: 2}}"},
                                      {"paramwise_cfg.bias_lr_mult", "2"},
                                      {"paramwise_cfg.bias_decay_mult", "0"}};
  // These take layers and losses that the tiny model has not: param_groups_test, loss_normalisation_test.
  const std::vector<std::string> of_other_models = {"paramwise_cfg.custom_keys.*.lr_mult",
                                                    "paramwise_cfg.custom_keys.*.decay_mult",
                                                    "paramwise_cfg.norm_decay_mult",
                                                    "paramwise_cfg.flat_decay_mult",
                                                    "paramwise_cfg.dwconv_decay_mult",
                                                    "paramwise_cfg.bypass_duplicate",
                                                    "loss_normalisation"};
  const std::vector<Probe> environment = {{"resource_limit", "300", {"env_cfg.resource_limit=280"}},
                                          {"num_threads", "2", {"env_cfg.num_threads=1"}},
                                          {"device", "cuda", {"env_cfg.device=cpu"}}};
  // What a deadline does takes a rank that is late, and a transport takes several processes: tests/fault has both.
  const std::vector<std::string> elsewhere = {"dist_cfg", "dist_cfg.timeout", "dist_cfg.transport"};
  const auto see = [](const std::vector<std::string>& overrides, int) { return see_run(overrides); };
  check_complete("optim_wrapper", struct_codec_of<OptimWrapperConfig>(), wrapper, of_other_models);
  check_retired("optim_wrapper", struct_codec_of<OptimWrapperConfig>());
  check_probes("optim_wrapper", wrapper, "optim_wrapper.", see);
  check_complete("env_cfg", struct_codec_of<EnvConfig>(), environment, elsewhere);
  check_retired("env_cfg", struct_codec_of<EnvConfig>());
  check_probes("env_cfg", environment, "env_cfg.", see);
}

}  // namespace castor::strategy
