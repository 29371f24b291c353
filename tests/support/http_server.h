// A small HTTP server on 127.0.0.1 inside the test's process, whose answers the test writes, wrong ones included.
//
// Delicate: one thread serves one connection after the other, each for one request; the destructor stops it wherever it
// is. The handler runs in that thread, so it must not use doctest's checks.
#pragma once

#include <atomic>
#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/support/tls_certificate.h"

namespace castor::test {

/// What a client asked for.
struct ServedRequest {
  std::string target;                          ///< "/file?query"
  std::map<std::string, std::string> headers;  ///< names in lower case

  /// A header, or "".
  std::string header(const std::string& name) const {
    const auto found = headers.find(name);
    return found == headers.end() ? "" : found->second;
  }
};

/// What the server does about it.
struct Reply {
  static constexpr std::size_t kAll = static_cast<std::size_t>(-1);

  int status = 200;
  std::vector<std::pair<std::string, std::string>> headers;
  std::string body;
  bool add_length = true;        ///< a Content-Length of the body, unless `headers` has one
  std::size_t send_only = kAll;  ///< bytes of the body that are sent before the connection is closed
  bool stall = false;            ///< after what is sent, stays connected and silent until the client goes
};

/// A server with a port of its own from construction to destruction.
class HttpServer {
 public:
  using Handler = std::function<Reply(const ServedRequest&)>;

  /// Starts; with a certificate it speaks TLS. Throws std::runtime_error if there is no port or the certificate is bad.
  explicit HttpServer(Handler handler, const TlsCertificate* certificate = nullptr);
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;
  ~HttpServer();

  int port() const { return port_; }
  /// "http://127.0.0.1:PORT" + target; "https" with a certificate. `target` begins with '/'.
  std::string url(const std::string& target) const;
  /// The requests so far, in order.
  std::vector<ServedRequest> requests() const;

 private:
  class Channel;
  struct Tls;

  void serve();
  void serve_one(int connection);
  bool client_left_or_stopped(int connection) const;

  Handler handler_;
  std::unique_ptr<Tls> tls_;
  int listener_ = -1;
  int port_ = 0;
  std::atomic<bool> stopping_{false};
  mutable std::mutex mutex_;
  std::vector<ServedRequest> requests_;
  std::thread thread_;
};

/// A handler that serves one file as a good server does: whole, or from where a Range header asks if its If-Range fits.
HttpServer::Handler serve_file(std::string body, std::string etag);

}  // namespace castor::test
