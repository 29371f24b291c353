// Attention on CUDA for every case of the contract, in plain arithmetic: any float, head size, mask and strides. A
// block owns 32 rows of queries (forward, dq) or of keys (dk, dv), eight to a warp, and takes 32 partners at a time,
// which lie converted in shared memory. First each lane makes the scores of one partner with its warp's eight rows;
// then the lanes turn to the head's elements and add the partners one by one, in order. Nothing is stored but results,
// and sums have one order for any launch.
//
// Delicate: rows longer than kPass elements pass through shared memory in pieces, and results are made kPass elements
// at a time, each time with all scores anew. Elements beyond a row's end are zeros there, so that products need no
// bounds; lanes beyond it add what is never stored. A row without keys has maximum and logsumexp -infinity and takes no
// part.
#include "core/ops/attention_cuda.cuh"
#include "core/ops/rows_cuda.cuh"

namespace castor::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kOwn = 8;               ///< rows of a warp
constexpr int kRows = kWarps * kOwn;  ///< rows of a block
constexpr int kPartners = 32;         ///< one a lane
/// Elements of each own row in a lane: as many as shared memory has room for.
template <class C>
constexpr int kHeld = sizeof(C) == 8 ? 2 : 4;
template <class C>
constexpr int kPass = 32 * kHeld<C>;  ///< elements of a row that are there at a time
constexpr unsigned kAll = 0xFFFFFFFFu;

using cuda::Computed;
using cuda::visit_float;

template <class T>
struct Problem {
  using C = Computed<T>;
  HeadRows q, k, v, out, dout, dq, dk, dv;
  C *lse, *delta;
  const void* mask;
  std::int64_t mask_stride[4];
  std::int64_t batch, queries, keys, heads, key_heads, dim;
  C scale;
  int width;  ///< elements of a row in shared memory: dim, at most kPass, rounded up to 4
  bool is_causal, mask_is_bool;

  __device__ std::int64_t visible_keys(std::int64_t query) const {
    if (!is_causal) return keys;
    const std::int64_t visible = query + keys - queries + 1;
    return visible < 0 ? 0 : visible < keys ? visible : keys;
  }
  /// The score that a product of query i and key j gives; -infinity if the key is not seen or does not exist.
  __device__ C score(C product, std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) const {
    constexpr C kNothing = -std::numeric_limits<C>::infinity();
    if (i >= queries || j >= visible_keys(i)) return kNothing;
    const C value = scale * product;
    if (mask == nullptr) return value;
    const std::int64_t at = b * mask_stride[0] + h * mask_stride[1] + i * mask_stride[2] + j * mask_stride[3];
    if (!mask_is_bool) return value + static_cast<C>(static_cast<const float*>(mask)[at]);
    return static_cast<const bool*>(mask)[at] ? value : kNothing;
  }
};

/// Four neighbours in shared memory.
template <class C>
struct alignas(16) Quad {
  C value[4];
};

/// The block's shared memory: two tiles of own rows, two of partners (whose rows are an odd number of elements apart,
/// so that lanes with a row each meet in no bank), and two tables of weights [kOwn, kPartners] for each warp.
template <class C>
struct Tiles {
  int width, warp, lane;
  C *own[2], *partner[2], *weights[2];
  __device__ Tiles(unsigned char* memory, int row_width)
      : width(row_width), warp(static_cast<int>(threadIdx.y)), lane(static_cast<int>(threadIdx.x)) {
    C* next = reinterpret_cast<C*>(memory);
    for (int i = 0; i < 2; ++i, next += kRows * width) own[i] = next;
    for (int i = 0; i < 2; ++i, next += kPartners * (width + 1)) partner[i] = next;
    for (int i = 0; i < 2; ++i, next += kRows * kPartners) weights[i] = next + warp * kOwn * kPartners;
  }
  static constexpr std::size_t bytes(int width) {
    return sizeof(C) *
           static_cast<std::size_t>(2 * kRows * width + 2 * kPartners * (width + 1) + 2 * kRows * kPartners);
  }
};

