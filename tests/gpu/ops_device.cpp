// Linked into a test program, this makes the case tables of tests/ops run on the GPU instead of the CPU, which has a
// program of its own. What such a table compares with is computed in f64 on the host.
#include <doctest/doctest.h>

#include "tests/support/op_check.h"

namespace {

class UseGpu final : public doctest::IReporter {
 public:
  explicit UseGpu(const doctest::ContextOptions&) {}
  void report_query(const doctest::QueryData&) override {}
  void test_run_start() override { castor::test::set_test_devices({{castor::DeviceType::cuda, 0}}); }
  void test_run_end(const doctest::TestRunStats&) override {}
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

REGISTER_LISTENER("gpu", 2, UseGpu);
