// The logger over spdlog: one sink for the console, one for the file, and the line format.
//
// Delicate: spdlog writes level names in lower case, so the level is a formatter flag of our own; its file sinks open
// files behind the back of core/base/file and report without errno, so the file sink is ours too. The console sink
// hands whole lines to Console, which knows about the status line; it must not add the newline that the formatter ends
// with.
#include "core/base/log.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <ctime>
#include <mutex>
#include <vector>

#include <spdlog/logger.h>
#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/base_sink.h>

#include "core/base/console.h"
#include "core/base/file.h"

namespace castor {
namespace {

constexpr std::array<std::string_view, 6> kLevelNames = {"DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL", "OFF"};

spdlog::level::level_enum to_spdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
    case LogLevel::kCritical:
      return spdlog::level::critical;
    case LogLevel::kOff:
      return spdlog::level::off;
  }
  throw InternalError("log: unknown level");
}

LogLevel from_spdlog(spdlog::level::level_enum level) {
  switch (level) {
    case spdlog::level::warn:
      return LogLevel::kWarning;
    case spdlog::level::err:
      return LogLevel::kError;
    case spdlog::level::critical:
      return LogLevel::kCritical;
    case spdlog::level::info:
      return LogLevel::kInfo;
    default:
      return LogLevel::kDebug;
  }
}

class UpperCaseLevel : public spdlog::custom_flag_formatter {
 public:
  void format(const spdlog::details::log_msg& message, const std::tm&, spdlog::memory_buf_t& out) override {
    const std::string_view name = log_level_name(from_spdlog(message.level));
    out.append(name.data(), name.data() + name.size());
  }
  std::unique_ptr<custom_flag_formatter> clone() const override { return std::make_unique<UpperCaseLevel>(); }
};

std::unique_ptr<spdlog::formatter> line_formatter(int rank) {
  auto formatter = std::make_unique<spdlog::pattern_formatter>();
  formatter->add_flag<UpperCaseLevel>('*');
  const std::string who = rank == 0 ? "" : cat(" - rank ", rank);
  formatter->set_pattern(cat("%Y/%m/%d %H:%M:%S - castor", who, " - %* - %v"));
  return formatter;
}

class ConsoleSink : public spdlog::sinks::base_sink<std::mutex> {
 public:
  explicit ConsoleSink(Console& console) : console_(console) {}

 protected:
  void sink_it_(const spdlog::details::log_msg& message) override {
    spdlog::memory_buf_t line;
    formatter_->format(message, line);
    std::string_view text(line.data(), line.size());
    while (!text.empty() && text.back() == '\n') text.remove_suffix(1);
    console_.write_line(text);
  }
  void flush_() override {}

 private:
  Console& console_;
};

/// Each line is one write at the end of the file, so that whoever follows it sees whole lines and a crash loses none.
class FileSink : public spdlog::sinks::base_sink<std::mutex> {
 public:
  explicit FileSink(File file) : file_(std::move(file)), end_(file_.size()) {}

 protected:
  void sink_it_(const spdlog::details::log_msg& message) override {
    spdlog::memory_buf_t line;
    formatter_->format(message, line);
    file_.write_exact(as_byte_span(std::string_view(line.data(), line.size())), end_);
    end_ += line.size();
  }
  void flush_() override {}

 private:
  File file_;
  std::uint64_t end_;
};

thread_local Logger* scoped_logger = nullptr;

/// Holds the process's logger; both slots are made on first use.
struct ProcessLogger {
  std::mutex mutex;
  std::shared_ptr<Logger> replaced;
  Logger first{LogOptions{}};
};

ProcessLogger& process_logger() {
  static ProcessLogger holder;
  return holder;
}

}  // namespace

struct Logger::Sinks {
  explicit Sinks(std::vector<spdlog::sink_ptr> sinks) : log("castor", sinks.begin(), sinks.end()) {}
  spdlog::logger log;
};

Logger::Logger(const LogOptions& options) {
  const LogLevel console_level =
      options.rank == 0 || options.every_rank ? options.level : std::max(options.level, LogLevel::kError);
  std::vector<spdlog::sink_ptr> sinks;
  if (options.use_console) {
    Console& console = options.console != nullptr ? *options.console : Console::standard_output();
    auto sink = std::make_shared<ConsoleSink>(console);
    sink->set_level(to_spdlog(console_level));
    sink->set_formatter(line_formatter(options.rank));
    sinks.push_back(std::move(sink));
  }
  if (!options.file.empty()) {
    make_directories(directory_of(options.file));
    auto sink = std::make_shared<FileSink>(File::open(options.file, OpenMode::append));
    sink->set_level(to_spdlog(options.level));
    sink->set_formatter(line_formatter(options.rank));
    sinks.push_back(std::move(sink));
  }
  sinks_ = std::make_unique<Sinks>(std::move(sinks));
  sinks_->log.set_level(to_spdlog(options.level));
  auto reported = std::make_shared<std::once_flag>();
  sinks_->log.set_error_handler([reported, file = options.file](const std::string& what) {
    std::call_once(*reported, [&] {
      Console::standard_error().write_line(cat("log: lines are being lost, writing to ", file, " failed: ", what));
    });
  });
}

Logger::~Logger() = default;

bool Logger::enabled(LogLevel level) const {
  const spdlog::level::level_enum asked = to_spdlog(level);
  for (const spdlog::sink_ptr& sink : sinks_->log.sinks()) {
    if (sink->should_log(asked) && sinks_->log.should_log(asked)) return level != LogLevel::kOff;
  }
  return false;
}

void Logger::write(LogLevel level, std::string_view text) {
  if (level == LogLevel::kOff) return;
  sinks_->log.log(to_spdlog(level), spdlog::string_view_t(text.data(), text.size()));
}

Logger& logger() {
  if (scoped_logger != nullptr) return *scoped_logger;
  ProcessLogger& process = process_logger();
  const std::lock_guard lock(process.mutex);
  return process.replaced != nullptr ? *process.replaced : process.first;
}

void set_process_logger(std::shared_ptr<Logger> replacement) {
  ProcessLogger& process = process_logger();
  const std::lock_guard lock(process.mutex);
  process.replaced = std::move(replacement);
}

LogScope::LogScope(Logger& scoped) : before_(scoped_logger) { scoped_logger = &scoped; }

LogScope::~LogScope() { scoped_logger = before_; }

std::string_view log_level_name(LogLevel level) { return kLevelNames[static_cast<std::size_t>(level)]; }

LogLevel log_level_from_name(std::string_view name) {
  std::string upper(name);
  for (char& c : upper) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  if (upper == "WARN") return LogLevel::kWarning;
  if (upper == "FATAL") return LogLevel::kCritical;
  for (std::size_t i = 0; i < kLevelNames.size(); ++i) {
    if (upper == kLevelNames[i]) return static_cast<LogLevel>(i);
  }
  throw ConfigError(cat("log_level: expected one of DEBUG, INFO, WARNING, ERROR, CRITICAL, OFF; got \"", name, "\""),
                    "log_level");
}

std::string log_timestamp() {
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  char text[32];
  std::strftime(text, sizeof text, "%Y%m%d_%H%M%S", &local);
  return text;
}

std::string log_file_path(const std::string& work_dir, const std::string& timestamp, int rank) {
  const std::string name = rank == 0 ? timestamp : cat(timestamp, "_rank", rank);
  return join_path(join_path(work_dir, timestamp), name + ".log");
}

}  // namespace castor
