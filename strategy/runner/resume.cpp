// What a run starts from: the newest checkpoint that is whole, weights of elsewhere, or nothing.
//
// Delicate: all ranks must come to the same checkpoint, although each reads its own parts of it and sees other damage;
// and a job that was started again by its launcher goes on from its own checkpoints only.
#include <nlohmann/json.hpp>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/log.h"
#include "formats/checkpoint_reader.h"
#include "strategy/checkpoint.h"
#include "strategy/checkpoint/fill.h"
#include "strategy/checkpoint/training_state.h"
#include "strategy/runner/runner.h"
#include "strategy/source/source.h"

namespace castor::strategy {

void Runner::remove_last_attempts_temporaries() const {
  remove_temporary_files(config_.work_dir);
  for (const DirectoryEntry& entry : list_directory(config_.work_dir)) {
    if (entry.kind == FileKind::directory) remove_temporary_files(join_path(config_.work_dir, entry.name));
  }
}

std::vector<std::string> Runner::resume_candidates() const {
  if (!config_.resumes() && !is_restart()) return {};
  if (config_.load_from && !is_restart()) return {*config_.load_from};
  const formats::CheckpointList list = formats::list_checkpoints(config_.work_dir);
  for (const formats::TornCheckpoint& torn : list.torn) {
    logger().warning("skipped ", join_path(config_.work_dir, torn.name), ": ", torn.reason);
  }
  std::vector<std::string> folders;
  for (const auto& checkpoint : list.checkpoints) folders.push_back(join_path(config_.work_dir, checkpoint.name));
  // A work_dir may hold checkpoints of other runs, which this job goes on from only if it was asked to resume.
  if (is_restart() && (!config_.resumes() || config_.load_from)) {
    std::erase_if(folders, [this](const std::string& folder) { return !is_of_this_job(folder); });
    if (config_.resumes()) folders.push_back(*config_.load_from);
  }
  if (folders.empty()) logger().info("nothing to resume in ", config_.work_dir, ": training starts anew");
  return folders;
}

bool Runner::is_of_this_job(const std::string& checkpoint) const {
  const LoadSource source = LoadSource::open(checkpoint);
  const Json state = parse_json(source.state_text(), source.path);
  return state.is_object() && state.value("job", Json()) == Json(info_.job_id);
}

void Runner::take_saved_seed(const std::string& checkpoint) {
  const LoadSource source = LoadSource::open(checkpoint);
  const Json state = parse_json(source.state_text(), source.path);
  if (!state.is_object() || !state.contains("seed")) return;  // resume says what is missing
  const std::uint64_t saved = JsonCursor(state, source.path).at("seed").unsigned_integer();
  if (saved == seed()) return;
  logger().info("seed ", saved, " of the resumed run instead of ", seed());
  config_.randomness.seed = static_cast<std::int64_t>(saved);
}

CheckpointCallback Runner::loaded_callback() {
  return [this](CheckpointContents& contents) {
    for (auto& hook : hooks_) hook->after_load_checkpoint(*this, contents);
  };
}

void Runner::load_or_resume(const std::vector<std::string>& candidates) {
  if (!config_.resumes() && config_.load_from && candidates.empty()) {
    StartOptions start;
    start.load_from = config_.load_from;
    start.loading.callback = loaded_callback();
    strategy_->load_or_resume(start);
  }
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    const bool is_last = i + 1 == candidates.size();
    bool is_damaged = false;
    try {
      resume_from(candidates[i]);
    } catch (const FormatError& error) {
      // Only damage sends a run back to an older checkpoint; one that does not fit is the user's to decide about.
      if (is_last || formats::Checkpoint::open(candidates[i]).verify().empty()) throw;
      logger().warning("skipped ", candidates[i], ", which is damaged: ", error.what());
      is_damaged = true;
    }
    // A rank reads only its parts: all of them go back to an older one when one must.
    if (!on_any_rank(is_damaged)) return;
  }
}

void Runner::resume_from(const std::string& checkpoint) {
  ResumeOptions options;
  options.callback = loaded_callback();
  const CheckpointContents contents = strategy_->resume(checkpoint, options);
  const JsonCursor state(contents.state(), checkpoint);
  const std::int64_t samples = config_.train_dataloader->batch_size * strategy_->world_size() * micro_steps_per_iter();
  progress_.iter = micro_steps_here(state, "iter", samples);
  progress_.epoch = progress_.iter / progress_.epoch_length;
  for (const auto& [name, value] : state.at("metrics").members()) progress_.metrics[name] = value.number();
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

}  // namespace castor::strategy
