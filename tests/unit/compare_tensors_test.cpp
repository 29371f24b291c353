// Comparing sources: what counts as equal, how far apart the rest is, and how sources with and without roles meet.
#include "formats/compare_tensors.h"

#include <cmath>

#include <doctest/doctest.h>

#include "core/base/error.h"
#include "core/base/file_memory.h"
#include "tests/support/checkpoint_model.h"
#include "tests/support/small_weights.h"

namespace castor {
namespace {

using formats::TensorSource;
using test::CheckpointModel;

TensorSource open(const std::string& path, FileSystem& files) { return formats::open_tensor_source(path, {}, files); }

TEST_CASE("comparing finds missing tensors, shapes and values, and says how far they are apart") {
  MemoryFileSystem files;
  const float nan = NAN, other_nan = -NAN;
  test::write_floats("/a.safetensors",
                     {{"same", {{3}, {1, nan, 3}}},
                      {"values", {{2, 2}, {1, 2, 3, 4}}},
                      {"zero", {{1}, {0.0F}}},
                      {"nan", {{2}, {nan, 1}}},
                      {"shape", {{2}, {1, 2}}},
                      {"a", {{1}, {1}}}},
                     files);
  test::write_floats("/b.safetensors",
                     {{"same", {{3}, {1, nan, 3}}},
                      {"values", {{2, 2}, {1, 2, 3.5F, 4.25F}}},
                      {"zero", {{1}, {-0.0F}}},
                      {"nan", {{2}, {other_nan, 1}}},
                      {"shape", {{2, 1}, {1, 2}}},
                      {"b", {{1}, {1}}}},
                     files);
  const TensorSource a = open("/a.safetensors", files), b = open("/b.safetensors", files);
  const formats::CompareReport report = formats::compare_sources(a, b);
  using Kind = formats::TensorDifference::Kind;
  REQUIRE(report.differences.size() == 6);
  CHECK(report.compared == 4);
  CHECK(report.differences[0].kind == Kind::only_in_a);
  CHECK(report.differences[1].kind == Kind::only_in_b);
  CHECK(report.differences[1].name == "b");
  CHECK(report.differences[2].name == "nan");
  CHECK(report.differences[2].values.differing == 1);
  CHECK(report.differences[2].values.max_absolute == INFINITY);
  CHECK(report.differences[3].kind == Kind::shape);
  CHECK(report.differences[4].name == "values");
  CHECK(report.differences[4].values.differing == 2);
  CHECK(report.differences[4].values.first == 2);
  CHECK(report.differences[4].values.max_absolute == 0.5);
  CHECK(report.differences[4].values.max_relative == doctest::Approx(0.5 / 3.5));
  CHECK(report.differences[5].name == "zero");
  CHECK(report.differences[5].values.max_absolute == 0);
  formats::CompareOptions loose;
  loose.tolerance = 0.25;
  const formats::CompareReport close = formats::compare_sources(a, b, loose);
  REQUIRE(close.differences.size() == 4);
  CHECK(close.differences[2].name == "nan");
  CHECK(formats::compare_sources(a, a).equal());
}

TEST_CASE("dtypes may differ, integers are compared exactly, and a bit in a late block is found") {
  MemoryFileSystem files;
  const std::vector<float> f32(600'000, 1.5F);
  const std::vector<std::uint16_t> bf16(600'000, 0x3FC0);
  const std::vector<std::int64_t> large = {std::int64_t{1} << 60, INT64_MIN};
  std::vector<std::int64_t> larger = {(std::int64_t{1} << 60) + 1, INT64_MAX};
  const auto write = [&files](const std::string& path, DType dtype, std::span<const std::byte> w,
                              const std::vector<std::int64_t>& n) {
    const std::vector<formats::SafetensorsTensor> tensors = {{"w", dtype, {600, 1000}, w},
                                                             {"n", DType::i64, {2}, std::as_bytes(std::span(n))}};
    formats::write_safetensors(path, tensors, {}, files);
  };
  write("/a", DType::f32, std::as_bytes(std::span(f32)), large);
  write("/b", DType::bf16, std::as_bytes(std::span(bf16)), large);
  const formats::CompareReport rounded = formats::compare_sources(open("/a", files), open("/b", files));
  CHECK(rounded.equal());
  CHECK(rounded.other_dtypes == 1);
  std::vector<float> changed = f32;
  changed[599'000] = 1.75F;
  write("/c", DType::f32, std::as_bytes(std::span(changed)), larger);
  std::uint64_t told = 0;
  formats::CompareOptions options;
  options.progress = [&told](std::uint64_t bytes) { told = bytes; };
  const TensorSource a = open("/a", files), c = open("/c", files);
  const formats::CompareReport report = formats::compare_sources(a, c, options);
  REQUIRE(report.differences.size() == 2);
  CHECK(report.differences[0].values.differing == 2);
  CHECK(report.differences[0].values.max_absolute == 18446744073709551615.0);
  CHECK(report.differences[1].values.first == 599'000);
  CHECK(told == formats::bytes_to_compare(a, c));
  CHECK(told == 2 * (600'000 * 4 + 16));
}

TEST_CASE("checkpoints of different numbers of ranks are equal, role by role") {
  MemoryFileSystem files;
  const CheckpointModel model = CheckpointModel::random(6), other = CheckpointModel::random(7);
  model.save("/one", 1, 1, 6, files);
  model.save("/five", 5, 9, 66, files);
  other.save("/other", 2, 1, 7, files);
  const TensorSource one = open("/one", files), five = open("/five", files);
  const formats::CompareReport report = formats::compare_sources(one, five);
  CHECK(report.equal());
  CHECK(report.compared == model.entries.size());
  formats::CompareOptions options;
  options.role = "exp_avg";
  CHECK(formats::compare_sources(one, five, options).compared < model.entries.size());
  options.role = "ema";
  CHECK_THROWS_AS(formats::compare_sources(one, five, options), FormatError);
  CHECK(!formats::compare_sources(one, open("/other", files)).equal());
}

TEST_CASE("further names of tied tensors are compared as far as both sides note them") {
  MemoryFileSystem files;
  const test::Floats one{{1}, {1}}, two{{1}, {2}};
  test::write_floats("/noted", {{"w", one}}, files, {{"head", "w"}});
  test::write_floats("/not_noted", {{"w", one}}, files);
  test::write_floats("/untied", {{"w", one}, {"head", two}}, files);
  test::write_floats("/other_way", {{"head", one}}, files, {{"w", "head"}});
  const TensorSource noted = open("/noted", files);
  CHECK(formats::compare_sources(noted, open("/other_way", files)).equal());
  const formats::CompareReport not_noted = formats::compare_sources(noted, open("/not_noted", files));
  CHECK(not_noted.equal());
  CHECK(not_noted.unnoted_aliases == 1);
  const formats::CompareReport untied = formats::compare_sources(noted, open("/untied", files));
  REQUIRE(untied.differences.size() == 1);
  CHECK(untied.differences[0].name == "head");
  CHECK(untied.differences[0].values.max_absolute == 1);
}

}  // namespace
}  // namespace castor
