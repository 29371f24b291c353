// Convolutions on CUDA as matrix products: pixels are gathered into rows of the product's left matrix ([pixel, group,
// tap, channel], in the workspace, some pixels at a time), and weights are copied to the order that goes with it.
// Groups are the batch of the product. The gradient by data gathers dy in the same way, so its sums too are made inside
// the product and rounded once; the gradient by weights adds the blocks of pixels in f32 (f64) and is rounded at the
// end.
//
// Delicate: how many pixels meet in one product depends on sizes and dtype alone. A kernel of one pixel without stride
// and padding reads the image itself.
#include <algorithm>
#include <limits>

#include "core/ops/cast.h"
#include "core/ops/conv.h"
#include "core/ops/fast_divisor.h"
#include "core/ops/gemm_cuda.h"
#include "core/ops/map_cuda.cuh"

namespace castor {
namespace {

constexpr std::size_t kGatheredBytes = std::size_t{32} << 20;  // of pixels at a time: what a GPU's second cache holds
constexpr int kThreads = 256;

std::size_t aligned(std::size_t bytes) { return (bytes + 255) / 256 * 256; }

/// Which pixels a row of the product needs. `source` is the image that is read, `result` the one whose pixels are rows.
struct Gather {
  std::int64_t source_height, source_width, source_channels;  ///< channels of all groups
  std::int64_t result_height, result_width, images;
  std::int64_t kernel[2], stride[2], padding[2], dilation[2];
  std::int64_t groups, channels;  ///< source channels of a group
  bool is_backward;               ///< a pixel of x reads those of y that it went into

  std::int64_t taps() const { return kernel[0] * kernel[1]; }
  std::int64_t depth() const { return taps() * channels; }  ///< of the product
  std::int64_t row() const { return groups * depth(); }     ///< elements of a gathered pixel
  std::int64_t pixels() const { return images * result_height * result_width; }
  bool is_identity() const {
    return taps() == 1 && stride[0] == 1 && stride[1] == 1 && padding[0] == 0 && padding[1] == 0;
  }

