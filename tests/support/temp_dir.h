// A directory of its own for a test that writes files, gone when the test ends.
// Delicate: the name comes from mkdtemp, so tests that run at one time never meet; TMPDIR is honoured.
#pragma once

#include <filesystem>
#include <stdexcept>
#include <string>
#include <system_error>

#include <stdlib.h>
#include <unistd.h>

namespace castor::test {

/// Makes a fresh directory and removes it, with everything in it, when it goes out of scope.
/// Throws std::runtime_error if the system's temporary directory cannot be written.
class TempDir {
 public:
  TempDir() : TempDir(std::filesystem::temp_directory_path()) {}
  explicit TempDir(const std::filesystem::path& parent) {
    std::string pattern = (parent / "castor-test-XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("cannot make a temporary directory " + pattern);
    path_ = pattern;
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }

  /// A directory in memory where the system has such a place, for tests that save often: a sync costs nothing there.
  static TempDir in_memory() {
    const std::filesystem::path shared = "/dev/shm";
    return TempDir(access(shared.c_str(), W_OK) == 0 ? shared : std::filesystem::temp_directory_path());
  }

  /// The directory's absolute path.
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

}  // namespace castor::test
