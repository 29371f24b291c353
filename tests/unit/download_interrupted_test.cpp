// Downloads that are interrupted: by Ctrl-C, by another one of the same file, by a full or failing disk, by a loss of
// power at any operation. Whatever happens, the next call gives the right file.
#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <functional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "core/base/file.h"
#include "core/base/file_fault.h"
#include "core/base/file_memory.h"
#include "core/base/interrupt.h"
#include "strategy/source/partial_file.h"
#include "strategy/source/source.h"
#include "tests/support/download.h"
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
using test::quick_options;
using test::Reply;
using test::serve_file;
using test::ServedRequest;
using test::SilentLog;
using test::some_bytes;

TEST_CASE("two downloads of one file at once fetch it once") {
  const test::TempDir dir;
  const std::string body = some_bytes(200000);
  std::atomic<bool> second_runs{false};
  const HttpServer server([&, good = serve_file(body, "\"v1\"")](const ServedRequest& request) {
    while (!second_runs) std::this_thread::yield();
    return good(request);
  });
  const SourceOptions options = quick_options((dir.path() / "cache").string());
  std::string got;
  std::thread second([&] {
    second_runs = true;
    got = fetch(server.url("/a"), options, posix_file_system());
  });
  CHECK(fetch(server.url("/a"), options, posix_file_system()) == body);
  second.join();
  CHECK(got == body);
  CHECK(server.requests().size() == 1);
  CHECK(list_directory(options.cache_dir).size() == 1);
}

TEST_CASE("Ctrl-C and an exception of the progress callback stop a download, which then goes on") {
  const std::string body = some_bytes(400000);
  const HttpServer server(serve_file(body, "\"v1\""));
  SourceOptions options = quick_options();
  {
    MemoryFileSystem files;
    const HttpServer slow([good = serve_file(body, "\"v1\""), first = true](const ServedRequest& request) mutable {
      Reply reply = good(request);
      if (first) reply.send_only = 100000;
      reply.stall = first;
      first = false;
      return reply;
    });
    options.progress = [](std::uint64_t bytes, std::uint64_t) {
      if (bytes == 100000) request_stop(SIGINT);
    };
    const IoError error = failure_of(slow.url("/a"), options, files);
    clear_stop_request();
    CHECK(error.code == EINTR);
    options.progress = nullptr;
    CHECK(fetch(slow.url("/a"), options, files) == body);
    CHECK(slow.requests().at(1).header("range") == "bytes=100000-");
  }
  MemoryFileSystem files;
  options.progress = [](std::uint64_t bytes, std::uint64_t) {
    if (bytes > 0) throw ShapeError("enough");
  };
  const SilentLog silent;
  CHECK_THROWS_AS(resolve_source(server.url("/a"), options, files), ShapeError);
  options.progress = nullptr;
  CHECK(fetch(server.url("/a"), options, files) == body);
  CHECK_FALSE(server.requests().at(1).header("range").empty());
}

TEST_CASE("a full disk is refused before the first byte, or where it shows") {
  const std::string body = some_bytes(100000);
  for (const bool known_length : {true, false}) {
    MemoryFileSystem files;
    files.set_capacity(60000);
    const HttpServer server([&](const ServedRequest& request) {
      Reply reply = serve_file(body, "\"v1\"")(request);
      reply.add_length = known_length;
      return reply;
    });
    const IoError error = failure_of(server.url("/a"), quick_options(), files);
    INFO(error.what());
    CHECK(error.code == ENOSPC);
    CHECK((!known_length || holds(error.what(), "100000 bytes are needed")));
    files.set_capacity(200000);
    CHECK(fetch(server.url("/a"), quick_options(), files) == body);
  }
}

/// What the next test does to the disk: every operation of a download fails in every way, and after a power cut there
/// every way in which the disk may look is tried. `make_handler` gives a fresh server's answers, which end in `body`.
void check_every_operation(const std::function<HttpServer::Handler()>& make_handler, const std::string& body) {
  const SilentLog silent;
  SourceOptions options = quick_options();
  options.retries = 1;
  std::uint64_t operations = 0;
  {
    MemoryFileSystem memory;
    FaultFileSystem files(memory);
    const HttpServer server(make_handler());
    const std::string path = resolve_source(server.url("/a"), options, files);
    operations = files.operations();
    CHECK(read_text_file(path, 10000, *memory.after_power_loss(Unsynced::dropped)) == body);
  }
  CHECK(operations > 20);
  for (std::uint64_t at = 0; at < operations; ++at) {
    for (const FaultKind kind : {FaultKind::error, FaultKind::short_transfer, FaultKind::power_cut}) {
      CAPTURE(at);
      CAPTURE(static_cast<int>(kind));
      MemoryFileSystem memory;
      FaultFileSystem files(memory);
      files.inject({at, kind, EIO});
      const HttpServer server(make_handler());
      const std::string url = server.url("/a");
      try {
        const std::string path = resolve_source(url, options, files);
        CHECK(read_text_file(path, 10000, memory) == body);
      } catch (const IoError&) {
        CHECK(kind != FaultKind::short_transfer);
      }
      if (kind != FaultKind::power_cut) {
        CHECK(fetch(url, options, memory) == body);
        continue;
      }
      for (std::uint64_t seed = 0; seed < 4; ++seed) {
        for (const Unsynced unsynced : {Unsynced::dropped, Unsynced::kept, Unsynced::random, Unsynced::torn}) {
          const auto after = memory.after_power_loss(unsynced, at * 4 + seed);
          CHECK(fetch(url, options, *after) == body);
        }
      }
    }
  }
}

