// Index kernels on CUDA. Moving ops look at bytes, not at dtypes. Adding ops walk the positions of each id in rising
// order: counts by integer atomics, whose result has no order, places likewise, and then each place's rank among its
// id's, which no order of execution changes. So sums have the CPU's bits.
//
// Delicate: nobody can throw here. An index outside its axis reads an element of ones in all bits (NaN in floats, -1 in
// signed integers) and adds nothing. One id with very many positions is ranked in quadratic time.
#include "core/ops/index.h"
#include "core/ops/map_cuda.cuh"
#include "core/ops/rows_cuda.cuh"

namespace castor {
namespace {

constexpr int kThreads = 256;
constexpr int kScanThreads = 1024;

/// Indices of either width, with a stride.
struct Ids {
  const void* data;
  bool is_wide;
  std::int64_t count, stride;
  explicit Ids(const View& view)
      : data(view.data), is_wide(view.dtype == DType::i64), count(view.size[0]), stride(view.stride[0]) {}
  __device__ std::int64_t at(std::int64_t offset) const {
    return is_wide ? static_cast<const std::int64_t*>(data)[offset] : static_cast<const std::int32_t*>(data)[offset];
  }
  __device__ std::int64_t operator[](std::int64_t i) const { return at(i * stride); }
};

unsigned blocks_for(std::int64_t threads) {
  return static_cast<unsigned>(std::min<std::int64_t>((threads + kThreads - 1) / kThreads, 1 << 20));
}

/// Calls body(i) for i in [0, count), shared out over the launch.
template <class Body>
__device__ void for_all(std::int64_t count, Body body) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) body(i);
}

struct RowSizes {
  std::int64_t outer, count, size, words;  // words of a row
  std::int64_t outer_stride, row_stride;   // of x, in words
};

template <class Word>
__global__ void __launch_bounds__(kThreads) select_rows(const Word* x, const Ids ids, Word* y, const RowSizes sizes) {
  Word outside;
  memset(&outside, 0xFF, sizeof(outside));
  for_all(sizes.outer * sizes.count * sizes.words, [&](std::int64_t at) {
    const std::int64_t word = at % sizes.words, row = at / sizes.words;
    const std::int64_t id = ids[row % sizes.count];
    const bool is_inside = id >= 0 && id < sizes.size;
    y[at] = is_inside ? x[row / sizes.count * sizes.outer_stride + id * sizes.row_stride + word] : outside;
  });
}

// ---------------------------------------------------------------------------------------------- positions by id

/// The workspace of index_add: starts[size + 1], cursors[size], places[count], order[count].
struct Positions {
  std::int64_t size, count, skip;
  std::int64_t *starts, *cursors, *places, *order;

  Positions(std::int64_t rows, std::int64_t ids, std::int64_t skipped, void* workspace)
      : size(rows), count(ids), skip(skipped) {
    starts = static_cast<std::int64_t*>(workspace);
    cursors = starts + size + 1;
    places = cursors + size;
    order = places + count;
  }
  /// True for the ids whose rows are added.
  __device__ bool takes(std::int64_t id) const { return id >= 0 && id < size && id != skip; }
  static std::size_t bytes(std::int64_t rows, std::int64_t ids) {
    return static_cast<std::size_t>(2 * rows + 1 + 2 * ids) * sizeof(std::int64_t);
  }
};

__device__ std::int64_t take_ticket(std::int64_t* counter) {
  return static_cast<std::int64_t>(atomicAdd(reinterpret_cast<unsigned long long*>(counter), 1ull));
}

__global__ void __launch_bounds__(kThreads) clear_counts(const Positions p) {
  for_all(2 * p.size + 1, [&](std::int64_t i) { p.starts[i] = 0; });
}

__global__ void __launch_bounds__(kThreads) count_ids(const Ids ids, const Positions p) {
  for_all(p.count, [&](std::int64_t j) {
    const std::int64_t id = ids[j];
    if (p.takes(id)) take_ticket(p.starts + id);
  });
}

