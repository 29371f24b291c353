// Weights of others become a checkpoint: every layout that people keep them in, what is not taken is said, and what
// lies or is damaged is refused before there is a checkpoint.
#include <algorithm>
#include <cmath>
#include <functional>

#include <doctest/doctest.h>

#include "core/base/error.h"
#include "core/base/file_memory.h"
#include "formats/checkpoint_reader.h"
#include "formats/import_weights.h"
#include "tests/support/small_weights.h"

namespace castor {
namespace {

using formats::Checkpoint;
using formats::NameMap;
using formats::TensorSource;
using test::Floats;
using test::FloatsByName;

const FloatsByName kWeights = {
    {"fc.weight", {{2, 3}, {1, 2, 3, 4, 5, 6}}}, {"fc.bias", {{2}, {-1, 0.5F}}}, {"bn.running_mean", {{2}, {7, 8}}}};

bool has(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

bool has_note(const TensorSource& source, std::string_view part) {
  return std::any_of(source.notes.begin(), source.notes.end(), [part](const auto& note) { return has(note, part); });
}

TensorSource open(const std::string& path, FileSystem& files, const std::string& key = "") {
  formats::SourceOptions options;
  options.key = key;
  return formats::open_tensor_source(path, options, files);
}

void check_weights(const TensorSource& source) {
  CHECK(test::floats_of(source, "param", "fc.weight") == kWeights[0].second.values);
  CHECK(test::floats_of(source, "param", "fc.bias") == kWeights[1].second.values);
  CHECK(test::floats_of(source, "buffer", "bn.running_mean") == kWeights[2].second.values);
  CHECK(source.tensors.size() == 3);
}

// Imports and reads back, checking every digest.
TensorSource imported(const TensorSource& source, FileSystem& files, const std::string& folder = "/out") {
  formats::import_weights(formats::list_weights(source, {}, std::nullopt, false), folder, {}, files);
  const auto checkpoint = std::make_shared<const Checkpoint>(Checkpoint::open(folder, files));
  CHECK(checkpoint->verify().empty());
  CHECK(checkpoint->manifest().save_number == 1);
  return formats::checkpoint_source(checkpoint);
}

template <class E>
std::string refusal(const std::function<void()>& action) {
  try {
    action();
  } catch (const E& error) {
    return error.what();
  }
  return "nothing was refused";
}

void write_index(const std::string& path, const std::string& map, FileSystem& files) {
  write_file_atomically(path, "{\"metadata\":{\"total_size\":1},\"weight_map\":{" + map + "}}", files);
}

TEST_CASE("a safetensors file and a PyTorch file become the same checkpoint, with buffers told by their names") {
  MemoryFileSystem files;
  test::write_floats("/m.safetensors", kWeights, files);
  write_file_atomically("/m.pth", test::torch_floats(kWeights), files);
  write_file_atomically("/nested.pth", test::torch_floats(kWeights, "state_dict"), files);
  check_weights(imported(open("/m.safetensors", files), files, "/a"));
  check_weights(imported(open("/m.pth", files), files, "/b"));
  const TensorSource nested = open("/nested.pth", files);
  check_weights(imported(nested, files, "/c"));
  CHECK(has_note(nested, "\"optimizer\""));
  CHECK(has_note(nested, "\"state_dict\""));
}

TEST_CASE("a key names the dict of a PyTorch file") {
  MemoryFileSystem files;
  write_file_atomically("/m.pth", test::torch_floats(kWeights, "ema"), files);
  check_weights(open("/m.pth", files, "ema"));
  CHECK(has(refusal<FormatError>([&] { open("/m.pth", files); }), "name the key to take"));
  CHECK(has(refusal<FormatError>([&] { open("/m.pth", files, "state_dict"); }), "its keys: \"epoch\", \"ema\""));
}

TEST_CASE("files under an index are one model, named by its folder or itself") {
  MemoryFileSystem files;
  make_directories("/hf", files);
  test::write_floats("/hf/model-1.safetensors", {kWeights[0]}, files);
  test::write_floats("/hf/model-2.safetensors", {kWeights[1], kWeights[2], {"unlisted", {{1}, {1}}}}, files);
  const std::string path = "/hf/model.safetensors.index.json";
  write_index(
      path,
      R"("fc.weight":"model-1.safetensors","fc.bias":"model-2.safetensors","bn.running_mean":"model-2.safetensors")",
      files);
  check_weights(imported(open("/hf", files), files));
  check_weights(open(path, files));
  CHECK(has_note(open(path, files), "\"unlisted\""));
  write_file_atomically("/hf/model-2.safetensors", test::torch_floats({kWeights[1], kWeights[2]}), files);
  check_weights(open(path, files));
}

TEST_CASE("an index that leaves its folder, names a file that lacks the tensor, or is none, is refused") {
  MemoryFileSystem files;
  make_directories("/hf", files);
  test::write_floats("/hf/m.safetensors", kWeights, files);
  test::write_floats("/secret.safetensors", {{"stolen", {{1}, {1}}}}, files);
  const std::string path = "/hf/model.safetensors.index.json";
  for (const char* name : {"../secret.safetensors", "/secret.safetensors", "a/../../secret.safetensors", "..", "", ".",
                           ".hidden", "a\\u0000b", "manifest.json"}) {
    CAPTURE(name);
    write_index(path, std::string("\"stolen\":\"") + name + "\"", files);
    const std::string text = refusal<FormatError>([&] { open("/hf", files); });
    CHECK(has(text, "plain name"));
    CHECK(has(text, "weight_map/stolen"));
  }
  write_index(path, R"("absent":"m.safetensors")", files);
  CHECK(has(refusal<FormatError>([&] { open("/hf", files); }), "has no tensor \"absent\""));
  write_index(path, R"("absent":"gone.safetensors")", files);
  CHECK_THROWS_AS(open("/hf", files), IoError);
  write_index(path, R"("absent":3)", files);
  CHECK_THROWS_AS(open("/hf", files), FormatError);
  write_index(path, "", files);
  CHECK(has(refusal<FormatError>([&] { open("/hf", files); }), "names no tensor"));
  write_file_atomically(path, "{\"weight_map\":", files);
  CHECK_THROWS_AS(open("/hf", files), FormatError);
}

TEST_CASE("a ColossalAI or mmengine folder gives its weights, and the rest is named") {
  MemoryFileSystem files;
  make_directories("/run/iter_5/model", files);
  make_directories("/run/iter_5/optimizer", files);
  write_file_atomically("/run/iter_5/meta.pth", "not looked at", files);
  write_file_atomically("/run/iter_5/model/pytorch_model-00001.bin", test::torch_floats({kWeights[0], kWeights[1]}),
                        files);
  write_file_atomically("/run/iter_5/model/pytorch_model-00002.bin", test::torch_floats({kWeights[2]}), files);
  write_index("/run/iter_5/model/pytorch_model.bin.index.json",
              R"("fc.weight":"pytorch_model-00001.bin","fc.bias":"pytorch_model-00001.bin",)"
              R"("bn.running_mean":"pytorch_model-00002.bin")",
              files);
  // mmengine writes the path of the machine it ran on.
  write_file_atomically("/run/last_checkpoint", "/elsewhere/work_dirs/run/iter_5\n", files);
  const TensorSource source = open("/run/iter_5", files);
  check_weights(imported(source, files));
  CHECK(has_note(source, "not taken"));
  CHECK(has_note(source, "\"optimizer\""));
  CHECK(has_note(source, "\"meta.pth\""));
  const TensorSource newest = open("/run", files);
  check_weights(newest);
  CHECK(has_note(newest, "/run/iter_5, the newest of /run"));
  for (const char* pointed : {"..", "/", "../secret", "iter_6"}) {
    write_file_atomically("/run/last_checkpoint", pointed, files);
    CHECK(has(refusal<FormatError>([&] { open("/run", files); }), "last_checkpoint names"));
  }
  // A model folder with one file, and a plain mmengine checkpoint.
  remove_tree("/run/iter_5/model", files);
  make_directories("/run/iter_5/model", files);
  write_file_atomically("/run/iter_5/model/pytorch_model.bin", test::torch_floats(kWeights), files);
  check_weights(open("/run/iter_5", files));
  make_directories("/mm", files);
  write_file_atomically("/mm/epoch_3.pth", test::torch_floats(kWeights, "state_dict"), files);
  write_file_atomically("/mm/epoch_2.pth", "older, not looked at", files);
  write_file_atomically("/mm/last_checkpoint", "/elsewhere/epoch_3.pth", files);
  check_weights(open("/mm", files));
  remove_file("/mm/last_checkpoint", files);
  CHECK(has(refusal<FormatError>([&] { open("/mm", files); }), "several files of weights"));
  remove_file("/mm/epoch_2.pth", files);
  check_weights(open("/mm", files));
}

TEST_CASE("tied tensors are imported once and keep all their names") {
  MemoryFileSystem files;
  write_file_atomically("/m.pth", test::torch_floats(kWeights, "", {{"head.weight", "fc.weight"}}), files);
  const TensorSource torch = imported(open("/m.pth", files), files, "/a");
  check_weights(torch);
  CHECK(torch.aliases == std::map<std::string, std::string>{{"head.weight", "fc.weight"}});
  test::write_floats("/m.safetensors", kWeights, files,
                     {{"format", "pt"}, {"head.weight", "fc.weight"}, {"note", "nothing"}});
  CHECK(imported(open("/m.safetensors", files), files, "/b").aliases == torch.aliases);
  // An index may list one of the names only, whichever.
  make_directories("/hf", files);
  write_file_atomically("/hf/m.bin", test::torch_floats({kWeights[0]}, "", {{"head.weight", "fc.weight"}}), files);
  for (const char* listed : {R"("head.weight":"m.bin")", R"("head.weight":"m.bin","fc.weight":"m.bin")"}) {
    write_index("/hf/pytorch_model.bin.index.json", listed, files);
    const TensorSource source = open("/hf", files);
    CHECK(test::floats_of(source, "param", "fc.weight") == kWeights[0].second.values);
    CHECK(source.aliases == torch.aliases);
  }
}

TEST_CASE("names are mapped in order, dropped where the map says so, and never meet") {
  MemoryFileSystem files;
  write_file_atomically("/m.pth", test::torch_floats(kWeights, "", {{"head.weight", "fc.weight"}}), files);
  const TensorSource source = open("/m.pth", files);
  const NameMap map({{"^fc\\.(.*)$", true, "layers.0.$1", "map:1"},
                     {"layers.0.bias", false, "b", "map:2"},
                     {"^bn", true, std::nullopt, "map:3"}});
  const formats::WeightList list = formats::list_weights(source, map, std::nullopt, false);
  REQUIRE(list.weights.size() == 2);
  CHECK(list.weights[0].name == "b");
  CHECK(list.weights[1].name == "layers.0.weight");
  CHECK(list.aliases == std::map<std::string, std::string>{{"head.weight", "layers.0.weight"}});
  CHECK(list.left_out == std::vector<std::string>{"bn.running_mean"});
  // Without its own name a tied tensor keeps the other one.
  const formats::WeightList renamed =
      formats::list_weights(source, NameMap({{"fc.weight", false, std::nullopt, "map:1"}}), std::nullopt, false);
  CHECK(std::any_of(renamed.weights.begin(), renamed.weights.end(),
                    [](const auto& weight) { return weight.name == "head.weight"; }));
  CHECK(renamed.aliases.empty());
  const auto collide = [&](const NameMap& bad) {
    return refusal<ConfigError>([&] { formats::list_weights(source, bad, std::nullopt, false); });
  };
  const std::string text = collide(NameMap({{"fc.bias", false, "bn.running_mean", "map:1"}}));
  CHECK(has(text, "\"fc.bias\""));
  CHECK(has(text, "would both be called \"bn.running_mean\""));
  CHECK(has(collide(NameMap({{".*", true, "x", "map:1"}})), "would both be called"));
  CHECK(has(collide(NameMap({{"^fc.bias$", true, "", "map:7"}})), "map:7: nothing is left"));
  CHECK(has(refusal<ConfigError>([] {
              NameMap({{"(", true, "", "map:9"}});
            }),
            "map:9: \"(\" is no regular expression"));
}

TEST_CASE("a dtype is converted on the way, values that overflow are counted, other kinds stay") {
  MemoryFileSystem files;
  const std::vector<float> values = {1.5F, 70000.0F, -1e30F, 1e-30F, INFINITY, NAN};
  const std::vector<std::int64_t> counts = {1, 2};
  const std::vector<formats::SafetensorsTensor> tensors = {
      {"w", DType::f32, {6}, std::as_bytes(std::span(values))},
      {"n", DType::i64, {2}, std::as_bytes(std::span(counts))},
      {"nothing", DType::f32, {0, 4}, std::span<const std::byte>()}};
  formats::write_safetensors("/m.safetensors", tensors, {}, files);
  const TensorSource source = open("/m.safetensors", files);
  const auto half = formats::list_weights(source, {}, DType::f16, false);
  CHECK(half.bytes() == 6 * 2 + 2 * 8);
  std::uint64_t told = 0;
  formats::ImportOptions options;
  options.progress = [&told](std::uint64_t bytes) { told = bytes; };
  const formats::ImportReport report = formats::import_weights(half, "/out", options, files);
  CHECK(report.overflowed == 2);
  CHECK(report.bytes == half.bytes());
  CHECK(told == half.bytes());
  const Checkpoint checkpoint = Checkpoint::open("/out", files);
  std::vector<std::byte> bytes(12);
  checkpoint.read(*checkpoint.manifest().find("param", "w"), 0, bytes);
  std::uint16_t bits[6];
  std::memcpy(bits, bytes.data(), 12);
  CHECK(bits[0] == 0x3E00);
  CHECK(bits[1] == 0x7C00);
  CHECK(bits[2] == 0xFC00);
  CHECK(bits[3] == 0);
  CHECK(bits[4] == 0x7C00);
  CHECK((bits[5] & 0x7C00) == 0x7C00);
  CHECK(checkpoint.manifest().find("param", "n")->dtype == DType::i64);
  CHECK(checkpoint.manifest().find("param", "nothing")->shape == std::vector<std::int64_t>{0, 4});
}

TEST_CASE("a large tensor passes through in pieces, transposed ones too") {
  MemoryFileSystem files;
  Floats large{{700, 1000}, std::vector<float>(700'000)};
  for (std::size_t i = 0; i < large.values.size(); ++i) large.values[i] = static_cast<float>(i);
  const auto view =
      test::pickle::tensor(test::pickle::storage("FloatStorage", "0", 700'000), 0, {1000, 700}, {1, 1000});
  write_file_atomically(
      "/t.pth",
      test::pickle::checkpoint(test::pickle::whole(test::pickle::dict({test::pickle::text("t"), view})),
                               {{"0", large.bytes()}})
          .bytes,
      files);
  const std::vector<float> values = test::floats_of(imported(open("/t.pth", files), files), "param", "t");
  REQUIRE(values.size() == 700'000);
  CHECK(values[1] == 1000.0F);
  CHECK(values[700] == 1.0F);
  CHECK(values[699'999] == 699'999.0F);
}

TEST_CASE("a folder that holds something is not written into, a checkpoint only if it is to be replaced") {
  MemoryFileSystem files;
  test::write_floats("/m.safetensors", kWeights, files);
  const TensorSource source = open("/m.safetensors", files);
  const auto list = formats::list_weights(source, {}, std::nullopt, false);
  const auto import_to = [&](const std::string& folder, bool replace) {
    return refusal<IoError>([&] { formats::import_weights(list, folder, {replace, {}}, files); });
  };
  make_directories("/full", files);
  write_file_atomically("/full/notes.txt", "mine", files);
  CHECK(has(import_to("/full", false), "the folder is not empty"));
  CHECK(has(import_to("/full", true), "the folder is not empty"));
  CHECK(has(import_to("/m.safetensors", false), "this is a file"));
  make_directories("/empty", files);
  CHECK(import_to("/empty", false) == "nothing was refused");
  CHECK(has(import_to("/empty", false), "--force"));
  CHECK(import_to("/empty", true) == "nothing was refused");
  check_weights(open("/empty", files));
  CHECK(list_directory("/empty", files).size() == 2);
}

TEST_CASE("damage in the source is found, and leaves no checkpoint and no file") {
  MemoryFileSystem files;
  std::string zip = test::torch_floats(kWeights);
  const std::string first = kWeights[0].second.bytes();
  const std::size_t at = zip.find(first);
  REQUIRE(at != std::string::npos);
  zip[at + 5] = static_cast<char>(zip[at + 5] ^ 1);
  write_file_atomically("/m.pth", zip, files);
  CHECK_THROWS_AS(open("/m.pth", files), FormatError);
  write_file_atomically("/m.txt", "no weights at all", files);
  CHECK(has(refusal<FormatError>([&] { open("/m.txt", files); }), "expected a safetensors or PyTorch file"));
  make_directories("/nothing", files);
  CHECK(has(refusal<FormatError>([&] { open("/nothing", files); }), "found no weights"));
  CHECK_THROWS_AS(open("/absent", files), IoError);
  // The file is cut after it was opened.
  test::write_floats("/m.safetensors", kWeights, files);
  const TensorSource source = open("/m.safetensors", files);
  const auto list = formats::list_weights(source, {}, std::nullopt, false);
  write_file_atomically("/m.safetensors", "cut", files);
  CHECK_THROWS_AS(formats::import_weights(list, "/out", {}, files), IoError);
  CHECK(!exists("/out", files));
  const auto nothing = formats::WeightList();
  CHECK_THROWS_AS(formats::import_weights(nothing, "/out", {}, files), FormatError);
  CHECK(!exists("/out", files));
}

}  // namespace
}  // namespace castor
