// A checkpoint saved by N ranks is read by M others that cut its tensors elsewhere: every byte is right, and no more
// is read from the disk than those bytes and the manifest.
#include <algorithm>
#include <map>
#include <thread>

#include <doctest/doctest.h>

#include "core/base/file_fault.h"
#include "core/base/file_memory.h"
#include "tests/support/checkpoint_model.h"

namespace castor {
namespace {

using formats::Checkpoint;
using formats::LogicalTensor;
using formats::TensorPiece;
using test::CheckpointModel;

// Runs `work(rank)` on a thread for each rank.
template <class Work>
void on_ranks(int world_size, const Work& work) {
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < world_size; ++rank) ranks.emplace_back([&work, rank] { work(rank); });
  for (std::thread& rank : ranks) rank.join();
}

void save_on_threads(const CheckpointModel& model, int world_size, std::uint64_t seed, FileSystem& files) {
  make_directories("/c", files);
  std::vector<formats::CheckpointPart> parts(static_cast<std::size_t>(world_size));
  StreamOptions stream;
  stream.buffer_bytes = 4096;
  on_ranks(world_size, [&](int rank) {
    parts[static_cast<std::size_t>(rank)] = model.write_part({"/c", "", rank, world_size}, seed, files, stream);
  });
  formats::commit_checkpoint("/c", parts, {}, 1, files);
}

// Reads what rank `rank` of `world_size` needs, in one call. Returns whether it is right, and adds the bytes needed.
bool load_pieces(const CheckpointModel& model, int rank, int world_size, std::uint64_t seed, FileSystem& files,
                 std::uint64_t& needed) {
  const Checkpoint checkpoint = Checkpoint::open("/c", files);
  needed += checkpoint.manifest().manifest_bytes;
  std::vector<TensorPiece> pieces = model.pieces_of(rank, world_size, seed, false);
  for (TensorPiece& piece : model.pieces_of(rank, world_size, seed, true)) pieces.push_back(std::move(piece));
  std::vector<std::vector<std::byte>> got(pieces.size());
  std::vector<Checkpoint::Request> requests;
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    const LogicalTensor* tensor = checkpoint.manifest().find(pieces[i].role, pieces[i].name);
    if (tensor == nullptr) return false;
    std::vector<std::byte>& bytes = got[i];
    bytes.resize(static_cast<std::size_t>(pieces[i].count) * dtype_size(pieces[i].dtype));
    needed += bytes.size();
    requests.push_back(
        {tensor, pieces[i].offset, pieces[i].count, [&bytes](std::uint64_t at, std::span<const std::byte> part) {
           std::copy(part.begin(), part.end(), bytes.begin() + static_cast<std::ptrdiff_t>(at));
         }});
  }
  checkpoint.read(requests);
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    const auto expected = std::get<std::span<const std::byte>>(pieces[i].data);
    if (!std::equal(got[i].begin(), got[i].end(), expected.begin(), expected.end())) return false;
  }
  return true;
}

// Bytes that the reads of a log got, as far as the files reach.
std::uint64_t bytes_read(const std::vector<FileOperation>& log, FileSystem& files) {
  std::uint64_t total = 0;
  for (const FileOperation& operation : log) {
    if (operation.kind == FileOperationKind::map) total += operation.bytes;
    if (operation.kind != FileOperationKind::read) continue;
    const std::uint64_t size = file_size(operation.path, files);
    total += std::min(operation.bytes, size - std::min(size, operation.offset));
  }
  return total;
}

TEST_CASE("what N ranks saved M ranks load bit-equal, reading no byte that they do not need") {
  int layouts = 0;
  for (int from = 1; from <= 8; ++from) {
    const auto seed = static_cast<std::uint64_t>(from);
    const CheckpointModel model = CheckpointModel::random(seed + 20);
    MemoryFileSystem disk;
    save_on_threads(model, from, seed, disk);
    CHECK(Checkpoint::open("/c", disk).verify().empty());
    for (int to = 1; to <= 8; ++to) {
      CAPTURE(from);
      CAPTURE(to);
      std::vector<char> right(static_cast<std::size_t>(to));
      std::vector<std::uint64_t> needed(right.size());
      FaultFileSystem counted(disk);
      on_ranks(to, [&](int rank) {
        const auto i = static_cast<std::size_t>(rank);
        right[i] = load_pieces(model, rank, to, seed + 1000, counted, needed[i]) ? 1 : 0;
      });
      CHECK(std::count(right.begin(), right.end(), 1) == to);
      std::uint64_t total = 0;
      for (const std::uint64_t bytes : needed) total += bytes;
      CHECK(bytes_read(counted.log(), disk) == total);
      ++layouts;
    }
  }
  CHECK(layouts == 64);
}

TEST_CASE("ranks that hold nothing, or one element, or all but one, save and load") {
  std::mt19937_64 random(3);
  CheckpointModel model;
  model.add("w", "param", DType::f32, {7, 3}, random);
  model.add("empty", "param", DType::f32, {0}, random);
  const CheckpointModel::Entry& w = model.entries[0];
  const std::vector<std::vector<std::int64_t>> cuts = {
      {0, 0, 0, 21}, {0, 21, 21, 21}, {0, 1, 20, 21}, {0, 0, 1, 21}, {0, 10, 10, 21}};
  for (const auto& saved : cuts) {
    MemoryFileSystem files;
    make_directories("/c", files);
    std::vector<formats::CheckpointPart> parts(3);
    for (int rank = 0; rank < 3; ++rank) {
      const auto i = static_cast<std::size_t>(rank);
      const std::vector<TensorPiece> pieces = {
          {w.name, w.role, w.dtype, w.shape, saved[i], saved[i + 1] - saved[i],
           std::span<const std::byte>(w.bytes).subspan(static_cast<std::size_t>(saved[i]) * 4,
                                                       static_cast<std::size_t>(saved[i + 1] - saved[i]) * 4)},
          {"empty", "param", DType::f32, {0}, 0, 0, {}}};
      formats::write_pieces(parts[i], "model", pieces, {"/c", "", rank, 3}, files);
    }
    formats::commit_checkpoint("/c", parts, {}, 1, files);
    const Checkpoint checkpoint = Checkpoint::open("/c", files);
    const LogicalTensor* tensor = checkpoint.manifest().find("param", "w");
    REQUIRE(tensor != nullptr);
    REQUIRE(checkpoint.manifest().find("param", "empty") != nullptr);
    for (const auto& loaded : cuts) {
      for (std::size_t i = 0; i < 3; ++i) {
        std::vector<std::byte> bytes(static_cast<std::size_t>(loaded[i + 1] - loaded[i]) * 4);
        checkpoint.read(*tensor, loaded[i], bytes);
        CHECK(std::equal(bytes.begin(), bytes.end(), w.bytes.begin() + static_cast<std::ptrdiff_t>(loaded[i] * 4)));
      }
    }
    CHECK(checkpoint.verify().empty());
  }
}

}  // namespace
}  // namespace castor