TEST_CASE("whichever operation on the disk fails, or is the last before a power loss, the file is right in the end") {
  const std::string body = some_bytes(3000);
  SUBCASE("a download that is cut and goes on") {
    check_every_operation([&] { return cut_once(body, 1200, "\"v1\""); }, body);
  }
  SUBCASE("a download that is cut and starts anew, since the server lost its way") {
    check_every_operation(
        [&] {
          return [&, served = 0, lost = false](const ServedRequest& request) mutable {
            if (!request.header("range").empty() && !std::exchange(lost, true))
              return Reply{.status = 206, .headers = {{"Content-Range", "?"}}, .body = "??"};
            Reply reply = serve_file(body, "\"v1\"")(request);
            if (served++ == 0) reply.send_only = 2900;
            return reply;
          };
        },
        body);
  }
  SUBCASE("a download that is cut and starts anew, since the file changed") {
    const std::string old = "old" + body;
    check_every_operation(
        [&] {
          return [&, served = 0](const ServedRequest& request) mutable {
            const bool first = served++ == 0;
            Reply reply = serve_file(first ? old : body, first ? "\"v1\"" : "\"v2\"")(request);
            if (first) reply.send_only = 2900;
            return reply;
          };
        },
        body);
  }
}

TEST_CASE("after a sync that failed, nothing of what it lost is noted, and it is not asked again") {
  MemoryFileSystem memory;
  make_directories(kCache, memory);
  FaultFileSystem files(memory);
  PartialFile part("/cache/a", files);
  part.restart({"\"v1\"", "", 5000});
  part.write(as_byte_span("abc"));
  files.inject({files.operations(), FaultKind::error, EIO});
  CHECK_THROWS_AS(part.save(), IoError);
  part.save_or_discard();
  const std::vector<FileOperation> log = files.log();
  CHECK(std::count_if(log.begin(), log.end(),
                      [](const FileOperation& operation) { return operation.kind == FileOperationKind::sync; }) == 1);
  CHECK(PartialFile("/cache/a", memory).saved_bytes() == 0);
}

TEST_CASE("a part that was given up and begun again never counts with the note of the first") {
  const std::string bytes = some_bytes(3000);
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    MemoryFileSystem files;
    make_directories(kCache, files);
    {
      PartialFile part("/cache/a", files);
      part.restart({"\"v1\"", "", 3000});
      part.write(as_byte_span(bytes));
      part.save();
      if (seed % 2 == 0) part.discard();
      part.restart({"\"v1\"", "", 3000});
      part.write(as_byte_span(bytes));
    }
    const auto after = files.after_power_loss(Unsynced::torn, seed);
    const PartialFile part("/cache/a", *after);
    const std::string left = exists(part.path(), *after) ? read_text_file(part.path(), 10000, *after) : "";
    CHECK(left.substr(0, part.saved_bytes()) == bytes.substr(0, part.saved_bytes()));
  }
}

TEST_CASE("what was saved of a part survives a power loss, and nothing else of it counts") {
  const std::string bytes = some_bytes(5000);
  MemoryFileSystem files;
  make_directories(kCache, files);
  {
    PartialFile part("/cache/a", files, 2000);
    CHECK(part.saved_bytes() == 0);
    part.restart({"\"v1\"", "", 5000});
    for (std::size_t at = 0; at < 3000; at += 500) part.write(as_byte_span(std::string_view(bytes).substr(at, 500)));
    CHECK(part.size() == 3000);
    CHECK(part.saved_bytes() == 2000);
  }
  for (const Unsynced unsynced : {Unsynced::dropped, Unsynced::kept, Unsynced::random, Unsynced::torn}) {
    const auto after = files.after_power_loss(unsynced, 1);
    PartialFile part("/cache/a", *after);
    REQUIRE(part.saved_bytes() == 2000);
    CHECK(part.version().etag == "\"v1\"");
    part.resume(5000);
    part.write(as_byte_span(std::string_view(bytes).substr(2000)));
    part.sync();
    part.finish();
    CHECK(read_text_file("/cache/a", 10000, *after) == bytes);
  }
  for (const char* note :
       {"", "{}", "nonsense", R"({"etag": "\"v1\"", "last_modified": "", "total": 5000, "bytes": 5001})",
        R"({"etag": "\"v1\"", "last_modified": "", "total": 0, "bytes": 4001})",
        R"({"etag": "\"v1\"\r\nX: y", "last_modified": "", "total": 0, "bytes": 10})",
        R"({"etag": "", "last_modified": "", "total": 5000, "bytes": 10})"}) {
    CAPTURE(note);
    write_file_atomically("/cache/a.partial.json", note, files);
    CHECK(PartialFile("/cache/a", files).saved_bytes() == 0);
  }
}

}  // namespace
}  // namespace castor::strategy
