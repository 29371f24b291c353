// Linked into a test program, this adds the fake device to the devices that case tables run on, and checks at the end
// that it was used.
#include <iostream>

#include <doctest/doctest.h>

#include "core/ops/elementwise.h"
#include "tests/support/fake_cuda/fake_backend.h"
#include "tests/support/op_check.h"
#include "tests/support/quiet_listener.h"

namespace {

class AddFakeDevice final : public castor::test::QuietListener {
 public:
  using QuietListener::QuietListener;
  void test_run_start() override {
    castor::install_fake_cuda();
    castor::test::set_test_devices({castor::kCpu, castor::kFakeCuda});
  }
  void test_run_end(const doctest::TestRunStats&) override {
    std::cout << castor::fake_cuda_launches() << " kernels ran through the fake cuda device\n";
  }
};

}  // namespace

REGISTER_LISTENER("fake_cuda", 2, AddFakeDevice);

TEST_CASE("an op runs on the fake second device, with its bytes and its stream") {
  const long before = castor::fake_cuda_launches();
  castor::test::OpCase row{"[3,4]", {{{3, 4}, -1, 1, {}, {}}}};
  castor::test::check_op(
      {"scale", [](const castor::test::Tensors& x) { return castor::test::Tensors{castor::scale(x[0], 2)}; },
       [](const castor::test::Arrays& x) {
         castor::test::Array y = x[0];
         for (double& value : y.values) value *= 2;
         return castor::test::Arrays{y};
       }},
      {row});
  CHECK(castor::fake_cuda_launches() > before);
}
