// Optimizer kernels on the CPU, bound by memory: a stretch of elements at a time, whose numbers stay in the first cache while
// 16-bit gradients are widened before the update and the 16-bit copy is rounded after it. So each update is one f32 loop, whatever
// the dtypes around it. Stretches are short and fetch what lies a little ahead: five streams are too many for the processor's own
// prefetcher to keep memory busy (about a fifth slower without).
//
// Delicate: no loop here adds across elements but fold_lanes and the sums of squares of Adafactor, whose pieces (a row within a
// block) do not depend on where a range was cut.
#include "core/base/math.h"
#include "core/base/parallel.h"
#include "core/ops/lane_fold.h"
#include "core/ops/optim.h"

namespace castor {
namespace {

constexpr std::int64_t kGrainBlocks = 16;
constexpr std::int64_t kStretch = 64;  // elements updated at a time; divides kStatisticsBlock
constexpr std::int64_t kAhead = 512;   // how many elements ahead memory is asked for

alignas(64) constexpr float kZeros[kStatisticsBlock] = {};

/// A block's gradient as f32: in place, widened into `scratch`, or zeros when there is none.
const float* gradient_block(const View& gradient, std::int64_t begin, std::int64_t count, float* scratch) {
  if (!gradient.defined()) return kZeros;
  if (gradient.dtype == DType::f32) return gradient.as<float>() + begin;
  visit_training_float(gradient.dtype, "optimizer step", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const T* from = gradient.as<T>() + begin;
    for (std::int64_t i = 0; i < count; ++i) scratch[i] = load(from[i]);
  });
  return scratch;
}

void write_copy(const View& copy, std::int64_t begin, std::int64_t count, const float* parameter) {
  if (!copy.defined()) return;
  visit_training_float(copy.dtype, "optimizer step", [&](auto tag) {
    using T = typename decltype(tag)::type;
    T* to = copy.as<T>() + begin;
    for (std::int64_t i = 0; i < count; ++i) to[i] = store<T>(parameter[i]);
  });
}

float* block_of(const View& view, std::int64_t begin) { return view.defined() ? view.as<float>() + begin : nullptr; }

/// Calls body(begin, count, scratch) for each block of `total` elements; scratch has room for one block.
template <class Body>
void for_each_block(std::int64_t total, Body body) {
  const std::int64_t blocks = (total + kStatisticsBlock - 1) / kStatisticsBlock;
  parallel_for(blocks, kGrainBlocks, [&](std::int64_t first, std::int64_t last) {
    alignas(64) float scratch[kStatisticsBlock];
    for (std::int64_t block = first; block < last; ++block) {
      const std::int64_t begin = block * kStatisticsBlock;
      body(begin, std::min(kStatisticsBlock, total - begin), scratch);
    }
  });
}

/// Asks for the bytes that a later stretch will need. May point beyond the end: a prefetch never faults.
void fetch_ahead(const View& view, std::int64_t begin) {
  if (!view.defined()) return;
  const std::int64_t size = static_cast<std::int64_t>(dtype_size(view.dtype));
  const char* at = view.as<const char>() + (begin + kAhead) * size;
  for (std::int64_t byte = 0; byte < kStretch * size; byte += 64) __builtin_prefetch(at + byte, 1);
}

/// Calls body(begin, count, scratch) for each stretch of `total` elements; scratch has room for one stretch.
template <class Body>
void for_each_stretch(std::int64_t total, std::initializer_list<const View*> streams, Body body) {
  const std::int64_t blocks = (total + kStatisticsBlock - 1) / kStatisticsBlock;
  parallel_for(blocks, kGrainBlocks, [&](std::int64_t first, std::int64_t last) {
    alignas(64) float scratch[kStretch];
    const std::int64_t end = std::min(total, last * kStatisticsBlock);
    for (std::int64_t begin = first * kStatisticsBlock; begin < end; begin += kStretch) {
      for (const View* stream : streams) fetch_ahead(*stream, begin);
      body(begin, std::min(kStretch, end - begin), scratch);
    }
  });
}

double squares_of(const float* x, std::int64_t count) {
  return fold_lanes<float>(
      count, 0.0f, [&](float sum, std::int64_t i) { return math::fma(x[i], x[i], sum); }, [](float a, float b) { return a + b; });
}

template <bool kKeepsLargest>
void adam_block(const AdamScalars& scalars, std::int64_t count, const float* __restrict g, float* __restrict p, float* __restrict m,
                float* __restrict v, float* __restrict largest) {
  const AdamScalars s = scalars;
  for (std::int64_t i = 0; i < count; ++i) {
    const float gradient = math::fma(s.decay, p[i], s.gradient_factor * g[i]);
    const float mean = math::fma(s.beta1, m[i], s.beta1_rest * gradient);
    const float square = math::fma(s.beta2, v[i], (s.beta2_rest * gradient) * gradient);
    float root = square;
    if constexpr (kKeepsLargest) {
      root = largest[i] > square ? largest[i] : square;
      largest[i] = root;
    }
    const float size = math::fma(math::sqrt(root), s.root_factor, s.epsilon);
    m[i] = mean;
    v[i] = square;
    p[i] = math::fma(-s.step_size, mean / size, s.keep * p[i]);
  }
}

/// Lamb's direction and new moments of one element.
struct LambElement {
  float mean, square, update;
};
inline LambElement lamb_element(const LambScalars& s, float g, float p, float m, float v) {
  const float gradient = s.gradient_factor * g;
  const float mean = math::fma(s.beta1, m, s.beta1_rest * gradient);
  const float square = math::fma(s.beta2, v, (s.beta2_rest * gradient) * gradient);
  const float size = math::fma(math::sqrt(square), s.root_factor, s.epsilon);
  return {mean, square, math::fma(s.decay, p, (mean * s.mean_factor) / size)};
}

/// Calls body(row, column, begin, count) for each piece of a row within elements [begin, begin + count) of a parameter; the piece
/// starts `at` elements into them.
template <class Body>
void for_each_piece(const FactoredShape& shape, std::int64_t begin, std::int64_t count, Body body) {
  std::int64_t row = begin / shape.columns, column = begin % shape.columns;
  for (std::int64_t at = 0; at < count;) {
    const std::int64_t width = std::min(shape.columns - column, count - at);
    body(row, column, at, width);
    at += width;
    column = 0;
    ++row;
  }
}

/// u = gradient row_factor column_factor for one block.
void factored_update(const FactoredShape& shape, std::int64_t offset, std::int64_t count, float gradient_factor, const float* g,
                     const float* row_factor, const float* column_factor, float* u) {
  for_each_piece(shape, offset, count, [&](std::int64_t row, std::int64_t column, std::int64_t at, std::int64_t width) {
    const float factor = row_factor[row];
    const float* columns = column_factor + row / shape.rows * shape.columns + column;
#pragma GCC ivdep
    for (std::int64_t i = 0; i < width; ++i) u[at + i] = (gradient_factor * g[at + i]) * (factor * columns[i]);
  });
}

inline float second_moment(const AdafactorScalars& s, float g, float v) {
  const float gradient = s.gradient_factor * g;
  return math::fma(s.beta2, v, (1.0f - s.beta2) * math::fma(gradient, gradient, s.epsilon));
}

/// One block's update direction into u, from factors or from the block's own second moment.
void update_direction(const FactoredShape& shape, std::int64_t offset, std::int64_t count, const AdafactorScalars& s, const float* g,
                      const View& row_factor, const View& column_factor, const float* v, float* u) {
  if (row_factor.defined()) {
    return factored_update(shape, offset, count, s.gradient_factor, g, row_factor.as<float>(), column_factor.as<float>(), u);
  }
#pragma GCC ivdep
  for (std::int64_t i = 0; i < count; ++i) u[i] = (s.gradient_factor * g[i]) / math::sqrt(second_moment(s, g[i], v[i]));
}

template <class T>
void factored_squares(const FactoredSquaresArgs& args) {
  const std::int64_t columns = args.shape.columns, begin = args.offset, end = args.offset + args.gradient.numel();
  const T* gradient = args.gradient.as<T>() - begin;  // addressed by the element's place in the parameter
  const float factor = args.gradient_factor;
  const std::int64_t first_row = begin / columns, last_row = (end + columns - 1) / columns;
  parallel_for(last_row - first_row, std::max<std::int64_t>(1, 16384 / columns), [&](std::int64_t from, std::int64_t to) {
    for (std::int64_t row = first_row + from; row < first_row + to; ++row) {
      std::int64_t at = std::max(begin, row * columns);
      const std::int64_t row_end = std::min(end, (row + 1) * columns);
      double& sum = args.row_sums.as<double>()[row];
      while (at < row_end) {
        const std::int64_t piece_end = std::min(row_end, (at / kStatisticsBlock + 1) * kStatisticsBlock);
        const T* piece = gradient + at;
        sum += static_cast<double>(fold_lanes<float>(
            piece_end - at, 0.0f,
            [&](float total, std::int64_t i) {
              const float g = factor * load(piece[i]);
              return math::fma(g, g, total);
            },
            [](float a, float b) { return a + b; }));
        at = piece_end;
      }
    }
  });
  const std::int64_t rows = std::max<std::int64_t>(1, last_row - first_row);
  parallel_for(columns, std::max<std::int64_t>(64, 16384 / rows), [&](std::int64_t from, std::int64_t to) {
    for (std::int64_t row = first_row; row < last_row; ++row) {
      double* sums = args.column_sums.as<double>() + row / args.shape.rows * columns;
      const std::int64_t low = std::max(from, begin - row * columns), high = std::min(to, end - row * columns);
      const T* line = gradient + row * columns;
#pragma GCC ivdep
      for (std::int64_t c = low; c < high; ++c) {
        const double g = static_cast<double>(factor * load(line[c]));
        sums[c] = math::fma(g, g, sums[c]);
      }
    }
  });
}

/// new = beta2 old + (1 - beta2) (sum / length + epsilon), or old where there are no sums.
void update_moments(const View& old, const View& sums, const View& fresh, std::int64_t count, double length, double beta2, double epsilon) {
  if (!fresh.defined()) return;
  for (std::int64_t i = 0; i < count; ++i) {
    const double before = static_cast<double>(old.as<float>()[i]);
    fresh.as<float>()[i] = static_cast<float>(sums.defined() ? beta2 * before + (1 - beta2) * (sums.as<double>()[i] / length + epsilon) : before);
  }
}

}  // namespace

