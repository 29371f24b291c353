// PyTorch checkpoints as files: archive and pickle together, state dicts, views of tensors, kinds of files. What real
// torch wrote is read in tests/parity/torch_file_parity_test.cpp; here files are composed, most of them wrong.
#include "formats/torch_file.h"

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "core/base/file_memory.h"
#include "formats/file_kind.h"
#include "tests/support/pickle_writer.h"

namespace castor::formats {
namespace {

using namespace test::pickle;  // NOLINT(google-build-using-namespace)
using test::WrittenZip;
using Storages = std::vector<std::pair<std::string, std::string>>;

std::string counting_bytes(std::size_t count) {
  std::string bytes(count, '\0');
  for (std::size_t i = 0; i < count; ++i) bytes[i] = static_cast<char>(i);
  return bytes;
}

TorchFile open(const std::string& contents, MemoryFileSystem& files, const TorchFileOptions& options = {}) {
  write_file_atomically("/m.pth", contents, files);
  return TorchFile::open("/m.pth", options, files);
}

TorchFile open_pickle(const std::string& value, const Storages& storages, MemoryFileSystem& files,
                      const TorchFileOptions& options = {}) {
  return open(checkpoint(whole(value), storages).bytes, files, options);
}

template <class Function>
void check_refused(std::string_view reason, const Function& function) {
  try {
    function();
  } catch (const FormatError& error) {
    const std::string said = error.what();
    INFO(said);
    CHECK(said.find(reason) != std::string::npos);
    CHECK(error.file == "/m.pth");
    return;
  }
  FAIL("accepted, expected: " << reason);
}

void check_file_refused(const std::string& contents, std::string_view reason) {
  check_refused(reason, [&] {
    MemoryFileSystem files;
    open(contents, files);
  });
}

void check_state_refused(const std::string& value, std::string_view reason, std::string_view key = {},
                         const TorchFileOptions& options = {}) {
  check_refused(reason, [&] {
    MemoryFileSystem files;
    open_pickle(value, {{"0", counting_bytes(24)}}, files, options).state_dict(key);
  });
}

std::string vector_of_six() { return tensor(storage("FloatStorage", "0", 6), 0, {6}, {1}); }

std::string text_of(const std::vector<std::byte>& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

std::vector<std::string> names_of(const TorchStateDict& state) {
  std::vector<std::string> names;
  for (const TorchStateTensor& tensor : state.tensors) names.push_back(tensor.name);
  return names;
}

TEST_CASE("a state dict is found at the top or under the usual keys, or the one that is named") {
  MemoryFileSystem files;
  const Storages storages{{"0", counting_bytes(24)}};
  const std::string state = dict({text("module.w"), vector_of_six(), text("note"), text("no tensor")});
  const TorchStateDict top = open_pickle(state, storages, files).state_dict();
  CHECK(top.key.empty());
  CHECK(names_of(top) == std::vector<std::string>{"module.w"});
  CHECK(top.skipped == formats::SegmentedList<std::string>{"note"});
  CHECK(top.find("module.w") == &top.tensors[0]);
  CHECK(top.find("w") == nullptr);
  for (const char* key : {"state_dict", "model_state_dict", "model", "module"}) {
    const TorchFile file = open_pickle(dict({text("epoch"), integer(3), text(key), state}), storages, files);
    CHECK(file.state_dict().key == key);
    CHECK(names_of(file.state_dict()) == std::vector<std::string>{"module.w"});
  }
  const std::string two = dict({text("ema"), dict({text("e"), vector_of_six()}), text("state_dict"), state});
  CHECK(open_pickle(two, storages, files).state_dict().key == "state_dict");
  CHECK(names_of(open_pickle(two, storages, files).state_dict("ema")) == std::vector<std::string>{"e"});
  CHECK(open_pickle("}", {}, files).state_dict().tensors.empty());
  // "model" is a tensor here, and no folder of tensors.
  CHECK(names_of(open_pickle(dict({text("model"), vector_of_six()}), storages, files).state_dict()) ==
        std::vector<std::string>{"model"});
}

TEST_CASE("inner dicts and lists are joined by dots, as an optimizer's state is") {
  MemoryFileSystem files;
  const std::string optimizer =
      dict({text("state"), dict({integer(0), dict({text("step"), integer(5), text("exp_avg"), vector_of_six()})}),
            text("groups"), list({dict({text("lr"), op('G', 0, 8), text("t"), vector_of_six()})})});
  const TorchStateDict state =
      open_pickle(dict({text("optimizer"), optimizer}), {{"0", counting_bytes(24)}}, files).state_dict("optimizer");
  CHECK(names_of(state) == std::vector<std::string>{"state.0.exp_avg", "groups.0.t"});
  CHECK(state.skipped == formats::SegmentedList<std::string>{"state.0.step", "groups.0.lr"});
  CHECK(state.tensors[1].alias_of == 0);
}

TEST_CASE("a file whose model cannot be told, or whose names clash, is refused") {
  check_state_refused(dict({text("optimizer"), dict({text("w"), vector_of_six()}), integer(1), "N"}),
                      "name the key to take, one of: \"optimizer\", an integer");
  check_state_refused(vector_of_six(), "expected a dict of tensors at the top, the file has a tensor");
  check_state_refused(dict({text("w"), vector_of_six()}), "a dict under the key \"ema\", the file has none", "ema");
  check_state_refused(dict({text("w"), vector_of_six()}), "the file has a tensor; its keys: \"w\"", "w");
  check_state_refused(dict({text("w"), vector_of_six(), op('G', 0, 8), "N"}), "got a float");
  check_state_refused(dict({text("a.b"), vector_of_six(), text("a"), dict({text("b"), vector_of_six()})}),
                      "two tensors are called \"a.b\"");
  check_state_refused(dict({text("0"), vector_of_six(), integer(0), vector_of_six()}), "two tensors are called \"0\"");
}

TEST_CASE("long names that repeat each other are refused before they fill memory") {
  const auto key_and_tensor = [](std::size_t bytes) {
    return text(std::string(bytes, 'k')) + op('q', 0, 1) + "0" + text("w") + vector_of_six();
  };
  // Ten keys of 200 bytes inside each other.
  std::string inner = "N";
  for (int i = 0; i < 10; ++i) inner = "(" + op('h', 0, 1) + inner + "d";
  check_state_refused("(" + key_and_tensor(200) + text("deep") + inner + "d", "makes one of more than 1024 bytes");
  // A quarter of a million leaves under names of 900: a dict of 500, shared by 500 others.
  std::string leaves = "(";
  for (int i = 0; i < 500; ++i) leaves += integer(i) + "N";
  leaves = "(" + op('h', 0, 1) + leaves + "d" + "d" + op('q', 1, 1);
  std::string shared = text("deep") + "(" + integer(0) + leaves;
  for (int i = 1; i < 500; ++i) shared += integer(i) + op('h', 1, 1);
  check_state_refused("(" + key_and_tensor(900) + shared + "d" + "d", "the tensors' names take more than");
}

TEST_CASE("tied tensors are aliases, other views of the same bytes are not") {
  MemoryFileSystem files;
  const std::string store = storage("FloatStorage", "0", 6);
  const TorchFile file =
      open_pickle(dict({text("a"), tensor(store, 0, {2, 3}, {3, 1}), text("tied"), tensor(store, 0, {2, 3}, {3, 1}),
                        text("transposed"), tensor(store, 0, {3, 2}, {1, 3}), text("row"), tensor(store, 3, {3}, {1}),
                        text("ints"), tensor(storage("IntStorage", "0", 6), 0, {2, 3}, {3, 1}), text("empty"),
                        tensor(store, 0, {0}, {1}), text("empty too"), tensor(store, 0, {0}, {1})}),
                  {{"0", counting_bytes(24)}}, files);
  const TorchStateDict state = file.state_dict();
  REQUIRE(state.tensors.size() == 7);
  CHECK(state.find("tied")->alias_of == 0);
  for (const char* name : {"a", "transposed", "row", "ints", "empty", "empty too"}) {
    CHECK(!state.find(name)->alias_of);
  }
  CHECK(text_of(file.read(*state.find("a")->tensor)) == counting_bytes(24));
  CHECK(text_of(file.read(*state.find("row")->tensor)) == counting_bytes(24).substr(12));
  const std::string bytes = counting_bytes(24);
  std::string transposed;
  for (const int element : {0, 3, 1, 4, 2, 5}) transposed += bytes.substr(static_cast<std::size_t>(element) * 4, 4);
  CHECK(text_of(file.read(*state.find("transposed")->tensor)) == transposed);
  CHECK(file.read(*state.find("empty")->tensor).empty());
}

TEST_CASE("an expanded tensor shows no more bytes than the limit allows") {
  const auto expanded = [](std::int64_t rows) {
    return dict({text("w"), tensor(storage("FloatStorage", "0", 6), 0, {rows, 6}, {0, 1})});
  };
  MemoryFileSystem files;
  const TorchFile small = open_pickle(expanded(100), {{"0", counting_bytes(24)}}, files);
  const std::string shown = text_of(small.read(*small.state_dict().tensors[0].tensor));
  CHECK(shown.size() == 2400);
  CHECK(shown.substr(2376) == counting_bytes(24));

  check_state_refused(expanded(std::int64_t{1} << 40), "save tensor.contiguous() or raise max_logical_bytes");
  TorchFileOptions options;
  options.max_logical_bytes = 1000;
  check_state_refused(expanded(42), "a tensor f32[42,6] shows 1008 bytes of a storage of 24; at most 1000 are read", {},
                      options);
  // Together: forty rows of one base, each tensor small.
  std::string many = "(";
  for (int i = 0; i < 40; ++i) {
    many += integer(i) + tensor(storage("FloatStorage", "0", 6), 0, {10, i % 5 + 1}, {0, 1});
  }
  many += text("w") + vector_of_six();
  check_state_refused(many + "d", "its tensors show more than 500 bytes", {}, [] {
    TorchFileOptions tight;
    tight.max_logical_bytes = 500;
    return tight;
  }());
}

TEST_CASE("a storage must be in the archive with the size that the pickle says") {
  const std::string value = dict({text("w"), vector_of_six()});
  check_file_refused(checkpoint(whole(value)).bytes, "the archive has no \"m/data/0\"");
  for (const std::size_t size : {0, 23, 28, 240}) {
    check_file_refused(checkpoint(whole(value), {{"0", counting_bytes(size)}}).bytes, "is said to have 6 elements");
  }
  const std::string outside = dict({text("w"), tensor(storage("FloatStorage", "../../etc/passwd", 6), 0, {6}, {1})});
  check_file_refused(checkpoint(whole(outside), {{"0", counting_bytes(24)}}).bytes,
                     "the archive has no \"m/data/../../etc");
  check_file_refused(checkpoint(whole(outside), {{"../../etc/passwd", counting_bytes(24)}}).bytes, "leaves its folder");
}

TEST_CASE("byte order, version, TorchScript and missing pickles are checked") {
  const std::string pickle = whole("}");
  const auto archive = [&](const Storages& more) {
    Storages entries{{"any name/data.pkl", pickle}};
    entries.insert(entries.end(), more.begin(), more.end());
    return test::write_zip(entries).bytes;
  };
  MemoryFileSystem files;
  CHECK_NOTHROW(open(archive({}), files));
  CHECK_NOTHROW(open(archive({{"any name/byteorder", "little"}, {"any name/version", "3\n"}}), files));
  CHECK_NOTHROW(open(archive({{"any name/version", "10"}, {"any name/.data/serialization_id", "1"}}), files));
  check_file_refused(archive({{"any name/byteorder", "big"}}), "byte order \"little\", got \"big\"");
  check_file_refused(archive({{"any name/byteorder", std::string(17, 'l')}}), "expected 1 to 16 bytes");
  for (const char* version : {"0", "11", "-1", "x", "3x", "99999999999"}) {
    check_file_refused(archive({{"any name/version", version}}), "expected a version from 1 to 10");
  }
  check_file_refused(archive({{"any name/constants.pkl", "x"}}), "TorchScript");
  check_file_refused(archive({{"b/data.pkl", pickle}}), "two folders with a data.pkl");
  check_file_refused(test::write_zip({{"data.pkl", pickle}}).bytes, "it is no PyTorch checkpoint");
  check_file_refused(test::write_zip({{"a/b/data.pkl", pickle}}).bytes, "it is no PyTorch checkpoint");
  check_file_refused(test::write_zip({}).bytes, "no format of weights");

  WrittenZip damaged = checkpoint(whole(text("note")));
  damaged.bytes[damaged.data[0] + 8] ^= 1;
  check_file_refused(damaged.bytes, "CRC-32");
  TorchFileOptions options;
  options.pickle.max_bytes = 3;
  check_refused("at most 3 are read", [&] { open_pickle("}", {}, files, options); });
}

TEST_CASE("errors of the pickle point into the file") {
  const WrittenZip zip = checkpoint(whole(list({"N", global("os", "system")})));
  MemoryFileSystem files;
  try {
    open(zip.bytes, files);
    FAIL("accepted");
  } catch (const FormatError& error) {
    CHECK(error.offset == zip.data[0] + 4);
    CHECK(zip.bytes.substr(error.offset, 10) == "cos\nsystem");
  }
}

TEST_CASE("damage that verify finds names the entry") {
  WrittenZip zip = checkpoint(whole(dict({text("w"), vector_of_six()})), {{"0", counting_bytes(24)}});
  MemoryFileSystem files;
  CHECK_NOTHROW(open(zip.bytes, files).verify());
  zip.bytes[zip.data[1] + 3] ^= 0x40;
  check_refused("\"m/data/0\"", [&] { open(zip.bytes, files).verify(); });
}

TEST_CASE("every changed byte of a checkpoint's pickle is refused or gives tensors within their storages") {
  const std::string pickle =
      whole(dict({text("state_dict"), dict({text("w"), tensor(storage("FloatStorage", "0", 6), 0, {2, 3}, {3, 1})}),
                  text("epoch"), integer(2), text("lr"), op('G', 1, 8)}));
  std::size_t read = 0;
  for (std::size_t at = 0; at < pickle.size(); ++at) {
    for (const int flip : {0x01, 0x10, 0x80, 0xFF}) {
      std::string changed = pickle;
      changed[at] = static_cast<char>(changed[at] ^ flip);
      MemoryFileSystem files;
      try {
        const TorchFile file = open(checkpoint(changed, {{"0", counting_bytes(24)}}).bytes, files);
        for (const TorchStateTensor& tensor : file.state_dict().tensors) read += file.read(*tensor.tensor).size();
      } catch (const FormatError& error) {
        CHECK(error.file == "/m.pth");
      }
    }
  }
  CHECK(read > 0);
}

TEST_CASE("a file moved from one place to another keeps its tensors") {
  MemoryFileSystem files;
  TorchFile first = open_pickle(dict({text("w"), vector_of_six()}), {{"0", counting_bytes(24)}}, files);
  const TorchStateDict state = first.state_dict();
  const ByteSource source = first.source(*state.tensors[0].tensor);
  const TorchFile second = std::move(first);
  CHECK(text_of(second.read(*state.tensors[0].tensor)) == counting_bytes(24));
  std::vector<std::byte> part(5);
  source(7, part);
  CHECK(text_of(part) == counting_bytes(24).substr(7, 5));
}

TEST_CASE("formats are told by their first bytes") {
  const auto kind = [](const std::string& contents) {
    MemoryFileSystem files;
    write_file_atomically("/w.bin", contents, files);
    return weights_file_kind("/w.bin", files);
  };
  const std::string legacy = "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.";
  CHECK(kind(std::string("\x02\0\0\0\0\0\0\0{}", 10)) == WeightsFileKind::safetensors);
  CHECK(kind(std::string("\x03\0\0\0\0\0\0\0{}", 10)) == WeightsFileKind::unknown);
  CHECK(kind(checkpoint(whole("}")).bytes) == WeightsFileKind::zip);
  CHECK(kind(legacy) == WeightsFileKind::torch_legacy);
  CHECK(kind(whole("}")) == WeightsFileKind::pickle);
  CHECK(kind("") == WeightsFileKind::unknown);
  CHECK(kind("PK") == WeightsFileKind::unknown);
  check_file_refused(legacy, "from before version 1.6: load it with torch 1.6 or later where you trust it");
  check_file_refused(whole("}"), "this is a bare pickle");
  check_file_refused(std::string("\x02\0\0\0\0\0\0\0{}", 10), "this is a safetensors file");
}

}  // namespace
}  // namespace castor::formats
