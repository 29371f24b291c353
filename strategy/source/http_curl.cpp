// The only file that knows libcurl.
//
// Delicate: libcurl calls back through C, so exceptions are kept and thrown again afterwards. The transfer runs through
// the multi interface, although there is only one: easy_perform would sit in its own loop and see Ctrl-C late. curl's
// redirects stay off: the caller's rules (never from https to http) are stricter than curl's options can say.
#include <cerrno>
#include <charconv>
#include <chrono>
#include <exception>
#include <memory>
#include <mutex>
#include <span>
#include <string_view>
#include <vector>

#include <curl/curl.h>

#include "build_config.h"
#include "core/base/file_error.h"
#include "core/base/interrupt.h"
#include "strategy/source/http.h"

namespace castor::strategy {
namespace {

using Clock = std::chrono::steady_clock;

struct EasyDeleter {
  void operator()(CURL* handle) const { curl_easy_cleanup(handle); }
};
struct MultiDeleter {
  void operator()(CURLM* handle) const { curl_multi_cleanup(handle); }
};
struct ListDeleter {
  void operator()(curl_slist* list) const { curl_slist_free_all(list); }
};

std::optional<std::uint64_t> whole_number(std::string_view text) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

/// One exchange, from its options to its outcome.
class Exchange {
 public:
  Exchange(const HttpRequest& request, const std::function<bool(const HttpHead&)>& wants_body,
           const std::function<void(std::span<const std::byte>)>& take)
      : request_(request), wants_body_(wants_body), take_(take) {
    static std::once_flag once;
    std::call_once(once, [] { curl_global_init(CURL_GLOBAL_DEFAULT); });
    easy_.reset(curl_easy_init());
    multi_.reset(curl_multi_init());
    if (easy_ == nullptr || multi_ == nullptr) throw InternalError("download: the HTTP library did not start");
    configure();
  }

  HttpHead run() {
    curl_multi_add_handle(multi_.get(), easy_.get());
    const CURLcode code = wait_for_end();
    curl_multi_remove_handle(multi_.get(), easy_.get());
    if (failure_ != nullptr) std::rethrow_exception(failure_);
    if (body_refused_) return head_;
    if (code != CURLE_OK) fail(code);
    begin_body();  // an empty body begins here
    return head_;
  }

 private:
  template <class Value>
  void set(CURLoption option, Value value) {
    // The parentheses keep curl's checking macro away, which wants literals.
    const CURLcode code = (curl_easy_setopt)(easy_.get(), option, value);
    if (code != CURLE_OK) throw InternalError(cat("download: option ", int{option}, ": ", curl_easy_strerror(code)));
  }

  void configure() {
    const std::string url = request_.url.request();
    set(CURLOPT_URL, url.c_str());
    set(CURLOPT_PROTOCOLS_STR, "http,https");
    set(CURLOPT_FOLLOWLOCATION, 0L);
    set(CURLOPT_SSL_VERIFYPEER, 1L);
    set(CURLOPT_SSL_VERIFYHOST, 2L);
    set(CURLOPT_SSLVERSION, long{CURL_SSLVERSION_TLSv1_2});
    if (!request_.ca_file.empty()) set(CURLOPT_CAINFO, request_.ca_file.c_str());
    set(CURLOPT_NETRC, long{CURL_NETRC_IGNORED});
    if (request_.send_credentials && !(request_.url.user.empty() && request_.url.password.empty())) {
      set(CURLOPT_HTTPAUTH, CURLAUTH_BASIC);
      set(CURLOPT_USERNAME, request_.url.user.c_str());
      set(CURLOPT_PASSWORD, request_.url.password.c_str());
    }
    if (!request_.environment_proxy) set(CURLOPT_PROXY, "");
    set(CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);
    set(CURLOPT_NOSIGNAL, 1L);
    set(CURLOPT_CONNECTTIMEOUT_MS, static_cast<long>(request_.connect_timeout_seconds * 1000) + 1);
    set(CURLOPT_BUFFERSIZE, 512L * 1024);
    const std::string agent = cat("castor/", kVersion);
    set(CURLOPT_USERAGENT, agent.c_str());
    add_header("Accept-Encoding: identity");
    const std::string range = cat(request_.first_byte, "-");
    if (request_.first_byte > 0) {
      set(CURLOPT_RANGE, range.c_str());
      add_header("If-Range: " + request_.if_range);
    }
    set(CURLOPT_HTTPHEADER, headers_.get());
    set(CURLOPT_ERRORBUFFER, error_text_);
    set(CURLOPT_WRITEFUNCTION, &Exchange::on_body);
    set(CURLOPT_WRITEDATA, static_cast<void*>(this));
    // Only a sign of life: the head is read from the handle when the body begins.
    set(CURLOPT_HEADERFUNCTION, &Exchange::on_header);
    set(CURLOPT_HEADERDATA, static_cast<void*>(this));
  }

  void add_header(const std::string& line) {
    curl_slist* longer = curl_slist_append(headers_.get(), line.c_str());
    if (longer == nullptr) throw InternalError("download: no memory for a header");
    static_cast<void>(headers_.release());
    headers_.reset(longer);
  }

  static std::size_t on_header(char*, std::size_t size, std::size_t count, void* self) {
    static_cast<Exchange*>(self)->last_sign_ = Clock::now();
    return size * count;
  }

  static std::size_t on_body(char* data, std::size_t size, std::size_t count, void* self) {
    auto& exchange = *static_cast<Exchange*>(self);
    exchange.last_sign_ = Clock::now();
    try {
      exchange.begin_body();
      if (exchange.body_refused_) return CURL_WRITEFUNC_ERROR;
      exchange.take_(std::as_bytes(std::span(data, size * count)));
      return size * count;
    } catch (...) {
      exchange.failure_ = std::current_exception();
      return CURL_WRITEFUNC_ERROR;
    }
  }

