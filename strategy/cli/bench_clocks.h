// What castor bench measures beside whole steps: ops one by one, what a product alone reaches, and what a step's
// overlapping leaves.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "core/base/clock.h"
#include "core/base/dtype.h"
#include "core/device/dispatch.h"

namespace castor::strategy {

using BenchClock = std::chrono::steady_clock;

/// Of at least one value.
double median(std::vector<double> values);

/// Times ops one by one: the device is idle before and after each, so the sum is more than a step takes.
class OpTimer final : public DispatchObserver {
 public:
  struct Total {
    std::int64_t calls = 0;
    double seconds = 0, flops = 0, bytes = 0;
  };
  explicit OpTimer(Device device) : device_(device) {}
  void before(const OpCall& call) override;
  void after(const OpCall& call) override;
  /// By time, longest first.
  std::vector<std::pair<std::string, Total>> sorted() const;

 private:
  Device device_;
  BenchClock::time_point start_;
  std::map<std::string, Total> totals_;
};

/// What one large product of square matrices reaches on a device: the ceiling of what is mostly products.
struct ProductRate {
  std::int64_t size = 0;  ///< of the matrices' sides
  DType dtype = DType::bf16;
  double flops = 0;  ///< a second, the median of several of normal numbers
};
/// Takes a few matrices of the device's memory and gives it back.
ProductRate measure_product_rate(Device device, DType dtype);

}  // namespace castor::strategy