void run(const Cpu&, const BlockSquaresArgs& args) {
  for_each_block(args.x.numel(), [&](std::int64_t begin, std::int64_t count, float* scratch) {
    args.sums.as<double>()[begin / kStatisticsBlock] = squares_of(gradient_block(args.x, begin, count, scratch), count);
  });
}

void run(const Cpu&, const AdamArgs& args) {
  for_each_stretch(args.parameter.numel(), {&args.parameter, &args.gradient, &args.exp_avg, &args.exp_avg_sq, &args.max_exp_avg_sq, &args.copy}, [&](std::int64_t begin, std::int64_t count, float* scratch) {
    const float* g = gradient_block(args.gradient, begin, count, scratch);
    float* p = block_of(args.parameter, begin);
    float* m = block_of(args.exp_avg, begin);
    float* v = block_of(args.exp_avg_sq, begin);
    if (args.max_exp_avg_sq.defined()) {
      adam_block<true>(args.scalars, count, g, p, m, v, block_of(args.max_exp_avg_sq, begin));
    } else {
      adam_block<false>(args.scalars, count, g, p, m, v, nullptr);
    }
    write_copy(args.copy, begin, count, p);
  });
}

void run(const Cpu&, const SgdArgs& args) {
  const SgdScalars s = args.scalars;
  const float rest = 1.0f - s.dampening;
  for_each_stretch(args.parameter.numel(), {&args.parameter, &args.gradient, &args.momentum_buffer, &args.copy}, [&](std::int64_t begin, std::int64_t count, float* scratch) {
    const float* g = gradient_block(args.gradient, begin, count, scratch);
    float* p = block_of(args.parameter, begin);
    float* b = block_of(args.momentum_buffer, begin);
    // The gradient with decay first, then the momentum, each a loop over the block.
#pragma GCC ivdep
    for (std::int64_t i = 0; i < count; ++i) scratch[i] = math::fma(s.weight_decay, p[i], s.gradient_factor * g[i]);
    if (b != nullptr) {
#pragma GCC ivdep
      for (std::int64_t i = 0; i < count; ++i) {
        const float kept = s.is_first_step ? scratch[i] : math::fma(s.momentum, b[i], rest * scratch[i]);
        b[i] = kept;
        scratch[i] = s.is_nesterov ? math::fma(s.momentum, kept, scratch[i]) : kept;
      }
    }
#pragma GCC ivdep
    for (std::int64_t i = 0; i < count; ++i) p[i] = math::fma(-s.lr, scratch[i], p[i]);
    write_copy(args.copy, begin, count, p);
  });
}

