// Files on the operating system: what is promised above the seam, and that its errors tell the reader what to do.
// Delicate: tests may run as root, who is refused nothing, so refusals come from paths that no one may use.
#include "core/base/file.h"

#include <algorithm>
#include <cerrno>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/file_error.h"
#include "core/base/file_fault.h"
#include "tests/support/temp_dir.h"

namespace castor {
namespace {

std::vector<std::byte> bytes_of(std::string_view text) {
  const auto bytes = as_byte_span(text);
  return {bytes.begin(), bytes.end()};
}

std::string read_back(const std::string& path) { return read_text_file(path); }

template <class Action>
IoError io_error_of(Action&& action) {
  try {
    action();
  } catch (const IoError& error) {
    return error;
  }
  FAIL("no IoError was thrown");
  return {"", "", 0};
}

bool says(const Error& error, std::string_view part) {
  return std::string_view(error.what()).find(part) != std::string_view::npos;
}

TEST_CASE("what is written at offsets is read back, and gaps read as zeros") {
  const test::TempDir folder;
  const std::string path = join_path(folder.path().string(), "data");
  File file = File::open(path, OpenMode::create);
  file.write_exact(as_byte_span("world"), 7);
  file.write_exact(as_byte_span("hello"), 0);
  CHECK(file.size() == 12);
  file.sync();
  file.close();

  const File again = File::open(path, OpenMode::read);
  std::vector<std::byte> all(12);
  again.read_exact(all, 0);
  CHECK(all == bytes_of(std::string_view("hello\0\0world", 12)));
  std::vector<std::byte> tail(10);
  CHECK(again.read_up_to(tail, 9) == 3);
  CHECK(again.read_up_to(tail, 12) == 0);
  CHECK(again.read_up_to(tail, std::uint64_t{1} << 63) == 0);
}

TEST_CASE("reading past the end says how much was expected and how much there was") {
  const test::TempDir folder;
  const std::string path = join_path(folder.path().string(), "short");
  write_file_atomically(path, "12345");
  const File file = File::open(path, OpenMode::read);
  std::vector<std::byte> out(4);
  const IoError error = io_error_of([&] { file.read_exact(out, 3); });
  CHECK(error.code == ENODATA);
  CHECK(error.path == path);
  CHECK(says(error, "expected 4 bytes at offset 3, the file ends after 2"));
}

TEST_CASE("opening for append keeps the contents, for create empties them, for create_new refuses") {
  const test::TempDir folder;
  const std::string path = join_path(folder.path().string(), "log");
  {
    File file = File::open(path, OpenMode::append);
    BufferedWriter writer(file, file.size());
    writer.write("one ");
    writer.flush();
  }
  {
    File file = File::open(path, OpenMode::append);
    BufferedWriter writer(file, file.size());
    writer.write("two");
    writer.flush();
  }
  CHECK(read_back(path) == "one two");
  CHECK(io_error_of([&] { File::open(path, OpenMode::create_new); }).code == EEXIST);
  File::open(path, OpenMode::create);
  CHECK(read_back(path).empty());
}

TEST_CASE("a closed or moved-from file refuses to be used") {
  const test::TempDir folder;
  const std::string path = join_path(folder.path().string(), "data");
  File file = File::open(path, OpenMode::create);
  File moved = std::move(file);
  CHECK_THROWS_AS(file.size(), InternalError);  // NOLINT: using it after the move is the point
  moved.close();
  CHECK_THROWS_AS(moved.sync(), InternalError);
}

TEST_CASE("a file opened for reading cannot be written") {
  const test::TempDir folder;
  const std::string path = join_path(folder.path().string(), "data");
  write_file_atomically(path, "x");
  File file = File::open(path, OpenMode::read);
  CHECK(io_error_of([&] { file.write_exact(as_byte_span("y"), 0); }).code == EBADF);
}

TEST_CASE("the buffered writer never holds more than its buffer and keeps the order of any sizes") {
  const test::TempDir folder;
  const std::string path = join_path(folder.path().string(), "data");
  FaultFileSystem files(posix_file_system());
  File file = File::open(path, OpenMode::create, files);
  BufferedWriter writer(file, 0, 64);
  std::string expected;
  for (std::size_t i = 0; i < 200; ++i) {
    const std::string piece(i % 97, static_cast<char>('a' + i % 26));
    writer.write(piece);
    expected += piece;
    REQUIRE(writer.position() == expected.size());
    REQUIRE(expected.size() - file.size() <= 64);
  }
  writer.flush();
  CHECK(read_back(path) == expected);
}

TEST_CASE("what a buffered writer was not told to flush never reaches the file") {
  const test::TempDir folder;
  const std::string path = join_path(folder.path().string(), "data");
  {
    File file = File::open(path, OpenMode::create);
    BufferedWriter writer(file);
    writer.write("half a sentence");
  }
  CHECK(file_size(path) == 0);
}

TEST_CASE("a mapping shows the file and refuses ranges beyond it") {
  const test::TempDir folder;
  const std::string path = join_path(folder.path().string(), "data");
  write_file_atomically(path, "0123456789");
  const MappedFile file = MappedFile::open(path);
  CHECK(std::ranges::equal(file.bytes(), as_byte_span("0123456789")));
  CHECK(std::ranges::equal(file.range(3, 4), as_byte_span("3456")));
  CHECK(file.range(10, 0).empty());
  CHECK(io_error_of([&] { file.range(8, 3); }).code == ENODATA);
  CHECK(io_error_of([&] { file.range(11, 0); }).code == ENODATA);
  CHECK(io_error_of([&] { file.range(~std::uint64_t{0}, 2); }).code == ENODATA);

  write_file_atomically(path, "");
  CHECK(MappedFile::open(path).bytes().empty());
  CHECK(file.bytes().size() == 10);  // the old file lives as long as its mapping
}

TEST_CASE("an atomic write replaces the file and leaves nothing else behind") {
  const test::TempDir folder;
  const std::string path = join_path(folder.path().string(), "state.json");
  write_file_atomically(path, "old");
  write_file_atomically(path, [](BufferedWriter& writer) { writer.write("new and longer"); });
  CHECK(read_back(path) == "new and longer");
  CHECK(list_directory(folder.path().string()).size() == 1);
}

TEST_CASE("an atomic write that throws midway keeps the old file and removes the new one") {
  const test::TempDir folder;
  const std::string path = join_path(folder.path().string(), "state.json");
  write_file_atomically(path, "old");
  const auto broken = [](BufferedWriter& writer) {
    writer.write(std::string(3 << 20, 'x'));
    throw ShapeError("the tensor was not ready");
  };
  CHECK_THROWS_WITH_AS(write_file_atomically(path, broken), "the tensor was not ready", ShapeError);
  CHECK(read_back(path) == "old");
  CHECK(list_directory(folder.path().string()).size() == 1);
}

TEST_CASE("an atomic write works for the longest names and shows the target in its errors") {
  const test::TempDir folder;
  const std::string longest = join_path(folder.path().string(), std::string(255, 'n'));
  write_file_atomically(longest, "x");
  CHECK(read_back(longest) == "x");

  const std::string inside_file = join_path(longest, "state.json");
  const IoError error = io_error_of([&] { write_file_atomically(inside_file, "x"); });
  CHECK(error.path == inside_file);
  CHECK(error.code == ENOTDIR);

  const std::string nowhere = join_path(folder.path().string(), "a/b/state.json");
  const IoError missing = io_error_of([&] { write_file_atomically(nowhere, "x"); });
  CHECK(missing.code == ENOENT);
  CHECK(says(missing, cat("the nearest that does is \"", folder.path().string(), "\"")));

  make_directories(join_path(folder.path().string(), "folder"));
  const IoError onto_folder =
      io_error_of([&] { write_file_atomically(join_path(folder.path().string(), "folder"), "x"); });
  CHECK(onto_folder.code == EISDIR);
  CHECK(list_directory(folder.path().string()).size() == 2);
}

TEST_CASE("a full device ends in an error that says how many bytes were still needed") {
  // /dev/full takes no byte: the real errno of a full disk without filling one.
  File file = File::open("/dev/full", OpenMode::append);
  file.expect_bytes(1000);
  const IoError error = io_error_of([&] { file.write_exact(as_byte_span("hello"), 0); });
  CHECK(error.code == ENOSPC);
  CHECK(says(error, "(ENOSPC)"));
  CHECK(says(error, "0 of 5 bytes at offset 0"));
  CHECK(says(error, "1000 more bytes were needed"));
}

TEST_CASE("leftovers of killed programs are recognised and removed, other files are not") {
  const test::TempDir folder;
  const std::string root = folder.path().string();
  write_file_atomically(join_path(root, "keep"), "x");
  write_file_atomically(join_path(root, ".castor-tmp-12345-0"), "half");
  CHECK(is_temporary_name(".castor-tmp-12345-0"));
  CHECK_FALSE(is_temporary_name("keep"));
  CHECK(remove_temporary_files(root) == 1);
  CHECK(list_directory(root) == std::vector<DirectoryEntry>{{"keep", FileKind::file}});
}

TEST_CASE("folders are made with their parents, listed in order and removed with their contents") {
  const test::TempDir folder;
  const std::string root = folder.path().string();
  const std::string deep = join_path(root, "a/b/c/");
  make_directories(deep);
  make_directories(deep);
  CHECK(is_directory(deep));
  write_file_atomically(join_path(deep, "two"), "2");
  write_file_atomically(join_path(deep, "one"), "1");
  REQUIRE(::symlink(root.c_str(), join_path(deep, "up").c_str()) == 0);
  CHECK(list_directory(deep) ==
        std::vector<DirectoryEntry>{{"one", FileKind::file}, {"two", FileKind::file}, {"up", FileKind::other}});

  const std::string file = join_path(deep, "one");
  CHECK(io_error_of([&] { make_directories(file); }).code == ENOTDIR);
  CHECK(io_error_of([&] { make_directories(join_path(file, "x")); }).code == ENOTDIR);
  CHECK(io_error_of([&] { list_directory(file); }).code == ENOTDIR);

  write_file_atomically(join_path(root, "outside"), "stays");
  CHECK(remove_tree(join_path(root, "a")));
  CHECK_FALSE(remove_tree(join_path(root, "a")));
  CHECK(list_directory(root) == std::vector<DirectoryEntry>{{"outside", FileKind::file}});
}

TEST_CASE("removing a symbolic link to a folder leaves the folder alone") {
  const test::TempDir folder;
  const std::string root = folder.path().string();
  make_directories(join_path(root, "real"));
  write_file_atomically(join_path(root, "real/data"), "x");
  REQUIRE(::symlink(join_path(root, "real").c_str(), join_path(root, "link").c_str()) == 0);
  CHECK(remove_tree(join_path(root, "link")));
  CHECK(read_back(join_path(root, "real/data")) == "x");
}

TEST_CASE("names are looked up, renamed and removed") {
  const test::TempDir folder;
  const std::string from = join_path(folder.path().string(), "from");
  const std::string to = join_path(folder.path().string(), "to");
  write_file_atomically(from, "data");
  CHECK(exists(from));
  CHECK_FALSE(exists(to));
  CHECK_FALSE(exists(join_path(from, "below a file")));
  CHECK_FALSE(is_directory(from));
  CHECK(file_size(from) == 4);
  rename_file(from, to);
  CHECK_FALSE(exists(from));
  CHECK(read_back(to) == "data");
  CHECK(remove_file(to));
  CHECK_FALSE(remove_file(to));
  CHECK(io_error_of([&] { rename_file(from, to); }).code == ENOENT);
  CHECK(io_error_of([&] { file_size(to); }).code == ENOENT);
  CHECK(io_error_of([&] { file_size(folder.path().string()); }).code == EISDIR);
  CHECK(free_bytes(folder.path().string()) > 0);
}

TEST_CASE("a missing file, a folder, a pipe and a name with a zero byte are refused in words") {
  const test::TempDir folder;
  const std::string root = folder.path().string();
  const IoError missing = io_error_of([&] { File::open(join_path(root, "none"), OpenMode::read); });
  CHECK(missing.code == ENOENT);
  CHECK(says(missing, "No such file or directory (ENOENT); check the name"));
  CHECK(io_error_of([&] { File::open(root, OpenMode::read); }).code == EISDIR);

  const std::string pipe = join_path(root, "pipe");
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  const IoError no_file = io_error_of([&] { File::open(pipe, OpenMode::read); });  // and does not wait for a writer
  CHECK(no_file.code == EINVAL);
  CHECK(says(no_file, "expected a regular file"));

  write_file_atomically(join_path(root, "secret"), "x");
  const std::string tricked = join_path(root, std::string("secret\0.txt", 11));
  const IoError zero = io_error_of([&] { File::open(tricked, OpenMode::read); });
  CHECK(zero.code == ENOENT);
  CHECK(says(zero, "secret\\x00.txt"));
}

TEST_CASE("a read-only place is refused before anything is written") {
  const IoError error = io_error_of([] { make_directories("/proc/castor/work_dir"); });
  CHECK(error.path.starts_with("/proc/castor"));
  CHECK(says(error, "make the folder"));
}

TEST_CASE("a text is read whole up to its limit") {
  const test::TempDir folder;
  const std::string path = join_path(folder.path().string(), "text");
  const std::string text(200'000, 't');
  write_file_atomically(path, text);
  CHECK(read_text_file(path) == text);
  CHECK(read_text_file(path, text.size()) == text);
  CHECK(io_error_of([&] { read_text_file(path, text.size() - 1); }).code == EFBIG);
  CHECK_FALSE(read_text_file("/proc/self/status").empty());  // its size says 0
}

TEST_CASE("paths are taken apart and put together") {
  CHECK(directory_of("a/b") == "a");
  CHECK(directory_of("a/b/") == "a");
  CHECK(directory_of("a//b") == "a");
  CHECK(directory_of("a") == ".");
  CHECK(directory_of("/a") == "/");
  CHECK(directory_of("/") == "/");
  CHECK(directory_of("") == ".");
  CHECK(file_name_of("a/b") == "b");
  CHECK(file_name_of("a/b/") == "b");
  CHECK(file_name_of("/").empty());
  CHECK(join_path("a", "b") == "a/b");
  CHECK(join_path("a/", "b") == "a/b");
  CHECK(join_path("", "b") == "b");
  CHECK(join_path("a", "/b") == "/b");
}

TEST_CASE("names from files are shown harmlessly in errors") {
  CHECK(quote_name("weight") == "\"weight\"");
  CHECK(quote_name("a\"b\\c\n\x1b") == "\"a\\\"b\\\\c\\x0a\\x1b\"");
  CHECK(quote_name("abcdef", 3) == "\"abc\"... (6 bytes)");
  CHECK(errno_text(ENOSPC) == "No space left on device (ENOSPC)");
  CHECK(errno_text(123456) == "error 123456");
}

}  // namespace
}  // namespace castor
