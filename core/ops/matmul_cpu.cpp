// Matrix products on the CPU: f32 (and bf16 where the processor has it) by oneDNN, f64 by Eigen; what neither computes
// is converted to f32, multiplied, and rounded once. A sum of products is made beside c and added to it. Which of
// oneDNN's kernels runs is onednn::choose.
//
// Delicate: the plan of a call (which axes merge, which path, how much scratch) is made twice, for the contract and for
// the run, and must come out the same.
#include <algorithm>
#include <utility>

#include "core/base/parallel.h"
#include "core/ops/cast.h"
#include "core/ops/elementwise.h"
#include "core/ops/gemm_plan.h"
#include "core/ops/matmul.h"
#include "core/ops/matmul_f64.h"
#include "core/ops/onednn.h"

namespace castor {
namespace {

constexpr std::size_t kAlignment = 256;
std::size_t aligned(std::size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

/// True if no two elements of a batch of matrices share an address, or if one matrix repeats: what oneDNN takes.
bool is_disjoint(std::int64_t batch, std::int64_t batch_stride, std::int64_t rows, std::int64_t row_stride,
                 std::int64_t columns, std::int64_t column_stride) {
  if (batch_stride == 0) return true;
  std::pair<std::int64_t, std::int64_t> axes[] = {{batch_stride, batch}, {row_stride, rows}, {column_stride, columns}};
  std::sort(std::begin(axes), std::end(axes));
  std::int64_t extent = 1;
  for (const auto& [stride, size] : axes) {
    if (size == 1) continue;
    if (stride < extent) return false;
    extent = stride * size;
  }
  return true;
}

/// oneDNN repeats one operand of a batch, not both.
Product plan_product(const MatmulArgs& args) {
  return merge_axes(args, [](const Product& product, const BatchAxis& axis) {
    return (axis.a != 0 || axis.b != 0) &&
           is_disjoint(axis.size, axis.a, product.m, product.a_row, product.k, product.a_column) &&
           is_disjoint(axis.size, axis.b, product.k, product.b_row, product.n, product.b_column);
  });
}

onednn::GemmProblem describe(const Product& product, const MatmulArgs& args) {
  onednn::GemmProblem problem;
  problem.dtype = args.c.dtype;
  problem.batch = product.batch.size;
  problem.m = product.m;
  problem.n = product.n;
  problem.k = product.k;
  problem.a_batch = product.batch.a;
  problem.a_row = product.a_row;
  problem.a_column = product.a_column;
  problem.b_batch = product.batch.b;
  problem.b_row = product.b_row;
  problem.b_column = product.b_column;
  problem.c_batch = product.batch.c;
  problem.c_row = product.c_row;
  problem.has_bias = args.bias.defined();
  return problem;
}

void run_onednn(const MatmulArgs& args) {
  const Product product = plan_product(args);
  onednn::Gemm& gemm = onednn::gemm(describe(product, args));
  const std::size_t element = dtype_size(args.c.dtype);
  const auto at = [&](const View& view, std::int64_t offset) {
    return static_cast<char*>(view.data) + static_cast<std::size_t>(offset) * element;
  };
  for_each_outer(product, [&](const BatchAxis& offset) {
    gemm.run(at(args.a, offset.a), at(args.b, offset.b), args.bias.data, at(args.c, offset.c), args.workspace.data);
  });
}

void run_f64(const MatmulArgs& args) {
  const Product product = plan_product(args);
  for_each_outer(product, [&](const BatchAxis& offset) {
    const double* a = args.a.as<double>() + offset.a;
    const double* b = args.b.as<double>() + offset.b;
    double* c = args.c.as<double>() + offset.c;
    parallel_for(product.batch.size, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        double* result = c + i * product.batch.c;
        gemm_f64(product.m, product.n, product.k, {a + i * product.batch.a, product.a_row, product.a_column},
                 {b + i * product.batch.b, product.b_row, product.b_column}, result, product.c_row);
        if (!args.bias.defined()) continue;
        for (std::int64_t row = 0; row < product.m; ++row) {
          for (std::int64_t j = 0; j < product.n; ++j) result[row * product.c_row + j] += args.bias.as<double>()[j];
        }
      }
    });
  });
}

/// The same product in f32, with converted operands laid out in scratch one after another. Repeated axes stay repeated.
struct Converted {
  MatmulArgs args;        // f32; addresses are offsets until `place`
  std::size_t bytes = 0;  // of the operands
  std::size_t total = 0;  // with the scratch of the f32 product