void run(const Cpu&, const LambSquaresArgs& args) {
  const LambScalars s = args.scalars;
  for_each_block(args.parameter.numel(), [&](std::int64_t begin, std::int64_t count, float* scratch) {
    const float* g = gradient_block(args.gradient, begin, count, scratch);
    const float* p = block_of(args.parameter, begin);
    const float* m = block_of(args.exp_avg, begin);
    const float* v = block_of(args.exp_avg_sq, begin);
#pragma GCC ivdep
    for (std::int64_t i = 0; i < count; ++i) scratch[i] = lamb_element(s, g[i], p[i], m[i], v[i]).update;
    args.parameter_sums.as<double>()[begin / kStatisticsBlock] = squares_of(p, count);
    args.update_sums.as<double>()[begin / kStatisticsBlock] = squares_of(scratch, count);
  });
}

void run(const Cpu&, const LambArgs& args) {
  const LambScalars s = args.scalars;
  const float step_size = args.step_size;
  for_each_stretch(args.parameter.numel(), {&args.parameter, &args.gradient, &args.exp_avg, &args.exp_avg_sq, &args.copy}, [&](std::int64_t begin, std::int64_t count, float* scratch) {
    const float* g = gradient_block(args.gradient, begin, count, scratch);
    float* p = block_of(args.parameter, begin);
    float* m = block_of(args.exp_avg, begin);
    float* v = block_of(args.exp_avg_sq, begin);
#pragma GCC ivdep
    for (std::int64_t i = 0; i < count; ++i) {
      const LambElement element = lamb_element(s, g[i], p[i], m[i], v[i]);
      m[i] = element.mean;
      v[i] = element.square;
      p[i] = math::fma(-step_size, element.update, p[i]);
    }
    write_copy(args.copy, begin, count, p);
  });
}

