// Whether this run was asked for the full counts (crash points, fuzz inputs, fault matrices), for the quick ones, or
// for few. A test asks here and nowhere else, so that `tests/run --long`, `meson test --setup long` and `PROGRAM
// --long` agree.
#pragma once

#include <cstdlib>

namespace castor::test {

/// True when the full counts are wanted; tests then may take minutes instead of seconds.
inline bool long_run() { return std::getenv("CASTOR_TEST_LONG") != nullptr; }

/// True under a tool that watches kernels, where each takes tens of times as long (tests/gpu/run): what a tool looks at
/// is the same in each launch of a kernel, so that a case may do less of what differs in values or timing alone.
inline bool short_run() { return std::getenv("CASTOR_TEST_SHORT") != nullptr; }

}  // namespace castor::test
