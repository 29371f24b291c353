// A file system that passes everything on to another one, keeps a log of the operations and lets chosen ones fail: how
// tests ask "what if the disk fails exactly here?".
//
// Delicate: operations are counted over all files and threads from 0, so "operation N" is reproducible only for code
// that does the same operations in the same order; run once without faults and read `log()` to see what N means.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/file_system.h"

namespace castor {

/// The operations of the seam, as logged and counted.
enum class FileOperationKind {
  open,
  read,
  write,
  sync,
  size,
  map,
  close,
  status,
  rename,
  unlink,
  make_directory,
  remove_directory,
  list,
  sync_directory,
  free_bytes,
  reserve,
};

/// "open", "sync_directory", ...
std::string_view file_operation_name(FileOperationKind kind);

/// One logged operation. For `rename`, `path` is the old name and `target` the new one.
struct FileOperation {
  FileOperationKind kind = FileOperationKind::open;
  std::string path;
  std::string target;
  std::uint64_t offset = 0;  ///< reads and writes
  std::uint64_t bytes = 0;   ///< asked for by reads, writes and maps
};

/// What happens to an operation instead of success.
enum class FaultKind {
  error,           ///< it fails with `error` and does nothing
  short_transfer,  ///< a read or write moves half of its bytes (at least one) and succeeds; other operations are
                   ///< untouched
  lost_sync,       ///< a sync, of a file or a folder, reports success and does nothing; other operations are untouched
  power_cut,       ///< it, and every operation after it, fails with `error` and does nothing
};

/// A fault at one operation.
struct Fault {
  std::uint64_t operation = 0;  ///< counted from 0
  FaultKind kind = FaultKind::error;
  int error = 5;  ///< errno; EIO
};

/// Counts, logs and fails the operations on `below`, which must outlive it. Thread-safe.
class FaultFileSystem : public FileSystem {
 public:
  explicit FaultFileSystem(FileSystem& below) : below_(below) {}

  /// Adds a fault; several may be set.
  void inject(const Fault& fault);
  /// Every operation so far, in order, failed ones included.
  std::vector<FileOperation> log() const;
  /// How many operations there were so far.
  std::uint64_t operations() const;

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
  friend class FaultFile;
  // What to do with an operation: fail with `error`, pass it on, shortened or whole, or only pretend to.
  struct Verdict {
    int error = 0;
    bool shorten = false;
    bool lose_sync = false;
  };
  Verdict judge(FileOperation operation);

  FileSystem& below_;
  mutable std::mutex mutex_;
  std::vector<FileOperation> log_;
  std::vector<Fault> faults_;
};

}  // namespace castor
