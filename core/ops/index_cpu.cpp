// Index kernels on the CPU. Moving ops look at bytes, not at dtypes; adding ops walk the positions of each id in rising
// order, found by a counting sort, so that rows can be shared among threads without changing a bit.
#include <cstring>

#include "core/base/math.h"
#include "core/base/parallel.h"
#include "core/ops/index.h"

namespace castor {
namespace {

template <class F>
void visit_ids(DType dtype, F&& f) {
  dtype == DType::i64 ? f(TypeTag<std::int64_t>{}) : f(TypeTag<std::int32_t>{});
}

/// Calls f with a type of `dtype`'s size.
template <class F>
void visit_size(DType dtype, F&& f) {
  switch (dtype_size(dtype)) {
    case 1:
      return f(TypeTag<std::uint8_t>{});
    case 2:
      return f(TypeTag<std::uint16_t>{});
    case 4:
      return f(TypeTag<std::uint32_t>{});
    default:
      return f(TypeTag<std::uint64_t>{});
  }
}

[[noreturn]] void throw_outside(const char* op, std::int64_t id, std::int64_t position, std::int64_t size) {
  throw ShapeError(cat(op, ": index ", id, " at position ", position, " is outside [0, ", size, ")"));
}

template <class Id>
void check_all(const char* op, const View& ids, std::int64_t size) {
  for (std::int64_t j = 0; j < ids.size[0]; ++j) {
    const std::int64_t id = ids.as<Id>()[j * ids.stride[0]];
    if (id < 0 || id >= size) throw_outside(op, id, j, size);
  }
}

/// A line is all elements along `axis` at fixed other coordinates: hands out each line's number and offsets in N
/// operands, whose other axes have the sizes of `shape`.
template <int N, class Body>
void for_each_line(const View& shape, int axis, const View (&operands)[N], Body body) {
  std::int64_t lines = 1;
  for (int i = 0; i < shape.ndim; ++i) lines *= i == axis ? 1 : shape.size[i];
  if (lines == 0 || shape.size[axis] == 0) return;
  parallel_for(lines, std::max<std::int64_t>(1, 8192 / shape.size[axis]), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t line = begin; line < end; ++line) {
      std::int64_t offsets[N] = {};
      std::int64_t rest = line;
      for (int i = shape.ndim - 1; i >= 0; --i) {
        if (i == axis) continue;
        const std::int64_t at = rest % shape.size[i];
        rest /= shape.size[i];
        for (int k = 0; k < N; ++k) offsets[k] += at * operands[k].stride[i];
      }
      body(line, offsets);
    }
  });
}

/// Row-major position of element j of a line in a tensor of these sizes, for error texts.
std::int64_t position_in(const View& shape, int axis, std::int64_t line, std::int64_t j) {
  std::int64_t inner = 1;
  for (int i = axis + 1; i < shape.ndim; ++i) inner *= shape.size[i];
  return (line / inner * shape.size[axis] + j) * inner + line % inner;
}

/// order[0 .. size] = where each id's positions begin, order[size + 1 ...] = positions by id, rising.
template <class Id>
void sort_positions(const View& ids, std::int64_t size, std::int64_t* order) {
  const std::int64_t count = ids.size[0];
  const Id* id = ids.as<Id>();
  std::fill(order, order + size + 1, 0);
  for (std::int64_t j = 0; j < count; ++j) ++order[id[j * ids.stride[0]]];
  std::int64_t start = 0;
  for (std::int64_t i = 0; i <= size; ++i) {
    const std::int64_t here = order[i];
    order[i] = start;
    start += here;
  }
  std::int64_t* positions = order + size + 1;
  for (std::int64_t j = 0; j < count; ++j) positions[order[id[j * ids.stride[0]]]++] = j;
  // Each start has moved to its id's end, which is the next id's start.
  for (std::int64_t i = size; i > 0; --i) order[i] = order[i - 1];
  order[0] = 0;
}

/// One row of dx from the rows of dy at `positions`.
template <class T>
void add_rows(const T* dy, std::int64_t step, const std::int64_t* positions, std::int64_t count, T* dx,
              std::int64_t inner, bool accumulate) {
  using C = decltype(load(T{}));
  constexpr std::int64_t kChunk = 512;
  C sum[kChunk];
  for (std::int64_t first = 0; first < inner; first += kChunk) {
    const std::int64_t width = std::min(kChunk, inner - first);
    std::fill_n(sum, width, C(0));
    for (std::int64_t p = 0; p < count; ++p) {
      const T* row = dy + positions[p] * step + first;
      for (std::int64_t i = 0; i < width; ++i) sum[i] += load(row[i]);
    }
    T* out = dx + first;
    for (std::int64_t i = 0; i < width; ++i) {
      const T rounded = store<T>(sum[i]);
      out[i] = accumulate ? store<T>(load(out[i]) + load(rounded)) : rounded;
    }
  }
}

