// Chunks without a model: weights come when they are touched, go when they are released, and gradients take their
// place.
#include "dist/chunk/chunk_manager.h"

#include <mutex>

#include <doctest/doctest.h>

#include "core/base/error.h"
#include "core/ops/cast.h"
#include "dist/chunk/chunk_search.h"
#include "dist/comm_thread.h"
#include "dist/failure.h"
#include "strategy/gemini/placement.h"

using namespace castor;
using namespace castor::dist;

namespace {

/// Keeps everything.
class KeepAll final : public ChunkPolicy {
 public:
  void before_gather(std::size_t) override {}
  void after_access(std::size_t) override {}
};

/// `count` parameters of `elements` elements on meta, called p0, p1, ...
std::vector<autograd::Variable> parameters_on_meta(int count, std::int64_t elements, DType dtype) {
  const Device meta = make_meta({DeviceType::cpu, "", 0});
  std::vector<autograd::Variable> parameters;
  for (int i = 0; i < count; ++i) {
    parameters.emplace_back(Tensor::empty({elements}, dtype, meta), true);
    parameters.back().set_name(cat("p", i));
  }
  return parameters;
}

/// Parameter pN gets the value N + 1 everywhere.
void fill_by_name(const autograd::Variable& parameter, const Tensor& into) {
  fill(into, parameter.name()[1] - '0' + 1);
}

std::vector<float> values(const Tensor& x) { return cast(x, DType::f32).to_vector<float>(); }

TEST_CASE(
    "a parameter's values are there when it is used, on every rank, and its chunk can be dropped and come again") {
  run_ranks(3, [](Comm& comm) {
    const auto parameters = parameters_on_meta(6, 3000, DType::f32);
    ChunkManager chunks(comm, parameters, kCpu, {.capacity = 6500}, fill_by_name);
    KeepAll keep;
    chunks.set_policy(keep);
    CHECK(chunks.chunk_count() == 3);
    CHECK(chunks.gathered_bytes() == 0);
    for (const int i : {0, 5, 2, 0}) {
      const auto& parameter = parameters[static_cast<std::size_t>(i)];
      CHECK(parameter.device() == kCpu);
      CHECK(values(parameter.data()) == std::vector<float>(3000, static_cast<float>(i + 1)));
    }
    CHECK(chunks.traffic().gathers == 3);
    CHECK(chunks.state(0) == ChunkState::kGathered);
    for (std::size_t chunk = 0; chunk < 3; ++chunk) {
      for (int i = 0; i < 3; ++i) clone(Tensor::zeros({1}, DType::f32));  // ops pass: the chunk is no longer in use
      CHECK(chunks.can_release(chunk));
      chunks.release(chunk);
      CHECK_THROWS_AS(chunks.release(chunk), InternalError);
    }
    CHECK(chunks.gathered_bytes() == 0);
    CHECK(values(parameters[1].data()) == std::vector<float>(3000, 2.0f));
    CHECK(chunks.traffic().gathers == 4);
  });
}

TEST_CASE("a chunk that the running op may still use is not dropped") {
  run_ranks(1, [](Comm& comm) {
    const auto parameters = parameters_on_meta(2, 100, DType::f32);
    ChunkManager chunks(comm, parameters, kCpu, {.capacity = 128}, fill_by_name);
    strategy::BudgetPlacement none(chunks, 0, 0);
    chunks.set_policy(none);
    const View first = parameters[0].data().view();
    const View second = parameters[1].data().view();  // pushes nothing out: no op has passed
    CHECK(first.as<float>()[99] == 1);
    CHECK(second.as<float>()[99] == 2);
    CHECK(chunks.state(0) == ChunkState::kGathered);
    for (int i = 0; i < 3; ++i) clone(Tensor::zeros({1}, DType::f32));
    chunks.begin_pass(true);
    chunks.release(1);
    CHECK(values(parameters[1].data())[0] == 2);
    CHECK(chunks.state(0) == ChunkState::kAway);
  });
}

TEST_CASE("gradients are summed rank by rank into the owners' pieces, those that nobody delivered count as zero") {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    run_ranks(2, [dtype](Comm& comm) {
      const auto parameters = parameters_on_meta(3, 2048, dtype);
      ChunkManager chunks(comm, parameters, kCpu, {.capacity = 4096, .accumulates = true}, fill_by_name);
      strategy::BudgetPlacement none(chunks, 0, 0);
      chunks.set_policy(none);
      std::vector<autograd::Part> parts = chunks.parts();
      for (int micro_step = 0; micro_step < 2; ++micro_step) {
        chunks.begin_pass(true);
        chunks.begin_micro_step(micro_step);
        const double value = 1 + comm.rank() + 10 * micro_step;  // 1, 2, 11, 12
        chunks.deliver(parameters[2], full({2048}, value, dtype));
        chunks.deliver(parameters[0], full({2048}, 2 * value, dtype));
        chunks.end_micro_step();
      }
      CHECK(chunks.gathered_bytes() == 0);
      chunks.finish_window(4, parts);
      std::int64_t own = 0;
      for (const autograd::Part& part : parts) {
        const float expected = part.variable.name() == "p0" ? 13.0f : part.variable.name() == "p2" ? 6.5f : 0.0f;
        CHECK(part.gradient.dtype() == dtype);
        CHECK(values(part.gradient) == std::vector<float>(static_cast<std::size_t>(part.count), expected));
        own += part.count;
      }
      CHECK(own == 3 * 2048 / 2);
    });
  }
}

