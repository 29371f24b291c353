// Optimizer steps and their statistics on flat ranges: a range is elements [offset, offset + count) of a logical
// tensor, so the same kernels serve whole, sharded and offloaded parameters. One pass reads the gradient, updates
// parameter and states, and writes the compute copy in 16 bits.
//
// Small parameters are many, and each launch on a GPU costs as much as stepping a small one: SGD, Adam and the sums of
// squares take several ranges at once.
//
// Delicate: every update is a function of its element alone, in explicit fused steps; statistics are taken over blocks
// of kStatisticsBlock elements of the logical tensor and block results add in f64, in order. So any cut at block
// boundaries, any instruction set and any number of threads give the same bits. Scalars are computed once, in f64, and
// passed as f32.
#pragma once

#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include "core/device/dispatch.h"
#include "core/tensor/tensor.h"

namespace castor {

/// Elements of a logical tensor that one statistic covers; cuts fall on multiples of it.
inline constexpr std::int64_t kStatisticsBlock = 1024;

/// What every step reads and writes, for one range of `count` elements.
struct StepTensors {
  Tensor parameter;  ///< f32 [count], row-major: the master weights, updated
  Tensor gradient;   ///< f32|bf16|f16 [count], row-major; undefined = zeros
  Tensor copy;       ///< bf16|f16 [count], row-major, or undefined: the new parameter, rounded
};

// ---------------------------------------------------------------------------------------------- sums of squares

/// For each pair: sums[i] = sum of x's squares over block i, f32 in kFoldLanes chains (core/ops/lane_fold.h), then f64.
///   x     f32|bf16|f16 [count], row-major, starting at a block boundary; count > 0
///   sums  f64 [ceil(count / kStatisticsBlock)]
struct BlockSquaresArgs {
  static constexpr const char* kName = "block_squares";
  struct Pair {
    View x, sums;
  };
  std::span<const Pair> pairs;
};
Cost cost(const BlockSquaresArgs& args);
void run(const Cpu& cpu, const BlockSquaresArgs& args);
void run(const Cuda& cuda, const BlockSquaresArgs& args);

/// A tensor, and where the sums of its blocks go.
struct BlockSquares {
  Tensor x;     ///< as sum_squares takes it
  Tensor sums;  ///< f64 [block_count(x.numel())], row-major, on x's device
};
/// sums[i] = the sum of x's squares over block i, for all of them, which are on one device. Throws as sum_squares.
void block_squares(std::span<const BlockSquares> all);
/// Blocks that `count` elements make.
constexpr std::int64_t block_count(std::int64_t count) { return (count + kStatisticsBlock - 1) / kStatisticsBlock; }

/// out[i] = the sum of values[begins[i]] to values[begins[i + 1] - 1], as sum_blocks adds (core/ops/lane_fold.h).
///   values  f64 [n]; begins  i64 [m + 1], never falling, within [0, n]; out  f64 [m]; all row-major
struct FoldSegmentsArgs {
  static constexpr const char* kName = "fold_segments";
  View values, begins, out;
};
Cost cost(const FoldSegmentsArgs& args);
void run(const Cpu& cpu, const FoldSegmentsArgs& args);
void run(const Cuda& cuda, const FoldSegmentsArgs& args);

/// The sums of consecutive segments of values, each in one order: block sums of many parameters, without bringing them
/// to the host.
///   values   f64 [n], row-major
///   begins   where segments begin, and the end of the last: m + 1 numbers
///   returns  f64 [m] on the device of values
/// Throws ShapeError for begins that fall or leave [0, n], DTypeError.
Tensor fold_segments(const Tensor& values, const std::vector<std::int64_t>& begins);
/// The same for begins that are on the device of values already: i64 [m + 1], row-major, unchecked.
Tensor fold_segments(const Tensor& values, const Tensor& begins);

/// `carry` plus the block sums of x's squares, added in order: ranges of one tensor in order of offset, each with the
/// carry of the one before, give the bits of the uncut tensor. Infinite or NaN elements show in the result.
///   x  f32|bf16|f16, row-major, starting at a block boundary of its logical tensor
/// On meta: returns carry. Throws ShapeError (not row-major), DTypeError.
double sum_squares(const Tensor& x, double carry = 0);

// ---------------------------------------------------------------------------------------------- the norm's limit

/// factor = 1 / scale, times max_norm / (norm + 1e-6) where that is less than 1; norm = the square root of `squares`,
/// added one by one from 0, over scale. In f64.
///   squares  f64 [n], row-major; factor  f64 [1]
struct NormLimitArgs {
  static constexpr const char* kName = "norm_limit";
  View squares, factor;
  double scale, max_norm;
};
Cost cost(const NormLimitArgs& args);
void run(const Cpu& cpu, const NormLimitArgs& args);
void run(const Cuda& cuda, const NormLimitArgs& args);

/// What gradients are multiplied by that are `scale` times too large, so that their norm is at most max_norm: found
/// where their squares are, without asking the device for them. A norm that is not finite gives no finite gradients.
///   squares  f64 [n], row-major: of each gradient
///   returns  f64 [1] on their device
/// Source: torch.nn.utils.clip_grad_norm_. Throws ShapeError, DTypeError.
Tensor norm_limit(const Tensor& squares, double scale, double max_norm);

// ---------------------------------------------------------------------------------------------- Adam, AdamW

/// Adam's numbers of one step; make them with adam_scalars.
struct AdamScalars {
  float gradient_factor, beta1, beta1_rest, beta2, beta2_rest;  ///< *_rest = 1 - *
  float step_size, root_factor, epsilon;                        ///< lr / (1 - beta1^t), 1 / sqrt(1 - beta2^t)
  float keep, decay;                                            ///< p *= keep (decoupled), g += decay p (L2)
};

/// Options of adam_scalars, as torch.optim.Adam and AdamW name them.
struct AdamOptions {
  double lr = 1e-3, beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8, weight_decay = 0;
  bool is_decoupled = true;       ///< true: AdamW's decay; false: decay goes into the gradient
  bool is_bias_corrected = true;  ///< false: the running means are used as they are
};

/// The numbers of step `step` (from 1). `gradient_factor` multiplies every gradient (1 / loss scale, clip factor;
/// negative to climb).
AdamScalars adam_scalars(const AdamOptions& options, std::int64_t step, double gradient_factor = 1);

/// g = gradient_factor * gradient + decay p; m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2;
/// p = keep p - step_size m / (sqrt(v) root_factor + epsilon). With `max_exp_avg_sq`, it keeps and uses the largest v
/// (amsgrad).
/// For each range.
struct AdamArgs {
  static constexpr const char* kName = "adam";
  struct Range {
    View parameter, gradient, copy, exp_avg, exp_avg_sq, max_exp_avg_sq;
    AdamScalars scalars;
    View place;  ///< u8 [sizeof(AdamScalars)] or absent: where the scalars are, in place of these
  };
  std::span<const Range> ranges;
  View factor;  ///< f64 [1] or absent: multiplies each range's gradient_factor
};
Cost cost(const AdamArgs& args);
void run(const Cpu& cpu, const AdamArgs& args);
void run(const Cuda& cuda, const AdamArgs& args);

/// An Adam step on a range.
struct AdamStep {
  StepTensors tensors;
  Tensor exp_avg, exp_avg_sq;  ///< f32 [count], row-major
  Tensor max_exp_avg_sq;       ///< likewise, or undefined: no amsgrad
  AdamScalars scalars;
  Tensor place = {};  ///< u8 [sizeof(AdamScalars)], of their alignment: where the scalars are, in place of these; for
                      ///< recorded steps, which have others in each run. Or undefined
};
/// All of them, on one device. Throws ShapeError (counts differ, not row-major), DTypeError, DeviceError.
///   factor  f64 [1] on it, or undefined: multiplies each gradient_factor, before it is rounded
void adam_steps(std::span<const AdamStep> steps, const Tensor& factor = {});
inline void adam_step(const StepTensors& tensors, const Tensor& exp_avg, const Tensor& exp_avg_sq,
                      const Tensor& max_exp_avg_sq, const AdamScalars& scalars) {
  const AdamStep step{tensors, exp_avg, exp_avg_sq, max_exp_avg_sq, scalars};
  adam_steps({&step, 1});
}

// ---------------------------------------------------------------------------------------------- SGD

/// Numbers of one SGD step, as torch.optim.SGD names them.
struct SgdScalars {
  float gradient_factor = 1;
  float lr = 1e-3f, momentum = 0, dampening = 0, weight_decay = 0;
  bool is_nesterov = false;
  bool is_first_step = false;  ///< the momentum buffer starts as the gradient, whatever it holds
  float late_decay = 0;        ///< times the parameter is added to the step, past the momentum
  float limit = HUGE_VALF;     ///< the decayed gradient is limited to [-limit, limit]
};

/// g = gradient_factor * gradient + weight_decay p, limited; b = momentum b + (1 - dampening) g (b = g at the first
/// step); u = b, or g + momentum b with nesterov, or g without a buffer; p -= lr (u + late_decay p).
/// For each range.
struct SgdArgs {
  static constexpr const char* kName = "sgd";
  struct Range {
    View parameter, gradient, copy, momentum_buffer;
    SgdScalars scalars;
  };
  std::span<const Range> ranges;
  View factor;  ///< as AdamArgs::factor
};
Cost cost(const SgdArgs& args);
void run(const Cpu& cpu, const SgdArgs& args);
void run(const Cuda& cuda, const SgdArgs& args);

/// An SGD step on a range; `momentum_buffer` f32 [count] or undefined.
struct SgdStep {
  StepTensors tensors;
  Tensor momentum_buffer;
  SgdScalars scalars;
};
/// All of them, on one device. `factor` and errors as adam_steps.
void sgd_steps(std::span<const SgdStep> steps, const Tensor& factor = {});
inline void sgd_step(const StepTensors& tensors, const Tensor& momentum_buffer, const SgdScalars& scalars) {
  const SgdStep step{tensors, momentum_buffer, scalars};
  sgd_steps({&step, 1});
}

// ---------------------------------------------------------------------------------------------- Lamb

/// Numbers of one Lamb step. m and v as Adam's, of g = gradient_factor * gradient + gradient_decay p;
/// u = m mean_factor / (sqrt(v) root_factor + epsilon) + decay p.
struct LambScalars {
  float gradient_factor = 1, beta1 = 0.9f, beta1_rest = 0.1f, beta2 = 0.999f, beta2_rest = 1e-3f;
  float mean_factor = 1, root_factor = 1, epsilon = 1e-6f, decay = 0;  ///< factors of 1 = no bias correction
  float gradient_decay = 0;
};

/// The block sums of p^2 and u^2, from the states before this step; writes nothing else.
struct LambSquaresArgs {
  static constexpr const char* kName = "lamb_squares";
  View parameter, gradient, exp_avg, exp_avg_sq;
  View parameter_sums, update_sums;  ///< as BlockSquaresArgs::sums
  LambScalars scalars;
};
Cost cost(const LambSquaresArgs& args);
void run(const Cpu& cpu, const LambSquaresArgs& args);
void run(const Cuda& cuda, const LambSquaresArgs& args);

/// m, v updated; p -= step_size u.
struct LambArgs {
  static constexpr const char* kName = "lamb";
  View parameter, gradient, copy, exp_avg, exp_avg_sq;
  LambScalars scalars;
  float step_size;
};
Cost cost(const LambArgs& args);
void run(const Cpu& cpu, const LambArgs& args);
void run(const Cuda& cuda, const LambArgs& args);

/// Sums of squares of the parameter and of its update direction; each is also a carry, as in sum_squares.
struct LambSquares {
  double parameter = 0, update = 0;
};

/// `carry` plus a range's share. Call before lamb_step, ranges in order of offset. On meta: returns carry.
LambSquares lamb_squares(const StepTensors& tensors, const Tensor& exp_avg, const Tensor& exp_avg_sq,
                         const LambScalars& scalars, LambSquares carry = {});

/// One Lamb step on a range, with step_size = lr times the trust ratio |p| / |u|. Errors as adam_steps.
void lamb_step(const StepTensors& tensors, const Tensor& exp_avg, const Tensor& exp_avg_sq, const LambScalars& scalars,
               double step_size);

// ---------------------------------------------------------------------------------------------- Adafactor

/// A parameter as matrices: its last two axes are factored, those before are a batch.
struct FactoredShape {
  std::int64_t batch = 0, rows = 0, columns = 0;
  std::int64_t row_count() const { return batch * rows; }        ///< elements of a row statistic, [..., rows]
  std::int64_t column_count() const { return batch * columns; }  ///< elements of a column statistic, [..., columns]
};

/// The factoring of a shape with at least two axes. Throws ShapeError for fewer.
FactoredShape factored_shape(const Shape& shape);

/// row_sums[b, r] += sum over columns, column_sums[b, c] += sum over rows of (gradient_factor * gradient)^2, for one
/// range.
struct FactoredSquaresArgs {
  static constexpr const char* kName = "adafactor_squares";
  View gradient, row_sums, column_sums;  ///< sums f64
  FactoredShape shape;
  std::int64_t offset;
  float gradient_factor;
};
Cost cost(const FactoredSquaresArgs& args);
void run(const Cpu& cpu, const FactoredSquaresArgs& args);
void run(const Cuda& cuda, const FactoredSquaresArgs& args);

/// Second moments after this step: row' = beta2 row + (1 - beta2) (row_sums / columns + epsilon), and columns likewise.
/// Without sums: row' = row. Then the factors that make an update: row_factor = sqrt(mean over rows of row' / row'),
/// column_factor = 1 / sqrt(column').
struct FactoredMomentsArgs {
  static constexpr const char* kName = "adafactor_moments";
  View row, column, row_sums, column_sums;  ///< moments f32; sums f64 or absent
  View new_row, new_column;                 ///< f32 or absent
  View row_factor, column_factor;           ///< f32
  FactoredShape shape;
  double beta2, epsilon;
};
Cost cost(const FactoredMomentsArgs& args);
void run(const Cpu& cpu, const FactoredMomentsArgs& args);
void run(const Cuda& cuda, const FactoredMomentsArgs& args);

/// Numbers of one Adafactor step.
struct AdafactorScalars {
  float gradient_factor = 1;
  float beta2 = 0, epsilon = 1e-30f;  ///< for parameters with one axis: v = beta2 v + (1 - beta2) (g^2 + epsilon)
  float update_factor = 1;            ///< step size / max(1, rms(u) / clip threshold)
  float keep = 1;                     ///< p *= keep: 1 - step size times weight decay
  float beta1 = 0;                    ///< with exp_avg: m = beta1 m + (1 - beta1) update
};

/// Block sums of u^2, u = g row_factor column_factor, or g / sqrt(v) with v updated on the fly and not written.
struct AdafactorSquaresArgs {
  static constexpr const char* kName = "adafactor_update_squares";
  View gradient, row_factor, column_factor, exp_avg_sq, sums;  ///< either both factors or exp_avg_sq
  FactoredShape shape;
  std::int64_t offset;
  AdafactorScalars scalars;
};
Cost cost(const AdafactorSquaresArgs& args);
void run(const Cpu& cpu, const AdafactorSquaresArgs& args);
void run(const Cuda& cuda, const AdafactorSquaresArgs& args);

/// d = update_factor u, v written; m updated and d = m where there is an exp_avg; p = keep p - d.
struct AdafactorArgs {
  static constexpr const char* kName = "adafactor";
  View parameter, gradient, copy, exp_avg, row_factor, column_factor, exp_avg_sq;
  FactoredShape shape;
  std::int64_t offset;
  AdafactorScalars scalars;
};
Cost cost(const AdafactorArgs& args);
void run(const Cpu& cpu, const AdafactorArgs& args);
void run(const Cuda& cuda, const AdafactorArgs& args);

/// Adds a range's squares to `row_sums` (shape.row_count() numbers) and `column_sums` (shape.column_count()), which
/// carry over from range to range in order of offset. Does nothing on meta or for an undefined gradient.
///   offset  the range's first element in the parameter, a multiple of kStatisticsBlock
void adafactor_squares(const Tensor& gradient, double gradient_factor, const FactoredShape& shape, std::int64_t offset,
                       std::span<double> row_sums, std::span<double> column_sums);

/// How one range's update direction is found: from factored moments of the whole parameter, or from its own second
/// moment.
struct AdafactorMoments {
  Tensor row, column;  ///< f32 [..., rows], [..., columns]: second moments after this step
  Tensor exp_avg_sq;   ///< f32 [count]: this range's second moment before this step; used if row is undefined
};

/// The factored moments after this step, as new tensors of the same shapes (copy them over the states when the step is
/// certain).
///   before      row and column moments, f32
///   row_sums    the finished sums of adafactor_squares
///   epsilon     added to each mean square
AdafactorMoments adafactor_moments(const AdafactorMoments& before, const FactoredShape& shape,
                                   std::span<const double> row_sums, std::span<const double> column_sums, double beta2,
                                   double epsilon);

/// `carry` plus the block sums of the squares of a range's update direction u; see sum_squares. On meta: returns carry.
double adafactor_update_squares(const Tensor& gradient, const AdafactorMoments& moments, const FactoredShape& shape,
                                std::int64_t offset, const AdafactorScalars& scalars, double carry = 0);

/// One Adafactor step on a range; `exp_avg` f32 [count] or undefined; writes moments.exp_avg_sq if that is used. Errors
/// as adam_steps.
void adafactor_step(const StepTensors& tensors, const Tensor& exp_avg, const AdafactorMoments& moments,
                    const FactoredShape& shape, std::int64_t offset, const AdafactorScalars& scalars);

}  // namespace castor
