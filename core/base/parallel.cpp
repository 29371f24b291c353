// The OpenMP side of parallel.h. Ranges are cut evenly by thread index, so which thread runs which range is fixed.
#include "core/base/parallel.h"

#include <exception>

#include <omp.h>

namespace castor {

int num_threads() { return omp_get_max_threads(); }

void set_num_threads(int count) { omp_set_num_threads(std::max(1, count)); }

namespace detail {

void parallel_ranges(std::int64_t count, std::int64_t grain, void* context, RangeBody body) {
  const std::int64_t wanted =
      std::min<std::int64_t>(num_threads(), (count + grain - 1) / std::max<std::int64_t>(grain, 1));
  if (wanted <= 1 || omp_in_parallel()) {
    body(context, 0, count);
    return;
  }
  std::exception_ptr failure;
#pragma omp parallel num_threads(static_cast <int>(wanted))
  {
    const std::int64_t parts = omp_get_num_threads();
    const std::int64_t part = omp_get_thread_num();
    try {
      const std::int64_t begin = count * part / parts;
      const std::int64_t end = count * (part + 1) / parts;
      if (begin < end) body(context, begin, end);
    } catch (...) {
#pragma omp critical(castor_parallel_failure)
      if (!failure) failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace detail
}  // namespace castor
