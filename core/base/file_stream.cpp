// The ring of a StreamWriter and the read-ahead of a StreamReader.
//
// Delicate: buffers pass between the caller and the threads by counters under one mutex each; whoever's turn it is by
// them owns the buffer without a lock. The writer's thread only ever writes whole buffers; the rest, the sync and the
// close happen on the caller's thread after it has ended, so the operations on the file have one order. A direct write
// cannot end inside a block: the last piece goes through the page cache, whatever the file system, for that same order.
#include "core/base/file_stream.h"

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <mutex>
#include <new>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include <sys/mman.h>

#include "core/base/file_error.h"

namespace castor {
namespace {

// Direct reads smaller than this on average are slower than ordinary ones, which the system reads ahead for.
constexpr std::uint64_t kSmallFetch = std::uint64_t{256} << 10;

constexpr std::size_t kHugePage = std::size_t{2} << 20;

std::uint64_t round_down(std::uint64_t value, std::uint64_t multiple) { return value / multiple * multiple; }
std::uint64_t round_up(std::uint64_t value, std::uint64_t multiple) {
  return round_down(value + multiple - 1, multiple);
}

StreamOptions rounded(StreamOptions options) {
  options.buffer_bytes = round_up(std::max<std::size_t>(options.buffer_bytes, 1), kDirectAlignment);
  options.buffers = std::max<std::size_t>(options.buffers, 2);
  options.reads_in_flight = std::clamp<std::size_t>(options.reads_in_flight, 1, options.buffers - 1);
  return options;
}

}  // namespace

AlignedBuffer::AlignedBuffer(std::size_t bytes) {
  if (bytes == 0) return;
  const std::size_t size = round_up(bytes, kDirectAlignment);
  const std::size_t spare = size >= kHugePage ? kHugePage - kDirectAlignment : 0;
  void* mapped = ::mmap(nullptr, size + spare, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  auto* start = static_cast<std::byte*>(mapped);
  if (spare > 0) {  // cut to begin at a huge page
    const std::size_t before = (kHugePage - reinterpret_cast<std::uintptr_t>(start) % kHugePage) % kHugePage;
    if (before > 0) ::munmap(start, before);
    start += before;
    if (before < spare) ::munmap(start + size, spare - before);
    ::madvise(start, size, MADV_HUGEPAGE);  // only a wish: kernels without huge pages refuse it
  }
  start_ = {start, Unmap{size}};
}

void AlignedBuffer::Unmap::operator()(std::byte* start) const { ::munmap(start, bytes); }

// The caller fills buffer `filled_ % buffers`, the thread writes buffer `written_ % buffers`.
class StreamWriter::Ring {
 public:
  Ring(File file, const StreamOptions& options) : file_(std::move(file)), options_(options), buffers_(options.buffers) {
    if (options_.direct) file_.set_direct(true);
  }
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;
  ~Ring() { end_thread(); }

  File& file() { return file_; }
  std::uint64_t position() const { return filled_ * options_.buffer_bytes + used_; }

  std::span<std::byte> space() {
    if (used_ == 0) {
      std::unique_lock lock(mutex_);
      written_one_.wait(lock, [&] { return failure_ != nullptr || filled_ - written_ < buffers_.size(); });
    }
    AlignedBuffer& buffer = buffers_[filled_ % buffers_.size()];
    if (buffer.bytes().empty()) buffer = AlignedBuffer(options_.buffer_bytes);
    check_failure();
    return buffer.bytes().subspan(used_);
  }

  void advance(std::size_t bytes) {
    if (bytes > options_.buffer_bytes - used_) {
      throw InternalError(cat("stream ", quote_name(file_.path(), 4096), ": advanced by ", bytes,
                              " bytes, the buffer had room for ", options_.buffer_bytes - used_));
    }
    used_ += bytes;
    if (used_ < options_.buffer_bytes) return;
    {
      const std::lock_guard lock(mutex_);
      ++filled_;
    }
    used_ = 0;
    filled_one_.notify_one();
    if (!thread_.joinable()) thread_ = std::thread([this] { write_buffers(); });
  }

  void finish() {
    {
      std::unique_lock lock(mutex_);
      written_one_.wait(lock, [&] { return failure_ != nullptr || written_ == filled_; });
    }
    end_thread();
    check_failure();
    if (used_ > 0) {
      const std::span<const std::byte> rest = buffers_[filled_ % buffers_.size()].bytes().first(used_);
      const std::size_t blocks = options_.direct ? round_down(used_, kDirectAlignment) : 0;
      const std::uint64_t offset = filled_ * options_.buffer_bytes;
      file_.write_exact(rest.first(blocks), offset);
      if (options_.direct) file_.set_direct(false);
      file_.write_exact(rest.subspan(blocks), offset + blocks);
    }
    file_.sync();
    file_.close();
  }

 private:
  void check_failure() {
    const std::lock_guard lock(mutex_);
    if (failure_ != nullptr) std::rethrow_exception(failure_);
  }

  void end_thread() {
    if (!thread_.joinable()) return;
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    filled_one_.notify_one();
    thread_.join();
  }

  void write_buffers() {
    std::unique_lock lock(mutex_);
    for (;;) {
      filled_one_.wait(lock, [&] { return stop_ || written_ < filled_; });
      if (stop_) return;
      lock.unlock();
      std::exception_ptr failure;
      try {
        file_.write_exact(buffers_[written_ % buffers_.size()].bytes(), written_ * options_.buffer_bytes);
      } catch (...) {
        failure = std::current_exception();
      }
      lock.lock();
      failure_ = failure;
      if (failure == nullptr) ++written_;
      written_one_.notify_one();
      if (failure != nullptr) return;
    }
  }

  File file_;
  StreamOptions options_;
  std::vector<AlignedBuffer> buffers_;
  std::size_t used_ = 0;  // of the buffer being filled; the caller's alone

  std::mutex mutex_;
  std::condition_variable filled_one_;
  std::condition_variable written_one_;
  std::uint64_t filled_ = 0;   // buffers handed to the thread; changed by the caller alone
  std::uint64_t written_ = 0;  // changed by the thread alone
  std::exception_ptr failure_;
  bool stop_ = false;
  std::thread thread_;  // started by the first full buffer
};

StreamWriter::StreamWriter(const std::string& path, const StreamOptions& options, FileSystem& files, OpenMode mode) {
  if (mode != OpenMode::create && mode != OpenMode::create_new) {
    throw InternalError(cat("stream ", quote_name(path, 4096), ": a stream writes new files only"));
  }
  ring_ = std::make_unique<Ring>(File::open(path, mode, files), rounded(options));
}

StreamWriter::StreamWriter(StreamWriter&&) noexcept = default;
StreamWriter& StreamWriter::operator=(StreamWriter&&) noexcept = default;
StreamWriter::~StreamWriter() = default;

const std::string& StreamWriter::path() const { return ring_->file().path(); }
void StreamWriter::expect_bytes(std::uint64_t total) { ring_->file().expect_bytes(total); }
std::span<std::byte> StreamWriter::space() { return ring_->space(); }
void StreamWriter::advance(std::size_t bytes) { ring_->advance(bytes); }
std::uint64_t StreamWriter::position() const { return ring_->position(); }
void StreamWriter::finish() { ring_->finish(); }

void StreamWriter::write(std::span<const std::byte> data) {
  while (!data.empty()) {
    const std::span<std::byte> room = space();
    const std::size_t count = std::min(room.size(), data.size());
    std::memcpy(room.data(), data.data(), count);
    advance(count);
    data = data.subspan(count);
  }
}

namespace {

// A part of a range, inside one fetch.
struct Piece {
  std::size_t range;
  std::uint64_t at;   // bytes into the range
  std::size_t start;  // bytes into the fetch
  std::size_t bytes;
};

// One read of the file into one buffer, and the pieces that it serves.
struct Fetch {
  std::uint64_t offset;
  std::size_t enough;  // bytes that pieces need; the read asks for them rounded up to blocks
  std::size_t pieces_end;
};

struct Plan {
  std::vector<Fetch> fetches;
  std::vector<Piece> pieces;
  std::size_t block;  // reads start and end at multiples of this

  Plan(std::span<const FileRange> ranges, std::size_t block_bytes, std::size_t buffer_bytes) : block(block_bytes) {
    for (std::size_t range = 0; range < ranges.size(); ++range) {
      for (std::uint64_t at = 0; at < ranges[range].bytes;) {
        const std::uint64_t offset = ranges[range].offset + at;
        if (!last_fetch_reaches(offset, buffer_bytes)) fetches.push_back({round_down(offset, block), 0, 0});
        Fetch& fetch = fetches.back();
        const std::size_t start = offset - fetch.offset;
        const std::size_t bytes = std::min<std::uint64_t>(ranges[range].bytes - at, buffer_bytes - start);
        pieces.push_back({range, at, start, bytes});
        fetch.enough = std::max(fetch.enough, start + bytes);
        fetch.pieces_end = pieces.size();
        at += bytes;
      }
    }
  }

  std::size_t asked(const Fetch& fetch) const { return round_up(fetch.enough, block); }

  bool all_small() const {
    std::uint64_t total = 0;
    for (const Fetch& fetch : fetches) total += fetch.enough;
    return total < fetches.size() * kSmallFetch;
  }

 private:
  // Nothing is read for nobody: a fetch grows only by blocks that follow at once.
  bool last_fetch_reaches(std::uint64_t offset, std::size_t buffer_bytes) const {
    if (fetches.empty()) return false;
    const Fetch& last = fetches.back();
    return offset >= last.offset && offset - last.offset < buffer_bytes &&
           round_down(offset, block) <= last.offset + asked(last);
  }
};

// Fetches a plan in order on `threads` threads into a ring of buffers, ahead of the caller who takes them in order.
// Fetch i uses buffer i % buffers.size(), once the fetch that had it before has been taken.
class ReadAhead {
 public:
  ReadAhead(const File& file, const Plan& plan, std::vector<AlignedBuffer>& buffers, std::size_t threads)
      : file_(file), plan_(plan), buffers_(buffers), slots_(buffers.size()) {
    try {
      for (std::size_t i = 0; i < threads; ++i) threads_.emplace_back([this] { fetch_all(); });
    } catch (...) {
      end_threads();
      throw;
    }
  }
  ReadAhead(const ReadAhead&) = delete;
  ReadAhead& operator=(const ReadAhead&) = delete;
  ~ReadAhead() { end_threads(); }

  // Waits for the next fetch and returns the bytes read.
  std::size_t wait_for_next() {
    std::unique_lock lock(mutex_);
    Slot& slot = slots_[taken_ % slots_.size()];
    changed_.wait(lock, [&] { return slot.ready; });
    if (slot.failure != nullptr) std::rethrow_exception(slot.failure);
    return slot.bytes;
  }

  // Gives the buffer of that fetch back.
  void release() {
    {
      const std::lock_guard lock(mutex_);
      slots_[taken_ % slots_.size()].ready = false;
      ++taken_;
    }
    changed_.notify_all();
  }

 private:
  struct Slot {
    bool ready = false;
    std::size_t bytes = 0;
    std::exception_ptr failure;
  };

  void end_threads() {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }

  void fetch_all() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock,
                    [&] { return stop_ || started_ == plan_.fetches.size() || started_ < taken_ + slots_.size(); });
      if (stop_ || started_ == plan_.fetches.size()) return;
      const std::size_t number = started_++;
      lock.unlock();
      const Fetch& fetch = plan_.fetches[number];
      std::size_t bytes = 0;
      std::exception_ptr failure;
      try {
        const std::span<std::byte> out = buffers_[number % slots_.size()].bytes().first(plan_.asked(fetch));
        bytes = file_.read_at_least(out, fetch.offset, fetch.enough);
      } catch (...) {
        failure = std::current_exception();
      }
      lock.lock();
      slots_[number % slots_.size()] = {true, bytes, failure};
      if (failure != nullptr) stop_ = true;  // fetches before this one were started before it and will be ready
      changed_.notify_all();
    }
  }

