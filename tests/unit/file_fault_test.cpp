// Faults and power losses: that the in-memory file system models them, and that an atomic write survives all of them.
#include "core/base/file_fault.h"

#include <cerrno>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "core/base/file.h"
#include "core/base/file_memory.h"

namespace castor {
namespace {

constexpr Unsynced kOutcomes[] = {Unsynced::dropped, Unsynced::kept, Unsynced::random, Unsynced::torn};

void write_at(FileSystem& files, const std::string& path, OpenMode mode, std::string_view text, std::uint64_t offset,
              bool sync) {
  File file = File::open(path, mode, files);
  file.write_exact(as_byte_span(text), offset);
  if (sync) file.sync();
}

std::string text_of(FileSystem& files, const std::string& path) {
  return exists(path, files) ? read_text_file(path, 1 << 30, files) : "(missing)";
}

int code_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const IoError& error) {
    return error.code;
  }
  return 0;
}

TEST_CASE("the in-memory file system behaves as the operating system's does") {
  MemoryFileSystem files;
  make_directories("/work/run", files);
  write_file_atomically("/work/run/a", "first", files);
  CHECK(text_of(files, "work/./run/../run/a") == "first");
  CHECK(code_of([&] { File::open("/work/none/a", OpenMode::create, files); }) == ENOENT);
  CHECK(code_of([&] { File::open("/work/run/a/b", OpenMode::create, files); }) == ENOTDIR);
  CHECK(code_of([&] { File::open("/work/run", OpenMode::read, files); }) == EISDIR);
  CHECK(code_of([&] { File::open("/work/run/a", OpenMode::create_new, files); }) == EEXIST);
  CHECK(code_of([&] { rename_file("/work/run/a", "/work/run", files); }) == EISDIR);
  CHECK(code_of([&] { rename_file("/work", "/work/run/below", files); }) == EINVAL);
  CHECK(files.remove_directory("/work/run") == ENOTEMPTY);
  CHECK(files.remove_directory("/") == EBUSY);
  rename_file("/work/run", "/moved", files);
  CHECK(text_of(files, "/moved/a") == "first");
  CHECK(MappedFile::open("/moved/a", files).bytes().size() == 5);
  const File open_file = File::open("/moved/a", OpenMode::read, files);
  CHECK(remove_tree("/moved", files));
  CHECK(open_file.size() == 5);  // an open file outlives its name
  CHECK(list_directory("/", files) == std::vector<DirectoryEntry>{{"work", FileKind::directory}});
}

TEST_CASE("a power loss keeps synced bytes under synced names and drops the rest as told") {
  MemoryFileSystem files;
  write_at(files, "/a", OpenMode::create, "synced", 0, true);
  sync_directory("/", files);
  write_at(files, "/a", OpenMode::append, "X", 0, false);
  write_at(files, "/b", OpenMode::create, "never named durably", 0, true);

  CHECK(text_of(*files.after_power_loss(Unsynced::dropped), "/a") == "synced");
  CHECK(text_of(*files.after_power_loss(Unsynced::dropped), "/b") == "(missing)");
  CHECK(text_of(*files.after_power_loss(Unsynced::kept), "/a") == "Xynced");
  CHECK(text_of(*files.after_power_loss(Unsynced::kept), "/b") == "never named durably");
  CHECK(text_of(files, "/a") == "Xynced");  // the running system goes on undisturbed

  std::set<std::string> seen;
  for (std::uint64_t seed = 0; seed < 64; ++seed) {
    const auto after = files.after_power_loss(Unsynced::random, seed);
    seen.insert(text_of(*after, "/a") + "|" + text_of(*after, "/b"));
    CHECK(text_of(*files.after_power_loss(Unsynced::random, seed), "/a") == text_of(*after, "/a"));
  }
  CHECK(seen.size() == 4);
}

