// Naming and unlinking, and the two threads. Delicate: a transfer that waits for one on the other thread cannot wait in
// a circle, because it can only name transfers that were asked for before it.
#include "core/base/scratch_file.h"

#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>

#include <unistd.h>

namespace castor {
namespace {

// Names of one process; another process's file of the same number, as in another container, only costs an attempt.
std::atomic<std::uint64_t> next_number = 0;
constexpr int kAttempts = 1000;

File create_unnamed(const std::string& directory, FileSystem& files) {
  make_directories(directory, files);
  for (int attempt = 1;; ++attempt) {
    const std::string path = join_path(directory, cat(".castor-scratch-", ::getpid(), "-", next_number++));
    try {
      File file = File::open(path, OpenMode::create_new, files);
      remove_file(path, files);
      return file;
    } catch (const IoError& error) {
      if (error.code != EEXIST || attempt == kAttempts) throw;
    }
  }
}

}  // namespace

// Runs tasks in order on a thread that the first one starts.
class ScratchFile::Lane {
 public:
  Lane() = default;
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;
  ~Lane() {
    {
      const std::lock_guard lock(mutex_);
      is_stopping_ = true;
    }
    changed_.notify_one();
    if (thread_.joinable()) thread_.join();
  }

  Transfer run(std::function<void()> action) {
    std::packaged_task<void()> task(std::move(action));
    Transfer transfer = task.get_future().share();
    {
      const std::lock_guard lock(mutex_);
      tasks_.push_back(std::move(task));
    }
    changed_.notify_one();
    if (!thread_.joinable()) thread_ = std::thread([this] { run_tasks(); });
    return transfer;
  }

 private:
  void run_tasks() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return is_stopping_ || !tasks_.empty(); });
      if (is_stopping_) return;
      std::packaged_task<void()> task = std::move(tasks_.front());
      tasks_.pop_front();
      lock.unlock();
      task();
      lock.lock();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::packaged_task<void()>> tasks_;
  bool is_stopping_ = false;
  std::thread thread_;
};

ScratchFile::ScratchFile(const std::string& directory, std::uint64_t bytes, FileSystem& files)
    : file_(std::make_unique<File>(create_unnamed(directory, files))),
      bytes_(bytes),
      reads_(std::make_unique<Lane>()),
      writes_(std::make_unique<Lane>()) {
  file_->reserve(bytes);
  is_direct_ = file_->set_direct(true);
}

ScratchFile::~ScratchFile() {
  reads_.reset();
  writes_.reset();
}

const std::string& ScratchFile::path() const { return file_->path(); }

ScratchFile::Transfer ScratchFile::read(std::span<std::byte> out, std::uint64_t offset, Transfer after) {
  return reads_->run([this, out, offset, after = std::move(after)] {
    if (after.valid()) after.get();
    file_->read_exact(out, offset);
  });
}

ScratchFile::Transfer ScratchFile::write(std::span<const std::byte> data, std::uint64_t offset, Transfer after) {
  return writes_->run([this, data, offset, after = std::move(after)] {
    if (after.valid()) after.get();
    file_->write_exact(data, offset);
  });
}

}  // namespace castor
