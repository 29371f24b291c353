// The blocked attention kernels, forward and backward, written once for every vector width; attention_cpu.cpp (AVX2)
// and attention_avx512.cpp each make one copy.
//
// Scores are held transposed, a row for a key and a lane for a query: maxima and sums over keys then run down the lanes
// without shuffles, and what follows reads the same block as a column-major operand. A block is kQueries queries by
// kKeys keys. Scores are in units of log2, so that a probability is one exp2.
//
// Delicate: causal skipping works on tiles of kTileRows keys, so a block has elements that no product wrote;
// `first_lane` says from where on a tile's rows are valid, and what lies within but is masked holds zeros. File-local
// on purpose (vector_tile.h).
#pragma once

#include "core/base/math.h"
#include "core/ops/attention_blocks.h"
#include "core/ops/vector_tile.h"

namespace castor {
namespace {

inline constexpr std::int64_t kQueries = 64;
inline constexpr std::int64_t kKeys = 96;  // a multiple of kTileRows
inline constexpr float kLn2 = 0.6931471805599453f;
inline constexpr float kMinusInfinity = -__builtin_inff();

inline std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
inline std::int64_t padded_dim(std::int64_t dim) { return (dim + 15) / 16 * 16; }

/// Number of f32 [rows, ld] as `T` rows that lie `step` apart, padded with zeros up to ld.
template <class T>
void load_rows_as(const T* from, std::int64_t step, std::int64_t rows, std::int64_t dim, float factor, float* to,
                  std::int64_t ld) {
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t d = 0; d < dim; ++d) to[r * ld + d] = load(from[r * step + d]) * factor;
    for (std::int64_t d = dim; d < ld; ++d) to[r * ld + d] = 0;
  }
}

inline void load_rows(DType dtype, const AttentionRows& rows, std::int64_t at, std::int64_t count, std::int64_t dim,
                      float factor, float* to, std::int64_t ld) {
  if (dtype == DType::f32)
    return load_rows_as(static_cast<const float*>(rows.data) + at, rows.position, count, dim, factor, to, ld);
  if (dtype == DType::bf16)
    return load_rows_as(static_cast<const BFloat16*>(rows.data) + at, rows.position, count, dim, factor, to, ld);
  load_rows_as(static_cast<const Half*>(rows.data) + at, rows.position, count, dim, factor, to, ld);
}

template <class T>
void store_rows_as(const float* from, std::int64_t ld, std::int64_t rows, std::int64_t dim, const float* factors,
                   float factor, T* to, std::int64_t step) {
  for (std::int64_t r = 0; r < rows; ++r) {
    const float f = factors != nullptr ? factors[r] : factor;
    for (std::int64_t d = 0; d < dim; ++d) to[r * step + d] = store<T>(from[r * ld + d] * f);
  }
}

/// Writes rows times factors[row] (or times `factor`), rounded to the dtype.
inline void store_rows(DType dtype, const float* from, std::int64_t ld, const AttentionRows& rows, std::int64_t at,
                       std::int64_t count, std::int64_t dim, const float* factors, float factor) {
  if (dtype == DType::f32)
    return store_rows_as(from, ld, count, dim, factors, factor, static_cast<float*>(rows.data) + at, rows.position);
  if (dtype == DType::bf16) {
    return store_rows_as(from, ld, count, dim, factors, factor, static_cast<BFloat16*>(rows.data) + at, rows.position);
  }
  store_rows_as(from, ld, count, dim, factors, factor, static_cast<Half*>(rows.data) + at, rows.position);
}

/// to[d, r] = from[r, d] * first * second for a block of kQueries rows, of which `count` are real and the rest become
/// zero.
inline void transpose_queries(const float* from, std::int64_t ld, std::int64_t count, std::int64_t dim, float first,
                              float second, float* to) {
  using Float = Lanes<8>::Float;
  for (std::int64_t r = 0; r < kQueries; r += 8) {
    for (std::int64_t d = 0; d < dim; d += 8) {
      if (r + 8 > count || d + 8 > dim) {
        for (std::int64_t i = d; i < smaller(d + 8, dim); ++i) {
          for (std::int64_t j = r; j < r + 8; ++j)
            to[i * kQueries + j] = j < count ? from[j * ld + i] * first * second : 0.0f;
        }
        continue;
      }
      Float a[8], b[8];
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) a[i] = load_lanes<8>(from + (r + i) * ld + d) * first * second;
        // Interleave rows 4 apart three times: the perfect shuffle of log2(8) steps.
#pragma GCC unroll 3
      for (int step = 0; step < 3; ++step) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          b[2 * i] = __builtin_shufflevector(a[i], a[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
          b[2 * i + 1] = __builtin_shufflevector(a[i], a[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
        }
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) a[i] = b[i];
      }
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) store_lanes<8>(to + (d + i) * kQueries + r, a[i]);
    }
  }
}

