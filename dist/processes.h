// Child processes that cannot outlive their parent: what `castor run` starts ranks with.
//
// Delicate: each child leads a process group of its own, so that what it starts is ended with it, and asks the kernel
// to kill it when the thread that started it ends, so that even a killed launcher leaves no rank behind (what a rank
// had started itself stays). Start them from a thread that lives as long as they should.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include <sys/types.h>

namespace castor::dist {

/// How a child ended.
struct ProcessEnd {
  std::size_t index = 0;  ///< in the order of starts
  int exit_code = 0;      ///< as a shell would say it: 128 + signal for a killed one
  int signal = 0;         ///< the signal that killed it, or 0
};

/// "exited with code 1", "was killed by signal 9 (Killed)".
std::string describe(const ProcessEnd& end);

/// Descriptors that become a child's standard output and standard error; -1: this process's own.
struct ProcessOutput {
  int out = -1;
  int err = -1;
};

class Processes {
 public:
  Processes() = default;
  Processes(const Processes&) = delete;
  Processes& operator=(const Processes&) = delete;
  /// Kills all that still run.
  ~Processes();

  /// Starts a program; its standard input is empty.
  ///   command      program (looked for in PATH) and arguments
  ///   environment  "NAME=value", all of it
  ///   output       stays open here
  /// Throws IoError if it cannot be started.
  void start(const std::vector<std::string>& command, const std::vector<std::string>& environment,
             const ProcessOutput& output = {});

  /// A child that has ended since the last call, if one has; what it had started itself is killed.
  std::optional<ProcessEnd> poll();
  /// How many still run.
  std::size_t running() const;
  /// True if a child is stopped now, by SIGSTOP or from a terminal.
  bool is_stopped(std::size_t index) const;
  /// Process number of a child; 0 once it has ended.
  pid_t id(std::size_t index) const { return ids_[index]; }
  /// Sends a signal to all that run, with all that they have started.
  void signal_all(int number);

 private:
  std::vector<pid_t> ids_;
};

}  // namespace castor::dist
