// Elementwise kernels with two and three inputs on CUDA: the functors of pointwise.h over the one map. Conventions are
// the CPU's: floats of 16 bits in f32, rounded once; integers wrap.
#include "core/ops/elementwise.h"
#include "core/ops/map_cuda.cuh"

namespace castor {
namespace {

template <class Op>
struct Value {
  template <class T>
  __device__ auto operator()(T x, T y) const {
    return Op::value(x, y);
  }
};

struct Choice {
  template <class T>
  __device__ T operator()(bool condition, T x, T y) const {
    return condition ? x : y;
  }
};

template <class Word>
void choose(const Cuda& cuda, const WhereArgs& args) {
  cuda::map<Word, bool, Word, Word>(cuda, "where", {args.condition, args.x, args.y, args.z}, Choice{});
}

}  // namespace

void run(const Cuda& cuda, const BinaryArgs& args) {
  const auto compute = [&](auto tag, auto op) {
    using T = typename decltype(tag)::type;
    cuda::map<T, T, T>(cuda, "binary", {args.x, args.y, args.z}, Value<decltype(op)>{});
  };
  const bool is_integer = args.x.dtype == DType::i64 || args.x.dtype == DType::i32;
  visit_binary(args.op, [&](auto op) {
    if (!is_integer) {
      if (args.x.dtype == DType::f64) return compute(TypeTag<double>{}, op);
      return visit_training_float(args.x.dtype, "binary", [&](auto tag) { compute(tag, op); });
    }
    if constexpr (std::is_same_v<decltype(op), pointwise::Div> || std::is_same_v<decltype(op), pointwise::Pow>) {
      throw DTypeError(
          cat("binary: division and power of integers are not defined, got ", args.x.dtype, "; cast to a float dtype"));
    } else {
      args.x.dtype == DType::i64 ? compute(TypeTag<std::int64_t>{}, op) : compute(TypeTag<std::int32_t>{}, op);
    }
  });
}

void run(const Cuda& cuda, const CompareArgs& args) {
  visit_dtype(args.x.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    visit_compare(args.op, [&](auto op) {
      cuda::map<bool, T, T>(cuda, "compare", {args.x, args.y, args.z}, Value<decltype(op)>{});
    });
  });
}

void run(const Cuda& cuda, const WhereArgs& args) {
  switch (dtype_size(args.x.dtype)) {
    case 1:
      return choose<std::uint8_t>(cuda, args);
    case 2:
      return choose<std::uint16_t>(cuda, args);
    case 4:
      return choose<std::uint32_t>(cuda, args);
    default:
      return choose<std::uint64_t>(cuda, args);
  }
}

}  // namespace castor
