// Layer and rms norm on the CPU: a row stays in the first-level cache between the passes over it, so memory sees each
// element once. Backward adds dweight and dbias of 32 rows in f32 into a slice of the workspace, and slices in f64.
//
// Delicate: the sum with the residual is rounded to the dtype before it is normalised, because backward reads it so.
#include <algorithm>

#include "core/base/math.h"
#include "core/base/parallel.h"
#include "core/ops/lane_fold.h"
#include "core/ops/norm.h"

namespace castor {
namespace {

constexpr std::int64_t kGrainElements = 16384;
constexpr std::int64_t kColumnTile = 512;

template <class T>
using Computed = decltype(load(T{}));

template <class T, bool kIsRms>
void forward_rows(const LayerNormArgs& args, std::int64_t n, std::int64_t begin, std::int64_t end) {
  using C = Computed<T>;
  const T* weight = args.weight.as<T>();
  const T* bias = args.bias.as<T>();
  for (std::int64_t row = begin; row < end; ++row) {
    const T* x = args.x.as<T>() + row * n;
    T* y = args.y.as<T>() + row * n;
    if (args.residual.defined()) {
      const T* residual = args.residual.as<T>() + row * n;
      T* sum = args.sum.as<T>() + row * n;
#pragma GCC ivdep
      for (std::int64_t i = 0; i < n; ++i) sum[i] = store<T>(load(x[i]) + load(residual[i]));
      x = sum;
    }
    C mean = C(0);
    if constexpr (!kIsRms) {
      mean = static_cast<C>(sum_blocks<C>(n, [x](std::int64_t i) { return load(x[i]); }) / static_cast<double>(n));
      args.mean.as<C>()[row] = mean;
    }
    const double squares =
        sum_blocks<C>(n, [x, mean](std::int64_t i) { return (load(x[i]) - mean) * (load(x[i]) - mean); });
    const C rstd = static_cast<C>(1 / math::sqrt(squares / static_cast<double>(n) + args.eps));
    args.rstd.as<C>()[row] = rstd;
    if (weight != nullptr && bias != nullptr) {
#pragma GCC ivdep
      for (std::int64_t i = 0; i < n; ++i)
        y[i] = store<T>(math::fma((load(x[i]) - mean) * rstd, load(weight[i]), load(bias[i])));
    } else if (weight != nullptr) {
#pragma GCC ivdep
      for (std::int64_t i = 0; i < n; ++i) y[i] = store<T>((load(x[i]) - mean) * rstd * load(weight[i]));
    } else {
#pragma GCC ivdep
      for (std::int64_t i = 0; i < n; ++i)
        y[i] = store<T>((load(x[i]) - mean) * rstd + (bias != nullptr ? load(bias[i]) : C(0)));
    }
  }
}

/// What one row's dx is made of.
template <class C>
struct RowTerms {
  C mean, rstd, average, slope;  // dx = rstd * (g - average - xhat * slope), g = dy * weight
};

/// dx of one row; with kSums also adds the row to dweight and dbias.
template <class T, bool kSums, bool kHasWeight, bool kHasDsum>
void backward_row(const RowTerms<Computed<T>>& terms, const T* x, const T* weight, const T* dy, const T* dsum, T* dx,
                  Computed<T>* dweight, Computed<T>* dbias, std::int64_t n) {
  using C = Computed<T>;
  const C mean = terms.mean, rstd = terms.rstd, average = terms.average, slope = terms.slope;
#pragma GCC ivdep
  for (std::int64_t i = 0; i < n; ++i) {
    const C xhat = (load(x[i]) - mean) * rstd, d = load(dy[i]);
    C g = d;
    if constexpr (kHasWeight) g = d * load(weight[i]);
    C value = rstd * (g - average - xhat * slope);
    if constexpr (kHasDsum) value += load(dsum[i]);
    dx[i] = store<T>(value);
    if constexpr (kSums) {
      dweight[i] += d * xhat;
      dbias[i] += d;
    }
  }
}

template <class T>
void add_row_sums(const RowTerms<Computed<T>>& terms, const T* x, const T* dy, Computed<T>* dweight, Computed<T>* dbias,
                  std::int64_t n) {
  using C = Computed<T>;
#pragma GCC ivdep
  for (std::int64_t i = 0; i < n; ++i) {
    const C d = load(dy[i]);
    dweight[i] += d * ((load(x[i]) - terms.mean) * terms.rstd);
    dbias[i] += d;
  }
}

template <class T>
RowTerms<Computed<T>> row_terms(const LayerNormBackwardArgs& args, std::int64_t row, std::int64_t n) {
  using C = Computed<T>;
  RowTerms<C> terms{C(0), args.rstd.as<C>()[row], C(0), C(0)};
  if (!args.is_rms) terms.mean = args.mean.as<C>()[row];
  if (!args.dx.defined()) return terms;
  const T* x = args.x.as<T>() + row * n;
  const T* dy = args.dy.as<T>() + row * n;
  const T* weight = args.weight.as<T>();
  const C mean = terms.mean, rstd = terms.rstd;
  SumPair<double> sums;
  if (weight != nullptr) {
    sums = sum_pair_blocks<C>(n, [=](std::int64_t i, C& a, C& b) {
      const C g = load(dy[i]) * load(weight[i]);
      a += g;
      b += g * ((load(x[i]) - mean) * rstd);
    });
  } else {
    sums = sum_pair_blocks<C>(n, [=](std::int64_t i, C& a, C& b) {
      const C g = load(dy[i]);
      a += g;
      b += g * ((load(x[i]) - mean) * rstd);
    });
  }
  if (!args.is_rms) terms.average = static_cast<C>(sums.a / static_cast<double>(n));
  terms.slope = static_cast<C>(sums.b / static_cast<double>(n));
  return terms;
}

/// One block of rows; `dweight` and `dbias` are its slice of the workspace, or null.
template <class T>
void backward_block(const LayerNormBackwardArgs& args, std::int64_t n, std::int64_t begin, std::int64_t end,
                    Computed<T>* dweight, Computed<T>* dbias) {
  using C = Computed<T>;
  const bool has_sums = dweight != nullptr, has_weight = args.weight.defined(), has_dsum = args.dsum.defined();
  if (has_sums) std::fill_n(dweight, 2 * n, C(0));
  using Row = void (*)(const RowTerms<C>&, const T*, const T*, const T*, const T*, T*, C*, C*, std::int64_t);
  constexpr Row kRows[2][2][2] = {{{backward_row<T, false, false, false>, backward_row<T, false, false, true>},
                                   {backward_row<T, false, true, false>, backward_row<T, false, true, true>}},
                                  {{backward_row<T, true, false, false>, backward_row<T, true, false, true>},
                                   {backward_row<T, true, true, false>, backward_row<T, true, true, true>}}};
  const Row backward = kRows[has_sums][has_weight][has_dsum];
  for (std::int64_t row = begin; row < end; ++row) {
    const T* x = args.x.as<T>() + row * n;
    const T* dy = args.dy.as<T>() + row * n;
    const RowTerms<C> terms = row_terms<T>(args, row, n);
    if (args.dx.defined()) {
      const T* dsum = has_dsum ? args.dsum.as<T>() + row * n : nullptr;
      backward(terms, x, args.weight.as<T>(), dy, dsum, args.dx.as<T>() + row * n, dweight, dbias, n);
    } else {
      add_row_sums<T>(terms, x, dy, dweight, dbias, n);
    }
  }
}

template <class T>
void run_backward(const LayerNormBackwardArgs& args) {
  using C = Computed<T>;
  const std::int64_t n = args.x.size[args.x.ndim - 1], rows = n == 0 ? 0 : args.x.numel() / n;
  const std::int64_t blocks = (rows + kLayerNormRows - 1) / kLayerNormRows;
  const bool has_sums = args.dweight.defined() || args.dbias.defined();
  C* workspace = args.workspace.as<C>();
  const std::int64_t grain =
      std::max<std::int64_t>(1, kGrainElements / (kLayerNormRows * std::max<std::int64_t>(n, 1)));
  parallel_for(blocks, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t block = begin; block < end; ++block) {
      C* slice = has_sums ? workspace + block * 2 * n : nullptr;
      const std::int64_t first = block * kLayerNormRows;
      backward_block<T>(args, n, first, std::min(rows, first + kLayerNormRows), slice, has_sums ? slice + n : nullptr);
    }
  });
  if (!has_sums) return;
  const std::int64_t tiles = (2 * n + kColumnTile - 1) / kColumnTile;
  parallel_for(tiles, std::max<std::int64_t>(1, kGrainElements / (kColumnTile * std::max<std::int64_t>(blocks, 1))),
               [&](std::int64_t begin, std::int64_t end) {
                 double total[kColumnTile];
                 for (std::int64_t tile = begin; tile < end; ++tile) {
                   const std::int64_t first = tile * kColumnTile, count = std::min(kColumnTile, 2 * n - first);
                   std::fill_n(total, count, 0.0);
                   for (std::int64_t block = 0; block < blocks; ++block) {
                     const C* slice = workspace + block * 2 * n + first;
                     for (std::int64_t i = 0; i < count; ++i) total[i] += static_cast<double>(slice[i]);
                   }
                   for (std::int64_t i = 0; i < count; ++i) {
                     const std::int64_t at = first + i;
                     const View& target = at < n ? args.dweight : args.dbias;
                     if (target.defined()) target.as<T>()[at < n ? at : at - n] = store<T>(static_cast<C>(total[i]));
                   }
                 }
               });
}

template <class F>
void visit_float(DType dtype, const char* op, F&& f) {
  dtype == DType::f64 ? f(TypeTag<double>{}) : visit_training_float(dtype, op, f);
}

}  // namespace

void run(const Cpu&, const LayerNormArgs& args) {
  const std::int64_t n = args.x.size[args.x.ndim - 1], rows = n == 0 ? 0 : args.x.numel() / n;
  visit_float(args.x.dtype, "layer_norm", [&](auto tag) {
    using T = typename decltype(tag)::type;
    parallel_for(rows, std::max<std::int64_t>(1, kGrainElements / std::max<std::int64_t>(n, 1)),
                 [&](std::int64_t begin, std::int64_t end) {
                   args.is_rms ? forward_rows<T, true>(args, n, begin, end)
                               : forward_rows<T, false>(args, n, begin, end);
                 });
  });
}

void run(const Cpu&, const LayerNormBackwardArgs& args) {
  visit_float(args.x.dtype, "layer_norm_backward", [&](auto tag) { run_backward<typename decltype(tag)::type>(args); });
}

}  // namespace castor
