// Log lines, the status line they share a terminal with, and strict JSON.
// Delicate: a terminal is played by a file that is told it is one; what a real one would show is worked out from the
// bytes (carriage return and wipe).
#include "core/base/log.h"

#include <cmath>
#include <csignal>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/base/console.h"
#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/interrupt.h"
#include "core/base/json.h"
#include "tests/support/temp_dir.h"

namespace {

using namespace castor;

/// A console over a file.
class FileConsole {
 public:
  explicit FileConsole(const Console::Options& options)
      : path_((folder_.path() / "out").string()),
        descriptor_(::open(path_.c_str(), O_RDWR | O_CREAT | O_APPEND, 0600)),
        console_(descriptor_, options) {}
  FileConsole(const FileConsole&) = delete;
  FileConsole& operator=(const FileConsole&) = delete;
  ~FileConsole() { ::close(descriptor_); }
  Console& console() { return console_; }
  std::string text() const { return read_text_file(path_); }

 private:
  test::TempDir folder_;
  std::string path_;
  int descriptor_;
  Console console_;
};

/// The rows a terminal shows after these bytes.
std::vector<std::string> rows_of(const std::string& bytes) {
  std::vector<std::string> rows(1);
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    if (bytes.compare(i, 4, "\r\x1b[K") == 0) {
      rows.back().clear();
      i += 3;
    } else if (bytes[i] == '\n') {
      rows.emplace_back();
    } else {
      rows.back() += bytes[i];
    }
  }
  return rows;
}

Console::Options terminal(int width) { return {.terminal = true, .width = width, .redraw_seconds = 0}; }

TEST_CASE("log lines have the peers' form on the console and in the file") {
  const test::TempDir folder;
  FileConsole out({});
  LogOptions options;
  options.console = &out.console();
  options.file = log_file_path(folder.path().string(), "20260131_235959");
  Logger log(options);
  log.info("epoch ", 3, " loss ", 0.5);
  log.debug("not at this level");
  log.warning("two\nlines");
  const std::string text = out.text();
  std::string masked = text;
  for (char& c : masked) c = c >= '0' && c <= '9' ? '0' : c;
  CHECK(masked ==
        "0000/00/00 00:00:00 - castor - INFO - epoch 0 loss 0.0\n"
        "0000/00/00 00:00:00 - castor - WARNING - two\nlines\n");
  CHECK(text.find("epoch 3 loss 0.5") != std::string::npos);
  CHECK(read_text_file(options.file) == text);
  CHECK(options.file == folder.path().string() + "/20260131_235959/20260131_235959.log");
  Logger again(options);
  again.info("appended");
  CHECK(read_text_file(options.file).starts_with(text));
}

TEST_CASE("ranks above 0 print only errors, name themselves, and keep everything in their own file") {
  const test::TempDir folder;
  FileConsole out({});
  LogOptions options;
  options.console = &out.console();
  options.rank = 2;
  options.file = log_file_path(folder.path().string(), "t", 2);
  CHECK(options.file == folder.path().string() + "/t/t_rank2.log");
  Logger log(options);
  log.info("quiet");
  log.error("loud");
  CHECK(out.text().find("quiet") == std::string::npos);
  CHECK(out.text().find(" - castor - rank 2 - ERROR - loud\n") != std::string::npos);
  CHECK(read_text_file(options.file).find("INFO - quiet") != std::string::npos);
  options.every_rank = true;
  options.file.clear();
  Logger all(options);
  all.info("heard");
  CHECK(out.text().find("heard") != std::string::npos);
}

TEST_CASE("a log file that cannot be made is an IoError with the path") {
  const test::TempDir folder;
  write_file_atomically((folder.path() / "file").string(), "x");
  LogOptions options;
  options.use_console = false;
  options.file = (folder.path() / "file" / "run.log").string();
  try {
    Logger log(options);
    FAIL("no error");
  } catch (const IoError& error) {
    CHECK(std::string(error.what()).find((folder.path() / "file").string()) != std::string::npos);
  }
}

TEST_CASE("level names are the peers' and unknown ones are refused") {
  CHECK(log_level_from_name("INFO") == LogLevel::kInfo);
  CHECK(log_level_from_name("warning") == LogLevel::kWarning);
  CHECK(log_level_from_name("WARN") == LogLevel::kWarning);
  CHECK(log_level_name(LogLevel::kCritical) == "CRITICAL");
  CHECK_THROWS_AS(log_level_from_name("chatty"), ConfigError);
}

TEST_CASE("each thread logs to the logger of its own scope") {
  FileConsole one({});
  FileConsole two({});
  LogOptions options;
  options.console = &one.console();
  Logger first(options);
  options.console = &two.console();
  Logger second(options);
  const LogScope scope(first);
  std::thread other([&second] {
    const LogScope inner(second);
    logger().info("from the other");
  });
  other.join();
  logger().info("from here");
  CHECK(one.text().find("from here") != std::string::npos);
  CHECK(one.text().find("other") == std::string::npos);
  CHECK(two.text().find("from the other") != std::string::npos);
}