/// Counts become starts, by one block, which walks over them; a thread has neighbouring ones of each stretch.
__global__ void __launch_bounds__(kScanThreads) scan_counts(const Positions p) {
  constexpr int kOwn = 4;
  __shared__ std::int64_t of_warps[kScanThreads / 32];
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const std::int64_t size = p.size + 1;
  std::int64_t before = 0;  // of all stretches so far
  std::int64_t next[kOwn];
  const auto fetch = [&](std::int64_t first) {
#pragma unroll
    for (int k = 0; k < kOwn; ++k) next[k] = first + k < size ? p.starts[first + k] : 0;
  };
  fetch(threadIdx.x * kOwn);
  for (std::int64_t first = threadIdx.x * kOwn; first - threadIdx.x * kOwn < size; first += kScanThreads * kOwn) {
    std::int64_t own[kOwn], sum = 0;
#pragma unroll
    for (int k = 0; k < kOwn; ++k) sum += own[k] = next[k];
    fetch(first + kScanThreads * kOwn);  // on its way meanwhile
    std::int64_t up_to = sum;            // this thread's, in its warp
    for (int width = 1; width < 32; width *= 2) {
      const std::int64_t other = __shfl_up_sync(0xFFFFFFFFu, up_to, width);
      if (lane >= width) up_to += other;
    }
    if (lane == 31) of_warps[warp] = up_to;
    __syncthreads();
    std::int64_t start = before + up_to - sum;
    for (int w = 0; w < kScanThreads / 32; ++w) {
      const std::int64_t of_warp = of_warps[w];
      if (w < warp) start += of_warp;
      before += of_warp;
    }
#pragma unroll
    for (int k = 0; k < kOwn; ++k) {
      if (first + k < size) p.starts[first + k] = start;
      start += own[k];
    }
    __syncthreads();
  }
}

__global__ void __launch_bounds__(kThreads) place_ids(const Ids ids, const Positions p) {
  for_all(p.count, [&](std::int64_t j) {
    const std::int64_t id = ids[j];
    if (p.takes(id)) p.places[p.starts[id] + take_ticket(p.cursors + id)] = j;
  });
}

__global__ void __launch_bounds__(kThreads) rank_places(const Ids ids, const Positions p) {
  for_all(p.starts[p.size], [&](std::int64_t place) {
    const std::int64_t j = p.places[place], id = ids[j], first = p.starts[id], last = p.starts[id + 1];
    std::int64_t rank = 0;
    for (std::int64_t other = first; other < last; ++other) rank += p.places[other] < j ? 1 : 0;
    p.order[first + rank] = j;
  });
}

struct AddSizes {
  std::int64_t outer, inner;
  std::int64_t dy_outer, dy_row, dx_outer, dx_row;  // strides
  bool accumulate;
};

/// A block a row of dx, from `first_row` on; a thread takes some of its columns, V at a time, and adds the rows of dy
/// in order.
template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    add_rows(const T* dy, T* dx, const Positions p, const AddSizes sizes, std::int64_t first_row) {
  using C = decltype(load(T{}));
  const std::int64_t at = first_row + blockIdx.x, id = at % p.size, o = at / p.size;
  const std::int64_t first = p.starts[id], last = p.starts[id + 1];
  if (first == last && sizes.accumulate) return;
  dy += o * sizes.dy_outer;
  dx += o * sizes.dx_outer + id * sizes.dx_row;
  for (std::int64_t i = threadIdx.x * V; i < sizes.inner; i += blockDim.x * V) {
    C sum[V] = {};
#pragma unroll 4
    for (std::int64_t k = first; k < last; ++k) {
      const auto row = cuda::load_pack<V>(dy + p.order[k] * sizes.dy_row + i, true);
      for (int e = 0; e < V; ++e) sum[e] += cuda::read(row.value[e]);
    }
    cuda::Pack<T, V> total;
    for (int e = 0; e < V; ++e) total.value[e] = cuda::write<T>(sum[e]);
    if (sizes.accumulate) {
      const auto old = cuda::load_pack<V>(static_cast<const T*>(dx) + i, true);
      for (int e = 0; e < V; ++e)
        total.value[e] = cuda::write<T>(cuda::read(old.value[e]) + cuda::read(total.value[e]));
    }
    cuda::store_pack(dx + i, total);
  }
}

// ---------------------------------------------------------------------------------------------- gather, scatter

/// Lines along an axis: where they start in three operands.
struct Lines {
  int ndim = 0;
  std::int64_t count = 1, length = 0, size = 0;  // size: of the axis that is indexed
  std::int64_t extent[kMaxDims] = {};
  std::int64_t stride[3][kMaxDims] = {};
  std::int64_t step[3] = {};

