// A file system in memory that knows what a power loss would leave: the ground on which crash safety is tested.
//
// Contents and names have two lives, as on a disk behind a write cache: what programs see now, and what has been
// synced. Delicate: it is pessimistic on purpose. A file's sync makes its bytes durable and not its name; a folder's
// sync makes its names durable and not the bytes behind them; un-synced changes may reach the disk in any combination.
// Code that survives every combination here survives on any file system that keeps its word.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "core/base/file_system.h"

namespace castor {

/// What a power loss does to changes that were not synced.
enum class Unsynced {
  dropped,  ///< none reached the disk
  kept,     ///< all reached the disk
  random,   ///< each write and each change of a name reached it or not, by a seed
  torn,     ///< as `random`, but each 512-byte sector of a write by itself, and sizes apart from contents
};

/// Files in memory. Paths are absolute or relative to the root, which is the same; ".." is resolved by name; there are
/// no links, permissions or devices. Thread-safe; must outlive the files opened from it.
class MemoryFileSystem : public FileSystem {
 public:
  MemoryFileSystem();
  ~MemoryFileSystem() override;

  /// Bytes that all files together may hold; a write beyond them is short, then fails with ENOSPC. Unlimited at first.
  void set_capacity(std::uint64_t bytes);
  /// A new file system with what a power loss now would leave; equal seeds give equal results. This one stays as it is.
  std::unique_ptr<MemoryFileSystem> after_power_loss(Unsynced unsynced, std::uint64_t seed = 0) const;

  int open(const std::string& path, OpenMode mode, std::unique_ptr<OpenFile>& file) override;
  int status(const std::string& path, FileStatus& status) override;
  int rename(const std::string& from, const std::string& to) override;
  int unlink(const std::string& path) override;
  int make_directory(const std::string& path) override;
  int remove_directory(const std::string& path) override;
  int list(const std::string& path, std::vector<DirectoryEntry>& entries) override;
  int sync_directory(const std::string& path) override;
  IoResult free_bytes(const std::string& path) override;

 private:
  friend class MemoryFile;
  struct Node;
  struct Place;

  std::shared_ptr<Node> find(const std::string& path, int& error) const;
  Place locate(const std::string& path) const;
  std::uint64_t used_bytes() const;
  std::uint64_t room() const;

  mutable std::mutex mutex_;
  std::shared_ptr<Node> root_;
  std::optional<std::uint64_t> capacity_;
};

}  // namespace castor