TEST_CASE("log lines stand whole above the status line") {
  FileConsole out(terminal(40));
  ProgressBar bar(out.console(), "train", 100);
  bar.update(10, "loss 2.5");
  out.console().write_line("a line");
  bar.update(20, "loss 2.4");
  out.console().write_line("another");
  std::vector<std::string> rows = rows_of(out.text());
  CHECK(rows.size() == 3);
  CHECK(rows[0] == "a line");
  CHECK(rows[1] == "another");
  CHECK(rows[2].starts_with("train [##........] 20/100"));
  CHECK(rows[2].size() < 40);
  bar.update(100, "loss 1.0");
  bar.finish();
  rows = rows_of(out.text());
  CHECK(rows.size() == 4);
  CHECK(rows[2].starts_with("train [##########] 100/100"));
  CHECK(rows[3].empty());
}

TEST_CASE("a bar that ends early leaves no rest on the terminal") {
  FileConsole out(terminal(60));
  {
    ProgressBar bar(out.console(), "train", 10);
    bar.update(1, "");
  }
  out.console().write_line("done");
  CHECK(rows_of(out.text()) == std::vector<std::string>{"done", ""});
}

TEST_CASE("without a terminal a status is a plain line, now and then") {
  FileConsole rare({.plain_status_seconds = 3600});
  rare.console().set_status("one");
  rare.console().set_status("two");
  rare.console().end_status(true);
  CHECK(rare.text() == "one\ntwo\n");
  FileConsole often({.plain_status_seconds = 0});
  often.console().set_status("one");
  often.console().set_status("two");
  often.console().end_status(true);
  CHECK(often.text() == "one\ntwo\n");
}

TEST_CASE("a status is cut between characters") {
  FileConsole out(terminal(5));
  out.console().set_status("ééééééé");
  CHECK(rows_of(out.text())[0] == "éééé");
}

TEST_CASE("threads never tear each other's lines") {
  FileConsole out(terminal(80));
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&out, t] {
      for (int i = 0; i < 100; ++i) {
        out.console().write_line(cat("thread ", t, " line ", i, " end"));
        out.console().set_status(cat("status ", t));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const std::vector<std::string> rows = rows_of(out.text());
  CHECK(rows.size() == 401);
  for (std::size_t i = 0; i + 1 < rows.size(); ++i) {
    CHECK(rows[i].starts_with("thread "));
    CHECK(rows[i].ends_with(" end"));
  }
}

TEST_CASE("durations and bars are written for people") {
  CHECK(format_duration(41.4) == "0:00:41");
  CHECK(format_duration(3723) == "1:02:03");
  CHECK(format_duration(2 * 86400 + 3) == "2 days, 0:00:03");
  CHECK(format_duration(86400) == "1 day, 0:00:00");
  CHECK(format_duration(-1) == "?");
  CHECK(format_duration(std::numeric_limits<double>::infinity()) == "?");
  CHECK(format_bar(0.5, 12) == "[#####.....]");
  CHECK(format_bar(2, 5) == "[###]");
  CHECK(format_bar(std::nan(""), 5) == "[...]");
}

TEST_CASE("the first signal asks for a stop, others of a moment belong to it, and the next ends the process") {
  const pid_t child = fork();
  if (child == 0) {
    const int null = ::open("/dev/null", O_WRONLY);
    dup2(null, STDERR_FILENO);
    install_stop_handlers();
    if (stop_requested() || stop_exit_code() != 0) _exit(1);
    // The handler must not write where the stack pointer points: compiled kernels keep data there.
    stack_t stack{};
    if (sigaltstack(nullptr, &stack) != 0 || (stack.ss_flags & SS_DISABLE) != 0) _exit(6);
    for (const int number : {SIGINT, SIGTERM, SIGHUP}) {
      struct sigaction action {};
      if (sigaction(number, nullptr, &action) != 0 || (action.sa_flags & SA_ONSTACK) == 0) _exit(7);
    }
    raise(SIGINT);
    if (!stop_requested() || stop_exit_code() != 130) _exit(2);
    clear_stop_request();
    if (stop_requested()) _exit(3);
    raise(SIGTERM);
    if (stop_exit_code() != 143) _exit(4);
    raise(SIGTERM);
    raise(SIGHUP);  // within a moment: the same stop
    std::this_thread::sleep_for(kOneStop + std::chrono::milliseconds(50));
    raise(SIGINT);
    _exit(5);
  }
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 130);
}