TEST_CASE("a torn write survives by sectors of 512 bytes") {
  MemoryFileSystem files;
  write_at(files, "/a", OpenMode::create, std::string(2048, 'o'), 0, true);
  sync_directory("/", files);
  write_at(files, "/a", OpenMode::append, std::string(1024, 'n'), 256, false);
  std::set<std::string> seen;
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    seen.insert(text_of(*files.after_power_loss(Unsynced::torn, seed), "/a"));
  }
  CHECK(seen.size() == 8);  // sectors 0, 1 and 2 are touched
  const std::string middle_only = std::string(512, 'o') + std::string(512, 'n') + std::string(1024, 'o');
  CHECK(seen.contains(middle_only));
}

TEST_CASE("a rename is whole within a folder and may be half across folders") {
  MemoryFileSystem files;
  make_directories("/x", files);
  make_directories("/y", files);
  write_at(files, "/x/a", OpenMode::create, "a", 0, true);
  sync_directory("/x", files);
  const auto names = [](FileSystem& after, const std::string& first, const std::string& second) {
    return cat(exists(first, after), exists(second, after));
  };
  rename_file("/x/a", "/x/b", files);
  std::set<std::string> within;
  for (std::uint64_t seed = 0; seed < 64; ++seed) {
    within.insert(names(*files.after_power_loss(Unsynced::random, seed), "/x/a", "/x/b"));
  }
  CHECK(within == std::set<std::string>{"01", "10"});

  sync_directory("/x", files);
  rename_file("/x/b", "/y/b", files);
  std::set<std::string> across;
  for (std::uint64_t seed = 0; seed < 64; ++seed) {
    across.insert(names(*files.after_power_loss(Unsynced::random, seed), "/x/b", "/y/b"));
  }
  CHECK(across == std::set<std::string>{"00", "01", "10", "11"});
}

TEST_CASE("a folder's files need the folder's own name to be durable") {
  MemoryFileSystem files;
  REQUIRE(files.make_directory("/run") == 0);
  write_file_atomically("/run/a", "x", files);
  CHECK_FALSE(exists("/run", *files.after_power_loss(Unsynced::dropped)));
  sync_directory("/", files);
  CHECK(text_of(*files.after_power_loss(Unsynced::dropped), "/run/a") == "x");

  make_directories("/deep/er", files);
  CHECK(is_directory("/deep/er", *files.after_power_loss(Unsynced::dropped)));
}

TEST_CASE("a full disk takes what fits, then reports what was needed") {
  MemoryFileSystem files;
  write_file_atomically("/old", std::string(600, 'o'), files);
  files.set_capacity(1000);
  CHECK(free_bytes("/", files) == 400);
  try {
    write_file_atomically("/new", std::string(1500, 'n'), files);
    FAIL("the disk was full");
  } catch (const IoError& error) {
    CHECK(error.code == ENOSPC);
    CHECK(error.path == "/new");
    const std::string_view text = error.what();
    CHECK(text.find("400 of 1500 bytes") != text.npos);
    CHECK(text.find("1100 more bytes were needed") != text.npos);
  }
  CHECK(list_directory("/", files) == std::vector<DirectoryEntry>{{"old", FileKind::file}});
  CHECK(free_bytes("/", files) == 400);
  write_at(files, "/old", OpenMode::append, std::string(600, 'x'), 0, false);  // what is there may be overwritten
}

TEST_CASE("the fault layer logs every operation in order") {
  MemoryFileSystem memory;
  FaultFileSystem files(memory);
  write_file_atomically("/a", "12345", files);
  std::string log;
  for (const FileOperation& operation : files.log()) log += cat(file_operation_name(operation.kind), " ");
  CHECK(log == "open write sync close rename sync_directory ");
  CHECK(files.log()[1].bytes == 5);
  CHECK(files.log()[4].target == "/a");
  CHECK(files.operations() == 6);
}

