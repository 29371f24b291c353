// Ranks as processes: a test program starts itself as each of them, with one of its skipped cases as what they do.
#pragma once

#include <string>

#include "core/base/error.h"
#include "dist/run_job.h"

namespace castor::test {

/// What run_job needs for that.
inline dist::RunJobOptions ranks_of(const std::string& test_case, int processes) {
  dist::RunJobOptions options;
  options.command = {"/proc/self/exe", "--no-skip=true", "--minimal=true", cat("--test-case=", test_case)};
  options.processes = processes;
  return options;
}

}  // namespace castor::test