  Lines(const View& shape, int axis, const View& a, const View& b, const View& c) : length(shape.size[axis]) {
    const View* const views[3] = {&a, &b, &c};
    for (int i = 0; i < shape.ndim; ++i) {
      if (i == axis) continue;
      extent[ndim] = shape.size[i];
      count *= shape.size[i];
      for (int k = 0; k < 3; ++k) stride[k][ndim] = views[k]->stride[i];
      ++ndim;
    }
    for (int k = 0; k < 3; ++k) step[k] = views[k]->stride[axis];
  }
  __device__ void offsets(std::int64_t line, std::int64_t (&at)[3]) const {
    at[0] = at[1] = at[2] = 0;
    for (int i = ndim - 1; i >= 0; --i) {
      const std::int64_t own = line % extent[i];
      line /= extent[i];
      for (int k = 0; k < 3; ++k) at[k] += own * stride[k][i];
    }
  }
};

/// Operands of `lines`: index, y, x.
template <class Word>
__global__ void __launch_bounds__(kThreads)
    gather_elements(const Word* x, const Ids index, Word* y, const Lines lines) {
  Word outside;
  memset(&outside, 0xFF, sizeof(outside));
  for_all(lines.count * lines.length, [&](std::int64_t i) {
    std::int64_t at[3];
    lines.offsets(i / lines.length, at);
    const std::int64_t j = i % lines.length, id = index.at(at[0] + j * lines.step[0]);
    const bool is_inside = id >= 0 && id < lines.size;
    y[at[1] + j * lines.step[1]] = is_inside ? x[at[2] + id * lines.step[2]] : outside;
  });
}

/// Operands of `lines`: index, source, y. A thread a line, in order.
template <class T>
__global__ void __launch_bounds__(kThreads) scatter_lines(const T* source, const Ids index, T* y, const Lines lines) {
  for_all(lines.count, [&](std::int64_t line) {
    std::int64_t at[3];
    lines.offsets(line, at);
    for (std::int64_t j = 0; j < lines.length; ++j) {
      const std::int64_t id = index.at(at[0] + j * lines.step[0]);
      if (id >= 0 && id < lines.size) y[at[2] + id * lines.step[2]] += source[at[1] + j * lines.step[1]];
    }
  });
}

/// Calls f with a word that divides `bytes`, at most kMost bytes long.
template <int kMost, class F>
void visit_word(std::size_t bytes, F&& f) {
  if constexpr (kMost == 16) {
    if (bytes % 16 == 0) return f(TypeTag<uint4>{});
  }
  if (bytes % 8 == 0) return f(TypeTag<std::uint64_t>{});
  if (bytes % 4 == 0) return f(TypeTag<std::uint32_t>{});
  if (bytes % 2 == 0) return f(TypeTag<std::uint16_t>{});
  return f(TypeTag<std::uint8_t>{});
}

}  // namespace

void run(const Cuda& cuda, const IndexSelectArgs& args) {
  if (args.y.numel() == 0) return;
  const std::size_t element = dtype_size(args.x.dtype), row = static_cast<std::size_t>(args.y.size[2]) * element;
  // What every row's start and length is a multiple of.
  const std::size_t all =
      row | reinterpret_cast<std::uintptr_t>(args.x.data) | reinterpret_cast<std::uintptr_t>(args.y.data) |
      static_cast<std::size_t>(args.x.stride[0]) * element | static_cast<std::size_t>(args.x.stride[1]) * element;
  visit_word<16>(all, [&](auto tag) {
    using Word = typename decltype(tag)::type;
    const auto words = [&](std::int64_t elements) {
      return elements * static_cast<std::int64_t>(element) / static_cast<std::int64_t>(sizeof(Word));
    };
    const RowSizes sizes{args.y.size[0],        args.y.size[1],          args.x.size[1],
                         words(args.y.size[2]), words(args.x.stride[0]), words(args.x.stride[1])};
    select_rows<Word><<<blocks_for(sizes.outer * sizes.count * sizes.words), kThreads, 0, stream_of(cuda)>>>(
        args.x.as<Word>(), Ids(args.ids), args.y.as<Word>(), sizes);
  });
  check_cuda(cudaGetLastError(), IndexSelectArgs::kName, cuda.device);
}

