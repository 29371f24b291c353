// Whether a tool watches this run, for cases that would take hours under one.
#pragma once

namespace castor::test {

/// True where tests/gpu/run runs a suite under a tool: kernels take tens of times as long, and what the tool looks at
/// is the same in each of them. A case may then do less of what differs in its timing alone.
bool is_watched();

}  // namespace castor::test