constexpr std::size_t kLeastShared = 99 * 1024;  // what a block can have on the GPUs that give it least
static_assert(Tiles<float>::bytes(kPass<float>) <= kLeastShared && Tiles<double>::bytes(kPass<double>) <= kLeastShared);

/// 32 rows of a view from position `first` on, of `positions` that exist.
struct Slice {
  HeadRows rows;
  std::int64_t batch, first, head, positions;
};

/// Elements from `column` on of a slice, converted, zeros where there are none.
template <class T, class C>
__device__ void stage(const Slice& from, std::int64_t column, std::int64_t dim, C* to, int step, int width) {
  for (int r = static_cast<int>(threadIdx.y); r < 32; r += kWarps) {
    const std::int64_t position = from.first + r;
    const T* const row = from.rows.at<T>(from.batch, position, from.head);
    for (int d = static_cast<int>(threadIdx.x); d < width; d += 32) {
      to[r * step + d] = position < from.positions && column + d < dim ? read(row[column + d]) : C(0);
    }
  }
}

/// products[n][r] = own slice n, this warp's row r, times partner slice n, this lane's row. Partners are left in shared
/// memory with their elements from `column` on; `has_own` says that own rows are there already, where they all fit.
template <class T, class C, int kCount>
__device__ void make_products(const Tiles<C>& tiles, const Slice (&own)[kCount], const Slice (&partner)[kCount],
                              std::int64_t dim, std::int64_t column, bool has_own, C (&products)[kCount][kOwn]) {
  const int width = tiles.width, step = width + 1;
  for (std::int64_t begin = 0; begin < dim; begin += kPass<C>) {
    __syncthreads();
    for (int n = 0; n < kCount; ++n) {
      if (!has_own || dim > kPass<C>) stage<T>(own[n], begin, dim, tiles.own[n], width, width);
      stage<T>(partner[n], begin, dim, tiles.partner[n], step, width);
    }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
      const C *const rows = tiles.own[n] + tiles.warp * kOwn * width, *const mine =
                                                                          tiles.partner[n] + tiles.lane * step;
      if (begin == 0) {
        for (int r = 0; r < kOwn; ++r) products[n][r] = C(0);
      }
      for (int d = 0; d < width; d += 4) {
        const C part[4] = {mine[d], mine[d + 1], mine[d + 2], mine[d + 3]};
#pragma unroll
        for (int r = 0; r < kOwn; ++r) {
          const auto quad = *reinterpret_cast<const Quad<C>*>(rows + r * width + d);
#pragma unroll
          for (int e = 0; e < 4; ++e) products[n][r] = math::fma(quad.value[e], part[e], products[n][r]);
        }
      }
    }
  }
  if (dim <= kPass<C>) return;
  __syncthreads();
  for (int n = 0; n < kCount; ++n) stage<T>(partner[n], column, dim, tiles.partner[n], step, width);
  __syncthreads();
}

/// held[r][c] += the sum over partners of weights[r] times their element lane + 32 c.
template <class C>
__device__ void add_partners(const Tiles<C>& tiles, const C* weights, const C* partners, C (&held)[kOwn][kHeld<C>]) {
  const int step = tiles.width + 1;
  int column[kHeld<C>];  // lanes beyond the end repeat the last
  for (int c = 0; c < kHeld<C>; ++c) column[c] = min(32 * c + tiles.lane, tiles.width - 1);
  for (int j = 0; j < kPartners; j += 4) {
    Quad<C> weight[kOwn];
#pragma unroll
    for (int r = 0; r < kOwn; ++r) weight[r] = *reinterpret_cast<const Quad<C>*>(weights + r * kPartners + j);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
#pragma unroll
      for (int c = 0; c < kHeld<C>; ++c) {
        if (32 * c >= tiles.width) break;
        const C value = partners[(j + e) * step + column[c]];
#pragma unroll
        for (int r = 0; r < kOwn; ++r) held[r][c] = math::fma(weight[r].value[e], value, held[r][c]);
      }
    }
  }
}

