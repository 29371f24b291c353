// Linked into a test program, this makes the case tables of tests/ops run on the GPU instead of the CPU, which has a
// program of its own. What such a table compares with is computed in f64 on the host.
#include <doctest/doctest.h>

#include "tests/support/op_check.h"
#include "tests/support/quiet_listener.h"

namespace {

class UseGpu final : public castor::test::QuietListener {
 public:
  using QuietListener::QuietListener;
  void test_run_start() override { castor::test::set_test_devices({{castor::DeviceType::cuda, 0}}); }
};

}  // namespace

REGISTER_LISTENER("gpu", 2, UseGpu);
