// Collectives among ranks that read each other's tensors where they lie: the bits of those that send, and next to
// nothing sent.
#include "dist/direct.h"

#include <atomic>
#include <cstring>
#include <thread>

#include <doctest/doctest.h>

#include "core/device/caching_allocator.h"
#include "core/device/shared_heap.h"
#include "dist/comm_thread.h"
#include "dist/flight_recorder.h"
#include "dist/host_comm.h"
#include "dist/ring_memory.h"
#include "tests/dist/collective_cases.h"

namespace {

using namespace castor;
using namespace castor::dist;

/// Rings in memory whose ranks may read each other's heap; it counts what they send.
class CountingLink final : public Link {
 public:
  CountingLink(std::unique_ptr<Link> inner, std::atomic<std::size_t>& sent) : inner_(std::move(inner)), sent_(sent) {}
  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  std::size_t try_send(int peer, std::span<const std::byte> bytes) override {
    const std::size_t taken = inner_->try_send(peer, bytes);
    sent_ += taken;
    return taken;
  }
  std::size_t try_receive(int peer, std::span<std::byte> into) override { return inner_->try_receive(peer, into); }
  std::optional<std::size_t> place_of(std::span<const std::byte> bytes) const override {
    return inner_->place_of(bytes);
  }
  const std::byte* at_peer(int peer, std::size_t place, std::size_t bytes) const override {
    return inner_->at_peer(peer, place, bytes);
  }
  bool gone(int peer) override { return inner_->gone(peer); }
  std::uint32_t ticket() override { return inner_->ticket(); }
  void wait(std::uint32_t ticket, std::span<const int> sends, std::span<const int> receives,
            std::chrono::milliseconds limit) override {
    inner_->wait(ticket, sends, receives, limit);
  }

 private:
  std::unique_ptr<Link> inner_;
  std::atomic<std::size_t>& sent_;
};

/// One rank's side of a group of threads.
class CountingFabric final : public Fabric {
 public:
  CountingFabric(std::shared_ptr<RingMemory> memory, int rank, Health& health, PeerHeaps heaps,
                 std::atomic<std::size_t>& sent)
      : memory_(std::move(memory)), recorder_(rank), health_(health), heaps_(std::move(heaps)), sent_(sent) {}
  Health& health() override { return health_; }
  FlightRecorder& recorder() override { return recorder_; }
  std::unique_ptr<Link> connect(const std::string&, const std::vector<int>& members, int rank,
                                std::chrono::milliseconds) override {
    return std::make_unique<CountingLink>(std::make_unique<RingLink>(memory_, rank, members, health_, heaps_), sent_);
  }

