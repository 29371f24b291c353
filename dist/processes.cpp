// fork and exec. Delicate: between the two, other threads' locks may be held for ever, so the child makes system calls
// only; all it needs is prepared before.
#include "dist/processes.h"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/base/error.h"

namespace castor::dist {
namespace {

std::vector<char*> pointers(const std::vector<std::string>& texts) {
  std::vector<char*> result;
  for (const std::string& text : texts) result.push_back(const_cast<char*>(text.c_str()));
  result.push_back(nullptr);
  return result;
}

[[noreturn]] void become(char* const* command, char* const* environment, pid_t parent, int nothing,
                         const ProcessOutput& output, int error_pipe) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(127);  // the parent ended before the line above
  setpgid(0, 0);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  dup2(nothing, STDIN_FILENO);
  if (output.out >= 0) dup2(output.out, STDOUT_FILENO);
  if (output.err >= 0) dup2(output.err, STDERR_FILENO);
  execvpe(command[0], command, environment);
  const int error = errno;
  [[maybe_unused]] const ssize_t written = write(error_pipe, &error, sizeof(error));
  _exit(127);
}

}  // namespace

std::string describe(const ProcessEnd& end) {
  if (end.signal != 0) return cat("was killed by signal ", end.signal, " (", strsignal(end.signal), ")");
  return cat("exited with code ", end.exit_code);
}

Processes::~Processes() {
  signal_all(SIGKILL);
  for (const pid_t id : ids_) {
    if (id > 0) waitpid(id, nullptr, 0);
  }
}

void Processes::start(const std::vector<std::string>& command, const std::vector<std::string>& environment,
                      const ProcessOutput& output) {
  if (command.empty()) throw IoError("start a process: no program is named", "", EINVAL);
  const std::vector<char*> arguments = pointers(command);
  const std::vector<char*> variables = pointers(environment);
  int error_pipe[2];
  if (pipe2(error_pipe, O_CLOEXEC) != 0) throw IoError("start a process: no pipe is to be had", command[0], errno);
  const int nothing = open("/dev/null", O_RDONLY | O_CLOEXEC);
  const pid_t parent = getpid();
  const pid_t id = fork();
  if (id == 0) become(arguments.data(), variables.data(), parent, nothing, output, error_pipe[1]);
  int error = id < 0 ? errno : 0;
  close(error_pipe[1]);
  if (nothing >= 0) close(nothing);
  // Ends with exec, which closes the pipe, or with the reason why there was none.
  if (id > 0 && read(error_pipe[0], &error, sizeof(error)) > 0) waitpid(id, nullptr, 0);
  close(error_pipe[0]);
  if (error != 0) throw IoError(cat("cannot start ", command[0], ": ", std::strerror(error)), command[0], error);
  ids_.push_back(id);
}

std::optional<ProcessEnd> Processes::poll() {
  for (std::size_t i = 0; i < ids_.size(); ++i) {
    if (ids_[i] == 0) continue;
    siginfo_t info{};
    if (waitid(P_PID, static_cast<id_t>(ids_[i]), &info, WEXITED | WNOHANG | WNOWAIT) != 0 || info.si_pid == 0)
      continue;
    kill(-ids_[i], SIGKILL);  // before its number can be given to another
    waitpid(ids_[i], nullptr, 0);
    ids_[i] = 0;
    if (info.si_code == CLD_EXITED) return ProcessEnd{i, info.si_status, 0};
    return ProcessEnd{i, 128 + info.si_status, info.si_status};
  }
  return std::nullopt;
}

std::size_t Processes::running() const {
  return static_cast<std::size_t>(std::ranges::count_if(ids_, [](pid_t id) { return id > 0; }));
}

bool Processes::is_stopped(std::size_t index) const {
  if (ids_[index] == 0) return false;
  siginfo_t info{};
  return waitid(P_PID, static_cast<id_t>(ids_[index]), &info, WSTOPPED | WNOHANG | WNOWAIT) == 0 && info.si_pid != 0;
}

void Processes::signal_all(int number) {
  for (const pid_t id : ids_) {
    if (id > 0 && kill(-id, number) != 0) kill(id, number);  // the group may not be there yet
  }
}

}  // namespace castor::dist