  explicit Converted(const MatmulArgs& from) : args(from) {
    for (View* view : {&args.a, &args.b, &args.bias, &args.c}) {
      if (view->defined()) lay_out(*view);
    }
    args.workspace = {};
    total = bytes + workspace_bytes(Cpu{}, args);
  }

  void place(const View& scratch) {
    for (View* view : {&args.a, &args.b, &args.bias, &args.c}) {
      if (view->defined()) view->data = scratch.as<char>() + reinterpret_cast<std::uintptr_t>(view->data);
    }
    args.workspace = scratch;
    args.workspace.data = scratch.as<char>() + bytes;
  }

 private:
  void lay_out(View& view) {
    std::int64_t step = 1;
    const bool is_by_columns = view.ndim >= 2 && view.stride[view.ndim - 1] != 1 && view.size[view.ndim - 1] != 1;
    for (int i = view.ndim - 1; i >= 0; --i) {
      const int axis = is_by_columns && i >= view.ndim - 2 ? 2 * view.ndim - 3 - i : i;
      if (view.stride[axis] == 0 && view.size[axis] != 1) continue;
      view.stride[axis] = step;
      step *= view.size[axis];
    }
    view.dtype = DType::f32;
    view.data = reinterpret_cast<void*>(bytes);
    bytes += aligned(static_cast<std::size_t>(step) * sizeof(float));
  }
};

/// Copies with conversion; axes that repeat in `to` are copied once.
void convert(View from, View to) {
  for (int i = 0; i < to.ndim; ++i) {
    if (to.stride[i] == 0) from.size[i] = to.size[i] = 1;
  }
  run(Cpu{}, CastArgs{from, to});
}

void run_converted(const MatmulArgs& args) {
  Converted converted(args);
  converted.place(args.workspace);
  convert(args.a, converted.args.a);
  convert(args.b, converted.args.b);
  if (args.bias.defined()) convert(args.bias, converted.args.bias);
  run_onednn(converted.args);
  convert(converted.args.c, args.c);
}

/// The product where there is nothing to sum: the bias, or zero.
void fill_without_products(const MatmulArgs& args) {
  double zero = 0;
  View source = args.c;
  source.data = args.bias.defined() ? args.bias.data : &zero;
  for (int i = 0; i < source.ndim; ++i) source.stride[i] = 0;
  if (args.bias.defined()) source.stride[source.ndim - 1] = 1;
  run(Cpu{}, CastArgs{source, args.c});
}

bool has_products(const MatmulArgs& args) { return args.c.numel() != 0 && args.a.size[args.a.ndim - 1] != 0; }

bool is_direct(const MatmulArgs& args) { return args.a.dtype == args.c.dtype && onednn::computes_in(args.c.dtype); }

/// The product that is added to c: written to the start of the scratch, row-major.
struct Addend {
  MatmulArgs args;
  std::size_t bytes;

  explicit Addend(const MatmulArgs& from) : args(from), bytes(aligned(from.c.bytes())) {
    args.accumulates = false;
    std::int64_t step = 1;
    for (int i = args.c.ndim - 1; i >= 0; --i) {
      args.c.stride[i] = step;
      step *= args.c.size[i];
    }
    args.c.data = from.workspace.data;
    args.workspace.data = from.workspace.as<char>() + bytes;
  }
};

}  // namespace

std::size_t workspace_bytes(const Cpu&, const MatmulArgs& args) {
  if (!has_products(args)) return 0;
  if (args.accumulates) {
    const Addend addend(args);
    return addend.bytes + workspace_bytes(Cpu{}, addend.args);
  }
  if (args.c.dtype == DType::f64) return 0;
  if (is_direct(args)) return onednn::gemm(describe(plan_product(args), args)).workspace_bytes();
  return Converted(args).total;
}

void run(const Cpu& cpu, const MatmulArgs& args) {
  if (args.c.numel() == 0) return;
  if (!has_products(args)) return args.accumulates ? void() : fill_without_products(args);
  if (args.accumulates) {
    const Addend addend(args);
    run(cpu, addend.args);
    return run(cpu, BinaryArgs{args.c, addend.args.c, args.c, BinaryOp::add});
  }
  if (args.c.dtype == DType::f64) return run_f64(args);
  is_direct(args) ? run_onednn(args) : run_converted(args);
}

}  // namespace castor