/// This warp's rows, elements from `column` on, each times its factor.
template <class T, class C>
__device__ void store_rows(const Tiles<C>& tiles, const C (&held)[kOwn][kHeld<C>], const C (&factor)[kOwn],
                           const Slice& to, std::int64_t column, std::int64_t dim) {
#pragma unroll
  for (int r = 0; r < kOwn; ++r) {
    const std::int64_t position = to.first + tiles.warp * kOwn + r;
    if (position >= to.positions) continue;
    T* const row = to.rows.at<T>(to.batch, position, to.head);
#pragma unroll
    for (int c = 0; c < kHeld<C>; ++c) {
      const std::int64_t d = column + tiles.lane + 32 * c;
      if (d < dim) row[d] = write<T>(held[r][c] * factor[r]);
    }
  }
}

template <class C>
__device__ C add_lanes(C value) {
  for (int width = 16; width > 0; width /= 2) value += __shfl_xor_sync(kAll, value, width);
  return value;
}

/// Which 32 rows of which head a block owns.
struct OwnRows {
  std::int64_t batch, head, first;
  __device__ OwnRows(std::int64_t heads, std::int64_t positions) {
    const std::int64_t blocks = (positions + kRows - 1) / kRows, at = static_cast<std::int64_t>(blockIdx.x);
    first = at % blocks * kRows;
    head = at / blocks % heads;
    batch = at / blocks / heads;
  }
};

template <class T>
__global__ void __launch_bounds__(32 * kWarps) forward_rows(const Problem<T> p) {
  using C = Computed<T>;
  constexpr C kNothing = -std::numeric_limits<C>::infinity();
  extern __shared__ __align__(16) unsigned char memory[];
  const Tiles<C> tiles(memory, p.width);
  const OwnRows at(p.heads, p.queries);
  const std::int64_t b = at.batch, h = at.head, key_head = h / (p.heads / p.key_heads), dim = p.dim;
  const std::int64_t first = at.first + tiles.warp * kOwn, last = min(at.first + kRows, p.queries) - 1;
  const Slice own[1] = {{p.q, b, at.first, h, p.queries}}, out{p.out, b, at.first, h, p.queries};
  for (std::int64_t column = 0; column < dim; column += kPass<C>) {
    C held[kOwn][kHeld<C>] = {}, high[kOwn], sum[kOwn] = {};
    for (int r = 0; r < kOwn; ++r) high[r] = kNothing;
    for (std::int64_t start = 0; start < p.visible_keys(last); start += kPartners) {
      const Slice keys[1] = {{p.k, b, start, key_head, p.keys}};
      C products[1][kOwn];
      make_products<T>(tiles, own, keys, dim, column, start != 0, products);
      stage<T>({p.v, b, start, key_head, p.keys}, column, dim, tiles.partner[1], p.width + 1, p.width);
#pragma unroll
      for (int r = 0; r < kOwn; ++r) {
        const C score = p.score(products[0][r], b, h, first + r, start + tiles.lane);
        const C most = larger(high[r], join_lanes(score, LargerLane{}));
        const C base = most == kNothing ? C(0) : most;
        const C shrink = math::exp(high[r] - base), weight = math::exp(score - base);
        high[r] = most;
        sum[r] = math::fma(sum[r], shrink, weight);
        for (int c = 0; c < kHeld<C>; ++c) held[r][c] *= shrink;
        tiles.weights[0][r * kPartners + tiles.lane] = weight;
      }
      __syncthreads();
      add_partners(tiles, tiles.weights[0], tiles.partner[1], held);
    }
    C factor[kOwn];
#pragma unroll
    for (int r = 0; r < kOwn; ++r) {
      const C total = add_lanes(sum[r]);
      factor[r] = high[r] == kNothing ? C(0) : C(1) / total;
      if (column == 0 && tiles.lane == 0 && first + r < p.queries) {
        p.lse[(b * p.heads + h) * p.queries + first + r] = high[r] == kNothing ? kNothing : high[r] + math::log(total);
      }
    }
    store_rows<T>(tiles, held, factor, out, column, dim);
  }
}

