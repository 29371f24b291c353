// Runs a parser so that an allocation larger than its input is a finding.
//
// Delicate: only the parser is watched, not what the target does with its result. Some things have a fixed size, so 4
// KiB are always allowed.
#pragma once

#include <algorithm>
#include <cstddef>

#include "tests/support/allocation_watch.h"

namespace castor::test {

/// Returns what `parse` does; ends the program where it allocates more than `input_bytes`, or 4 KiB, at once.
template <class Parse>
auto watch_parse(std::size_t input_bytes, const Parse& parse) {
  listen_to_allocations();
  const AllocationWatch watch(std::max<std::size_t>(input_bytes, 4096));
  return parse();
}

}  // namespace castor::test
