// Where weights and checkpoints come from: one text, as configs give it to load_from and resume, becomes a local path.
//
//   "ckpt/iter_100"  "file:///data/a.pth"  "https://host/a.pth"  "torchvision://resnet50"  "open-mmlab://vgg16_caffe"
//
// Files from the net land in a cache folder, whole or not at all, and are fetched once. Delicate: what comes from the
// net is untrusted (size, redirects, TLS and, where one is known, the digest are checked), and texts may hold secrets:
// no message, log line or file in the cache shows what stands before '@' or after '?' in a URL.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "core/base/file_system.h"
#include "strategy/source/model_urls.h"

namespace castor::strategy {

/// How a source is found and fetched. The defaults fit a user's machine.
struct SourceOptions {
  std::string cache_dir;   ///< where downloads are kept; empty: default_cache_dir()
  ModelUrls models;        ///< what torchvision://NAME and open-mmlab://NAME stand for
  std::string model_urls;  ///< a JSON file with further names, read over `models` (see ModelUrls::read); empty: none

  std::string sha256;           ///< 64 hexadecimal digits that the file must have, wherever it comes from; empty: none
  bool check_name_hash = true;  ///< `NAME-0123abcd.pth` must have a SHA-256 that begins so, as its publishers mean it

  std::uint64_t max_bytes = std::uint64_t{64} << 30;  ///< larger downloads are refused
  int max_redirects = 5;                              ///< >= 0; only to http and https, never from https to http
  double connect_timeout_seconds = 30;                ///< > 0; finding the host, connecting and the TLS handshake
  double stall_timeout_seconds = 60;                  ///< > 0; longest time without a byte from the server
  int retries = 3;                                    ///< >= 0; in a row, after cuts, stalls and passing server errors
  double retry_delay_seconds = 1;                     ///< >= 0; before the first retry; doubles with each
  std::string ca_file;            ///< PEM certificates that are trusted beside the system's; empty: none
  bool environment_proxy = true;  ///< http_proxy, https_proxy and no_proxy of the environment count

  /// Called with the bytes that are here, a resumed download's first part included, and the bytes in all (0 if the
  /// server does not say). May throw: that stops the download as Ctrl-C does. Not called for what is there already.
  std::function<void(std::uint64_t bytes, std::uint64_t total)> progress;
};

/// $CASTOR_HOME/checkpoints, else $XDG_CACHE_HOME/castor/checkpoints, else ~/.cache/castor/checkpoints.
/// Throws ConfigError if none of CASTOR_HOME, XDG_CACHE_HOME and HOME is set.
std::string default_cache_dir();

/// True if `source` has to be looked up or fetched: it has a scheme, "https://..." say. False for a plain path.
bool has_scheme(const std::string& source);

/// `source` as logs may show it: without credentials and query.
std::string shown_source(const std::string& source);

/// The local path of a source; afterwards there is a file there (or a folder, where a local path names one).
///   source   a path            itself; a relative one stays relative
///            file:///PATH      PATH, percent-decoded
///            http://, https:// the file in the cache; if it is not there it is downloaded. `user:password@` is sent to
///                              that host only; no credentials are read from anywhere else
///            torchvision://NAME, open-mmlab://NAME, openmmlab://NAME   what `options.models` says, found as above
///
/// A download that was cut, stopped by Ctrl-C (core/base/interrupt.h) or killed goes on where it was at the next call,
/// if the server's file is still the same one. Of several processes or ranks that want one file, one fetches it and the
/// others wait; where ranks share no disk, each host fetches its own. A file found in the cache costs no connection.
///
/// Throws ConfigError for another scheme, an unknown name (suggesting the nearest) or an option out of range; IoError
/// with the URL or path for everything else: a missing file (ENOENT), a server that cannot be found (EHOSTUNREACH),
/// reached (ECONNREFUSED, ETIMEDOUT) or trusted (EPROTO), an HTTP error (404: ENOENT, 401 and 403: EACCES, others:
/// EREMOTEIO), a cut transfer (ECONNRESET), too large a file (EFBIG), a full disk (ENOSPC), a wrong digest (EBADMSG),
/// Ctrl-C (EINTR).
std::string resolve_source(const std::string& source, const SourceOptions& options = {},
                           FileSystem& files = posix_file_system());

}  // namespace castor::strategy
