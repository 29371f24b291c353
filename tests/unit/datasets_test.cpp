// The samples' data sets: what a batch holds, that every held-out byte counts once, and that every missing or damaged
// source ends in a typed error with nothing half-written.
#include <algorithm>
#include <cerrno>
#include <numeric>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <zlib.h>

#include "core/base/file_memory.h"
#include "samples/fashion_mnist/dataset.h"
#include "samples/gpt/dataset.h"
#include "samples/gpt/king_james.h"
#include "strategy/config.h"
#include "tests/support/temp_dir.h"

namespace castor::samples {
namespace {

using strategy::ConfigNode;
using test::TempDir;

std::vector<std::int64_t> all_samples(const strategy::Dataset& data) {
  std::vector<std::int64_t> samples(static_cast<std::size_t>(data.size()));
  std::iota(samples.begin(), samples.end(), 0);
  return samples;
}

/// 0, 1, 2, ... 255, 0, ...
std::string counting_text(std::size_t bytes) {
  std::string text(bytes, '\0');
  for (std::size_t i = 0; i < bytes; ++i) text[i] = static_cast<char>(i);
  return text;
}

ByteText byte_text(const std::string& text, ByteTextConfig config, MemoryFileSystem& files) {
  write_file_atomically("text", text, files);
  return ByteText(config, formats::TokenFile::open("text", config.held_out_fraction, files));
}

ByteTextConfig byte_config(const std::string& split, std::int64_t context, double held_out_fraction,
                           std::optional<std::int64_t> stride = {}) {
  ByteTextConfig config;
  config.split = split;
  config.context = context;
  config.stride = stride;
  config.held_out_fraction = held_out_fraction;
  return config;
}

/// The code and text of the error of type E that f throws.
template <class E, class F>
std::string text_of(F&& f) {
  try {
    f();
  } catch (const E& error) {
    return error.what();
  }
  FAIL("no error of this type was thrown");
  return "";
}

bool says(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

TEST_CASE("training windows start at every position and never reach the held-out bytes") {
  MemoryFileSystem files;
  const ByteText data = byte_text(counting_text(100), byte_config("train", 8, 0.2), files);
  CHECK(data.size() == 72);  // 80 bytes to train on; a window and its last target take 9
  const autograd::Batch batch = data.batch(std::vector<std::int64_t>{0, 71, 3});
  CHECK(batch.inputs.shape() == Shape{3, 8});
  CHECK(batch.targets.shape() == Shape{3, 8});
  const auto inputs = batch.inputs.to_vector<std::int64_t>(), targets = batch.targets.to_vector<std::int64_t>();
  for (std::int64_t row = 0; row < 3; ++row) {
    const std::int64_t start = std::vector<std::int64_t>{0, 71, 3}[static_cast<std::size_t>(row)];
    for (std::int64_t i = 0; i < 8; ++i) {
      CHECK(inputs[static_cast<std::size_t>(row * 8 + i)] == start + i);
      CHECK(targets[static_cast<std::size_t>(row * 8 + i)] == start + i + 1);
    }
  }
  CHECK(byte_text(counting_text(100), byte_config("train", 8, 0.2, 5), files).size() == 15);
  CHECK_THROWS_AS(data.batch(std::vector<std::int64_t>{72}), ShapeError);
  CHECK_THROWS_AS(data.batch(std::vector<std::int64_t>{-1}), ShapeError);
}

TEST_CASE("validation windows count every held-out byte once, each after the bytes before it") {
  MemoryFileSystem files;
  const std::string text = counting_text(200);
  for (const std::int64_t held_out : {1, 5, 8, 9, 12, 16, 40, 61}) {
    for (const std::int64_t stride : {1, 3, 4, 8}) {
      CAPTURE(held_out);
      CAPTURE(stride);
      const ByteText data =
          byte_text(text, byte_config("val", 8, static_cast<double>(held_out) / 200 + 1e-9, stride), files);
      const autograd::Batch batch = data.batch(all_samples(data));
      const auto inputs = batch.inputs.to_vector<std::int64_t>(), targets = batch.targets.to_vector<std::int64_t>();
      std::vector<std::int64_t> counted;
      bool follows = true, has_context = true;
      for (std::size_t i = 0; i < targets.size(); ++i) {
        if (targets[i] == ByteText::kNotCounted) continue;
        counted.push_back(targets[i]);
        follows = follows && targets[i] == inputs[i] + 1;
        // Past the first window, a byte is predicted from the overlap at least.
        has_context = has_context && (i < 8 || static_cast<std::int64_t>(i % 8) >= 8 - stride);
      }
      std::vector<std::int64_t> wanted(static_cast<std::size_t>(held_out));
      std::iota(wanted.begin(), wanted.end(), 200 - held_out);
      CHECK(counted == wanted);
      CHECK(follows);
      CHECK(has_context);
      CHECK(data.counted_bytes() == held_out);
    }
  }
}

TEST_CASE("a text that cannot be used is refused with what to do") {
  MemoryFileSystem files;
  CHECK(says(text_of<FormatError>([&] { byte_text("short", byte_config("train", 8, 0), files); }), "smaller context"));
  CHECK_THROWS_AS(byte_text(counting_text(8), byte_config("val", 8, 0.5), files), FormatError);
  CHECK_NOTHROW(byte_text(counting_text(9), byte_config("val", 8, 0.5), files));
  CHECK_THROWS_AS(byte_text("", byte_config("train", 8, 0), files), FormatError);
  CHECK_THROWS_AS(byte_text(counting_text(99), byte_config("val", 8, 0), files), ConfigError);
  CHECK_THROWS_AS(byte_text(counting_text(99), byte_config("val", 8, 0.5, 9), files), ConfigError);
  CHECK_THROWS_AS(byte_text(counting_text(99), byte_config("test", 8, 0.5), files), ConfigError);
  ByteTextConfig config;
  config.path = "/nowhere/text.txt";
  CHECK(says(text_of<IoError>([&] { ByteText{config}; }), "/nowhere/text.txt"));
}

TEST_CASE("the options of a text are checked with the config") {
  const auto mistakes = [](const ConfigNode& node) {
    return text_of<ConfigError>([&] { strategy::parse_config<ByteTextConfig>(node, "text"); });
  };
  ConfigNode node = ConfigNode::map();
  node.set("split", "val");
  node.set("context", 64);
  node.set("stride", 65);
  node.set("held_out_fraction", 0.0);
  CHECK(says(mistakes(node), "stride"));
  CHECK(says(mistakes(node), "held_out_fraction"));
  node.set("stride", 64);
  node.set("held_out_fraction", 0.1);
  CHECK(*strategy::parse_config<ByteTextConfig>(node, "text").stride == 64);
  node.set("split", "valid");
  CHECK(says(mistakes(node), "split"));
}

TextProgram program(const std::string& name, std::vector<std::string> arguments, std::uint64_t least = 1) {
  TextProgram result;
  result.program = name;
  result.arguments = std::move(arguments);
  result.least_bytes = least;
  result.most_bytes = 100'000;
  return result;
}

TEST_CASE("a program's text is its output, and a program that fails is named with what to install") {
  CHECK(run_text_program(program("printf", {"a b\\n"})) == "a b\n");
  CHECK(run_text_program(program("head", {"-c", "70000", "/dev/zero"})).size() == 70000);

  const TextProgram missing = program("no-such-bible-program", {});
  const std::string text = text_of<IoError>([&] { run_text_program(missing); });
  CHECK(says(text, "no-such-bible-program"));
  CHECK(says(text, "apt-get install bible-kjv"));
  try {
    run_text_program(missing);
  } catch (const IoError& error) {
    CHECK(error.code == ENOENT);
    CHECK(error.path == "no-such-bible-program");
  }
  CHECK(says(text_of<IoError>([&] { run_text_program(program("false", {})); }), "exit code 1"));
  CHECK(says(text_of<IoError>([&] { run_text_program(program("/etc/passwd", {})); }), "cannot be started"));
  CHECK(says(text_of<FormatError>([&] { run_text_program(program("printf", {"abc"}, 4)); }), "3 bytes, at least 4"));
  CHECK(says(text_of<FormatError>([&] { run_text_program(program("yes", {})); }), "more than 100000"));
}

TEST_CASE("the King James text is made once and made again when the file is not what was written") {
  MemoryFileSystem files;
  const TextProgram works = program("printf", {"In the beginning"});
  const TextProgram gone = program("no-such-bible-program", {});
  const std::string path = king_james_file("cache/deep", works, files);
  CHECK(path == "cache/deep/king_james.txt");
  CHECK(read_text_file(path, 100, files) == "In the beginning");
  CHECK(king_james_file("cache/deep", gone, files) == path);  // the program is not asked again

  write_file_atomically(path, "In the Beginning", files);  // another byte
  CHECK_THROWS_AS(king_james_file("cache/deep", gone, files), IoError);
  king_james_file("cache/deep", works, files);
  CHECK(read_text_file(path, 100, files) == "In the beginning");

  write_file_atomically(path, "In the begin", files);  // cut short
  king_james_file("cache/deep", works, files);
  CHECK(read_text_file(path, 100, files) == "In the beginning");

  remove_file(path + ".xxh3", files);
  CHECK_THROWS_AS(king_james_file("cache/deep", gone, files), IoError);
  write_file_atomically(path + ".xxh3", std::string(200, 'x'), files);
  CHECK_THROWS_AS(king_james_file("cache/deep", gone, files), IoError);
}

TEST_CASE("a disk too full for the text leaves nothing behind") {
  MemoryFileSystem files;
  files.set_capacity(1000);
  try {
    king_james_file("cache", program("head", {"-c", "5000", "/dev/zero"}), files);
    FAIL("nothing was thrown");
  } catch (const IoError& error) {
    CHECK(error.code == ENOSPC);
  }
  CHECK(list_directory("cache", files).empty());
}

TEST_CASE("the King James text of this machine has its 31102 verses" * doctest::skip(!exists("/usr/bin/bible"))) {
  const std::string text = run_text_program({});
  CHECK(text.starts_with("Ge1:1 In the beginning God created the heaven and the earth.\n"));
  CHECK(text.ends_with("\n"));
  CHECK(std::count(text.begin(), text.end(), '\n') == 31102);
}

// ------------------------------------------------------------------------------------------------ Fashion-MNIST

std::string idx(const std::vector<std::uint32_t>& sizes, const std::string& values) {
  std::string text = {0, 0, 8, static_cast<char>(sizes.size())};
  for (const std::uint32_t size : sizes) {
    for (const int shift : {24, 16, 8, 0}) text += static_cast<char>(size >> shift & 0xff);
  }
  return text + values;
}

std::string gzipped(const std::string& text) {
  z_stream state{};
  REQUIRE(deflateInit2(&state, 6, Z_DEFLATED, 16 + MAX_WBITS, 8, Z_DEFAULT_STRATEGY) == Z_OK);
  std::string out(deflateBound(&state, text.size()) + 64, '\0');
  std::vector<Bytef> in(text.begin(), text.end());
  state.next_in = in.data();
  state.avail_in = static_cast<uInt>(in.size());
  state.next_out = reinterpret_cast<Bytef*>(out.data());
  state.avail_out = static_cast<uInt>(out.size());
  REQUIRE(deflate(&state, Z_FINISH) == Z_STREAM_END);
  out.resize(state.total_out);
  deflateEnd(&state);
  return out;
}

/// Image k is 784 bytes of value 10 k, its label k.
struct SmallSet {
  TempDir folder;
  std::string images;
  std::string labels = idx({4}, std::string{0, 1, 2, 3});
  SmallSet() {
    std::string pixels;
    for (int k = 0; k < 4; ++k) pixels += std::string(784, static_cast<char>(10 * k));
    images = idx({4, 28, 28}, pixels);
  }
  FashionMnist open(double mean = 0, double std = 1) {
    write_file_atomically(folder.path() / "t10k-images-idx3-ubyte.gz", images);
    write_file_atomically(folder.path() / "t10k-labels-idx1-ubyte.gz", labels);
    FashionMnistConfig config;
    config.data_root = folder.path();
    config.split = "test";
    config.mean = mean;
    config.std = std;
    return FashionMnist(config);
  }
};

TEST_CASE("images become floats by byte / 255, mean and deviation, and labels classes") {
  SmallSet set;
  set.images = gzipped(set.images);
  const FashionMnist plain = set.open();
  CHECK(plain.size() == 4);
  const autograd::Batch batch = plain.batch(std::vector<std::int64_t>{2, 0, 3});
  CHECK(batch.inputs.shape() == Shape{3, 1, 28, 28});
  CHECK(batch.inputs.dtype() == DType::f32);
  CHECK(batch.targets.to_vector<std::int64_t>() == std::vector<std::int64_t>{2, 0, 3});
  const auto values = batch.inputs.to_vector<float>();
  CHECK(std::all_of(values.begin(), values.begin() + 784, [](float v) { return v == 20.0f / 255.0f; }));
  CHECK(std::all_of(values.begin() + 784, values.begin() + 1568, [](float v) { return v == 0.0f; }));

  const auto scaled = set.open(0.5, 0.25).batch(std::vector<std::int64_t>{3}).inputs.to_vector<float>();
  CHECK(scaled.front() == (30.0f / 255.0f - 0.5f) / 0.25f);
  CHECK(scaled.back() == scaled.front());
  CHECK_THROWS_AS(plain.batch(std::vector<std::int64_t>{4}), ShapeError);
  CHECK_THROWS_AS(set.open(0, 0), ConfigError);
}

TEST_CASE("missing, cut or foreign image files end in one error that names the file") {
  FashionMnistConfig config;
  config.data_root = "/nowhere";
  const std::string missing = text_of<IoError>([&] { FashionMnist{config}; });
  CHECK(says(missing, "/nowhere/train-images-idx3-ubyte.gz"));
  CHECK(says(missing, "apt-get install dataset-fashion-mnist"));

  const auto error_of = [](const std::string& images, const std::string& labels) {
    SmallSet set;
    if (!images.empty()) set.images = images;
    if (!labels.empty()) set.labels = labels;
    return text_of<FormatError>([&] { set.open(); });
  };
  const std::string whole = gzipped(SmallSet().images);
  CHECK(says(error_of(whole.substr(0, whole.size() / 2), ""), "t10k-images"));
  CHECK(says(error_of(SmallSet().images.substr(0, 3000), ""), "t10k-images"));
  CHECK(says(error_of(SmallSet().images + "x", ""), "t10k-images"));
  CHECK(says(error_of("nonsense", ""), "t10k-images"));
  CHECK(says(error_of(idx({4, 27, 28}, std::string(4 * 27 * 28, 0)), ""), "28 x 28"));
  CHECK(says(error_of(idx({4, 784}, std::string(4 * 784, 0)), ""), "t10k-images"));
  CHECK(says(error_of(idx({0, 28, 28}, ""), idx({0}, "")), "t10k-images"));
  CHECK(says(error_of("", idx({3}, std::string(3, 0))), "3 labels for the 4 images"));
  CHECK(says(error_of("", idx({4}, std::string{0, 1, 10, 3})), "label 2 is 10"));
  CHECK(says(error_of("", idx({4}, std::string{0, 1, 2})), "t10k-labels"));
}

TEST_CASE("Debian's Fashion-MNIST is 60000 and 10000 images of ten equal classes" *
          doctest::skip(!exists("/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz"))) {
  for (const auto& [split, count] : {std::pair{"train", 60000}, std::pair{"test", 10000}}) {
    FashionMnistConfig config;
    config.split = split;
    const FashionMnist data(config);
    CHECK(data.size() == count);
    std::vector<int> classes(10);
    const autograd::Batch batch = data.batch(all_samples(data));
    for (const std::int64_t label : batch.targets.to_vector<std::int64_t>()) ++classes[static_cast<std::size_t>(label)];
    CHECK(classes == std::vector<int>(10, count / 10));
  }
}

}  // namespace
}  // namespace castor::samples
