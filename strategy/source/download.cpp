// A download: redirects, ranges, retries, limits, digests.
//
// Delicate: the server is believed in nothing. Its length is a hint until the bytes are counted; an answer to a range
// must be the range that was asked for; a file changed in between starts anew (If-Range). Everything that ends a
// transfer early leaves the part for the next call, unless its bytes are no good.
#include "strategy/source/download.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <optional>
#include <thread>

#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/file_error.h"
#include "core/base/file_lock.h"
#include "core/base/interrupt.h"
#include "core/base/log.h"
#include "strategy/source/http.h"
#include "strategy/source/partial_file.h"
#include "strategy/source/sha256.h"
#include "strategy/source/url.h"

namespace castor::strategy {
namespace {

constexpr auto kLookAround = std::chrono::milliseconds(100);

bool is_redirect(int status) {
  return status == 301 || status == 302 || status == 303 || status == 307 || status == 308;
}

/// "bytes 100-199/200" as {100, 200}; a total of "*" is 0.
struct ContentRange {
  std::uint64_t first = 0;
  std::uint64_t total = 0;
};
std::optional<ContentRange> parse_content_range(std::string_view text) {
  constexpr std::string_view kUnit = "bytes ";
  if (!text.starts_with(kUnit)) return std::nullopt;
  const char* const end = text.data() + text.size();
  std::uint64_t last = 0;
  ContentRange range;
  auto at = std::from_chars(text.data() + kUnit.size(), end, range.first);
  if (at.ec != std::errc() || at.ptr == end || *at.ptr != '-') return std::nullopt;
  at = std::from_chars(at.ptr + 1, end, last);
  if (at.ec != std::errc() || at.ptr == end || *at.ptr != '/' || last < range.first) return std::nullopt;
  if (std::string_view(at.ptr + 1, end) == "*") return range;
  at = std::from_chars(at.ptr + 1, end, range.total);
  if (at.ec != std::errc() || at.ptr != end || last >= range.total) return std::nullopt;
  return range;
}

void wait_or_stop(double seconds, const std::string& shown) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (std::chrono::steady_clock::now() < end) {
    if (stop_requested()) throw IoError(cat("download ", shown, ": stopped while waiting to try again"), shown, EINTR);
    std::this_thread::sleep_for(
        std::min<std::chrono::duration<double>>(kLookAround, end - std::chrono::steady_clock::now()));
  }
}

class Download {
 public:
  Download(Url url, const SourceOptions& options, std::string path, FileSystem& files)
      : url_(std::move(url)), shown_(url_.shown()), options_(options), files_(files), part_(path, files) {}

  void run() {
    try {
      transfer_with_retries();
      part_.sync();
    } catch (...) {
      part_.save_or_discard();
      throw;
    }
    check_digest();
    part_.finish();
  }

 private:
  void transfer_with_retries() {
    double delay = options_.retry_delay_seconds;
    for (int left = options_.retries;; --left) {
      const std::uint64_t before = part_.saved_bytes();
      try {
        return transfer();
      } catch (const HttpError& error) {
        if (!error.worth_retrying) throw;
        part_.save_or_discard();
        // Retries are counted in a row: one that brought bytes that stay begins a new count.
        if (part_.saved_bytes() > before) {
          left = options_.retries;
          delay = options_.retry_delay_seconds;
        }
        if (left <= 0) throw;
        logger().warning(error.what(), "; trying again in ", delay, " s");
        wait_or_stop(delay, shown_);
        delay *= 2;
      }
    }
  }

