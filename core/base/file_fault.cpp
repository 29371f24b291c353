// Every operation asks `judge` first; that is all the mechanism there is. Delicate: a closed file stays closed even
// when its close is failed, because the file below closes in its destructor.
#include "core/base/file_fault.h"

#include <algorithm>
#include <utility>

namespace castor {

std::string_view file_operation_name(FileOperationKind kind) {
  static constexpr std::string_view kNames[] = {
      "open",  "read",           "write",      "sync",   "size",           "map",
      "close", "status",         "rename",     "unlink", "make_directory", "remove_directory",
      "list",  "sync_directory", "free_bytes", "reserve"};
  return kNames[static_cast<int>(kind)];
}

class FaultFile : public OpenFile {
 public:
  FaultFile(FaultFileSystem& files, std::unique_ptr<OpenFile> below, std::string path)
      : files_(files), below_(std::move(below)), path_(std::move(path)) {}

  IoResult read(std::span<std::byte> out, std::uint64_t offset) override {
    const auto verdict = files_.judge({FileOperationKind::read, path_, {}, offset, out.size()});
    if (verdict.error != 0) return {0, verdict.error};
    return below_->read(verdict.shorten ? out.first((out.size() + 1) / 2) : out, offset);
  }
  IoResult write(std::span<const std::byte> data, std::uint64_t offset) override {
    const auto verdict = files_.judge({FileOperationKind::write, path_, {}, offset, data.size()});
    if (verdict.error != 0) return {0, verdict.error};
    return below_->write(verdict.shorten ? data.first((data.size() + 1) / 2) : data, offset);
  }
  int sync() override {
    const auto verdict = files_.judge({FileOperationKind::sync, path_, {}, 0, 0});
    if (verdict.error != 0 || verdict.lose_sync) return verdict.error;
    return below_->sync();
  }
  IoResult size() override {
    const auto verdict = files_.judge({FileOperationKind::size, path_, {}, 0, 0});
    if (verdict.error != 0) return {0, verdict.error};
    return below_->size();
  }
  int map(std::uint64_t bytes, std::shared_ptr<const std::byte>& view) override {
    const auto verdict = files_.judge({FileOperationKind::map, path_, {}, 0, bytes});
    return verdict.error != 0 ? verdict.error : below_->map(bytes, view);
  }
  bool set_direct(bool direct) override { return below_->set_direct(direct); }
  int reserve(std::uint64_t bytes) override {
    const auto verdict = files_.judge({FileOperationKind::reserve, path_, {}, 0, bytes});
    return verdict.error != 0 ? verdict.error : below_->reserve(bytes);
  }
  int close() override {
    const auto verdict = files_.judge({FileOperationKind::close, path_, {}, 0, 0});
    return verdict.error != 0 ? verdict.error : below_->close();
  }

 private:
  FaultFileSystem& files_;
  std::unique_ptr<OpenFile> below_;
  std::string path_;
};

void FaultFileSystem::inject(const Fault& fault) {
  const std::lock_guard lock(mutex_);
  faults_.push_back(fault);
}

std::vector<FileOperation> FaultFileSystem::log() const {
  const std::lock_guard lock(mutex_);
  return log_;
}

std::uint64_t FaultFileSystem::operations() const {
  const std::lock_guard lock(mutex_);
  return log_.size();
}

FaultFileSystem::Verdict FaultFileSystem::judge(FileOperation operation) {
  const std::lock_guard lock(mutex_);
  const std::uint64_t number = log_.size();
  log_.push_back(std::move(operation));
  Verdict verdict;
  for (const Fault& fault : faults_) {
    if (fault.kind == FaultKind::power_cut) {
      if (number >= fault.operation) verdict.error = fault.error;
    } else if (number == fault.operation) {
      if (fault.kind == FaultKind::error) verdict.error = fault.error;
      if (fault.kind == FaultKind::short_transfer) verdict.shorten = true;
      if (fault.kind == FaultKind::lost_sync) verdict.lose_sync = true;
    }
  }
  return verdict;
}

int FaultFileSystem::open(const std::string& path, OpenMode mode, std::unique_ptr<OpenFile>& file) {
  const Verdict verdict = judge({FileOperationKind::open, path, {}, 0, 0});
  if (verdict.error != 0) return verdict.error;
  std::unique_ptr<OpenFile> opened;
  const int error = below_.open(path, mode, opened);
  if (error == 0) file = std::make_unique<FaultFile>(*this, std::move(opened), path);
  return error;
}

int FaultFileSystem::status(const std::string& path, FileStatus& status) {
  const Verdict verdict = judge({FileOperationKind::status, path, {}, 0, 0});
  return verdict.error != 0 ? verdict.error : below_.status(path, status);
}

int FaultFileSystem::rename(const std::string& from, const std::string& to) {
  const Verdict verdict = judge({FileOperationKind::rename, from, to, 0, 0});
  return verdict.error != 0 ? verdict.error : below_.rename(from, to);
}

int FaultFileSystem::unlink(const std::string& path) {
  const Verdict verdict = judge({FileOperationKind::unlink, path, {}, 0, 0});
  return verdict.error != 0 ? verdict.error : below_.unlink(path);
}

int FaultFileSystem::make_directory(const std::string& path) {
  const Verdict verdict = judge({FileOperationKind::make_directory, path, {}, 0, 0});
  return verdict.error != 0 ? verdict.error : below_.make_directory(path);
}

int FaultFileSystem::remove_directory(const std::string& path) {
  const Verdict verdict = judge({FileOperationKind::remove_directory, path, {}, 0, 0});
  return verdict.error != 0 ? verdict.error : below_.remove_directory(path);
}

int FaultFileSystem::list(const std::string& path, std::vector<DirectoryEntry>& entries) {
  const Verdict verdict = judge({FileOperationKind::list, path, {}, 0, 0});
  return verdict.error != 0 ? verdict.error : below_.list(path, entries);
}

int FaultFileSystem::sync_directory(const std::string& path) {
  const Verdict verdict = judge({FileOperationKind::sync_directory, path, {}, 0, 0});
  if (verdict.error != 0 || verdict.lose_sync) return verdict.error;
  return below_.sync_directory(path);
}

IoResult FaultFileSystem::free_bytes(const std::string& path) {
  const Verdict verdict = judge({FileOperationKind::free_bytes, path, {}, 0, 0});
  if (verdict.error != 0) return {0, verdict.error};
  return below_.free_bytes(path);
}

}  // namespace castor
