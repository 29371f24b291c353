// The loops and the order of building; see runner.h.
#include "strategy/runner/runner.h"

#include <array>
#include <cerrno>
#include <chrono>
#include <climits>
#include <nlohmann/json.hpp>
#include <random>

#include <sys/resource.h>
#include <unistd.h>

#include "autograd/optim/optimizer.h"
#include "build_config.h"
#include "core/base/clock.h"
#include "core/base/file.h"
#include "core/base/host_memory.h"
#include "core/base/interrupt.h"
#include "core/base/json.h"
#include "core/base/log.h"
#include "core/base/parallel.h"
#include "dist/comm_meta.h"
#include "dist/values.h"
#include "strategy/checkpoint.h"
#include "strategy/checkpoint/training_state.h"
#include "strategy/config.h"
#include "strategy/runner/environment.h"
#include "strategy/runner/strategy_arguments.h"

namespace castor::strategy {
namespace {

using Clock = std::chrono::steady_clock;

void raise_file_limit(std::int64_t wanted) {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  const rlim_t target = std::min<rlim_t>(limit.rlim_max, std::max<rlim_t>(limit.rlim_cur, static_cast<rlim_t>(wanted)));
  if (target != limit.rlim_cur) {
    limit.rlim_cur = target;
    setrlimit(RLIMIT_NOFILE, &limit);
  }
}

// Held by the training that writes to a work folder.
constexpr const char* kClaimFile = ".castor.lock";

std::string host_name() {
  std::array<char, HOST_NAME_MAX + 1> name{};
  return gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "this machine";
}

}  // namespace

Runner::Runner(const ConfigNode& config, const std::string& what, const Registry& registry)
    : registry_(registry), config_(parse_runner_config(config, what, registry)) {
  if (!config_.randomness.seed) {
    std::random_device source;
    config_.randomness.seed = static_cast<std::int64_t>(source());
  }
  if (!config_.launcher) config_.launcher = dist::infer_launcher(dist::process_environment());
}

Runner::~Runner() = default;

std::string Runner::effective_yaml() const { return to_yaml(effective_config(config_, &registry_)); }

ModelFactory Runner::model_factory() const {
  return [this](const autograd::TensorOptions& options) { return registry_.models.build(config_.model, options); };
}

std::unique_ptr<DataLoader> Runner::make_loader(const DataLoaderConfig& config, bool is_training,
                                                std::shared_ptr<const Dataset> dataset) const {
  SamplerOptions options;
  options.shuffle = is_training;
  options.seed = seed();
  options.batch_size = config.batch_size;
  options.drop_last = config.drop_last;
  options.round_up = is_training;
  if (ranks_ != nullptr) {
    options.world_size = info_.world_size;
    options.rank = info_.rank;
  }
  if (is_training) options.unit = micro_steps_per_iter();
  options = registry_.samplers.build(config.sampler, options);
  if (dataset == nullptr) dataset = registry_.datasets.build(config.dataset);
  return std::make_unique<DataLoader>(std::move(dataset), options);
}

std::vector<std::unique_ptr<Metric>> Runner::make_metrics(const OneOrMany& field) const {
  std::vector<std::unique_ptr<Metric>> metrics;
  for (const TypedConfig& typed : as_list(field)) metrics.push_back(registry_.metrics.build(typed));
  return metrics;
}

PrepareOptions Runner::prepare_options() const {
  PrepareOptions options;
  const OptimWrapperConfig& wrapper = *config_.optim_wrapper;
  options.optimizer = [this, typed = wrapper.optimizer] { return registry_.optimizers.build(typed); };
  options.accumulative_counts = wrapper.accumulative_counts * micro_steps_per_iter();
  options.clip = wrapper.clip_grad;
  options.paramwise = wrapper.paramwise_cfg;
  options.counts_items = wrapper.loss_normalisation == "tokens";
  for (const TypedConfig& typed : as_list(config_.param_scheduler)) {
    options.param_schedulers.push_back(
        [this, typed](const SchedulerContext& context) { return registry_.param_schedulers.build(typed, context); });
  }
  options.auto_scale_lr = config_.auto_scale_lr;
  options.compile = config_.compile;
  options.dispatch.max_iters = progress_.max_iters;
  if (progress_.by_epoch) options.dispatch.max_epochs = progress_.max_epochs;
  options.dispatch.epoch_length = progress_.epoch_length;
  options.dispatch.train_micro_batch_size_per_gpu = config_.train_dataloader->batch_size;
  options.dispatch.micro_steps_per_iter = micro_steps_per_iter();
  return options;
}

bool Runner::has_plugin() const {
  const ConfigNode* plugin = config_.strategy.node.find("plugin");
  return plugin == nullptr || !plugin->is_null();  // one that is left out is the default
}

void Runner::join_job() {
  info_ = dist::rank_info_from(dist::process_environment(), *config_.launcher);
  share_host_memory(info_.local_world_size);
  device_ = device_of_rank(config_.env_cfg.device, info_.local_rank, "env_cfg.device");
  if (info_.world_size == 1 && !has_plugin()) return;
  dist::JobOptions options;
  options.comm.timeout = std::chrono::seconds(config_.env_cfg.dist_cfg.timeout);
  options.record_folder = join_path(config_.work_dir, "flight_records");
  const std::map<std::string, dist::Transport> transports{{"auto", dist::Transport::kAuto},
                                                          {"shared_memory", dist::Transport::kSharedMemory},
                                                          {"tcp", dist::Transport::kTcp},
                                                          {"mpi", dist::Transport::kMpi}};
  options.transport = transports.at(config_.env_cfg.dist_cfg.transport);
  ranks_ = std::make_unique<Ranks>(
      info_, device_, options,
      gpu_transport_of(config_.env_cfg.dist_cfg.gpu_transport, "env_cfg.dist_cfg.gpu_transport"));
  config_.randomness.seed =
      static_cast<std::int64_t>(dist::sync_random_seed(comm(), static_cast<std::uint64_t>(*config_.randomness.seed)));
}

std::int64_t Runner::micro_steps_per_iter() const {
  if (info_.full_world_size % info_.world_size != 0) {
    throw ConfigError(cat("launcher: the job was asked for ", info_.full_world_size, " ranks and has ",
                          info_.world_size, " now, which cannot take equal shares of ", info_.full_world_size,
                          " micro-batches an iteration, so its global batch would change; go on with a number of ranks "
                          "that divides ",
                          info_.full_world_size, ", or start a new job with --resume"),
                      "launcher");
  }
  return info_.full_world_size / info_.world_size;
}

bool Runner::on_any_rank(bool value, const std::string& label) {
  if (ranks_ == nullptr) return value;
  const Tensor any = Tensor::from_values(std::vector<std::int64_t>{value ? 1 : 0}, {1});
  ranks_->world().all_reduce(any, label, dist::ReduceOp::kMax);
  return any.data<std::int64_t>()[0] != 0;
}

void Runner::write_log_file(const std::string& name, const std::string& contents) const {
  if (is_main()) write_file_atomically(join_path(log_dir_, name), contents);
}

void Runner::claim_work_dir() {
  std::string refusal;
  const std::string path = join_path(config_.work_dir, kClaimFile);
  if (is_main()) {
    make_directories(config_.work_dir);
    try {
      if (auto lock = FileLock::try_take(path, cat("process ", getpid(), " on ", host_name()))) {
        claim_.emplace(std::move(*lock));
      } else {
        const std::string holder = FileLock::note_of(path);
        refusal = holder.empty() ? "another process" : holder;
      }
    } catch (const IoError& error) {
      logger().warning("the work folder cannot be kept from other trainings, see that none uses it: ", error.what());
    }
  }
  refusal = dist::broadcast_object(comm(), refusal, 0, "the work folder's claim");
  if (!refusal.empty()) {
    throw IoError(cat(config_.work_dir, " is in use: ", refusal,
                      " is training there; wait for its end or stop it, or give this training another work_dir"),
                  path, EBUSY);
  }
}

void Runner::set_up_environment() {
  if (const std::optional<int> threads =
          threads_to_set(config_.env_cfg.num_threads, info_.world_size, dist::process_environment())) {
    set_num_threads(*threads);
  }
  raise_file_limit(config_.env_cfg.resource_limit);
  // One time for all ranks, whose logs lie in one folder.
  const std::string stamp = dist::broadcast_object(comm(), log_timestamp(), 0, "the time");
  if (is_main()) {
    log_dir_ = directory_of(log_file_path(config_.work_dir, stamp));
    make_directories(log_dir_);
  }
  set_process_logger(std::make_shared<Logger>(
      log_options(config_.log_kwargs, log_level_from_name(config_.log_level), config_.work_dir, stamp, info_.rank)));
  logger().info("castor ", kVersion, ", experiment ",
                config_.experiment_name ? *config_.experiment_name + "_" + stamp : stamp, ", seed ", seed(), ", ",
                num_threads(), " compute threads, device ", device_, ", work folder ", config_.work_dir);
  if (ranks_ != nullptr) {
    logger().info(info_.world_size, " ranks (launcher ", info_.launcher, "), talking through ",
                  ranks_->transport_name());
  }
  if (const std::int64_t steps = micro_steps_per_iter(); steps > 1) {
    logger().warning("of ", info_.full_world_size, " ranks ", info_.world_size, " are here: each takes ", steps,
                     " micro-batches an iteration, so that the global batch and all results stay the same");
  }
  if (is_restart() && is_main()) remove_last_attempts_temporaries();
  logger().info(environment_text(collect_env(info_, device_)));
  write_log_file(kConfigFile, effective_yaml());
}

void Runner::set_up_run() {
  train_loader_ = make_loader(*config_.train_dataloader, true);
  const TrainConfig& train = *config_.train_cfg;
  progress_ = {};
  progress_.by_epoch = train.is_by_epoch();
  progress_.epoch_length = train_loader_->length() / micro_steps_per_iter();
  progress_.max_epochs = progress_.by_epoch ? *train.max_epochs : 0;
  progress_.max_iters = *(progress_.by_epoch ? train.max_epochs : train.max_iters);
  if (progress_.by_epoch) {
    progress_.max_iters =
        in_iterations("train_cfg.max_epochs", *train.max_epochs, train_loader_->length()) / micro_steps_per_iter();
  }
}

Plan Runner::plan(std::int64_t planned_ranks, const MemoryLimits& limits, std::optional<DeviceType> target) {
  if (!config_.train_cfg)
    throw ConfigError("the config trains nothing: give train_dataloader, train_cfg and optim_wrapper", "train_cfg");
  set_up_run();
  // A plan needs ranks only on paper.
  const int world_size = ranks_ != nullptr ? info_.world_size : static_cast<int>(planned_ranks);
  if (world_size < 1)
    throw ConfigError(cat("--world-size: expected a number from 1, got ", world_size), "--world-size");
  if (world_size > 1 && !has_plugin())
    throw ConfigError("several ranks need a plugin, strategy.plugin is null: name one, as TorchDDPPlugin",
                      "strategy.plugin");
  const auto traffic = std::make_shared<dist::MetaTraffic>();
  const std::unique_ptr<dist::Comm> ranks =
      has_plugin() ? dist::make_meta_comm(ranks_ != nullptr ? info_.rank : 0, world_size, traffic) : nullptr;
  const auto make_strategy = [&](Device device) {
    return registry_.strategies.build(config_.strategy, device, seed(), ranks.get());
  };
  PrepareOptions options = prepare_options();
  options.limits = limits;
  if (device_.is_cuda() && !limits.device_bytes && !target)
    options.limits.device_bytes = static_cast<std::int64_t>(backend(device_).total_bytes());
  return make_plan(make_strategy, model_factory(), options, train_loader_->at(0, 0), target.value_or(device_.type),
                   traffic.get());
}

bool Runner::train() {
  if (!config_.train_cfg)
    throw ConfigError("the config trains nothing: give train_dataloader, train_cfg and optim_wrapper", "train_cfg");
  join_job();
  claim_work_dir();
  set_up_environment();
  const Plan planned = plan();
  logger().info(plan_text(planned));
  write_log_file("plan.json", dump_json(plan_json(planned), 2));
  const MemoryLimits limits = limits_here(device_);
  check_fits(planned, limits, "this training",
             cat("`castor plan --device-memory ", *limits.device_bytes, " --host-memory ", *limits.host_bytes,
                 "` with this config proposes what would fit"));
  if (config_.val_dataloader) {
    val_loader_ = make_loader(*config_.val_dataloader, false);
    val_metrics_ = make_metrics(config_.val_evaluator);
  }
  allocator(device_).reset_peaks();
  const MemoryStats before = allocator(device_).stats();
  strategy_ = registry_.strategies.build(config_.strategy, device_, seed(), comm());
  PrepareOptions options = prepare_options();
  options.forecast = planned.forecast;
  strategy_->prepare(model_factory(), options);
  make_hooks();
  load_or_resume();
  for (auto& hook : hooks_) hook->before_run(*this);

  const TrainConfig& train = *config_.train_cfg;
  const std::int64_t val_interval = train.val_interval.value_or(progress_.by_epoch ? 1 : 1000);
  bool was_validated = false, was_audited = false;
  if (progress_.is_validation_due) {
    logger().info("the validation after iteration ", progress_.iter, ", before which the run was stopped, comes first");
    was_validated = end_iteration();
  }
  while (progress_.iter < progress_.max_iters && !progress_.was_stopped) {
    train_one_iteration();
    if (!was_audited && progress_.last.update.did_update) {
      was_audited = true;
      const std::string audit = audit_text(planned, memory_since(before, allocator(device_).stats()));
      logger().info(audit);
      write_log_file("plan_audit.txt", audit + "\n");
    }
    if (progress_.iter % progress_.epoch_length == 0) {
      progress_.epoch = progress_.iter / progress_.epoch_length;
      for (auto& scheduler : strategy_->param_schedulers()) {
        if (scheduler->by_epoch()) scheduler->step();
      }
      for (auto& hook : hooks_) hook->after_train_epoch(*this);
    }
    const bool at_boundary = progress_.by_epoch ? progress_.iter % progress_.epoch_length == 0 : true;
    const std::int64_t count = progress_.by_epoch ? progress_.epoch : progress_.iter;
    const bool is_asked = at_boundary && count >= train.val_begin && count % val_interval == 0;
    if (val_loader_ && (is_asked || progress_.iter == progress_.max_iters)) progress_.is_validation_due = true;
    was_validated = end_iteration();
  }
  if (val_loader_ && !was_validated && !progress_.was_stopped) progress_.was_stopped = !validate();  // nothing to train
  for (auto& hook : hooks_) hook->after_run(*this);
  strategy_->wait_for_saves();
  claim_.reset();
  if (progress_.was_stopped) logger().warning("stopped at iteration ", progress_.iter, " of ", progress_.max_iters);
  return !progress_.was_stopped;
}

void Runner::make_hooks() {
  hooks_.clear();
  hooks_.push_back(registry_.hooks.build(config_.default_hooks.logger));
  hooks_.push_back(registry_.hooks.build(config_.default_hooks.checkpoint));
  for (const TypedConfig& typed : config_.custom_hooks) hooks_.push_back(registry_.hooks.build(typed));
}

void Runner::train_one_iteration() {
  for (auto& hook : hooks_) hook->before_train_iter(*this);
  const auto start = Clock::now();
  const auto& values = strategy_->optim_wrapper()->optimizer().groups().at(0).values;
  const auto lr = values.find("lr");
  progress_.learning_rate = lr == values.end() ? std::nullopt : std::optional(lr->second);
  const std::int64_t micro_steps = micro_steps_per_iter();
  std::map<std::string, double> losses;
  progress_.items = 0;
  progress_.data_seconds = 0;
  for (std::int64_t step = 0; step < micro_steps; ++step) {
    const auto asked = Clock::now();
    const autograd::Batch batch = train_loader_->next();
    progress_.data_seconds += seconds_since(asked);
    const bool is_tokens = !is_floating(batch.inputs.dtype());
    progress_.items += (is_tokens ? batch.inputs.numel() : batch.inputs.size(0)) * strategy_->world_size();
    progress_.item_name = is_tokens ? "tokens" : "samples";
    progress_.last = strategy_->train_step(batch);
    for (const auto& [name, value] : progress_.last.losses) losses[name] += value / static_cast<double>(micro_steps);
  }
  progress_.last.losses = std::move(losses);
  progress_.step_seconds = seconds_since(start);
  ++progress_.iter;
  if (!progress_.last.update.was_skipped) {
    for (auto& scheduler : strategy_->param_schedulers()) {
      if (!scheduler->by_epoch()) scheduler->step();
    }
  }
  for (auto& hook : hooks_) hook->after_train_iter(*this);
}

bool Runner::end_iteration() {
  const bool stops = on_any_rank(stop_requested(), "stop requested");
  progress_.was_stopped = stops && can_save();
  bool was_validated = false;
  if (progress_.is_validation_due && !(stops && can_break_off_validation())) {
    was_validated = validate();
    // Inside a window nothing can be saved: the run stops at its end.
    if (!was_validated) progress_.was_stopped = can_save();
  }
  for (auto& hook : hooks_) hook->after_iteration(*this);
  return was_validated;
}

bool Runner::can_save() {
  return strategy_->optim_wrapper() == nullptr || strategy_->optim_wrapper()->window_position() == 0;
}

void Runner::save(const std::string& name, const SaveRules& rules) {
  SaveOptions options;
  options.save_optimizer = rules.save_optimizer;
  options.save_param_scheduler = rules.save_param_scheduler;
  options.asynchronous = rules.asynchronous;
  options.config_yaml = effective_yaml();
  Json extra;
  // Counted in micro-steps, of which the checkpoint says how many samples they took.
  extra["iter"] = progress_.iter * micro_steps_per_iter();
  extra["epoch"] = progress_.epoch;
  extra["epoch_length"] = progress_.epoch_length * micro_steps_per_iter();
  extra["job"] = info_.job_id;
  if (progress_.is_validation_due) extra["validation_due"] = true;
  extra["metrics"] = Json::object();
  for (const auto& [metric, value] : progress_.metrics) extra["metrics"][metric] = value;
  options.extra_ckpt = std::make_shared<const Json>(std::move(extra));
  options.callback = [this](CheckpointContents& contents) {
    for (auto& hook : hooks_) hook->before_save_checkpoint(*this, contents);
  };
  options.committed = [work_dir = config_.work_dir, name, retention = rules.retention](const std::string& folder) {
    finish_save(work_dir, name, retention);
    logger().info("checkpoint saved to ", folder);
  };
  strategy_->save_checkpoint(join_path(config_.work_dir, name), options);
}

}  // namespace castor::strategy
