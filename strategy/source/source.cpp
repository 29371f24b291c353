// From a source's text to a path: which scheme it has, and who finds the file.
//
// Delicate: a scheme that is not known is refused by name instead of being taken for a strange path, and the message
// shows no more of the source than that name, since s3://key:secret@... may follow it.
#include "strategy/source/source.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <optional>

#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/file_error.h"
#include "strategy/source/download.h"
#include "strategy/source/sha256.h"
#include "strategy/source/url.h"

namespace castor::strategy {
namespace {

std::string after_scheme(const std::string& source) { return source.substr(source.find("://") + 3); }

/// An environment variable; nothing if it is unset or empty.
std::optional<std::string> environment(const char* name) {
  const char* value = std::getenv(name);
  if (value == nullptr || *value == '\0') return std::nullopt;
  return value;
}

[[noreturn]] void refuse_scheme(const std::string& scheme) {
  std::string known = "a local path, file://, http://, https://";
  for (const std::string& prefix : ModelUrls::prefixes()) known += ", " + prefix;
  throw ConfigError(cat("source ", quote_name(scheme + "://..."), ": the scheme ", quote_name(scheme),
                        " is not supported; supported: ", known, ". Copy the file to a local path first"),
                    "");
}

/// file:///a%20b as "/a b".
std::string path_of_file_url(const std::string& source) {
  std::string path = after_scheme(source);
  constexpr std::string_view kThisHost = "localhost/";
  if (path.starts_with(kThisHost)) path = path.substr(kThisHost.size() - 1);
  if (!path.starts_with('/')) {
    throw ConfigError(
        cat("source ", quote_name(source), ": expected file:///PATH with an absolute path on this machine"), "");
  }
  return percent_decoded(path);
}

/// The file of a source that is no name: a path or URL.
std::string place_of(const std::string& source, const SourceOptions& options, FileSystem& files) {
  const std::string scheme = scheme_of(source);
  if (scheme == "http" || scheme == "https") return download(source, options, files);
  if (!scheme.empty() && scheme != "file") refuse_scheme(scheme);
  const std::string path = scheme.empty() ? source : path_of_file_url(source);
  if (!exists(path, files)) throw io_error(files, "find", path, ENOENT);
  if (options.sha256.empty()) return path;
  const std::string got = sha256_of_file(path, files);
  if (got != options.sha256) {
    throw IoError(cat("check ", quote_name(path, 4096), ": its SHA-256 is ", got, ", expected ", options.sha256,
                      "; it is another file, or damaged"),
                  path, EBADMSG);
  }
  return path;
}

SourceOptions checked(SourceOptions options) {
  const auto require = [](bool holds, std::string_view name, std::string_view expected, const auto& got) {
    if (!holds) throw ConfigError(cat("source: ", name, ": expected ", expected, ", got ", got), std::string(name));
  };
  for (char& c : options.sha256) {
    if (c >= 'A' && c <= 'F') c = static_cast<char>(c - 'A' + 'a');
  }
  const bool hexadecimal = options.sha256.find_first_not_of("0123456789abcdef") == std::string::npos;
  require(options.sha256.empty() || (options.sha256.size() == 64 && hexadecimal), "sha256", "64 hexadecimal digits",
          quote_name(options.sha256));
  const auto positive = [](double seconds) { return std::isfinite(seconds) && seconds > 0 && seconds < 1e6; };
  require(options.max_bytes > 0, "max_bytes", "at least 1", options.max_bytes);
  require(options.max_redirects >= 0, "max_redirects", "0 or more", options.max_redirects);
  require(options.retries >= 0, "retries", "0 or more", options.retries);
  require(positive(options.connect_timeout_seconds), "connect_timeout_seconds", "seconds above 0",
          options.connect_timeout_seconds);
  require(positive(options.stall_timeout_seconds), "stall_timeout_seconds", "seconds above 0",
          options.stall_timeout_seconds);
  require(options.retry_delay_seconds == 0 || positive(options.retry_delay_seconds), "retry_delay_seconds",
          "seconds, 0 or more", options.retry_delay_seconds);
  return options;
}

}  // namespace

std::string default_cache_dir() {
  if (const auto home = environment("CASTOR_HOME")) return join_path(*home, "checkpoints");
  if (const auto cache = environment("XDG_CACHE_HOME")) return join_path(*cache, "castor/checkpoints");
  if (const auto home = environment("HOME")) return join_path(*home, ".cache/castor/checkpoints");
  throw ConfigError("download: no cache folder: none of CASTOR_HOME, XDG_CACHE_HOME and HOME is set; set one", "");
}

bool has_scheme(const std::string& source) { return !scheme_of(source).empty(); }

std::string shown_source(const std::string& source) {
  const std::string scheme = scheme_of(source);
  if (scheme.empty() || scheme == "file" || ModelUrls::is_hub(scheme)) return source;
  if (scheme != "http" && scheme != "https") return scheme + "://...";
  try {
    return parse_url(source).shown();
  } catch (const ConfigError&) {
    return scheme + "://...";
  }
}

std::string resolve_source(const std::string& source, const SourceOptions& options, FileSystem& files) {
  if (source.empty()) throw ConfigError("source: it is empty; give a path or URL", "");
  const SourceOptions sound = checked(options);
  const std::string scheme = scheme_of(source);
  if (!ModelUrls::is_hub(scheme)) return place_of(source, sound, files);
  ModelUrls models = sound.models;
  if (!sound.model_urls.empty()) models.read(sound.model_urls, files);
  return place_of(models.find(scheme, after_scheme(source)), sound, files);
}

}  // namespace castor::strategy