/// Adds the mask to a block of scores [keys, kQueries] in units of log2.
inline void apply_mask(const AttentionProblem& p, std::int64_t batch, std::int64_t head, std::int64_t first_query,
                       std::int64_t queries, std::int64_t first_key, std::int64_t keys, float* scores) {
  const std::int64_t* step = p.mask_stride;
  const std::int64_t start = batch * step[0] + head * step[1] + first_query * step[2] + first_key * step[3];
  for (std::int64_t j = 0; j < keys; ++j) {
    float* row = scores + j * kQueries;
    if (p.mask_is_bool) {
      const bool* mask = static_cast<const bool*>(p.mask) + start + j * step[3];
      for (std::int64_t i = 0; i < queries; ++i) row[i] = mask[i * step[2]] ? row[i] : kMinusInfinity;
    } else {
      const float* mask = static_cast<const float*>(p.mask) + start + j * step[3];
      for (std::int64_t i = 0; i < queries; ++i) row[i] = __builtin_fmaf(mask[i * step[2]], math::kLog2E, row[i]);
    }
  }
}

/// The part of the causal triangle that a block sees: key j (from the block's first key) is visible to lanes >= j -
/// shift.
struct Triangle {
  std::int64_t shift;  // a value beyond the keys when everything is visible
  /// The first lane, rounded down to a vector, from which the tile of keys that starts at `key` is computed. One tile's
  /// height of lanes more than is visible, because a tile of queries reads that far back.
  std::int64_t first_lane(std::int64_t key, std::int64_t lanes) const {
    const std::int64_t lane = key - shift - (kTileRows - 1);
    return lane <= 0 ? 0 : lane / lanes * lanes;
  }
  std::int64_t visible_keys(std::int64_t lane, std::int64_t keys) const {
    const std::int64_t visible = lane + shift + 1;
    return visible < 0 ? 0 : visible < keys ? visible : keys;
  }
};

inline Triangle make_triangle(const AttentionProblem& p, std::int64_t first_query, std::int64_t first_key) {
  return {p.is_causal ? first_query + p.keys - p.queries - first_key : p.keys};
}

/// scores[j, lane] = k_j . q_lane for a block; tiles that no lane sees are left alone.
template <int kLanes>
void block_scores(const float* k, std::int64_t ldk, const float* q_transposed, std::int64_t keys, std::int64_t dim,
                  const Triangle& triangle, float* scores) {
  tiled_product<kLanes, true>(k, ldk, q_transposed, kQueries, scores, kQueries, keys, kQueries, false,
                              [&](std::int64_t key) {
                                return TileExtent{0, dim, triangle.first_lane(key, kLanes)};
                              });
}

/// Running softmax of one pair of vectors of lanes down the keys: scores become probabilities relative to the new
/// maximum. `maximum`, `sum` and `shrink` (what earlier sums are to be multiplied by) belong to these lanes.
template <int kLanes>
void softmax_lanes(float* scores, std::int64_t first_lane, std::int64_t keys, const Triangle& triangle, float* maximum,
                   float* sum, float* shrink) {
  using Float = typename Lanes<kLanes>::Float;
  using Int = typename Lanes<kLanes>::Int;
  constexpr int kPair = 2;
  const std::int64_t end = triangle.visible_keys(first_lane + kPair * kLanes - 1, keys);
  const std::int64_t whole = smaller(triangle.visible_keys(first_lane, keys), end);
  float* block = scores + first_lane;
  Float high[kPair], total[kPair] = {};
  for (int v = 0; v < kPair; ++v) high[v] = load_lanes<kLanes>(maximum + first_lane + v * kLanes);
  for (std::int64_t j = 0; j < whole; ++j) {
#pragma GCC unroll 2
    for (int v = 0; v < kPair; ++v) {
      const Float s = load_lanes<kLanes>(block + j * kQueries + v * kLanes);
      high[v] = s > high[v] ? s : high[v];
    }
  }
  for (std::int64_t j = whole; j < end; ++j) {
    for (int v = 0; v < kPair; ++v) {
      Int lane;
      for (int i = 0; i < kLanes; ++i) lane[i] = i;
      const Int is_visible = lane >= static_cast<std::int32_t>(j - triangle.shift - first_lane - v * kLanes);
      const Float s =
          is_visible ? load_lanes<kLanes>(block + j * kQueries + v * kLanes) : all_lanes<kLanes>(kMinusInfinity);
      store_lanes<kLanes>(block + j * kQueries + v * kLanes, s);
      high[v] = s > high[v] ? s : high[v];
    }
  }
  Float base[kPair];
  for (int v = 0; v < kPair; ++v) {
    const Float before = load_lanes<kLanes>(maximum + first_lane + v * kLanes);
    base[v] = high[v] == kMinusInfinity ? Float{} : high[v];
    store_lanes<kLanes>(shrink + first_lane + v * kLanes, exp2_lanes<kLanes>(before - base[v]));
    store_lanes<kLanes>(maximum + first_lane + v * kLanes, high[v]);
  }
  for (std::int64_t j = 0; j < end; ++j) {
#pragma GCC unroll 2
    for (int v = 0; v < kPair; ++v) {
      float* at = block + j * kQueries + v * kLanes;
      const Float p = exp2_lanes<kLanes>(load_lanes<kLanes>(at) - base[v]);
      store_lanes<kLanes>(at, p);
      total[v] += p;
    }
  }
  // A tile of queries that begins in these lanes reads up to its own last row's keys.
  for (std::int64_t j = end; j < smaller(end + kTileRows - 1, keys); ++j) {
    for (int v = 0; v < kPair; ++v) store_lanes<kLanes>(block + j * kQueries + v * kLanes, Float{});
  }
  for (int v = 0; v < kPair; ++v) {
    float* at = sum + first_lane + v * kLanes;
    store_lanes<kLanes>(
        at, fma_lanes(load_lanes<kLanes>(at), load_lanes<kLanes>(shrink + first_lane + v * kLanes), total[v]));
  }
}

