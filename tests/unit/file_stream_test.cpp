// Streams: that every size around block and buffer boundaries comes back equal, that faults at every operation end in
// IoError, what a power loss leaves, and what readers fetch for which ranges.
#include "core/base/file_stream.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "core/base/file_fault.h"
#include "core/base/file_memory.h"
#include "tests/support/temp_dir.h"

namespace castor {
namespace {

constexpr std::size_t kBuffer = 3 * kDirectAlignment;
constexpr StreamOptions kSmall{kBuffer, 3, true, 2};

std::vector<std::byte> pattern(std::size_t bytes) {
  std::vector<std::byte> data(bytes);
  std::uint32_t state = 7;
  for (std::byte& byte : data) {
    state = state * 1664525 + 1013904223;
    byte = static_cast<std::byte>(state >> 24);
  }
  return data;
}

// Writes `data` in pieces of growing length, in turn by write and in place.
void write_stream(FileSystem& files, const std::string& path, std::span<const std::byte> data,
                  const StreamOptions& options = kSmall) {
  StreamWriter writer(path, options, files);
  writer.expect_bytes(data.size());
  std::size_t done = 0;
  for (std::size_t length = 1; done < data.size(); length = length * 3 + 1) {
    const auto piece = data.subspan(done, std::min(length, data.size() - done));
    const std::span<std::byte> room = writer.space();
    const std::size_t in_place = std::min(room.size(), piece.size() / 2);
    std::memcpy(room.data(), piece.data(), in_place);
    writer.advance(in_place);
    writer.write(piece.subspan(in_place));
    done += piece.size();
    REQUIRE(writer.position() == done);
  }
  writer.finish();
}

std::vector<std::byte> contents(FileSystem& files, const std::string& path) {
  const File file = File::open(path, OpenMode::read, files);
  std::vector<std::byte> data(file.size());
  file.read_exact(data, 0);
  return data;
}

// Reads ranges and checks that each comes in order and whole.
std::vector<std::vector<std::byte>> read_ranges(StreamReader& reader, const std::vector<FileRange>& ranges) {
  std::vector<std::vector<std::byte>> got(ranges.size());
  std::size_t last = 0;
  reader.read(ranges, [&](std::size_t range, std::uint64_t at, std::span<const std::byte> bytes) {
    REQUIRE(range >= last);
    REQUIRE(at == got.at(range).size());
    last = range;
    got[range].insert(got[range].end(), bytes.begin(), bytes.end());
  });
  return got;
}

int code_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const IoError& error) {
    return error.code;
  }
  return 0;
}

const std::size_t kSizes[] = {0,           1,
                              4095,        4096,
                              4097,        kBuffer - 1,
                              kBuffer,     kBuffer + 1,
                              2 * kBuffer, 3 * kBuffer - 1,
                              3 * kBuffer, 3 * kBuffer + 1,
                              7 * kBuffer, 300'000,
                              10 * kBuffer};

void check_round_trips(FileSystem& files, const std::string& path) {
  for (const std::size_t size : kSizes) {
    for (const bool direct : {true, false}) {
      CAPTURE(size);
      CAPTURE(direct);
      StreamOptions options = kSmall;
      options.direct = direct;
      const std::vector<std::byte> data = pattern(size);
      write_stream(files, path, data, options);
      CHECK(contents(files, path) == data);
      StreamReader reader(path, options, files);
      CHECK(reader.size() == size);
      CHECK(read_ranges(reader, {{0, size}}).front() == data);
      CHECK(reader.bytes_asked() == size);
      std::vector<std::byte> out(size / 2);
      reader.read(size / 3, out);
      CHECK(std::equal(out.begin(), out.end(), data.begin() + static_cast<std::ptrdiff_t>(size / 3)));
    }
  }
}

TEST_CASE("what a stream writes is what a file and a stream read, at every size, on the disk and in memory") {
  const test::TempDir folder;
  check_round_trips(posix_file_system(), (folder.path() / "a").string());
  const test::TempDir in_memory = test::TempDir::in_memory();
  check_round_trips(posix_file_system(), (in_memory.path() / "a").string());
  MemoryFileSystem files;
  check_round_trips(files, "/a");
}

