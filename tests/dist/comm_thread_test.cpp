// Collectives between ranks that are threads: every case of every transport, and the faults that need no process.
#include "dist/comm_thread.h"

#include <atomic>
#include <stdexcept>
#include <thread>

#include <doctest/doctest.h>

#include "tests/dist/collective_cases.h"

namespace {

using namespace castor;
using dist::Collective;
using dist::Comm;
using dist::CommOptions;
using dist::run_ranks;

CommOptions within(int milliseconds) {
  CommOptions options;
  options.timeout = std::chrono::milliseconds(milliseconds);
  return options;
}

}  // namespace

TEST_CASE("collectives of threads give the sums in order of ranks, for any number of ranks") {
  for (const int world : {1, 2, 3, 4}) {
    CAPTURE(world);
    run_ranks(world, test::check_collectives, within(60'000));
  }
}

TEST_CASE("started collectives run in order beside blocking ones") { run_ranks(3, test::check_started_work); }

TEST_CASE("split groups work at once with the whole") {
  run_ranks(4, test::check_split, within(60'000));
  run_ranks(3, test::check_split, within(60'000));
}

TEST_CASE("ranks that call different sizes all learn who calls what") {
  run_ranks(3, test::check_disagreement, within(60'000));
  run_ranks(4, test::check_disagreement, within(60'000));
}

TEST_CASE("ranks that call different collectives, roots or names all fail") {
  const auto fails = [](const std::function<void(Comm&)>& call, const std::string& part) {
    std::atomic<int> failed{0};
    run_ranks(
        3,
        [&](Comm& comm) {
          try {
            call(comm);
            comm.barrier("whoever was not concerned learns it here");
          } catch (const CommError& error) {
            CAPTURE(error.what());
            CHECK(std::string(error.what()).find(part) != std::string::npos);
            ++failed;
          }
        },
        within(20'000));
    CHECK(failed == 3);
  };
  const Tensor unused;
  fails(
      [](Comm& comm) {
        const Tensor x = Tensor::zeros({8}, DType::f32);
        if (comm.rank() == 1) return comm.barrier("x");
        comm.all_reduce(x, "x");
      },
      "rank 1 calls barrier #0 'x'");
  fails([](Comm& comm) { comm.broadcast(Tensor::zeros({8}, DType::f32), comm.rank() == 2 ? 1 : 0, "x"); },
        "rank 2 calls broadcast #0 'x' f32 x 8 from 1");
  fails([](Comm& comm) { comm.all_reduce(Tensor::zeros({8}, DType::f32), comm.rank() == 0 ? "a" : "b"); },
        "rank 0 calls all_reduce #0 'a'");
  fails([](Comm& comm) { comm.all_reduce(Tensor::zeros({8}, comm.rank() == 0 ? DType::f16 : DType::bf16), "x"); },
        "rank 0 calls all_reduce #0 'x' f16");
  fails(
      [](Comm& comm) {
        std::vector<dist::Buffer> in;
        std::vector<dist::Buffer> out;
        for (int r = 0; r < 3; ++r) {
          in.emplace_back(Tensor::zeros({comm.rank() == 1 && r == 2 ? 5 : 4}, DType::f32));
          out.emplace_back(Tensor::zeros({4}, DType::f32));
        }
        comm.run(Collective::all_to_all(in, out, "x"));
      },
      "rank 1 sends 20 bytes to rank 2, which expects 16");
  fails(
      [](Comm& comm) {
        if (comm.rank() == 0) return comm.recv(Tensor::zeros({8}, DType::f32), 1, "x");
        comm.barrier("y");
      },
      "rank 1 of group world, which calls barrier #0 'y'");
}

TEST_CASE("a rank that never comes is named after the deadline, and only then") {
  std::atomic<int> late{0};
  run_ranks(
      3,
      [&](Comm& comm) {
        comm.barrier("all here");
        if (comm.rank() == 2)
          std::this_thread::sleep_for(std::chrono::milliseconds(100));  // slow, but below the deadline
        comm.barrier("still here");
        if (comm.rank() == 2) return std::this_thread::sleep_for(std::chrono::milliseconds(900));
        try {
          comm.all_reduce(Tensor::zeros({8}, DType::f32), "loss");
        } catch (const CommTimeout& error) {
          CAPTURE(error.what());
          CHECK(error.rank == 2);
          CHECK(error.op == "all_reduce");
          CHECK(error.sequence == 2);
          CHECK(std::string(error.what()).find("rank 2 did not come to it") != std::string::npos);
          CHECK(std::string(error.what()).find("'loss'") != std::string::npos);
          ++late;
        }
      },
      within(400));
  CHECK(late == 2);
}

TEST_CASE("a rank that ends early is named at once by those who wait for it") {
  std::atomic<int> failed{0};
  run_ranks(3, [&](Comm& comm) {
    const Tensor x = Tensor::zeros({8}, DType::f32);
    if (comm.rank() == 1) return;
    try {
      comm.all_reduce(x, "loss");
    } catch (const CommError& error) {
      CHECK(error.rank == 1);
      CHECK(std::string(error.what()).find("rank 1 is gone: it has left the job; in all_reduce #0 'loss'") == 0);
      ++failed;
    }
  });
  CHECK(failed == 2);
}

TEST_CASE("an exception on one rank ends the others' waits and is the one rethrown") {
  std::atomic<int> ended{0};
  CHECK_THROWS_WITH_AS(
      run_ranks(3,
                [&](Comm& comm) {
                  if (comm.rank() == 1) throw std::out_of_range("no such sample");
                  try {
                    comm.barrier("wait");
                  } catch (const CommError& error) {
                    CAPTURE(error.what());
                    CHECK(std::string(error.what()).find("rank 1 ended with an error: no such sample") !=
                          std::string::npos);
                    CHECK(error.rank == 1);
                    ++ended;
                    throw;
                  }
                }),
      "no such sample", std::out_of_range);
  CHECK(ended == 2);
}

TEST_CASE("abort and a group given up with work under way fail the job at once") {
  CHECK_THROWS_AS(run_ranks(2,
                            [&](Comm& comm) {
                              if (comm.rank() == 0) return comm.abort("enough");
                              comm.barrier("wait");
                            }),
                  CommError);
  CHECK_THROWS_AS(run_ranks(2,
                            [&](Comm& comm) {
                              const Tensor x = Tensor::zeros({4}, DType::f32);
                              if (comm.rank() == 0) {
                                static_cast<void>(comm.start(Collective::all_reduce(x, "x")));
                                return;
                              }
                              std::this_thread::sleep_for(std::chrono::milliseconds(20));
                              comm.barrier("other");
                            }),
                  CommError);
}

TEST_CASE("a wait with a limit throws when work is not done, and the work goes on") {
  run_ranks(
      2,
      [](Comm& comm) {
        const Tensor x = Tensor::zeros({4}, DType::f32);
        if (comm.rank() == 0) {
          const dist::Work work = comm.start(Collective::all_reduce(x, "x"));
          CHECK_THROWS_AS(work.wait(std::chrono::milliseconds(1)), CommTimeout);
          comm.send(x, 1, "go");
          return work.wait();
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(30));
        comm.all_reduce(x, "x");
        comm.recv(x, 0, "go");
      },
      within(20'000));
}

TEST_CASE("buffers that do not fit a collective are refused before anything is sent") {
  run_ranks(2, [](Comm& comm) {
    const Tensor x = Tensor::zeros({4, 6}, DType::f32);
    CHECK_THROWS_AS(comm.all_reduce(x.transpose(0, 1)), ShapeError);
    CHECK_THROWS_AS(comm.all_gather(x, Tensor::zeros({47}, DType::f32)), ShapeError);
    CHECK_THROWS_AS(comm.all_gather(x, Tensor::zeros({50}, DType::f32)), ShapeError);
    CHECK_THROWS_AS(comm.all_gather(x, Tensor::zeros({48}, DType::f16)), DTypeError);
    CHECK_THROWS_AS(comm.reduce_scatter(x, Tensor::zeros({12}, DType::f16)), DTypeError);
    CHECK_THROWS_AS(comm.all_reduce(Tensor::zeros({2}, DType::boolean)), DTypeError);
    CHECK_THROWS_AS(comm.broadcast(x, 2), ShapeError);
    CHECK_THROWS_AS(comm.send(x, comm.rank()), ShapeError);
    CHECK_THROWS_AS(comm.all_reduce(Tensor()), ShapeError);
    CHECK_THROWS_AS(comm.all_reduce(Tensor::empty({2}, DType::f32, make_meta({}))), DeviceError);
    comm.barrier("nothing was sent");
  });
}