void run(const Cpu&, const FactoredSquaresArgs& args) {
  visit_training_float(args.gradient.dtype, FactoredSquaresArgs::kName,
                       [&](auto tag) { factored_squares<typename decltype(tag)::type>(args); });
}

void run(const Cpu&, const FactoredMomentsArgs& args) {
  const FactoredShape& shape = args.shape;
  update_moments(args.row, args.row_sums, args.new_row, shape.row_count(), static_cast<double>(shape.columns), args.beta2, args.epsilon);
  update_moments(args.column, args.column_sums, args.new_column, shape.column_count(), static_cast<double>(shape.rows), args.beta2,
                 args.epsilon);
  const float* row = (args.new_row.defined() ? args.new_row : args.row).as<float>();
  const float* column = (args.new_column.defined() ? args.new_column : args.column).as<float>();
  for (std::int64_t b = 0; b < shape.batch; ++b) {
    double total = 0;
    for (std::int64_t r = b * shape.rows; r < (b + 1) * shape.rows; ++r) total += static_cast<double>(row[r]);
    const double mean = total / static_cast<double>(shape.rows);
    for (std::int64_t r = b * shape.rows; r < (b + 1) * shape.rows; ++r) {
      args.row_factor.as<float>()[r] = static_cast<float>(std::sqrt(mean / static_cast<double>(row[r])));
    }
  }
  for (std::int64_t c = 0; c < shape.column_count(); ++c) {
    args.column_factor.as<float>()[c] = static_cast<float>(1 / std::sqrt(static_cast<double>(column[c])));
  }
}

void run(const Cpu&, const AdafactorSquaresArgs& args) {
  for_each_block(args.gradient.numel(), [&](std::int64_t begin, std::int64_t count, float* scratch) {
    alignas(64) float update[kStatisticsBlock];
    const float* g = gradient_block(args.gradient, begin, count, scratch);
    update_direction(args.shape, args.offset + begin, count, args.scalars, g, args.row_factor, args.column_factor,
                     block_of(args.exp_avg_sq, begin), update);
    args.sums.as<double>()[begin / kStatisticsBlock] = squares_of(update, count);
  });
}

void run(const Cpu&, const AdafactorArgs& args) {
  const AdafactorScalars s = args.scalars;
  const float rest = 1.0f - s.beta1;
  for_each_stretch(args.parameter.numel(), {&args.parameter, &args.gradient, &args.exp_avg, &args.exp_avg_sq, &args.copy}, [&](std::int64_t begin, std::int64_t count, float* scratch) {
    alignas(64) float update[kStretch];
    const float* g = gradient_block(args.gradient, begin, count, scratch);
    float* p = block_of(args.parameter, begin);
    float* m = block_of(args.exp_avg, begin);
    float* v = block_of(args.exp_avg_sq, begin);
    update_direction(args.shape, args.offset + begin, count, s, g, args.row_factor, args.column_factor, v, update);
    if (!args.row_factor.defined()) {
#pragma GCC ivdep
      for (std::int64_t i = 0; i < count; ++i) v[i] = second_moment(s, g[i], v[i]);
    }
#pragma GCC ivdep
    for (std::int64_t i = 0; i < count; ++i) update[i] *= s.update_factor;
    if (m != nullptr) {
#pragma GCC ivdep
      for (std::int64_t i = 0; i < count; ++i) {
        m[i] = math::fma(s.beta1, m[i], rest * update[i]);
        update[i] = m[i];
      }
    }
#pragma GCC ivdep
    for (std::int64_t i = 0; i < count; ++i) p[i] = math::fma(s.keep, p[i], -update[i]);
    write_copy(args.copy, begin, count, p);
  });
}

}  // namespace castor