TEST_CASE("large direct reads give the same bytes as ordinary ones and round only to blocks") {
  const test::TempDir folder;
  const std::string path = (folder.path() / "a").string();
  const std::vector<std::byte> data = pattern((std::size_t{3} << 20) + 777);
  StreamOptions options{std::size_t{512} << 10, 4, true, 3};
  write_stream(posix_file_system(), path, data, options);
  StreamReader reader(path, options);
  const FileRange odd{12'345, (std::size_t{2} << 20) + 5};
  const FileRange tail{data.size() - (std::size_t{1} << 19) - 3, (std::size_t{1} << 19) + 3};
  const auto got = read_ranges(reader, {odd, {77, 0}, tail});
  CHECK(std::equal(got[0].begin(), got[0].end(), data.begin() + 12'345));
  CHECK(got[0].size() == odd.bytes);
  CHECK(got[1].empty());
  CHECK(std::equal(got[2].begin(), got[2].end(), data.end() - static_cast<std::ptrdiff_t>(tail.bytes)));
  CHECK(got[2].size() == tail.bytes);
  CHECK(reader.bytes_asked() == odd.bytes + tail.bytes);
  CHECK(reader.bytes_fetched() >= reader.bytes_asked());
  CHECK(reader.bytes_fetched() <= reader.bytes_asked() + 2 * 2 * kDirectAlignment);
}

TEST_CASE("direct transfers that are not aligned go through the cache") {
  const test::TempDir folder;
  const std::vector<std::byte> data = pattern(10'001);
  File file = File::open((folder.path() / "a").string(), OpenMode::create);
  file.set_direct(true);
  file.write_exact(data, 3);
  file.set_direct(true);
  std::vector<std::byte> out(data.size());
  file.read_exact(out, 3);
  CHECK(out == data);
  AlignedBuffer blocks(5000);
  CHECK(blocks.bytes().size() == 8192);
  file.set_direct(true);
  CHECK(file.read_at_least(blocks.bytes(), 4096, 10'004 - 4096) == 10'004 - 4096);
  CHECK(std::equal(data.begin() + 4093, data.end(), blocks.bytes().begin()));
  CHECK(code_of([&] { file.read_at_least(blocks.bytes(), 4096, 10'005 - 4096); }) == ENODATA);
}

TEST_CASE("small ranges are fetched exactly, neighbours together, overlapping and falling ones correctly") {
  MemoryFileSystem below;
  const std::vector<std::byte> data = pattern(100'000);
  write_stream(below, "/a", data);
  FaultFileSystem files(below);
  StreamReader reader("/a", kSmall, files);
  const std::uint64_t before = files.operations();
  const std::vector<FileRange> ranges = {{10, 5}, {15, 100}, {115, 0}, {115, 1}, {90'000, 10'000}, {500, 3}, {501, 9}};
  const auto got = read_ranges(reader, ranges);
  for (std::size_t i = 0; i < ranges.size(); ++i) {
    CAPTURE(i);
    REQUIRE(got[i].size() == ranges[i].bytes);
    CHECK(std::equal(got[i].begin(), got[i].end(), data.begin() + static_cast<std::ptrdiff_t>(ranges[i].offset)));
  }
  CHECK(reader.bytes_asked() == 106 + 10'000 + 12);
  CHECK(reader.bytes_fetched() == 106 + 10'000 + 10);
  CHECK(files.operations() - before == 3);
  read_ranges(reader, {});
  CHECK(files.operations() - before == 3);
}

TEST_CASE("a range that the file does not hold, or no longer holds, is ENODATA") {
  MemoryFileSystem files;
  write_stream(files, "/a", pattern(50'000));
  StreamReader reader("/a", kSmall, files);
  const auto read = [&](FileRange range) { return code_of([&] { read_ranges(reader, {{0, 10}, range}); }); };
  CHECK(read({49'999, 1}) == 0);
  CHECK(read({50'000, 0}) == 0);
  CHECK(read({60'000, 0}) == 0);
  CHECK(read({49'999, 2}) == ENODATA);
  CHECK(read({60'000, 1}) == ENODATA);
  CHECK(read({1, ~std::uint64_t{0}}) == ENODATA);
  CHECK(read({~std::uint64_t{0}, 1}) == ENODATA);
  write_stream(files, "/a", pattern(20'000));
  CHECK(read({0, 20'000}) == 0);
  CHECK(read({0, 50'000}) == ENODATA);
}

TEST_CASE("what a sink throws reaches the caller, and the reader goes on working") {
  MemoryFileSystem files;
  const std::vector<std::byte> data = pattern(20 * kBuffer);
  write_stream(files, "/a", data);
  StreamReader reader("/a", kSmall, files);
  const FileRange all{0, data.size()};
  const auto refuse = [](std::size_t, std::uint64_t at, std::span<const std::byte>) {
    if (at >= 2 * kBuffer) throw std::runtime_error("enough");
  };
  CHECK_THROWS_WITH_AS(reader.read({&all, 1}, refuse), "enough", std::runtime_error);
  CHECK(read_ranges(reader, {all}).front() == data);
}

TEST_CASE("the operations of a stream writer are the same every time, and each one's failure is an IoError") {
  const std::vector<std::byte> data = pattern(8 * kBuffer + 5000);
  std::vector<std::pair<FileOperationKind, std::uint64_t>> operations;
  for (int run = 0; run < 5; ++run) {
    MemoryFileSystem below;
    FaultFileSystem files(below);
    write_stream(files, "/a", data);
    std::vector<std::pair<FileOperationKind, std::uint64_t>> seen;
    for (const FileOperation& operation : files.log()) seen.emplace_back(operation.kind, operation.offset);
    if (run == 0) operations = seen;
    CHECK(seen == operations);
  }
  // open, 8 buffers, the whole blocks and the end of the last one, sync, close
  REQUIRE(operations.size() == 13);

  for (std::uint64_t number = 0; number < operations.size(); ++number) {
    CAPTURE(number);
    for (const int error : {EIO, ENOSPC}) {
      MemoryFileSystem below;
      FaultFileSystem files(below);
      files.inject({number, FaultKind::error, error});
      CHECK(code_of([&] { write_stream(files, "/a", data); }) == error);
      const std::vector<FileOperation> log = files.log();  // beside the stream's there are the error text's look-ups
      const auto of_stream = [](const FileOperation& operation) {
        return operation.kind != FileOperationKind::status && operation.kind != FileOperationKind::free_bytes;
      };
      CHECK(static_cast<std::uint64_t>(std::count_if(log.begin(), log.end(), of_stream)) == number + 1);
    }
    for (const FaultKind harmless : {FaultKind::short_transfer, FaultKind::lost_sync}) {
      MemoryFileSystem below;
      FaultFileSystem files(below);
      files.inject({number, harmless});
      write_stream(files, "/a", data);
      CHECK(contents(below, "/a") == data);
    }
    MemoryFileSystem below;
    FaultFileSystem files(below);
    files.inject({number, FaultKind::error, EINTR});  // asked again, and a close that says EINTR has closed
    write_stream(files, "/a", data);
    CHECK(contents(below, "/a") == data);
  }
}

TEST_CASE("short and interrupted transfers on the disk are carried on although their rest is not aligned") {
  const test::TempDir folder;
  const std::string path = (folder.path() / "a").string();
  const std::vector<std::byte> data = pattern(2 * kBuffer + 5000);
  for (std::uint64_t number = 1; number < 6; ++number) {
    CAPTURE(number);
    FaultFileSystem files(posix_file_system());
    files.inject({number, FaultKind::short_transfer});
    write_stream(files, path, data);
    CHECK(contents(files, path) == data);
  }
}

TEST_CASE("each failure of a read is an IoError and a short one is carried on") {
  MemoryFileSystem below;
  const std::vector<std::byte> data = pattern(9 * kBuffer + 5000);
  write_stream(below, "/a", data);
  std::vector<std::byte> out(data.size());
  for (std::uint64_t number = 0; number < 12; ++number) {  // open, size, 10 reads
    CAPTURE(number);
    FaultFileSystem failing(below);
    failing.inject({number, FaultKind::error, EIO});
    CHECK(code_of([&] { StreamReader("/a", kSmall, failing).read(0, out); }) == EIO);
    FaultFileSystem shorter(below);
    shorter.inject({number, FaultKind::short_transfer});
    std::fill(out.begin(), out.end(), std::byte{0});
    StreamReader("/a", kSmall, shorter).read(0, out);
    CHECK(out == data);
  }
}

TEST_CASE("a failed write surfaces at a later call, again at finish, and stops the writing") {
  MemoryFileSystem below;
  FaultFileSystem files(below);
  files.inject({2, FaultKind::error, EIO});  // the second buffer
  StreamWriter writer("/a", kSmall, files);
  const std::vector<std::byte> data = pattern(kBuffer);
  int writes = 0;
  const auto go_on = [&] {
    for (; writes < 100; ++writes) writer.write(data);
  };
  CHECK(code_of(go_on) == EIO);
  CHECK(writes <= 5);  // those that the ring held
  CHECK(code_of([&] { writer.finish(); }) == EIO);
  CHECK(files.operations() == 3);
}

TEST_CASE("a full disk is ENOSPC with the bytes that were still needed") {
  MemoryFileSystem files;
  files.set_capacity(4 * kBuffer + 100);
  try {
    write_stream(files, "/a", pattern(20 * kBuffer));
    FAIL("the disk was full");
  } catch (const IoError& error) {
    CHECK(error.code == ENOSPC);
    CHECK(error.path == "/a");
    CHECK(std::string(error.what()).find(cat(16 * kBuffer - 100)) != std::string::npos);
  }
}

TEST_CASE("a power loss after finish loses nothing, and before it may lose all") {
  const std::vector<std::byte> data = pattern(5 * kBuffer + 4097);
  MemoryFileSystem files;
  std::optional<StreamWriter> writer(std::in_place, "/a", kSmall, files);
  writer->write(data);
  sync_directory("/", files);
  CHECK(contents(*files.after_power_loss(Unsynced::dropped), "/a").empty());
  writer->finish();
  for (const Unsynced outcome : {Unsynced::dropped, Unsynced::kept, Unsynced::random, Unsynced::torn}) {
    CHECK(contents(*files.after_power_loss(outcome, 3), "/a") == data);
  }
}

TEST_CASE("a stream that is destroyed unfinished stops, does not sync and does not write its last bytes") {
  MemoryFileSystem below;
  FaultFileSystem files(below);
  {
    StreamWriter writer("/a", kSmall, files);
    writer.write(pattern(6 * kBuffer + 10));
    sync_directory("/", below);
    StreamWriter moved = std::move(writer);
    CHECK(moved.position() == 6 * kBuffer + 10);
  }
  for (const FileOperation& operation : files.log()) {
    CHECK((operation.kind == FileOperationKind::open || operation.kind == FileOperationKind::write));
  }
  CHECK(contents(below, "/a").size() <= 6 * kBuffer);
  CHECK(contents(*below.after_power_loss(Unsynced::dropped), "/a").empty());
}

TEST_CASE("a stream writes new files only, and says what was misused") {
  MemoryFileSystem files;
  write_stream(files, "/a", pattern(10));
  CHECK(code_of([&] { StreamWriter("/a", kSmall, files, OpenMode::create_new); }) == EEXIST);
  CHECK(code_of([&] { StreamWriter("/none/a", kSmall, files); }) == ENOENT);
  CHECK(code_of([&] { StreamReader("/b", kSmall, files); }) == ENOENT);
  CHECK_THROWS_AS(StreamWriter("/a", kSmall, files, OpenMode::append), InternalError);
  StreamWriter writer("/c", kSmall, files);
  CHECK_THROWS_AS(writer.advance(writer.space().size() + 1), InternalError);
  writer.write("text");
  writer.finish();
  CHECK_THROWS_AS(writer.finish(), InternalError);
  CHECK(read_text_file("/c", 100, files) == "text");
}

}  // namespace
}  // namespace castor