/// e^(score - lse), 0 for what is not seen.
template <class C>
__device__ C probability(C score, C lse) {
  return lse == -std::numeric_limits<C>::infinity() ? C(0) : math::exp(score - lse);
}

template <class T>
__global__ void __launch_bounds__(32 * kWarps) dq_rows(const Problem<T> p) {
  using C = Computed<T>;
  extern __shared__ __align__(16) unsigned char memory[];
  const Tiles<C> tiles(memory, p.width);
  const OwnRows at(p.heads, p.queries);
  const std::int64_t b = at.batch, h = at.head, key_head = h / (p.heads / p.key_heads), dim = p.dim;
  const std::int64_t first = at.first + tiles.warp * kOwn, last = min(at.first + kRows, p.queries) - 1;
  const std::int64_t statistics = (b * p.heads + h) * p.queries;
  C lse[kOwn], delta[kOwn], factor[kOwn];
  for (int r = 0; r < kOwn; ++r) {
    const std::int64_t i = min(first + r, last);
    const T *const out = p.out.template at<T>(b, i, h), *const dout = p.dout.template at<T>(b, i, h);
    C sum = C(0);
    for (std::int64_t d = tiles.lane; d < dim; d += 32) sum = math::fma(read(out[d]), read(dout[d]), sum);
    delta[r] = add_lanes(sum);
    lse[r] = p.lse[statistics + i];
    factor[r] = p.scale;
    if (tiles.lane == 0 && first + r < p.queries) p.delta[statistics + i] = delta[r];
  }
  const Slice own[2] = {{p.q, b, at.first, h, p.queries}, {p.dout, b, at.first, h, p.queries}};
  for (std::int64_t column = 0; column < dim; column += kPass<C>) {
    C held[kOwn][kHeld<C>] = {};
    for (std::int64_t start = 0; start < p.visible_keys(last); start += kPartners) {
      const Slice partners[2] = {{p.k, b, start, key_head, p.keys}, {p.v, b, start, key_head, p.keys}};
      C products[2][kOwn];
      make_products<T>(tiles, own, partners, dim, column, start != 0, products);
#pragma unroll
      for (int r = 0; r < kOwn; ++r) {
        const C weight = probability(p.score(products[0][r], b, h, first + r, start + tiles.lane), lse[r]);
        tiles.weights[0][r * kPartners + tiles.lane] = weight * (products[1][r] - delta[r]);
      }
      __syncwarp();
      add_partners(tiles, tiles.weights[0], tiles.partner[0], held);
    }
    store_rows<T>(tiles, held, factor, {p.dq, b, at.first, h, p.queries}, column, dim);
  }
}

template <class T>
__global__ void __launch_bounds__(32 * kWarps) dkv_rows(const Problem<T> p) {
  using C = Computed<T>;
  extern __shared__ __align__(16) unsigned char memory[];
  const Tiles<C> tiles(memory, p.width);
  const OwnRows at(p.key_heads, p.keys);
  const std::int64_t b = at.batch, key_head = at.head, group = p.heads / p.key_heads, dim = p.dim;
  const std::int64_t first = at.first + tiles.warp * kOwn;
  const std::int64_t first_query = p.is_causal ? max(at.first - (p.keys - p.queries), std::int64_t{0}) : 0;
  const Slice own[2] = {{p.k, b, at.first, key_head, p.keys}, {p.v, b, at.first, key_head, p.keys}};
  for (std::int64_t column = 0; column < dim; column += kPass<C>) {
    C held_dk[kOwn][kHeld<C>] = {}, held_dv[kOwn][kHeld<C>] = {};
    bool has_own = false;
    for (std::int64_t h = key_head * group; h < (key_head + 1) * group; ++h) {
      const std::int64_t statistics = (b * p.heads + h) * p.queries;
      for (std::int64_t start = first_query; start < p.queries; start += kPartners) {
        const Slice partners[2] = {{p.q, b, start, h, p.queries}, {p.dout, b, start, h, p.queries}};
        C products[2][kOwn];
        make_products<T>(tiles, own, partners, dim, column, has_own, products);
        has_own = true;
        const std::int64_t i = start + tiles.lane, known = statistics + min(i, p.queries - 1);
        const C lse = p.lse[known], delta = p.delta[known];
#pragma unroll
        for (int r = 0; r < kOwn; ++r) {
          const C weight = probability(p.score(products[0][r], b, h, i, first + r), lse);
          tiles.weights[0][r * kPartners + tiles.lane] = weight;
          tiles.weights[1][r * kPartners + tiles.lane] = weight * (products[1][r] - delta);
        }
        __syncwarp();
        add_partners(tiles, tiles.weights[0], tiles.partner[1], held_dv);
        add_partners(tiles, tiles.weights[1], tiles.partner[0], held_dk);
      }
    }
    C scale[kOwn], one[kOwn];
    for (int r = 0; r < kOwn; ++r) {
      scale[r] = p.scale;
      one[r] = C(1);
    }
    store_rows<T>(tiles, held_dk, scale, {p.dk, b, at.first, key_head, p.keys}, column, dim);
    store_rows<T>(tiles, held_dv, one, {p.dv, b, at.first, key_head, p.keys}, column, dim);
  }
}

