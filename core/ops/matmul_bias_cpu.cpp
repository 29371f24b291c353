// Gradient of bias and activation in one pass over the rows: what is read once need not be read again for the column
// sums.
//
// Delicate: sums go over fixed blocks of rows, four rows at a time, and then over the blocks in order: the order of
// additions depends on the number of rows only.
#include <algorithm>

#include "core/base/parallel.h"
#include "core/ops/matmul.h"

namespace castor {
namespace {

template <class T>
using Sum = decltype(load(T{}));

/// Rows in a block: few enough blocks that their sums are small, enough for every thread.
std::int64_t block_rows(std::int64_t rows) { return std::max<std::int64_t>(32, (rows + 63) / 64); }
std::int64_t block_count(std::int64_t rows) { return (rows + block_rows(rows) - 1) / block_rows(rows); }

/// `kRows` rows from `row` on: dx = dy * slope(saved), sums += their column sums.
template <int kRows, bool kHasSlope, bool kHasSums, class T, class Slope>
void pass_rows(const T* dy, const T* saved, T* dx, Sum<T>* sums, std::int64_t n, Slope slope) {
#pragma GCC ivdep
  for (std::int64_t j = 0; j < n; ++j) {
    Sum<T> total{};
    for (int r = 0; r < kRows; ++r) {
      Sum<T> value = load(dy[r * n + j]);
      if constexpr (kHasSlope) {
        value *= slope(load(saved[r * n + j]));
        dx[r * n + j] = store<T>(value);
      }
      total += value;
    }
    if constexpr (kHasSums) sums[j] += total;
  }
}

template <bool kHasSlope, bool kHasSums, class T, class Slope>
void pass_block(const BiasBackwardArgs& args, std::int64_t begin, std::int64_t end, Sum<T>* sums, Slope slope) {
  const std::int64_t n = args.dy.size[1];
  if constexpr (kHasSums) std::fill_n(sums, n, Sum<T>{});
  const auto at = [&](const View& view, std::int64_t row) { return view.defined() ? view.as<T>() + row * n : nullptr; };
  std::int64_t row = begin;
  for (; row + 4 <= end; row += 4) {
    pass_rows<4, kHasSlope, kHasSums, T>(at(args.dy, row), at(args.saved, row), at(args.dx, row), sums, n, slope);
  }
  for (; row < end; ++row) {
    pass_rows<1, kHasSlope, kHasSums, T>(at(args.dy, row), at(args.saved, row), at(args.dx, row), sums, n, slope);
  }
}

template <bool kHasSlope, bool kHasSums, class T, class Slope>
void pass_all(const BiasBackwardArgs& args, Slope slope) {
  const std::int64_t rows = args.dy.size[0], n = args.dy.size[1];
  const std::int64_t step = block_rows(rows), count = block_count(rows);
  Sum<T>* partial = args.workspace.as<Sum<T>>();
  constexpr std::int64_t kGrain = 16384;  // elements that are worth a thread
  parallel_for(count, std::max<std::int64_t>(1, kGrain / std::max<std::int64_t>(1, step * n)),
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t block = begin; block < end; ++block) {
                   pass_block<kHasSlope, kHasSums, T>(args, block * step, std::min(rows, (block + 1) * step),
                                                      partial + block * n, slope);
                 }
               });
  if constexpr (kHasSums) {
    T* dbias = args.dbias.as<T>();
    for (std::int64_t block = 1; block < count; ++block) {
      for (std::int64_t j = 0; j < n; ++j) partial[j] += partial[block * n + j];
    }
    for (std::int64_t j = 0; j < n; ++j) dbias[j] = store<T>(count > 0 ? partial[j] : Sum<T>{});
  }
}

template <class T>
void pass(const BiasBackwardArgs& args) {
  const auto with_slope = [&](auto slope) {
    args.dbias.defined() ? pass_all<true, true, T>(args, slope) : pass_all<true, false, T>(args, slope);
  };
  using S = Sum<T>;
  switch (args.activation) {
    case Activation::none:
      return pass_all<false, true, T>(args, [](S) { return S(1); });
    case Activation::relu:
      return with_slope([](S x) { return pointwise::Relu::slope(x, x, S(0), S(0)); });
    case Activation::gelu_tanh:
      return with_slope([](S x) { return pointwise::GeluTanh::slope(x, x, S(0), S(0)); });
    case Activation::gelu_erf:
      return with_slope([](S x) { return pointwise::GeluErf::slope(x, x, S(0), S(0)); });
    case Activation::silu:
      return with_slope([](S x) { return pointwise::Silu::slope(x, x, S(0), S(0)); });
  }
}

}  // namespace

std::size_t workspace_bytes(const Cpu&, const BiasBackwardArgs& args) {
  if (!args.dbias.defined()) return 0;
  const std::size_t sum_bytes = args.dy.dtype == DType::f64 ? sizeof(double) : sizeof(float);
  return static_cast<std::size_t>(block_count(args.dy.size[0]) * args.dy.size[1]) * sum_bytes;
}

void run(const Cpu&, const BiasBackwardArgs& args) {
  if (args.dy.dtype == DType::f64) return pass<double>(args);
  visit_training_float(args.dy.dtype, BiasBackwardArgs::kName,
                       [&](auto tag) { pass<typename decltype(tag)::type>(args); });
}

}  // namespace castor
