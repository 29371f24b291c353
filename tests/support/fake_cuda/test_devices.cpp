// Linked into a test program, this adds the fake device to the devices that case tables run on, and checks at the end
// that it was used.
#include <iostream>

#include <doctest/doctest.h>

#include "core/ops/elementwise.h"
#include "tests/support/fake_cuda/fake_backend.h"
#include "tests/support/op_check.h"

namespace {

class AddFakeDevice final : public doctest::IReporter {
 public:
  explicit AddFakeDevice(const doctest::ContextOptions&) {}
  void report_query(const doctest::QueryData&) override {}
  void test_run_start() override {
    castor::install_fake_cuda();
    castor::test::set_test_devices({castor::kCpu, castor::kFakeCuda});
  }
  void test_run_end(const doctest::TestRunStats&) override {
    std::cout << castor::fake_cuda_launches() << " kernels ran through the fake cuda device\n";
  }
  void test_case_start(const doctest::TestCaseData&) override {}
  void test_case_reenter(const doctest::TestCaseData&) override {}
  void test_case_end(const doctest::CurrentTestCaseStats&) override {}
  void test_case_exception(const doctest::TestCaseException&) override {}
  void subcase_start(const doctest::SubcaseSignature&) override {}
  void subcase_end() override {}
  void log_assert(const doctest::AssertData&) override {}
  void log_message(const doctest::MessageData&) override {}
  void test_case_skipped(const doctest::TestCaseData&) override {}
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