TEST_CASE("every operation can be failed, and its error says which it was and what to do") {
  struct Case {
    FileOperationKind kind;
    int error;
    std::function<void(FileSystem&)> action;
    std::string_view says;
  };
  const auto open = [](FileSystem& files) { return File::open("/d/a", OpenMode::read, files); };
  std::vector<std::byte> out(3);
  const Case cases[] = {
      {FileOperationKind::open, EMFILE, [&](FileSystem& files) { open(files); }, "open \"/d/a\": Too many open files"},
      {FileOperationKind::open, EACCES, [&](FileSystem& files) { open(files); }, "change the permissions"},
      {FileOperationKind::open, ELOOP, [&](FileSystem& files) { open(files); }, "symbolic links"},
      {FileOperationKind::open, EROFS, [](FileSystem& files) { File::open("/d/b", OpenMode::append, files); },
       "open for appending \"/d/b\": Read-only"},
      {FileOperationKind::read, EIO, [&](FileSystem& files) { open(files).read_exact(out, 0); },
       "read \"/d/a\": Input/output error (EIO) after 0 of 3 bytes at offset 0; the device failed"},
      {FileOperationKind::size, ESTALE, [&](FileSystem& files) { open(files).size(); }, "network file system"},
      {FileOperationKind::map, ENOMEM, [](FileSystem& files) { MappedFile::open("/d/a", files); }, "map \"/d/a\""},
      {FileOperationKind::sync, EIO, [&](FileSystem& files) { open(files).sync(); }, "sync \"/d/a\""},
      {FileOperationKind::close, EDQUOT, [&](FileSystem& files) { open(files).close(); }, "close \"/d/a\""},
      {FileOperationKind::status, EACCES, [](FileSystem& files) { exists("/d/a", files); }, "look up \"/d/a\""},
      {FileOperationKind::status, EACCES, [](FileSystem& files) { is_directory("/d", files); }, "look up \"/d\""},
      {FileOperationKind::rename, EXDEV, [](FileSystem& files) { rename_file("/d/a", "/b", files); },
       "rename \"/d/a\" to \"/b\": Invalid cross-device link (EXDEV); the two paths"},
      {FileOperationKind::unlink, EROFS, [](FileSystem& files) { remove_file("/d/a", files); }, "remove \"/d/a\""},
      {FileOperationKind::unlink, EROFS, [](FileSystem& files) { remove_tree("/d", files); }, "remove \"/d\""},
      {FileOperationKind::make_directory, ENAMETOOLONG, [](FileSystem& files) { make_directories("/e", files); },
       "choose a shorter path"},
      {FileOperationKind::remove_directory, ENOTEMPTY, [](FileSystem& files) { remove_tree("/d", files); },
       "another program may be writing"},
      {FileOperationKind::list, EIO, [](FileSystem& files) { list_directory("/d", files); }, "list \"/d\""},
      {FileOperationKind::sync_directory, EIO, [](FileSystem& files) { sync_directory("/d", files); },
       "sync the folder"},
      {FileOperationKind::free_bytes, EIO, [](FileSystem& files) { free_bytes("/d", files); }, "free space of \"/d\""},
  };
  const auto prepare = [](MemoryFileSystem& memory) {
    make_directories("/d", memory);
    write_file_atomically("/d/a", "abc", memory);
  };
  for (const Case& test : cases) {
    CAPTURE(std::string(test.says));
    MemoryFileSystem plain;
    prepare(plain);
    FaultFileSystem counted(plain);
    test.action(counted);
    const std::vector<FileOperation> log = counted.log();
    const auto target = std::find_if(log.begin(), log.end(),
                                     [&test](const FileOperation& operation) { return operation.kind == test.kind; });
    REQUIRE(target != log.end());

    MemoryFileSystem memory;
    prepare(memory);
    FaultFileSystem files(memory);
    files.inject({static_cast<std::uint64_t>(target - log.begin()), FaultKind::error, test.error});
    try {
      test.action(files);
      FAIL("no error");
    } catch (const IoError& error) {
      const std::string text = error.what();
      INFO(text);
      CHECK(error.code == test.error);
      CHECK(text.find(test.says) != std::string::npos);
    }
  }
}

TEST_CASE("emptying a file is a change that a power loss may drop") {
  MemoryFileSystem files;
  write_at(files, "/a", OpenMode::create, "old and long", 0, true);
  sync_directory("/", files);
  write_at(files, "/a", OpenMode::create, "new", 0, false);
  CHECK(text_of(files, "/a") == "new");
  std::set<std::string> seen;
  for (std::uint64_t seed = 0; seed < 64; ++seed)
    seen.insert(text_of(*files.after_power_loss(Unsynced::random, seed), "/a"));
  CHECK(seen == std::set<std::string>{"", "new", "old and long", "new and long"});
}