  /// Pixels of one product.
  std::int64_t block_pixels(DType dtype) const {
    if (is_identity()) return pixels();
    const auto row_bytes = row() * static_cast<std::int64_t>(dtype_size(dtype));
    std::int64_t most = std::max<std::int64_t>(1, static_cast<std::int64_t>(kGatheredBytes) / row_bytes);
    if (most > 128) most = most / 128 * 128;
    return std::min(most, pixels());
  }
  std::size_t bytes(DType dtype) const {
    if (is_identity()) return 0;
    return aligned(static_cast<std::size_t>(block_pixels(dtype) * row()) * dtype_size(dtype));
  }
};

Gather make_gather(const View& x, const View& weight, const View& y, const ConvGeometry& g, bool is_backward) {
  const View &source = is_backward ? y : x, &result = is_backward ? x : y;
  return {source.size[2],
          source.size[3],
          source.size[1],
          result.size[2],
          result.size[3],
          x.size[0],
          {weight.size[2], weight.size[3]},
          {g.stride[0], g.stride[1]},
          {g.padding[0], g.padding[1]},
          {g.dilation[0], g.dilation[1]},
          g.groups,
          source.size[1] / g.groups,
          is_backward};
}

/// The divisors of a launch: words of V channels in a group, taps along a row of the kernel, ...
struct GatherIndex {
  FastDivisor row, words, kernel_width, kernel_height, image, width;
  std::int64_t first_image;
  std::uint32_t first_pixel;  ///< in that image
  std::uint32_t count;        ///< words
};

/// The coordinate that tap `tap` of pixel `at` reads, or -1 outside the image.
__device__ std::int64_t source_at(const Gather& g, int axis, std::int64_t at, std::int64_t tap, std::int64_t size) {
  const std::int64_t reach = tap * g.dilation[axis];
  if (!g.is_backward) {
    const std::int64_t from = at * g.stride[axis] - g.padding[axis] + reach;
    return from < size ? from : -1;
  }
  const std::int64_t scaled = at + g.padding[axis] - reach;
  if (scaled < 0) return -1;
  const std::int64_t from = g.stride[axis] == 1 ? scaled : scaled / g.stride[axis];
  return from < size && from * g.stride[axis] == scaled ? from : -1;
}

/// One word of V elements of a gathered pixel a thread.
template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    gather(const __grid_constant__ Gather g, const __grid_constant__ GatherIndex index, const T* from, T* to) {
  const std::uint32_t at = blockIdx.x * kThreads + threadIdx.x;
  if (at >= index.count) return;
  const std::uint32_t local = index.row.quotient(at), in_row = at - local * index.row.divisor;
  const std::uint32_t tap_of_group = index.words.quotient(in_row), word = in_row - tap_of_group * index.words.divisor;
  const std::uint32_t upper = index.kernel_width.quotient(tap_of_group),
                      kw = tap_of_group - upper * index.kernel_width.divisor;
  const std::uint32_t group = index.kernel_height.quotient(upper), kh = upper - group * index.kernel_height.divisor;
  const std::uint32_t pixel = index.first_pixel + local, images = index.image.quotient(pixel),
                      in_image = pixel - images * index.image.divisor;
  const std::uint32_t row = index.width.quotient(in_image), column = in_image - row * index.width.divisor;
  const std::int64_t h = source_at(g, 0, row, kh, g.source_height), w = source_at(g, 1, column, kw, g.source_width);
  cuda::Pack<T, V> pack{};
  if (h >= 0 && w >= 0) {
    pack = cuda::load_pack<V>(
        from + (((index.first_image + images) * g.source_height + h) * g.source_width + w) * g.source_channels +
            group * g.channels + word * V,
        true);
  }
  cuda::store_pack(to + static_cast<std::int64_t>(at) * V, pack);
}

template <class Word>
void launch_gather(const Cuda& cuda, const Gather& g, std::int64_t first, std::int64_t pixels, const void* from,
                   void* to) {
  constexpr int kWide = 16 / static_cast<int>(sizeof(Word));
  const int width = g.channels % kWide == 0 && reinterpret_cast<std::uintptr_t>(from) % 16 == 0 ? kWide : 1;
  const std::int64_t image = g.result_height * g.result_width, words = pixels * g.row() / width;
  if (image + pixels > std::numeric_limits<std::int32_t>::max() ||
      words > std::numeric_limits<std::int32_t>::max() - kThreads) {
    throw ShapeError(
        cat("conv2d: on CUDA an image has fewer than 2^31 pixels and a pixel's window fewer than 2^31 "
            "numbers, got ",
            image, " and ", g.row()));
  }
  const auto divisor = [](std::int64_t by) { return FastDivisor(static_cast<std::uint32_t>(by)); };
  const GatherIndex index{divisor(g.row() / width),
                          divisor(g.channels / width),
                          divisor(g.kernel[1]),
                          divisor(g.kernel[0]),
                          divisor(image),
                          divisor(g.result_width),
                          first / image,
                          static_cast<std::uint32_t>(first % image),
                          static_cast<std::uint32_t>(words)};
  const auto blocks = static_cast<unsigned>((words + kThreads - 1) / kThreads);
  const auto launch = [&](auto kernel) {
    kernel<<<blocks, kThreads, 0, stream_of(cuda)>>>(g, index, static_cast<const Word*>(from), static_cast<Word*>(to));
  };
  width == 1 ? launch(gather<Word, 1>) : launch(gather<Word, kWide>);
  check_cuda(cudaGetLastError(), ConvArgs::kName, cuda.device);
}

/// The left matrix for pixels [first, first + pixels): the source itself, or gathered into `to`.
const void* gathered(const Cuda& cuda, const Gather& g, DType dtype, std::int64_t first, std::int64_t pixels,
                     const void* from, void* to) {
  if (g.is_identity()) return from;
  switch (dtype_size(dtype)) {
    case 2:
      launch_gather<std::uint16_t>(cuda, g, first, pixels, from, to);
      break;
    case 4:
      launch_gather<std::uint32_t>(cuda, g, first, pixels, from, to);
      break;
    default:
      launch_gather<std::uint64_t>(cuda, g, first, pixels, from, to);
  }
  return to;
}

/// The weight seen with other axes.
View seen_as(const View& weight, std::initializer_list<std::int64_t> size, std::initializer_list<std::int64_t> stride) {
  View view = weight;
  view.ndim = static_cast<int>(size.size());
  std::copy(size.begin(), size.end(), view.size);
  std::copy(stride.begin(), stride.end(), view.stride);
  return view;
}

/// Row-major without gaps.
View dense(void* data, DType dtype, std::initializer_list<std::int64_t> size) {
  View view;
  view.data = data;
  view.dtype = dtype;
  view.ndim = static_cast<int>(size.size());
  std::copy(size.begin(), size.end(), view.size);
  std::int64_t step = 1;
  for (int i = view.ndim - 1; i >= 0; --i) {
    view.stride[i] = step;
    step *= view.size[i];
  }
  return view;
}

/// The weight as [o, tap, c].
View by_taps(const View& weight) {
  const std::int64_t taps = weight.size[2] * weight.size[3], c = weight.size[1];
  return seen_as(weight, {weight.size[0], taps, c}, {c * taps, 1, taps});
}

/// Where a kernel's scratch lies: the library's, the weight's and the gathered pixels'.
struct Scratch {
  std::size_t weight_at = kCudaGemmWorkspace, gathered_at, total;
  Scratch(std::size_t weight_bytes, const Gather& g, DType dtype)
      : gathered_at(weight_at + aligned(weight_bytes)), total(gathered_at + g.bytes(dtype)) {}
};

DType sum_dtype(DType dtype) { return dtype == DType::f64 ? DType::f64 : DType::f32; }

bool has_products(const View& x, const View& weight, const View& y) {
  return x.numel() != 0 && weight.numel() != 0 && y.numel() != 0;
}

/// result [pixel, channel] = gathered source times a weight given as [group, depth, channel of the group] with these
/// strides, plus `bias` if it is defined.
void multiply_pixels(const Cuda& cuda, const Gather& g, const View& source, const void* weight, std::int64_t b_row,
                     std::int64_t b_column, const View& bias, const View& result, const View& workspace,
                     const Scratch& scratch) {
  const DType dtype = source.dtype;
  const auto element = static_cast<std::int64_t>(dtype_size(dtype));
  const std::int64_t pixels = g.pixels(), step = g.block_pixels(dtype), out = result.size[1], channels = out / g.groups;
  CudaGemmProblem problem;
  problem.dtype = problem.result_dtype = dtype;
  problem.has_bias = bias.defined();
  problem.n = channels;
  problem.k = g.depth();
  problem.a_batch = g.depth();
  problem.a_row = g.row();
  problem.b_batch = g.depth() * channels;
  problem.b_row = b_row;
  problem.b_column = b_column;
  problem.c_batch = channels;
  problem.c_row = out;
  problem.bias_batch = g.groups > 1 ? channels : 0;
  for (std::int64_t first = 0; first < pixels; first += step) {
    problem.m = std::min(step, pixels - first);
    const void* const rows =
        gathered(cuda, g, dtype, first, problem.m, source.data, workspace.as<char>() + scratch.gathered_at);
    for (std::int64_t group = 0; group < g.groups; group += problem.batch) {
      problem.batch = std::min(g.groups - group, kMostCudaGemmBatch);
      multiply(cuda, ConvArgs::kName, problem, static_cast<const char*>(rows) + group * g.depth() * element,
               static_cast<const char*>(weight) + group * problem.b_batch * element,
               bias.defined() ? bias.as<char>() + group * channels * element : nullptr,
               result.as<char>() + (first * out + group * channels) * element, workspace.data);
    }
  }
}

/// A dense result = bias along its channels, or zero.
void fill(const Cuda& cuda, const View& result, const View& bias) {
  if (result.numel() == 0) return;
  if (!bias.defined()) {
    const cudaError_t status = cudaMemsetAsync(result.data, 0, result.bytes(), stream_of(cuda));
    return check_cuda(status, ConvArgs::kName, cuda.device);
  }
  View source = result;
  source.data = bias.data;
  for (int i = 0; i < source.ndim; ++i) source.stride[i] = 0;
  source.stride[1] = 1;
  run(cuda, CastArgs{source, result});
}

Scratch scratch_of(const ConvArgs& args, const Gather& g) { return Scratch(args.weight.bytes(), g, args.x.dtype); }
Scratch scratch_of(const ConvBackwardDataArgs& args, const Gather& g) {
  return Scratch(args.weight.bytes(), g, args.dy.dtype);
}
Scratch scratch_of(const ConvBackwardWeightArgs& args, const Gather& g) {
  return Scratch(static_cast<std::size_t>(args.dweight.numel()) * dtype_size(sum_dtype(args.x.dtype)), g, args.x.dtype);
}

}  // namespace

std::size_t workspace_bytes(const Cuda&, const ConvArgs& args) {
  if (!has_products(args.x, args.weight, args.y)) return 0;
  return scratch_of(args, make_gather(args.x, args.weight, args.y, args.geometry, false)).total;
}

std::size_t workspace_bytes(const Cuda&, const ConvBackwardDataArgs& args) {
  if (!has_products(args.dx, args.weight, args.dy)) return 0;
  return scratch_of(args, make_gather(args.dx, args.weight, args.dy, args.geometry, true)).total;
}

std::size_t workspace_bytes(const Cuda&, const ConvBackwardWeightArgs& args) {
  if (!has_products(args.x, args.dweight, args.dy)) return 0;
  return scratch_of(args, make_gather(args.x, args.dweight, args.dy, args.geometry, false)).total;
}

void run(const Cuda& cuda, const ConvArgs& args) {
  if (!has_products(args.x, args.weight, args.y)) return fill(cuda, args.y, args.bias);
  const Gather g = make_gather(args.x, args.weight, args.y, args.geometry, false);
  const Scratch scratch = scratch_of(args, g);
  const View taken = by_taps(args.weight);
  const View weight =
      dense(args.workspace.as<char>() + scratch.weight_at, taken.dtype, {taken.size[0], taken.size[1], taken.size[2]});
  run(cuda, CastArgs{taken, weight});
  multiply_pixels(cuda, g, args.x, weight.data, 1, g.depth(), args.bias, args.y, args.workspace, scratch);
}

void run(const Cuda& cuda, const ConvBackwardDataArgs& args) {
  if (!has_products(args.dx, args.weight, args.dy)) return fill(cuda, args.dx, {});
  const Gather g = make_gather(args.dx, args.weight, args.dy, args.geometry, true);
  const Scratch scratch = scratch_of(args, g);
  const std::int64_t taps = g.taps(), c = args.weight.size[1], o = g.channels;
  const View taken = seen_as(args.weight, {g.groups, taps, o, c}, {o * c * taps, 1, c * taps, taps});
  const View weight = dense(args.workspace.as<char>() + scratch.weight_at, args.weight.dtype, {g.groups, taps, o, c});
  run(cuda, CastArgs{taken, weight});
  multiply_pixels(cuda, g, args.dy, weight.data, c, 1, {}, args.dx, args.workspace, scratch);
}

void run(const Cuda& cuda, const ConvBackwardWeightArgs& args) {
  if (!has_products(args.x, args.dweight, args.dy)) return fill(cuda, args.dweight, {});
  const Gather g = make_gather(args.x, args.dweight, args.dy, args.geometry, false);
  const Scratch scratch = scratch_of(args, g);
  const View wanted = by_taps(args.dweight);
  const DType dtype = args.x.dtype;
  const View sums = dense(args.workspace.as<char>() + scratch.weight_at, sum_dtype(dtype),
                          {wanted.size[0], wanted.size[1], wanted.size[2]});
  const std::int64_t pixels = g.pixels(), step = g.block_pixels(dtype), out = args.dy.size[1], own = out / g.groups;
  const auto element = static_cast<std::int64_t>(dtype_size(dtype));
  for (std::int64_t first = 0; first < pixels; first += step) {
    const std::int64_t count = std::min(step, pixels - first);
    const void* const rows =
        gathered(cuda, g, dtype, first, count, args.x.data, args.workspace.as<char>() + scratch.gathered_at);
    for (std::int64_t group = 0; group < g.groups; group += kMostCudaGemmBatch) {
      CudaGemmProblem problem;
      problem.dtype = dtype;
      problem.result_dtype = sums.dtype;
      problem.accumulates = first > 0;
      problem.batch = std::min(g.groups - group, kMostCudaGemmBatch);
      problem.m = own;
      problem.n = g.depth();
      problem.k = count;
      problem.a_batch = own;
      problem.a_row = 1;
      problem.a_column = out;
      problem.b_batch = g.depth();
      problem.b_row = g.row();
      problem.c_batch = own * g.depth();
      problem.c_row = g.depth();
      multiply(cuda, ConvArgs::kName, problem, args.dy.as<char>() + (first * out + group * own) * element,
               static_cast<const char*>(rows) + group * g.depth() * element, nullptr,
               sums.as<char>() + group * problem.c_batch * static_cast<std::int64_t>(dtype_size(sums.dtype)),
               args.workspace.data);
    }
  }
  run(cuda, CastArgs{sums, wanted});
}

}  // namespace castor
