// Collectives of GPU tensors whose ranks could not be connected, on the fake device; those between real GPUs are in
// tests/gpu.
#include <doctest/doctest.h>

#include "build_config.h"
#include "core/base/error.h"
#include "dist/comm_device.h"
#include "dist/comm_thread.h"
#include "tests/support/fake_cuda/fake_backend.h"

using namespace castor;
using namespace castor::dist;
using namespace std::chrono_literals;

TEST_CASE("a group whose GPUs cannot be connected says so each time, and never sums what nobody has sent" *
          doctest::skip(kHasCuda)) {
  const auto connect_in_vain = [](Comm& comm) {
    constexpr int kTimes = 2;
    if (comm.rank() == 1) {  // the fake device knows one thread: this one meets the other where connecting begins
      for (int i = 0; i < kTimes; ++i) comm.split(0, 1);
      return;
    }
    Health health;
    const auto gpus = make_device_comm(comm, kFakeCuda, health, {10s, GpuTransport::kPeer});
    for (int i = 0; i < kTimes; ++i) {
      CAPTURE(i);
      const Tensor x = Tensor::zeros({4}, DType::f32, kFakeCuda);
      CHECK_THROWS_WITH_AS(gpus->run(Collective::all_reduce(x, "gradients")),
                           doctest::Contains("do not all reach each other's memory"), DeviceError);
    }
  };
  run_ranks(2, connect_in_vain, {10s});
}
