// A checkpoint saved by N ranks is read by M others that cut its tensors elsewhere: every byte is right and checked,
// and no more is read from the disk than the digest blocks of those bytes and the manifest.
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

// Adds the digest blocks that elements [offset, offset + count) of a tensor lie in: (file, first byte) -> bytes.
using Blocks = std::map<std::pair<std::uint32_t, std::uint64_t>, std::uint64_t>;
void add_blocks(const LogicalTensor& tensor, std::int64_t offset, std::int64_t count, Blocks& blocks) {
  const auto element = static_cast<std::int64_t>(dtype_size(tensor.dtype));
  const auto size = static_cast<std::int64_t>(formats::kDigestBlockBytes);
  for (const formats::TensorSlice& slice : tensor.slices) {
    const std::int64_t bytes = slice.count * element;
    const std::int64_t from = (std::max(offset, slice.offset) - slice.offset) * element;
    const std::int64_t to = (std::min(offset + count, slice.offset + slice.count) - slice.offset) * element;
    for (std::int64_t begin = from / size * size; from < to && begin < to; begin += size) {
      blocks[{slice.file, slice.begin + static_cast<std::uint64_t>(begin)}] =
          static_cast<std::uint64_t>(std::min(size, bytes - begin));
    }
  }
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
  Blocks blocks;
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    const LogicalTensor* tensor = checkpoint.manifest().find(pieces[i].role, pieces[i].name);
    if (tensor == nullptr) return false;
    std::vector<std::byte>& bytes = got[i];
    bytes.resize(static_cast<std::size_t>(pieces[i].count) * dtype_size(pieces[i].dtype));
    add_blocks(*tensor, pieces[i].offset, pieces[i].count, blocks);
    requests.push_back(
        {tensor, pieces[i].offset, pieces[i].count, [&bytes](std::uint64_t at, std::span<const std::byte> part) {
           std::copy(part.begin(), part.end(), bytes.begin() + static_cast<std::ptrdiff_t>(at));
         }});
  }
  for (const auto& [place, bytes] : blocks) needed += bytes;
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

TEST_CASE("what N ranks saved M ranks load bit-equal, reading no block that they do not need") {
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

TEST_CASE("a damaged block is noticed by every rank that takes any part of it, and by no other") {
  std::mt19937_64 random(7);
  CheckpointModel model;
  model.add("w", "param", DType::f32, {1'000'000}, random);  // 3.8 blocks
  model.add("w", "exp_avg", DType::bf16, {1'000'000}, random);
  for (const int from : {1, 2, 3}) {
    MemoryFileSystem disk;
    save_on_threads(model, from, 5, disk);
    for (const CheckpointModel::Entry& entry : model.entries) {
      const Checkpoint checkpoint = Checkpoint::open("/c", disk);
      const LogicalTensor* tensor = checkpoint.manifest().find(entry.role, entry.name);
      REQUIRE(tensor != nullptr);
      // One bit of each slice, where a cut into several parts leaves it to one of them.
      for (const formats::TensorSlice& slice : tensor->slices) {
        const auto element = static_cast<std::int64_t>(dtype_size(entry.dtype));
        const std::int64_t damaged = slice.count / 3 * element;
        File file = File::open(join_path("/c", checkpoint.manifest().files[slice.file].name), OpenMode::append, disk);
        std::byte byte;
        file.read_exact(std::span(&byte, 1), slice.begin + static_cast<std::uint64_t>(damaged));
        byte ^= std::byte{16};
        file.write_exact(std::span(&byte, 1), slice.begin + static_cast<std::uint64_t>(damaged));
        const auto block_of = [&](std::int64_t at) {
          return at / static_cast<std::int64_t>(formats::kDigestBlockBytes);
        };
        int noticed = 0;
        constexpr std::int64_t kParts = 16;
        for (std::int64_t part = 0; part < kParts; ++part) {
          const std::int64_t begin = slice.count * part / kParts, end = slice.count * (part + 1) / kParts;
          if (begin == end) continue;
          CAPTURE(from);
          CAPTURE(part);
          std::vector<std::byte> bytes(static_cast<std::size_t>((end - begin) * element));
          const bool is_in =
              block_of(begin * element) <= block_of(damaged) && block_of(damaged) <= block_of(end * element - 1);
          if (is_in) {
            ++noticed;
            CHECK_THROWS_WITH_AS(checkpoint.read(*tensor, slice.offset + begin, bytes),
                                 doctest::Contains("have another digest"), FormatError);
          } else {
            checkpoint.read(*tensor, slice.offset + begin, bytes);
            CHECK(std::equal(bytes.begin(), bytes.end(), entry.bytes.begin() + (slice.offset + begin) * element));
          }
        }
        CHECK(noticed > 0);
        byte ^= std::byte{16};
        file.write_exact(std::span(&byte, 1), slice.begin + static_cast<std::uint64_t>(damaged));
      }
    }
  }
}

TEST_CASE(
    "requests that share blocks, overlap or repeat one another each get their bytes, and no block is read twice") {
  std::mt19937_64 random(11);
  CheckpointModel model;
  model.add("w", "param", DType::f32, {1'000'000}, random);
  MemoryFileSystem disk;
  save_on_threads(model, 2, 5, disk);
  const CheckpointModel::Entry& w = model.entries[0];
  for (const std::size_t buffer : {4096, 1 << 18, 4 << 20}) {
    const Checkpoint checkpoint = Checkpoint::open("/c", disk);
    const LogicalTensor* tensor = checkpoint.manifest().find("param", "w");
    REQUIRE(tensor != nullptr);
    const std::vector<std::pair<std::int64_t, std::int64_t>> ranges = {
        {0, 1'000'000},     {10, 5},  {10, 5},     {0, 1}, {999'999, 1}, {262'143, 2},
        {100'000, 700'000}, {500, 0}, {3, 300'000}};
    std::vector<std::vector<std::byte>> got(ranges.size());
    std::vector<Checkpoint::Request> requests;
    for (std::size_t i = 0; i < ranges.size(); ++i) {
      got[i].resize(static_cast<std::size_t>(ranges[i].second) * 4);
      requests.push_back({tensor, ranges[i].first, ranges[i].second,
                          [&bytes = got[i]](std::uint64_t at, std::span<const std::byte> part) {
                            std::copy(part.begin(), part.end(), bytes.begin() + static_cast<std::ptrdiff_t>(at));
                          }});
    }
    StreamOptions stream;
    stream.buffer_bytes = buffer;
    const std::uint64_t before = checkpoint.bytes_read();
    checkpoint.read(requests, stream);
    CHECK(checkpoint.bytes_read() - before == w.bytes.size());
    for (std::size_t i = 0; i < ranges.size(); ++i) {
      CAPTURE(i);
      CHECK(std::equal(got[i].begin(), got[i].end(), w.bytes.begin() + ranges[i].first * 4));
    }
  }
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
