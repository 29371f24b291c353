// Replays the runs that record_schedulers.py made with mmengine's and ColossalAI's own schedulers.
//
// Every case goes the whole way: the options as a config writes them, parsed by the config's own code; the steps as a
// run takes them; every recorded value compared. Each case also runs a second time with a stop in the middle, a new
// set of schedulers and the saved state, and must then give the same bits as without the stop.
// Delicate: the recursions amplify the last bit, so the tolerance leaves no room for another order of operations.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "core/base/json.h"
#include "strategy/config/codec.h"
#include "strategy/config/text_source.h"
#include "strategy/scheduler.h"

namespace castor::strategy {
namespace {

constexpr double kTolerance = 1e-12;  // relative
constexpr double kZero = 1e-16;       // absolute, for the ends of cosines, where only rounding is left of the value

using Groups = std::vector<autograd::ParamGroup>;
using Schedulers = std::vector<std::unique_ptr<ParamScheduler>>;
using Make = std::function<std::unique_ptr<ParamScheduler>(const SchedulerContext&, const ConfigNode&)>;

// The recorded file: under CASTOR_TEST_DATA, or in the tree above the working directory.
std::string data_file(const std::string& name) {
  if (const char* folder = std::getenv("CASTOR_TEST_DATA")) return (std::filesystem::path(folder) / name).string();
  for (std::filesystem::path at = std::filesystem::current_path();; at = at.parent_path()) {
    const std::filesystem::path file = at / "tests" / "parity" / "data" / name;
    if (std::filesystem::exists(file)) return file.string();
    if (at == at.parent_path()) break;
  }
  FAIL("tests/parity/data/" << name << " is neither above the working directory nor under CASTOR_TEST_DATA");
  return {};
}

const std::map<std::string, Make>& makers() {
  static const std::map<std::string, Make> table = [] {
    std::map<std::string, Make> made;
    for_each_scheduler([&]<class S>(std::type_identity<S>, const std::string& name, std::string_view) {
      made[name] = [](const SchedulerContext& context, const ConfigNode& options) {
        const auto& codec = dynamic_cast<const StructCodec&>(codec_of<typename S::Config>());
        typename S::Config config;
        Diagnostics diagnostics;
        ParseContext parse{diagnostics};
        codec.parse_typed(options, "", parse, &config);
        diagnostics.throw_if_any(S::type_name());
        return std::make_unique<S>(context, config);
      };
    });
    return made;
  }();
  return table;
}

std::optional<std::int64_t> optional_count(const Json& object, const char* key) {
  return object.contains(key) ? std::optional(object.at(key).get<std::int64_t>()) : std::nullopt;
}

// One recorded case being played.
class Player {
 public:
  explicit Player(const Json& run) : run_(run) { set_up(); }

  // Plays all steps and returns what the recording holds: [record][watched name][group].
  // Replaces everything by a restored copy after `stop_after` calls, if that is not negative.
  std::vector<std::vector<std::vector<double>>> play(std::int64_t stop_after) {
    record();
    for (std::int64_t epoch = 0; epoch < run_.at("epochs"); ++epoch) {
      for (std::int64_t i = 0; i < run_.at("epoch_length"); ++i) {
        step(/*by_epoch=*/false);
        next(stop_after);
      }
      step(/*by_epoch=*/true);
      validate(epoch);
      next(stop_after);
    }
    return std::move(values_);
  }

  const Schedulers& schedulers() const { return schedulers_; }
  std::int64_t calls() const { return calls_; }

 private:
  void set_up() {
    groups_.clear();
    for (const Json& row : run_.at("groups")) {
      autograd::ParamGroup group;
      for (const auto& [name, value] : row.items()) group.values[name] = value.get<double>();
      groups_.push_back(std::move(group));
    }
    SchedulerContext context{groups_};
    context.epoch_length = run_.at("epoch_length").get<std::int64_t>();
    if (run_.contains("context")) {
      context.max_epochs = optional_count(run_.at("context"), "max_epochs");
      context.max_iters = optional_count(run_.at("context"), "max_iters");
    }
    schedulers_.clear();
    for (const Json& options : run_.at("schedulers")) {
      const ConfigNode node = read_json_text(dump_json(options), run_.at("name").get<std::string>());
      schedulers_.push_back(makers().at(options.at("type").get<std::string>())(context, node));
    }
  }

