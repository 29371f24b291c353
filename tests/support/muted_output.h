// Keeps what a run prints (log lines, progress) out of a test's own output: standard output goes nowhere while the
// scope lives. Delicate: it is the file descriptor that is switched, since consoles write to that and not to a stream.
#pragma once

#include <cstdio>
#include <iostream>

#include <fcntl.h>
#include <unistd.h>

namespace castor::test {

/// Mutes the process's standard output.
class MutedOutput {
 public:
  MutedOutput() {
    flush();
    saved_ = dup(STDOUT_FILENO);
    const int nowhere = open("/dev/null", O_WRONLY | O_CLOEXEC);
    if (nowhere >= 0) {
      dup2(nowhere, STDOUT_FILENO);
      close(nowhere);
    }
  }
  MutedOutput(const MutedOutput&) = delete;
  MutedOutput& operator=(const MutedOutput&) = delete;
  ~MutedOutput() {
    flush();
    if (saved_ < 0) return;
    dup2(saved_, STDOUT_FILENO);
    close(saved_);
  }

 private:
  static void flush() {
    std::cout.flush();
    std::fflush(stdout);
  }

  int saved_ = -1;
};

}  // namespace castor::test
