// What every strategy does alike.
#include "strategy/strategy.h"

#include <cerrno>

#include "core/base/file_error.h"
#include "core/base/log.h"
#include "strategy/source/source.h"

namespace castor::strategy {
namespace {

/// The checkpoint that is resumed; none: nothing is.
std::optional<std::string> resumed_path(const StartOptions& options) {
  if (const auto* path = std::get_if<std::string>(&options.resume)) return *path;
  if (!std::get<bool>(options.resume)) return {};
  if (options.load_from) return options.load_from;
  try {
    return find_last_checkpoint(options.work_dir);
  } catch (const IoError& error) {
    if (error.code != ENOENT) throw;
    logger().info("nothing to resume in ", options.work_dir, ": training starts anew");
    return {};
  }
}

}  // namespace

std::optional<CheckpointContents> BaseStrategy::load_or_resume(const StartOptions& options) {
  if (const std::optional<std::string> path = resumed_path(options)) {
    CheckpointContents contents = resume(*path, options.resuming);
    logger().info("resumed from ", shown_source(*path));
    return contents;
  }
  const bool* is_resumed = std::get_if<bool>(&options.resume);
  if (options.load_from && is_resumed != nullptr && !*is_resumed) {
    const LoadReport report = load_checkpoint(*options.load_from, options.loading);
    logger().info(report.loaded, " tensors loaded from ", shown_source(*options.load_from));
    if (!report.fits()) logger().warning("the file and the model differ:", report.text());
  }
  return {};
}

}  // namespace castor::strategy
