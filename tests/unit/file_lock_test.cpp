// Locks between threads and processes. The child process only makes system calls between fork and its end.
#include "core/base/file_lock.h"

#include <atomic>
#include <cerrno>
#include <csignal>
#include <filesystem>
#include <optional>
#include <string>
#include <thread>

#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/base/error.h"
#include "tests/support/temp_dir.h"

namespace castor {
namespace {

TEST_CASE("a lock has one holder at a time and leaves no file behind") {
  const test::TempDir dir;
  const std::string path = (dir.path() / "a.lock").string();
  {
    const std::optional<FileLock> first = FileLock::try_take(path, "the first");
    REQUIRE(first);
    CHECK_FALSE(FileLock::try_take(path, "another"));
    CHECK(FileLock::note_of(path) == "the first");
    CHECK(std::filesystem::exists(path));
  }
  CHECK_FALSE(std::filesystem::exists(path));
  CHECK(FileLock::note_of(path) == "");
  CHECK(FileLock::try_take(path));
}

TEST_CASE("the lock of a process that was killed is free, although its file is still there") {
  const test::TempDir dir;
  const std::string path = (dir.path() / "a.lock").string();
  int ready[2];
  REQUIRE(pipe(ready) == 0);
  const pid_t child = fork();
  if (child == 0) {
    const std::optional<FileLock> held = FileLock::try_take(path);
    const char answer = held ? 'y' : 'n';
    if (write(ready[1], &answer, 1) == 1) pause();
    _exit(1);
  }
  char answer = 0;
  REQUIRE(read(ready[0], &answer, 1) == 1);
  CHECK(answer == 'y');
  CHECK_FALSE(FileLock::try_take(path));
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  close(ready[0]);
  close(ready[1]);
  CHECK(std::filesystem::exists(path));
  CHECK(FileLock::try_take(path));
}

TEST_CASE("threads that take and release a lock in turn never hold it together") {
  const test::TempDir dir;
  const std::string path = (dir.path() / "a.lock").string();
  std::atomic<int> inside{0};
  std::atomic<int> together{0};
  const auto work = [&] {
    for (int taken = 0; taken < 200;) {
      const std::optional<FileLock> lock = FileLock::try_take(path);
      if (!lock) continue;
      if (++inside > 1) ++together;
      std::this_thread::yield();
      --inside;
      ++taken;
    }
  };
  std::thread other(work);
  work();
  other.join();
  CHECK(together == 0);
}

TEST_CASE("a lock whose folder is missing is an error that says so") {
  try {
    FileLock::try_take("/nowhere/at/all.lock");
    FAIL("it was taken");
  } catch (const IoError& error) {
    CHECK(error.code == ENOENT);
  }
}

}  // namespace
}  // namespace castor
