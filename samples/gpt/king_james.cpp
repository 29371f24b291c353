// Runs the program through posix_spawn and a pipe. Delicate: the pipe is drained before the program is waited for, or
// both would wait for ever; and a file that a crash left without its digest is made again, never trusted.
#include "samples/gpt/king_james.h"

#include <cerrno>
#include <cstring>
#include <optional>
#include <span>

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/base/digest.h"
#include "core/base/file_error.h"

namespace castor::samples {
namespace {

/// Closes a descriptor when it goes.
class Descriptor {
 public:
  Descriptor() = default;
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() { close(); }
  void close() {
    if (number >= 0) ::close(number);
    number = -1;
  }
  int number = -1;
};

/// Waits for a child when it goes, so that none is left behind when an exception passes.
class Child {
 public:
  explicit Child(pid_t pid) : pid_(pid) {}
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  ~Child() {
    if (pid_ > 0) wait();
  }
  /// The status of waitpid.
  int wait() {
    int status = 0;
    while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
    }
    pid_ = -1;
    return status;
  }

 private:
  pid_t pid_;
};

std::string command_line(const TextProgram& program) {
  std::string text = program.program;
  for (const std::string& argument : program.arguments) text += " " + argument;
  return text;
}

[[noreturn]] void refuse(const TextProgram& program, const std::string& what, int error) {
  throw IoError(cat(command_line(program), ": ", what), program.program, error);
}

/// Starts the program with `output` as its standard output. Returns its process.
pid_t start(const TextProgram& program, int output) {
  posix_spawn_file_actions_t actions;
  if (const int error = posix_spawn_file_actions_init(&actions); error != 0) refuse(program, errno_text(error), error);
  int error = posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  if (error == 0) error = posix_spawn_file_actions_adddup2(&actions, output, STDOUT_FILENO);
  std::vector<std::string> words{program.program};
  words.insert(words.end(), program.arguments.begin(), program.arguments.end());
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  pid_t pid = -1;
  if (error == 0) error = posix_spawnp(&pid, program.program.c_str(), &actions, nullptr, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error == ENOENT) {
    refuse(program,
           cat("there is no such program; it prints the text and comes with Debian's package ", program.package,
               ": run `apt-get install ", program.package, "` as root, or give the data set a text file with `path`"),
           ENOENT);
  }
  if (error != 0) refuse(program, cat("cannot be started: ", errno_text(error)), error);
  return pid;
}

/// "4404412 0123456789abcdef": what lies beside the text.
std::string digest_line(std::span<const std::byte> text) {
  return cat(text.size(), " ", hex_of_digest(xxh3(text)), "\n");
}

bool is_intact(const std::string& text_path, const std::string& digest_path, FileSystem& files) {
  if (!exists(text_path, files) || !exists(digest_path, files)) return false;
  if (file_size(digest_path, files) > 64) return false;
  return read_text_file(digest_path, 64, files) == digest_line(MappedFile::open(text_path, files).bytes());
}

}  // namespace

std::string run_text_program(const TextProgram& program) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) refuse(program, cat("no pipe to read it through: ", errno_text(errno)), errno);
  Descriptor reading, writing;
  reading.number = ends[0];
  writing.number = ends[1];
  Child child(start(program, writing.number));
  writing.close();

  std::string text;
  std::vector<char> buffer(std::size_t{64} << 10);
  while (true) {
    const ssize_t got = read(reading.number, buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) refuse(program, cat("its output cannot be read: ", errno_text(errno)), errno);
    if (got == 0) break;
    if (text.size() + static_cast<std::size_t>(got) > program.most_bytes) {
      reading.close();  // the program meets a broken pipe and ends
      throw FormatError(
          cat(command_line(program), ": it printed more than ", program.most_bytes,
              " bytes, so this is not the text that was expected; is another program of this name in PATH?"),
          program.program, program.most_bytes);
    }
    text.append(buffer.data(), static_cast<std::size_t>(got));
  }
  const int status = child.wait();
  if (WIFSIGNALED(status)) refuse(program, cat("it was stopped by signal ", WTERMSIG(status)), EINTR);
  if (WEXITSTATUS(status) != 0) {
    refuse(program,
           cat("it ended with exit code ", WEXITSTATUS(status), ", 0 was expected; reinstall Debian's package ",
               program.package, ", or give the data set a text file with `path`"),
           EIO);
  }
  if (text.size() < program.least_bytes) {
    throw FormatError(cat(command_line(program), ": it printed ", text.size(), " bytes, at least ", program.least_bytes,
                          " were expected; reinstall Debian's package ", program.package,
                          ", or give the data set a text file with `path`"),
                      program.program, text.size());
  }
  return text;
}

std::string king_james_file(const std::string& folder, const TextProgram& program, FileSystem& files) {
  const std::string text_path = join_path(folder, "king_james.txt");
  const std::string digest_path = text_path + ".xxh3";
  if (is_intact(text_path, digest_path, files)) return text_path;
  const std::string text = run_text_program(program);
  make_directories(folder, files);
  write_file_atomically(text_path, text, files);
  write_file_atomically(digest_path, digest_line(as_byte_span(text)), files);
  return text_path;
}

}  // namespace castor::samples
