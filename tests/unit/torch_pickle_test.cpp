// The restricted unpickler: plain data comes out, and everything by which a pickle runs code, fills memory or points
// outside of itself is refused at its byte. Pickles are put together by tests/support/pickle_writer.h.
#include "formats/torch_pickle.h"

#include <cmath>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

#include "core/base/file.h"
#include "tests/support/pickle_writer.h"

namespace castor::formats {
namespace {

using test::pickle::call;
using test::pickle::dict;
using test::pickle::global;
using test::pickle::integer;
using test::pickle::integers;
using test::pickle::list;
using test::pickle::op;
using test::pickle::storage;
using test::pickle::tensor;
using test::pickle::text;
using test::pickle::tuple;
using test::pickle::whole;

constexpr std::uint64_t kFileOffset = 1000;

PickleTree parse(const std::string& pickle, const PickleOptions& options = {}) {
  return parse_torch_pickle(as_byte_span(pickle), "/m.pth", kFileOffset, options);
}

FormatError refusal_of(const std::string& pickle, const PickleOptions& options = {}) {
  try {
    parse(pickle, options);
  } catch (const FormatError& error) {
    CHECK(error.file == "/m.pth");
    CHECK(error.offset >= kFileOffset);
    CHECK(error.offset <= kFileOffset + pickle.size());
    return error;
  }
  FAIL("the pickle was accepted");
  return {"", "", 0};
}

// Refuses the pickle of one value, for this reason.
void check_refused(const std::string& value, std::string_view reason, const PickleOptions& options = {}) {
  const std::string said = refusal_of(whole(value), options).what();
  INFO(said);
  CHECK(said.find(reason) != std::string::npos);
}

template <class T>
T value_of(const std::string& value) {
  const PickleTree tree = parse(whole(value));
  const T* data = tree.root->get_if<T>();
  REQUIRE(data != nullptr);
  return *data;
}

std::string float_storage(std::int64_t numel = 6) { return storage("FloatStorage", "0", numel); }

TEST_CASE("numbers, texts and bytes of every encoding come back") {
  CHECK(parse(whole("N")).root->kind_name() == "None");
  CHECK(value_of<bool>(op(0x88)) == true);
  CHECK(value_of<bool>(op(0x89)) == false);
  CHECK(value_of<std::int64_t>(op('K', 255, 1)) == 255);
  CHECK(value_of<std::int64_t>(op('M', 65535, 2)) == 65535);
  CHECK(value_of<std::int64_t>(op('J', 0xFFFFFFFE, 4)) == -2);
  CHECK(value_of<std::int64_t>(op(0x8A, 0, 1)) == 0);
  CHECK(value_of<std::int64_t>(op(0x8A, 1, 1) + "\x80") == -128);
  CHECK(value_of<std::int64_t>(op(0x8A, 2, 1) + std::string("\xff\x00", 2)) == 255);
  CHECK(value_of<std::int64_t>(op(0x8B, 3, 4) + "\xff\xff\xff") == -1);
  for (const std::int64_t value :
       {std::numeric_limits<std::int64_t>::min(), std::numeric_limits<std::int64_t>::max()}) {
    CHECK(value_of<std::int64_t>(integer(value)) == value);
  }
  CHECK(value_of<double>(op('G', 0xF83F, 8)) == 1.5);
  CHECK(std::isinf(value_of<double>(op('G', 0xF07F, 8))));
  for (const std::string& encoded : {op('U', 2, 1), op(0x8C, 2, 1), op('T', 2, 4), op('X', 2, 4), op(0x8D, 2, 8)}) {
    CHECK(value_of<std::string>(encoded + "\xc3\xbc") == "\xc3\xbc");
  }
  for (const std::string& encoded : {op('C', 2, 1), op('B', 2, 4), op(0x8E, 2, 8), op(0x96, 2, 8)}) {
    CHECK(value_of<PickleBytes>(encoded + "\xff\x80").bytes == "\xff\x80");
  }
  CHECK(value_of<PickleBytes>(call(global("_codecs", "encode"), tuple({text("a\xc3\xbf"), text("latin1")}))).bytes ==
        "a\xff");
  CHECK(value_of<PickleBytes>(call(global("__builtin__", "bytes"), ")")).bytes.empty());
}

TEST_CASE("containers keep their order, kind and sharing") {
  const PickleTree tree =
      parse(whole(tuple({list({"N"}), ")", op('K', 1, 1) + op(0x85), "]" + op('q', 0, 1) + "(NNe" + "Na", op('h', 0, 1),
                         op(0x8F) + "(" + op('K', 1, 1) + op(0x90), "(" + op('K', 2, 1) + op(0x91),
                         call(global("__builtin__", "set"), tuple({list({"N", "N"})})),
                         "}" + text("k") + "Ns(" + text("l") + "N" + integer(3) + "Nu",
                         call(global("collections", "Counter"), tuple({dict({text("x"), integer(4)})}))})));
  const auto& items = tree.root->get_if<PickleSequence>()->items;
  REQUIRE(items.size() == 10);
  const auto size_of = [&](std::size_t i) { return items[i]->get_if<PickleSequence>()->items.size(); };
  CHECK(items[0]->kind_name() == "a list");
  CHECK(items[1]->kind_name() == "a tuple");
  CHECK((size_of(0) == 1 && size_of(1) == 0 && size_of(2) == 1 && size_of(3) == 3));
  CHECK(items[4] == items[3]);
  for (const std::size_t i : {5, 6, 7}) CHECK(items[i]->kind_name() == "a set");
  CHECK((size_of(5) == 1 && size_of(6) == 1 && size_of(7) == 2));
  const auto& pairs = items[8]->get_if<PickleDict>()->items;
  REQUIRE(pairs.size() == 3);
  CHECK(*pairs[0].first->get_if<std::string>() == "k");
  CHECK(*pairs[2].first->get_if<std::int64_t>() == 3);
  CHECK(items[8]->get_if<PickleDict>()->find("l") == pairs[1].second);
  CHECK(items[8]->get_if<PickleDict>()->find("m") == nullptr);
  CHECK(*items[9]->get_if<PickleDict>()->find("x")->get_if<std::int64_t>() == 4);
}

TEST_CASE("sizes, devices, dtypes, attributes of dicts, frames and the memo are understood") {
  CHECK(value_of<PickleSequence>(call(global("torch", "Size"), tuple({integers({2, 3})}))).items.size() == 2);
  CHECK(value_of<TorchDevice>(call(global("torch", "device"), tuple({text("cuda"), integer(1)}))).text == "cuda:1");
  CHECK(value_of<TorchDevice>(call(global("torch", "device"), tuple({text("cpu")}))).text == "cpu");
  CHECK(value_of<PickleName>(global("torch", "bfloat16")).global->name == "torch.bfloat16");
  const std::string ordered = call(global("collections", "OrderedDict"), ")");
  const PickleDict plain =
      value_of<PickleDict>(ordered + dict({text("_metadata"), dict({text("version"), "N"})}) + "b");
  CHECK(plain.items.empty());
  CHECK(value_of<PickleDict>(global("collections", "OrderedDict") + ")" + op(0x81)).items.empty());
  CHECK(value_of<std::string>(op(0x95, 6, 8) + op(0x8C, 1, 1) + "a" + op(0x94) + "0" + op('h', 0, 1)) == "a");
  CHECK(value_of<std::string>(text("a") + op('r', 3, 4) + text("b") + op(0x94) + "00" + op('j', 3, 4)) == "a");
  CHECK(value_of<PickleSequence>("N2" + op(0x86)).items.size() == 2);
  CHECK(value_of<PickleSequence>("](NN1").items.empty());
  const std::string stack_global = text("torch") + text("float16") + op(0x93);
  CHECK(value_of<PickleName>(stack_global).global->dtype == DType::f16);
}

TEST_CASE("a name that is not in the table is refused, whatever it is for") {
  const std::pair<std::string_view, std::string_view> names[] = {{"os", "system"},
                                                                 {"posix", "system"},
                                                                 {"nt", "system"},
                                                                 {"subprocess", "Popen"},
                                                                 {"builtins", "eval"},
                                                                 {"builtins", "exec"},
                                                                 {"__builtin__", "eval"},
                                                                 {"builtins", "getattr"},
                                                                 {"builtins", "__import__"},
                                                                 {"builtins", "open"},
                                                                 {"operator", "attrgetter"},
                                                                 {"functools", "partial"},
                                                                 {"importlib", "import_module"},
                                                                 {"copyreg", "_reconstructor"},
                                                                 {"torch", "load"},
                                                                 {"torch.serialization", "load"},
                                                                 {"torch.storage", "_load_from_bytes"},
                                                                 {"torch.hub", "load"},
                                                                 {"torch.jit", "load"},
                                                                 {"torch._utils", "_rebuild_sparse_tensor"},
                                                                 {"torch._utils", "_rebuild_tensor_v2 "},
                                                                 {"torch._tensor", "_rebuild_from_type_v2"},
                                                                 {"torch.nn.modules.linear", "Linear"},
                                                                 {"numpy.core.multiarray", "_reconstruct"},
                                                                 {"collections", "OrderedDict.__init__"},
                                                                 {"", ""}};
  for (const auto& [module, name] : names) {
    const std::string reason = cat("the name \"", module, ".", name, "\" is refused");
    check_refused(global(module, name), reason);
    check_refused(call(global(module, name), tuple({text("echo hello")})), reason);
    check_refused(text(module) + text(name) + op(0x93), reason);
    // Hidden deep in what looks like a checkpoint, and dropped before the end.
    check_refused(dict({text("w"), list({global(module, name) + "0N"})}), reason);
  }
  const FormatError error = refusal_of(whole(list({"N", global("os", "system")})));
  CHECK(error.offset == kFileOffset + 4);
  CHECK(std::string(error.what()).find("torch.save(model.state_dict(), path)") != std::string::npos);
  check_refused(op('c') + std::string(600, 'x') + "\nname\n", "at most 512 bytes");
  check_refused(text(std::string(600, 'x')) + text("name") + op(0x93), "expected at most 512");
  check_refused(text("os") + integer(1) + op(0x93), "expected a module or a name");
}

TEST_CASE("opcodes that make objects by other ways are refused") {
  for (const unsigned char opcode : {'i', 'o', 'P', 'I', 'F', 'S', 'V', 'L', 'p', 'g'}) {
    check_refused(text("a") + op(opcode) + "os\nsystem\n", cat("the opcode ", int{opcode}));
  }
  for (const int opcode : {0x82, 0x83, 0x84, 0x92, 0x97, 0x98, 0xFF, 0x00}) {
    check_refused("NNN" + op(static_cast<unsigned char>(opcode), 0, 4), cat("the opcode ", opcode));
  }
}

TEST_CASE("a call of what a call returned, or of data, is refused") {
  const std::string ordered = call(global("collections", "OrderedDict"), ")");
  check_refused(call(ordered, ")"), "expected a name to call, got a dict");
  check_refused(call(text("os.system"), tuple({text("true")})), "expected a name to call, got a text");
  check_refused(call(tensor(float_storage(), 0, {6}, {1}), ")"), "expected a name to call, got a tensor");
  check_refused(call(global("torch", "float32"), ")"), "is a type and is not called");
  check_refused(call(global("torch", "FloatStorage"), ")"), "is a type and is not called");
  check_refused(call(global("collections", "OrderedDict"), "]"), "expected a tuple of arguments");
  check_refused(call(global("collections", "OrderedDict"), tuple({list({})})), "expected the arguments ()");
  check_refused(call(global("_codecs", "encode"), tuple({text("a"), text("rot13")})), "\"latin1\"");
  check_refused(call(global("_codecs", "encode"), tuple({text("\xc4\x80"), text("latin1")})), "beyond U+00FF");
  check_refused(call(global("torch", "device"), tuple({text("cuda"), text("1")})), "torch.device");
  check_refused(integer(1) + "}b", "to give a state to, got an integer");
  check_refused(tensor(float_storage(), 0, {6}, {1}) + "}b", "to give a state to, got a tensor");
}

TEST_CASE("names that the caller allows stand as inert objects") {
  PickleOptions options;
  options.inert_globals = {"numpy.dtype", "m.History"};
  const std::string object = call(global("numpy", "dtype"), tuple({text("f8")})) + tuple({integer(3)}) + "b";
  const PickleTree tree = parse(whole(tuple({object, global("m", "History")})), options);
  const auto& items = tree.root->get_if<PickleSequence>()->items;
  const auto* made = items[0]->get_if<PickleObject>();
  REQUIRE(made != nullptr);
  CHECK(made->name == "numpy.dtype");
  CHECK(made->args->get_if<PickleSequence>()->items.size() == 1);
  CHECK(made->state->kind_name() == "a tuple");
  CHECK(items[1]->get_if<PickleObject>()->args == nullptr);
  check_refused(global("numpy", "ndarray"), "\"numpy.ndarray\" is refused", options);
  check_refused(call(object, ")"), "is not called", options);
  check_refused(object + "Nb", "a state twice", options);
  check_refused(global("m", "History") + "Nb", "to give a state to", options);
}

TEST_CASE("lengths beyond the pickle are refused before anything is made from them") {
  const std::uint64_t huge = std::numeric_limits<std::uint64_t>::max();
  for (const unsigned char opcode : {0x8D, 0x8E, 0x96}) {
    for (const std::uint64_t length : {huge, huge - 8, std::uint64_t{1} << 63, std::uint64_t{100}}) {
      check_refused(op(opcode, length, 8) + "short", "it was cut short");
    }
  }
  for (const unsigned char opcode : {0x58, 0x42, 0x54, 0x8B}) {  // BINUNICODE BINBYTES BINSTRING LONG4
    check_refused(op(opcode, 0xFFFFFFFF, 4) + "short", "it was cut short");
  }
  check_refused(op(0x95, huge, 8) + "N", "a frame of");
  check_refused("N" + op('r', 0xFFFFFFFF, 4), "larger than the pickle could count to");
  check_refused("N" + op('j', 0xFFFFFFFF, 4), "the memo has no number");
  check_refused(op(0x8A, 9, 1) + std::string(9, '\1'), "expected at most 64 bits");
  check_refused(op(0x8B, 300, 4) + std::string(300, '\1'), "expected at most 64 bits");
  check_refused(text("\xff"), "expected a text in UTF-8");
}

TEST_CASE("a pickle cut anywhere is refused") {
  const std::string pickle =
      whole(dict({text("w"), tensor(float_storage(), 0, {2, 3}, {3, 1}), text("n"), op('G', 1, 8)}));
  for (std::size_t length = 0; length < pickle.size(); ++length) refusal_of(pickle.substr(0, length));
  CHECK_NOTHROW(parse(pickle));
  CHECK(refusal_of(pickle + "N").offset == kFileOffset + pickle.size() - 1);
  for (const unsigned char protocol : {0, 1, 6, 255}) {
    CHECK(std::string(refusal_of(op(0x80, protocol, 1) + "N.").what()).find("protocol 2 to 5") != std::string::npos);
  }
}

TEST_CASE("the stack's floor, its marks and the kinds on it are respected") {
  for (const char* value : {"0", "R", "b", "Q", "a", "s", "2"}) check_refused(value, "the stack has none");
  for (const char* value : {"t", "l", "d", "e", "u", "1"}) check_refused(value, "needs a mark");
  check_refused("N(0t", "the stack has none");
  check_refused("N(" + op(0x85), "more values than the stack has");
  check_refused("N(" + op('q', 0, 1), "the stack has none");
  check_refused("NN", "stops with 2 values");
  check_refused("", "stops with 0 values");
  check_refused("(N", "1 marks left");
  check_refused(")Na", "expected a list to add to, got a tuple");
  check_refused("](Nu", "expected a dict to add to, got a list");
  check_refused("}(Nu", "expected pairs");
  check_refused("](N" + op(0x90), "expected a set to add to, got a list");
  check_refused("}]Ns", "as a dict's key, got a list");
  check_refused(dict({text("a"), "N", text("a"), "N"}), "the key \"a\" twice");
  check_refused(list({dict({integer(7), "N", integer(7), "N"})}), "the key 7 twice");
}

TEST_CASE("values that contain themselves are refused") {
  check_refused("]" + op('q', 0, 1) + op('h', 0, 1) + "a", "a list contains itself");
  check_refused("}" + op('q', 0, 1) + text("me") + op('h', 0, 1) + "s", "a dict contains itself");
  check_refused("]" + op('q', 0, 1) + op('h', 0, 1) + op(0x85) + "a", "contains itself");
  std::string nested = "N";
  for (int i = 0; i < kMaxPickleDepth; ++i) nested += op(0x85);
  CHECK_NOTHROW(parse(whole(nested)));
  check_refused(nested + op(0x85), "nest deeper");
  check_refused(std::string(100'000, ']') + std::string(99'999, 'a'), "nest deeper");
}

TEST_CASE("a small pickle cannot unfold to a large tree or large copies") {
  // Lists of ten times the list before, thirty times over.
  std::string laughs = "]";
  for (int i = 0; i < 30; ++i)
    laughs += op('q', 0, 1) + "0(" + [] {
      std::string ten;
      for (int k = 0; k < 10; ++k) ten += op('h', 0, 1);
      return ten;
    }() + "l";
  check_refused(laughs, "it unfolds to more than");

  const std::string large = text(std::string(10'000, 'x')) + op('q', 0, 1) + "0" + text("latin1") + op('q', 1, 1) + "0";
  std::string copies = large + "(";
  for (int i = 0; i < 100; ++i) copies += call(global("_codecs", "encode"), op('h', 0, 1) + op('h', 1, 1) + op(0x86));
  check_refused(copies + "l", "copies more than its own length");

  std::string sets = "(" + std::string(10'000, 'N') + "l" + op('q', 0, 1) + "0(";
  for (int i = 0; i < 100; ++i) sets += call(global("builtins", "set"), op('h', 0, 1) + op(0x85));
  check_refused(sets + "l", "copies more than its own length");

  PickleOptions options;
  options.max_values = 100;
  CHECK_NOTHROW(parse(whole("(" + std::string(99, 'N') + "l"), options));
  check_refused("(" + std::string(100, 'N') + "l", "more than 100 values", options);
  options.max_bytes = 10;
  check_refused(text("a longer text"), "at most 10 are read", options);
}

TEST_CASE("tensors come back as views of storages") {
  const PickleTree tree = parse(whole(tensor(float_storage(20), 2, {2, 3}, {6, 2})));
  const auto* view = tree.root->get_if<TorchTensor>();
  REQUIRE(view != nullptr);
  CHECK(view->dtype == DType::f32);
  CHECK(view->shape == std::vector<std::int64_t>{2, 3});
  CHECK(view->strides == std::vector<std::int64_t>{6, 2});
  CHECK(view->storage->key == "0");
  CHECK(view->storage->bytes() == 80);
  CHECK(view->storage_offset == 2);
  CHECK(view->bytes() == 24);
  CHECK(!view->is_contiguous());
  const std::pair<std::string_view, DType> types[] = {{"FloatStorage", DType::f32}, {"DoubleStorage", DType::f64},
                                                      {"HalfStorage", DType::f16},  {"BFloat16Storage", DType::bf16},
                                                      {"LongStorage", DType::i64},  {"IntStorage", DType::i32},
                                                      {"ByteStorage", DType::u8},   {"BoolStorage", DType::boolean}};
  for (const auto& [type, dtype] : types) {
    const PickleTree typed = parse(whole(tensor(storage(type, "k", 1), 0, {}, {})));
    CHECK(typed.root->get_if<TorchTensor>()->dtype == dtype);
    CHECK(typed.root->get_if<TorchTensor>()->is_contiguous());
  }
  const std::string v3 = call(global("torch._utils", "_rebuild_tensor_v3"),
                              tuple({storage("UntypedStorage", "0", 12), integer(1), integers({5}), integers({1}),
                                     op(0x88), "}", global("torch", "float16")}));
  const PickleTree untyped = parse(whole(v3));
  CHECK(untyped.root->get_if<TorchTensor>()->dtype == DType::f16);
  CHECK(untyped.root->get_if<TorchTensor>()->requires_grad);
  const std::string v1 = call(global("torch._utils", "_rebuild_tensor"),
                              tuple({float_storage(), integer(0), integers({6}), integers({1})}));
  const PickleTree parameter =
      parse(whole(call(global("torch._utils", "_rebuild_parameter"), tuple({v1, op(0x88), "}"}))));
  CHECK(parameter.root->get_if<TorchTensor>()->is_parameter);
}

TEST_CASE("tensors that leave their storage or overflow are refused") {
  const std::int64_t huge = std::numeric_limits<std::int64_t>::max();
  CHECK_NOTHROW(parse(whole(tensor(float_storage(), 0, {2, 3}, {3, 1}))));
  check_refused(tensor(float_storage(), 1, {2, 3}, {3, 1}), "leaves its storage \"0\", which has 6 elements");
  check_refused(tensor(float_storage(), 0, {2, 3}, {4, 1}), "leaves its storage");
  check_refused(tensor(float_storage(), huge, {1}, {1}), "leaves its storage");
  check_refused(tensor(float_storage(), huge, {3}, {huge}), "leaves its storage");
  check_refused(tensor(float_storage(), 0, {2, 2}, {huge, huge}), "leaves its storage");
  check_refused(tensor(float_storage(), 0, {3, 3}, {huge, huge}), "leaves its storage");
  check_refused(tensor(float_storage(0), 0, {}, {}), "leaves its storage");
  check_refused(tensor(float_storage(), 0, {huge, huge}, {0, 0}), "more bytes than 64 bits count");
  check_refused(tensor(float_storage(), 0, {huge, huge, 0}, {0, 0, 0}), "more bytes than 64 bits count");
  check_refused(tensor(float_storage(), 0, {huge}, {0}), "more bytes than 64 bits count");
  check_refused(tensor(float_storage(), 0, {-1}, {1}), "the sizes: expected an integer from 0 on, got -1");
  check_refused(tensor(float_storage(), 0, {2}, {-1}), "the strides: expected an integer from 0 on");
  check_refused(tensor(float_storage(), -1, {2}, {1}), "the storage offset: expected an integer from 0 on");
  check_refused(tensor(float_storage(), 0, {2}, {1, 1}), "1 sizes and 2 strides");
  check_refused(tensor(float_storage(), 0, std::vector<std::int64_t>(65, 1), std::vector<std::int64_t>(65, 1)),
                "at most 64 axes");
  check_refused(tensor(storage("DoubleStorage", "0", huge), 0, {1}, {1}), "overflow 64 bits");
  check_refused(storage("FloatStorage", "0", -1), "expected an integer from 0 on");
  CHECK_NOTHROW(parse(whole(tensor(float_storage(0), 3, {0, 5}, {5, 1}))));
}

TEST_CASE("storages and tensors with wrong arguments are refused") {
  check_refused(tensor("N", 0, {1}, {1}), "expected the arguments (a storage");
  check_refused(call(global("torch._utils", "_rebuild_tensor_v2"), ")"), "expected the arguments (a storage");
  check_refused(tensor(storage("ShortStorage", "0", 4), 0, {4}, {1}), "torch.ShortStorage is an element type");
  check_refused(tensor(storage("UntypedStorage", "0", 4), 0, {4}, {1}), "is bytes without an element type");
  check_refused(storage("float32", "0", 4), "torch.float32 is no type of storage");
  check_refused(storage("FloatStorage", "", 4), "expected a key of 1 to 64 bytes");
  check_refused(storage("FloatStorage", std::string(65, 'k'), 4), "expected a key of 1 to 64 bytes");
  check_refused(text("0") + "Q", "the reference to a storage, a tuple, got a text");
  check_refused(tuple({text("module"), "N", "N", "N", "N"}) + "Q", "storage: expected the arguments");
  check_refused(call(global("torch._utils", "_rebuild_parameter"), tuple({"N", op(0x88), "}"})), "a tensor");
  const auto v2_with = [](const std::string& rest) {
    return call(global("torch._utils", "_rebuild_tensor_v2"),
                "(" + float_storage() + integer(0) + integers({6}) + integers({1}) + rest + "t");
  };
  CHECK_NOTHROW(parse(whole(v2_with(op(0x89) + "}" + dict({text("conj"), op(0x89)})))));
  check_refused(v2_with(op(0x89) + "}" + dict({text("neg"), op(0x88)})), "lazily conjugated or negated");
  check_refused(v2_with(op(0x89) + "}N" + "N"), "expected the arguments");
  check_refused(v2_with(integer(1) + "}"), "requires_grad: expected a bool");
  check_refused(v2_with(op(0x89) + "]"), "expected a dict of hooks");
}

}  // namespace
}  // namespace castor::formats