/// f32 rows of one (batch, head): in place where they are f32 and need no padding, otherwise converted into `scratch`.
struct FloatRows {
  const float* data;
  std::int64_t ld;
};

inline FloatRows float_rows(const AttentionProblem& p, const AttentionRows& rows, std::int64_t at, std::int64_t count,
                            float* scratch) {
  if (p.dtype == DType::f32 && p.dim % 16 == 0) return {static_cast<const float*>(rows.data) + at, rows.position};
  load_rows(p.dtype, rows, at, count, p.dim, 1.0f, scratch, padded_dim(p.dim));
  return {scratch, padded_dim(p.dim)};
}

template <int kLanes>
void attention_forward(const AttentionProblem& p, std::int64_t begin, std::int64_t end, float* scratch) {
  const std::int64_t ld = padded_dim(p.dim);
  const bool is_direct = p.dtype == DType::f32 && p.dim % 16 == 0;
  float* maximum = scratch;
  float* sum = maximum + kQueries;
  float* shrink = sum + kQueries;
  float* q_rows = shrink + kQueries;
  float* q_transposed = q_rows + kQueries * ld;
  float* out = q_transposed + kQueries * ld;
  float* scores = out + kQueries * ld;
  float* k_scratch = scores + kKeys * kQueries;
  float* v_scratch = k_scratch + (is_direct ? 0 : p.keys * ld);
  FloatRows k{}, v{};
  std::int64_t loaded = -1;  // which (batch, key head) k and v hold
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t batch = task / p.heads, head = task % p.heads;
    const std::int64_t key_head = head / (p.heads / p.key_heads);
    if (loaded != batch * p.key_heads + key_head) {
      loaded = batch * p.key_heads + key_head;
      k = float_rows(p, p.k, batch * p.k.batch + key_head * p.k.head, p.keys, k_scratch);
      v = float_rows(p, p.v, batch * p.v.batch + key_head * p.v.head, p.keys, v_scratch);
    }
    for (std::int64_t first = 0; first < p.queries; first += kQueries) {
      const std::int64_t queries = smaller(kQueries, p.queries - first);
      const FloatRows q =
          float_rows(p, p.q, batch * p.q.batch + first * p.q.position + head * p.q.head, queries, q_rows);
      transpose_queries(q.data, q.ld, queries, p.dim, p.scale, math::kLog2E, q_transposed);
      for (std::int64_t i = 0; i < kQueries; ++i) {
        maximum[i] = kMinusInfinity;
        sum[i] = 0;
      }
      const std::int64_t keys = make_triangle(p, first, 0).visible_keys(queries - 1, p.keys);
      for (std::int64_t key = 0; key < keys; key += kKeys) {
        const std::int64_t count = smaller(kKeys, keys - key);
        const Triangle triangle = make_triangle(p, first, key);
        block_scores<kLanes>(k.data + key * k.ld, k.ld, q_transposed, count, p.dim, triangle, scores);
        if (p.mask != nullptr) apply_mask(p, batch, head, first, queries, key, count, scores);
        for (std::int64_t lane = 0; lane < queries; lane += 2 * kLanes) {
          softmax_lanes<kLanes>(scores, lane, count, triangle, maximum, sum, shrink);
        }
        for (std::int64_t i = 0; key > 0 && i < queries; ++i) {
          for (std::int64_t d = 0; d < ld; ++d) out[i * ld + d] *= shrink[i];
        }
        tiled_product<kLanes, false>(
            scores, kQueries, v.data + key * v.ld, v.ld, out, ld, queries, ld, key > 0, [&](std::int64_t i) {
              return TileExtent{0, triangle.visible_keys(smaller(i + kTileRows, queries) - 1, count), 0};
            });
      }
      if (keys == 0) {
        for (std::int64_t i = 0; i < queries * ld; ++i) out[i] = 0;
      }
      float* lse = p.lse + (batch * p.heads + head) * p.queries + first;
      for (std::int64_t i = 0; i < queries; ++i) {
        lse[i] = sum[i] > 0    ? __builtin_fmaf(maximum[i], kLn2, math::log(sum[i]))
                 : sum[i] == 0 ? kMinusInfinity
                               : sum[i];
        sum[i] = sum[i] == 0 ? 0.0f : 1.0f / sum[i];
      }
      store_rows(p.dtype, out, ld, p.out, batch * p.out.batch + first * p.out.position + head * p.out.head, queries,
                 p.dim, sum, 0);
    }
  }
}

