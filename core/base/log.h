// The log: lines of `YYYY/MM/DD HH:MM:SS - castor - INFO - text`, to the console and to the run's own file.
//
// The line has the form of the peers' logs, so that scripts which cut them keep working. spdlog stays in log.cpp: it
// costs 12 s to compile. Delicate: ranks may be threads of one process (the tests), so the logger that a call reaches
// is the thread's if a LogScope is open there and the process's otherwise; nothing is set up before main.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "core/base/error.h"

namespace castor {

class Console;

/// Importance of a line, lowest first. A logger drops what lies below its level.
enum class LogLevel { kDebug, kInfo, kWarning, kError, kCritical, kOff };

/// The level of a name as configs write it: DEBUG, INFO, WARNING (or WARN), ERROR, CRITICAL (or FATAL), in any case.
/// Throws ConfigError naming the valid ones.
LogLevel log_level_from_name(std::string_view name);

/// "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL", "OFF".
std::string_view log_level_name(LogLevel level);

/// Where a logger writes, and how much.
struct LogOptions {
  LogLevel level = LogLevel::kInfo;  ///< rank 0's level, and every rank's level in its file
  std::string file;                  ///< appended to; its folder is made; empty for none
  int rank = 0;                      ///< ranks above 0 name themselves in each line
  bool every_rank = false;           ///< false: on the console, ranks above 0 write only ERROR and worse
  Console* console = nullptr;        ///< null: the process's standard output
  bool use_console = true;           ///< false: the file only
};

/// One logger. Safe to use from any thread. A line that cannot be written (disk full) is reported once on standard
/// error and dropped; the run goes on.
class Logger {
 public:
  /// Opens the file, if one is named.
  /// Throws IoError if the file or its folder cannot be made.
  explicit Logger(const LogOptions& options);
  Logger(const Logger&) = delete;
  Logger& operator=(const Logger&) = delete;
  ~Logger();

  /// True if a line of this level would be written anywhere.
  bool enabled(LogLevel level) const;
  /// Writes one line; `text` may hold newlines. It is handed to the operating system before this returns.
  void write(LogLevel level, std::string_view text);

  /// Each joins the printed forms of its arguments, as `cat` does, if the level is enabled.
  template <class... Parts>
  void debug(const Parts&... parts) {
    if (enabled(LogLevel::kDebug)) write(LogLevel::kDebug, cat(parts...));
  }
  template <class... Parts>
  void info(const Parts&... parts) {
    if (enabled(LogLevel::kInfo)) write(LogLevel::kInfo, cat(parts...));
  }
  template <class... Parts>
  void warning(const Parts&... parts) {
    if (enabled(LogLevel::kWarning)) write(LogLevel::kWarning, cat(parts...));
  }
  template <class... Parts>
  void error(const Parts&... parts) {
    if (enabled(LogLevel::kError)) write(LogLevel::kError, cat(parts...));
  }

 private:
  struct Sinks;
  std::unique_ptr<Sinks> sinks_;
};

/// The logger that this thread writes to: the innermost open LogScope's, else the process's, which until
/// `set_process_logger` is an INFO logger on standard output.
Logger& logger();

/// Replaces the process's logger; null puts the first one back. Call it while no other thread logs.
void set_process_logger(std::shared_ptr<Logger> replacement);

/// Makes `scoped` the logger of the current thread until the scope ends: a rank that is a thread has its own log.
class LogScope {
 public:
  explicit LogScope(Logger& scoped);
  LogScope(const LogScope&) = delete;
  LogScope& operator=(const LogScope&) = delete;
  ~LogScope();

 private:
  Logger* before_;
};

/// The local time as "20260131_235959": the name of a run's log folder.
std::string log_timestamp();

/// `work_dir/<timestamp>/<timestamp>.log`; for ranks above 0 `<timestamp>_rank<rank>.log` in the same folder.
std::string log_file_path(const std::string& work_dir, const std::string& timestamp, int rank = 0);

}  // namespace castor
