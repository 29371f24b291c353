// A checkpoint's weights as Hugging Face safetensors: what is written, under which names, in which files, and what is
// never overwritten.
#include <algorithm>
#include <cerrno>
#include <functional>
#include <nlohmann/json.hpp>
#include <random>

#include <doctest/doctest.h>

#include "core/base/error.h"
#include "core/base/file_fault.h"
#include "core/base/file_memory.h"
#include "core/base/json.h"
#include "formats/compare_tensors.h"
#include "formats/export_weights.h"
#include "formats/import_weights.h"
#include "tests/support/checkpoint_model.h"
#include "tests/support/small_weights.h"

namespace castor {
namespace {

using formats::Checkpoint;
using formats::SafetensorsFile;
using formats::TensorSource;
using test::CheckpointModel;

TensorSource open(const std::string& path, FileSystem& files) { return formats::open_tensor_source(path, {}, files); }

formats::ExportReport export_to(const std::string& folder, const TensorSource& source, FileSystem& files,
                                const formats::ExportOptions& options = {}, bool masters = false,
                                std::optional<DType> dtype = std::nullopt) {
  return formats::export_weights(formats::list_weights(source, {}, dtype, masters), folder, options, files);
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

bool has(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

std::size_t weights_of(const CheckpointModel& model) {
  return static_cast<std::size_t>(std::count_if(model.entries.begin(), model.entries.end(), [](const auto& entry) {
    return entry.role == "param" || entry.role == "buffer";
  }));
}

TEST_CASE("the weights of any number of ranks are one safetensors file with the same bytes") {
  for (std::uint64_t seed = 0; seed < 6; ++seed) {
    MemoryFileSystem files;
    const CheckpointModel model = CheckpointModel::random(seed);
    model.save("/ckpt", static_cast<int>(seed) + 1, 3, seed, files);
    const formats::ExportReport report = export_to("/out", open("/ckpt", files), files);
    CHECK(report.files == std::vector<std::string>{"model.safetensors"});
    CHECK(list_directory("/out", files).size() == 1);
    const auto file = SafetensorsFile::open("/out/model.safetensors", files);
    CHECK(file.header().tensors.size() == weights_of(model));
    CHECK(file.header().metadata == formats::SafetensorsMetadata{{"format", "pt"}, {"tied", "step_scale"}});
    for (const auto& entry : model.entries) {
      if (entry.role != "param" && entry.role != "buffer") continue;
      CHECK(file.at(entry.name).dtype == entry.dtype);
      CHECK(file.at(entry.name).shape == entry.shape);
      CHECK(file.read(file.at(entry.name)) == entry.bytes);
    }
  }
}

TEST_CASE("a size limit gives numbered files and an index that maps every tensor to its file") {
  MemoryFileSystem files;
  const CheckpointModel model = CheckpointModel::random(3);
  model.save("/ckpt", 2, 1, 3, files);
  const TensorSource source = open("/ckpt", files);
  const std::uint64_t total = formats::list_weights(source, {}, std::nullopt, false).bytes();
  for (const std::uint64_t limit : {std::uint64_t{1}, total / 5, total - 1}) {
    CAPTURE(limit);
    formats::ExportOptions options;
    options.max_shard_bytes = limit;
    options.replace = true;
    const formats::ExportReport report = export_to("/out", source, files, options);
    const std::size_t count = report.files.size();
    REQUIRE(count > 1);
    char first[64];
    std::snprintf(first, sizeof first, "model-00001-of-%05zu.safetensors", count);
    CHECK(report.files.front() == first);
    CHECK(list_directory("/out", files).size() == count + 1);  // those of the run before are gone
    const std::string index_path = "/out/model.safetensors.index.json";
    const Json index = parse_json(read_text_file(index_path, 1 << 20, files), index_path);
    CHECK(index.at("metadata").at("total_size").get<std::uint64_t>() == report.bytes);
    CHECK(index.at("weight_map").size() == weights_of(model));
    std::uint64_t bytes = 0;
    for (const std::string& name : report.files) {
      const auto file = SafetensorsFile::open("/out/" + name, files);
      std::uint64_t in_file = 0;
      for (const auto& entry : file.header().tensors) {
        CHECK(index.at("weight_map").at(entry.name) == name);
        in_file += entry.bytes();
      }
      CHECK((in_file <= limit || file.header().tensors.size() == 1));
      bytes += in_file;
    }
    CHECK(bytes == report.bytes);
    const formats::CompareReport same = formats::compare_sources(source, open("/out", files));
    CHECK(same.equal());
    CHECK(same.compared == weights_of(model));
  }
  // One file again: no index and no numbered file may be left to mislead a reader.
  formats::ExportOptions options;
  options.replace = true;
  export_to("/out", source, files, options);
  REQUIRE(list_directory("/out", files).size() == 1);
  CHECK(list_directory("/out", files).front().name == "model.safetensors");
}

TEST_CASE("exported and imported again a checkpoint is equal") {
  MemoryFileSystem files;
  const CheckpointModel model = CheckpointModel::random(8);
  model.save("/ckpt", 3, 1, 8, files);
  formats::ExportOptions options;
  options.max_shard_bytes = 3000;
  export_to("/hf", open("/ckpt", files), files, options);
  const TensorSource foreign = open("/hf", files);
  formats::import_weights(formats::list_weights(foreign, {}, std::nullopt, false), "/again", {}, files);
  const TensorSource again = open("/again", files);
  CHECK(again.has_roles);
  CHECK(again.aliases == std::map<std::string, std::string>{{"tied", "step_scale"}});
  const formats::CompareReport report = formats::compare_sources(open("/ckpt", files), again);
  // The optimizer's states stayed behind; weights and their further names are all there.
  CHECK(!report.equal());
  for (const auto& difference : report.differences) CHECK(!formats::is_weight_role(difference.role));
  formats::CompareOptions weights;
  weights.role = "param";
  CHECK(formats::compare_sources(open("/ckpt", files), again, weights).equal());
}

TEST_CASE("masters are taken where they are, and a dtype rounds them") {
  MemoryFileSystem files;
  std::mt19937_64 random(1);
  CheckpointModel model;
  model.add("w", "param", DType::bf16, {40}, random);
  model.add("w", "master", DType::f32, {40}, random);
  model.add("b", "param", DType::f32, {3}, random);
  model.add("n", "buffer", DType::i64, {2}, random);
  model.add("w", "exp_avg", DType::f32, {40}, random);
  const std::vector<float> masters(40, 1.0F + 1.0F / 512);
  std::memcpy(model.entries[1].bytes.data(), masters.data(), 160);
  make_directories("/ckpt", files);
  formats::CheckpointPart part;
  formats::write_pieces(part, "model", model.pieces_of(0, 1, 1, false), {"/ckpt", "", 0, 1}, files);
  formats::write_pieces(part, "optimizer", model.pieces_of(0, 1, 1, true), {"/ckpt", "", 0, 1}, files);
  formats::commit_checkpoint("/ckpt", std::span(&part, 1), {}, 1, files);
  const TensorSource source = open("/ckpt", files);

  const formats::WeightList list = formats::list_weights(source, {}, std::nullopt, true);
  CHECK(list.masters == 1);
  CHECK(list.other_roles == std::map<std::string, std::size_t>{{"exp_avg", 1}, {"master", 1}});
  export_to("/master", source, files, {}, true);
  const auto from_master = SafetensorsFile::open("/master/model.safetensors", files);
  CHECK(from_master.at("w").dtype == DType::f32);
  CHECK(from_master.read(from_master.at("w")) == model.entries[1].bytes);
  CHECK(from_master.at("n").dtype == DType::i64);
  formats::CompareOptions by_master;
  by_master.role = "master";
  CHECK(formats::compare_sources(source, open("/master", files), by_master).equal());
  CHECK(!formats::compare_sources(source, open("/master", files)).equal());

  export_to("/param", source, files, {}, false);
  const auto from_param = SafetensorsFile::open("/param/model.safetensors", files);
  CHECK(from_param.at("w").dtype == DType::bf16);
  CHECK(from_param.read(from_param.at("w")) == model.entries[0].bytes);

  export_to("/bf16", source, files, {}, true, DType::bf16);
  const auto rounded = SafetensorsFile::open("/bf16/model.safetensors", files);
  CHECK(rounded.at("b").dtype == DType::bf16);
  const std::vector<std::byte> bytes = rounded.read(rounded.at("w"));
  CHECK(bytes[0] == std::byte{0x80});  // 1 + 2^-9 rounds to 1.0: 0x3F80
  CHECK(bytes[1] == std::byte{0x3F});
}

TEST_CASE("a folder with something in it is left alone, and a checkpoint always") {
  MemoryFileSystem files;
  const CheckpointModel model = CheckpointModel::random(2);
  model.save("/ckpt", 1, 1, 2, files);
  const TensorSource source = open("/ckpt", files);
  formats::ExportOptions replace;
  replace.replace = true;
  CHECK(has(refusal<IoError>([&] { export_to("/ckpt", source, files, replace); }), "it is a checkpoint"));
  CHECK(model.equals(Checkpoint::open("/ckpt", files)));
  make_directories("/full", files);
  write_file_atomically("/full/config.json", "{}", files);
  CHECK(has(refusal<IoError>([&] { export_to("/full", source, files); }), "not empty"));
  CHECK(!exists("/full/model.safetensors", files));
  export_to("/full", source, files, replace);
  CHECK(exists("/full/config.json", files));
  CHECK(exists("/full/model.safetensors", files));
  CHECK(has(refusal<IoError>([&] { export_to("/full/config.json", source, files, replace); }), "this is a file"));
  CHECK_THROWS_AS(formats::export_weights({}, "/nothing", {}, files), FormatError);
  CHECK(!exists("/nothing", files));
}

TEST_CASE("only an earlier export is replaced as a whole, and what is refused is not touched") {
  MemoryFileSystem files;
  const CheckpointModel model = CheckpointModel::random(2);
  model.save("/ckpt", 1, 1, 2, files);
  const TensorSource source = open("/ckpt", files);
  export_to("/new", source, files);
  const auto refused = [&](const std::string& to, std::string_view why) {
    const std::vector<DirectoryEntry> before = list_directory(directory_of(to), files);
    CHECK(has(refusal<IoError>([&] { formats::replace_export("/new", to, files); }), why));
    CHECK(list_directory(directory_of(to), files) == before);
    CHECK(exists("/new/model.safetensors", files));
  };
  make_directories("/work/project/src", files);
  write_file_atomically("/work/project/notes.txt", "a year's work", files);
  refused("/work/project", "\"notes.txt\"");
  refused("/work", "\"project\"");
  refused("/ckpt", "it is a checkpoint");
  refused("/work/project/notes.txt", "this is a file");
  export_to("/out", source, files);
  write_file_atomically("/out/config.json", "{}", files);
  refused("/out", "\"config.json\"");
  make_directories("/else.replaced/mine", files);
  refused("/else", "\"mine\"");
  CHECK(read_text_file("/work/project/notes.txt", 100, files) == "a year's work");
  remove_file("/out/config.json", files);
  formats::replace_export("/new", "/out", files);
  CHECK(exists("/out/model.safetensors", files));
  CHECK(!exists("/new", files));
  CHECK(!exists("/out.replaced", files));
  make_directories("/empty", files);
  formats::replace_export("/out", "/empty", files);
  CHECK(exists("/empty/model.safetensors", files));
}

TEST_CASE("after a power cut at any operation an export that is replaced is the earlier one or the new one, whole") {
  std::vector<CheckpointModel> models(3);
  std::mt19937_64 random(3);
  for (CheckpointModel& model : models) {
    for (const char* name : {"a", "b", "step_scale"}) model.add(name, "param", DType::f32, {5, 3}, random);
  }
  MemoryFileSystem start;
  for (std::size_t i = 0; i < models.size(); ++i) models[i].save(cat("/ckpt/iter_", i), 1, i + 1, 1, start);
  formats::ExportOptions sharded;
  sharded.max_shard_bytes = 100;
  sharded.replace = true;
  const auto replace = [&](int with, FileSystem& files) {
    export_to("/run/out.whole", open(cat("/ckpt/iter_", with), files), files, sharded);
    formats::replace_export("/run/out.whole", "/run/out", files);
  };
  const auto which = [&](FileSystem& files) {
    const TensorSource found = open(formats::export_at("/run/out", files), files);
    for (int i = 0; i < 3; ++i) {
      if (formats::compare_sources(found, open(cat("/ckpt/iter_", i), files), {}).equal()) return i;
    }
    return -1;
  };
  replace(0, start);
  REQUIRE(which(start) == 0);
  MemoryFileSystem& durable = start;
  const auto disk_before = [&] { return durable.after_power_loss(Unsynced::kept); };
  const auto counted = disk_before();
  FaultFileSystem counting(*counted);
  replace(1, counting);
  const std::uint64_t count = counting.operations();
  for (std::uint64_t at = 0; at <= count; ++at) {
    for (const FaultKind kind : {FaultKind::power_cut, FaultKind::error}) {
      const auto disk = disk_before();
      FaultFileSystem faulty(*disk);
      faulty.inject({at, kind, EIO});
      bool has_failed = false;
      try {
        replace(1, faulty);
      } catch (const IoError&) {
        has_failed = true;
      }
      for (std::uint64_t seed = 0; seed < 8; ++seed) {
        const Unsynced unsynced = seed == 0       ? Unsynced::dropped
                                  : seed == 1     ? Unsynced::kept
                                  : seed % 2 == 0 ? Unsynced::random
                                                  : Unsynced::torn;
        CAPTURE(at);
        CAPTURE(kind);
        CAPTURE(seed);
        const auto after = disk->after_power_loss(unsynced, seed);
        const int left = which(*after);
        CHECK((left == 0 || left == 1));
        if (!has_failed) CHECK(left == 1);
        replace(2, *after);
        CHECK(which(*after->after_power_loss(Unsynced::dropped)) == 2);
        CHECK(list_directory("/run", *after) == std::vector<DirectoryEntry>{{"out", FileKind::directory}});
      }
    }
  }
}

TEST_CASE("a damaged checkpoint is not exported, and nothing of it stays") {
  MemoryFileSystem files;
  const CheckpointModel model = CheckpointModel::random(4);
  model.save("/ckpt", 1, 1, 4, files);
  std::string data = read_text_file("/ckpt/model.safetensors", 1 << 24, files);
  data.back() = static_cast<char>(data.back() ^ 4);
  write_file_atomically("/ckpt/model.safetensors", data, files);
  const TensorSource source = open("/ckpt", files);
  const std::string text = refusal<FormatError>([&] { export_to("/out", source, files); });
  CHECK(has(text, "have another digest"));
  CHECK(!exists("/out", files));
  formats::ExportOptions stopping;
  stopping.progress = [](std::uint64_t) { throw Error("stopped"); };
  model.save("/good", 1, 1, 4, files);
  CHECK_THROWS_AS(export_to("/out", open("/good", files), files, stopping), Error);
  CHECK(!exists("/out", files));
}

}  // namespace
}  // namespace castor
