// Log lines as mmengine writes them, scalars as JSON lines, and the saving rule.
#include "strategy/runner/hooks.h"

#include <algorithm>
#include <cmath>
#include <iomanip>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/log.h"
#include "core/device/caching_allocator.h"

namespace castor::strategy {
namespace {

std::string number(double value, int digits) {
  std::ostringstream out;
  out << std::fixed << std::setprecision(digits) << value;
  return out.str();
}

std::string scientific(double value) {
  std::ostringstream out;
  out << std::scientific << std::setprecision(4) << value;
  return out.str();
}

/// "Epoch(train) [1][ 10/196]" or "Iter(train) [  10/1000]".
std::string position(const RunProgress& p) {
  const std::string total = std::to_string(p.by_epoch ? p.epoch_length : p.max_iters);
  std::ostringstream out;
  if (p.by_epoch) {
    const std::int64_t inner = p.iter - p.epoch * p.epoch_length;
    out << "Epoch(train) [" << p.epoch + 1 << "][" << std::setw(static_cast<int>(total.size())) << inner << '/' << total
        << ']';
  } else {
    out << "Iter(train) [" << std::setw(static_cast<int>(total.size())) << p.iter << '/' << total << ']';
  }
  return out.str();
}

}  // namespace

void LoggerHook::before_run(RunControl& run) {
  OptimWrapper* const wrapper = run.strategy().optim_wrapper();
  if (config_.parameter_norms && wrapper != nullptr && !wrapper->boosted().has_norms()) {
    throw ConfigError(
        "default_hooks.logger.parameter_norms: norms are computed only where they are limited; set "
        "optim_wrapper.clip_grad, or the plugin's max_norm where it has one",
        "default_hooks.logger.parameter_norms");
  }
  if (!run.strategy().is_main()) return;
  const std::string folder = join_path(run.log_dir(), "vis_data");
  make_directories(folder);
  scalars_.emplace(File::open(join_path(folder, "scalars.json"), OpenMode::append));
}

void LoggerHook::write_scalars(RunControl& run, const std::map<std::string, double>& scalars) {
  Json line;
  for (const auto& [name, value] : scalars) line[name] = value;
  line["iter"] = run.progress().iter;
  line["epoch"] = run.progress().epoch;
  line["step"] = run.progress().by_epoch ? run.progress().epoch : run.progress().iter;
  scalars_->write_exact(as_byte_span(dump_json(line) + "\n"), scalars_->size());
}

void LoggerHook::after_train_iter(RunControl& run) {
  if (!run.strategy().is_main()) return;
  const RunProgress& p = run.progress();
  window_.push_back(p);
  const double tokens_per_second = static_cast<double>(p.items) / std::max(p.step_seconds, 1e-9);
  const MemoryStats memory = allocator(run.device()).stats();
  if (bar_ == nullptr)
    bar_ = std::make_unique<ProgressBar>(Console::standard_output(), "train", p.max_iters, p.iter - 1);
  bar_->update(p.iter,
               cat("loss ", number(p.last.losses.at("loss"), 4), "  ", number(tokens_per_second, 0), " ", p.item_name,
                   "/s  ", bytes_text(memory.current_total), " (peak ", bytes_text(memory.peak_total), ")"));
  const std::int64_t inner = p.by_epoch ? p.iter - p.epoch * p.epoch_length : p.iter;
  if (inner % config_.interval != 0 && p.iter != p.max_iters) return;

  const auto count = static_cast<double>(window_.size());
  double time = 0, data_time = 0, items = 0;
  std::map<std::string, double> means;
  for (const RunProgress& each : window_) {
    time += each.step_seconds;
    data_time += each.data_seconds;
    items += static_cast<double>(each.items);
    for (const auto& [name, value] : each.last.losses) means[name] += value / count;
  }
  const double eta = time / count * static_cast<double>(p.max_iters - p.iter);
  std::string text = cat(position(p), p.learning_rate ? cat("  lr: ", scientific(*p.learning_rate)) : "",
                         "  eta: ", format_duration(eta), "  time: ", number(time / count, 4),
                         "  data_time: ", number(data_time / count, 4), "  memory: ", memory.peak_total >> 20, "  ",
                         p.item_name, "/s: ", number(items / time, 0));
  text += cat("  loss: ", number(means.at("loss"), 4));
  for (const auto& [name, value] : means) {
    if (name != "loss") text += cat("  ", name, ": ", number(value, 4));
  }
  if (p.learning_rate) means["lr"] = *p.learning_rate;
  means["time"] = time / count;
  means["data_time"] = data_time / count;
  means[std::string(p.item_name) + "/s"] = items / time;
  means["memory"] = static_cast<double>(memory.peak_total >> 20);
  if (p.last.update.grad_norm) {
    text += cat("  grad_norm: ", number(*p.last.update.grad_norm, 4));
    means["grad_norm"] = *p.last.update.grad_norm;
  }
  if (config_.parameter_norms) {
    for (const auto& [name, norm] : run.strategy().optim_wrapper()->boosted().gradient_norms())
      means["grad_norm/" + name] = norm;
  }
  logger().info(text);
  write_scalars(run, means);
  window_.clear();
}

void LoggerHook::after_val(RunControl& run) {
  if (!run.strategy().is_main()) return;
  const RunProgress& p = run.progress();
  std::string text = p.by_epoch ? cat("Epoch(val) [", p.epoch, "]") : cat("Iter(val) [", p.iter, "/", p.max_iters, "]");
  for (const auto& [name, value] : p.metrics) text += cat("  ", name, ": ", number(value, 4));
  logger().info(text);
  write_scalars(run, p.metrics);
}

void LoggerHook::after_test(RunControl& run) {
  if (!run.strategy().is_main()) return;
  std::string text = "Test";
  Json results;
  for (const auto& [name, value] : run.progress().metrics) {
    text += cat("  ", name, ": ", number(value, 4));
    results[name] = value;
  }
  logger().info(text);
  write_file_atomically(join_path(run.log_dir(), file_name_of(run.log_dir()) + ".json"), dump_json(results, 2) + "\n");
}

void LoggerHook::after_run(RunControl&) {
  if (bar_ != nullptr) bar_->finish();
  bar_.reset();
}

namespace {

// mmengine's guess, by what is common in the names of metrics.
std::optional<bool> greater_is_better(const std::string& metric) {
  const auto has_any = [&metric](std::initializer_list<const char*> parts) {
    return std::any_of(parts.begin(), parts.end(),
                       [&metric](const char* part) { return metric.find(part) != std::string::npos; });
  };
  if (has_any({"loss", "bits_per", "perplexity", "error"})) return false;
  if (has_any({"acc", "top", "auc", "precision", "recall", "mAP", "mDice", "mIoU", "f1"})) return true;
  return std::nullopt;
}

constexpr std::int64_t kAll = std::numeric_limits<std::int64_t>::max();

std::string checkpoint_name(const RunProgress& p) {
  const bool whole_epoch = p.by_epoch && p.epoch_length > 0 && p.iter > 0 && p.iter % p.epoch_length == 0;
  return whole_epoch ? cat("epoch_", p.iter / p.epoch_length) : cat("iter_", p.iter);
}

}  // namespace

SaveRules CheckpointHook::rules() const {
  SaveRules rules{config_.save_optimizer, config_.save_param_scheduler, config_.async_save, {}};
  if (config_.max_keep_ckpts > 0) {
    rules.retention.keep_last = config_.max_keep_ckpts;
    rules.retention.keep_every = config_.keep_every;
    // A resumed run may save before it knows which scores are better: then all that have one stay.
    if (config_.save_best) rules.retention.keep_best = greater_is_better_ ? config_.keep_best : kAll;
    rules.retention.greater_is_better = greater_is_better_.value_or(true);
  }
  return rules;
}

void CheckpointHook::save(RunControl& run) {
  is_due_ = false;
  if (run.progress().iter == saved_iter_) return;
  run.save(checkpoint_name(run.progress()), rules());
  saved_iter_ = run.progress().iter;
}

void CheckpointHook::ask(RunControl& run) {
  if (run.can_save()) {
    save(run);
  } else {
    is_due_ = true;
  }
}

void CheckpointHook::before_run(RunControl& run) {
  if (config_.async_save && run.strategy().optim_wrapper() != nullptr) run.strategy().reserve_saves();
  if (config_.rule) {
    greater_is_better_ = *config_.rule == "greater";
  } else if (config_.save_best) {
    greater_is_better_ = greater_is_better(*config_.save_best);
  }
  // Resumed from there; what the validation that is due moves is still to be saved.
  if (run.progress().iter > 0 && !run.progress().is_validation_due) saved_iter_ = run.progress().iter;
  if (config_.save_begin && run.progress().iter == 0 && run.progress().max_iters > 0) save(run);
}

// After validation, so that what it moved (schedules on plateaus) is saved with what led to it.
void CheckpointHook::after_iteration(RunControl& run) {
  if (is_score_due_ && run.can_save()) after_val(run);
  const RunProgress& p = run.progress();
  const bool is_epoch_end = p.iter % p.epoch_length == 0;
  const bool is_asked = config_.interval > 0 && (by_epoch(run) ? is_epoch_end && p.epoch % config_.interval == 0
                                                               : p.iter % config_.interval == 0);
  if (is_asked || is_due_) ask(run);
}

void CheckpointHook::after_val(RunControl& run) {
  const auto& metrics = run.progress().metrics;
  if (!config_.save_best || metrics.empty()) return;
  is_score_due_ = !run.can_save();
  if (is_score_due_) return;
  const auto found = *config_.save_best == "auto" ? metrics.begin() : metrics.find(*config_.save_best);
  if (found == metrics.end()) {
    std::string names;
    for (const auto& [name, value] : metrics) names += cat(names.empty() ? "" : ", ", name);
    throw ConfigError(cat("save_best: no metric is called ", *config_.save_best, "; there are: ", names), "save_best");
  }
  const std::optional<bool> guess = greater_is_better(found->first);
  if (!config_.rule && !guess) {
    throw ConfigError(cat("save_best: say rule: greater or rule: less for the metric ", found->first), "rule");
  }
  if (!config_.rule) greater_is_better_ = guess;
  // The main rank keeps the scores, and decides for all.
  const bool is_main = run.strategy().is_main();
  if (is_main && std::isnan(found->second)) {
    logger().warning("save_best: ", found->first,
                     " is nan, which is never among the best; see whether the loss is too");
  }
  const bool is_among = is_main && is_among_best(run.work_dir(), found->second, config_.keep_best, *greater_is_better_);
  if (!run.on_any_rank(is_among, "among the best")) return;
  // Noted first, so that what the save removes is measured against it.
  if (is_main) note_score(run.work_dir(), checkpoint_name(run.progress()), found->second);
  save(run);
  if (!is_main) return;
  logger().info("among the best ", config_.keep_best, " by ", found->first, ": ", number(found->second, 4));
}

void CheckpointHook::after_run(RunControl& run) {
  if (config_.save_last && run.progress().iter > 0) save(run);
}

}  // namespace castor::strategy
