// The one `main` of every test program: doctest's, with a last line that scripts can add up.
//
// Delicate: the number of OpenMP threads is read by the OpenMP runtime before main, once for every thread that will
// ever exist, so one compute thread can only be the default if the program starts itself again with it in the
// environment. Calling omp_set_num_threads would miss the threads that tests start (ranks as threads).
#define DOCTEST_CONFIG_IMPLEMENT
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string_view>

#include <doctest/doctest.h>
#include <unistd.h>

#include "tests/support/quiet_listener.h"

namespace {

struct Counts {
  unsigned passed = 0;
  unsigned failed = 0;
  bool ran = false;  // false when doctest only answered a question, such as --list-test-cases
};

Counts& counts() {
  static Counts value;
  return value;
}

/// Keeps the totals that doctest hands to reporters and to nobody else.
class CountingListener : public castor::test::QuietListener {
 public:
  using QuietListener::QuietListener;
  void test_run_end(const doctest::TestRunStats& stats) override {
    counts().passed = stats.numTestCasesPassingFilters - stats.numTestCasesFailed;
    counts().failed = stats.numTestCasesFailed;
    counts().ran = true;
  }
};

void default_to_one_compute_thread(char** argv) {
  if (std::getenv("OMP_NUM_THREADS") != nullptr) return;
  setenv("OMP_NUM_THREADS", "1", 1);
  execv("/proc/self/exe", argv);
  std::perror("test_main: cannot start again with OMP_NUM_THREADS=1; set it by hand");
  std::exit(1);
}

}  // namespace

REGISTER_LISTENER("counting", 1, CountingListener);

int main(int argc, char** argv) {
  default_to_one_compute_thread(argv);
  for (int i = 1; i < argc; ++i) {
    if (std::string_view(argv[i]) == "--long") setenv("CASTOR_TEST_LONG", "1", 1);
  }
  doctest::Context context(argc, argv);
  int status = context.run();
  if (!counts().ran) return status;
  if (counts().passed + counts().failed == 0) {
    std::cout << "no test case matches the filters\n";
    status = 1;
  }
  std::cout.flush();
  std::printf("%u passed, %u failed\n", counts().passed, counts().failed);
  return status;
}
