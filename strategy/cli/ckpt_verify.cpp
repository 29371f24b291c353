// `castor ckpt verify`: every byte against its digest.
//
// Delicate: all paths are checked even if the first is damaged, since who asks wants to know what is left. A folder
// that a crash left without a manifest is no damage: nothing was promised there.
#include <memory>
#include <ostream>

#include "core/base/error.h"
#include "core/base/file.h"
#include "formats/checkpoint_reader.h"
#include "strategy/cli/ckpt.h"
#include "strategy/cli/ckpt_output.h"

namespace castor::strategy {
namespace {

struct Found {
  std::vector<std::string> checkpoints;
  std::size_t problems = 0;
};

// The checkpoints that the paths mean; prints what is none.
Found find_checkpoints(const std::vector<std::string>& paths, std::ostream& out) {
  Found found;
  for (const std::string& path : paths) {
    formats::CheckpointList list;
    if (!is_run_folder(path, list)) {
      found.checkpoints.push_back(path);
      continue;
    }
    for (const formats::TornCheckpoint& torn : list.torn) {
      const std::string folder = join_path(path, torn.name);
      found.problems += torn.was_committed ? 1 : 0;
      out << folder << ": " << (torn.was_committed ? "damaged: " : "skipped: ") << torn.reason << "\n";
    }
    if (list.checkpoints.empty()) {
      ++found.problems;
      out << path << ": holds no complete checkpoint\n";
    }
    for (auto checkpoint = list.checkpoints.rbegin(); checkpoint != list.checkpoints.rend(); ++checkpoint) {
      found.checkpoints.push_back(join_path(path, checkpoint->name));
    }
  }
  return found;
}

int verify(const std::vector<std::string>& paths, std::ostream& out) {
  Found found = find_checkpoints(paths, out);
  std::vector<formats::Checkpoint> opened;
  std::uint64_t total = 0;
  for (const std::string& path : found.checkpoints) {
    try {
      opened.push_back(formats::Checkpoint::open(path));
      total += opened.back().total_bytes();
    } catch (const Error& error) {
      ++found.problems;
      out << path << ": " << error.what() << "\n";
    }
  }
  BytesBar bar("verify", total);
  std::uint64_t done = 0;
  std::size_t files = 0, tensors = 0;
  for (const formats::Checkpoint& checkpoint : opened) {
    const auto damage = checkpoint.verify([&](std::uint64_t bytes) { bar.update(done + bytes); });
    done += checkpoint.total_bytes();
    files += checkpoint.manifest().files.size() + 1;
    tensors += checkpoint.manifest().tensors.size();
    out << checkpoint.folder() << ": " << (damage.empty() ? "ok" : "damaged") << "\n";
    for (const formats::Damage& place : damage) {
      out << "  " << join_path(checkpoint.folder(), place.file) << ": "
          << (place.tensor.empty() ? "" : "tensor " + place.tensor + ": ") << place.what << "\n";
    }
    found.problems += damage.size();
  }
  out << (found.problems == 0 ? "ok: " : cat(found.problems, found.problems == 1 ? " problem: " : " problems: "))
      << opened.size() << (opened.size() == 1 ? " checkpoint, " : " checkpoints, ") << files << " files, " << tensors
      << " tensors, " << bar.rate_text(done) << "\n";
  return found.problems == 0 ? kExitOk : kExitRunError;
}

}  // namespace

Subcommand ckpt_verify_command() {
  auto paths = std::make_shared<std::vector<std::string>>();
  Subcommand command;
  command.name = "verify";
  command.summary =
      "check every byte of checkpoints against its digest; exits with 1 on damage and names file and tensor";
  command.configure = [paths](ArgumentList& list) {
    paths->clear();
    list.positional("PATH", *paths, "folders of checkpoints, or of runs: then all checkpoints in them");
  };
  command.run = [paths](Registry&, std::ostream& out) { return verify(*paths, out); };
  return command;
}

}  // namespace castor::strategy
