// Jobs of several processes, run as threads that share nothing but what processes would: the store, TCP and shared
// memory. Every case of every transport; deaths of real processes are in fault_test.cpp.
#include "dist/job.h"

#include <atomic>
#include <exception>
#include <filesystem>
#include <thread>

#include <doctest/doctest.h>

#include "core/base/log.h"
#include "dist/flight_recorder.h"
#include "dist/store.h"
#include "tests/dist/collective_cases.h"
#include "tests/support/temp_dir.h"

namespace {

using namespace castor;
using namespace castor::dist;
using namespace std::chrono_literals;

/// Runs fn(job) on one thread a rank; a store of its own serves them. Rethrows the first exception.
void run_jobs(int world_size, const JobOptions& options, const std::function<void(Job&)>& fn) {
  RankInfo info;
  info.world_size = world_size;
  info.secret = JobSecret::random().text();
  const StoreServer server("127.0.0.1", 0, JobSecret(info.secret));
  info.store_port = server.port();
  info.holds_store = false;
  std::mutex mutex;
  std::exception_ptr first;
  std::vector<std::thread> threads;
  for (int rank = 0; rank < world_size; ++rank) {
    threads.emplace_back([&, rank] {
      LogOptions quiet;
      quiet.use_console = false;
      Logger log(quiet);
      const LogScope scope(log);
      try {
        RankInfo own = info;
        own.rank = rank;
        Job job(own, options);
        fn(job);
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (!first) first = std::current_exception();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  if (first) std::rethrow_exception(first);
}

JobOptions over(Transport transport) {
  JobOptions options;
  options.transport = transport;
  options.comm.timeout = 60s;
  return options;
}

void check_transport(Transport transport, const std::string& name) {
  for (const int world : {2, 3, 4}) {
    CAPTURE(world);
    run_jobs(world, over(transport), [&](Job& job) {
      CHECK(job.transport_name() == name);
      test::check_collectives(job.world());
      test::check_started_work(job.world());
      test::check_split(job.world());
      test::check_disagreement(job.world());
    });
  }
}

}  // namespace

TEST_CASE("ranks of one machine find that out, talk through shared memory and pass every case") {
  check_transport(Transport::kAuto, "shared memory");
}

TEST_CASE("ranks that talk over TCP pass every case") { check_transport(Transport::kTcp, "tcp"); }

TEST_CASE("a job of one rank needs nobody") {
  run_jobs(1, over(Transport::kAuto), [](Job& job) {
    CHECK(job.transport_name() == "none");
    test::check_collectives(job.world());
  });
}

TEST_CASE("shared memory leaves no name behind") {
  const auto names = [] {
    std::size_t count = 0;
    for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/dev/shm")) {
      count += entry.path().filename().string().find("castor ranks") != std::string::npos ? 1 : 0;
    }
    return count;
  };
  run_jobs(2, over(Transport::kSharedMemory), [&](Job& job) {
    job.world().barrier("mapped");
    CHECK(names() == 0);
  });
}

TEST_CASE("the rank that holds the store stays until the others have left") {
  RankInfo info;
  info.world_size = 2;
  info.secret = JobSecret::random().text();
  info.store_port = Listener("127.0.0.1", 0).port();
  std::atomic<bool> told{false};
  std::thread other([&, info]() mutable {
    info.rank = 1;
    info.holds_store = false;
    Job job(info, over(Transport::kTcp));
    std::this_thread::sleep_for(200ms);
    try {
      job.world().barrier("alone");
    } catch (const CommError& error) {
      CAPTURE(error.what());
      told = std::string(error.what()).find("rank 0 is gone") == 0;  // and not: the store is lost
    }
  });
  { const Job job(info, over(Transport::kTcp)); }
  other.join();
  CHECK(told);
}

TEST_CASE("a rank that comes too late is named by all who wait, over every transport, and the record is written") {
  for (const Transport transport : {Transport::kSharedMemory, Transport::kTcp}) {
    const test::TempDir folder;
    JobOptions options = over(transport);
    options.comm.timeout = 10s;
    options.record_folder = folder.path().string();
    std::atomic<int> late{0};
    run_jobs(3, options, [&](Job& job) {
      if (job.world().rank() == 1) return std::this_thread::sleep_for(900ms);
      Collective loss = Collective::all_reduce(Tensor::zeros({4}, DType::f32), "loss");
      loss.timeout = 300ms;
      try {
        job.world().run(loss);
      } catch (const CommTimeout& error) {
        CAPTURE(error.what());
        CHECK(error.rank == 1);
        CHECK(std::string(error.what()).find("rank 1 did not come to it within 300 ms; in all_reduce #1 'loss'") == 0);
        CHECK(std::string(error.what()).find("rank 1 last said it is after barrier 'join'") != std::string::npos);
        ++late;
      }
    });
    CHECK(late == 2);
    CHECK(std::filesystem::exists(folder.path() / "flight_rank_0.json"));
    CHECK(std::filesystem::exists(folder.path() / "flight_rank_2.json"));
  }
}

TEST_CASE("an error on one rank reaches all others through the store, whatever they wait for") {
  for (const Transport transport : {Transport::kSharedMemory, Transport::kTcp}) {
    std::atomic<int> told{0};
    CHECK_THROWS_AS(run_jobs(3, over(transport),
                             [&](Job& job) {
                               if (job.world().rank() == 2) throw std::out_of_range("no such sample");
                               try {
                                 job.world().barrier("wait");
                               } catch (const CommError& error) {
                                 CAPTURE(error.what());
                                 CHECK(error.rank == 2);
                                 ++told;
                               }
                             }),
                    std::out_of_range);
    CHECK(told == 2);
  }
}
