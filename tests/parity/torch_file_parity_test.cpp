// Checkpoints that PyTorch itself wrote (record_torch_files.py, several versions) give the values that were saved, by
// the counter formula, and what may not be read is refused with the name of what it is.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "formats/file_kind.h"
#include "formats/torch_file.h"
#include "tests/parity/counted_numbers.h"
#include "tests/support/recorded_path.h"

namespace castor::formats {
namespace {

constexpr const char* kVersions[] = {"torch_1.13", "torch_2.11"};

std::string path_of(const std::string& version, const std::string& name) {
  return test::recorded_path(version + "/" + name + ".pth");
}

template <class T>
double as_double(T value) {
  if constexpr (std::is_arithmetic_v<T>) {
    return static_cast<double>(value);
  } else {
    return static_cast<double>(to_float(value));
  }
}

// The elements of a tensor, read in pieces of an odd length.
std::vector<double> elements_of(const TorchFile& file, const TorchTensor& tensor) {
  std::vector<std::byte> bytes(tensor.bytes());
  const ByteSource source = file.source(tensor);
  for (std::size_t at = 0; at < bytes.size(); at += 13) {
    source(at, std::span(bytes).subspan(at, std::min<std::size_t>(13, bytes.size() - at)));
  }
  CHECK(file.read(tensor) == bytes);
  std::vector<double> elements;
  visit_dtype(tensor.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    for (std::size_t at = 0; at < bytes.size(); at += sizeof(T)) {
      T value;
      std::memcpy(&value, bytes.data() + at, sizeof(T));
      elements.push_back(as_double(value));
    }
  });
  return elements;
}

// What record_torch_files.py calls integers() and eighths().
std::vector<double> integers(std::string_view name, std::int64_t count, std::uint64_t bound) {
  const std::vector<std::int64_t> values = test::counted_integers(name, count, bound);
  return {values.begin(), values.end()};
}
std::vector<double> eighths(std::string_view name, std::int64_t count) {
  std::vector<double> values = integers(name, count, 64);
  for (double& value : values) value = (value - 32) / 8;
  return values;
}

void check_tensor(const TorchFile& file, const TorchStateDict& state, const std::string& name, DType dtype,
                  const std::vector<std::int64_t>& shape, const std::vector<double>& expected) {
  INFO(name);
  const TorchStateTensor* found = state.find(name);
  REQUIRE(found != nullptr);
  CHECK(found->tensor->dtype == dtype);
  CHECK(found->tensor->shape == shape);
  CHECK(elements_of(file, *found->tensor) == expected);
}

TEST_CASE("tensors of every dtype that torch saved have the values that were saved") {
  for (const char* version : kVersions) {
    const TorchFile file = TorchFile::open(path_of(version, "dtypes"));
    CHECK_NOTHROW(file.verify());
    const TorchStateDict state = file.state_dict();
    CHECK(state.tensors.size() == 12);
    check_tensor(file, state, "float32", DType::f32, {3, 5}, eighths("float32", 15));
    check_tensor(file, state, "float64", DType::f64, {3, 5}, eighths("float64", 15));
    check_tensor(file, state, "float16", DType::f16, {3, 5}, eighths("float16", 15));
    check_tensor(file, state, "bfloat16", DType::bf16, {3, 5}, eighths("bfloat16", 15));
    check_tensor(file, state, "int64", DType::i64, {7}, integers("int64", 7, 100));
    check_tensor(file, state, "int32", DType::i32, {7}, integers("int32", 7, 100));
    check_tensor(file, state, "uint8", DType::u8, {7}, integers("uint8", 7, 100));
    check_tensor(file, state, "bool", DType::boolean, {9}, integers("bool", 9, 2));
    check_tensor(file, state, "scalar", DType::f32, {}, eighths("scalar", 1));
    check_tensor(file, state, "count", DType::i64, {}, integers("count", 1, 1000));
    check_tensor(file, state, "empty", DType::f32, {0, 3}, {});
    check_tensor(file, state, "ones", DType::f32, {1, 4, 1}, eighths("ones", 4));
  }
  const TorchFile file = TorchFile::open(path_of("torch_2.11", "float8"));
  const TorchStateDict state = file.state_dict();
  check_tensor(file, state, "e4m3", DType::f8e4m3, {5}, integers("e4m3", 5, 8));
  check_tensor(file, state, "e5m2", DType::f8e5m2, {5}, integers("e5m2", 5, 8));
}

TEST_CASE("tied, transposed, sliced, stepped and expanded tensors of torch have the values that torch showed") {
  const std::vector<double> base = eighths("base", 48);  // 6 x 8
  const std::vector<double> cube = eighths("cube", 24);  // 2 x 3 x 4
  std::vector<double> transposed, columns, every_other, expanded, permuted;
  for (std::size_t i = 0; i < 48; ++i) transposed.push_back(base[i % 6 * 8 + i / 6]);
  for (std::size_t i = 0; i < 18; ++i) columns.push_back(base[i / 3 * 8 + 2 + i % 3]);
  for (std::size_t i = 0; i < 9; ++i) every_other.push_back(base[i / 3 * 16 + i % 3 * 3]);
  for (std::size_t i = 0; i < 24; ++i) expanded.push_back(base[i / 4 * 8]);
  for (std::size_t i = 0; i < 24; ++i) permuted.push_back(cube[i % 6 / 3 * 12 + i % 3 * 4 + i / 6]);
  for (const char* version : kVersions) {
    const TorchFile file = TorchFile::open(path_of(version, "views"));
    const TorchStateDict state = file.state_dict();
    CHECK(state.tensors.size() == 9);
    check_tensor(file, state, "base", DType::f32, {6, 8}, base);
    check_tensor(file, state, "tied", DType::f32, {6, 8}, base);
    check_tensor(file, state, "transposed", DType::f32, {8, 6}, transposed);
    check_tensor(file, state, "columns", DType::f32, {6, 3}, columns);
    check_tensor(file, state, "every_other", DType::f32, {3, 3}, every_other);
    check_tensor(file, state, "row", DType::f32, {8}, {base.begin() + 32, base.begin() + 40});
    check_tensor(file, state, "expanded", DType::f32, {6, 4}, expanded);
    check_tensor(file, state, "permuted", DType::f32, {4, 2, 3}, permuted);
    check_tensor(file, state, "same_values", DType::f32, {6, 8}, base);
    for (const TorchStateTensor& tensor : state.tensors) {
      CHECK(tensor.alias_of.has_value() == (tensor.name == "tied"));
    }
    CHECK(state.tensors[*state.find("tied")->alias_of].name == "base");
  }
}

TEST_CASE("a training checkpoint of torch gives its model, its optimizer's state and its numbers") {
  for (const char* version : kVersions) {
    const TorchFile file = TorchFile::open(path_of(version, "checkpoint"));
    const TorchStateDict state = file.state_dict();
    CHECK(state.key == "state_dict");
    CHECK(state.skipped.empty());
    CHECK(state.tensors.size() == 9);
    check_tensor(file, state, "conv.weight", DType::f32, {3, 2, 3, 3}, eighths("conv.weight", 54));
    check_tensor(file, state, "norm.running_var", DType::f32, {3}, eighths("norm.running_var", 3));
    check_tensor(file, state, "norm.num_batches_tracked", DType::i64, {},
                 integers("norm.num_batches_tracked", 1, 1000));
    check_tensor(file, state, "fc.bias", DType::f32, {2}, eighths("fc.bias", 2));

    // One step of Adam from zero: exp_avg is (1 - beta1) of the gradient, and beta1 is a half.
    const TorchStateDict optimizer = file.state_dict("optimizer");
    std::vector<double> expected = eighths("grad.fc.weight", 8);
    for (double& value : expected) value /= 2;
    check_tensor(file, optimizer, "state.0.exp_avg", DType::f32, {2, 4}, expected);
    CHECK(optimizer.find("state.3.exp_avg_sq") != nullptr);
    const auto is_skipped = [&](const char* name) {
      return std::ranges::find(optimizer.skipped, name) != optimizer.skipped.end();
    };
    CHECK((is_skipped("param_groups.0.lr") && is_skipped("param_groups.1.params.1")));

    const auto* top = file.root().get_if<PickleDict>();
    const auto* meta = top->find("meta")->get_if<PickleDict>();
    CHECK(*meta->find("epoch")->get_if<std::int64_t>() == 3);
    CHECK(*meta->find("iter")->get_if<std::int64_t>() == std::int64_t{1} << 40);
    CHECK(*meta->find("experiment_name")->get_if<std::string>() == "n\xc3\xa4me");
  }
}

TEST_CASE("Python's values come back from torch's pickles of protocol 2 and 5") {
  for (const char* version : kVersions) {
    for (const char* name : {"values", "values5"}) {
      INFO(version << " " << name);
      const TorchFile file = TorchFile::open(path_of(version, name));
      const auto& top = *file.root().get_if<PickleDict>();
      CHECK(top.find("none")->kind_name() == "None");
      CHECK(*top.find("yes")->get_if<bool>());
      CHECK(!*top.find("no")->get_if<bool>());
      std::vector<std::int64_t> whole_numbers;
      for (const PickleValue* item : top.find("integers")->get_if<PickleSequence>()->items) {
        whole_numbers.push_back(*item->get_if<std::int64_t>());
      }
      CHECK(whole_numbers == std::vector<std::int64_t>{0, 255, 256, 65535, 65536, -1, -2147483648, 2147483648,
                                                       std::numeric_limits<std::int64_t>::max(),
                                                       std::numeric_limits<std::int64_t>::min()});
      const auto& floats = top.find("floats")->get_if<PickleSequence>()->items;
      CHECK(*floats[0]->get_if<double>() == 0.5);
      CHECK(*floats[1]->get_if<double>() == -1e300);
      CHECK(std::isinf(*floats[2]->get_if<double>()));
      CHECK(std::isnan(*floats[3]->get_if<double>()));
      CHECK(*top.find("text")->get_if<std::string>() == "gr\xc3\xbc\xc3\x9f \xf0\x9f\x98\x80");
      CHECK(top.find("bytes")->get_if<PickleBytes>()->bytes == std::string("\0\x7f\x80\xff", 4));
      CHECK(top.find("array")->get_if<PickleBytes>()->bytes == "ab");
      const auto& tuples = top.find("tuples")->get_if<PickleSequence>()->items;
      REQUIRE(tuples.size() == 5);
      for (std::size_t i = 0; i < tuples.size(); ++i) {
        CHECK(tuples[i]->kind_name() == "a tuple");
        CHECK(tuples[i]->get_if<PickleSequence>()->items.size() == i);
      }
      CHECK(top.find("set")->kind_name() == "a set");
      CHECK(top.find("frozen")->get_if<PickleSequence>()->items.size() == 1);
      CHECK(top.find("size")->get_if<PickleSequence>()->items.size() == 2);
      CHECK(top.find("device")->get_if<TorchDevice>()->text == "cuda:1");
      CHECK(top.find("dtype")->get_if<PickleName>()->global->dtype == DType::bf16);
      CHECK(top.find("counter")->get_if<PickleDict>()->items.size() == 1);
    }
  }
}

TEST_CASE("parameters keep what they are, and every protocol gives the same tensors") {
  for (const char* version : kVersions) {
    const TorchFile file = TorchFile::open(path_of(version, "parameters"));
    const TorchStateDict state = file.state_dict();
    CHECK(state.key == "model");
    check_tensor(file, state, "plain", DType::f32, {2, 2}, eighths("plain", 4));
    check_tensor(file, state, "marked", DType::f32, {2}, eighths("marked", 2));
    CHECK((state.find("plain")->tensor->is_parameter && state.find("plain")->tensor->requires_grad));
    CHECK((state.find("frozen")->tensor->is_parameter && !state.find("frozen")->tensor->requires_grad));
    CHECK((!state.find("leaf")->tensor->is_parameter && state.find("leaf")->tensor->requires_grad));
    for (const char* name : {"protocol3", "protocol4", "protocol5"}) {
      const TorchFile small = TorchFile::open(path_of(version, name));
      check_tensor(small, small.state_dict(), "weight", DType::f32, {2, 3}, eighths("weight", 6));
    }
  }
}

TEST_CASE("whole modules, numpy's scalars, int16 and files from before 1.6 are refused by name") {
  for (const char* version : kVersions) {
    CHECK_THROWS_WITH_AS(TorchFile::open(path_of(version, "module")),
                         doctest::Contains("\"torch.nn.modules.linear.Linear\" is refused"), FormatError);
    CHECK_THROWS_WITH_AS(TorchFile::open(path_of(version, "short")), doctest::Contains("torch.ShortStorage"),
                         FormatError);
    CHECK_THROWS_WITH_AS(TorchFile::open(path_of(version, "legacy")), doctest::Contains("before version 1.6"),
                         FormatError);
    CHECK(weights_file_kind(path_of(version, "legacy")) == WeightsFileKind::torch_legacy);
    CHECK_THROWS_WITH_AS(TorchFile::open(path_of(version, "numpy")), doctest::Contains("core.multiarray.scalar"),
                         FormatError);
    TorchFileOptions options;
    options.pickle.inert_globals = {"numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype"};
    const TorchFile file = TorchFile::open(path_of(version, "numpy"), options);
    check_tensor(file, file.state_dict(), "weight", DType::f32, {2, 3}, eighths("weight", 6));
    const auto* best = file.root().get_if<PickleDict>()->find("best")->get_if<PickleObject>();
    REQUIRE(best != nullptr);
    CHECK(best->name.ends_with("core.multiarray.scalar"));
  }
}

}  // namespace
}  // namespace castor::formats
