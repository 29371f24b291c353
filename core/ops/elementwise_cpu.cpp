// Elementwise kernels on the CPU: memory-bound, so one plain loop for each (op, dtype) that the compiler vectorises;
// unit strides get a loop of their own, and a second operand broadcast along the run (stride 0) another.
#include "core/ops/elementwise.h"
#include "core/ops/strided_loop.h"

namespace castor {
namespace {

/// Calls f(TypeTag<T>) for the float types of this family.
template <class F>
void visit_float(DType dtype, const char* op, F&& f) {
  dtype == DType::f64 ? f(TypeTag<double>{}) : visit_training_float(dtype, op, f);
}

template <class T>
using Computed = decltype(load(T{}));

/// out[i] = f(in[i]...) over a run; T are the operands' element types, the last one the result's.
template <class F, class A, class R>
void map_run(const A* a, std::int64_t sa, R* r, std::int64_t sr, std::int64_t n, F f) {
  if (sa == 1 && sr == 1) {
#pragma GCC ivdep
    for (std::int64_t i = 0; i < n; ++i) r[i] = store<R>(f(load(a[i])));
  } else {
    for (std::int64_t i = 0; i < n; ++i) r[i * sr] = store<R>(f(load(a[i * sa])));
  }
}

template <class F, class A, class B, class R>
void map_run(const A* a, std::int64_t sa, const B* b, std::int64_t sb, R* r, std::int64_t sr, std::int64_t n, F f) {
  if (sr == 1 && sa == 1 && sb == 1) {
#pragma GCC ivdep
    for (std::int64_t i = 0; i < n; ++i) r[i] = store<R>(f(load(a[i]), load(b[i])));
  } else if (sr == 1 && sa == 1 && sb == 0) {
    const auto fixed = load(b[0]);
#pragma GCC ivdep
    for (std::int64_t i = 0; i < n; ++i) r[i] = store<R>(f(load(a[i]), fixed));
  } else {
    for (std::int64_t i = 0; i < n; ++i) r[i * sr] = store<R>(f(load(a[i * sa]), load(b[i * sb])));
  }
}

}  // namespace

void run(const Cpu&, const UnaryArgs& args) {
  const StridedLoop<2> loop({args.x, args.y});
  visit_float(args.x.dtype, "unary", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto a = static_cast<Computed<T>>(args.a), b = static_cast<Computed<T>>(args.b);
    visit_unary(args.op, [&](auto op) {
      loop.for_each_run([&](const std::int64_t* at, const std::int64_t* step, std::int64_t n) {
        map_run(args.x.as<T>() + at[0], step[0], args.y.as<T>() + at[1], step[1], n,
                [=](auto x) { return op.value(x, a, b); });
      });
    });
  });
}

void run(const Cpu&, const UnaryBackwardArgs& args) {
  const bool by_output = args.y.defined();
  const View& saved = by_output ? args.y : args.x;
  const StridedLoop<3> loop({saved, args.dy, args.dx});
  visit_float(saved.dtype, "unary_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto a = static_cast<Computed<T>>(args.a), b = static_cast<Computed<T>>(args.b);
    visit_unary(args.op, [&](auto op) {
      loop.for_each_run([&](const std::int64_t* at, const std::int64_t* step, std::int64_t n) {
        // The slope reads x or y, never both: the same value stands for the one it ignores.
        map_run(saved.as<T>() + at[0], step[0], args.dy.as<T>() + at[1], step[1], args.dx.as<T>() + at[2], step[2], n,
                [=](auto s, auto dy) { return dy * op.slope(s, s, a, b); });
      });
    });
  });
}

void run(const Cpu&, const BinaryArgs& args) {
  const StridedLoop<3> loop({args.x, args.y, args.z});
  const auto compute = [&](auto tag, auto op) {
    using T = typename decltype(tag)::type;
    loop.for_each_run([&](const std::int64_t* at, const std::int64_t* step, std::int64_t n) {
      map_run(args.x.as<T>() + at[0], step[0], args.y.as<T>() + at[1], step[1], args.z.as<T>() + at[2], step[2], n,
              [=](auto x, auto y) { return op.value(x, y); });
    });
  };
  const bool is_integer = args.x.dtype == DType::i64 || args.x.dtype == DType::i32;
  if (!is_integer) {
    visit_float(args.x.dtype, "binary", [&](auto tag) { visit_binary(args.op, [&](auto op) { compute(tag, op); }); });
    return;
  }
  visit_binary(args.op, [&](auto op) {
    if constexpr (std::is_same_v<decltype(op), pointwise::Div> || std::is_same_v<decltype(op), pointwise::Pow>) {
      throw DTypeError(
          cat("binary: division and power of integers are not defined, got ", args.x.dtype, "; cast to a float dtype"));
    } else {
      args.x.dtype == DType::i64 ? compute(TypeTag<std::int64_t>{}, op) : compute(TypeTag<std::int32_t>{}, op);
    }
  });
}

void run(const Cpu&, const CompareArgs& args) {
  const StridedLoop<3> loop({args.x, args.y, args.z});
  visit_dtype(args.x.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    visit_compare(args.op, [&](auto op) {
      loop.for_each_run([&](const std::int64_t* at, const std::int64_t* step, std::int64_t n) {
        map_run(args.x.as<T>() + at[0], step[0], args.y.as<T>() + at[1], step[1], args.z.as<bool>() + at[2], step[2], n,
                [=](auto x, auto y) { return op.value(x, y); });
      });
    });
  });
}

void run(const Cpu&, const WhereArgs& args) {
  const StridedLoop<4> loop({args.condition, args.x, args.y, args.z});
  visit_dtype(args.x.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    loop.for_each_run([&](const std::int64_t* at, const std::int64_t* step, std::int64_t n) {
      const bool* condition = args.condition.as<bool>() + at[0];
      const T* x = args.x.as<T>() + at[1];
      const T* y = args.y.as<T>() + at[2];
      T* z = args.z.as<T>() + at[3];
      for (std::int64_t i = 0; i < n; ++i) z[i * step[3]] = condition[i * step[0]] ? x[i * step[1]] : y[i * step[2]];
    });
  });
}

}  // namespace castor