/// delta[i] = sum over d of out[i, d] dout[i, d], in eight lanes that add at the end.
inline void row_products(const float* a, std::int64_t lda, const float* b, std::int64_t ldb, std::int64_t rows,
                         std::int64_t ld, float* delta) {
  for (std::int64_t i = 0; i < rows; ++i) {
    Lanes<8>::Float sum{};
    for (std::int64_t d = 0; d < ld; d += 8)
      sum = fma_lanes(load_lanes<8>(a + i * lda + d), load_lanes<8>(b + i * ldb + d), sum);
    delta[i] = ((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7]));
  }
}

/// In: scores and dp (gradients of probabilities). Out: probabilities in `scores`, gradients of scores in `dp`.
template <int kLanes>
void block_score_gradients(float* scores, float* dp, std::int64_t keys, std::int64_t queries, const Triangle& triangle,
                           const float* lse, const float* delta) {
  using Float = typename Lanes<kLanes>::Float;
  using Int = typename Lanes<kLanes>::Int;
  for (std::int64_t tile = 0; tile < keys; tile += kTileRows) {
    for (std::int64_t lane = triangle.first_lane(tile, kLanes); lane < queries; lane += kLanes) {
      const Float row_lse = load_lanes<kLanes>(lse + lane), row_delta = load_lanes<kLanes>(delta + lane);
      for (std::int64_t j = tile; j < smaller(tile + kTileRows, keys); ++j) {
        float* s = scores + j * kQueries + lane;
        float* d = dp + j * kQueries + lane;
        Float p = exp2_lanes<kLanes>(load_lanes<kLanes>(s) - row_lse);
        Float ds = p * (load_lanes<kLanes>(d) - row_delta);
        if (lane < j - triangle.shift) {
          Int index;
          for (int i = 0; i < kLanes; ++i) index[i] = i;
          const Int is_visible = index >= static_cast<std::int32_t>(j - triangle.shift - lane);
          p = is_visible ? p : Float{};
          ds = is_visible ? ds : Float{};
        }
        store_lanes<kLanes>(s, p);
        store_lanes<kLanes>(d, ds);
      }
    }
  }
}

