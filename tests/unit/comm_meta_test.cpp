// A group on paper takes the memory that a sum between GPUs takes, for as long.
#include "dist/comm_meta.h"

#include <doctest/doctest.h>

using namespace castor;
using namespace castor::dist;

namespace {

TEST_CASE("a sum on paper holds the other ranks' terms until somebody waits, where GPUs would") {
  constexpr std::int64_t kOwn = 1024, kBytes = kOwn * 2;
  const auto group = make_meta_comm(1, 4);
  const auto held = [](Device device) {
    return static_cast<std::int64_t>(allocator(device).stats().current[static_cast<std::size_t>(Category::workspace)]);
  };
  for (const DeviceType type : {DeviceType::cpu, DeviceType::cuda}) {
    const Device device = make_meta({type, "", 0});
    const std::int64_t terms = type == DeviceType::cuda ? 3 * kBytes : 0;
    const Tensor all = Tensor::empty({4 * kOwn}, DType::bf16, device);
    const Tensor own = Tensor::empty({kOwn}, DType::f32, device);
    std::vector<Buffer> pieces;
    for (int r = 0; r < 4; ++r) pieces.emplace_back(all.narrow(0, r * kOwn, kOwn));
    const Work scattered = group->start(Collective::reduce_scatter(pieces, own));
    CHECK(held(device) == terms);
    scattered.wait();
    CHECK(held(device) == 0);
    {
      const Work reduced = group->start(Collective::all_reduce(all));
      CHECK(held(device) == 4 * terms);
      const Work gathered = group->start(Collective::all_gather(pieces[1], pieces));
      CHECK(held(device) == 4 * terms);
    }
    CHECK(held(device) == 0);
    group->all_reduce(all, "at once");
    CHECK(held(device) == 0);
    CHECK(allocator(device).stats().peak[static_cast<std::size_t>(Category::workspace)] ==
          static_cast<std::size_t>(4 * terms));
  }
}

}  // namespace
