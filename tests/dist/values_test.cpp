// Texts, numbers and results between ranks, and that a process alone needs no other code.
#include "dist/values.h"

#include <doctest/doctest.h>

#include "core/base/error.h"
#include "dist/comm_thread.h"

namespace castor::dist {
namespace {

TEST_CASE("every rank hears every rank's text, whatever its length, and rank 0's or another's alone") {
  run_ranks(3, [](Comm& comm) {
    const std::string own(static_cast<std::size_t>(comm.rank()) * 1000, static_cast<char>('a' + comm.rank()));
    const std::vector<std::string> all = all_gather_object(&comm, own);
    CHECK(all == std::vector<std::string>{"", std::string(1000, 'b'), std::string(2000, 'c')});
    CHECK(broadcast_object(&comm, own, 2) == std::string(2000, 'c'));
    CHECK(broadcast_object(&comm, own).empty());
    CHECK(sync_random_seed(&comm, 40 + static_cast<std::uint64_t>(comm.rank())) == 40);
    int calls = 0;
    master_only(&comm, [&] { ++calls; });
    CHECK(calls == (comm.rank() == 0 ? 1 : 0));
    barrier(&comm);
  });
}

TEST_CASE("numbers by name are added or averaged over ranks") {
  run_ranks(4, [](Comm& comm) {
    const std::map<std::string, double> own{{"loss", comm.rank()}, {"acc", 10}};
    CHECK(all_reduce_dict(&comm, own) == std::map<std::string, double>{{"loss", 6}, {"acc", 40}});
    CHECK(all_reduce_dict(&comm, own, true) == std::map<std::string, double>{{"loss", 1.5}, {"acc", 10}});
  });
}

TEST_CASE("results of a data set come in its order, without what was repeated to fill the last round") {
  run_ranks(3, [](Comm& comm) {
    const std::vector<std::vector<std::string>> parts{{"0", "3", "6"}, {"1", "4", "again"}, {"2", "", "again"}};
    const auto& own = parts[static_cast<std::size_t>(comm.rank())];
    CHECK(collect_results(&comm, own, 7) == std::vector<std::string>{"0", "1", "2", "3", "4", "", "6"});
    CHECK_THROWS_WITH_AS(collect_results(&comm, own, 10), doctest::Contains("should have number 3 and has 3"),
                         InternalError);
  });
}

TEST_CASE("a process alone is a group of itself") {
  CHECK(all_gather_object(nullptr, "x") == std::vector<std::string>{"x"});
  CHECK(broadcast_object(nullptr, "x") == "x");
  CHECK(all_reduce_dict(nullptr, {{"a", 2}}, true) == std::map<std::string, double>{{"a", 2}});
  CHECK(sync_random_seed(nullptr, 5) == 5);
  CHECK(collect_results(nullptr, {"a", "b", "c"}, 2) == std::vector<std::string>{"a", "b"});
  CHECK(world_size_of(nullptr) == 1);
  CHECK(is_main(nullptr));
  barrier(nullptr);
}

}  // namespace
}  // namespace castor::dist