template <class T>
void add_by_order(const IndexAddArgs& args) {
  const std::int64_t outer = args.dx.size[0], size = args.dx.size[1], inner = args.dx.size[2];
  const std::int64_t* order = args.workspace.as<std::int64_t>();
  const std::int64_t* positions = order + size + 1;
  const std::int64_t rows = outer * size;
  const std::int64_t work = std::max<std::int64_t>(1, inner * (1 + args.ids.size[0] / std::max<std::int64_t>(1, size)));
  parallel_for(rows, std::max<std::int64_t>(1, 16384 / work), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      const std::int64_t o = row / size, id = row % size;
      const std::int64_t count = id == args.skip ? 0 : order[id + 1] - order[id];
      if (count == 0 && args.accumulate) continue;
      add_rows(args.dy.as<T>() + o * args.dy.stride[0], args.dy.stride[1], positions + order[id], count,
               args.dx.as<T>() + o * args.dx.stride[0] + id * args.dx.stride[1], inner, args.accumulate);
    }
  });
}

template <class T>
void scatter_lines(const ScatterAddArgs& args) {
  const std::int64_t length = args.index.size[args.axis], size = args.y.size[args.axis];
  visit_ids(args.index.dtype, [&](auto id_tag) {
    using Id = typename decltype(id_tag)::type;
    for_each_line<3>(args.index, args.axis, {args.index, args.source, args.y},
                     [&](std::int64_t line, const std::int64_t* at) {
                       const Id* index = args.index.as<Id>() + at[0];
                       const T* source = args.source.as<T>() + at[1];
                       T* y = args.y.as<T>() + at[2];
                       for (std::int64_t j = 0; j < length; ++j) {
                         const std::int64_t id = index[j * args.index.stride[args.axis]];
                         if (id < 0 || id >= size) {
                           throw_outside(ScatterAddArgs::kName, id, position_in(args.index, args.axis, line, j), size);
                         }
                         y[id * args.y.stride[args.axis]] += source[j * args.source.stride[args.axis]];
                       }
                     });
  });
}

}  // namespace

void run(const Cpu&, const IndexSelectArgs& args) {
  const std::int64_t outer = args.y.size[0], count = args.y.size[1], inner = args.y.size[2];
  const std::size_t element = dtype_size(args.x.dtype);
  const std::size_t bytes = static_cast<std::size_t>(inner) * element;
  visit_ids(args.ids.dtype, [&](auto tag) {
    using Id = typename decltype(tag)::type;
    check_all<Id>(IndexSelectArgs::kName, args.ids, args.x.size[1]);
    if (args.y.numel() == 0) return;
    parallel_for(outer * count, std::max<std::int64_t>(1, 16384 / inner), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t row = begin; row < end; ++row) {
        const std::int64_t o = row / count, j = row % count;
        const std::int64_t id = args.ids.as<Id>()[j * args.ids.stride[0]];
        const std::int64_t from = o * args.x.stride[0] + id * args.x.stride[1];
        std::memcpy(args.y.as<char>() + static_cast<std::size_t>(row) * bytes,
                    args.x.as<char>() + from * static_cast<std::int64_t>(element), bytes);
      }
    });
  });
}

std::size_t workspace_bytes(const Cpu&, const IndexAddArgs& args) {
  return static_cast<std::size_t>(args.dx.size[1] + 1 + args.ids.size[0]) * sizeof(std::int64_t);
}

void run(const Cpu&, const IndexAddArgs& args) {
  visit_ids(args.ids.dtype, [&](auto tag) {
    using Id = typename decltype(tag)::type;
    check_all<Id>(IndexAddArgs::kName, args.ids, args.dx.size[1]);
    sort_positions<Id>(args.ids, args.dx.size[1], args.workspace.as<std::int64_t>());
  });
  if (args.dx.numel() == 0) return;
  if (args.dx.dtype == DType::f64) return add_by_order<double>(args);
  visit_training_float(args.dx.dtype, IndexAddArgs::kName,
                       [&](auto tag) { add_by_order<typename decltype(tag)::type>(args); });
}

void run(const Cpu&, const GatherArgs& args) {
  const std::int64_t length = args.index.size[args.axis], size = args.x.size[args.axis];
  visit_ids(args.index.dtype, [&](auto id_tag) {
    using Id = typename decltype(id_tag)::type;
    visit_size(args.x.dtype, [&](auto tag) {
      using T = typename decltype(tag)::type;
      for_each_line<3>(args.index, args.axis, {args.x, args.index, args.y},
                       [&](std::int64_t line, const std::int64_t* at) {
                         const T* x = args.x.as<T>() + at[0];
                         const Id* index = args.index.as<Id>() + at[1];
                         T* y = args.y.as<T>() + at[2];
                         for (std::int64_t j = 0; j < length; ++j) {
                           const std::int64_t id = index[j * args.index.stride[args.axis]];
                           if (id < 0 || id >= size)
                             throw_outside(GatherArgs::kName, id, position_in(args.index, args.axis, line, j), size);
                           y[j * args.y.stride[args.axis]] = x[id * args.x.stride[args.axis]];
                         }
                       });
    });
  });
}

void run(const Cpu&, const ScatterAddArgs& args) {
  args.y.dtype == DType::f64 ? scatter_lines<double>(args) : scatter_lines<float>(args);
}

}  // namespace castor
