// Sockets and OpenSSL's server side. Delicate: a client may be gone at any moment, so failed sends end a connection
// quietly, and SIGPIPE is blocked in the serving thread, since OpenSSL writes without MSG_NOSIGNAL.
#include "tests/support/http_server.h"

#include <algorithm>
#include <cctype>
#include <csignal>
#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string_view>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

namespace castor::test {
namespace {

constexpr int kPollMilliseconds = 20;

struct FreeSsl {
  void operator()(SSL* p) const { SSL_free(p); }
  void operator()(SSL_CTX* p) const { SSL_CTX_free(p); }
  void operator()(BIO* p) const { BIO_free(p); }
  void operator()(X509* p) const { X509_free(p); }
  void operator()(EVP_PKEY* p) const { EVP_PKEY_free(p); }
};

std::unique_ptr<BIO, FreeSsl> reading(const std::string& text) {
  return std::unique_ptr<BIO, FreeSsl>(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
}

std::string lower(std::string text) {
  for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return text;
}

ServedRequest parse_request(const std::string& head) {
  ServedRequest request;
  std::istringstream lines(head);
  std::string line;
  std::getline(lines, line);
  const std::size_t begin = line.find(' ') + 1;
  request.target = line.substr(begin, line.find(' ', begin) - begin);
  while (std::getline(lines, line) && line != "\r") {
    const std::size_t colon = line.find(": ");
    if (colon != std::string::npos)
      request.headers[lower(line.substr(0, colon))] = line.substr(colon + 2, line.size() - colon - 3);
  }
  return request;
}

}  // namespace

struct HttpServer::Tls {
  std::unique_ptr<SSL_CTX, FreeSsl> context{SSL_CTX_new(TLS_server_method())};
};

/// One connection's bytes, plain or through TLS.
class HttpServer::Channel {
 public:
  Channel(int socket, const Tls* tls) : socket_(socket) {
    if (tls == nullptr) return;
    ssl_.reset(SSL_new(tls->context.get()));
    SSL_set_fd(ssl_.get(), socket);
    good_ = SSL_accept(ssl_.get()) == 1;
  }
  ~Channel() {
    if (ssl_ != nullptr && good_) SSL_shutdown(ssl_.get());
    ERR_clear_error();
  }

  /// Everything up to the empty line; "" if the client left first.
  std::string read_head() {
    std::string head;
    char byte = 0;
    while (good_ && head.size() < 65536 && !head.ends_with("\r\n\r\n")) {
      const long got = ssl_ != nullptr ? SSL_read(ssl_.get(), &byte, 1) : ::recv(socket_, &byte, 1, 0);
      if (got != 1) return "";
      head += byte;
      if (head[0] < 'A' || head[0] > 'Z') return "";  // no method: TLS spoken to a plain server
    }
    return good_ ? head : "";
  }

  void send(std::string_view bytes) {
    while (good_ && !bytes.empty()) {
      const int piece = static_cast<int>(std::min<std::size_t>(bytes.size(), 65536));
      const long sent = ssl_ != nullptr ? SSL_write(ssl_.get(), bytes.data(), piece)
                                        : ::send(socket_, bytes.data(), static_cast<std::size_t>(piece), MSG_NOSIGNAL);
      good_ = sent > 0;
      if (good_) bytes.remove_prefix(static_cast<std::size_t>(sent));
    }
  }

