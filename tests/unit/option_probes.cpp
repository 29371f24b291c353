// Runs, what is seen of them, and the comparisons; see option_probes.h.
#include "tests/unit/option_probes.h"

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

namespace castor::strategy::test_options {
namespace {

/// What could be seen of a run, by kind.
using Seen = std::map<std::string, std::string>;

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
    test::OpNotes notes(comm);
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

}  // namespace

Registry& types() {
  static Registry registry;
  static const bool is_filled = (test::add_tiny_types(registry), test::add_penalty_wrapper(registry), true);
  (void)is_filled;
  return registry;
}

void check_complete(const std::string& type, const StructCodec& codec, const std::vector<Probe>& probes,
                    const std::vector<std::string>& elsewhere) {
  std::set<std::string> known, tried(elsewhere.begin(), elsewhere.end());
  for (const OptionRow& row : option_rows(codec)) {
    if (row.status == OptionRow::Status::kOption) known.insert(row.name);
  }
  for (const Probe& probe : probes) tried.insert(probe.option);
  for (const std::string& name : known)
    CHECK_MESSAGE(tried.contains(name), type << "." << name << ": accepted, but no probe shows that it does anything");
  for (const std::string& name : tried) CHECK_MESSAGE(known.contains(name), type << "." << name << ": no such option");
}

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

void check_run_probes(const std::string& type, const std::vector<Probe>& probes, const std::string& prefix) {
  check_probes(type, probes, prefix, [](const std::vector<std::string>& overrides, int) { return see_run(overrides); });
}

}  // namespace castor::strategy::test_options
