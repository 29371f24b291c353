// The allocator's promises: reuse, a hard limit, honest statistics, and the same decisions on meta as on a real device.
#include "core/device/caching_allocator.h"

#include <cstdint>
#include <map>
#include <vector>

#include <doctest/doctest.h>

#include "core/base/error.h"
#include "core/base/philox.h"
#include "core/device/backend_cpu.h"
#include "core/device/exact_memory.h"
#include "core/tensor/tensor.h"

using namespace castor;

namespace {
constexpr std::size_t kMiB = std::size_t{1} << 20;
}

TEST_CASE("a steady pattern of allocations takes nothing more from the system") {
  CpuBackend backend;
  CachingAllocator memory(backend, kCpu);
  const auto step = [&] {
    auto* a = memory.allocate(3 * kMiB);
    auto* b = memory.allocate(100);
    auto* c = memory.allocate(20 * kMiB);
    memory.release(a);
    auto* d = memory.allocate(2 * kMiB);
    memory.release(b);
    memory.release(c);
    memory.release(d);
  };
  step();
  const auto after_first = memory.stats().system_allocations;
  for (int i = 0; i < 100; ++i) step();
  CHECK(memory.stats().system_allocations == after_first);
  CHECK(memory.stats().current_total == 0);
}

TEST_CASE("exact memory is of the very size for each block and goes back at once") {
  CpuBackend backend;
  CachingAllocator memory(backend, kCpu);
  auto* const before = memory.allocate(100);
  auto* const beside = memory.allocate(100);
  set_exact_memory(true);
  auto* const a = memory.allocate(100);
  auto* const b = memory.allocate(3 * kMiB + 1);
  CHECK(CachingAllocator::size(a) == 100);
  CHECK(memory.stats().reserved == 2 * kMiB + 100 + 3 * kMiB + 1);
  memory.release(b);
  CHECK(memory.stats().reserved == 2 * kMiB + 100);
  memory.release(a);
  memory.release(before);  // of a segment that it shares
  CHECK(memory.stats().reserved == 2 * kMiB);
  memory.release(beside);
  CHECK(memory.stats().reserved == 0);
  set_exact_memory(false);
  memory.release(memory.allocate(100));
  CHECK(memory.stats().reserved == 2 * kMiB);
  CHECK(memory.stats().current_total == 0);
}

TEST_CASE("memory of a private scope serves its scopes only, is used again by the next one and never given back") {
  CpuBackend backend;
  CachingAllocator memory(backend, kCpu), other(backend, kCpu);
  auto* const outside = memory.allocate(3 * kMiB);
  memory.release(outside);
  const auto in_scope = [&] {
    const CachingAllocator::PrivateScope scope(memory);
    auto* const block = memory.allocate(3 * kMiB);
    void* const place = CachingAllocator::data(block);
    auto* const elsewhere = other.allocate(3 * kMiB);  // another device's is not private
    other.release(elsewhere);
    memory.release(block);
    return place;
  };
  void* const place = in_scope();
  CHECK(memory.stats().reserved == 64 * kMiB);
  CHECK(in_scope() == place);
  CHECK(memory.stats().reserved == 64 * kMiB);
  auto* const again = memory.allocate(3 * kMiB);
  CHECK(CachingAllocator::data(again) != place);
  memory.release(again);
  memory.release_cached();
  other.release_cached();
  CHECK(memory.stats().reserved == 32 * kMiB);
  CHECK(other.stats().reserved == 0);
  CHECK(in_scope() == place);
  CHECK(memory.stats().current_total == 0);
}