 private:
  int socket_;
  bool good_ = true;
  std::unique_ptr<SSL, FreeSsl> ssl_;
};

HttpServer::HttpServer(Handler handler, const TlsCertificate* certificate) : handler_(std::move(handler)) {
  if (certificate != nullptr) {
    tls_ = std::make_unique<Tls>();
    const std::unique_ptr<X509, FreeSsl> own(
        PEM_read_bio_X509(reading(certificate->certificate).get(), nullptr, nullptr, nullptr));
    const std::unique_ptr<EVP_PKEY, FreeSsl> key(
        PEM_read_bio_PrivateKey(reading(certificate->key).get(), nullptr, nullptr, nullptr));
    if (SSL_CTX_use_certificate(tls_->context.get(), own.get()) != 1 ||
        SSL_CTX_use_PrivateKey(tls_->context.get(), key.get()) != 1) {
      throw std::runtime_error("the test's certificate cannot be used");
    }
  }
  listener_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  if (listener_ < 0 || ::bind(listener_, reinterpret_cast<sockaddr*>(&address), size) != 0 ||
      ::listen(listener_, 16) != 0 || ::getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    if (listener_ >= 0) ::close(listener_);
    throw std::runtime_error("cannot listen on 127.0.0.1");
  }
  port_ = ntohs(address.sin_port);
  thread_ = std::thread([this] { serve(); });
}

HttpServer::~HttpServer() {
  stopping_ = true;
  ::shutdown(listener_, SHUT_RDWR);  // wakes the poll
  thread_.join();
  ::close(listener_);
}

std::string HttpServer::url(const std::string& target) const {
  return (tls_ != nullptr ? "https://127.0.0.1:" : "http://127.0.0.1:") + std::to_string(port_) + target;
}

std::vector<ServedRequest> HttpServer::requests() const {
  const std::lock_guard lock(mutex_);
  return requests_;
}

void HttpServer::serve() {
  sigset_t pipe;
  sigemptyset(&pipe);
  sigaddset(&pipe, SIGPIPE);
  pthread_sigmask(SIG_BLOCK, &pipe, nullptr);
  while (!stopping_) {
    pollfd waiting{listener_, POLLIN, 0};
    if (::poll(&waiting, 1, kPollMilliseconds) <= 0) continue;
    const int connection = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
    if (connection < 0) continue;
    const timeval patience{5, 0};
    ::setsockopt(connection, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    ::setsockopt(connection, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
    serve_one(connection);
    ::close(connection);
  }
}

void HttpServer::serve_one(int connection) {
  Channel channel(connection, tls_.get());
  const std::string head = channel.read_head();
  if (head.empty()) return;
  const ServedRequest request = parse_request(head);
  {
    const std::lock_guard lock(mutex_);
    requests_.push_back(request);
  }
  const Reply reply = handler_(request);
  std::string answer = "HTTP/1.1 " + std::to_string(reply.status) + " Answer\r\nConnection: close\r\n";
  bool has_length = !reply.add_length;
  for (const auto& [name, value] : reply.headers) {
    answer += name + ": " + value + "\r\n";
    has_length = has_length || lower(name) == "content-length";
  }
  if (!has_length) answer += "Content-Length: " + std::to_string(reply.body.size()) + "\r\n";
  channel.send(answer + "\r\n");
  channel.send(std::string_view(reply.body).substr(0, reply.send_only));
  while (reply.stall && !client_left_or_stopped(connection)) {
  }
}

bool HttpServer::client_left_or_stopped(int connection) const {
  pollfd waiting{connection, POLLIN | POLLRDHUP, 0};
  return ::poll(&waiting, 1, kPollMilliseconds) != 0 || stopping_;
}

HttpServer::Handler serve_file(std::string body, std::string etag) {
  return [body = std::move(body), etag = std::move(etag)](const ServedRequest& request) {
    Reply reply;
    reply.headers = {{"ETag", etag}};
    const std::string range = request.header("range");
    if (range.empty() || request.header("if-range") != etag) {
      reply.body = body;
      return reply;
    }
    const std::size_t first = std::stoull(range.substr(range.find('=') + 1));
    reply.status = 206;
    reply.headers.emplace_back(
        "Content-Range",
        "bytes " + std::to_string(first) + "-" + std::to_string(body.size() - 1) + "/" + std::to_string(body.size()));
    reply.body = body.substr(first);
    return reply;
  };
}

}  // namespace castor::test
