// Whether this run was asked for the full counts (crash points, fuzz inputs, fault matrices) or for the quick ones.
// A test asks here and nowhere else, so that `tests/run --long`, `meson test --setup long` and `PROGRAM --long` agree.
#pragma once

#include <cstdlib>

namespace castor::test {

/// True when the full counts are wanted; tests then may take minutes instead of seconds.
inline bool long_run() { return std::getenv("CASTOR_TEST_LONG") != nullptr; }

}  // namespace castor::test