TEST_CASE("blocks do not overlap, are aligned, and freed neighbours become one block again") {
  CpuBackend backend;
  CachingAllocator memory(backend, kCpu);
  std::map<std::uintptr_t, std::uintptr_t> taken;
  std::vector<CachingAllocator::Block*> blocks;
  for (std::uint64_t i = 0; i < 4000; ++i) {
    const std::uint64_t random = mix_bits(i);
    if (random % 3 != 0 || blocks.empty()) {
      auto* block = memory.allocate(random % (i % 2 == 0 ? 5000 : 3000000));
      const auto begin = reinterpret_cast<std::uintptr_t>(CachingAllocator::data(block));
      const auto end = begin + CachingAllocator::size(block);
      REQUIRE(begin % 256 == 0);
      const auto after = taken.lower_bound(begin);
      REQUIRE((after == taken.end() || after->first >= end));
      REQUIRE((after == taken.begin() || std::prev(after)->second <= begin));
      taken[begin] = end;
      blocks.push_back(block);
    } else {
      const std::size_t which = random % blocks.size();
      taken.erase(reinterpret_cast<std::uintptr_t>(CachingAllocator::data(blocks[which])));
      memory.release(blocks[which]);
      blocks.erase(blocks.begin() + static_cast<std::ptrdiff_t>(which));
    }
  }
  for (auto* block : blocks) memory.release(block);
  memory.release_cached();
  CHECK(memory.stats().reserved == 0);
}

TEST_CASE("the byte limit holds, and the error says what was asked, what is left and by whom the rest is held") {
  CpuBackend backend;
  CachingAllocator memory(backend, kCpu);
  memory.set_limit(40 * kMiB);
  auto* a = memory.allocate(30 * kMiB);
  try {
    memory.allocate(20 * kMiB);
    FAIL("the limit was ignored");
  } catch (const OutOfMemory& error) {
    CHECK(error.requested == 20 * kMiB);
    CHECK(error.free == 10 * kMiB);
    CHECK(error.limit == 40 * kMiB);
    CHECK(std::string(error.what()).find("activations") != std::string::npos);
  }
  memory.release(a);
  memory.release(memory.allocate(38 * kMiB));  // the cached 30 MiB are given back first
  CHECK(memory.stats().peak_reserved <= 40 * kMiB);
}

TEST_CASE("statistics know categories, peaks and what stood at the peak") {
  CpuBackend backend;
  CachingAllocator memory(backend, kCpu);
  auto* weights = [&] {
    const CategoryScope scope(Category::parameters);
    return memory.allocate(kMiB);
  }();
  auto* activations = memory.allocate(4 * kMiB);
  memory.release(activations);
  auto* gradient = memory.allocate(2 * kMiB);
  memory.set_category(gradient, Category::gradients);
  const MemoryStats stats = memory.stats();
  CHECK(stats.current[static_cast<int>(Category::parameters)] == kMiB);
  CHECK(stats.current[static_cast<int>(Category::gradients)] == 2 * kMiB);
  CHECK(stats.current[static_cast<int>(Category::activations)] == 0);
  CHECK(stats.peak[static_cast<int>(Category::activations)] == 4 * kMiB);
  CHECK(stats.peak_total == 5 * kMiB);
  CHECK(stats.at_peak[static_cast<int>(Category::activations)] == 4 * kMiB);
  memory.release(weights);
  memory.release(gradient);
}

TEST_CASE("the meta device makes the decisions of the device it stands for") {
  CpuBackend backend;
  CachingAllocator real(backend, kCpu);
  CachingAllocator& planned = allocator(make_meta({}));
  std::vector<std::pair<CachingAllocator::Block*, CachingAllocator::Block*>> live;
  for (std::uint64_t i = 0; i < 3000; ++i) {
    const std::uint64_t random = mix_bits(i * 7 + 1);
    if (random % 5 < 3 || live.empty()) {
      const std::size_t bytes = random % (i % 3 == 0 ? 40000000 : 200000);
      live.emplace_back(real.allocate(bytes), planned.allocate(bytes));
      REQUIRE(CachingAllocator::size(live.back().first) == CachingAllocator::size(live.back().second));
    } else {
      const std::size_t which = random % live.size();
      real.release(live[which].first);
      planned.release(live[which].second);
      live.erase(live.begin() + static_cast<std::ptrdiff_t>(which));
    }
  }
  CHECK(real.stats().peak_total == planned.stats().peak_total);
  CHECK(real.stats().peak_reserved == planned.stats().peak_reserved);
  CHECK(real.stats().system_allocations == planned.stats().system_allocations);
  for (auto& [a, b] : live) {
    real.release(a);
    planned.release(b);
  }
}
