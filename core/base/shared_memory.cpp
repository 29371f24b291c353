// memfd, seals and mappings. Delicate: what does not work leaves no trace behind, since callers have another way.
#include "core/base/shared_memory.h"

#include <cstring>
#include <sstream>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/error.h"

namespace castor {
namespace {

constexpr std::size_t kPage = 4096;
constexpr std::size_t kAlignment = std::size_t{2} << 20;  // a huge page's
constexpr std::size_t kMarkBytes = 16;

/// A descriptor that closes itself unless it is released.
class Descriptor {
 public:
  explicit Descriptor(int number) : number_(number) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (number_ >= 0) close(number_);
  }
  int number() const { return number_; }
  int release() { return std::exchange(number_, -1); }

 private:
  int number_;
};

/// Maps a whole file, which is whole pages long, at a multiple of kAlignment; null where that fails.
std::byte* map(int file, std::size_t bytes, int protection) {
  void* room = mmap(nullptr, bytes + kAlignment, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (room == MAP_FAILED) return nullptr;
  auto* const first = static_cast<std::byte*>(room);
  const std::size_t skipped = (kAlignment - reinterpret_cast<std::uintptr_t>(room) % kAlignment) % kAlignment;
  std::byte* const start = first + skipped;
  void* const mapped = mmap(start, bytes, protection, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, file, 0);
  if (mapped == MAP_FAILED) {
    munmap(room, bytes + kAlignment);
    return nullptr;
  }
  if (skipped > 0) munmap(first, skipped);
  munmap(start + bytes, kAlignment - skipped);
  return start;
}

/// A file may not be longer than RLIMIT_FSIZE: asking for more would end the process by a signal.
bool may_be_long(std::size_t bytes) {
  rlimit limit{};
  return getrlimit(RLIMIT_FSIZE, &limit) == 0 && (limit.rlim_cur == RLIM_INFINITY || bytes <= limit.rlim_cur);
}

std::string hexadecimal(const unsigned char* bytes, std::size_t count) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (std::size_t i = 0; i < count; ++i) {
    text += kDigits[bytes[i] >> 4];
    text += kDigits[bytes[i] & 15];
  }
  return text;
}

}  // namespace

std::unique_ptr<SharedMemory> SharedMemory::make(std::size_t bytes) {
  const std::size_t all = bytes + kPage;
  if (!may_be_long(all)) return nullptr;
  Descriptor file(memfd_create("castor", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (file.number() < 0 || ftruncate(file.number(), static_cast<off_t>(all)) != 0 ||
      fcntl(file.number(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) {
    return nullptr;
  }
  unsigned char random[kMarkBytes];
  if (getrandom(random, sizeof(random), 0) != static_cast<ssize_t>(sizeof(random))) return nullptr;
  std::byte* const data = map(file.number(), all, PROT_READ | PROT_WRITE);
  if (data == nullptr) return nullptr;
  const std::string mark = hexadecimal(random, sizeof(random));
  std::memcpy(data + bytes, mark.data(), mark.size());
  std::unique_ptr<SharedMemory> memory(new SharedMemory(data, bytes, file.number()));
  memory->address_ = cat(getpid(), " ", file.release(), " ", mark);
  return memory;
}

std::unique_ptr<SharedMemory> SharedMemory::take(const std::string& address, std::size_t bytes, Access access) {
  std::istringstream fields(address);
  long process = 0;
  int number = 0;
  std::string mark;
  if (!(fields >> process >> number >> mark)) return nullptr;
  const bool writes = access == Access::kReadWrite;
  const std::size_t all = bytes + kPage;
  const Descriptor file(open(cat("/proc/", process, "/fd/", number).c_str(), (writes ? O_RDWR : O_RDONLY) | O_CLOEXEC));
  struct stat status {};
  if (file.number() < 0 || fstat(file.number(), &status) != 0 || status.st_size != static_cast<off_t>(all)) {
    return nullptr;
  }
  std::byte* const data = map(file.number(), all, writes ? PROT_READ | PROT_WRITE : PROT_READ);
  if (data == nullptr) return nullptr;
  std::unique_ptr<SharedMemory> memory(new SharedMemory(data, bytes, -1));
  if (mark.size() != 2 * kMarkBytes || std::memcmp(data + bytes, mark.data(), mark.size()) != 0) return nullptr;
  return memory;
}

SharedMemory::~SharedMemory() {
  munmap(data_, bytes_ + kPage);
  if (file_ >= 0) close(file_);
}

void SharedMemory::discard(std::size_t offset, std::size_t bytes) const { madvise(data_ + offset, bytes, MADV_REMOVE); }

}  // namespace castor