  const File& file_;
  const Plan& plan_;
  std::vector<AlignedBuffer>& buffers_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Slot> slots_;
  std::size_t started_ = 0;
  std::size_t taken_ = 0;
  bool stop_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace

StreamReader::StreamReader(const std::string& path, const StreamOptions& options, FileSystem& files)
    : file_(File::open(path, OpenMode::read, files)), options_(rounded(options)), size_(file_.size()) {}

void StreamReader::read(std::span<const FileRange> ranges, const Sink& sink) {
  for (const FileRange& range : ranges) {
    const std::uint64_t held = range.offset < size_ ? size_ - range.offset : 0;
    if (range.bytes > held) throw ended_early(file_.path(), range.bytes, range.offset, held);
  }
  std::optional<Plan> plan;
  if (options_.direct) plan.emplace(ranges, kDirectAlignment, options_.buffer_bytes);
  if (!plan || plan->all_small()) plan.emplace(ranges, 1, options_.buffer_bytes);
  file_.set_direct(plan->block > 1);

  std::size_t longest = 0;
  for (const Fetch& fetch : plan->fetches) longest = std::max(longest, plan->asked(fetch));
  const std::size_t buffers = std::min(options_.buffers, plan->fetches.size());
  buffers_.resize(std::max(buffers_.size(), buffers));
  for (AlignedBuffer& buffer : buffers_) {
    if (buffer.bytes().size() < longest) buffer = AlignedBuffer(longest);
  }

  std::size_t next_piece = 0;
  const auto deliver = [&](const Fetch& fetch, std::span<const std::byte> bytes) {
    for (; next_piece < fetch.pieces_end; ++next_piece) {
      const Piece& piece = plan->pieces[next_piece];
      asked_ += piece.bytes;
      sink(piece.range, piece.at, bytes.subspan(piece.start, piece.bytes));
    }
  };
  if (plan->fetches.size() <= 1) {
    for (const Fetch& fetch : plan->fetches) {
      const std::span<std::byte> out = buffers_.front().bytes().first(plan->asked(fetch));
      fetched_ += file_.read_at_least(out, fetch.offset, fetch.enough);
      deliver(fetch, out);
    }
    return;
  }
  ReadAhead ahead(file_, *plan, buffers_, std::min(options_.reads_in_flight, buffers - 1));
  for (std::size_t i = 0; i < plan->fetches.size(); ++i) {
    fetched_ += ahead.wait_for_next();
    deliver(plan->fetches[i], buffers_[i % buffers_.size()].bytes());
    ahead.release();
  }
}

void StreamReader::read(std::uint64_t offset, std::span<std::byte> out) {
  const FileRange range{offset, out.size()};
  read({&range, 1}, [&](std::size_t, std::uint64_t at, std::span<const std::byte> bytes) {
    std::memcpy(out.data() + at, bytes.data(), bytes.size());
  });
}

}  // namespace castor
