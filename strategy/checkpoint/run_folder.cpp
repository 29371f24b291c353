// The checkpoints in a run's folder: the newest, the pointer to it, and which may go.
#include <algorithm>
#include <cerrno>
#include <cmath>
#include <nlohmann/json.hpp>

#include "core/base/file.h"
#include "core/base/log.h"
#include "strategy/checkpoint.h"

namespace castor::strategy {
namespace {

constexpr const char* kScoresFile = "scores.json";

// Scores are a convenience beside the checkpoints: a file that cannot be understood is as good as none.
std::map<std::string, double> read_scores(const std::string& work_dir, FileSystem& files) {
  const std::string path = join_path(work_dir, kScoresFile);
  std::map<std::string, double> scores;
  if (!exists(path, files)) return scores;
  try {
    const Json json = parse_json(read_text_file(path, std::uint64_t{1} << 20, files), path);
    for (const auto& [name, value] : JsonCursor(json, path).members()) scores[name] = value.number();
  } catch (const FormatError& error) {
    logger().warning("ignored: ", error.what());
    scores.clear();
  }
  return scores;
}

void write_scores(const std::string& work_dir, const std::map<std::string, double>& scores, FileSystem& files) {
  Json json = Json::object();
  for (const auto& [name, score] : scores) json[name] = score;
  write_file_atomically(join_path(work_dir, kScoresFile), dump_json(json, 2) + "\n", files);
}

}  // namespace

std::string find_last_checkpoint(const std::string& work_dir, FileSystem& files) {
  const formats::CheckpointList list = formats::list_checkpoints(work_dir, files);
  for (const formats::TornCheckpoint& torn : list.torn) {
    logger().warning("skipped ", join_path(work_dir, torn.name), ": ", torn.reason);
  }
  if (list.checkpoints.empty()) {
    throw IoError(cat("no checkpoint in ", work_dir, list.torn.empty() ? "" : " is whole",
                      "; train first, or name the weights with load_from"),
                  work_dir, ENOENT);
  }
  return join_path(work_dir, list.checkpoints.front().name);
}

void finish_save(const std::string& work_dir, const std::string& name, const formats::Retention& retention,
                 FileSystem& files) {
  write_file_atomically(join_path(work_dir, kLastCheckpointFile), name, files);
  formats::Retention scored = retention;
  if (retention.keep_best) scored.scores = read_scores(work_dir, files);
  if (!retention.keep_last && !retention.keep_every && !retention.keep_best) return;
  for (const std::string& gone : formats::prunable_checkpoints(formats::list_checkpoints(work_dir, files), scored)) {
    formats::remove_checkpoint(join_path(work_dir, gone), files);
    logger().info("removed ", join_path(work_dir, gone));
  }
}

bool is_among_best(const std::string& work_dir, double score, std::int64_t count, bool greater_is_better,
                   FileSystem& files) {
  if (std::isnan(score)) return false;  // nothing compares with it: it would be better than all
  const std::map<std::string, double> scores = read_scores(work_dir, files);
  const auto better = std::count_if(scores.begin(), scores.end(), [&](const auto& entry) {
    const bool is_better = greater_is_better ? entry.second >= score : entry.second <= score;
    return is_better && exists(join_path(work_dir, entry.first), files);  // a save may have failed
  });
  return better < count;
}

void note_score(const std::string& work_dir, const std::string& name, double score, FileSystem& files) {
  std::map<std::string, double> scores = read_scores(work_dir, files);
  scores[name] = score;
  std::erase_if(scores, [&](const auto& entry) {
    return entry.first != name && !exists(join_path(work_dir, entry.first), files);
  });
  write_scores(work_dir, scores, files);
}

}  // namespace castor::strategy
