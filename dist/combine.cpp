// Tiles of the accumulator stay in the first cache level while the terms stream by. Delicate: no reassociation; the
// loop over terms is outside, the one over elements inside, so vector code adds in the same order as scalar code.
#include "dist/combine.h"

#include <algorithm>
#include <type_traits>

#include "core/base/error.h"

namespace castor::dist {
namespace {

constexpr std::int64_t kTile = 1024;

/// What an element type is added in.
template <class T>
auto accumulator_of() {
  if constexpr (std::is_same_v<T, bool>) {
    return std::uint8_t{};
  } else if constexpr (std::is_arithmetic_v<T>) {
    return T{};
  } else {
    return float{};
  }
}

template <ReduceOp kOp, class A>
A merge(A a, A b) {
  if constexpr (kOp == ReduceOp::kSum || kOp == ReduceOp::kMean) {
    if constexpr (std::is_integral_v<A>) {
      using U = std::make_unsigned_t<A>;
      return static_cast<A>(static_cast<U>(static_cast<U>(a) + static_cast<U>(b)));
    } else {
      return a + b;
    }
  } else if constexpr (kOp == ReduceOp::kMax) {
    return b > a || b != b ? b : a;
  } else {
    return b < a || b != b ? b : a;
  }
}

/// What becomes of all terms' combination. A mean has the bits of a sum that is scaled afterwards (UnaryOp::affine).
template <ReduceOp kOp, class A>
A finished(A combined, A share) {
  if constexpr (kOp == ReduceOp::kMean) return combined * share + A{0};
  return combined;
}

template <ReduceOp kOp, class T, class Out>
void combine_typed(std::span<const void* const> terms, std::int64_t count, void* out_bytes, bool accumulate) {
  using A = decltype(accumulator_of<T>());
  Out* out = static_cast<Out*>(out_bytes);
  const A share = kOp == ReduceOp::kMean ? static_cast<A>(1.0 / static_cast<double>(terms.size())) : A{};
  if (terms.size() == 2 && !accumulate) {
    const T* first = static_cast<const T*>(terms[0]);
    const T* second = static_cast<const T*>(terms[1]);
    for (std::int64_t i = 0; i < count; ++i) {
      const A both = merge<kOp>(static_cast<A>(load(first[i])), static_cast<A>(load(second[i])));
      out[i] = store<Out>(finished<kOp>(both, share));
    }
    return;
  }
  A sum[kTile];
  for (std::int64_t start = 0; start < count; start += kTile) {
    const std::int64_t length = std::min(kTile, count - start);
    const T* first = static_cast<const T*>(terms[0]) + start;
    std::size_t next = 0;
    if (accumulate) {
      for (std::int64_t i = 0; i < length; ++i) sum[i] = static_cast<A>(load(out[start + i]));
    } else {
      for (std::int64_t i = 0; i < length; ++i) sum[i] = static_cast<A>(load(first[i]));
      next = 1;
    }
    for (; next < terms.size(); ++next) {
      const T* term = static_cast<const T*>(terms[next]) + start;
      for (std::int64_t i = 0; i < length; ++i) sum[i] = merge<kOp>(sum[i], static_cast<A>(load(term[i])));
    }
    for (std::int64_t i = 0; i < length; ++i) out[start + i] = store<Out>(finished<kOp>(sum[i], share));
  }
}

template <ReduceOp kOp>
void combine_op(DType dtype, std::span<const void* const> terms, std::int64_t count, void* out, DType out_dtype,
                bool accumulate) {
  visit_dtype(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (out_dtype == dtype) return combine_typed<kOp, T, T>(terms, count, out, accumulate);
    if constexpr (!std::is_arithmetic_v<T>) {
      if (out_dtype == DType::f32) return combine_typed<kOp, T, float>(terms, count, out, accumulate);
    }
    throw InternalError(cat("combine: ", dtype, " into ", out_dtype));
  });
}

}  // namespace

void combine(ReduceOp op, DType dtype, std::span<const void* const> terms, std::int64_t count, void* out,
             DType out_dtype, bool accumulate) {
  switch (op) {
    case ReduceOp::kSum:
      return combine_op<ReduceOp::kSum>(dtype, terms, count, out, out_dtype, accumulate);
    case ReduceOp::kMax:
      return combine_op<ReduceOp::kMax>(dtype, terms, count, out, out_dtype, accumulate);
    case ReduceOp::kMin:
      return combine_op<ReduceOp::kMin>(dtype, terms, count, out, out_dtype, accumulate);
    case ReduceOp::kMean:  // of one term it is that term, minus zero and all
      if (terms.size() == 1) return combine_op<ReduceOp::kSum>(dtype, terms, count, out, out_dtype, accumulate);
      return combine_op<ReduceOp::kMean>(dtype, terms, count, out, out_dtype, accumulate);
  }
}

}  // namespace castor::dist
