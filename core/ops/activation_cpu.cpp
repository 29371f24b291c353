// Threads and sums around the activation loops.
//
// Delicate: column sums go over fixed blocks of rows and then over the blocks in order, so the order of additions
// depends on the number of rows only.
#include <algorithm>

#include "core/base/cpu_isa.h"
#include "core/base/parallel.h"
#include "core/ops/activation_kernel.h"
#include "core/ops/fp8.h"

namespace castor {
namespace {

constexpr std::int64_t kGrain = 16384;  // elements that are worth a thread

/// Rows in a block: few enough blocks that their sums are small, enough for every thread.
std::int64_t block_rows(std::int64_t rows) { return std::max<std::int64_t>(32, (rows + 63) / 64); }
std::int64_t block_count(std::int64_t rows) { return (rows + block_rows(rows) - 1) / block_rows(rows); }

void activate_range(DType dtype, Activation activation, const void* x, void* y, std::int64_t count) {
  if (dtype == DType::f64) return activate_elements<double>(activation, x, y, count);
  cpu_isa() == CpuIsa::avx512 ? activate_avx512(dtype, activation, x, y, count)
                              : activate_any(dtype, activation, x, y, count);
}

void backward_block(const ActivationBlock& block) {
  if (block.dtype == DType::f64) return backward_elements<double>(block);
  cpu_isa() == CpuIsa::avx512 ? activation_backward_avx512(block) : backward_any(block);
}

/// dbias = the sums of all blocks, in order.
template <class T>
void add_blocks(const View& dbias, decltype(load(T{}))* sums, std::int64_t count) {
  const std::int64_t n = dbias.size[0];
  for (std::int64_t block = 1; block < count; ++block) {
    for (std::int64_t j = 0; j < n; ++j) sums[j] += sums[block * n + j];
  }
  for (std::int64_t j = 0; j < n; ++j) dbias.as<T>()[j] = count > 0 ? store<T>(sums[j]) : T{};
}

}  // namespace

void run(const Cpu&, const ActivationArgs& args) {
  const std::size_t element = dtype_size(args.x.dtype);
  parallel_for(args.x.numel(), kGrain, [&](std::int64_t begin, std::int64_t end) {
    const std::size_t offset = static_cast<std::size_t>(begin) * element;
    activate_range(args.x.dtype, args.activation, args.x.as<char>() + offset, args.y.as<char>() + offset, end - begin);
  });
}

std::size_t workspace_bytes(const Cpu&, const BiasBackwardArgs& args) {
  if (!args.dbias.defined()) return 0;
  const std::size_t sum_bytes = args.dy.dtype == DType::f64 ? sizeof(double) : sizeof(float);
  return static_cast<std::size_t>(block_count(args.dy.size[0]) * args.dy.size[1]) * sum_bytes;
}

void run(const Cpu& cpu, const BiasBackwardArgs& args) {
  if (args.y.defined()) run(cpu, ActivationArgs{args.saved, args.y, args.activation});
  const std::int64_t rows = args.dy.size[0], n = args.dy.size[1];
  const std::int64_t step = block_rows(rows), count = block_count(rows);
  const std::size_t row_bytes = static_cast<std::size_t>(n) * dtype_size(args.dy.dtype);
  const std::size_t sums_bytes =
      static_cast<std::size_t>(n) * (args.dy.dtype == DType::f64 ? sizeof(double) : sizeof(float));
  const std::int64_t grain = std::max<std::int64_t>(1, kGrain / std::max<std::int64_t>(1, step * n));
  parallel_for(count, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t block = begin; block < end; ++block) {
      const std::size_t offset = static_cast<std::size_t>(block * step) * row_bytes;
      const auto at = [&](const View& view) { return view.defined() ? view.as<char>() + offset : nullptr; };
      void* const sums =
          args.dbias.defined() ? args.workspace.as<char>() + static_cast<std::size_t>(block) * sums_bytes : nullptr;
      backward_block({args.dy.dtype, args.activation, at(args.dy), at(args.saved), at(args.dx), sums,
                      std::min(rows - block * step, step), n});
    }
  });
  if (args.scale.defined())
    run(cpu, Fp8ScaleArgs{args.dx.defined() ? args.dx : args.dy, args.scale, args.scale_format});
  if (!args.dbias.defined()) return;
  if (args.dy.dtype == DType::f64) return add_blocks<double>(args.dbias, args.workspace.as<double>(), count);
  visit_training_float(args.dy.dtype, BiasBackwardArgs::kName, [&](auto tag) {
    add_blocks<typename decltype(tag)::type>(args.dbias, args.workspace.as<float>(), count);
  });
}

}  // namespace castor
