// What the tests of downloads share: options without waiting, a log that stays silent, servers that cut an answer.
// Delicate: everything runs on a file system in memory unless a test needs processes or threads to meet on a real one.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "strategy/source/source.h"
#include "tests/support/http_server.h"

namespace castor::test {

inline constexpr const char* kCache = "/cache";

/// Keeps this thread's log lines out of the test's output.
class SilentLog {
 public:
  SilentLog() : logger_(options()), scope_(logger_) {}

 private:
  static LogOptions options() {
    LogOptions options;
    options.level = LogLevel::kOff;
    options.use_console = false;
    return options;
  }
  Logger logger_;
  LogScope scope_;
};

/// No retries, no waiting, no proxy.
inline strategy::SourceOptions quick_options(const std::string& cache = kCache) {
  strategy::SourceOptions options;
  options.cache_dir = cache;
  options.retries = 0;
  options.retry_delay_seconds = 0;
  options.environment_proxy = false;
  return options;
}

/// Bytes without a pattern, the same ones each time.
inline std::string some_bytes(std::size_t count) {
  std::string bytes(count, '\0');
  std::uint32_t state = 1;
  for (char& byte : bytes) byte = static_cast<char>((state = state * 1664525 + 1013904223) >> 24);
  return bytes;
}

inline bool holds(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

/// The IoError that a download ends in; its text must not hold the word "secret".
inline IoError failure_of(const std::string& url, const strategy::SourceOptions& options, FileSystem& files) {
  const SilentLog silent;
  try {
    strategy::resolve_source(url, options, files);
  } catch (const IoError& error) {
    INFO(error.what());
    CHECK_FALSE(holds(error.what(), "secret"));
    return error;
  }
  FAIL("the download succeeded: " << url);
  return {"", "", 0};
}

/// The contents that a source resolves to.
inline std::string fetch(const std::string& url, const strategy::SourceOptions& options, FileSystem& files) {
  const SilentLog silent;
  return read_text_file(strategy::resolve_source(url, options, files), std::uint64_t{64} << 20, files);
}

/// The names in kCache.
inline std::vector<std::string> names_in_cache(FileSystem& files) {
  std::vector<std::string> names;
  for (const DirectoryEntry& entry : list_directory(kCache, files)) names.push_back(entry.name);
  return names;
}

/// The first answer is cut after `bytes` of the body; the later ones are whole.
inline HttpServer::Handler cut_once(const std::string& body, std::size_t bytes, const std::string& etag) {
  return [served = 0, bytes, good = serve_file(body, etag)](const ServedRequest& request) mutable {
    Reply reply = good(request);
    if (served++ == 0) reply.send_only = bytes;
    return reply;
  };
}

}  // namespace castor::test
