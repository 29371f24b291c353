// One HTTP exchange: a GET, the head of its answer, the bytes of its body. Redirects, retries and files are decided by
// the caller (download.cpp); libcurl stays in http_curl.cpp.
//
// Delicate: TLS is verified always and no option turns it off. No credentials are read from anywhere (no .netrc); those
// of the request go to its host only. Everything here runs in the calling thread, callbacks included, and looks at the
// stop flag ten times a second.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>

#include "core/base/error.h"
#include "strategy/source/url.h"

namespace castor::strategy {

/// What is asked for, and how patiently.
struct HttpRequest {
  Url url;
  bool send_credentials = true;  ///< the URL's, if it has any
  std::uint64_t first_byte = 0;  ///< above 0: only the bytes from here on are wanted ...
  std::string if_range;          ///< ... if the file still has this ETag or date; the whole file otherwise
  std::string ca_file;           ///< as SourceOptions, the three below too
  double connect_timeout_seconds = 30;
  double stall_timeout_seconds = 60;
  bool environment_proxy = true;
};

/// The head of an answer. Texts are as sent, empty where they were not.
struct HttpHead {
  int status = 0;
  std::optional<std::uint64_t> content_length;  ///< bytes of the body
  std::string content_range;                    ///< "bytes 100-199/200"
  std::string content_encoding;
  std::string etag;
  std::string last_modified;
  std::string location;  ///< where a redirect leads, made absolute; empty if this is none
};

/// A failed exchange, or an answer that is none.
class HttpError : public IoError {
 public:
  /// `again`: the same request may work in a while.
  HttpError(const std::string& text, std::string shown_url, int error_number, bool again)
      : IoError(text, std::move(shown_url), error_number), worth_retrying(again) {}
  bool worth_retrying;
};

/// Does one exchange.
///   wants_body   gets the head; false: the body is not fetched and the call returns
///   take         gets the body piece by piece; never called before wants_body
/// Returns the head. Throws HttpError if no complete answer came (refused, timed out, not trusted, cut), IoError with
/// code EINTR after Ctrl-C; what the two functions throw passes through.
HttpHead http_get(const HttpRequest& request, const std::function<bool(const HttpHead&)>& wants_body,
                  const std::function<void(std::span<const std::byte>)>& take);

}  // namespace castor::strategy
