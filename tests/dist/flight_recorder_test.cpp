// The record of the last collectives, and that a failing job writes it.
#include "dist/flight_recorder.h"

#include <nlohmann/json.hpp>

#include <doctest/doctest.h>

#include "core/base/file.h"
#include "core/base/log.h"
#include "tests/support/muted_output.h"
#include "tests/support/temp_dir.h"

namespace {
using namespace castor;
using dist::FlightRecorder;
}  // namespace

TEST_CASE("the recorder keeps the last collectives with their states, the oldest first") {
  FlightRecorder recorder(3, 4);
  for (std::uint64_t i = 0; i < 6; ++i) {
    const auto ticket = recorder.add("world", cat("barrier ", i), i);
    if (i < 5) recorder.started(ticket);
    if (i < 4) recorder.ended(ticket, true);
  }
  recorder.ended(0, false);  // forgotten long ago
  const Json json = recorder.to_json();
  CHECK(json["rank"] == 3);
  CHECK(json["failure"].is_null());
  REQUIRE(json["collectives"].size() == 4);
  CHECK(json["collectives"][0]["sequence"] == 2);
  CHECK(json["collectives"][0]["state"] == "done");
  CHECK(json["collectives"][2]["state"] == "running");
  CHECK(json["collectives"][3]["state"] == "queued");
  CHECK(recorder.latest().find("barrier 5 (#5 of group world)") != std::string::npos);
}

TEST_CASE("a failure is dumped once, into the folder that was set") {
  const test::TempDir folder;
  LogOptions quiet;
  quiet.use_console = false;
  Logger log(quiet);
  const LogScope scope(log);
  FlightRecorder recorder(1);
  recorder.add("world", "all_reduce 'w' f32 x 8", 0);
  dist::Failure failure{2, "all_reduce", 0, true, "rank 2 did not come"};
  recorder.dump(failure);
  CHECK(list_directory(folder.path().string()).empty());
  recorder.set_folder(folder.path().string() + "/made");
  recorder.dump(failure);
  failure.text = "a later one";
  recorder.dump(failure);
  const Json json = read_json_file(folder.path().string() + "/made/flight_rank_1.json");
  CHECK(json["failure"]["text"] == "rank 2 did not come");
  CHECK(json["failure"]["late"] == true);
  CHECK(json["collectives"][0]["collective"] == "all_reduce 'w' f32 x 8");
}
