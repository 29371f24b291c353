// What a training config may say: every mistake in one message, with its place and the nearest valid name; every key of
// the peers that this version lacks refused by name, and at the peer's default accepted.
#include <functional>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "core/base/error.h"
#include "strategy/runner/runner.h"
#include "tests/support/tiny_run.h"

namespace castor::strategy {
namespace {

/// The error of a config, or "" if it is accepted.
std::string mistakes_of(const std::vector<std::string>& overrides) {
  Registry registry;
  test::add_tiny_types(registry);
  const ConfigNode config = test::tiny_config("work", overrides);
  try {
    const Runner runner(config, "tiny.yaml", registry);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

TEST_CASE("a good config is accepted, and its effective form holds every default and is accepted again") {
  CHECK(mistakes_of({}) == "");
  Registry registry;
  test::add_tiny_types(registry);
  const Runner runner(test::tiny_config("work"), "tiny.yaml", registry);
  const std::string yaml = runner.effective_yaml();
  for (const char* part : {"accumulative_counts: 1", "width: 16", "resource_limit: 4096", "round_up", "val_begin: 1",
                           "topk: [1]", "betas: [0.9, 0.999]"}) {
    CHECK_MESSAGE(has(yaml, part), part);
  }
  const Runner again(read_yaml_text(yaml, "effective.yaml"), "effective.yaml", registry);
  CHECK(again.effective_yaml() == yaml);
}

TEST_CASE("all mistakes of a config come in one message with their paths and the nearest names") {
  const std::string text = mistakes_of(
      {"modle={type: X}", "model.wdith=3", "train_dataloader.batch_size=0", "train_dataloader.dataset.type=TinySample",
       "optim_wrapper.optimizer.type=AdmaW", "train_cfg.max_epochs=x", "val_evaluator.type=Accurcay",
       "default_hooks.logger.intervall=5", "param_scheduler=[{type: LinearLR}, {type: CosineAnealingLR}]",
       "custom_hooks=[{type: EmaHook}]", "log_level=LOUD", "strategy.type=ColossalAiStrategy", "randomness.seed=-1"});
  INFO(text);
  CHECK(text.starts_with("13 mistakes in tiny.yaml:"));
  const std::vector<std::pair<std::string, std::string>> lines = {
      {"modle", "did you mean \"model\"?"},
      {"model.wdith", "did you mean \"width\"?"},
      {"train_dataloader.batch_size", "must be >= 1"},
      {"train_dataloader.dataset", "did you mean \"TinySamples\"?"},
      {"optim_wrapper.optimizer", "did you mean \"AdamW\"?"},
      {"train_cfg.max_epochs", "string \"x\""},
      {"val_evaluator", "did you mean \"Accuracy\"?"},
      {"default_hooks.logger.intervall", "did you mean \"interval\"?"},
      {"param_scheduler.1", "did you mean \"CosineAnnealingLR\"?"},
      {"custom_hooks.0", "unknown hook \"EmaHook\"; known: LoggerHook"},
      {"log_level", "INFO"},
      {"strategy", "did you mean \"ColossalAIStrategy\"?"},
      {"randomness.seed", "must be >= 0"}};
  for (const auto& [path, reason] : lines) {
    bool is_found = false;
    for (std::size_t begin = 0; begin < text.size();) {
      const std::size_t end = std::min(text.find('\n', begin), text.size());
      const std::string line = text.substr(begin, end - begin);
      is_found = is_found || (line.starts_with("  " + path) && has(line, reason));
      begin = end + 1;
    }
    CHECK_MESSAGE(is_found, path << ": " << reason);
  }
}

TEST_CASE("counts beyond what a run can count are refused, and so are epochs that make too many iterations") {
  const std::vector<std::pair<std::string, std::string>> bounds = {{"train_cfg.max_epochs", "1e+12"},
                                                                   {"train_dataloader.batch_size", "67108864"},
                                                                   {"val_dataloader.batch_size", "67108864"},
                                                                   {"optim_wrapper.accumulative_counts", "65536"},
                                                                   {"env_cfg.num_threads", "8192"}};
  for (const auto& [field, most] : bounds) {
    CAPTURE(field);
    if (most != "1e+12") CHECK(mistakes_of({cat(field, "=", most)}) == "");
    for (const char* huge : {"99999999999999", "4611686018427387904", "9223372036854775807"}) {
      const std::string text = mistakes_of({cat(field, "=", huge)});
      CHECK_MESSAGE(has(text, field), text);
      CHECK_MESSAGE(has(text, cat("must be <= ", most)), text);
    }
  }
  const std::vector<std::string> by_iter = {"train_cfg.by_epoch=false", "train_cfg.max_epochs=null",
                                            "train_cfg.max_iters=9223372036854775807"};
  CHECK(has(mistakes_of(by_iter), "must be <= 1e+12"));
}

TEST_CASE("what this version lacks is refused by name with the reason, never as unknown") {
  const std::vector<std::pair<std::string, std::string>> refused = {
      {"strategy.plugin={type: lowlevel-zero, fp8_communication: true}", "in the precision they are computed in"},
      {"strategy.plugin={type: GeminiPlugin, fp8_communication: true}", "in the precision they are used in"},
      {"strategy.plugin={type: TorchDDPPlugin, check_reduction: true}", "always"},
      {"strategy.plugin={type: HybridParallelPlugin}", "no such plugin"},
      {"strategy.mixed_precision={type: fp16_apex, opt_level: O1}", "patches PyTorch's functions"},
      {"strategy.config={a: 1}", "options belong to the plugin"},
      {"strategy={_delete_: true, type: DDPStrategy}", "use ColossalAIStrategy"},
      {"visualizer={type: Visualizer}", "not in this version"},
      {"data_preprocessor={type: X}", "not in this version"},
      {"log_processor={window_size: 5}", "not in this version"},
      {"default_scope=mmdet", "one registry"},
      {"optim_wrapper.paramwise_cfg={dcn_offset_lr_mult: 0.1}", "deformable"},
      {"optim_wrapper.paramwise_cfg={bias_decay_mult: -1}", ">= 0"},
      {"optim_wrapper.constructor=X", "paramwise_cfg"},
      {"optim_wrapper.type=AmpOptimWrapper", "ColossalAIOptimWrapper"},
      {"optim_wrapper.optimizer={_delete_: true, type: HybridAdam, nvme_offload_fraction: 0.5}", "plugin's choice"},
      {"optim_wrapper.optimizer={_delete_: true, type: FusedAdam, amsgrad: true}", "Adam and AdamW take it"},
      {"optim_wrapper.optimizer={_delete_: true, type: CPUAdam, nvme_offload_dir: /tmp}", "plugin's choice"},
      {"optim_wrapper.optimizer={_delete_: true, type: AdamW8bit, optim_bits: 32}", "AdamW"},
      {"optim_wrapper.optimizer={_delete_: true, type: CAME}", "is needed"},
      {"optim_wrapper.optimizer={_delete_: true, type: Lars, eeta: 2}", "(0, 1]"},
      {"train_cfg.dynamic_intervals=[[1, 2]]", "not in this version"},
      {"train_dataloader.num_workers=4", "training thread"},
      {"train_dataloader.persistent_workers=true", "no worker processes"},
      {"train_dataloader.pin_memory=true", "takes microseconds"},
      {"train_dataloader.sampler={type: InfiniteSampler}", "goes on with the next epoch"},
      {"env_cfg.dist_cfg={backend: gloo}", "as transport says"},
      {"env_cfg.dist_cfg={gpu_transport: pigeons}", "nccl"},
      {"env_cfg.mp_cfg={}", "no worker processes"},
      {"env_cfg.cudnn_benchmark=true", "chosen by shape"},
      {"randomness.diff_rank_seed=true", "results depend on their number"},
      {"randomness.deterministic=false", "always deterministic"},
      {"val_cfg.fp16=true", "precision of training"},
      {"default_hooks.timer={type: IterTimerHook}", "always on"},
      {"default_hooks.checkpoint={type: CheckpointHook, out_dir: elsewhere}", "where resume looks"},
      {"default_hooks.checkpoint={type: CheckpointHook, filename_tmpl: x}", "iter_N or epoch_N"},
      {"default_hooks.checkpoint={type: CheckpointHook, max_keep_ckpts: 0}", "at least 1, or -1 for all"},
      {"default_hooks.checkpoint={type: CheckpointHook, keep_every: 2}", "needs max_keep_ckpts"},
      {"custom_hooks=[{type: EMAHook}]", "not in this version"},
  };
  for (const auto& [change, reason] : refused) {
    const std::string text = mistakes_of({change});
    INFO(change);
    INFO(text);
    CHECK(text.starts_with("1 mistake in tiny.yaml:"));
    CHECK(has(text, reason));
    CHECK_FALSE(has(text, "unknown"));
    const std::string key = change.substr(0, change.find('='));
    CHECK(has(text, key));
  }
}

TEST_CASE("keys of the peers without a meaning here are accepted at the peer's default") {
  CHECK(
      mistakes_of({"resume=false", "default_scope=castor", "visualizer=null", "data_preprocessor=null",
                   "train_dataloader.num_workers=0", "train_dataloader.persistent_workers=false",
                   "env_cfg.cudnn_benchmark=false", "randomness.deterministic=true", "randomness.diff_rank_seed=false",
                   "val_cfg.fp16=false", "launcher=none", "strategy.mixed_precision=null",
                   "default_hooks.checkpoint={type: CheckpointHook, save_optimizer: true, max_keep_ckpts: -1}"}) == "");
}

TEST_CASE("parts that go together are asked for together, and loops that contradict themselves are refused") {
  const std::vector<std::pair<std::vector<std::string>, std::string>> wrong = {
      {{"train_cfg=null"}, "train_dataloader, train_cfg and optim_wrapper go together"},
      {{"val_evaluator=null"}, "val_dataloader, val_cfg and val_evaluator go together"},
      {{"test_cfg={}"}, "test_dataloader, test_cfg and test_evaluator go together"},
      {{"train_dataloader=null", "train_cfg=null", "optim_wrapper=null", "param_scheduler={type: ConstantLR}"},
       "needs an optim_wrapper"},
      {{"train_cfg.by_epoch=false"}, "max_iters"},
      {{"train_cfg.max_iters=5"}, "no meaning in a loop that counts epochs"},
      {{"train_cfg.type=IterBasedTrainLoop", "train_cfg.by_epoch=true"}, "contradicts type"},
      {{"train_cfg.max_epochs=null"}, "is needed by a loop that counts epochs"},
      {{"optim_wrapper.clip_grad={type: value}"}, "is needed by type value"},
      {{"optim_wrapper.clip_grad={}"}, "is needed by type norm"},
      {{"auto_scale_lr={enable: true}"}, "is needed when enable is true"},
      {{"optim_wrapper.optimizer.lr=-1"}, "must be at least 0"},
      {{"optim_wrapper.optimizer.betas=[0.9, 1]"}, "[0, 1)"},
      {{"model.dropout=1"}, "must be < 1"},
  };
  for (const auto& [overrides, reason] : wrong) {
    const std::string text = mistakes_of(overrides);
    INFO(overrides[0]);
    INFO(text);
    CHECK(has(text, reason));
  }
}

}  // namespace
}  // namespace castor::strategy
