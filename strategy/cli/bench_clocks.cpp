// Clocks that wait for the device; see bench_clocks.h.
#include "strategy/cli/bench_clocks.h"

#include <algorithm>

#include "core/ops/matmul.h"
#include "core/ops/random.h"

namespace castor::strategy {
namespace {

constexpr std::int64_t kGpuSide = 8192, kCpuSide = 1024;
constexpr int kWarmups = 3, kProducts = 9;

}  // namespace

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

void OpTimer::before(const OpCall&) {
  backend(device_).synchronize();
  start_ = BenchClock::now();
}

void OpTimer::after(const OpCall& call) {
  backend(device_).synchronize();
  Total& total = totals_[call.name];
  ++total.calls;
  total.seconds += seconds_since(start_);
  total.flops += call.cost.flops;
  total.bytes += call.cost.bytes;
}

std::vector<std::pair<std::string, OpTimer::Total>> OpTimer::sorted() const {
  std::vector<std::pair<std::string, Total>> all(totals_.begin(), totals_.end());
  std::sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.second.seconds > b.second.seconds; });
  return all;
}

ProductRate measure_product_rate(Device device, DType dtype) {
  ProductRate rate{device.is_cuda() ? kGpuSide : kCpuSide, dtype};
  {
    const Tensor a = Tensor::empty({rate.size, rate.size}, dtype, device), b = Tensor::empty_like(a);
    fill_normal(a, {1, 1});
    fill_normal(b, {1, 2});
    std::vector<double> seconds;
    for (int i = 0; i < kWarmups + kProducts; ++i) {
      backend(device).synchronize();
      const auto start = BenchClock::now();
      matmul(a, b);
      backend(device).synchronize();
      if (i >= kWarmups) seconds.push_back(seconds_since(start));
    }
    const auto side = static_cast<double>(rate.size);
    rate.flops = 2 * side * side * side / median(seconds);
  }
  allocator(device).release_cached();
  return rate;
}

}  // namespace castor::strategy
