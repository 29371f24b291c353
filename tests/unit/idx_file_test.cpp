// IDX files and token files: good ones, plain and gzipped, and every way of being cut, damaged or hostile.
#include "formats/idx_file.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <zlib.h>

#include "core/base/file_memory.h"
#include "formats/token_file.h"

namespace castor::formats {
namespace {

std::string idx_text(const std::vector<std::uint32_t>& sizes, const std::string& values, char type = 8) {
  std::string text = {0, 0, type, static_cast<char>(sizes.size())};
  for (const std::uint32_t size : sizes) {
    for (const int shift : {24, 16, 8, 0}) text += static_cast<char>(size >> shift & 0xff);
  }
  return text + values;
}

std::string gzipped(const std::string& text) {
  z_stream state{};
  REQUIRE(deflateInit2(&state, 9, Z_DEFLATED, 16 + MAX_WBITS, 8, Z_DEFAULT_STRATEGY) == Z_OK);
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

IdxArray read(const std::string& contents, const IdxOptions& options = {}) {
  MemoryFileSystem files;
  write_file_atomically("/data", contents, files);
  return read_idx_file("/data", options, files);
}

void check_refused(const std::string& contents, std::string_view reason, const IdxOptions& options = {}) {
  try {
    read(contents, options);
    FAIL("the file was accepted");
  } catch (const FormatError& error) {
    const std::string text = error.what();
    INFO(text);
    CHECK(error.file == "/data");
    CHECK(error.offset <= contents.size());
    CHECK(text.find(reason) != std::string::npos);
  }
}

TEST_CASE("an array of bytes is read the same from a plain and from a gzipped file") {
  std::string values(3 * 4 * 5, '\0');
  std::iota(values.begin(), values.end(), static_cast<char>(200));
  for (const std::string& contents : {idx_text({3, 4, 5}, values), gzipped(idx_text({3, 4, 5}, values))}) {
    const IdxArray array = read(contents, {.axes = 3});
    CHECK(array.shape == std::vector<std::int64_t>{3, 4, 5});
    CHECK(std::equal(array.values.begin(), array.values.end(), values.begin(), values.end(),
                     [](std::uint8_t a, char b) { return a == static_cast<std::uint8_t>(b); }));
  }
}

TEST_CASE("an array larger than the buffers is read whole, and one without elements too") {
  std::string values(3'000'001, '\0');
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<char>(i * i >> 3);
  const std::vector<std::uint8_t> expected(values.begin(), values.end());
  CHECK(read(idx_text({3'000'001}, values)).values == expected);
  CHECK(read(gzipped(idx_text({3'000'001}, values))).values == expected);
  CHECK(read(idx_text({0, 28, 28}, "")).values.empty());
  CHECK(read(gzipped(idx_text({0, 28, 28}, ""))).shape == std::vector<std::int64_t>{0, 28, 28});
}

TEST_CASE("a header that is not the one asked for is refused in words") {
  check_refused("", "ends inside the header");
  check_refused(std::string("\0\0\x08", 3), "ends inside the header");
  check_refused("PK\3\4....", "begins with two zero bytes");
  check_refused(idx_text({2}, "ab", 0x0d), "expected elements of type 8 (unsigned bytes), got type 13");
  check_refused(idx_text({}, ""), "expected 1 to 8 axes, got 0");
  check_refused(idx_text(std::vector<std::uint32_t>(9, 1), "a"), "expected 1 to 8 axes, got 9");
  check_refused(idx_text({2}, "ab"), "expected 3 axes, got 1", {.axes = 3});
}

TEST_CASE("sizes that the file cannot hold are refused before memory is taken") {
  const std::vector<std::uint32_t> huge(8, 0xffffffff);
  check_refused(idx_text(huge, "ab"), "exceed the 1073741824 bytes accepted");
  check_refused(gzipped(idx_text(huge, "ab")), "exceed the 1073741824 bytes accepted");
  check_refused(idx_text({60000, 28, 28}, "ab"), "more than a file of 18 bytes can hold");
  check_refused(gzipped(idx_text({60000, 28, 28}, "ab")), "can hold");
  check_refused(idx_text({11}, "12345678901"), "exceed the 10 bytes accepted", {.max_bytes = 10});
}

TEST_CASE("a bomb inflates no further than its header says") {
  const std::string bomb = gzipped(idx_text({4}, std::string(5'000'000, '\0')));
  CHECK(bomb.size() < 6'000);
  check_refused(bomb, "expected the data to end after 4 bytes");
  const IdxArray array = read(gzipped(idx_text({2'000'000}, std::string(2'000'000, '\0'))));
  CHECK(array.values.size() == 2'000'000);
}

TEST_CASE("too few and too many values are refused") {
  check_refused(idx_text({5}, "1234"), "need 5 bytes, the file has 4");
  check_refused(idx_text({2, 2}, "12345"), "expected the data to end after 4 bytes");
  check_refused(gzipped(idx_text({5}, "1234")), "need 5 bytes, the file has 4");
  check_refused(gzipped(idx_text({2, 2}, "12345")), "expected the data to end after 4 bytes");
  check_refused(gzipped(idx_text({2, 2}, "1234")) + "x", "bytes follow the end of the gzip data");
}

TEST_CASE("a gzipped file that is cut anywhere or damaged anywhere is refused or gives the same values") {
  std::string values;
  for (int i = 0; i < 400; ++i) values += static_cast<char>(i * i % 61);
  const std::string whole = gzipped(idx_text({20, 20}, values));
  const std::vector<std::uint8_t> expected(values.begin(), values.end());
  for (std::size_t size = 0; size < whole.size(); ++size) {
    CHECK_THROWS_AS(read(whole.substr(0, size)), FormatError);
  }
  for (std::size_t bit = 0; bit < 8 * whole.size(); ++bit) {
    std::string damaged = whole;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << bit % 8));
    try {
      const IdxArray array = read(damaged);
      CHECK(array.values == expected);  // only gzip's time, flags and system bytes may differ
    } catch (const FormatError&) {
    }
  }
}

TEST_CASE("a missing file says what brings it, other failures do not") {
  MemoryFileSystem files;
  const IdxOptions options{.missing_hint = "Debian's package brings it: apt-get install dataset-fashion-mnist"};
  CHECK_THROWS_WITH_AS(
      read_idx_file("/none.gz", options, files),
      "open \"/none.gz\": No such file or directory (ENOENT); Debian's package brings it: apt-get install "
      "dataset-fashion-mnist",
      IoError);
  REQUIRE(files.make_directory("/folder") == 0);
  try {
    read_idx_file("/folder", options, files);
    FAIL("a folder is no file");
  } catch (const IoError& error) {
    CHECK(error.code == EISDIR);
  }
}

TEST_CASE("the Fashion-MNIST files that Debian ships are read") {
  const std::string folder = "/usr/share/datasets/fashion-mnist";
  if (!exists(folder)) {
    MESSAGE("not installed: dataset-fashion-mnist");
    return;
  }
  const IdxArray images = read_idx_file(folder + "/t10k-images-idx3-ubyte.gz", {.axes = 3});
  const IdxArray labels = read_idx_file(folder + "/t10k-labels-idx1-ubyte.gz", {.axes = 1});
  CHECK(images.shape == std::vector<std::int64_t>{10000, 28, 28});
  CHECK(labels.shape == std::vector<std::int64_t>{10000});
  std::vector<int> counts(10);
  for (const std::uint8_t label : labels.values) {
    REQUIRE(label < 10);
    ++counts[label];
  }
  CHECK(counts == std::vector<int>(10, 1000));
}

TEST_CASE("a token file is split at a byte that only its size and the fraction decide") {
  MemoryFileSystem files;
  std::string text(4'404'412, 'a');
  for (std::size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>(i % 251);
  write_file_atomically("/text", text, files);
  const TokenFile tokens = TokenFile::open("/text", 0.05, files);
  CHECK(tokens.all().size() == text.size());
  CHECK(tokens.held_out().size() == 220'220);
  CHECK(tokens.train().size() == text.size() - 220'220);
  CHECK(tokens.held_out()[0] == static_cast<std::uint8_t>(tokens.train().size() % 251));
  const std::vector<TokenFile> copies(2, tokens);
  CHECK(copies[1].all().data() == tokens.all().data());  // copies share one mapping
  CHECK(TokenFile::open("/text", 0, files).held_out().empty());
}

TEST_CASE("a token file that is missing, empty or too short for its split is refused") {
  MemoryFileSystem files;
  CHECK_THROWS_AS(TokenFile::open("/none", 0.05, files), IoError);
  write_file_atomically("/text", "", files);
  CHECK_THROWS_AS(TokenFile::open("/text", 0.05, files), FormatError);
  write_file_atomically("/text", "0123456789", files);
  CHECK_THROWS_AS(TokenFile::open("/text", 0.05, files), FormatError);
  CHECK(TokenFile::open("/text", 0.1, files).held_out().size() == 1);
  CHECK_THROWS_AS(TokenFile::open("/text", 1.0, files), ConfigError);
  CHECK_THROWS_AS(TokenFile::open("/text", -0.1, files), ConfigError);
  CHECK_THROWS_AS(TokenFile::open("/text", std::nan(""), files), ConfigError);
}

}  // namespace
}  // namespace castor::formats
