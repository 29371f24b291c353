// Nothing is ignored: every option of the strategy block, of every plugin and precision, of optim_wrapper and env_cfg
// is changed from its default, and something that can be seen must change (option_probes.h). The options come from
// `describe`; one without a row in the tables below fails the test. A row says which value to try and what else must be
// set for the option to matter.
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "strategy/optim_wrapper.h"
#include "strategy/runner/runner_config.h"
#include "tests/unit/option_probes.h"

namespace castor::strategy {
namespace {

using namespace test_options;

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
  // What a deadline does takes a rank that is late, and a transport takes several processes: tests/fault has both. One
  // between GPUs takes several GPUs: tests/gpu.
  const std::vector<std::string> elsewhere = {"dist_cfg", "dist_cfg.timeout", "dist_cfg.transport",
                                              "dist_cfg.gpu_transport"};
  check_complete("optim_wrapper", struct_codec_of<OptimWrapperConfig>(), wrapper, of_other_models);
  check_retired("optim_wrapper", struct_codec_of<OptimWrapperConfig>());
  check_run_probes("optim_wrapper", wrapper, "optim_wrapper.");
  check_complete("env_cfg", struct_codec_of<EnvConfig>(), environment, elsewhere);
  check_retired("env_cfg", struct_codec_of<EnvConfig>());
  check_run_probes("env_cfg", environment, "env_cfg.");
}

}  // namespace castor::strategy
