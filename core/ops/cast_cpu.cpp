// Copy and conversion loops. Equal dtypes move bytes; runs with unit strides vectorise.
#include "core/ops/cast.h"
#include "core/ops/strided_loop.h"

namespace castor {

void run(const Cpu&, const CastArgs& args) {
  const StridedLoop<2> loop({args.x, args.y});
  visit_dtype(args.x.dtype, [&](auto from) {
    using From = typename decltype(from)::type;
    visit_dtype(args.y.dtype, [&](auto to) {
      using To = typename decltype(to)::type;
      loop.for_each_run([&](const std::int64_t* at, const std::int64_t* step, std::int64_t n) {
        const From* x = args.x.as<From>() + at[0];
        To* y = args.y.as<To>() + at[1];
        if constexpr (std::is_same_v<From, To>) {
          if (step[0] == 1 && step[1] == 1) {
            std::memmove(static_cast<void*>(y), x, static_cast<std::size_t>(n) * sizeof(To));
            return;
          }
          for (std::int64_t i = 0; i < n; ++i) y[i * step[1]] = x[i * step[0]];
        } else if (step[0] == 1 && step[1] == 1) {
#pragma GCC ivdep
          for (std::int64_t i = 0; i < n; ++i) y[i] = store<To>(load(x[i]));
        } else {
          for (std::int64_t i = 0; i < n; ++i) y[i * step[1]] = store<To>(load(x[i * step[0]]));
        }
      });
    });
  });
}

void run(const Cpu& cpu, const FillArgs& args) {
  visit_dtype(args.y.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    T element = store<T>(args.value);
    View one = args.y;
    one.data = &element;
    for (int i = 0; i < one.ndim; ++i) one.stride[i] = 0;
    run(cpu, CastArgs{one, args.y});
  });
}

}  // namespace castor
