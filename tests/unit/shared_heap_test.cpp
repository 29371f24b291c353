// Memory that other processes can read: ranges, what they cost, and another process's view of them.
#include "core/device/shared_heap.h"

#include <cstring>

#include <doctest/doctest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/base/error.h"

namespace {

using namespace castor;

constexpr std::size_t kMiB = std::size_t{1} << 20;

SharedHeap heap_of(std::size_t bytes) {
  auto memory = SharedMemory::make(bytes);
  REQUIRE(memory != nullptr);
  return SharedHeap(std::move(memory));
}

/// Runs fn in a child process; what it returns is its exit code.
template <class F>
int in_child(F&& fn) {
  const pid_t child = fork();
  if (child == 0) _exit(fn());
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  REQUIRE(WIFEXITED(status));
  return WEXITSTATUS(status);
}

std::size_t resident_pages(void* data, std::size_t bytes) {
  std::vector<unsigned char> pages(bytes / 4096);
  REQUIRE(mincore(data, bytes, pages.data()) == 0);
  std::size_t count = 0;
  for (const unsigned char page : pages) count += page & 1u;
  return count;
}

}  // namespace

TEST_CASE("ranges of a shared heap are whole huge pages, do not overlap, and become one again") {
  SharedHeap heap = heap_of(16 * kMiB);
  void* const a = heap.allocate(1);
  void* const b = heap.allocate(3 * kMiB);
  void* const c = heap.allocate(10 * kMiB);
  REQUIRE((a != nullptr && b != nullptr && c != nullptr));
  CHECK(reinterpret_cast<std::uintptr_t>(a) % (2 * kMiB) == 0);
  CHECK(static_cast<char*>(b) - static_cast<char*>(a) == 2 * kMiB);
  CHECK(static_cast<char*>(c) - static_cast<char*>(b) == 4 * kMiB);
  CHECK(heap.allocate(1) == nullptr);
  CHECK(heap.deallocate(b, 3 * kMiB));
  CHECK(heap.allocate(5 * kMiB) == nullptr);
  CHECK(heap.deallocate(a, 1));
  CHECK(heap.allocate(5 * kMiB) == a);
  CHECK(heap.deallocate(c, 10 * kMiB));
  CHECK(heap.allocate(10 * kMiB) == c);
}

TEST_CASE("bytes elsewhere are not the shared heap's") {
  SharedHeap heap = heap_of(4 * kMiB);
  std::byte elsewhere[16];
  CHECK_FALSE(heap.offset_of(elsewhere).has_value());
  CHECK_FALSE(heap.deallocate(elsewhere, sizeof(elsewhere)));
  auto* const data = static_cast<std::byte*>(heap.allocate(2 * kMiB));
  CHECK(heap.offset_of({data + 100, 50}) == 100);
  CHECK_FALSE(heap.offset_of({data, 5 * kMiB}).has_value());
  CHECK_FALSE(heap.offset_of({data - 1, 2}).has_value());
}

TEST_CASE("another process reads a shared heap where it lies and cannot write to it") {
  SharedHeap heap = heap_of(4 * kMiB);
  auto* const data = static_cast<std::byte*>(heap.allocate(2 * kMiB));
  std::memset(data, 7, 2 * kMiB);
  const std::string address = heap.address();
  CHECK(in_child([&] {
          const auto seen = PeerHeap::map(address);
          if (!seen) return 1;
          const std::byte* at = seen->at(*heap.offset_of({data, 1}), 2 * kMiB);
          if (at == nullptr || at == data || at[0] != std::byte{7} || at[2 * kMiB - 1] != std::byte{7}) return 2;
          if (seen->at(4 * kMiB, 1) != nullptr || seen->at(~std::size_t{0}, 2) != nullptr) return 3;
          // The kernel refuses a store through this mapping; a system call says so without a signal.
          if (mprotect(const_cast<std::byte*>(at), 4096, PROT_READ | PROT_WRITE) == 0) return 4;
          return 0;
        }) == 0);
}

TEST_CASE("an address that is not a shared heap's maps nothing") {
  SharedHeap heap = heap_of(4 * kMiB);
  CHECK(PeerHeap::map(heap.address()) != nullptr);
  CHECK(PeerHeap::map("") == nullptr);
  CHECK(PeerHeap::map("4194304 1 0 0123") == nullptr);
  std::string other_mark = heap.address();
  other_mark.back() = other_mark.back() == '0' ? '1' : '0';
  CHECK(PeerHeap::map(other_mark) == nullptr);
  CHECK(PeerHeap::map(cat("2", heap.address())) == nullptr);
}

TEST_CASE("what is given back to a shared heap costs nothing, even while others map it") {
  SharedHeap heap = heap_of(8 * kMiB);
  auto* const data = static_cast<std::byte*>(heap.allocate(4 * kMiB));
  std::memset(data, 7, 4 * kMiB);
  const auto seen = PeerHeap::map(heap.address());
  REQUIRE(seen != nullptr);
  CHECK(seen->at(0, 1)[0] == std::byte{7});
  CHECK(resident_pages(data, 4 * kMiB) == 1024);
  CHECK(heap.deallocate(data, 4 * kMiB));
  CHECK(resident_pages(data, 4 * kMiB) == 0);
}

TEST_CASE("memory that may not be as long as asked for is refused without a signal") {
  CHECK(in_child([] {
          const rlimit limit{kMiB, kMiB};
          if (setrlimit(RLIMIT_FSIZE, &limit) != 0) return 1;
          return SharedMemory::make(2 * kMiB) == nullptr ? 0 : 2;
        }) == 0);
}