template <class T, class Args>
Problem<T> problem_of(const Args& args) {
  Problem<T> p{};
  p.q = HeadRows(args.q);
  p.k = HeadRows(args.k);
  p.v = HeadRows(args.v);
  p.out = HeadRows(args.out);
  p.lse = args.lse.template as<Computed<T>>();
  if (args.mask.defined()) {
    p.mask = args.mask.data;
    p.mask_is_bool = args.mask.dtype == DType::boolean;
    for (int i = 0; i < 4; ++i) p.mask_stride[i] = args.mask.stride[i];
  }
  p.batch = args.q.size[0];
  p.queries = args.q.size[1];
  p.keys = args.k.size[1];
  p.heads = args.q.size[2];
  p.key_heads = args.k.size[2];
  p.dim = args.q.size[3];
  p.scale = static_cast<Computed<T>>(args.scale);
  p.width = static_cast<int>((std::min<std::int64_t>(p.dim, kPass<Computed<T>>) + 3) / 4 * 4);
  p.is_causal = args.causal;
  return p;
}

template <class T>
void launch(void (*kernel)(Problem<T>), const Problem<T>& p, std::int64_t heads, std::int64_t positions, const char* op,
            const Cuda& cuda) {
  const std::size_t bytes = Tiles<Computed<T>>::bytes(p.width);
  const std::int64_t blocks = p.batch * heads * ((positions + kRows - 1) / kRows);
  if (blocks == 0) return;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)), op,
             cuda.device);
  kernel<<<static_cast<unsigned>(blocks), dim3(32, kWarps), bytes, stream_of(cuda)>>>(p);
  check_cuda(cudaGetLastError(), op, cuda.device);
}

}  // namespace

void attention_rows(const Cuda& cuda, const AttentionArgs& args) {
  visit_float(args.q.dtype, AttentionArgs::kName, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const Problem<T> p = problem_of<T>(args);
    launch(forward_rows<T>, p, p.heads, p.queries, AttentionArgs::kName, cuda);
  });
}

void attention_backward_rows(const Cuda& cuda, const AttentionBackwardArgs& args) {
  visit_float(args.q.dtype, AttentionBackwardArgs::kName, [&](auto tag) {
    using T = typename decltype(tag)::type;
    Problem<T> p = problem_of<T>(args);
    p.delta = args.workspace.as<Computed<T>>();
    p.dout = HeadRows(args.dout);
    p.dq = HeadRows(args.dq);
    p.dk = HeadRows(args.dk);
    p.dv = HeadRows(args.dv);
    launch(dq_rows<T>, p, p.heads, p.queries, AttentionBackwardArgs::kName, cuda);
    launch(dkv_rows<T>, p, p.key_heads, p.keys, AttentionBackwardArgs::kName, cuda);
  });
}

}  // namespace castor::cuda
