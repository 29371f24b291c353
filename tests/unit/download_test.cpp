// Downloads against a server whose answers each test writes: good ones, cut ones, lies, redirects, TLS. What counts is
// the file in the cache, the right bytes or none, and that an error says what came and what to do.
#include "tests/support/download.h"

#include <algorithm>
#include <cerrno>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "core/base/file.h"
#include "core/base/file_memory.h"
#include "strategy/source/partial_file.h"
#include "strategy/source/sha256.h"
#include "strategy/source/source.h"
#include "tests/support/http_server.h"
#include "tests/support/temp_dir.h"

namespace castor::strategy {
namespace {

using test::cut_once;
using test::failure_of;
using test::fetch;
using test::holds;
using test::HttpServer;
using test::kCache;
using test::names_in_cache;
using test::quick_options;
using test::Reply;
using test::serve_file;
using test::ServedRequest;
using test::some_bytes;

HttpServer::Handler always(const Reply& reply) {
  return [reply](const ServedRequest&) { return reply; };
}

Reply redirect_to(const std::string& location) {
  Reply reply;
  reply.status = 302;
  reply.headers = {{"Location", location}};
  return reply;
}

TEST_CASE("a file is downloaded once and then found in the cache without a connection") {
  const std::string body = some_bytes(300000);
  MemoryFileSystem files;
  auto server = std::make_unique<HttpServer>(serve_file(body, "\"v1\""));
  const std::string url = server->url("/dir/model.pth");
  SourceOptions options = quick_options();
  std::vector<std::uint64_t> seen;
  options.progress = [&](std::uint64_t bytes, std::uint64_t total) {
    CHECK(total == body.size());
    seen.push_back(bytes);
  };
  CHECK(fetch(url, options, files) == body);
  CHECK(seen.size() >= 2);
  CHECK(seen.front() == 0);
  CHECK(seen.back() == body.size());
  CHECK(std::is_sorted(seen.begin(), seen.end()));
  const std::vector<std::string> names = names_in_cache(files);
  REQUIRE(names.size() == 1);
  CHECK(names[0].ends_with("_model.pth"));
  CHECK(fetch(url, options, files) == body);
  CHECK(server->requests().size() == 1);
  CHECK(server->requests()[0].header("user-agent").starts_with("castor/"));
  server.reset();
  CHECK(fetch(url, options, files) == body);
}

TEST_CASE("an empty file and one of unknown length are files too") {
  MemoryFileSystem files;
  const HttpServer empty(always({}));
  CHECK(fetch(empty.url("/empty.bin"), quick_options(), files).empty());
  Reply open_ended;
  open_ended.body = "until the connection ends";
  open_ended.add_length = false;
  const HttpServer server(always(open_ended));
  CHECK(fetch(server.url("/a.bin"), quick_options(), files) == open_ended.body);
}

TEST_CASE("names of models are downloaded as their URLs are") {
  MemoryFileSystem files;
  const HttpServer server(serve_file("weights", "\"v1\""));
  SourceOptions options = quick_options();
  options.models.add("torchvision", "own", server.url("/own.pth"));
  CHECK(fetch("torchvision://own", options, files) == "weights");
  CHECK(server.requests().at(0).target == "/own.pth");
}

TEST_CASE("redirects are followed, relative and absolute, up to the limit") {
  MemoryFileSystem files;
  const HttpServer server([](const ServedRequest& request) {
    const int left = std::stoi(request.target.substr(1));
    if (left == 0) return Reply{.status = 200, .headers = {}, .body = "here"};
    return redirect_to("/" + std::to_string(left - 1));
  });
  SourceOptions options = quick_options();
  CHECK(fetch(server.url("/5"), options, files) == "here");
  IoError error = failure_of(server.url("/6"), options, files);
  CHECK(error.code == ELOOP);
  CHECK(holds(error.what(), "more than 5 redirects"));
  options.max_redirects = 0;
  CHECK(failure_of(server.url("/1"), options, files).code == ELOOP);
  const HttpServer elsewhere(always(redirect_to(server.url("/0"))));
  CHECK(fetch(elsewhere.url("/a"), quick_options(), files) == "here");
  const HttpServer loop(always(redirect_to("/again")));
  CHECK(failure_of(loop.url("/again"), quick_options(), files).code == ELOOP);
  CHECK(loop.requests().size() == 6);
}

TEST_CASE("redirects to files, other schemes and nowhere are refused") {
  MemoryFileSystem files;
  for (const std::string target : {"file:///etc/passwd", "ftp://127.0.0.1/a", "gopher://127.0.0.1/a"}) {
    const HttpServer server(always(redirect_to(target)));
    const IoError error = failure_of(server.url("/a?token=secret"), quick_options(), files);
    INFO(error.what());
    CHECK(error.code == EPROTO);
    CHECK(holds(error.what(), "only http:// and https://"));
  }
  Reply nowhere;
  nowhere.status = 302;
  const HttpServer server(always(nowhere));
  CHECK(failure_of(server.url("/a"), quick_options(), files).code == EPROTO);
}

TEST_CASE("credentials in a URL go to its host and nowhere else, and into no message") {
  MemoryFileSystem files;
  const HttpServer other(always({.status = 200, .headers = {}, .body = "other"}));
  const HttpServer server([&other](const ServedRequest& request) {
    if (request.target == "/here") return redirect_to("/there");
    if (request.target == "/away") return redirect_to(other.url("/b"));
    if (request.target == "/there") return Reply{.status = 200, .headers = {}, .body = "there"};
    return Reply{.status = 401, .headers = {}, .body = "who are you?"};
  });
  const auto url = [&](const std::string& target) {
    return "http://me:secret@127.0.0.1:" + std::to_string(server.port()) + target;
  };
  CHECK(fetch(url("/here"), quick_options(), files) == "there");
  CHECK(fetch(url("/away"), quick_options(), files) == "other");
  for (const ServedRequest& request : server.requests()) {
    CHECK(request.header("authorization") == "Basic bWU6c2VjcmV0");
  }
  CHECK(other.requests().at(0).header("authorization").empty());
  const IoError error = failure_of(url("/refused"), quick_options(), files);
  CHECK(error.code == EACCES);
  CHECK(error.path == server.url("/refused"));
}

TEST_CASE("a download that was cut goes on where it was") {
  const std::string body = some_bytes(500000);
  MemoryFileSystem files;
  const HttpServer server(cut_once(body, 200000, "\"v1\""));
  const IoError error = failure_of(server.url("/model.pth"), quick_options(), files);
  CHECK(error.code == ECONNRESET);
  CHECK(names_in_cache(files).size() == 2);  // the part and its note
  std::uint64_t first_progress = 0;
  SourceOptions options = quick_options();
  options.progress = [&](std::uint64_t bytes, std::uint64_t) {
    if (first_progress == 0) first_progress = bytes;
  };
  CHECK(fetch(server.url("/model.pth"), options, files) == body);
  CHECK(first_progress == 200000);
  const std::vector<ServedRequest> requests = server.requests();
  REQUIRE(requests.size() == 2);
  CHECK(requests[0].header("range").empty());
  CHECK(requests[1].header("range") == "bytes=200000-");
  CHECK(requests[1].header("if-range") == "\"v1\"");
  CHECK(names_in_cache(files).size() == 1);
}

TEST_CASE("retries happen within one call, and those that bring something do not count") {
  const std::string body = some_bytes(100000);
  MemoryFileSystem files;
  const HttpServer server([good = serve_file(body, "\"v1\"")](const ServedRequest& request) {
    Reply reply = good(request);
    reply.send_only = 30000;
    return reply;
  });
  SourceOptions options = quick_options();
  options.retries = 1;
  CHECK(fetch(server.url("/a"), options, files) == body);
  CHECK(server.requests().size() == 4);
  const HttpServer failing(always({.status = 503, .headers = {}, .body = ""}));
  options.retries = 2;
  const IoError error = failure_of(failing.url("/a"), options, files);
  CHECK(error.code == EREMOTEIO);
  CHECK(holds(error.what(), "503"));
  CHECK(failing.requests().size() == 3);
}

TEST_CASE("a file that changed on the server, or whose version is unknown, starts anew") {
  const std::string before = some_bytes(100000);
  const std::string after = "x" + some_bytes(150000);
  for (const bool versioned : {true, false}) {
    MemoryFileSystem files;
    const HttpServer server([&, served = 0](const ServedRequest& request) mutable {
      const bool first = served++ == 0;
      Reply reply = serve_file(first ? before : after, first ? "\"v1\"" : "\"v2\"")(request);
      if (!versioned) reply.headers.clear();
      if (first) reply.send_only = 50000;
      return reply;
    });
    failure_of(server.url("/a"), quick_options(), files);
    CHECK(names_in_cache(files).size() == (versioned ? 2 : 0));
    CHECK(fetch(server.url("/a"), quick_options(), files) == after);
    CHECK(server.requests()[1].header("range").empty() != versioned);
  }
}

TEST_CASE("a weak ETag is not trusted with parts, a date is") {
  CHECK(FileVersion{"W/\"v1\"", "", 0}.if_range().empty());
  CHECK(FileVersion{"W/\"v1\"", "Mon, 01 Jan 2024 00:00:00 GMT", 0}.if_range() == "Mon, 01 Jan 2024 00:00:00 GMT");
  CHECK(FileVersion{"\"v1\"", "Mon, 01 Jan 2024 00:00:00 GMT", 0}.if_range() == "\"v1\"");
}

TEST_CASE("an answer to a range that is not the range is thrown away") {
  const std::string body = some_bytes(1000);
  const auto check = [&](const Reply& second) {
    MemoryFileSystem files;
    const HttpServer server([&, served = 0](const ServedRequest& request) mutable {
      const int number = served++;
      if (number == 1) return second;
      Reply reply = serve_file(body, "\"v1\"")(request);
      if (number == 0) reply.send_only = 400;
      return reply;
    });
    failure_of(server.url("/a"), quick_options(), files);
    CHECK(fetch(server.url("/a"), quick_options(), files) == body);
    REQUIRE(server.requests().size() == 3);
    CHECK(server.requests()[1].header("range") == "bytes=400-");
    CHECK(server.requests()[2].header("range").empty());
  };
  for (const std::string range : {"bytes 300-999/1000", "bytes 400-999/2000", "bytes 400-999", "nonsense", ""}) {
    CAPTURE(range);
    check({.status = 206, .headers = {{"Content-Range", range}}, .body = body.substr(400)});
  }
  check({.status = 416, .headers = {}, .body = "no such range"});
}

TEST_CASE("too large a file is refused by its length, and while it comes if that lies or is missing") {
  MemoryFileSystem files;
  SourceOptions options = quick_options();
  options.max_bytes = 1000;
  Reply reply;
  reply.body = some_bytes(1001);
  {
    const HttpServer server(always(reply));
    const IoError error = failure_of(server.url("/a"), options, files);
    CHECK(error.code == EFBIG);
    CHECK(holds(error.what(), "1001 bytes, the limit is 1000"));
    CHECK(names_in_cache(files).empty());
  }
  reply.add_length = false;
  reply.headers = {{"ETag", "\"v1\""}};
  const HttpServer server(always(reply));
  CHECK(failure_of(server.url("/a"), options, files).code == EFBIG);
  CHECK(names_in_cache(files).empty());
  options.max_bytes = 1001;
  CHECK(fetch(server.url("/a"), options, files) == reply.body);
}

TEST_CASE("a length that is too long is a cut, one that is too short is caught by the digest") {
  const std::string body = some_bytes(1000);
  MemoryFileSystem files;
  Reply reply{.status = 200, .headers = {{"Content-Length", "2000"}}, .body = body};
  {
    const HttpServer server(always(reply));
    CHECK(failure_of(server.url("/a"), quick_options(), files).code == ECONNRESET);
  }
  reply.headers = {{"Content-Length", "500"}};
  const HttpServer server(always(reply));
  SourceOptions options = quick_options();
  options.sha256 = sha256_hex(body);
  CHECK(failure_of(server.url("/a"), options, files).code == EBADMSG);
  CHECK(names_in_cache(files).empty());
}

TEST_CASE("a digest decides what is kept, from the option or from the name") {
  const std::string body = some_bytes(5000);
  const std::string digest = sha256_hex(body);
  const HttpServer server(serve_file(body, "\"v1\""));
  SourceOptions options = quick_options();
  {
    MemoryFileSystem files;
    CHECK(fetch(server.url("/model-" + digest.substr(0, 8) + ".pth"), options, files) == body);
    CHECK(fetch(server.url("/model-20240131.pth"), options, files) == body);
    const std::string url = server.url("/model-00000000.pth");
    const IoError error = failure_of(url, options, files);
    CHECK(error.code == EBADMSG);
    CHECK(holds(error.what(), digest));
    CHECK(holds(error.what(), "as its name says"));
    CHECK(names_in_cache(files).size() == 2);
    options.check_name_hash = false;
    CHECK(fetch(url, options, files) == body);
  }
  MemoryFileSystem files;
  options.sha256 = digest;
  CHECK(fetch(server.url("/a"), options, files) == body);
  // A cached file that is another one than asked for is fetched again, and replaced only by the right one.
  const std::string path = resolve_source(server.url("/a"), options, files);
  write_file_atomically(path, "damaged", files);
  CHECK(fetch(server.url("/a"), options, files) == body);
  options.sha256 = std::string(64, '0');
  CHECK(failure_of(server.url("/a"), options, files).code == EBADMSG);
  CHECK(read_text_file(path, 10000, files) == body);
}

TEST_CASE("HTTP errors say what came and what to do, and leave nothing") {
  MemoryFileSystem files;
  const std::vector<std::pair<int, int>> cases{{404, ENOENT},    {410, ENOENT},    {403, EACCES},
                                               {500, EREMOTEIO}, {418, EREMOTEIO}, {206, EREMOTEIO}};
  for (const auto& [status, code] : cases) {
    const HttpServer server(always({.status = status, .headers = {}, .body = "<html>no weights</html>"}));
    const IoError error = failure_of(server.url("/a?token=secret"), quick_options(), files);
    INFO(error.what());
    CHECK(error.code == code);
    CHECK(holds(error.what(), std::to_string(status)));
    CHECK(error.path == server.url("/a?..."));
    CHECK(names_in_cache(files).empty());
  }
  Reply encoded;
  encoded.headers = {{"Content-Encoding", "gzip"}};
  encoded.body = "??";
  const HttpServer server(always(encoded));
  CHECK(failure_of(server.url("/a"), quick_options(), files).code == EPROTO);
}

TEST_CASE("a server that is not there, not found or silent is an error that says so") {
  MemoryFileSystem files;
  std::string gone;
  {
    const HttpServer server(always({}));
    gone = server.url("/a");
  }
  CHECK(failure_of(gone, quick_options(), files).code == ECONNREFUSED);
  Reply silent{.status = 200, .headers = {{"ETag", "\"v1\""}}, .body = some_bytes(1000)};
  silent.send_only = 300;
  silent.stall = true;
  const HttpServer server(always(silent));
  SourceOptions options = quick_options();
  options.stall_timeout_seconds = 0.15;
  const IoError error = failure_of(server.url("/a"), options, files);
  CHECK(error.code == ETIMEDOUT);
  CHECK(holds(error.what(), "0.15 s"));
  CHECK(PartialFile(join_path(kCache, names_in_cache(files)[0].substr(0, names_in_cache(files)[0].find(".partial"))),
                    files)
            .saved_bytes() == 300);
}

TEST_CASE("TLS is verified: the authority, the name and the way down to http") {
  const test::TempDir dir;
  const auto write = [&](const std::string& name, const std::string& text) {
    write_file_atomically((dir.path() / name).string(), text);
    return (dir.path() / name).string();
  };
  const test::TlsCertificate good = test::make_certificate("127.0.0.1");
  const test::TlsCertificate other = test::make_certificate("elsewhere.example");
  MemoryFileSystem files;
  SourceOptions options = quick_options();
  const HttpServer server(serve_file("weights", "\"v1\""), &good);
  IoError error = failure_of(server.url("/a"), options, files);
  CHECK(error.code == EPROTO);
  CHECK(holds(error.what(), "not trusted"));
  options.ca_file = write("good.pem", good.certificate);
  CHECK(fetch(server.url("/a"), options, files) == "weights");

  const HttpServer wrong_name(serve_file("weights", "\"v1\""), &other);
  options.ca_file = write("other.pem", other.certificate);
  error = failure_of(wrong_name.url("/a"), options, files);
  CHECK(error.code == EPROTO);
  CHECK(holds(error.what(), "not trusted"));

  const HttpServer plain(serve_file("weights", "\"v1\""));
  const HttpServer down(always(redirect_to(plain.url("/a"))), &good);
  options.ca_file = write("good.pem", good.certificate);
  error = failure_of(down.url("/a"), options, files);
  CHECK(error.code == EPROTO);
  CHECK(holds(error.what(), "from https to http"));
  CHECK(plain.requests().empty());
  const HttpServer up(always(redirect_to(server.url("/b"))));
  CHECK(fetch(up.url("/b"), options, files) == "weights");

  options.ca_file = (dir.path() / "missing.pem").string();
  error = failure_of(server.url("/c"), options, files);
  CHECK(holds(error.what(), "CA file"));
  options.ca_file = "";
  error = failure_of("https" + plain.url("/a").substr(4), options, files);
  CHECK(error.code == EPROTO);
}

}  // namespace
}  // namespace castor::strategy