  /// Fetches what is missing, following redirects.
  void transfer() {
    if (complete_already()) return part_.resume(part_.version().total);
    Url at = url_;
    for (int redirects = 0;; ++redirects) {
      const HttpHead head = http_get(
          request_to(at), [this](const HttpHead& answer) { return begin(answer); },
          [this](std::span<const std::byte> bytes) { receive(bytes); });
      if (stale_part_) {  // the server has no such range any more: the whole file, from the start
        stale_part_ = false;
        part_.discard();
        return transfer();
      }
      if (!is_redirect(head.status)) break;
      if (redirects == options_.max_redirects) {
        fail(cat("more than ", options_.max_redirects, " redirects, the last to ", shown_source(head.location),
                 "; give the final URL, or raise the limit"),
             ELOOP);
      }
      at = redirected(at, head.location);
    }
    if (part_.version().total != 0 && part_.size() != part_.version().total) {
      throw HttpError(cat("download ", shown_, ": the file has ", part_.version().total, " bytes, ", part_.size(),
                          " came; the same call goes on where this one ended"),
                      shown_, ECONNRESET, true);
    }
  }

  bool complete_already() const { return part_.saved_bytes() > 0 && part_.saved_bytes() == part_.version().total; }

  HttpRequest request_to(const Url& at) const {
    HttpRequest request;
    request.url = at;
    request.first_byte = part_.saved_bytes();
    request.if_range = part_.version().if_range();
    request.ca_file = options_.ca_file;
    request.connect_timeout_seconds = options_.connect_timeout_seconds;
    request.stall_timeout_seconds = options_.stall_timeout_seconds;
    request.environment_proxy = options_.environment_proxy;
    return request;
  }

  Url redirected(const Url& from, const std::string& location) const {
    const std::string to = shown_source(location);
    const std::string scheme = scheme_of(location);
    if (location.empty()) fail("a redirect that does not say where to; check the URL", EPROTO);
    if (scheme != "http" && scheme != "https") {
      fail(cat("it leads to ", to, "; only http:// and https:// are followed"), EPROTO);
    }
    if (from.scheme == "https" && scheme == "http") {
      fail(cat("it leads from https to ", to, ", which anybody on the way could change; give an https URL"), EPROTO);
    }
    Url next = parse_url(location);
    // The user's credentials are for the host that the user named; what a server writes before '@' counts nothing.
    next.user = next.origin == url_.origin ? url_.user : "";
    next.password = next.origin == url_.origin ? url_.password : "";
    return next;
  }

  /// Decides, by the head, what happens with the body. False: there is none of use.
  bool begin(const HttpHead& head) {
    if (is_redirect(head.status)) return false;
    const std::uint64_t saved = part_.saved_bytes();
    if (head.status == 416 && saved > 0) {
      stale_part_ = true;
      return false;
    }
    if (head.status != 200 && !(head.status == 206 && saved > 0)) fail_status(head.status);
    if (!head.content_encoding.empty() && head.content_encoding != "identity") {
      fail(cat("it comes encoded as ", quote_name(head.content_encoding), " although that was not asked for"), EPROTO);
    }
    if (head.status == 206) return begin_rest(head);
    const std::uint64_t total = head.content_length.value_or(0);
    check_room(total, 0);
    part_.restart({head.etag, head.last_modified, total});
    logger().info("downloading ", shown_, total > 0 ? cat(" (", total, " bytes)") : "", " to ", part_.path());
    report();
    return true;
  }

  bool begin_rest(const HttpHead& head) {
    const std::optional<ContentRange> range = parse_content_range(head.content_range);
    const std::uint64_t expected = part_.version().total;
    if (!range || range->first != part_.saved_bytes() ||
        (expected != 0 && range->total != 0 && range->total != expected)) {
      stale_part_ = true;
      return false;
    }
    check_room(std::max(expected, range->total), part_.saved_bytes());
    part_.resume(std::max(expected, range->total));
    logger().info("downloading ", shown_, " from byte ", part_.saved_bytes(), " on to ", part_.path());
    report();
    return true;
  }

  void receive(std::span<const std::byte> bytes) {
    if (bytes.size() > options_.max_bytes - std::min(part_.size(), options_.max_bytes)) {
      part_.discard();
      fail_size(cat("more than the server said, and at least ", options_.max_bytes + 1));
    }
    part_.write(bytes);
    report();
  }

  void report() {
    if (options_.progress) options_.progress(part_.size(), part_.version().total);
  }

