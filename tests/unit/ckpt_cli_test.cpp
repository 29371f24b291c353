// `castor ckpt` from its words to its exit code and what it prints.
#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "core/base/file.h"
#include "core/base/interrupt.h"
#include "core/base/json.h"
#include "strategy/cli/ckpt.h"
#include "strategy/registry.h"
#include "tests/support/checkpoint_model.h"
#include "tests/support/small_weights.h"
#include "tests/support/temp_dir.h"

namespace {

using namespace castor;
using namespace castor::strategy;

struct Result {
  int code = 0;
  std::string out;
  std::string err;
};

Result ckpt(std::vector<std::string> words) {
  words.insert(words.begin(), "ckpt");
  Registry registry;
  std::ostringstream out;
  std::ostringstream err;
  const int code = run_command_line("castor", words, {ckpt_command()}, registry, out, err);
  return {code, out.str(), err.str()};
}

// A folder in memory for one test.
class Folder {
 public:
  std::string path(const std::string& name = "") const { return (temp_.path() / name).string(); }

  test::CheckpointModel save(const std::string& name, int ranks, std::uint64_t number, std::uint64_t seed = 1) const {
    test::CheckpointModel model = test::CheckpointModel::random(seed, 400);
    model.save(path(name), ranks, number, seed + number, posix_file_system());
    return model;
  }

  /// Flips a bit of a file's last byte.
  void damage(const std::string& name) const {
    std::string bytes = read_text_file(path(name));
    bytes.back() = static_cast<char>(bytes.back() ^ 1);
    write_file_atomically(path(name), bytes);
  }

