// Saved weights: equal bits back, every misfit named, and after a crash or a full disk at any operation a whole folder
// to load or none at all.
#include "strategy/checkpoint.h"

#include <cerrno>
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
#include "formats/safetensors.h"
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
  load_weights(net, folder, files);
  CHECK(read_text_file(join_path(folder, kConfigFile), 1000, files) == "model: small\n");
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
  CHECK(save_weights(*net, "model: small\n", "/run", "epoch_2", files) == "/run/epoch_2");
  CHECK(names_in("/run", files) == std::vector<std::string>{"epoch_2", "last_checkpoint"});
  CHECK(names_in("/run/epoch_2", files) == std::vector<std::string>{"config.yaml", "model.safetensors"});
  CHECK(read_text_file("/run/last_checkpoint", 100, files) == "epoch_2");
  CHECK(find_last_checkpoint("/run", files) == "/run/epoch_2");
  const auto other = small_net(2);
  REQUIRE(state_of(*other) != state_of(*net));
  load_weights(*other, "/run/epoch_2", files);
  CHECK(state_of(*other) == state_of(*net));
  const auto by_file = small_net(3);
  load_weights(*by_file, "/run/epoch_2/model.safetensors", files);
  CHECK(state_of(*by_file) == state_of(*net));
  const auto source = formats::SafetensorsFile::open("/run/epoch_2/model.safetensors", files);
  CHECK(source.header().find("fc.weight") != nullptr);
  CHECK(source.header().find("tied.weight") == nullptr);
  CHECK(source.header().tensors.size() == 7);
}

TEST_CASE("weights are converted to the model's dtype") {
  MemoryFileSystem files;
  save_weights(*small_net(1), "model: small\n", "/run", "iter_1", files);
  SmallNet half(3, DType::bf16);
  load_weights(half, "/run/iter_1", files);
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
    load_weights(*net, "/run/odd.safetensors", files);
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
  save_weights(*net, "model: small\n", "/run", "iter_1", files);
  const std::string whole = read_text_file("/run/iter_1/model.safetensors", 100000, files);
  for (const std::size_t length : {std::size_t{0}, std::size_t{7}, std::size_t{100}, whole.size() - 1}) {
    CAPTURE(length);
    write_file_atomically("/run/cut.safetensors", std::string_view(whole).substr(0, length), files);
    CHECK_THROWS_AS(load_weights(*net, "/run/cut.safetensors", files), FormatError);
  }
  write_file_atomically("/run/text.safetensors", "PK\x03\x04 not what it says it is, though long enough", files);
  CHECK_THROWS_AS(load_weights(*net, "/run/text.safetensors", files), FormatError);
  CHECK_THROWS_AS(load_weights(*net, "/run/iter_7", files), IoError);
  CHECK(state_of(*net) == before);
}

TEST_CASE("last_checkpoint is trusted with nothing but a name beside it") {
  MemoryFileSystem files;
  make_directories("/run", files);
  CHECK_THROWS_WITH_AS(find_last_checkpoint("/run", files),
                       doctest::Contains("train first, or name the weights with load_from"), IoError);
  for (const char* bad : {"", "\n", "../other", "/etc", ".iter_1.partial", "a/b"}) {
    CAPTURE(bad);
    write_file_atomically("/run/last_checkpoint", bad, files);
    CHECK_THROWS_AS(find_last_checkpoint("/run", files), FormatError);
  }
  write_file_atomically("/run/last_checkpoint", "iter_9\n", files);
  CHECK_THROWS_WITH_AS(find_last_checkpoint("/run", files), doctest::Contains("iter_9, which is not there"), IoError);
}

// Saves iter_1 (weights of seed 1), then, through `files`, weights of seed 2 under `name`.
void save_first(FileSystem& files) { save_weights(*small_net(1), "model: small\n", "/run", "iter_1", files); }
void save_second(FileSystem& files, const std::string& name) {
  save_weights(*small_net(2), "model: small\n", "/run", name, files);
}

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
      // Once the folder is in place under the name that last_checkpoint already holds, the newer weights are found.
      CHECK((*left == first || *left == second));
      if (!has_failed) CHECK(*left == second);
      for (const std::string& each : names_in("/run", disk)) {
        CHECK_MESSAGE(each.find(".partial") == std::string::npos, each);
        CHECK_MESSAGE(!is_temporary_name(each), each);
      }
      // The next save works and tidies up.
      save_second(disk, name);
      CHECK(last_saved(disk) == second);
      const std::set<std::string> expected{"iter_1", name, "last_checkpoint"};
      CHECK(names_in("/run", disk) == std::vector<std::string>(expected.begin(), expected.end()));
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
