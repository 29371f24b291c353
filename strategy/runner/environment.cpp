// Facts of the machine are asked of the system once; nothing here fails a run.
#include "strategy/runner/environment.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <thread>

#include <cpuid.h>
#include <sys/utsname.h>

#include "build_config.h"
#include "core/base/cpu_isa.h"
#include "core/base/error.h"
#include "core/base/host_memory.h"
#include "core/base/parallel.h"
#include "core/device/backend.h"
#include "core/device/caching_allocator.h"
#include "core/ops/arithmetic.h"
#include "core/ops/attention_kernels.h"

namespace castor::strategy {
namespace {

std::string processor_name() {
  constexpr unsigned kFirstLeaf = 0x80000002, kLeaves = 3;  // of 16 characters each
  std::array<unsigned, kLeaves * 4 + 1> words{};
  for (unsigned leaf = 0; leaf < kLeaves; ++leaf) {
    unsigned* const at = words.data() + std::size_t{leaf} * 4;
    if (__get_cpuid(kFirstLeaf + leaf, at, at + 1, at + 2, at + 3) == 0) return "unknown";
  }
  return reinterpret_cast<const char*>(words.data());
}

}  // namespace

std::optional<int> threads_to_set(std::optional<std::int64_t> asked, int world_size,
                                  const dist::Environment& environment) {
  if (asked) return static_cast<int>(*asked);
  if (world_size > 1 && !environment("OMP_NUM_THREADS")) return 1;
  return {};
}

LogOptions log_options(const LogConfig& config, LogLevel level, const std::string& work_dir, const std::string& stamp,
                       int rank) {
  LogOptions log;
  log.level = level;
  if (rank == 0) {
    log.file = config.log_file.value_or(log_file_path(work_dir, stamp));
  } else if (config.distributed) {
    log.rank = rank;
    log.file = config.log_file ? cat(*config.log_file, ".rank", rank) : log_file_path(work_dir, stamp, rank);
  } else {
    log.level = std::max(level, LogLevel::kWarning);
  }
  return log;
}

EnvironmentFacts collect_env(const dist::RankInfo& info, Device device) {
  EnvironmentFacts facts;
  utsname names{};
  const bool is_known = uname(&names) == 0;
  facts.system = {{"platform", is_known ? cat(names.sysname, " ", names.release, " ", names.machine) : "unknown"},
                  {"processor", processor_name()},
                  {"cores", cat(std::thread::hardware_concurrency())},
                  {"instruction set", std::string(cpu_isa_name(cpu_isa()))},
                  {"host memory", bytes_text(host_memory().total)},
                  {"GPUs", cat(visible_gpus())},
                  {"castor", kVersion},
                  {"compiler", cat("GCC ", __VERSION__)},
                  {"built with CUDA", kHasCuda ? "yes" : "no"},
                  {"built with NCCL", kHasNccl ? "yes" : "no"}};
  const char* threads = std::getenv("OMP_NUM_THREADS");
  facts.runtime = {{"launcher", info.launcher},
                   {"distributed", info.world_size > 1 ? "yes" : "no"},
                   {"ranks", cat(info.world_size)},
                   {"ranks on this machine", cat(info.local_world_size)},
                   {"device", to_string(device)},
                   {"compute threads", cat(num_threads())},
                   {"OMP_NUM_THREADS", threads == nullptr ? "not set" : threads}};
  const Arithmetic arithmetic = arithmetic_of(device);
  if (device.is_cuda()) facts.runtime.emplace_back("GPU", arithmetic.processor);
  facts.runtime.emplace_back("matrix products", arithmetic.library);
  if (const std::string library = attention_library(device); !library.empty()) {
    facts.runtime.emplace_back("attention", cat("castor and ", library));
  }
  return facts;
}

std::string environment_text(const EnvironmentFacts& facts) {
  std::string text;
  const auto add = [&text](const char* title, const EnvironmentFacts::Facts& list) {
    text += title;
    for (const auto& [name, value] : list) text += cat("\n  ", name, ": ", value);
  };
  add("system environment", facts.system);
  add("\nruntime environment", facts.runtime);
  return text;
}

}  // namespace castor::strategy