std::size_t workspace_bytes(const Cuda&, const IndexAddArgs& args) {
  return Positions::bytes(args.dx.size[1], args.ids.size[0]);
}

void run(const Cuda& cuda, const IndexAddArgs& args) {
  if (args.dx.numel() == 0) return;
  const cudaStream_t stream = stream_of(cuda);
  const Ids ids(args.ids);
  const Positions positions(args.dx.size[1], ids.count, args.skip, args.workspace.data);
  clear_counts<<<blocks_for(2 * positions.size + 1), kThreads, 0, stream>>>(positions);
  if (ids.count > 0) count_ids<<<blocks_for(ids.count), kThreads, 0, stream>>>(ids, positions);
  scan_counts<<<1, kScanThreads, 0, stream>>>(positions);
  if (ids.count > 0) {
    place_ids<<<blocks_for(ids.count), kThreads, 0, stream>>>(ids, positions);
    rank_places<<<blocks_for(ids.count), kThreads, 0, stream>>>(ids, positions);
  }
  const AddSizes sizes{args.dx.size[0],   args.dx.size[2],   args.dy.stride[0], args.dy.stride[1],
                       args.dx.stride[0], args.dx.stride[1], args.accumulate};
  constexpr std::int64_t kMostRows = (std::int64_t{1} << 31) - 1;  // of a launch
  const std::int64_t rows = sizes.outer * positions.size;
  const auto launch_with = [&](auto tag, auto width) {
    using T = typename decltype(tag)::type;
    constexpr int kWide = decltype(width)::value;
    const std::int64_t words = sizes.inner / kWide;
    const auto threads = static_cast<unsigned>(std::clamp<std::int64_t>((words + 31) / 32 * 32, 32, kThreads));
    for (std::int64_t first = 0; first < rows; first += kMostRows) {
      add_rows<T, kWide><<<static_cast<unsigned>(std::min(kMostRows, rows - first)), threads, 0, stream>>>(
          args.dy.as<T>(), args.dx.as<T>(), positions, sizes, first);
    }
  };
  const auto launch = [&](auto tag) {
    constexpr int kWide = 16 / static_cast<int>(sizeof(typename decltype(tag)::type));
    const bool fits =
        (sizes.inner | sizes.dy_outer | sizes.dy_row | sizes.dx_outer | sizes.dx_row) % kWide == 0 &&
        (reinterpret_cast<std::uintptr_t>(args.dy.data) | reinterpret_cast<std::uintptr_t>(args.dx.data)) % 16 == 0;
    fits ? launch_with(tag, std::integral_constant<int, kWide>{}) : launch_with(tag, std::integral_constant<int, 1>{});
  };
  args.dx.dtype == DType::f64 ? launch(TypeTag<double>{})
                              : visit_training_float(args.dx.dtype, IndexAddArgs::kName, launch);
  check_cuda(cudaGetLastError(), IndexAddArgs::kName, cuda.device);
}

void run(const Cuda& cuda, const GatherArgs& args) {
  Lines lines(args.index, args.axis, args.index, args.y, args.x);
  lines.size = args.x.size[args.axis];
  if (lines.count * lines.length == 0) return;
  visit_word<8>(dtype_size(args.x.dtype), [&](auto tag) {
    using Word = typename decltype(tag)::type;
    gather_elements<Word><<<blocks_for(lines.count * lines.length), kThreads, 0, stream_of(cuda)>>>(
        args.x.as<Word>(), Ids(args.index), args.y.as<Word>(), lines);
  });
  check_cuda(cudaGetLastError(), GatherArgs::kName, cuda.device);
}

void run(const Cuda& cuda, const ScatterAddArgs& args) {
  Lines lines(args.index, args.axis, args.index, args.source, args.y);
  lines.size = args.y.size[args.axis];
  if (lines.count * lines.length == 0) return;
  const auto launch = [&](auto tag) {
    using T = typename decltype(tag)::type;
    scatter_lines<T><<<blocks_for(lines.count), kThreads, 0, stream_of(cuda)>>>(args.source.as<T>(), Ids(args.index),
                                                                                args.y.as<T>(), lines);
  };
  args.y.dtype == DType::f64 ? launch(TypeTag<double>{}) : launch(TypeTag<float>{});
  check_cuda(cudaGetLastError(), ScatterAddArgs::kName, cuda.device);
}

}  // namespace castor
