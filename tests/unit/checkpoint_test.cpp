// Saved states: equal bits back, every misfit named, and after a crash or a full disk at any operation a whole
// checkpoint to load or none at all; the same in the background.
#include "strategy/checkpoint.h"

#include <cerrno>
#include <limits>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "autograd/nn/vision.h"
#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/file_fault.h"
#include "core/base/file_memory.h"
#include "formats/checkpoint_reader.h"
#include "formats/safetensors.h"
#include "strategy/checkpoint/saver.h"
#include "tests/support/long_run.h"

namespace castor::strategy {
namespace {

/// A module with weights, a tied name and buffers of two dtypes.
class SmallNet final : public autograd::Module {
 public:
  explicit SmallNet(std::int64_t width = 3, DType dtype = DType::f32)
      : fc_(4, width, {.tensor = {dtype, kCpu}}), tied_(fc_.weight()), norm_(2) {
    register_module("fc", fc_);
    register_module("tied", tied_);
    register_module("norm", norm_);
  }

 private:
  autograd::Linear fc_;
  autograd::Linear tied_;
  autograd::BatchNorm2d norm_;
};

std::shared_ptr<SmallNet> small_net(std::uint64_t seed) {
  auto net = std::make_shared<SmallNet>();
  autograd::initialize(*net, seed);
  return net;
}

using State = std::map<std::string, std::vector<std::byte>>;

State state_of(const autograd::Module& module) {
  State state;
  auto tensors = module.named_parameters();
  for (auto& buffer : module.named_buffers()) tensors.push_back(buffer);
  for (const auto& [name, variable] : tensors) {
    state[name].resize(variable.data().view().bytes());
    variable.data().copy_to_host(state[name].data(), state[name].size());
  }
  return state;
}

// Saves the weights of `model` as work_dir/name, and points to them.
void save(const autograd::Module& model, const std::string& name, FileSystem& files, CheckpointSaver& saver,
          bool asynchronous = false) {
  SaveRequest request;
  request.folder = join_path("/run", name);
  for (const auto& [each, variable] : model.named_parameters())
    request.tensors.push_back({each, "param", variable.data()});
  for (const auto& [each, variable] : model.named_buffers())
    request.tensors.push_back({each, "buffer", variable.data()});
  for (const auto& [other, first] : model.aliases()) request.aliases[other] = first;
  request.state = "{}";
  request.config_yaml = "model: small\n";
  request.asynchronous = asynchronous;
  request.committed = [&files, name](const std::string&) { finish_save("/run", name, {}, files); };
  saver.save(std::move(request));
}
void save(const autograd::Module& model, const std::string& name, FileSystem& files) {
  CheckpointSaver saver(files);
  save(model, name, files, saver);
}

LoadOptions strictly() {
  LoadOptions options;
  options.strict = true;
  return options;
}

/// What find_last_checkpoint and load_weights give, or nothing if nothing was saved.
std::optional<State> last_saved(FileSystem& files) {
  std::string folder;
  try {
    folder = find_last_checkpoint("/run", files);
  } catch (const IoError& error) {
    CHECK(error.code == ENOENT);
    return {};
  }
  SmallNet net;
  load_weights(net, folder, strictly(), files);
  CHECK(formats::Checkpoint::open(folder, files).read_text("config", "yaml") == "model: small\n");
  return state_of(net);
}

std::vector<std::string> names_in(const std::string& folder, FileSystem& files) {
  std::vector<std::string> names;
  if (!exists(folder, files)) return names;
  for (const DirectoryEntry& entry : list_directory(folder, files)) names.push_back(entry.name);
  return names;
}

TEST_CASE("saved weights and buffers come back bit by bit, tied ones stored once") {
  MemoryFileSystem files;
  const auto net = small_net(1);
  save(*net, "epoch_2", files);
  CHECK(names_in("/run", files) == std::vector<std::string>{"epoch_2", "last_checkpoint"});
  CHECK(names_in("/run/epoch_2", files) ==
        std::vector<std::string>{"config.yaml", "manifest.json", "model.safetensors", "state.json"});
  CHECK(read_text_file("/run/last_checkpoint", 100, files) == "epoch_2");
  CHECK(find_last_checkpoint("/run", files) == "/run/epoch_2");
  const auto other = small_net(2);
  REQUIRE(state_of(*other) != state_of(*net));
  load_weights(*other, "/run/epoch_2", strictly(), files);
  CHECK(state_of(*other) == state_of(*net));
  const auto by_file = small_net(3);
  load_weights(*by_file, "/run/epoch_2/model.safetensors", strictly(), files);
  CHECK(state_of(*by_file) == state_of(*net));
  const auto source = formats::SafetensorsFile::open("/run/epoch_2/model.safetensors", files);
  CHECK(source.header().find("fc.weight") != nullptr);
  CHECK(source.header().find("tied.weight") == nullptr);
  CHECK(source.header().tensors.size() == 7);
}

TEST_CASE("weights are converted to the model's dtype") {
  MemoryFileSystem files;
  save(*small_net(1), "iter_1", files);
  SmallNet half(3, DType::bf16);
  load_weights(half, "/run/iter_1", strictly(), files);
  const auto exact = small_net(1)->named_parameters().at(0).second.data().to_vector<float>();
  const Tensor& loaded = half.named_parameters().at(0).second.data();
  REQUIRE(loaded.dtype() == DType::bf16);
  for (std::size_t i = 0; i < exact.size(); ++i) {
    const double value = loaded.reshape({-1}).select(0, static_cast<std::int64_t>(i)).item();
    CHECK(value == doctest::Approx(static_cast<double>(exact[i])).epsilon(1.0 / 256));
  }
}

TEST_CASE("a file that does not fit the model is refused with every tensor named, and nothing is changed") {
  MemoryFileSystem files;
  make_directories("/run", files);
  const std::vector<float> values(20, 7.0f);
  const auto bytes = std::as_bytes(std::span(values));
  formats::write_safetensors("/run/odd.safetensors",
                             std::vector<formats::SafetensorsTensor>{{"fc.weight", DType::f32, {5, 4}, bytes},
                                                                     {"fc.bais", DType::f32, {3}, bytes.first(12)},
                                                                     {"norm.weight", DType::f32, {2}, bytes.first(8)}},
                             {}, files);
  const auto net = small_net(1);
  const State before = state_of(*net);
  try {
    load_weights(*net, "/run/odd.safetensors", strictly(), files);
    FAIL("loaded");
  } catch (const FormatError& error) {
    const std::string text = error.what();
    INFO(text);
    for (const char* part : {"missing: fc.bias", "mismatched: fc.weight is [5,4] in the file, [3,4] in the model",
                             "unexpected: fc.bais", "missing: norm.running_mean", "/run/odd.safetensors"}) {
      CHECK_MESSAGE(text.find(part) != std::string::npos, part);
    }
    CHECK(text.find("norm.weight") == std::string::npos);
  }
  CHECK(state_of(*net) == before);
}

TEST_CASE("a truncated or foreign file is a FormatError, a missing one an IoError") {
  MemoryFileSystem files;
  const auto net = small_net(1);
  const State before = state_of(*net);
  save(*net, "iter_1", files);
  const std::string whole = read_text_file("/run/iter_1/model.safetensors", 100000, files);
  for (const std::size_t length : {std::size_t{0}, std::size_t{7}, std::size_t{100}, whole.size() - 1}) {
    CAPTURE(length);
    write_file_atomically("/run/cut.safetensors", std::string_view(whole).substr(0, length), files);
    CHECK_THROWS_AS(load_weights(*net, "/run/cut.safetensors", strictly(), files), FormatError);
  }
  write_file_atomically("/run/text.safetensors", "PK\x03\x04 not what it says it is, though long enough", files);
  CHECK_THROWS_AS(load_weights(*net, "/run/text.safetensors", strictly(), files), FormatError);
  CHECK_THROWS_AS(load_weights(*net, "/run/iter_7", strictly(), files), IoError);
  CHECK(state_of(*net) == before);
}

TEST_CASE("without strict what fits is loaded and the rest is reported; if nothing fits it is an error") {
  MemoryFileSystem files;
  save(SmallNet(5), "iter_1", files);
  const auto net = small_net(1);
  const State before = state_of(*net);
  const LoadReport report = load_weights(*net, "/run/iter_1", {}, files);
  CHECK(report.mismatched.size() == 2);
  CHECK(report.loaded == 5);
  CHECK(state_of(*net).at("fc.weight") == before.at("fc.weight"));
  CHECK_THROWS_AS(load_weights(*net, "/run/iter_1", strictly(), files), FormatError);
  LoadOptions renamed;
  renamed.revise_keys = {{"^", "other."}};
  CHECK_THROWS_WITH_AS(load_weights(*net, "/run/iter_1", renamed, files), doctest::Contains("nothing in it fits"),
                       FormatError);
}

TEST_CASE("names are revised in order, a module. prefix goes by default, and no expression is an error") {
  MemoryFileSystem files;
  make_directories("/run", files);
  const auto net = small_net(1), other = small_net(2);
  std::vector<formats::SafetensorsTensor> arrays;
  for (const auto& [name, bytes] : state_of(*net)) {
    for (const auto& [wanted, variable] : net->named_parameters()) {
      const Shape& shape = variable.shape();
      if (wanted == name)
        arrays.push_back({"module." + name, DType::f32, {shape.begin(), shape.end()}, std::span<const std::byte>()});
    }
  }
  const State state = state_of(*net);
  for (auto& array : arrays) array.data = std::span(state.at(array.name.substr(7)));
  formats::write_safetensors("/run/wrapped.safetensors", arrays, {}, files);
  const LoadReport report = load_weights(*other, "/run/wrapped.safetensors", {}, files);
  CHECK(report.unexpected.empty());
  CHECK(report.missing ==
        std::vector<std::string>{"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"});
  CHECK(state_of(*other).at("fc.weight") == state.at("fc.weight"));
  LoadOptions keys;
  keys.revise_keys = {{"^module\\.", ""}, {"^fc", "a"}, {"^a", "b"}};
  CHECK(load_weights(*other, "/run/wrapped.safetensors", keys, files).unexpected ==
        std::vector<std::string>{"b.bias", "b.weight"});
  keys.revise_keys = {{"(", ""}};
  CHECK_THROWS_AS(load_weights(*other, "/run/wrapped.safetensors", keys, files), ConfigError);
}

TEST_CASE("a callback sees the file's names and state before anything is loaded, and what it changes counts") {
  MemoryFileSystem files;
  save(*small_net(1), "iter_1", files);
  const auto net = small_net(2);
  const State before = state_of(*net);
  LoadOptions options;
  options.callback = [&](CheckpointContents& contents) {
    CHECK(state_of(*net) == before);
    CHECK(contents.names.at("fc.weight") == "fc.weight");
    contents.names.erase("fc.bias");
  };
  const LoadReport report = load_weights(*net, "/run/iter_1", options, files);
  CHECK(report.missing == std::vector<std::string>{"fc.bias"});
  CHECK(state_of(*net).at("fc.bias") == before.at("fc.bias"));
  CHECK(state_of(*net).at("fc.weight") == state_of(*small_net(1)).at("fc.weight"));
  options.map_location = "cuda:7";
  CHECK_THROWS_WITH_AS(load_weights(*net, "/run/iter_1", options, files), doctest::Contains("map_location"),
                       ConfigError);
}

TEST_CASE("the newest whole checkpoint is found by its number, whatever last_checkpoint says; torn ones are skipped") {
  MemoryFileSystem files;
  make_directories("/run", files);
  CHECK_THROWS_WITH_AS(find_last_checkpoint("/run", files),
                       doctest::Contains("train first, or name the weights with load_from"), IoError);
  save(*small_net(1), "iter_9", files);
  save(*small_net(2), "iter_2", files);
  write_file_atomically("/run/last_checkpoint", "../etc", files);
  CHECK(find_last_checkpoint("/run", files) == "/run/iter_2");
  remove_file("/run/iter_2/model.safetensors", files);
  CHECK(find_last_checkpoint("/run", files) == "/run/iter_9");
  remove_file("/run/iter_9/manifest.json", files);
  CHECK_THROWS_WITH_AS(find_last_checkpoint("/run", files), doctest::Contains("no checkpoint in /run is whole"),
                       IoError);
}

TEST_CASE("keep_best goes by noted scores") {
  MemoryFileSystem files;
  for (int i = 1; i <= 4; ++i) {
    save(*small_net(1), cat("iter_", i), files);
    CHECK(is_among_best("/run", i == 2 ? 0.9 : 0.1 * i, 2, true, files));
    note_score("/run", cat("iter_", i), i == 2 ? 0.9 : 0.1 * i, files);
  }
  CHECK_FALSE(is_among_best("/run", 0.2, 2, true, files));
  CHECK(is_among_best("/run", 0.05, 1, false, files));
  formats::Retention retention;
  retention.keep_last = 1;
  retention.keep_best = 1;
  finish_save("/run", "iter_4", retention, files);
  CHECK(names_in("/run", files) == std::vector<std::string>{"iter_2", "iter_4", "last_checkpoint", "scores.json"});
}

TEST_CASE("a metric that is NaN is never among the best, and an old note of one costs no good checkpoint") {
  MemoryFileSystem files;
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const bool greater : {true, false}) CHECK_FALSE(is_among_best("/run", nan, 1, greater, files));
  for (int i = 1; i <= 4; ++i) {
    save(*small_net(1), cat("iter_", i), files);
    note_score("/run", cat("iter_", i), i == 2 ? 0.9 : nan, files);
  }
  for (const bool greater : {true, false}) {
    CHECK_FALSE(is_among_best("/run", nan, 9, greater, files));
    CHECK(is_among_best("/run", 0.5, 2, greater, files));
  }
  formats::Retention retention;
  retention.keep_last = 1;
  retention.keep_best = 1;
  finish_save("/run", "iter_4", retention, files);
  CHECK(names_in("/run", files) == std::vector<std::string>{"iter_2", "iter_4", "last_checkpoint", "scores.json"});
}

TEST_CASE("loading weights needs no optimizer files") {
  MemoryFileSystem files;
  const auto net = small_net(1);
  CheckpointSaver saver(files);
  SaveRequest request;
  request.folder = "/run/iter_1";
  for (const auto& [name, variable] : net->named_parameters()) {
    request.tensors.push_back({name, "param", variable.data()});
    request.tensors.push_back({name, "exp_avg", variable.data()});
  }
  for (const auto& [name, variable] : net->named_buffers())
    request.tensors.push_back({name, "buffer", variable.data()});
  request.state = "{}";
  saver.save(std::move(request));
  REQUIRE(remove_file("/run/iter_1/optimizer.safetensors", files));
  const auto other = small_net(2);
  load_weights(*other, "/run/iter_1", strictly(), files);
  CHECK(state_of(*other) == state_of(*net));
}

// What iter_1 holds after a background save during which the weights were overwritten in the middle.
State saved_while_training(CopyMode mode, std::uint64_t room) {
  MemoryFileSystem files;
  const auto net = small_net(1);
  {
    CheckpointSaver saver(files);
    saver.reserve(mode, room);
    save(*net, "iter_1", files, saver, true);
    auto tensors = net->named_parameters();
    for (auto& buffer : net->named_buffers()) tensors.push_back(buffer);
    for (const auto& [name, variable] : tensors) {
      saver.before_change(variable.data());
      variable.data().fill_zero();
    }
    saver.wait();
  }
  SmallNet loaded;
  load_weights(loaded, "/run/iter_1", strictly(), files);
  return state_of(loaded);
}

TEST_CASE("a background save holds the weights of its moment, with room for a copy, for a part of it, or for none") {
  const State expected = state_of(*small_net(1));
  for (int repeat = 0; repeat < 20; ++repeat) {
    CHECK(saved_while_training(CopyMode::whole, 1 << 16) == expected);
    CHECK(saved_while_training(CopyMode::on_write, 128) == expected);
    CHECK(saved_while_training(CopyMode::on_write, 0) == expected);
  }
}

TEST_CASE("a background save that fails is reported by the next save or by wait, once, and blocks nobody") {
  MemoryFileSystem disk;
  FaultFileSystem faulty(disk);
  const auto net = small_net(1);
  CheckpointSaver saver(faulty);
  saver.reserve(CopyMode::on_write, 0);
  faulty.inject({12, FaultKind::power_cut, EIO});
  save(*net, "iter_1", faulty, saver, true);
  for (const auto& [name, variable] : net->named_parameters()) saver.before_change(variable.data());
  CHECK_THROWS_WITH_AS(save(*net, "iter_2", faulty, saver, true),
                       doctest::Contains("saving \"/run/iter_1\" in the background failed: "), IoError);
  CHECK_NOTHROW(saver.wait());
  CHECK(formats::list_checkpoints("/run", disk).checkpoints.empty());
}

// Saves iter_1 (weights of seed 1), then, through `files`, weights of seed 2 under `name`.
void save_first(FileSystem& files) { save(*small_net(1), "iter_1", files); }
void save_second(FileSystem& files, const std::string& name) { save(*small_net(2), name, files); }

std::uint64_t operations_of_second(const std::string& name) {
  MemoryFileSystem disk;
  save_first(disk);
  FaultFileSystem counting(disk);
  save_second(counting, name);
  return counting.operations();
}

TEST_CASE(
    "a disk that fails at any operation gives an IoError and leaves the older weights or the newer, and no drafts") {
  const State first = state_of(*small_net(1)), second = state_of(*small_net(2));
  for (const std::string name : {"iter_2", "iter_1"}) {
    const std::uint64_t count = operations_of_second(name);
    for (std::uint64_t at = 0; at < count; ++at) {
      CAPTURE(name);
      CAPTURE(at);
      MemoryFileSystem disk;
      save_first(disk);
      FaultFileSystem faulty(disk);
      faulty.inject({at, FaultKind::error, ENOSPC});
      bool has_failed = false;
      try {
        save_second(faulty, name);
      } catch (const IoError&) {
        has_failed = true;
      }
      CAPTURE(has_failed);
      const std::optional<State> left = last_saved(disk);
      REQUIRE(left.has_value());
      // Once the manifest is in place the newer weights are found, even if a later step failed.
      CHECK((*left == first || *left == second));
      if (!has_failed) CHECK(*left == second);
      for (const std::string& each : names_in("/run", disk)) CHECK_MESSAGE(!is_temporary_name(each), each);
      // The next save works and tidies up.
      save_second(disk, name);
      CHECK(last_saved(disk) == second);
      const std::set<std::string> expected{"iter_1", name, "last_checkpoint"};
      CHECK(names_in("/run", disk) == std::vector<std::string>(expected.begin(), expected.end()));
    }
  }
}

// Every file below `folder` with its text.
std::map<std::string, std::string> texts_in(const std::string& folder, FileSystem& files) {
  std::map<std::string, std::string> texts;
  for (const std::string& name : names_in(folder, files))
    texts[name] = read_text_file(join_path(folder, name), 1 << 20, files);
  return texts;
}

TEST_CASE("a folder of someone else's files is refused and left as it is, now and in the background") {
  MemoryFileSystem files;
  const auto net = small_net(1);
  const std::vector<std::vector<std::string>> folders = {
      {"config.json", "model.safetensors", "tokenizer.json"},
      {"model.safetensors"},
      {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"},
      {"config.yaml", "state.json"},
      {"manifest.json", "model.safetensors"},
  };
  for (const std::vector<std::string>& names : folders) {
    CAPTURE(names.front());
    remove_tree("/run", files);
    make_directories("/run/mine", files);
    for (const std::string& name : names) write_file_atomically("/run/mine/" + name, "of " + name, files);
    const auto before = texts_in("/run/mine", files);
    CHECK_THROWS_WITH_AS(save(*net, "mine", files), doctest::Contains("no valid manifest.json"), IoError);
    CHECK(texts_in("/run/mine", files) == before);
    CheckpointSaver saver(files);
    save(*net, "mine", files, saver, true);
    CHECK_THROWS_WITH_AS(saver.wait(), doctest::Contains("no valid manifest.json"), IoError);
    CHECK(texts_in("/run/mine", files) == before);
  }
}

TEST_CASE("saves leave files beside a checkpoint that only look a little like its own") {
  MemoryFileSystem files;
  save(*small_net(1), "best", files);
  const std::vector<std::string> mine = {"adapter.safetensors",   "config_notes.yaml",      "model.fp16.safetensors",
                                         "model_ema.safetensors", "optimizers.safetensors", "state_dict.json"};
  for (const std::string& name : mine) write_file_atomically("/run/best/" + name, "of " + name, files);
  for (const char* left : {"model.2.safetensors", "optimizer-00001-of-00002.safetensors", "state.2.json"})
    write_file_atomically(cat("/run/best/", left), "left by a save", files);
  save(*small_net(2), "best", files);
  CHECK(last_saved(files) == state_of(*small_net(2)));
  std::set<std::string> expected(mine.begin(), mine.end());
  expected.merge(std::set<std::string>{"config.2.yaml", "manifest.json", "model.2.safetensors", "state.2.json"});
  CHECK(names_in("/run/best", files) == std::vector<std::string>(expected.begin(), expected.end()));
}

TEST_CASE("a first save that ended at any operation can be repeated, whatever its folder is called") {
  const State second = state_of(*small_net(2));
  for (const std::string name : {"iter_1", "best"}) {
    MemoryFileSystem whole;
    FaultFileSystem counting(whole);
    save_second(counting, name);
    const std::uint64_t count = counting.operations();
    for (std::uint64_t at = 0; at <= count; ++at) {
      for (const FaultKind kind : {FaultKind::power_cut, FaultKind::error}) {
        MemoryFileSystem disk;
        FaultFileSystem faulty(disk);
        faulty.inject({at, kind, EIO});
        try {
          save(*small_net(1), name, faulty);
        } catch (const IoError&) {
        }
        for (std::uint64_t seed = 0; seed < 12; ++seed) {
          const Unsynced unsynced = seed == 0       ? Unsynced::dropped
                                    : seed == 1     ? Unsynced::kept
                                    : seed % 2 == 0 ? Unsynced::random
                                                    : Unsynced::torn;
          CAPTURE(name);
          CAPTURE(at);
          CAPTURE(seed);
          const auto after = disk.after_power_loss(unsynced, seed);
          save_second(*after, name);
          CHECK(last_saved(*after) == second);
          CHECK(names_in(join_path("/run", name), *after).size() == 4);
        }
      }
    }
  }
}

TEST_CASE("a disk without room for the weights says so with what to do, and holds no half of them") {
  MemoryFileSystem disk;
  disk.set_capacity(300);
  try {
    save_first(disk);
    FAIL("saved");
  } catch (const IoError& error) {
    CHECK(error.code == ENOSPC);
    CHECK(std::string(error.what()).find("free space there or choose another folder") != std::string::npos);
  }
  CHECK(names_in("/run", disk).empty());
  CHECK_FALSE(last_saved(disk).has_value());
}

TEST_CASE("after a power cut at any operation the last checkpoint is the older or the newer one, whole") {
  const State first = state_of(*small_net(1)), second = state_of(*small_net(2));
  const std::uint64_t seeds = test::long_run() ? 200 : 4;
  for (const std::string name : {"iter_2", "iter_1"}) {
    const std::uint64_t count = operations_of_second(name);
    for (std::uint64_t at = 0; at <= count; ++at) {
      MemoryFileSystem disk;
      save_first(disk);
      FaultFileSystem faulty(disk);
      faulty.inject({at, FaultKind::power_cut, EIO});
      try {
        save_second(faulty, name);
      } catch (const IoError&) {
      }
      for (std::uint64_t seed = 0; seed < 2 + 2 * seeds; ++seed) {
        const Unsynced unsynced = seed == 0       ? Unsynced::dropped
                                  : seed == 1     ? Unsynced::kept
                                  : seed % 2 == 0 ? Unsynced::random
                                                  : Unsynced::torn;
        CAPTURE(name);
        CAPTURE(at);
        CAPTURE(seed);
        const auto after = disk.after_power_loss(unsynced, seed);
        const std::optional<State> left = last_saved(*after);
        REQUIRE(left.has_value());
        CHECK((*left == first || *left == second));
        if (at == count) CHECK(*left == second);
        save_second(*after, name);
        CHECK(last_saved(*after) == second);
      }
    }
  }
}

}  // namespace
}  // namespace castor::strategy