  void check_room(std::uint64_t total, std::uint64_t present) const {
    if (total > options_.max_bytes) fail_size(cat(total));
    if (total <= present) return;
    const std::string folder = directory_of(part_.path());
    const std::uint64_t free = free_bytes(folder, files_);
    if (free < total - present) {
      throw IoError(cat("download ", shown_, ": ", total - present, " bytes are needed in ", quote_name(folder, 4096),
                        ", ", free, " are free: free space there or choose another cache folder (CASTOR_HOME)"),
                    folder, ENOSPC);
    }
  }

  void check_digest() {
    const std::string from_name = options_.check_name_hash ? hash_in_name(url_.file_name) : "";
    const std::string& expected = options_.sha256.empty() ? from_name : options_.sha256;
    if (expected.empty()) return;
    const std::string got = sha256_of_file(part_.path(), files_);
    if (got.starts_with(expected)) return;
    part_.discard();
    const bool by_name = options_.sha256.empty();
    fail(cat("its SHA-256 is ", got, ", expected ", by_name ? from_name + "..., as its name says" : expected,
             "; it was removed. Check the URL", by_name ? ", or turn off the check of names" : " and the digest"),
         EBADMSG);
  }

  [[noreturn]] void fail(const std::string& what, int error) const {
    throw IoError(cat("download ", shown_, ": ", what), shown_, error);
  }

  [[noreturn]] void fail_size(const std::string& bytes) const {
    fail(cat("the file has ", bytes, " bytes, the limit is ", options_.max_bytes, "; raise the limit if it is right"),
         EFBIG);
  }

  [[noreturn]] void fail_status(int status) const {
    const auto refuse = [&](std::string_view meaning, int error, bool again) {
      throw HttpError(cat("download ", shown_, ": the server answers ", status, ": ", meaning), shown_, error, again);
    };
    if (status == 401 || status == 403 || status == 407) {
      refuse("access is refused; credentials are taken from the URL only (https://user:password@host/...)", EACCES,
             false);
    }
    if (status == 404 || status == 410) refuse("there is no such file; check the URL", ENOENT, false);
    const bool passing =
        status == 408 || status == 425 || status == 429 || (status >= 500 && status <= 504 && status != 501);
    refuse(passing ? "it cannot serve it now; try again later" : "expected 200; check the URL", EREMOTEIO, passing);
    throw InternalError("download: unreachable");
  }

  Url url_;
  std::string shown_;
  const SourceOptions& options_;
  FileSystem& files_;
  PartialFile part_;
  bool stale_part_ = false;
};

/// Waits until nobody else downloads this file. On a file system of a test there is nobody else.
std::optional<FileLock> wait_for_turn(const std::string& path, const std::string& shown, FileSystem& files) {
  if (&files != &posix_file_system()) return std::nullopt;
  for (bool first = true;; first = false) {
    if (std::optional<FileLock> lock = FileLock::try_take(path + ".lock")) return lock;
    if (first) logger().info("waiting for another process that downloads ", shown);
    if (stop_requested())
      throw IoError(cat("download ", shown, ": stopped while waiting for another process"), shown, EINTR);
    std::this_thread::sleep_for(kLookAround);
  }
}

}  // namespace

std::string download(const std::string& url, const SourceOptions& options, FileSystem& files) {
  const Url parts = parse_url(url);
  const std::string folder = options.cache_dir.empty() ? default_cache_dir() : options.cache_dir;
  const std::string path = join_path(folder, cache_name(parts));
  const auto is_there = [&] {
    if (!exists(path, files)) return false;
    if (options.sha256.empty() || sha256_of_file(path, files) == options.sha256) return true;
    logger().warning(path, ": another file than the SHA-256 asks for; downloading it again");
    return false;
  };
  if (is_there()) return path;
  make_directories(folder, files);
  const std::optional<FileLock> lock = wait_for_turn(path, parts.shown(), files);
  if (lock && is_there()) return path;
  Download(parts, options, path, files).run();
  return path;
}

}  // namespace castor::strategy