template <int kLanes>
void attention_backward(const AttentionProblem& p, std::int64_t begin, std::int64_t end, float* scratch) {
  const std::int64_t ld = padded_dim(p.dim);
  const bool is_direct = p.dtype == DType::f32 && p.dim % 16 == 0;
  const std::int64_t group = p.heads / p.key_heads;
  float* lse = scratch;
  float* delta = lse + kQueries;
  float* q_rows = delta + kQueries;
  float* q_transposed = q_rows + kQueries * ld;
  float* dout_rows = q_transposed + kQueries * ld;
  float* dout_transposed = dout_rows + kQueries * ld;
  float* dq = dout_transposed + kQueries * ld;  // holds rows of `out` before
  float* scores = dq + kQueries * ld;
  float* dp = scores + kKeys * kQueries;
  float* k_scratch = dp + kKeys * kQueries;
  const std::int64_t key_rows = is_direct ? 0 : p.keys * ld;
  float* v_scratch = k_scratch + key_rows;
  float* dk_scratch = v_scratch + key_rows;
  float* dv_scratch = dk_scratch + key_rows;
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t batch = task / p.key_heads, key_head = task % p.key_heads;
    const FloatRows k = float_rows(p, p.k, batch * p.k.batch + key_head * p.k.head, p.keys, k_scratch);
    const FloatRows v = float_rows(p, p.v, batch * p.v.batch + key_head * p.v.head, p.keys, v_scratch);
    const std::int64_t dk_at = batch * p.dk.batch + key_head * p.dk.head,
                       dv_at = batch * p.dv.batch + key_head * p.dv.head;
    float* dk = is_direct ? static_cast<float*>(p.dk.data) + dk_at : dk_scratch;
    float* dv = is_direct ? static_cast<float*>(p.dv.data) + dv_at : dv_scratch;
    const std::int64_t ldk = is_direct ? p.dk.position : ld, ldv = is_direct ? p.dv.position : ld;
    for (std::int64_t j = 0; j < p.keys; ++j) {
      for (std::int64_t d = 0; d < ld; ++d) dk[j * ldk + d] = dv[j * ldv + d] = 0;
    }
    for (std::int64_t head = key_head * group; head < (key_head + 1) * group; ++head) {
      for (std::int64_t first = 0; first < p.queries; first += kQueries) {
        const std::int64_t queries = smaller(kQueries, p.queries - first);
        const auto at = [&](const AttentionRows& rows) {
          return batch * rows.batch + first * rows.position + head * rows.head;
        };
        const FloatRows dout = float_rows(p, p.dout, at(p.dout), queries, dout_rows);
        const FloatRows out = float_rows(p, p.out, at(p.out), queries, dq);
        row_products(out.data, out.ld, dout.data, dout.ld, queries, ld, delta);
        transpose_queries(dout.data, dout.ld, queries, p.dim, 1.0f, 1.0f, dout_transposed);
        load_rows(p.dtype, p.q, at(p.q), queries, p.dim, p.scale, q_rows, ld);
        transpose_queries(q_rows, ld, queries, p.dim, 1.0f, math::kLog2E, q_transposed);
        for (std::int64_t i = 0; i < kQueries; ++i) {
          const float value = i < queries ? p.lse[(batch * p.heads + head) * p.queries + first + i] : kMinusInfinity;
          lse[i] = value == kMinusInfinity ? -kMinusInfinity : value * math::kLog2E;  // no key: every probability is 0
          if (i >= queries) delta[i] = 0;
        }
        const std::int64_t keys = make_triangle(p, first, 0).visible_keys(queries - 1, p.keys);
        for (std::int64_t key = 0; key < keys; key += kKeys) {
          const std::int64_t count = smaller(kKeys, keys - key);
          const Triangle triangle = make_triangle(p, first, key);
          block_scores<kLanes>(k.data + key * k.ld, k.ld, q_transposed, count, p.dim, triangle, scores);
          block_scores<kLanes>(v.data + key * v.ld, v.ld, dout_transposed, count, p.dim, triangle, dp);
          if (p.mask != nullptr) apply_mask(p, batch, head, first, queries, key, count, scores);
          block_score_gradients<kLanes>(scores, dp, count, queries, triangle, lse, delta);
          const auto visible_queries = [&](std::int64_t j) {
            const std::int64_t from = j - triangle.shift;
            return TileExtent{from > 0 ? from : 0, queries, 0};
          };
          tiled_product<kLanes, true>(scores, kQueries, dout.data, dout.ld, dv + key * ldv, ldv, count, ld, true,
                                      visible_queries);
          tiled_product<kLanes, true>(dp, kQueries, q_rows, ld, dk + key * ldk, ldk, count, ld, true, visible_queries);
          tiled_product<kLanes, false>(
              dp, kQueries, k.data + key * k.ld, k.ld, dq, ld, queries, ld, key > 0, [&](std::int64_t i) {
                return TileExtent{0, triangle.visible_keys(smaller(i + kTileRows, queries) - 1, count), 0};
              });
        }
        if (keys == 0) {
          for (std::int64_t i = 0; i < queries * ld; ++i) dq[i] = 0;
        }
        store_rows(p.dtype, dq, ld, p.dq, at(p.dq), queries, p.dim, nullptr, p.scale);
      }
    }
    if (!is_direct) {
      store_rows(p.dtype, dk, ld, p.dk, dk_at, p.keys, p.dim, nullptr, 1.0f);
      store_rows(p.dtype, dv, ld, p.dv, dv_at, p.keys, p.dim, nullptr, 1.0f);
    }
  }
}

}  // namespace
}  // namespace castor