  void begin_body() {
    if (begun_) return;
    begun_ = true;
    head_.status = static_cast<int>(info<long>(CURLINFO_RESPONSE_CODE));
    head_.content_length = whole_number(header("Content-Length"));
    head_.content_range = header("Content-Range");
    head_.content_encoding = header("Content-Encoding");
    head_.etag = header("ETag");
    head_.last_modified = header("Last-Modified");
    if (const char* location = info<char*>(CURLINFO_REDIRECT_URL)) head_.location = location;
    body_refused_ = !wants_body_(head_);
  }

  std::string header(const char* name) {
    curl_header* found = nullptr;
    return curl_easy_header(easy_.get(), name, 0, CURLH_HEADER, -1, &found) == CURLHE_OK ? found->value : "";
  }

  template <class Value>
  Value info(CURLINFO which) {
    Value value{};
    (curl_easy_getinfo)(easy_.get(), which, &value);
    return value;
  }

  CURLcode wait_for_end() {
    constexpr int kPollMilliseconds = 100;
    last_sign_ = Clock::now();
    for (;;) {
      int running = 0;
      if (curl_multi_perform(multi_.get(), &running) != CURLM_OK) return CURLE_FAILED_INIT;
      if (running == 0) break;
      if (stop_requested()) {
        throw IoError(cat("download ", shown(), ": stopped; the same call goes on where this one ended"), shown(),
                      EINTR);
      }
      // Until the request is out, curl's own connect timeout counts.
      if (info<curl_off_t>(CURLINFO_PRETRANSFER_TIME_T) == 0) last_sign_ = Clock::now();
      const std::chrono::duration<double> silent = Clock::now() - last_sign_;
      if (silent.count() > request_.stall_timeout_seconds) {
        throw HttpError(cat("download ", shown(), ": the server sent nothing for ", request_.stall_timeout_seconds,
                            " s; try again, or raise the stall timeout"),
                        shown(), ETIMEDOUT, true);
      }
      curl_multi_poll(multi_.get(), nullptr, 0, kPollMilliseconds, nullptr);
    }
    int left = 0;
    const CURLMsg* message = curl_multi_info_read(multi_.get(), &left);
    return message != nullptr && message->msg == CURLMSG_DONE ? message->data.result : CURLE_FAILED_INIT;
  }

  std::string shown() const { return request_.url.shown(); }

  [[noreturn]] void fail(CURLcode code) {
    const std::string reason = error_text_[0] != '\0' ? error_text_ : curl_easy_strerror(code);
    const auto fail_as = [&](std::string_view what, int error, bool again, std::string_view advice) {
      throw HttpError(cat("download ", shown(), ": ", what, ": ", reason, "; ", advice), shown(), error, again);
    };
    switch (code) {
      case CURLE_COULDNT_RESOLVE_HOST:
      case CURLE_COULDNT_RESOLVE_PROXY:
        fail_as("no such host", EHOSTUNREACH, false, "check the name, and that this machine reaches the net");
        break;
      case CURLE_COULDNT_CONNECT: {
        const long error = info<long>(CURLINFO_OS_ERRNO);
        fail_as("cannot connect", error != 0 ? static_cast<int>(error) : ECONNREFUSED, false,
                "check the URL and port, and that the server runs");
        break;
      }
      case CURLE_OPERATION_TIMEDOUT:
        fail_as("cannot connect in time", ETIMEDOUT, true, "try again, or raise the connect timeout");
        break;
      case CURLE_SSL_CACERT_BADFILE:
        fail_as("the CA file cannot be used", EPROTO, false, "it must hold certificates in PEM form");
        break;
      case CURLE_PEER_FAILED_VERIFICATION:
      case CURLE_SSL_ISSUER_ERROR:
        fail_as(
            "the server's certificate is not trusted", EPROTO, false,
            "check the host's name and this machine's clock; a private authority's certificate is given as CA file");
        break;
      case CURLE_SSL_CONNECT_ERROR:
      case CURLE_SSL_CIPHER:
      case CURLE_SSL_CERTPROBLEM:
        fail_as("no TLS connection", EPROTO, false, "check that the server speaks https at this port");
        break;
      case CURLE_PARTIAL_FILE:
      case CURLE_GOT_NOTHING:
      case CURLE_SEND_ERROR:
      case CURLE_RECV_ERROR:
      case CURLE_HTTP2:
      case CURLE_HTTP2_STREAM:
        fail_as("the connection was cut", ECONNRESET, true, "the same call goes on where this one ended");
        break;
      default:
        fail_as("the answer makes no sense", EPROTO, false, "check the URL and the server");
    }
    throw InternalError("download: unreachable");
  }

  const HttpRequest& request_;
  const std::function<bool(const HttpHead&)>& wants_body_;
  const std::function<void(std::span<const std::byte>)>& take_;
  std::unique_ptr<curl_slist, ListDeleter> headers_;
  char error_text_[CURL_ERROR_SIZE] = {};
  HttpHead head_;
  bool begun_ = false;
  bool body_refused_ = false;
  std::exception_ptr failure_;
  Clock::time_point last_sign_;
  // The transfer is in both handles: the easy one goes first, as curl asks, which also takes it out of the other.
  std::unique_ptr<CURLM, MultiDeleter> multi_;
  std::unique_ptr<CURL, EasyDeleter> easy_;
};

}  // namespace

HttpHead http_get(const HttpRequest& request, const std::function<bool(const HttpHead&)>& wants_body,
                  const std::function<void(std::span<const std::byte>)>& take) {
  return Exchange(request, wants_body, take).run();
}

}  // namespace castor::strategy
