// The table. Delicate: a storage's element size decides how many bytes of the archive it may name, so it is given even
// where Castor has no such dtype.
#include "formats/torch_globals.h"

namespace castor::formats {
namespace {

using Kind = TorchGlobalKind;

constexpr TorchGlobal kGlobals[] = {
    {"collections.OrderedDict", Kind::ordered_dict},
    {"collections.Counter", Kind::counter},
    {"builtins.set", Kind::set},
    {"builtins.frozenset", Kind::set},
    {"builtins.bytes", Kind::bytes},
    {"builtins.bytearray", Kind::bytes},
    {"_codecs.encode", Kind::encode},
    {"torch.Size", Kind::size},
    {"torch.device", Kind::device},
    {"torch._utils._rebuild_tensor", Kind::rebuild_tensor},
    {"torch._utils._rebuild_tensor_v2", Kind::rebuild_tensor_v2},
    {"torch._utils._rebuild_tensor_v3", Kind::rebuild_tensor_v3},
    {"torch._utils._rebuild_parameter", Kind::rebuild_parameter},
    {"torch._utils._rebuild_parameter_with_state", Kind::rebuild_parameter_with_state},

    {"torch.FloatStorage", Kind::storage, DType::f32, 4},
    {"torch.DoubleStorage", Kind::storage, DType::f64, 8},
    {"torch.HalfStorage", Kind::storage, DType::f16, 2},
    {"torch.BFloat16Storage", Kind::storage, DType::bf16, 2},
    {"torch.LongStorage", Kind::storage, DType::i64, 8},
    {"torch.IntStorage", Kind::storage, DType::i32, 4},
    {"torch.ShortStorage", Kind::storage, std::nullopt, 2},
    {"torch.CharStorage", Kind::storage, std::nullopt, 1},
    {"torch.ByteStorage", Kind::storage, DType::u8, 1},
    {"torch.BoolStorage", Kind::storage, DType::boolean, 1},
    {"torch.ComplexFloatStorage", Kind::storage, std::nullopt, 8},
    {"torch.ComplexDoubleStorage", Kind::storage, std::nullopt, 16},
    {"torch.UntypedStorage", Kind::storage, std::nullopt, 1},
    {"torch.storage.UntypedStorage", Kind::storage, std::nullopt, 1},

    {"torch.float32", Kind::dtype, DType::f32, 4},
    {"torch.float64", Kind::dtype, DType::f64, 8},
    {"torch.float16", Kind::dtype, DType::f16, 2},
    {"torch.bfloat16", Kind::dtype, DType::bf16, 2},
    {"torch.float8_e4m3fn", Kind::dtype, DType::f8e4m3, 1},
    {"torch.float8_e5m2", Kind::dtype, DType::f8e5m2, 1},
    {"torch.int64", Kind::dtype, DType::i64, 8},
    {"torch.int32", Kind::dtype, DType::i32, 4},
    {"torch.uint8", Kind::dtype, DType::u8, 1},
    {"torch.bool", Kind::dtype, DType::boolean, 1},
    {"torch.int8", Kind::dtype, std::nullopt, 1},
    {"torch.int16", Kind::dtype, std::nullopt, 2},
    {"torch.uint16", Kind::dtype, std::nullopt, 2},
    {"torch.uint32", Kind::dtype, std::nullopt, 4},
    {"torch.uint64", Kind::dtype, std::nullopt, 8},
    {"torch.complex64", Kind::dtype, std::nullopt, 8},
    {"torch.complex128", Kind::dtype, std::nullopt, 16},
    {"torch.float8_e4m3fnuz", Kind::dtype, std::nullopt, 1},
    {"torch.float8_e5m2fnuz", Kind::dtype, std::nullopt, 1},
};

}  // namespace

std::span<const TorchGlobal> torch_globals() { return kGlobals; }

const TorchGlobal* find_torch_global(std::string_view module, std::string_view name) {
  if (module == "__builtin__") module = "builtins";
  for (const TorchGlobal& global : kGlobals) {
    if (global.name.size() == module.size() + 1 + name.size() && global.name.starts_with(module) &&
        global.name[module.size()] == '.' && global.name.ends_with(name)) {
      return &global;
    }
  }
  return nullptr;
}

}  // namespace castor::formats
