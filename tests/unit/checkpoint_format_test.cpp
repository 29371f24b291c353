// The checkpoint on disk: what ranks wrote in pieces is read back whole or in other pieces, and what does not hold
// together is refused.
#include <algorithm>
#include <cerrno>
#include <limits>

#include <doctest/doctest.h>

#include "core/base/digest.h"
#include "core/base/error.h"
#include "core/base/file_memory.h"
#include "formats/checkpoint_list.h"
#include "tests/support/checkpoint_model.h"

namespace castor {
namespace {

using formats::Checkpoint;
using formats::Manifest;
using test::CheckpointModel;

TEST_CASE("digests are XXH3's published ones and their hexadecimal text reads back") {
  CHECK(hex_of_digest(xxh3({})) == "2d06800538d394c2");  // XXH3_64bits of no bytes, seed 0
  Xxh3Stream pieces;
  const std::string text(100'000, 'c');
  pieces.update(as_byte_span(text).first(17));
  pieces.update(as_byte_span(text).subspan(17));
  CHECK(pieces.digest() == xxh3(as_byte_span(text)));
  CHECK(digest_of_hex(hex_of_digest(0x00ab'cdef'0123'4567u)) == 0x00ab'cdef'0123'4567u);
  CHECK(!digest_of_hex("00ABcdef01234567"));
  CHECK(!digest_of_hex("00abcdef0123456"));
}

TEST_CASE("a checkpoint of any number of ranks reads back whole and bit-equal") {
  for (std::uint64_t seed = 0; seed < 12; ++seed) {
    MemoryFileSystem files;
    const CheckpointModel model = CheckpointModel::random(seed);
    const int world_size = static_cast<int>(seed % 8) + 1;
    CAPTURE(seed);
    CAPTURE(world_size);
    model.save("/run/iter_7", world_size, 3, seed, files);
    const Checkpoint checkpoint = Checkpoint::open("/run/iter_7", files);
    CHECK(checkpoint.manifest().save_number == 3);
    CHECK(checkpoint.missing_files().empty());
    CHECK(model.equals(checkpoint));
    CHECK(checkpoint.verify().empty());
    CHECK(checkpoint.manifest().find("param", "tied") == checkpoint.manifest().find("param", "step_scale"));
    CHECK(checkpoint.manifest().find("master", "tied") == nullptr);
  }
}

TEST_CASE("every data file is a safetensors file whose whole tensors keep their names") {
  MemoryFileSystem files;
  const CheckpointModel model = CheckpointModel::random(5);
  model.save("/one", 1, 1, 5, files);
  const auto weights = formats::SafetensorsFile::open("/one/model.safetensors", files);
  for (const auto& entry : model.entries) {
    if (entry.role != "param" || entry.numel() == 0) continue;
    CHECK(weights.read(weights.at(entry.name)) == entry.bytes);
    CHECK(weights.at(entry.name).shape == entry.shape);
  }
  const auto states = formats::SafetensorsFile::open("/one/optimizer.safetensors", files);
  CHECK(states.header().find("exp_avg/blocks.0.weight") != nullptr);
  model.save("/three", 3, 1, 5, files);
  CHECK(exists("/three/model-00002-of-00003.safetensors", files));
}

TEST_CASE("a save into a folder that is a checkpoint replaces it, and its files go") {
  MemoryFileSystem files;
  const CheckpointModel first = CheckpointModel::random(1), second = CheckpointModel::random(2);
  first.save("/run/iter_7", 2, 1, 1, files);
  second.save("/run/iter_7", 1, 2, 1, files);
  CHECK(second.equals(Checkpoint::open("/run/iter_7", files)));
  first.save("/run/iter_7", 2, 3, 1, files);
  CHECK(first.equals(Checkpoint::open("/run/iter_7", files)));
  std::size_t expected = Checkpoint::open("/run/iter_7", files).manifest().files.size() + 1;
  CHECK(list_directory("/run/iter_7", files).size() == expected);
}

TEST_CASE("parts travel as bytes") {
  MemoryFileSystem files;
  make_directories("/c", files);
  const CheckpointModel model = CheckpointModel::random(4);
  std::vector<formats::CheckpointPart> parts;
  for (int rank = 0; rank < 3; ++rank) {
    parts.push_back(formats::parse_part(formats::part_text(model.write_part({"/c", "", rank, 3}, 9, files))));
  }
  formats::commit_checkpoint("/c", parts, {}, 1, files);
  CHECK(model.equals(Checkpoint::open("/c", files)));
  CHECK_THROWS_AS(formats::parse_part("nonsense"), FormatError);
}

TEST_CASE("parts that do not make whole tensors are not committed") {
  MemoryFileSystem files;
  make_directories("/c", files);
  const CheckpointModel model = CheckpointModel::random(4);
  const formats::CheckpointPart part = model.write_part({"/c", "", 0, 2}, 9, files);
  CHECK_THROWS_AS(formats::commit_checkpoint("/c", std::span(&part, 1), {}, 1, files), FormatError);
  CHECK(!exists("/c/manifest.json", files));
}

TEST_CASE("any flipped bit, cut or addition in a manifest is refused") {
  MemoryFileSystem files;
  CheckpointModel::random(6, 100).save("/c", 2, 1, 3, files);
  const std::string text = read_text_file("/c/manifest.json", formats::kMaxManifestBytes, files);
  CHECK_NOTHROW(formats::parse_manifest(text, "m"));
  for (std::size_t bit = 0; bit < text.size() * 8; bit += 7) {
    std::string flipped = text;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << (bit % 8)));
    CHECK_THROWS_AS(formats::parse_manifest(flipped, "m"), FormatError);
  }
  CHECK_THROWS_AS(formats::parse_manifest(text + "\n", "m"), FormatError);
  CHECK_THROWS_AS(formats::parse_manifest(text.substr(0, text.size() - 1), "m"), FormatError);
  CHECK_THROWS_AS(formats::parse_manifest("", "m"), FormatError);
}

// A manifest's text with the digest that its words deserve.
std::string sealed(const std::string& body) {
  return body + "\"xxh3\":\"" + hex_of_digest(xxh3(as_byte_span(body))) + "\"}\n";
}

void check_refused(const std::string& body, const std::string& expected) {
  try {
    formats::parse_manifest(sealed(body), "m");
    FAIL("accepted: ", body);
  } catch (const FormatError& error) {
    CAPTURE(std::string(error.what()));
    CHECK(std::string(error.what()).find(expected) != std::string::npos);
    CHECK(error.offset <= sealed(body).size());
  }
}

const std::string kStart = R"({"format":"castor-checkpoint","version":1,"reads":1,"save":1,)";
const std::string kFile =
    R"("files":[{"name":"m.safetensors","bytes":12,"head_bytes":8,"head_xxh3":"0123456789abcdef"}],)";

std::string one_tensor(const std::string& slices, const std::string& shape = "[1]") {
  return kStart + kFile + R"("tensors":[{"name":"w","role":"param","dtype":"F32","shape":)" + shape + R"(,"slices":)" +
         slices + "}],\"aliases\":{},";
}

TEST_CASE("a sealed manifest that does not hold together is refused, naming what is wrong") {
  const std::string digest = R"("0123456789abcdef")";
  CHECK_NOTHROW(formats::parse_manifest(sealed(one_tensor("[[0,8,0,1," + digest + "]]")), "m"));
  check_refused(one_tensor("[[1,8,0,1," + digest + "]]"), "no file number 1");
  check_refused(one_tensor("[[0,4,0,1," + digest + "]]"), "do not lie within file");
  check_refused(one_tensor("[[0,9,0,1," + digest + "]]"), "do not lie within file");
  check_refused(one_tensor("[[0,9223372036854775807,0,1," + digest + "]]"), "do not lie within file");
  check_refused(one_tensor("[]"), "hold 0 of 1");
  check_refused(one_tensor("[[0,8,0,2," + digest + "]]"), "has 2 of 1");
  check_refused(one_tensor("[[0,8,1,1," + digest + "]]"), "expected a slice from element 0");
  check_refused(one_tensor("[[0,8,0,1,\"\"]]"), "0 digests");
  check_refused(one_tensor("[[0,8,0,1]]"), "a slice is [file, begin, offset, count");
  check_refused(one_tensor("[[0,8,0,1," + digest + ",3]]"), "a slice is [file");
  check_refused(one_tensor("[[0,8,0,1," + digest + "]]", "[-1]"), "no negative");
  check_refused(one_tensor("[[0,8,0,1," + digest + "]]", "[4294967296,4294967296,4294967296]"), "2^62 bytes");
  check_refused(one_tensor("[]", "[0]"), "last 4 bytes belong to no tensor");
  check_refused(kStart + kFile + R"("tensors":[],"aliases":{"a":"w"},)", "belong to no tensor");
  check_refused(kStart + R"("files":[],"tensors":[],"aliases":{"a":"w"},)", "alias \"a\"");
  for (const std::string name : {"../m", "/etc/passwd", "a/b", ".hidden", "manifest.json", "a\\\\b", "", "a\\u0000b"}) {
    check_refused(
        kStart + R"("files":[{"name":")" + name + R"(","bytes":0,"head_bytes":0,"head_xxh3":"0123456789abcdef"}],)",
        "expected the name of a file");
  }
  check_refused(kStart + R"("new":{"a":1,)", "ends too early");
  check_refused(R"({"version":1,"reads":1,)", "format");
  check_refused(R"({"format":"castor-checkpoint",)", "version");
  check_refused(kStart + R"("tensors":[{"name":"w"}],)", "a tensor needs the keys");
}

TEST_CASE("what a newer version added is skipped if it says so, and refused by its number otherwise") {
  const std::string extra = R"("new_thing":{"deep":[1,{"x":[[]]}]},"files":[],"tensors":[],"aliases":{},)";
  CHECK(formats::parse_manifest(sealed(R"({"format":"castor-checkpoint","version":9,"reads":1,"save":4,)" + extra), "m")
            .version == 9);
  check_refused(R"({"format":"castor-checkpoint","version":9,"reads":2,"save":4,)" + extra, "update Castor");
}

TEST_CASE("a damaged tensor is named with its file, when read and by verify") {
  MemoryFileSystem files;
  const CheckpointModel model = CheckpointModel::random(8);
  model.save("/c", 2, 1, 3, files);
  const Checkpoint checkpoint = Checkpoint::open("/c", files);
  const formats::LogicalTensor* tensor = checkpoint.manifest().find("param", "blocks.0.weight");
  REQUIRE(tensor != nullptr);
  const formats::TensorSlice slice = tensor->slices.back();
  const std::string name = checkpoint.manifest().files[slice.file].name;
  File file = File::open("/c/" + name, OpenMode::append, files);
  std::byte byte;
  file.read_exact(std::span(&byte, 1), slice.begin);
  byte ^= std::byte{4};
  file.write_exact(std::span(&byte, 1), slice.begin);
  std::vector<std::byte> out(tensor->bytes());
  CHECK_THROWS_AS(checkpoint.read(*tensor, 0, out), FormatError);
  const auto damage = checkpoint.verify();
  REQUIRE(damage.size() == 1);
  CHECK(damage[0].file == name);
  CHECK(damage[0].tensor.find("blocks.0.weight") != std::string::npos);
  remove_file("/c/" + name, files);
  CHECK(checkpoint.missing_files().size() == 1);
  CHECK(checkpoint.verify().size() == 1);
}

TEST_CASE("a list knows the newest, names the torn, and retention never gives up the newest") {
  MemoryFileSystem files;
  for (int i = 1; i <= 6; ++i) {
    CheckpointModel::random(static_cast<std::uint64_t>(i), 50)
        .save("/run/iter_" + std::to_string(i * 10), 1, static_cast<std::uint64_t>(i), 1, files);
  }
  make_directories("/run/iter_70", files);
  make_directories("/run/notes", files);
  const formats::CheckpointList list = formats::list_checkpoints("/run", files);
  REQUIRE(list.checkpoints.size() == 6);
  CHECK(list.checkpoints.front().name == "iter_60");
  REQUIRE(list.torn.size() == 1);
  CHECK(list.torn[0].name == "iter_70");
  CHECK(list.next_save_number() == 7);

  formats::Retention retention;
  CHECK(formats::prunable_checkpoints(list, retention).empty());
  retention.keep_last = 2;
  CHECK(formats::prunable_checkpoints(list, retention) ==
        std::vector<std::string>{"iter_10", "iter_20", "iter_30", "iter_40"});
  retention.keep_every = 20;
  CHECK(formats::prunable_checkpoints(list, retention) == std::vector<std::string>{"iter_10", "iter_30"});
  retention.keep_best = 1;
  retention.scores = {{"iter_10", 0.9}, {"iter_30", 0.1}};
  CHECK(formats::prunable_checkpoints(list, retention) == std::vector<std::string>{"iter_30"});
  retention.greater_is_better = false;
  CHECK(formats::prunable_checkpoints(list, retention) == std::vector<std::string>{"iter_10"});
  CHECK(formats::remove_checkpoint("/run/iter_10", files) > 0);
  CHECK(!exists("/run/iter_10", files));
  CHECK(formats::list_checkpoints("/run", files).checkpoints.size() == 5);
  CHECK(formats::list_checkpoints("/nowhere", files).checkpoints.empty());
}

TEST_CASE("a checkpoint under a name of its own never goes, and takes no numbered one's place") {
  formats::CheckpointList list;
  list.checkpoints = {{"last_good", 6, 1}, {"iter_50", 5, 1}, {"iter_x", 4, 1}, {"epoch_3", 3, 1}, {"iter_20", 2, 1}};
  formats::Retention retention;
  retention.keep_last = 2;
  CHECK(formats::prunable_checkpoints(list, retention) == std::vector<std::string>{"iter_20"});
  retention.keep_last = 1;
  CHECK(formats::prunable_checkpoints(list, retention) == std::vector<std::string>{"iter_20", "epoch_3"});
  retention.keep_best = 1;
  retention.scores = {{"last_good", 0.9}, {"iter_20", 0.8}};
  CHECK(formats::prunable_checkpoints(list, retention) == std::vector<std::string>{"epoch_3"});
  retention = {};
  retention.keep_every = 3;
  CHECK(formats::prunable_checkpoints(list, retention) == std::vector<std::string>{"iter_20"});
}

TEST_CASE("a score that is NaN protects no checkpoint and takes no good one's place") {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  formats::CheckpointList list;
  for (int i = 9; i >= 1; --i) list.checkpoints.push_back({"iter_" + std::to_string(i), std::uint64_t(i), 1});
  formats::Retention retention;
  retention.keep_last = 1;
  retention.keep_best = 2;
  // Among many, in every place of the order in which they come.
  for (int good = 1; good <= 7; ++good) {
    for (const bool greater : {true, false}) {
      CAPTURE(good);
      CAPTURE(greater);
      retention.greater_is_better = greater;
      retention.scores.clear();
      for (int i = 1; i <= 9; ++i) retention.scores["iter_" + std::to_string(i)] = nan;
      retention.scores["iter_" + std::to_string(good)] = 0.8;
      retention.scores["iter_" + std::to_string(good + 1)] = 0.7;
      std::vector<std::string> expected;
      for (int i = 1; i <= 8; ++i) {
        if (i != good && i != good + 1) expected.push_back("iter_" + std::to_string(i));
      }
      CHECK(formats::prunable_checkpoints(list, retention) == expected);
    }
  }
}

}  // namespace
}  // namespace castor
