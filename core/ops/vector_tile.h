// A small matrix product that keeps a tile of the result in registers, for kernels that work on blocks which stay in
// cache. Written with the compiler's vector types and once for every width: kLanes = 8 in files for AVX2, 16 in
// *_avx512.cpp.
//
// Delicate: everything here is file-local (unnamed namespace, no std:: functions), because files for different
// instruction sets include it; see core/base/cpu_isa.h. Each element of the result is one chain of fused multiply-adds
// in order of depth, so the bits do not depend on the width or on the shape of the tile.
#pragma once

#include <cstdint>

namespace castor {
namespace {

template <int kLanes>
struct Lanes {
  using Float [[gnu::vector_size(kLanes * 4)]] = float;
  using Int [[gnu::vector_size(kLanes * 4)]] = std::int32_t;
  // The same numbers at any address.
  using AnyFloat [[gnu::vector_size(kLanes * 4), gnu::aligned(4), gnu::may_alias]] = float;
};

template <class V>
[[gnu::always_inline]] inline V fma_lanes(V a, V b, V c) {
  V result;
  for (int i = 0; i < static_cast<int>(sizeof(V) / 4); ++i) result[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return result;
}

template <int kLanes>
[[gnu::always_inline]] inline typename Lanes<kLanes>::Float load_lanes(const float* from) {
  return *reinterpret_cast<const typename Lanes<kLanes>::AnyFloat*>(from);
}

template <int kLanes>
[[gnu::always_inline]] inline void store_lanes(float* to, typename Lanes<kLanes>::Float value) {
  *reinterpret_cast<typename Lanes<kLanes>::AnyFloat*>(to) = value;
}

template <int kLanes>
[[gnu::always_inline]] inline typename Lanes<kLanes>::Float all_lanes(float value) {
  return value - typename Lanes<kLanes>::Float{};
}

inline constexpr int kTileRows = 6;
/// Vectors a tile is wide: 6 x 2 accumulators leave AVX2's 16 registers room for operands, 6 x 4 fill AVX-512's 32.
template <int kLanes>
inline constexpr int kTileVectors = kLanes == 16 ? 4 : 2;

/// c[m, n] (+)= sum over p < depth of a(m, p) b[p, n], with a(m, p) = a[m lda + p] (kARowMajor) or a[p lda + m].
template <int kLanes, bool kARowMajor, int kRows, int kVectors>
void tile_product(const float* a, std::int64_t lda, const float* b, std::int64_t ldb, float* c, std::int64_t ldc,
                  std::int64_t depth, bool accumulate) {
  using Float = typename Lanes<kLanes>::Float;
  Float sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 8
    for (int n = 0; n < kVectors; ++n) sum[m][n] = accumulate ? load_lanes<kLanes>(c + m * ldc + n * kLanes) : Float{};
  }
  for (std::int64_t p = 0; p < depth; ++p) {
    Float row[kVectors];
#pragma GCC unroll 8
    for (int n = 0; n < kVectors; ++n) row[n] = load_lanes<kLanes>(b + p * ldb + n * kLanes);
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
      const Float factor = all_lanes<kLanes>(kARowMajor ? a[m * lda + p] : a[p * lda + m]);
#pragma GCC unroll 8
      for (int n = 0; n < kVectors; ++n) sum[m][n] = fma_lanes(factor, row[n], sum[m][n]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 8
    for (int n = 0; n < kVectors; ++n) store_lanes<kLanes>(c + m * ldc + n * kLanes, sum[m][n]);
  }
}

using TileProduct = void (*)(const float*, std::int64_t, const float*, std::int64_t, float*, std::int64_t, std::int64_t,
                             bool);

template <int kLanes, bool kARowMajor, int kVectors>
TileProduct tile_of_rows(std::int64_t rows) {
  switch (rows) {
    case 1:
      return tile_product<kLanes, kARowMajor, 1, kVectors>;
    case 2:
      return tile_product<kLanes, kARowMajor, 2, kVectors>;
    case 3:
      return tile_product<kLanes, kARowMajor, 3, kVectors>;
    case 4:
      return tile_product<kLanes, kARowMajor, 4, kVectors>;
    case 5:
      return tile_product<kLanes, kARowMajor, 5, kVectors>;
    default:
      return tile_product<kLanes, kARowMajor, 6, kVectors>;
  }
}

template <int kLanes, bool kARowMajor>
TileProduct tile_of(std::int64_t rows, std::int64_t vectors) {
  if constexpr (kTileVectors<kLanes> == 4) {
    if (vectors == 4) return tile_of_rows<kLanes, kARowMajor, 4>(rows);
    if (vectors == 3) return tile_of_rows<kLanes, kARowMajor, 3>(rows);
  }
  if (vectors == 2) return tile_of_rows<kLanes, kARowMajor, 2>(rows);
  return tile_of_rows<kLanes, kARowMajor, 1>(rows);
}

/// The part of a product that a tile of rows needs: depths [begin, end), columns from `first_column` on.
struct TileExtent {
  std::int64_t begin, end, first_column;
};

/// c (+)= a b by tiles, for `rows` rows and columns [0, columns); columns must be a multiple of kLanes.
///   extent(first_row)  the TileExtent of the tile that starts there; columns before its first_column are left alone
template <int kLanes, bool kARowMajor, class Extent>
void tiled_product(const float* a, std::int64_t lda, const float* b, std::int64_t ldb, float* c, std::int64_t ldc,
                   std::int64_t rows, std::int64_t columns, bool accumulate, Extent extent) {
  constexpr std::int64_t kWidth = kTileVectors<kLanes> * kLanes;
  for (std::int64_t panel = 0; panel < columns; panel += kWidth) {
    const std::int64_t panel_end = panel + kWidth < columns ? panel + kWidth : columns;
    for (std::int64_t m = 0; m < rows; m += kTileRows) {
      const TileExtent part = extent(m);
      const std::int64_t depth = part.end > part.begin ? part.end - part.begin : 0;
      const std::int64_t n = part.first_column > panel ? part.first_column : panel;
      if (n >= panel_end || (accumulate && depth == 0)) continue;
      const TileProduct product =
          tile_of<kLanes, kARowMajor>(rows - m < kTileRows ? rows - m : kTileRows, (panel_end - n) / kLanes);
      const float* from = a + (kARowMajor ? m * lda + part.begin : part.begin * lda + m);
      product(from, lda, b + part.begin * ldb + n, ldb, c + m * ldc + n, ldc, depth, accumulate);
    }
  }
}

/// 2^x. Chebyshev interpolation of degree 6 on [-1/2, 1/2] after x = n + r; exactly 0 below -125, so for x = -infinity.
/// x < 127.
template <int kLanes>
[[gnu::always_inline]] inline typename Lanes<kLanes>::Float exp2_lanes(typename Lanes<kLanes>::Float x) {
  using Float = typename Lanes<kLanes>::Float;
  using Int = typename Lanes<kLanes>::Int;
  const Float shifted = x + 12582912.0f;  // 1.5 * 2^23: rounds to an integer in the low bits
  const Float r = x - (shifted - 12582912.0f);
  Float p = all_lanes<kLanes>(0.00015461444854736328f);
  p = fma_lanes(p, r, all_lanes<kLanes>(0.0013400427997112274f));
  p = fma_lanes(p, r, all_lanes<kLanes>(0.009618056938052177f));
  p = fma_lanes(p, r, all_lanes<kLanes>(0.05550327152013779f));
  p = fma_lanes(p, r, all_lanes<kLanes>(0.24022650718688965f));
  p = fma_lanes(p, r, all_lanes<kLanes>(0.6931471824645996f));
  p = fma_lanes(p, r, all_lanes<kLanes>(1.0f));
  const Float power = reinterpret_cast<Float>(reinterpret_cast<Int>(p) + (reinterpret_cast<Int>(shifted) << 23));
  return x < -125.0f ? Float{} : power;
}

}  // namespace
}  // namespace castor