TEST_CASE("ranks that use other chunks than each other learn which") {
  std::mutex mutex;
  std::vector<std::string> texts;
  CHECK_THROWS_AS(run_ranks(2,
                            [&](Comm& comm) {
                              const auto parameters = parameters_on_meta(2, 100, DType::f32);
                              ChunkManager chunks(comm, parameters, kCpu, {.capacity = 128}, fill_by_name);
                              KeepAll keep;
                              chunks.set_policy(keep);
                              try {
                                parameters[static_cast<std::size_t>(comm.rank())].data().view();
                              } catch (const CommError& error) {
                                const std::lock_guard lock(mutex);
                                texts.emplace_back(error.what());
                                throw;
                              }
                            }),
                  CommError);
  REQUIRE_FALSE(texts.empty());
  CHECK_MESSAGE(texts[0].find("from p0") != std::string::npos, texts[0]);
  CHECK_MESSAGE(texts[0].find("from p1") != std::string::npos, texts[0]);
}

TEST_CASE("what is needed pushes out what is needed latest, and the known order is fetched ahead") {
  run_ranks(2, [](Comm& comm) {
    const auto parameters = parameters_on_meta(6, 1024, DType::f32);
    ChunkManager chunks(comm, parameters, kCpu, {.capacity = 1024}, fill_by_name);
    strategy::BudgetPlacement placement(chunks, 3 * 4096, 1);
    chunks.set_policy(placement);
    const auto use = [&](int i) {
      CHECK(values(parameters[static_cast<std::size_t>(i)].data())[0] == static_cast<float>(i + 1));
      for (int op = 0; op < 3; ++op) clone(Tensor::zeros({1}, DType::f32));
    };
    const int order[] = {0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5};
    const auto pass = [&] {
      chunks.begin_pass(true);
      for (const int i : order) use(i);
      chunks.begin_micro_step(0);
      for (const auto& parameter : parameters) chunks.deliver(parameter, Tensor::zeros({1024}, DType::f32));
      chunks.end_micro_step();
    };
    pass();
    const ChunkTraffic first = chunks.traffic();
    CHECK(first.prefetched == 0);
    pass();
    const ChunkTraffic second = chunks.traffic();
    CHECK(second.prefetched > 0);
    CHECK(second.peak_gathered_bytes <= 4 * 4096);
    CHECK(second.gathers - first.gathers < first.gathers);  // the furthest next use beats the longest unused
  });
}

TEST_CASE("pieces may live on the host's tier") {
  run_ranks(2, [](Comm& comm) {
    const auto parameters = parameters_on_meta(2, 4096, DType::bf16);
    ChunkOptions options{.capacity = 4096};
    options.homes = [](std::span<const ChunkInfo> infos) {
      CHECK(infos.size() == 2);
      CHECK(infos[0].bytes == 2 * 4096);
      CHECK(infos[0].is_trained);
      return std::vector<ChunkHome>{{kCpu, kCpu}, {kHost, kHost}};
    };
    ChunkManager chunks(comm, parameters, kCpu, options, fill_by_name);
    KeepAll keep;
    chunks.set_policy(keep);
    for (const autograd::Part& piece : chunks.pieces())
      CHECK(piece.weights.device() == (piece.variable.name() == "p1" ? kHost : kCpu));
    CHECK(values(parameters[1].data()) == std::vector<float>(4096, 2.0f));
  });
}

TEST_CASE("the search finds the size that wastes least, and one chunk where everything fits") {
  const std::vector<std::int64_t> sizes(10, 300);
  const ChunkSize found = search_chunk_size(sizes, 1000, 500, 100);
  CHECK(found.elements == 1500);  // two full chunks; 1000 would waste 1000 of 4000, 1200 600 of 3600
  CHECK(found.chunks == 2);
  CHECK(found.waste == 0);
  CHECK(search_chunk_size(sizes, 1000, 200, 100).elements == 1200);
  // 1000 holds 998 of each chunk, full enough; 1996 would waste nothing, but hold twice as much at once.
  const std::vector<std::int64_t> nearly = {998, 998, 998, 998};
  CHECK(search_chunk_size(nearly, 1000, 996, 1).elements == 1000);
  CHECK(search_chunk_size(nearly, 1004, 992, 1).elements == 1996);
  CHECK(search_chunk_size(sizes, 5000, 500, 100).elements == 3000);
  CHECK(search_chunk_size(sizes, 5000, 500, 100).chunks == 1);
  const std::vector<std::int64_t> with_large = {300, 4000, 300, 300, 300};
  CHECK(search_chunk_size(with_large, 1200, 0, 100).waste == 0);
  CHECK(search_chunk_size(with_large, 1200, 0, 100).chunks == 2);
}

}  // namespace