TEST_CASE("JSON reads strictly and names the byte") {
  const auto refused = [](const std::string& text) {
    try {
      parse_json(text, "m.json");
    } catch (const FormatError& error) {
      CHECK(error.file == "m.json");
      return cat(error.offset, ": ", error.what());
    }
    return std::string("no FormatError");
  };
  CHECK(parse_json("{\"b\":1,\"a\":[true,null,\"x\",-2.5]}", "m").dump() == "{\"b\":1,\"a\":[true,null,\"x\",-2.5]}");
  CHECK(refused("{\"a\":1,\"a\":2}").find("appears twice") != std::string::npos);
  CHECK(refused("{\"a\":1} x").find("m.json:1") != std::string::npos);
  CHECK(refused("[1,\n2,]").find("m.json:2") != std::string::npos);
  CHECK(refused("").find("ends too early") != std::string::npos);
  CHECK(refused("{\"a\":").find("ends too early") != std::string::npos);
  CHECK(refused("[\"\\ud800\"]").find("m.json") != std::string::npos);
  CHECK(refused("[\"\xff\"]").find("m.json") != std::string::npos);
  CHECK(refused("[NaN]").find("m.json") != std::string::npos);
  CHECK(refused(std::string(70, '[')).find("deeper than 64") != std::string::npos);
  CHECK(refused(std::string(1 << 20, '[')).find("deeper than 64") != std::string::npos);
  JsonLimits few;
  few.max_values = 3;
  CHECK_THROWS_AS(parse_json("[1,2,3]", "m", few), FormatError);
  few.max_bytes = 4;
  CHECK_THROWS_AS(parse_json("[1,2]", "m", few), FormatError);
}

TEST_CASE("canonical JSON keeps the bits of doubles and the order of keys") {
  CHECK(dump_double(1.0) == "1.0");
  CHECK(dump_double(0.1) == "0.1");
  CHECK(dump_double(1e-5) == "1e-05");
  CHECK(dump_double(-0.0) == "-0.0");
  CHECK(dump_double(1e300) == "1e+300");
  for (const double value : {1.0 / 3, 5e-324, 1.7976931348623157e308, 123456789.123456789, -2.2250738585072014e-308}) {
    const Json text = parse_json(cat("[", dump_double(value), "]"), "m");
    CHECK(text[0].get<double>() == value);
  }
  Json value;
  value["z"] = 1;
  value["a"] = {std::nan(""), 2.0, "q\"\n\x01é"};
  value["u"] = std::numeric_limits<std::uint64_t>::max();
  const std::string text = dump_json(value);
  CHECK(text == "{\"z\":1,\"a\":[\"nan\",2.0,\"q\\\"\\n\\u0001é\"],\"u\":18446744073709551615}");
  CHECK(dump_json(parse_json(text, "m")) == text);
  CHECK(dump_json(parse_json("{\"a\":[],\"b\":{\"c\":1}}", "m"), 2) ==
        "{\n  \"a\": [],\n  \"b\": {\n    \"c\": 1\n  }\n}");
  CHECK_THROWS_AS(dump_json(Json("\xff")), FormatError);
}

TEST_CASE("a JSON cursor names the place of what it refuses") {
  const Json root =
      parse_json(R"({"tensors": [{"shape": [2, -1], "name": "w", "scale": "inf", "on": true}]})", "m.json");
  const JsonCursor tensor = JsonCursor(root, "m.json").at("tensors").at(0);
  CHECK(tensor.at("name").string() == "w");
  CHECK(tensor.at("shape").at(0).integer(0, 4) == 2);
  CHECK(std::isinf(tensor.at("scale").number()));
  CHECK(tensor.at("on").boolean());
  CHECK(tensor.has("shape"));
  CHECK_FALSE(tensor.has("dtype"));
  CHECK(tensor.members().size() == 4);
  const auto refused = [](auto&& call) {
    try {
      call();
    } catch (const FormatError& error) {
      return std::string(error.what());
    }
    return std::string("no FormatError");
  };
  CHECK(refused([&] { tensor.at("shape").at(1).unsigned_integer(9); }) ==
        "m.json: at tensors/0/shape/1: expected an integer from 0 to 9, got -1");
  CHECK(refused([&] { tensor.at("dtype"); }) == "m.json: at tensors/0: key \"dtype\" is missing");
  CHECK(refused([&] { tensor.at("shape").at(2); }).find("got 2") != std::string::npos);
  CHECK(refused([&] { tensor.at("name").at("x"); }).find("got string \"w\"") != std::string::npos);
  CHECK(refused([&] { tensor.at("name").number(); }).find("expected a number") != std::string::npos);
}

TEST_CASE("the UTF-8 check finds the first bad byte") {
  std::size_t bad = 99;
  CHECK(is_utf8("aé€😀"));
  CHECK_FALSE(is_utf8("ab\xc0\xaf", &bad));
  CHECK(bad == 2);
  CHECK_FALSE(is_utf8("\xed\xa0\x80"));
  CHECK_FALSE(is_utf8("\xf4\x90\x80\x80"));
  CHECK_FALSE(is_utf8("\xe2\x82"));
  CHECK_FALSE(is_utf8("\xf0\x80\x80\x80"));
}

}  // namespace