TEST_CASE("interrupted and short transfers are carried on without anyone noticing") {
  const std::string text(1000, 't');
  // open, write, sync, close and sync_directory; Linux never interrupts a rename
  for (const std::uint64_t at : {0, 1, 2, 3, 5}) {
    for (const FaultKind kind : {FaultKind::error, FaultKind::short_transfer}) {
      CAPTURE(at);
      MemoryFileSystem memory;
      FaultFileSystem files(memory);
      files.inject({at, kind, EINTR});
      write_file_atomically("/a", text, files);
      CHECK(text_of(memory, "/a") == text);
    }
  }
  MemoryFileSystem memory;
  write_file_atomically("/a", text, memory);
  FaultFileSystem files(memory);
  files.inject({1, FaultKind::error, EINTR});
  for (std::uint64_t at = 2; at < 8; ++at) files.inject({at, FaultKind::short_transfer, 0});
  const File file = File::open("/a", OpenMode::read, files);
  std::vector<std::byte> out(text.size());
  file.read_exact(out, 0);
  CHECK(std::ranges::equal(out, as_byte_span(text)));
}

TEST_CASE("a failure at any operation of an atomic write leaves the old or the new file, and nothing else") {
  for (const int error : {EIO, ENOSPC}) {
    for (std::uint64_t at = 0; at < 6; ++at) {
      CAPTURE(at);
      MemoryFileSystem memory;
      write_file_atomically("/a", "old", memory);
      FaultFileSystem files(memory);
      files.inject({at, FaultKind::error, error});
      CHECK(code_of([&] { write_file_atomically("/a", "newer", files); }) == error);
      CHECK(text_of(memory, "/a") == (at < 5 ? "old" : "newer"));
      CHECK(list_directory("/", memory).size() == 1);
    }
  }
}

// Replaces "/a" with the power cut at operation `cut`, faults added, and returns what each kind of loss leaves there.
std::set<std::string> after_power_cut(std::uint64_t cut, const std::vector<Fault>& faults,
                                      const std::string& new_text) {
  MemoryFileSystem memory;
  write_file_atomically("/a", "old", memory);
  FaultFileSystem files(memory);
  for (const Fault& fault : faults) files.inject(fault);
  files.inject({cut, FaultKind::power_cut});
  const int code = code_of([&] { write_file_atomically("/a", new_text, files); });
  CHECK((code == 0) == (files.operations() <= cut));
  std::set<std::string> left;
  for (const Unsynced outcome : kOutcomes) {
    for (std::uint64_t seed = 0; seed < 16; ++seed) {
      left.insert(text_of(*memory.after_power_loss(outcome, seed), "/a"));
    }
  }
  return left;
}

TEST_CASE("a power loss at any operation of an atomic write leaves the old or the new contents in full") {
  const std::string new_text(3000, 'n');
  constexpr std::uint64_t kOperations = 6;
  for (std::uint64_t cut = 0; cut <= kOperations; ++cut) {
    CAPTURE(cut);
    for (const std::string& left : after_power_cut(cut, {}, new_text)) CHECK((left == "old" || left == new_text));
  }
  CHECK(after_power_cut(kOperations, {}, new_text) == std::set<std::string>{new_text});
}

TEST_CASE("without either of its syncs an atomic write would not survive a power loss") {
  const std::string new_text(3000, 'n');
  constexpr std::uint64_t kSync = 2;
  constexpr std::uint64_t kDirectorySync = 5;
  const auto without_file_sync = after_power_cut(6, {{kSync, FaultKind::lost_sync}}, new_text);
  CHECK(without_file_sync.contains(""));  // the new name stands over contents that never arrived
  const auto without_directory_sync = after_power_cut(6, {{kDirectorySync, FaultKind::lost_sync}}, new_text);
  CHECK(without_directory_sync.contains("old"));  // reported as written, then gone
}

}  // namespace
}  // namespace castor
