// One save from tensors to a committed folder, and the thread that may do it.
#include "strategy/checkpoint/saver.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <set>

#include "core/base/file.h"
#include "core/base/file_error.h"
#include "core/base/host_memory.h"
#include "core/base/log.h"
#include "core/base/parallel.h"
#include "formats/checkpoint_list.h"
#include "formats/checkpoint_writer.h"

namespace castor::strategy {
namespace {

// Stems of the files of a checkpoint.
constexpr const char* kModelStem = "model";
constexpr const char* kOptimizerStem = "optimizer";
constexpr const char* kStateStem = "state";
constexpr const char* kConfigStem = "config";

// An empty file in a folder from before the first file of its first save until the commit, which removes temporary
// files.
constexpr const char* kUnfinishedMark = ".castor-tmp-unfinished";

// How much of a rank's share of the host's free memory copies may take.
constexpr double kRoomShare = 0.5;

bool is_weight(const std::string& role) { return role == "param" || role == "buffer"; }

std::uint64_t room_for(CopyMode mode, std::uint64_t bytes) {
  if (mode == CopyMode::whole) return bytes;
  return std::min(bytes, static_cast<std::uint64_t>(static_cast<double>(host_memory_share().free) * kRoomShare / 4));
}

std::vector<std::string> files_of_manifest(const std::string& folder, FileSystem& files) {
  std::vector<std::string> names = {formats::kManifestName};
  const std::string path = join_path(folder, formats::kManifestName);
  if (!exists(path, files)) return {};
  try {
    const auto manifest = formats::parse_manifest(read_text_file(path, formats::kMaxManifestBytes, files), path);
    for (const formats::CheckpointFile& file : manifest.files) names.push_back(file.name);
  } catch (const FormatError&) {
    return {};
  }
  return names;
}

bool looks_like_ours(const std::string& name) {
  const auto is_text = [&name](const char* stem, const char* extension) {
    return name == cat(stem, extension) || name == cat(stem, ".2", extension);
  };
  const auto stem = formats::stem_of_data_file(name);
  return is_temporary_name(name) || name == formats::kManifestName || stem == kModelStem || stem == kOptimizerStem ||
         is_text(kStateStem, ".json") || is_text(kConfigStem, ".yaml");
}

// Throws unless the folder, which has no valid manifest, is empty or what an interrupted save left. That is told by the
// mark, and by a name that only runs give, which retention may have been removing; names of files tell nothing: other
// tools' folders of weights have the same.
void check_unfinished(const std::string& folder, FileSystem& files) {
  if (!is_directory(folder, files) || formats::number_of(file_name_of(folder))) return;
  if (exists(join_path(folder, kUnfinishedMark), files)) return;
  for (const DirectoryEntry& entry : list_directory(folder, files)) {
    if (entry.kind == FileKind::file && is_temporary_name(entry.name)) continue;
    throw IoError(cat("save ", quote_name(folder, 4096), ": expected a checkpoint or an empty folder, it holds ",
                      quote_name(entry.name), " and no valid ", formats::kManifestName,
                      "; name another folder, or remove what is in this one"),
                  folder, EEXIST);
  }
}

// Says durably, before anything else is written or removed, that what will lie there is an unfinished save's.
void mark_unfinished(const std::string& folder, FileSystem& files) {
  File::open(join_path(folder, kUnfinishedMark), OpenMode::create, files).close();
  sync_directory(folder, files);
}

// Removes what a save that was not completed left in the folder, but for the mark; files of a valid manifest stay.
void remove_leftovers(const std::string& folder, FileSystem& files) {
  if (!is_directory(folder, files)) return;
  const std::vector<std::string> kept = files_of_manifest(folder, files);
  for (const DirectoryEntry& entry : list_directory(folder, files)) {
    const bool is_kept = std::find(kept.begin(), kept.end(), entry.name) != kept.end() || entry.name == kUnfinishedMark;
    if (entry.kind == FileKind::file && !is_kept && looks_like_ours(entry.name)) {
      remove_file(join_path(folder, entry.name), files);
    }
  }
}

// The exception being handled, as one that says where it comes from: it comes up in another save or at the run's end.
std::exception_ptr background_failure(const std::string& folder) {
  const std::string begin = cat("saving ", quote_name(folder, 4096), " in the background failed: ");
  try {
    throw;
  } catch (const IoError& error) {
    return std::make_exception_ptr(IoError(begin + error.what(), error.path, error.code));
  } catch (const FormatError& error) {
    return std::make_exception_ptr(FormatError(begin + error.what(), error.file, error.offset));
  } catch (const std::exception& error) {
    return std::make_exception_ptr(Error(begin + error.what()));
  }
}

}  // namespace

CopyMode CheckpointSaver::copy_mode(std::uint64_t bytes, std::uint64_t free_bytes) {
  const bool has_room = static_cast<double>(bytes) <= static_cast<double>(free_bytes) * kRoomShare;
  return has_room ? CopyMode::whole : CopyMode::on_write;
}

CopyMode CheckpointSaver::copy_mode(std::uint64_t bytes) { return copy_mode(bytes, host_memory_share().free); }

void CheckpointSaver::reserve(std::uint64_t bytes) {
  if (is_reserved_ && room_.bytes().size() >= bytes) return;
  const CopyMode mode = copy_mode(bytes);
  reserve(mode, room_for(mode, bytes));
}

void CheckpointSaver::reserve(CopyMode, std::uint64_t room_bytes) {
  wait();
  room_ = AlignedBuffer(static_cast<std::size_t>(room_bytes));
  const std::span<std::byte> room = room_.bytes();
  parallel_for(static_cast<std::int64_t>(room.size()), std::int64_t{16} << 20,
               [&](std::int64_t begin, std::int64_t end) {
                 std::memset(room.data() + begin, 0, static_cast<std::size_t>(end - begin));
               });
  is_reserved_ = true;
}

CheckpointSaver::~CheckpointSaver() { finish(); }

void CheckpointSaver::finish() noexcept {
  try {
    wait();
  } catch (const std::exception& error) {
    logger().error("a checkpoint could not be saved: ", error.what());
  }
}

void CheckpointSaver::wait() {
  if (writer_.joinable()) writer_.join();
  snapshot_.reset();
  if (failure_ != nullptr) std::rethrow_exception(std::exchange(failure_, nullptr));
}

void CheckpointSaver::save(SaveRequest request) {
  wait();
  // Nobody else writes there now: what is called temporary was left by a program that was killed.
  const std::string directory = directory_of(request.folder);
  const bool is_main = request.ranks == nullptr || request.ranks->rank() == 0;
  if (is_main && is_directory(directory, files_)) remove_temporary_files(directory, files_);
  if (!request.asynchronous) {
    write(request, nullptr);
    return;
  }
  if (!is_reserved_) reserve(Snapshot::bytes_of(request.tensors));
  snapshot_ = std::make_unique<Snapshot>(std::move(request.tensors), room_.bytes());
  writer_ = std::thread([this, request = std::move(request)] {
    try {
      write(request, snapshot_.get());
    } catch (...) {
      failure_ = background_failure(request.folder);
    }
    snapshot_->abandon();
  });
}

std::uint64_t CheckpointSaver::next_number(const std::string& directory) {
  const auto [known, is_new] = last_number_.try_emplace(directory, 0);
  if (is_new) known->second = formats::list_checkpoints(directory, files_).next_save_number() - 1;
  return ++known->second;
}

void CheckpointSaver::write(const SaveRequest& request, Snapshot* snapshot) {
  const std::string& folder = request.folder;
  const bool is_new = !exists(folder, files_);
  const std::vector<StateTensor>& tensors = snapshot == nullptr ? request.tensors : snapshot->tensors();
  std::vector<formats::TensorPiece> weights, others;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const auto& [name, role, tensor, cut_from, offset] = tensors[i];
    const Shape& shape = cut_from ? *cut_from : tensor.shape();
    formats::TensorPiece piece{name, role, tensor.dtype(), {shape.begin(), shape.end()}, offset, tensor.numel(), {}};
    if (snapshot != nullptr) {
      piece.data = snapshot->source(i);
    } else if (tensor.device().is_cpu() && !tensor.storage()->has_pager() && tensor.numel() > 0) {
      piece.data = std::span(static_cast<const std::byte*>(tensor.view().data), tensor.view().bytes());
    } else {
      piece.data = [tensor](std::uint64_t offset, std::span<std::byte> out) {
        tensor.storage()->read(static_cast<std::size_t>(tensor.offset()) * dtype_size(tensor.dtype()) + offset, out);
      };
    }
    (is_weight(role) ? weights : others).push_back(std::move(piece));
  }
  SaveGroup group(request.ranks);
  bool is_ours = false;  // what looks like ours in the folder
  try {
    std::string suffix;
    group.together([&] {
      if (!group.is_main()) return;
      const bool has_checkpoint = !files_of_manifest(folder, files_).empty();
      if (!has_checkpoint) check_unfinished(folder, files_);
      is_ours = true;
      make_directories(folder, files_);
      if (!has_checkpoint) mark_unfinished(folder, files_);
      remove_leftovers(folder, files_);
      suffix = formats::free_suffix(folder, files_);
    });
    const formats::SaveLocation location{folder, group.from_main(suffix), group.rank(), group.world_size()};
    formats::CheckpointPart part;
    group.together([&] {
      if (group.is_main()) {
        formats::write_text(part, kStateStem, "json", request.state, location, files_);
        if (!request.config_yaml.empty())
          formats::write_text(part, kConfigStem, "yaml", request.config_yaml, location, files_);
      }
      formats::write_pieces(part, kModelStem, weights, location, files_);
      formats::write_pieces(part, kOptimizerStem, others, location, files_);
    });
    std::vector<formats::CheckpointPart> parts;
    if (request.ranks == nullptr) {
      parts.push_back(std::move(part));
    } else {
      for (const std::string& text : group.gather(formats::part_text(part))) parts.push_back(formats::parse_part(text));
    }
    group.together([&] {
      if (!group.is_main()) return;
      const std::uint64_t number = next_number(directory_of(folder));
      formats::commit_checkpoint(folder, parts, request.aliases, number, files_);
    });
  } catch (...) {
    // A file system that fails here as well leaves what a crash would leave: skipped by readers, removed by the next
    // save.
    try {
      if (is_ours && is_directory(folder, files_)) {
        remove_leftovers(folder, files_);
        sync_directory(folder, files_);  // the mark goes when nothing that it stands for can come back
        remove_file(join_path(folder, kUnfinishedMark), files_);
        if (is_new && list_directory(folder, files_).empty()) remove_tree(folder, files_);
      }
    } catch (const IoError&) {
    }
    throw;
  }
  if (request.committed && group.is_main()) request.committed(folder);
}

}  // namespace castor::strategy
