// What a run starts from: the newest checkpoint that is whole, weights of elsewhere, or nothing.
//
// Delicate: all ranks must come to the same checkpoint, although each reads its own parts of it and sees other damage;
// and a job that was started again by its launcher goes on from its own checkpoints only. Any file of a candidate may
// be the damaged one, so nothing is read of it before its turn.
#include <algorithm>
#include <exception>
#include <nlohmann/json.hpp>

#include "core/base/file.h"
#include "core/base/file_error.h"
#include "core/base/json.h"
#include "core/base/log.h"
#include "formats/checkpoint_reader.h"
#include "strategy/checkpoint.h"
#include "strategy/checkpoint/fill.h"
#include "strategy/checkpoint/training_state.h"
#include "strategy/runner/runner.h"
#include "strategy/source/source.h"

namespace castor::strategy {
namespace {

/// True if an error of resuming a checkpoint comes from bytes that are not those that were saved. Only damage sends a
/// run back to an older checkpoint; one that does not fit is the user's to decide about.
bool is_damage(const Error& error, const std::string& checkpoint) {
  if (const auto* io = dynamic_cast<const IoError*>(&error))
    return is_unreadable(*io) && directory_of(io->path) == checkpoint;
  if (dynamic_cast<const FormatError*>(&error) == nullptr) return false;
  try {
    return !formats::Checkpoint::open(checkpoint).verify().empty();
  } catch (const FormatError&) {
    return true;  // of its manifest
  } catch (const IoError& io) {
    return is_unreadable(io);  // weights of elsewhere have no manifest, and no older ones
  }
}

/// The whole checkpoints of a run's folder, the newest first. An interrupted first save is no loss; what was saved and
/// cannot be read is, and where nothing else is left its repair is the user's choice.
std::vector<std::string> checkpoints_in(const std::string& folder, bool needs_one) {
  const formats::CheckpointList list = formats::list_checkpoints(folder);
  for (const formats::TornCheckpoint& torn : list.torn) {
    logger().warning("skipped ", join_path(folder, torn.name), ": ", torn.reason);
  }
  const auto lost =
      std::find_if(list.torn.begin(), list.torn.end(), [](const auto& torn) { return torn.was_committed; });
  if (list.checkpoints.empty() && lost != list.torn.end() && needs_one) {
    throw FormatError(cat("resume in ", folder, ": it holds no whole checkpoint, ", lost->name,
                          " was one: ", lost->reason, "; restore it, or remove it to start anew"),
                      join_path(folder, lost->name), 0);
  }
  std::vector<std::string> checkpoints;
  for (const auto& checkpoint : list.checkpoints) checkpoints.push_back(join_path(folder, checkpoint.name));
  return checkpoints;
}

}  // namespace

void Runner::remove_last_attempts_temporaries() const {
  remove_temporary_files(config_.work_dir);
  for (const DirectoryEntry& entry : list_directory(config_.work_dir)) {
    if (entry.kind == FileKind::directory) remove_temporary_files(join_path(config_.work_dir, entry.name));
  }
}

std::vector<Runner::Candidate> Runner::resume_candidates() const {
  std::vector<Candidate> candidates;
  const auto add = [&](const std::vector<std::string>& folders, bool is_asked_for) {
    for (const std::string& folder : folders) candidates.push_back({folder, is_asked_for});
  };
  const bool is_elsewhere = config_.resumes() && config_.load_from;
  if (is_restart() || (config_.resumes() && !is_elsewhere)) {
    // A work_dir may hold checkpoints of other runs, which this job goes on from only if it was asked to resume.
    add(checkpoints_in(config_.work_dir, config_.resumes()), config_.resumes() && !is_elsewhere);
  }
  if (!is_elsewhere) return candidates;
  std::vector<std::string> named;
  if (!has_scheme(*config_.load_from) && is_directory(*config_.load_from) &&
      !exists(join_path(*config_.load_from, formats::kManifestName)))
    named = checkpoints_in(*config_.load_from, true);
  if (named.empty()) named = {*config_.load_from};
  add(named, true);
  return candidates;
}

bool Runner::is_foreign(const Candidate& candidate) const {
  if (candidate.is_asked_for) return false;
  const LoadSource source = LoadSource::open(candidate.path);
  const Json state = parse_json(source.state_text(), source.path);
  return !state.is_object() || state.value("job", Json()) != Json(info_.job_id);
}

CheckpointCallback Runner::loaded_callback() {
  return [this](CheckpointContents& contents) {
    for (auto& hook : hooks_) hook->after_load_checkpoint(*this, contents);
  };
}

void Runner::load_or_resume() {
  if (config_.resumes() || is_restart()) {
    if (resume_newest()) return;
    logger().info("nothing to resume in ", config_.work_dir, ": training starts anew");
  }
  if (config_.resumes() || !config_.load_from) return;
  StartOptions start;
  start.load_from = config_.load_from;
  start.loading.callback = loaded_callback();
  strategy_->load_or_resume(start);
}

bool Runner::resume_newest() {
  std::exception_ptr last_damage;
  for (const Candidate& candidate : resume_candidates()) {
    const std::string& checkpoint = candidate.path;
    std::exception_ptr damage;
    bool is_used = false;
    try {
      is_used = !is_foreign(candidate);
      if (is_used) resume_from(checkpoint);
    } catch (const Error& error) {
      if (!is_damage(error, checkpoint)) throw;
      logger().warning("skipped ", checkpoint, ", which is damaged: ", error.what());
      damage = std::current_exception();
    }
    // A rank reads only its parts: all of them go back to an older one when one must.
    if (on_any_rank(damage != nullptr, "a checkpoint is damaged")) {
      last_damage = damage != nullptr ? damage
                                      : std::make_exception_ptr(FormatError(
                                            cat("resume from ", checkpoint,
                                                ": another rank found it damaged, as its log says, and there is no "
                                                "older one; use another checkpoint"),
                                            checkpoint, 0));
    } else if (is_used) {
      return true;
    }
  }
  if (last_damage != nullptr) std::rethrow_exception(last_damage);
  return false;
}

void Runner::resume_from(const std::string& checkpoint) {
  ResumeOptions options;
  options.callback = loaded_callback();
  const CheckpointContents contents = strategy_->resume(checkpoint, options);
  const JsonCursor state(contents.state(), checkpoint);
  take_saved_seed(state.at("seed").unsigned_integer());
  const std::int64_t samples = config_.train_dataloader->batch_size * strategy_->world_size() * micro_steps_per_iter();
  progress_.iter = micro_steps_here(state, "iter", samples);
  progress_.epoch = progress_.iter / progress_.epoch_length;
  progress_.metrics.clear();
  for (const auto& [name, value] : state.at("metrics").members()) progress_.metrics[name] = value.number();
  // Nothing is due in a run that validates no more.
  progress_.is_validation_due =
      val_loader_ != nullptr && state.has("validation_due") && state.at("validation_due").boolean();
  if (const std::int64_t saved = state.at("iter").integer(0); saved != progress_.iter) {
    logger().info("iteration ", saved, " of the saved run is iteration ", progress_.iter, " here, where one takes ",
                  samples, " samples");
  }
  const std::int64_t saved_length = micro_steps_here(state, "epoch_length", samples);
  if (saved_length != progress_.epoch_length) {
    logger().warning("an epoch had ", saved_length, " iterations when ", checkpoint, " was saved, now it has ",
                     progress_.epoch_length, ": samples are taken up at the same iteration");
  }
  train_loader_->seek({progress_.epoch, progress_.iter % progress_.epoch_length * micro_steps_per_iter()});
  logger().info("resumed from ", shown_source(checkpoint), " at iteration ", progress_.iter, " of ",
                progress_.max_iters);
}

void Runner::take_saved_seed(std::uint64_t saved) {
  if (saved == seed()) return;
  logger().info("seed ", saved, " of the resumed run instead of ", seed());
  config_.randomness.seed = static_cast<std::int64_t>(saved);
  // The strategy has it from the checkpoint; the order of samples is made here.
  train_loader_ = make_loader(*config_.train_dataloader, true, train_loader_->shared_dataset());
  if (val_loader_) val_loader_ = make_loader(*config_.val_dataloader, false, val_loader_->shared_dataset());
}

}  // namespace castor::strategy
