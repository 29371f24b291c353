// A download that is not complete: NAME.partial, and NAME.partial.json, which says what it is a part of and how many of
// its bytes are on the disk for certain.
//
// Delicate: after a power loss a file may have its size and not its bytes, and a resumed download would carry the hole
// into the finished file. So only bytes that were synced before the note was written count, and the note goes before
// anything that makes it untrue. NAME itself appears by a rename, whole and synced.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "core/base/file.h"

namespace castor::strategy {

/// What a server says a file is: enough to know later whether it is the same one.
struct FileVersion {
  std::string etag;           ///< as sent, quotes included
  std::string last_modified;  ///< as sent
  std::uint64_t total = 0;    ///< bytes of the whole file; 0 if not said

  /// What an If-Range header holds: the ETag unless it is a weak one, else the date; empty if there is neither, and
  /// then nothing can be resumed. Source: RFC 9110, section 13.1.5.
  std::string if_range() const;
};

/// One download's file. Its user holds the lock of the name.
class PartialFile {
 public:
  static constexpr std::uint64_t kSaveBytes = std::uint64_t{64} << 20;

  /// Looks at what an earlier download left; a note that cannot be read or does not fit counts as none.
  ///   final_path   the name that the finished file gets
  ///   save_bytes   how much may be written before it is made durable
  PartialFile(std::string final_path, FileSystem& files, std::uint64_t save_bytes = kSaveBytes);
  PartialFile(const PartialFile&) = delete;
  PartialFile& operator=(const PartialFile&) = delete;

  /// NAME.partial
  const std::string& path() const { return path_; }
  /// Bytes from which a download can go on; 0 if it has to start anew.
  std::uint64_t saved_bytes() const { return saved_; }
  /// Bytes that are in the file.
  std::uint64_t size() const { return size_; }
  const FileVersion& version() const { return version_; }

  /// Starts anew, with an empty file. Throws IoError.
  void restart(const FileVersion& version);
  /// Goes on after saved_bytes(), which must be above 0.
  ///   total   bytes of the whole file, 0 if not known
  /// Throws IoError.
  void resume(std::uint64_t total);
  /// Appends. Throws IoError.
  void write(std::span<const std::byte> bytes);
  /// Makes what was written durable and notes it, so that a download can go on from here. Throws IoError.
  void save();
  /// As `save` where a part is of use, else removes it; for the way out after an error, so it throws nothing.
  void save_or_discard() noexcept;
  /// Removes the part and its note; for contents that are no good. Throws nothing.
  void discard() noexcept;
  /// Makes the contents durable. Throws IoError; what came since the last note then counts as lost.
  void sync();
  /// Gives the synced file its name. Throws IoError.
  void finish();

 private:
  std::string note_path() const { return path_ + ".json"; }
  void read_note();

  std::string final_path_;
  std::string path_;
  FileSystem& files_;
  std::uint64_t save_bytes_;
  FileVersion version_;
  std::uint64_t saved_ = 0;
  std::uint64_t size_ = 0;
  std::optional<File> file_;  ///< open while a transfer runs
};

}  // namespace castor::strategy
