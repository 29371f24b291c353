// The order of operations behind a download that survives anything.
//
// Delicate: `restart` makes the note's removal durable before it empties the file, `save` makes bytes durable before it
// notes them, `finish` renames only what was synced. Taking any of these apart shows only after a power loss, and as a
// wrong file.
#include "strategy/source/partial_file.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

#include "core/base/json.h"

namespace castor::strategy {
namespace {

constexpr std::uint64_t kLongestNote = 64 * 1024;

/// What an If-Range header may hold; the note is only a file.
bool is_header_text(std::string_view text) {
  return std::none_of(text.begin(), text.end(),
                      [](char c) { return static_cast<unsigned char>(c) < ' ' || c == '\x7f'; });
}

}  // namespace

std::string FileVersion::if_range() const {
  // A weak ETag promises the same meaning, not the same bytes.
  return !etag.empty() && !etag.starts_with("W/") ? etag : last_modified;
}

PartialFile::PartialFile(std::string final_path, FileSystem& files, std::uint64_t save_bytes)
    : final_path_(std::move(final_path)), path_(final_path_ + ".partial"), files_(files), save_bytes_(save_bytes) {
  if (exists(note_path(), files_)) read_note();
}

void PartialFile::read_note() {
  try {
    const Json root = parse_json(read_text_file(note_path(), kLongestNote, files_), note_path());
    const JsonCursor note(root, note_path());
    const FileVersion version{note.at("etag").string(), note.at("last_modified").string(),
                              note.at("total").unsigned_integer()};
    const std::uint64_t saved = note.at("bytes").unsigned_integer();
    const bool fits = version.total == 0 || saved <= version.total;
    if (!fits || version.if_range().empty() || !is_header_text(version.if_range()) || !exists(path_, files_) ||
        file_size(path_, files_) < saved)
      return;
    version_ = version;
    saved_ = saved;
    size_ = saved;
  } catch (const FormatError&) {
    // Not a note: the download starts anew.
  }
}

void PartialFile::restart(const FileVersion& version) {
  file_.reset();
  saved_ = 0;
  size_ = 0;
  remove_file(note_path(), files_);
  sync_directory(directory_of(path_), files_);  // even if it was gone: its removal may not be durable yet
  version_ = version;
  file_ = File::open(path_, OpenMode::create, files_);
  if (version_.total > 0) file_->expect_bytes(version_.total);
}

void PartialFile::resume(std::uint64_t total) {
  size_ = saved_;
  version_.total = total;
  file_ = File::open(path_, OpenMode::append, files_);
  if (version_.total > 0) file_->expect_bytes(version_.total);
}

void PartialFile::write(std::span<const std::byte> bytes) {
  if (!file_) throw InternalError("download: a write to a part that is not open");
  file_->write_exact(bytes, size_);
  size_ += bytes.size();
  if (size_ - saved_ >= save_bytes_ && !version_.if_range().empty()) save();
}

void PartialFile::save() {
  sync();
  const Json note{
      {"etag", version_.etag}, {"last_modified", version_.last_modified}, {"total", version_.total}, {"bytes", size_}};
  write_file_atomically(note_path(), dump_json(note, 1) + "\n", files_);
  saved_ = size_;
}

void PartialFile::save_or_discard() noexcept {
  if (!file_) return;  // nothing came since the last note
  try {
    if (size_ > 0 && !version_.if_range().empty()) {
      if (size_ > saved_) save();
      file_.reset();
      return;
    }
  } catch (const std::exception&) {
    // What was noted before still holds.
    file_.reset();
    return;
  }
  discard();
}

void PartialFile::discard() noexcept {
  file_.reset();
  saved_ = 0;
  size_ = 0;
  // Best effort, the note first: without it nothing of the part is ever used.
  files_.unlink(note_path());
  files_.unlink(path_);
}

void PartialFile::sync() {
  if (!file_) throw InternalError("download: a sync of a part that is not open");
  try {
    file_->sync();
  } catch (...) {
    file_.reset();  // a second sync would claim success for bytes that the first one lost
    throw;
  }
}

void PartialFile::finish() {
  if (file_) file_->close();
  file_.reset();
  rename_file(path_, final_path_, files_);
  sync_directory(directory_of(final_path_), files_);
  remove_file(note_path(), files_);
}

}  // namespace castor::strategy
