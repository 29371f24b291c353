// Splits loops over the process's one thread pool (OpenMP, because oneDNN's threads are OpenMP's).
//
// Delicate: a 2-thread region costs about a microsecond on a quiet machine and milliseconds on a busy one, so small
// loops stay on the calling thread; and results must not depend on the number of threads, so `parallel_for` only splits
// work whose pieces are independent.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

namespace castor {

/// Threads that parallel regions use; at least 1.
int num_threads();

/// Sets the number of threads of later parallel regions (this process, all libraries on OpenMP).
void set_num_threads(int count);

namespace detail {
using RangeBody = void (*)(void* context, std::int64_t begin, std::int64_t end);
void parallel_ranges(std::int64_t count, std::int64_t grain, void* context, RangeBody body);
}  // namespace detail

/// Calls body(begin, end) on disjoint ranges that cover [0, count).
///   grain   at least this many iterations a range; count <= grain runs on the calling thread
/// An exception thrown by `body` is rethrown on the calling thread (the first one, by range).
template <class Body>
void parallel_for(std::int64_t count, std::int64_t grain, Body&& body) {
  if (count <= 0) return;
  if (count <= grain || num_threads() == 1) {
    body(std::int64_t{0}, count);
    return;
  }
  auto call = [](void* context, std::int64_t begin, std::int64_t end) {
    (*static_cast<std::remove_reference_t<Body>*>(context))(begin, end);
  };
  detail::parallel_ranges(count, grain, const_cast<void*>(static_cast<const void*>(&body)), call);
}

}  // namespace castor