 private:
  test::TempDir temp_ = test::TempDir::in_memory();
};

void check_has(const std::string& text, std::string_view part) {
  INFO(text);
  CHECK_MESSAGE(text.find(part) != std::string::npos, part);
}

TEST_CASE("ckpt lists its commands, explains each, and names the nearest for a mistake") {
  const Result help = ckpt({"--help"});
  CHECK(help.code == 0);
  check_has(help.out, "usage: castor ckpt COMMAND");
  for (const char* name : {"inspect", "verify", "diff", "export", "import", "prune"}) {
    check_has(help.out, std::string("  ") + name);
    const Result one = ckpt({name, "--help"});
    CHECK(one.code == 0);
    check_has(one.out, std::string("usage: castor ckpt ") + name);
  }
  check_has(ckpt({"verify", "--help"}).out, "usage: castor ckpt verify PATH ... [options]");
  check_has(ckpt({"export", "--help"}).out, "f32|bf16|f16|keep");
  const Result none = ckpt({});
  CHECK(none.code == 2);
  check_has(none.err, "usage: castor ckpt COMMAND");
  const Result unknown = ckpt({"inspct"});
  CHECK(unknown.code == 2);
  check_has(unknown.err, "castor ckpt: unknown command inspct; did you mean \"inspect\"?");
  const Result missing = ckpt({"verify"});
  CHECK(missing.code == 2);
  check_has(missing.err, "castor ckpt verify: PATH is missing");
  CHECK(ckpt({"diff", "a"}).code == 2);
  check_has(ckpt({"diff", "a"}).err, "B is missing");
  CHECK(ckpt({"export", "a", "b", "--dtype", "f33"}).code == 2);
  CHECK(ckpt({"inspect", "/nowhere/at/all"}).code == 1);
}

TEST_CASE("inspect shows tensors, roles, files, ties and the state, for people and for programs") {
  const Folder folder;
  const test::CheckpointModel model = folder.save("run/iter_7", 2, 3);
  const Result text = ckpt({"inspect", folder.path("run/iter_7")});
  CHECK(text.code == 0);
  check_has(text.out, "checkpoint, save number 3");
  check_has(text.out, "blocks.0.weight");
  check_has(text.out, "exp_avg_sq_row f32[");
  check_has(text.out, "model-00001-of-00002.safetensors");
  check_has(text.out, "is step_scale");
  check_has(text.out, "iter  7");
  const Result json = ckpt({"inspect", folder.path("run/iter_7"), "--json"});
  CHECK(json.code == 0);
  const Json value = parse_json(json.out, "output");
  CHECK(value.at("save_number") == 3);
  CHECK(value.at("version") == 1);
  CHECK(value.at("state").at("iter") == 7);
  CHECK(value.at("aliases").at("tied") == "step_scale");
  REQUIRE(value.at("tensors").size() == model.entries.size());
  CHECK(value.at("roles").at("buffer").at("elements") == 1);
  std::size_t slices = 0;
  for (const Json& tensor : value.at("tensors")) {
    slices = std::max(slices, tensor.at("slices").get<std::size_t>());
    if (tensor.at("name") == "nothing") CHECK(tensor.at("shape") == Json::array({0, 7}));
  }
  CHECK(slices == 2);
}

TEST_CASE("inspect of a run's folder lists checkpoints and torn saves, and of a file its tensors") {
  const Folder folder;
  folder.save("run/iter_7", 1, 3);
  folder.save("run/iter_9", 1, 4);
  make_directories(folder.path("run/iter_11"));
  const Result text = ckpt({"inspect", folder.path("run")});
  CHECK(text.code == 0);
  CHECK(text.out.find("iter_9") < text.out.find("iter_7"));
  check_has(text.out, "iter_11");
  check_has(text.out, "its save was not completed");
  const Json json = parse_json(ckpt({"inspect", folder.path("run"), "--json"}).out, "output");
  CHECK(json.at("kind") == "run");
  CHECK(json.at("checkpoints").at(0).at("name") == "iter_9");
  CHECK(json.at("checkpoints").at(0).at("save_number") == 4);
  CHECK(json.at("torn").at(0).at("name") == "iter_11");

  write_file_atomically(folder.path("m.pth"), test::torch_floats({{"fc.weight", {{2}, {1, 2}}}}, "state_dict"));
  const Result torch = ckpt({"inspect", folder.path("m.pth")});
  CHECK(torch.code == 0);
  check_has(torch.out, "PyTorch");
  check_has(torch.out, "fc.weight");
  check_has(torch.out, "f32[2]");
  make_directories(folder.path("empty"));
  const Result empty = ckpt({"inspect", folder.path("empty")});
  CHECK(empty.code == 1);
  // A run of another program is no run with torn saves.
  make_directories(folder.path("mm/iter_3/model"));
  write_file_atomically(folder.path("mm/iter_3/model/pytorch_model.bin"), test::torch_floats({{"w", {{1}, {1}}}}));
  write_file_atomically(folder.path("mm/last_checkpoint"), "/elsewhere/mm/iter_3");
  check_has(ckpt({"inspect", folder.path("mm")}).out, "iter_3: PyTorch");
  check_has(empty.err, "found no weights");
}

TEST_CASE("inspect folds a long model into rows of alike tensors unless all are asked for") {
  const Folder folder;
  test::FloatsByName tensors = {{"head.weight", {{3}, {1, 2, 3}}}};
  for (int i = 0; i < 60; ++i) tensors.push_back({"blocks." + std::to_string(i) + ".fc1.weight", {{1}, {1}}});
  test::write_floats(folder.path("m.safetensors"), tensors, posix_file_system());
  const std::string folded = ckpt({"inspect", folder.path("m.safetensors")}).out;
  check_has(folded, "blocks.*.fc1.weight");
  check_has(folded, "(60 names)");
  check_has(folded, "head.weight");
  CHECK(folded.find("blocks.41.") == std::string::npos);
  const std::string all = ckpt({"inspect", folder.path("m.safetensors"), "--tensors"}).out;
  check_has(all, "blocks.41.fc1.weight");
  CHECK(all.find('*') == std::string::npos);
}

TEST_CASE("verify passes whole checkpoints and names file and tensor of a damaged one") {
  const Folder folder;
  folder.save("run/iter_1", 2, 1);
  folder.save("run/iter_2", 1, 2);
  make_directories(folder.path("run/iter_3"));
  const Result good = ckpt({"verify", folder.path("run")});
  CHECK(good.code == 0);
  check_has(good.out, "iter_1: ok");
  check_has(good.out, "iter_2: ok");
  check_has(good.out, "iter_3: skipped: has no manifest.json");
  check_has(good.out, "ok: 2 checkpoints, ");
  check_has(good.out, "GB/s");
  folder.damage("run/iter_2/optimizer.safetensors");
  const Result bad = ckpt({"verify", folder.path("run/iter_1"), folder.path("run/iter_2")});
  CHECK(bad.code == 1);
  check_has(bad.out, "iter_1: ok");
  check_has(bad.out, "iter_2: damaged");
  check_has(bad.out, "run/iter_2/optimizer.safetensors: tensor \"");
  check_has(bad.out, "have another digest");
  check_has(bad.out, "1 problem: 2 checkpoints");
  CHECK(ckpt({"verify", folder.path("run")}).code == 1);
  // A manifest that was edited, a file that is gone, a folder without any.
  folder.damage("run/iter_1/manifest.json");
  const Result edited = ckpt({"verify", folder.path("run"), folder.path("nothing")});
  CHECK(edited.code == 1);
  check_has(edited.out, "iter_1: damaged");
  check_has(edited.out, "no such folder");
  remove_file(folder.path("run/iter_2/model.safetensors"));
  check_has(ckpt({"verify", folder.path("run/iter_2")}).out, "model.safetensors: is missing");
  const Result none = ckpt({"verify", folder.path("run")});
  CHECK(none.code == 1);
  check_has(none.out, "holds no complete checkpoint");
}

TEST_CASE("diff says equal for the same model of other ranks, and what differs otherwise") {
  const Folder folder;
  test::CheckpointModel model = folder.save("one", 1, 1);
  folder.save("four", 4, 2);
  const Result equal = ckpt({"diff", folder.path("one"), folder.path("four")});
  CHECK(equal.code == 0);
  check_has(equal.out, "equal: " + std::to_string(model.entries.size()) + " tensors");
  const auto weight = std::find_if(model.entries.begin(), model.entries.end(),
                                   [](const auto& entry) { return entry.name == "step_scale"; });
  const float one = 1, two = 2;
  std::memcpy(weight->bytes.data(), &one, 4);
  model.save(folder.path("x"), 1, 1, 1, posix_file_system());
  std::memcpy(weight->bytes.data(), &two, 4);
  model.save(folder.path("y"), 3, 1, 1, posix_file_system());
  const Result differs = ckpt({"diff", folder.path("x"), folder.path("y")});
  CHECK(differs.code == 1);
  check_has(differs.out,
            "values: \"step_scale\" (param) f32[]: 1 of 1 elements differ, max absolute 1, relative 0.5, first at []");
  check_has(differs.out, "different: 1 tensors");
  CHECK(ckpt({"diff", folder.path("x"), folder.path("y"), "--role", "exp_avg"}).code == 0);
  CHECK(ckpt({"diff", folder.path("x"), folder.path("y"), "--tolerance", "0.5"}).code == 0);
  check_has(ckpt({"diff", folder.path("x"), folder.path("y"), "--tolerance", "0.5"}).out, "within 0.5");
  CHECK(ckpt({"diff", folder.path("x"), folder.path("y"), "--tolerance", "-1"}).code == 2);
  CHECK(ckpt({"diff", folder.path("x"), folder.path("gone")}).code == 1);
  CHECK(ckpt({"diff", folder.path("x"), folder.path("y"), "--role", "none"}).code == 1);
  const test::CheckpointModel other = test::CheckpointModel::random(2, 400);
  other.save(folder.path("z"), 1, 1, 1, posix_file_system());
  const Result others = ckpt({"diff", folder.path("x"), folder.path("z")});
  CHECK(others.code == 1);
  check_has(others.out, "shape: \"blocks.0.weight\" (param) is ");
}

TEST_CASE("export, then import, then diff: equal; the map goes there and back") {
  const Folder folder;
  folder.save("run/iter_5", 3, 1);
  write_file_atomically(folder.path("there.yaml"),
                        "- {regex: '^blocks\\.(\\d+)', to: 'layers.$1'}\n"
                        "- {name: count, to: steps}\n");
  write_file_atomically(folder.path("back.json"),
                        R"([{"regex": "^layers", "to": "blocks"}, {"name": "steps", "to": "count"}])");
  const Result exported = ckpt({"export", folder.path("run"), folder.path("hf"), "--max-shard-size", "2KiB", "--map",
                                folder.path("there.yaml"), "--from", "param"});
  INFO(exported.out, exported.err);
  CHECK(exported.code == 0);
  check_has(exported.out, "the newest of");
  check_has(exported.out, "not taken: ");
  check_has(exported.out, "of the role exp_avg");
  check_has(exported.out, "files and their index");
  check_has(exported.out, "tied: \"tied\" is \"step_scale\"");
  const std::string index = read_text_file(folder.path("hf/model.safetensors.index.json"));
  check_has(index, "\"layers.0.weight\": \"model-0");
  const Result imported = ckpt({"import", folder.path("hf"), folder.path("again"), "--map", folder.path("back.json")});
  CHECK(imported.code == 0);
  check_has(imported.out, "(safetensors) to ");
  const Result same = ckpt({"diff", folder.path("run/iter_5"), folder.path("again"), "--role", "param"});
  INFO(same.out);
  CHECK(same.code == 0);
  CHECK(ckpt({"diff", folder.path("again"), folder.path("hf")}).code == 1);  // other names
  CHECK(ckpt({"verify", folder.path("again")}).code == 0);
}

TEST_CASE("export refuses what it must not overwrite and what it does not understand") {
  const Folder folder;
  folder.save("c", 1, 1);
  const std::string c = folder.path("c"), out = folder.path("out");
  for (const char* size : {"5gb", "0", "-1", "1e9", "GB", "99999999999TB", "5 GB x"}) {
    CAPTURE(size);
    const Result bad = ckpt({"export", c, out, std::string("--max-shard-size=") + size});
    CHECK(bad.code == 2);
    check_has(bad.err, "--max-shard-size: expected a size as 5GB");
  }
  CHECK(!exists(out));
  CHECK(ckpt({"export", c, out, "--max-shard-size", "512 MiB", "--dtype", "bf16"}).code == 0);
  const Result full = ckpt({"export", c, out});
  CHECK(full.code == 1);
  check_has(full.err, "--force");
  CHECK(ckpt({"export", c, out, "--force"}).code == 0);
  CHECK(ckpt({"export", c, c, "--force"}).code == 1);
  CHECK(ckpt({"verify", c}).code == 0);
  const Result foreign = ckpt({"export", out, folder.path("more")});
  CHECK(foreign.code == 1);
  check_has(foreign.err, "expected a checkpoint of Castor, this is safetensors");

  const auto map_error = [&](const std::string& text) {
    write_file_atomically(folder.path("map.yaml"), text);
    const Result result = ckpt({"export", c, folder.path("mapped"), "--map", folder.path("map.yaml")});
    CHECK(result.code == 2);
    CHECK(!exists(folder.path("mapped")));
    return result.err;
  };
  check_has(map_error("3"), "expected a map of names, or a list of rules");
  check_has(map_error("\n- {regex: '(', to: x}"), "map.yaml:2: \"(\" is no regular expression");
  check_has(map_error("- {regexp: a, to: x}"), "map.yaml:1: expected {name: OLD, to: NEW}");
  check_has(map_error("- {name: a, regex: b, to: x}"), "map.yaml:1: expected");
  check_has(map_error("- {name: a}"), "map.yaml:1: expected");
  check_has(map_error("a: [1]"), "expected a name, or null");
  check_has(map_error("count: step_scale"), "would both be called \"step_scale\"");
  write_file_atomically(folder.path("map.yaml"), "count: null\ntied: null\n");
  const Result dropped = ckpt({"export", c, folder.path("mapped"), "--map", folder.path("map.yaml")});
  CHECK(dropped.code == 0);
  check_has(dropped.out, "left out by the map: 2 tensors, as \"count\"");
}

TEST_CASE("import takes a PyTorch file, says what it did not take, and refuses what runs code") {
  const Folder folder;
  const test::FloatsByName weights = {{"module.fc.weight", {{2, 2}, {1, 2, 3, 70000}}},
                                      {"module.bn.num_batches_tracked", {{1}, {4}}}};
  write_file_atomically(folder.path("m.pth"),
                        test::torch_floats(weights, "state_dict", {{"module.tied", "module.fc.weight"}}));
  write_file_atomically(folder.path("map.yaml"), "- {regex: '^module\\.', to: ''}\n");
  const Result bad_key = ckpt({"import", folder.path("m.pth"), folder.path("c"), "--key", "model"});
  CHECK(bad_key.code == 1);
  check_has(bad_key.err, "\"state_dict\"");
  CHECK(!exists(folder.path("c")));
  const Result good = ckpt({"import", folder.path("m.pth"), folder.path("c"), "--map", folder.path("map.yaml"),
                            "--dtype", "f16", "--key", "state_dict"});
  INFO(good.out, good.err);
  CHECK(good.code == 0);
  check_has(good.out, "took the dict \"state_dict\"");
  check_has(good.out, "\"epoch\", \"optimizer\"");
  check_has(good.out, "warning: 1 finite values are too large");
  check_has(good.out, "tied: \"tied\" is \"fc.weight\"");
  check_has(good.out, "imported 2 tensors");
  const Json json = parse_json(ckpt({"inspect", folder.path("c"), "--json"}).out, "output");
  CHECK(json.at("save_number") == 1);
  CHECK(json.at("state").is_null());
  CHECK(json.at("roles").at("buffer").at("tensors") == 1);
  CHECK(json.at("tensors").at(1).at("name") == "fc.weight");
  CHECK(json.at("tensors").at(1).at("dtype") == "f16");
  const Result again = ckpt({"import", folder.path("m.pth"), folder.path("c")});
  CHECK(again.code == 1);
  check_has(again.err, "--force");
  CHECK(ckpt({"import", folder.path("m.pth"), folder.path("c"), "--force"}).code == 0);
  CHECK(ckpt({"diff", folder.path("m.pth"), folder.path("c")}).code == 0);
  const Result ours = ckpt({"import", folder.path("c"), folder.path("d")});
  CHECK(ours.code == 1);
  check_has(ours.err, "a checkpoint of Castor already");
  using namespace test::pickle;
  write_file_atomically(folder.path("evil.pth"),
                        checkpoint(whole(call(global("os", "system"), tuple({text("id")})))).bytes);
  const Result evil = ckpt({"import", folder.path("evil.pth"), folder.path("e")});
  CHECK(evil.code == 1);
  check_has(evil.err, "os.system");
  CHECK(!exists(folder.path("e")));
}

TEST_CASE("prune keeps the newest, shows what it would do, and asks what to keep") {
  const Folder folder;
  for (const int number : {10, 20, 30, 40}) {
    folder.save("run/iter_" + std::to_string(number), 1, static_cast<std::uint64_t>(number));
  }
  const auto left = [&] {
    std::vector<std::string> names;
    for (const DirectoryEntry& entry : list_directory(folder.path("run"))) names.push_back(entry.name);
    return names;
  };
  using Names = std::vector<std::string>;
  const Names all = {"iter_10", "iter_20", "iter_30", "iter_40"};
  const Result unsaid = ckpt({"prune", folder.path("run")});
  CHECK(unsaid.code == 2);
  check_has(unsaid.err, "--keep-last K");
  CHECK(ckpt({"prune", folder.path("run"), "--keep-last", "0"}).code == 2);
  CHECK(ckpt({"prune", folder.path("run"), "--keep-last", "x"}).code == 2);
  const Result dry = ckpt({"prune", folder.path("run"), "--keep-last", "1", "--dry-run"});
  CHECK(dry.code == 0);
  check_has(dry.out, "would remove 3 of 4 folders");
  CHECK(left() == all);
  const Result every = ckpt({"prune", folder.path("run"), "--keep-last", "1", "--keep-every", "20"});
  CHECK(every.code == 0);
  check_has(every.out, "removed " + folder.path("run/iter_10"));
  check_has(every.out, "removed 2 of 4 folders");
  CHECK(left() == Names{"iter_20", "iter_40"});
  // What last_checkpoint names stays, torn saves go only if asked.
  write_file_atomically(folder.path("run/last_checkpoint"), "iter_20");
  make_directories(folder.path("run/iter_50"));
  write_file_atomically(folder.path("run/iter_50/model.safetensors"), std::string(2048, 'x'));
  const Result last = ckpt({"prune", folder.path("run"), "--keep-last", "1"});
  CHECK(last.code == 0);
  check_has(last.out, "last_checkpoint names it");
  check_has(last.out, "--torn removes it");
  CHECK(left() == Names{"iter_20", "iter_40", "iter_50", "last_checkpoint"});
  const Result torn = ckpt({"prune", folder.path("run"), "--torn"});
  CHECK(torn.code == 0);
  check_has(torn.out, "2.00 KiB");
  CHECK(left() == Names{"iter_20", "iter_40", "last_checkpoint"});
  folder.save("run/best", 1, 1);
  const Result named = ckpt({"prune", folder.path("run"), "--keep-last", "1"});
  CHECK(named.code == 0);
  check_has(named.out, "kept best: not called iter_N or epoch_N");
  CHECK(left() == Names{"best", "iter_20", "iter_40", "last_checkpoint"});
  // Newer than all, it counts for nothing in what is kept.
  folder.save("run/iter_30", 1, 35);
  folder.save("run/newest_of_mine", 1, 99);
  CHECK(ckpt({"prune", folder.path("run"), "--keep-last", "2"}).code == 0);
  CHECK(left() == Names{"best", "iter_20", "iter_30", "iter_40", "last_checkpoint", "newest_of_mine"});
  const Result none = ckpt({"prune", folder.path("run/iter_40"), "--keep-last", "1"});
  CHECK(none.code == 2);
  check_has(none.err, "name a run's folder");
}

TEST_CASE("a stop ends a long command with the stop's exit code and no half-written result") {
  const Folder folder;
  folder.save("c", 1, 1);
  request_stop(2);
  const Result stopped = ckpt({"export", folder.path("c"), folder.path("out")});
  clear_stop_request();
  CHECK(stopped.code == 130);
  CHECK(!exists(folder.path("out")));
}

}  // namespace