 private:
  std::shared_ptr<RingMemory> memory_;
  FlightRecorder recorder_;
  Health& health_;
  PeerHeaps heaps_;
  std::atomic<std::size_t>& sent_;
};

/// Tensors that are made from now on lie in the heap.
SharedHeap* open_heap() {
  SharedHeap* const heap = SharedHeap::open();
  REQUIRE(heap != nullptr);
  allocator(kCpu).release_cached();
  return heap;
}

/// Runs fn(comm) on `world` threads whose tensors lie in the shared heap; returns the bytes that they sent each other.
std::size_t bytes_sent(int world, bool can_read, const std::function<void(Comm&)>& fn) {
  SharedHeap* const heap = open_heap();
  PeerHeaps heaps;
  if (can_read) heaps.assign(static_cast<std::size_t>(world), PeerHeap::map(heap->address()));
  const auto memory = std::make_shared<RingMemory>(map_private_memory(RingMemory::bytes_for(world)), world);
  Health health;
  std::atomic<std::size_t> sent{0};
  std::vector<std::thread> threads;
  for (int rank = 0; rank < world; ++rank) {
    threads.emplace_back([&, rank] {
      CommOptions options;
      options.timeout = std::chrono::milliseconds(60'000);
      const auto fabric = std::make_shared<CountingFabric>(memory, rank, health, heaps, sent);
      const auto comm = HostComm::connect_world(fabric, rank, world, options);
      fn(*comm);
    });
  }
  for (std::thread& thread : threads) thread.join();
  REQUIRE_FALSE(health.failed());
  return sent;
}

/// f32 numbers whose sums depend on the order in which they are added, different on every rank.
Tensor numbers(std::int64_t count, int rank) {
  const Tensor x = Tensor::empty({count}, DType::f32);
  auto* values = x.view().as<float>();
  for (std::int64_t i = 0; i < count; ++i) {
    const auto mixed = static_cast<std::uint32_t>(i * 2654435761u + static_cast<std::uint32_t>(rank) * 40503u);
    values[i] = static_cast<float>(mixed % 10007) * (rank % 2 == 0 ? 1e-3f : 1e3f);
  }
  return x;
}

bool equal(const Tensor& a, const std::vector<float>& b) {
  return a.view().bytes() == b.size() * sizeof(float) &&
         std::memcmp(a.view().as<float>(), b.data(), a.view().bytes()) == 0;
}

}  // namespace

TEST_CASE(
    "an all-reduce of memory that all ranks can read has the bits of one that is sent, and sends next to nothing") {
  for (const int world : {2, 3, 4}) {
    for (const std::int64_t count : {std::int64_t{20'001}, std::int64_t{1'000'003}}) {
      CAPTURE(world);
      CAPTURE(count);
      std::vector<float> expected(static_cast<std::size_t>(count));
      for (int r = 0; r < world; ++r) {
        const Tensor x = numbers(count, r);
        for (std::size_t i = 0; i < expected.size(); ++i)
          expected[i] = (r == 0 ? 0 : expected[i]) + x.view().as<float>()[i];
      }
      std::atomic<int> right{0};
      const auto sum = [&](Comm& comm) {
        const Tensor x = numbers(count, comm.rank());
        comm.all_reduce(x, "x");
        if (equal(x, expected)) ++right;
      };
      const std::size_t read = bytes_sent(world, true, sum);
      const std::size_t sent = bytes_sent(world, false, sum);
      CHECK(right == 2 * world);
      CHECK(read < 10'000 * static_cast<std::size_t>(world));
      CHECK(sent > static_cast<std::size_t>(count) * sizeof(float));
    }
  }
}

TEST_CASE("pieces of memory that all ranks can read are scattered, gathered and exchanged without being sent") {
  constexpr std::int64_t kPiece = 100'000;
  const std::size_t sent = bytes_sent(3, true, [](Comm& comm) {
    const Tensor x = numbers(3 * kPiece, comm.rank());
    const Tensor sum = Tensor::empty({kPiece}, DType::f32);
    comm.reduce_scatter(x, sum, "x");
    const Tensor all = Tensor::empty({3 * kPiece}, DType::f32);
    comm.all_gather(sum, all, "sum");
    const Tensor turned = Tensor::empty({3 * kPiece}, DType::f32);
    comm.all_to_all(x, turned, "x");
    std::vector<float> expected(3 * kPiece, 0.0F);
    for (int r = 0; r < 3; ++r) {
      const Tensor terms = numbers(3 * kPiece, r);
      for (std::size_t i = 0; i < expected.size(); ++i)
        expected[i] = (r == 0 ? 0 : expected[i]) + terms.view().as<float>()[i];
    }
    CHECK(std::memcmp(all.view().as<float>(), expected.data(), expected.size() * sizeof(float)) == 0);
    for (int r = 0; r < 3; ++r) {
      const Tensor theirs = numbers(3 * kPiece, r);
      CHECK(std::memcmp(turned.view().as<float>() + r * kPiece, theirs.view().as<float>() + comm.rank() * kPiece,
                        kPiece * sizeof(float)) == 0);
    }
  });
  CHECK(sent < 20'000);
}

TEST_CASE("one rank whose tensor nobody can read makes all ranks send") {
  std::atomic<int> right{0};
  const std::size_t sent = bytes_sent(3, true, [&](Comm& comm) {
    constexpr std::int64_t kCount = 100'000;
    std::vector<float> expected(kCount);
    for (int r = 0; r < 3; ++r) {
      const Tensor x = numbers(kCount, r);
      for (std::size_t i = 0; i < expected.size(); ++i)
        expected[i] = (r == 0 ? 0 : expected[i]) + x.view().as<float>()[i];
    }
    const Tensor x = numbers(kCount, comm.rank());
    std::vector<float> elsewhere(x.view().as<float>(), x.view().as<float>() + kCount);
    View view = x.view();
    if (comm.rank() == 1) view.data = elsewhere.data();
    comm.all_reduce(view, "x");
    if (std::memcmp(view.as<float>(), expected.data(), view.bytes()) == 0) ++right;
  });
  CHECK(right == 3);
  CHECK(sent > 400'000);
}

TEST_CASE("ranks that can read each other's memory pass every case of collectives") {
  open_heap();
  for (const int world : {2, 3, 4}) {
    CAPTURE(world);
    run_ranks(world, test::check_collectives);
    run_ranks(world, test::check_started_work);
    run_ranks(world, test::check_split);
    run_ranks(world, test::check_disagreement);
  }
}
