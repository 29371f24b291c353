// `castor ckpt prune`: thinning out a run's folder.
//
// Delicate: the newest checkpoint never goes, nor the one that last_checkpoint names, nor one that was saved under a
// name of its own. A folder without a manifest may be a save that is being written right now, so such folders go only
// if asked for.
#include <algorithm>
#include <memory>
#include <optional>
#include <ostream>

#include "core/base/error.h"
#include "core/base/file.h"
#include "core/device/caching_allocator.h"
#include "formats/checkpoint_list.h"
#include "formats/manifest.h"
#include "strategy/checkpoint.h"
#include "strategy/cli/ckpt.h"
#include "strategy/cli/ckpt_output.h"

namespace castor::strategy {
namespace {

struct PruneArguments {
  std::string folder;
  std::optional<std::int64_t> keep_last;
  std::optional<std::int64_t> keep_every;
  bool dry_run = false;
  bool torn = false;
};

std::uint64_t bytes_of_tree(const std::string& folder) {
  std::uint64_t bytes = 0;
  for (const DirectoryEntry& entry : list_directory(folder)) {
    const std::string path = join_path(folder, entry.name);
    if (entry.kind == FileKind::directory) bytes += bytes_of_tree(path);
    if (entry.kind == FileKind::file) bytes += file_size(path);
  }
  return bytes;
}

// A folder that is no checkpoint; one with a manifest loses that first.
void remove_torn(const std::string& folder) {
  if (remove_file(join_path(folder, formats::kManifestName))) sync_directory(folder);
  remove_tree(folder);
  sync_directory(directory_of(folder));
}

std::string pointed_name(const std::string& folder) {
  const std::string pointer = join_path(folder, kLastCheckpointFile);
  if (!exists(pointer)) return "";
  std::string text = read_text_file(pointer, 65536);
  while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.pop_back();
  return file_name_of(text);
}

void check(const PruneArguments& arguments) {
  for (const auto& [name, value] :
       {std::pair("--keep-last", arguments.keep_last), std::pair("--keep-every", arguments.keep_every)}) {
    if (value && *value < 1) throw ConfigError(cat(name, ": at least 1 expected, got ", *value), "");
  }
  if (!arguments.keep_last && !arguments.keep_every && !arguments.torn) {
    throw ConfigError(
        "say what to keep: --keep-last K, the newest K; --keep-every N, those whose number N divides; both keep "
        "either; "
        "--torn alone removes only folders of saves that were not completed",
        "");
  }
}

int prune(const PruneArguments& arguments, std::ostream& out) {
  check(arguments);
  const formats::CheckpointList list = formats::list_checkpoints(arguments.folder);
  if (list.checkpoints.empty() && list.torn.empty()) {
    throw ConfigError(cat(arguments.folder, " holds no checkpoints; name a run's folder"), "");
  }
  const std::size_t total = list.checkpoints.size() + list.torn.size();
  for (const formats::ListedCheckpoint& checkpoint : list.checkpoints) {
    if (!formats::number_of(checkpoint.name)) out << "kept " << checkpoint.name << ": not called iter_N or epoch_N\n";
  }
  formats::Retention retention;
  retention.keep_last = arguments.keep_last;
  retention.keep_every = arguments.keep_every;
  const std::string pointed = pointed_name(arguments.folder);
  std::uint64_t freed = 0;
  std::size_t removed = 0;
  const std::string verb = arguments.dry_run ? "would remove " : "removed ";
  for (const std::string& name : formats::prunable_checkpoints(list, retention)) {
    const std::string folder = join_path(arguments.folder, name);
    if (name == pointed) {
      out << "kept " << folder << ": " << kLastCheckpointFile << " names it\n";
      continue;
    }
    const auto listed = std::find_if(list.checkpoints.begin(), list.checkpoints.end(),
                                     [&name](const auto& checkpoint) { return checkpoint.name == name; });
    const std::uint64_t bytes = arguments.dry_run ? listed->bytes : formats::remove_checkpoint(folder);
    out << verb << folder << ", " << bytes_text(bytes) << "\n";
    freed += bytes;
    ++removed;
  }
  for (const formats::TornCheckpoint& torn : list.torn) {
    const std::string folder = join_path(arguments.folder, torn.name);
    if (!arguments.torn) {
      out << "torn " << folder << ": " << torn.reason << "; --torn removes it\n";
      continue;
    }
    const std::uint64_t bytes = bytes_of_tree(folder);
    if (!arguments.dry_run) remove_torn(folder);
    out << verb << folder << ", " << bytes_text(bytes) << ": " << torn.reason << "\n";
    freed += bytes;
    ++removed;
  }
  out << verb << removed << " of " << total << " folders, " << bytes_text(freed) << "\n";
  return kExitOk;
}

}  // namespace

Subcommand ckpt_prune_command() {
  auto arguments = std::make_shared<PruneArguments>();
  Subcommand command;
  command.name = "prune";
  command.summary = "remove checkpoints of a run; the newest one always stays";
  command.configure = [arguments](ArgumentList& list) {
    *arguments = {};
    list.positional("RUN_FOLDER", arguments->folder, "the folder that holds iter_N or epoch_N");
    list.option("--keep-last", arguments->keep_last, "K", "keep the newest K");
    list.option("--keep-every", arguments->keep_every, "N", "keep those whose number is a multiple of N");
    list.flag("--dry-run", arguments->dry_run, "only print what would go");
    list.flag("--torn", arguments->torn,
              "also remove folders of saves that were not completed, or are damaged; not while the run is saving");
  };
  command.run = [arguments](Registry&, std::ostream& out) { return prune(*arguments, out); };
  return command;
}

}  // namespace castor::strategy