  void step(bool by_epoch) {
    for (const auto& scheduler : schedulers_) {
      if (scheduler->by_epoch() == by_epoch) scheduler->step();
    }
  }

  void validate(std::int64_t epoch) {
    if (!run_.contains("metrics") || run_.at("metrics").at(epoch).is_null()) return;
    Metrics metrics;
    for (const auto& [name, value] : run_.at("metrics").at(epoch).items()) metrics[name] = value.get<double>();
    for (const auto& scheduler : schedulers_) {
      if (scheduler->needs_metrics()) scheduler->step(metrics);
    }
  }

  void next(std::int64_t stop_after) {
    ++calls_;
    record();
    if (calls_ == stop_after) restart();
  }

  // A new process: groups and schedulers as configured, then the optimizer's values, then each scheduler's state, all
  // of it through text.
  void restart() {
    std::vector<std::string> states;
    for (const auto& scheduler : schedulers_) states.push_back(dump_json(scheduler->state_dict()));
    const Groups saved = groups_;
    set_up();
    groups_ = saved;
    for (std::size_t i = 0; i < states.size(); ++i) schedulers_[i]->load_state_dict(parse_json(states[i], "state"));
  }

  void record() {
    if (calls_ % run_.at("every").get<std::int64_t>() != 0) return;
    std::vector<std::vector<double>> row;
    for (const Json& name : run_.at("watch")) {
      std::vector<double>& list = row.emplace_back();
      for (const auto& group : groups_) list.push_back(group.values.find(name.get<std::string>())->second);
    }
    values_.push_back(std::move(row));
  }

  const Json& run_;
  Groups groups_;
  Schedulers schedulers_;
  std::int64_t calls_ = 0;
  std::vector<std::vector<std::vector<double>>> values_;
};

bool close(double ours, double theirs) { return std::abs(ours - theirs) <= kTolerance * std::abs(theirs) + kZero; }

bool close(const std::vector<double>& ours, const Json& theirs) {
  return ours.size() == theirs.size() && std::equal(ours.begin(), ours.end(), theirs.begin(),
                                                    [](double a, const Json& b) { return close(a, b.get<double>()); });
}

// Compares a state's entry with the recorded one.
void check_state(const Json& state, const std::string& key, const Json& theirs) {
  CAPTURE(key);
  const Json& ours = state.at(key);
  if (theirs.is_array()) {
    CHECK(close(ours.get<std::vector<double>>(), theirs));
  } else {
    CHECK(close(ours.get<double>(), theirs.get<double>()));
  }
}

const Json& recorded() {
  static const Json data = read_json_file(data_file("schedulers.json"));
  return data;
}

}  // namespace

TEST_CASE("every scheduler follows its peer to 1e-12 over whole runs") {
  for (const Json& run : recorded().at("cases")) {
    INFO(run.at("name").get<std::string>());
    Player player(run);
    const auto ours = player.play(-1);
    const Json& theirs = run.at("values");
    REQUIRE(ours.size() == theirs.size());
    for (std::size_t record = 0; record < ours.size(); ++record) {
      CAPTURE(record);
      for (std::size_t name = 0; name < ours[record].size(); ++name) {
        REQUIRE(close(ours[record][name], theirs[record][name]));
      }
    }
    const Json& final_states = run.at("final");
    for (std::size_t i = 0; i < final_states.size(); ++i) {
      const Json state = player.schedulers()[i]->state_dict();
      for (const auto& [key, value] : final_states[i].items()) check_state(state, key, value);
    }
  }
}

TEST_CASE("a schedule restored from its saved state gives the same bits as one that never stopped") {
  for (const Json& run : recorded().at("cases")) {
    INFO(run.at("name").get<std::string>());
    Player whole(run);
    const auto expected = whole.play(-1);
    Player stopped(run);
    CHECK(stopped.play(whole.calls() / 2) == expected);
  }
}

TEST_CASE("the recording has every scheduler type") {
  std::map<std::string, int> cases;
  for (const Json& run : recorded().at("cases")) {
    for (const Json& options : run.at("schedulers")) ++cases[options.at("type").get<std::string>()];
  }
  for (const auto& [name, make] : makers()) {
    INFO(name);
    CHECK(cases[name] > 0);
  }
}

}  // namespace castor::strategy
