// Copies and conversions on CUDA. Equal dtypes move words of their size, one dense run through the copy engine's call,
// which takes any alignment.
#include <cstring>

#include "core/ops/cast.h"
#include "core/ops/map_cuda.cuh"

namespace castor {
namespace {

struct Same {
  template <class T>
  __device__ T operator()(T x) const {
    return x;
  }
};

template <class T>
struct Constant {
  T value;
  __device__ T operator()(T) const { return value; }
};

template <class Word>
void move_words(const Cuda& cuda, const CastArgs& args) {
  cuda::map<Word, Word>(cuda, "cast", {args.x, args.y}, Same{});
}

void move(const Cuda& cuda, const CastArgs& args) {
  const StridedPlan<2> plan({args.x, args.y});
  if (plan.is_empty) return;
  if (plan.ndim == 1 && plan.stride[0][0] == 1 && plan.stride[1][0] == 1) {
    const cudaError_t status =
        cudaMemcpyAsync(args.y.data, args.x.data, args.x.bytes(), cudaMemcpyDeviceToDevice, stream_of(cuda));
    return check_cuda(status, "cast", cuda.device);
  }
  switch (dtype_size(args.x.dtype)) {
    case 1:
      return move_words<std::uint8_t>(cuda, args);
    case 2:
      return move_words<std::uint16_t>(cuda, args);
    case 4:
      return move_words<std::uint32_t>(cuda, args);
    default:
      return move_words<std::uint64_t>(cuda, args);
  }
}

}  // namespace

void run(const Cuda& cuda, const CastArgs& args) {
  if (args.x.dtype == args.y.dtype) return move(cuda, args);
  visit_dtype(args.x.dtype, [&](auto from) {
    using From = typename decltype(from)::type;
    visit_dtype(args.y.dtype, [&](auto to) {
      using To = typename decltype(to)::type;
      if constexpr (!std::is_same_v<From, To>) cuda::map<To, From>(cuda, "cast", {args.x, args.y}, Same{});
    });
  });
}

void run(const Cuda& cuda, const FillArgs& args) {
  visit_dtype(args.y.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const T element = store<T>(args.value);
    const auto fill_words = [&]<class Word>(Word word) {
      std::memcpy(&word, &element, sizeof(word));
      cuda::map<Word, Word>(cuda, FillArgs::kName, {args.y, args.y}, Constant<Word>{word});
    };
    if constexpr (sizeof(T) == 1) {
      fill_words(std::uint8_t{});
    } else if constexpr (sizeof(T) == 2) {
      fill_words(std::uint16_t{});
    } else if constexpr (sizeof(T) == 4) {
      fill_words(std::uint32_t{});
    } else {
      fill_words(std::uint64_t{});
    }
  });
}

}  // namespace castor
