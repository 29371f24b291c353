// Reductions on the CPU: picks the walk's parts by op and dtype.
#include "core/ops/reduce_ops.h"

namespace castor {
namespace {

template <class Op, class T>
struct Output {
  T* y;
  Computed<T>* mean;  // variance only; may be null
  double count;
  double correction;

  void write(std::int64_t at, const Partial& total) const {
    y[at] = store<T>(static_cast<Computed<T>>(Op::finish(total, count, correction)));
    if (mean != nullptr) mean[at] = static_cast<Computed<T>>(count == 0 ? std::nan("") : total.a);
  }
};

template <class F>
void visit_reduce(ReduceOp op, F&& f) {
  using reduction::Simple;
  switch (op) {
    case ReduceOp::sum:
      return f(Simple<ReduceOp::sum>{});
    case ReduceOp::mean:
      return f(Simple<ReduceOp::mean>{});
    case ReduceOp::max:
      return f(Simple<ReduceOp::max>{});
    case ReduceOp::min:
      return f(Simple<ReduceOp::min>{});
    case ReduceOp::norm1:
      return f(Simple<ReduceOp::norm1>{});
    case ReduceOp::norm2:
      return f(Simple<ReduceOp::norm2>{});
    case ReduceOp::norm_inf:
      return f(Simple<ReduceOp::norm_inf>{});
    case ReduceOp::logsumexp:
      return f(reduction::LogSumExp{});
    case ReduceOp::variance:
      return f(reduction::Variance{});
  }
}

template <class T>
void run_dtype(const ReduceArgs& args) {
  const ReducePlan plan(args.x, args.y, args.axes);
  visit_reduce(args.op, [&](auto op) {
    using Op = decltype(op);
    Computed<T>* mean = args.mean.defined() ? args.mean.as<Computed<T>>() : nullptr;
    const Output<Op, T> output{args.y.as<T>(), mean, static_cast<double>(plan.count), args.correction};
    reduce_by_plan<Op>(plan, reduction::SingleSource<Op, T>{args.x.as<T>()}, output, args.workspace.as<double>());
  });
}

}  // namespace

void run(const Cpu&, const ReduceArgs& args) {
  if (args.x.dtype == DType::f64) {
    run_dtype<double>(args);
  } else {
    visit_training_float(args.x.dtype, "reduce", [&](auto tag) { run_dtype<typename decltype(tag)::type>(args); });
  }
}

}  // namespace castor
