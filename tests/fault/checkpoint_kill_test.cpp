// Real processes: a program that saves in a loop is killed at random moments, and ranks that are processes save and
// load together. Whatever a killed one had finished is there, bit-equal; what it had begun is skipped and cleaned up.
//
// Delicate: children are forked before this process has a second thread, and end by _exit: they must not run doctest's
// clean-up, nor remove the folder.
#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <set>
#include <thread>

#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include "formats/checkpoint_list.h"
#include "tests/support/checkpoint_model.h"
#include "tests/support/long_run.h"
#include "tests/support/temp_dir.h"

namespace castor {
namespace {

using formats::Checkpoint;
using formats::CheckpointList;
using test::CheckpointModel;

CheckpointModel model_of(std::uint64_t save_number) { return CheckpointModel::random(save_number, 20'000); }

// Two saves in three go into a new folder, one into the folder of the one before.
std::string folder_of(const std::string& run, std::uint64_t save_number) {
  return join_path(run, cat("iter_", save_number - (save_number % 3 == 0 ? 1 : 0)));
}

// Saves, points and prunes until killed; writes each save's number to `finished` once it has returned.
[[noreturn]] void save_forever(const std::string& run, int finished) {
  try {
    remove_temporary_files(run);
    for (std::uint64_t number = formats::list_checkpoints(run).next_save_number();; ++number) {
      const std::string folder = folder_of(run, number);
      StreamOptions stream;
      stream.buffer_bytes = 16384;
      model_of(number).save(folder, static_cast<int>(number % 4) + 1, number, number, posix_file_system(), stream);
      if (write(finished, &number, sizeof number) != sizeof number) _exit(3);
      write_file_atomically(join_path(run, "last_checkpoint"), file_name_of(folder));
      formats::Retention retention;
      retention.keep_last = 2;
      for (const std::string& name : formats::prunable_checkpoints(formats::list_checkpoints(run), retention)) {
        formats::remove_checkpoint(join_path(run, name));
      }
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "the saving process failed: %s\n", error.what());
    _exit(2);
  }
}

TEST_CASE("a program killed at any moment loses nothing that it had saved") {
  const test::TempDir folder = test::TempDir::in_memory();
  const std::string run = folder.path().string();
  const int kills = test::long_run() ? 200 : 10;
  std::mt19937_64 random(11);
  std::uint64_t last_finished = 0;
  int torn = 0, temporary = 0, wrong = 0;
  for (int kill_number = 0; kill_number < kills; ++kill_number) {
    int finished[2];
    REQUIRE(pipe(finished) == 0);
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      close(finished[0]);
      save_forever(run, finished[1]);
    }
    close(finished[1]);
    std::uint64_t number = 0;
    if (last_finished == 0) {  // let there be one
      REQUIRE(read(finished[0], &number, sizeof number) == sizeof number);
      last_finished = number;
    }
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 40'000));
    kill(child, SIGKILL);
    int status = 0;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    CHECK(WIFSIGNALED(status));
    while (read(finished[0], &number, sizeof number) == sizeof number) last_finished = number;
    close(finished[0]);

    const CheckpointList list = formats::list_checkpoints(run);
    torn += static_cast<int>(list.torn.size());
    for (const DirectoryEntry& entry : list_directory(run)) {
      if (is_temporary_name(entry.name)) ++temporary;
    }
    REQUIRE(!list.checkpoints.empty());
    CHECK(list.checkpoints.front().save_number >= last_finished);
    for (const formats::ListedCheckpoint& entry : list.checkpoints) {
      const Checkpoint checkpoint = Checkpoint::open(join_path(run, entry.name));
      if (model_of(entry.save_number).equals(checkpoint) && checkpoint.verify().empty()) continue;
      ++wrong;
    }
    const std::string pointer = read_text_file(join_path(run, "last_checkpoint"), 100);
    CHECK(std::any_of(list.checkpoints.begin(), list.checkpoints.end(),
                      [&pointer](const auto& entry) { return entry.name == pointer; }));
  }
  std::printf("SIGKILL: %d moments, %llu saves finished, %d torn folders skipped, %d lost or wrong\n", kills,
              static_cast<unsigned long long>(last_finished), torn, wrong);
  CHECK(wrong == 0);
}

// Runs `work(rank)` in a process of its own for each rank; true if all of them returned true.
template <class Work>
bool in_processes(int world_size, const Work& work) {
  std::vector<pid_t> children;
  for (int rank = 0; rank < world_size; ++rank) {
    const pid_t child = fork();
    if (child == 0) {
      bool good = false;
      try {
        good = work(rank);
      } catch (const std::exception& error) {
        std::fprintf(stderr, "rank %d failed: %s\n", rank, error.what());
      }
      _exit(good ? 0 : 1);
    }
    children.push_back(child);
  }
  bool all = true;
  for (const pid_t child : children) {
    int status = 1;
    while (child > 0 && waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    all = all && status == 0;
  }
  return all;
}

// What rank `rank` of `world_size` asks for: pieces cut at other places than the saved ones.
bool loads_its_pieces(const CheckpointModel& model, const std::string& folder, int rank, int world_size) {
  const Checkpoint checkpoint = Checkpoint::open(folder);
  for (const bool optimizer : {false, true}) {
    for (const formats::TensorPiece& piece : model.pieces_of(rank, world_size, 77, optimizer)) {
      const formats::LogicalTensor* tensor = checkpoint.manifest().find(piece.role, piece.name);
      if (tensor == nullptr) return false;
      const auto expected = std::get<std::span<const std::byte>>(piece.data);
      std::vector<std::byte> bytes(expected.size());
      checkpoint.read(*tensor, piece.offset, bytes);
      if (!std::equal(bytes.begin(), bytes.end(), expected.begin())) return false;
    }
  }
  return true;
}

TEST_CASE("N processes save, M processes load their own pieces, bit-equal") {
  const test::TempDir folder = test::TempDir::in_memory();
  int layouts = 0;
  for (int from = 1; from <= 8; ++from) {
    const CheckpointModel model = CheckpointModel::random(static_cast<std::uint64_t>(from) + 50, 3000);
    const std::string path = (folder.path() / cat("iter_", from)).string();
    make_directories(path);
    CHECK(in_processes(from, [&](int rank) {
      const formats::CheckpointPart part = model.write_part({path, "", rank, from}, 3, posix_file_system());
      write_file_atomically(join_path(folder.path().string(), cat("part_", rank)), formats::part_text(part));
      return true;
    }));
    std::vector<formats::CheckpointPart> parts;
    for (int rank = 0; rank < from; ++rank) {
      parts.push_back(formats::parse_part(read_text_file(join_path(folder.path().string(), cat("part_", rank)))));
    }
    formats::commit_checkpoint(path, parts, {}, 1);
    for (int to = 1; to <= 8; ++to) {
      if (!test::long_run() && (from + to) % 3 != 0) continue;
      CAPTURE(from);
      CAPTURE(to);
      CHECK(in_processes(to, [&](int rank) { return loads_its_pieces(model, path, rank, to); }));
      ++layouts;
    }
  }
  std::printf("layouts over processes: %d\n", layouts);
}

}  // namespace
}  // namespace castor
