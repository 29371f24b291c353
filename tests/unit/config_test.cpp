// Config text and the describe protocol: what values mean, and that every mistake is named with its place.
// Delicate: several cases feed text that must end in a ConfigError and nothing else; they run in milliseconds or the
// bounds do not work.
#include "strategy/config.h"

#include <array>
#include <cmath>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <variant>
#include <vector>

#include <doctest/doctest.h>

#include "core/base/error.h"
#include "strategy/config/scalar.h"
#include "strategy/config/text_source.h"
#include "tests/support/long_run.h"

namespace {

using namespace castor;
using namespace castor::strategy;

template <class Call>
std::string config_error(Call&& call) {
  try {
    call();
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "no ConfigError";
}

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

struct Scaler {
  double initial_scale = 65536.0;
  int hysteresis = 2;
};
template <class V>
void describe(V& v, Scaler& c) {
  v.field("initial_scale", c.initial_scale, "first loss scale", more_than(0));
  v.field("hysteresis", c.hysteresis, "overflows until it shrinks", at_least(1));
}

struct Loop {
  bool by_epoch = true;
  std::int64_t max_epochs = 0;
  std::optional<int> max_iters;
  std::uint8_t level = 3;
  float ratio = 0.1f;
  double limit = 1.0;
  std::string policy = "static";
  std::vector<double> betas = {0.9, 0.999};
  std::array<int, 2> size = {28, 28};
  std::map<std::string, double> lr_mult;
  std::variant<bool, Scaler> scaler = false;
  Scaler nested;
  std::vector<Scaler> stages;
  ConfigNode anything;
};
template <class V>
void describe(V& v, Loop& c) {
  v.field("by_epoch", c.by_epoch, "count epochs, not iterations");
  v.field("max_epochs", c.max_epochs, "epochs to train", required, at_least(1));
  v.field("max_iters", c.max_iters, "iterations to train", at_least(1));
  v.field("level", c.level, "a small number");
  v.field("ratio", c.ratio, "a share", at_least(0), at_most(1));
  v.field("limit", c.limit, "a bound", allow_infinite());
  v.field("policy", c.policy, "placement", one_of({"static", "auto"}));
  v.field("betas", c.betas, "moment decays", at_least(0), less_than(1), non_empty());
  v.field("size", c.size, "image size in pixels", at_least(1));
  v.field("lr_mult", c.lr_mult, "factor by name", more_than(0));
  v.field("scaler", c.scaler, "loss scaling: on, off or options");
  v.field("nested", c.nested, "options of the scaler");
  v.field("stages", c.stages, "one scaler a stage");
  v.field("anything", c.anything, "kept as it is");
  v.refuse("visualizer", "not in this version: nothing is drawn");
  v.retired("cudnn_benchmark", false, "cuDNN picks nothing here");
  v.check(
      "max_iters", [&] { return !c.max_iters || *c.max_iters >= c.max_epochs; }, "must reach max_epochs");
  v.check(
      "ratio", [&] { return c.ratio < 0.9f || c.by_epoch; }, "is too much without by_epoch");
}

Loop parse_loop(const std::string& yaml) { return parse_config<Loop>(read_yaml_text(yaml, "t.yaml"), "t.yaml"); }

TEST_CASE("plain scalars follow YAML 1.2's core schema") {
  CHECK(resolve_plain_scalar("true").as_bool());
  CHECK(resolve_plain_scalar("~").is_null());
  CHECK(resolve_plain_scalar("").is_null());
  CHECK(resolve_plain_scalar("-17").as_int() == -17);
  CHECK(resolve_plain_scalar("+3").as_int() == 3);
  CHECK(resolve_plain_scalar("010").as_int() == 10);
  CHECK(resolve_plain_scalar("0x1F").as_int() == 31);
  CHECK(resolve_plain_scalar("0o17").as_int() == 15);
  CHECK(resolve_plain_scalar("-9223372036854775808").as_int() == INT64_MIN);
  CHECK(resolve_plain_scalar("1e-3").as_float() == 1e-3);
  CHECK(resolve_plain_scalar("-.5").as_float() == -0.5);
  CHECK(resolve_plain_scalar("1.").as_float() == 1.0);
  CHECK(resolve_plain_scalar("-.inf").as_float() == -std::numeric_limits<double>::infinity());
  for (const char* text : {"no", "yes", "on", "1_000", "1e", "e3", ".", "-", "+-5", "0x", "0xG", "inf", "nan", "1.2.3",
                           "12px", "-.infx", "2026-01-01", "1:30"}) {
    CAPTURE(text);
    CHECK(resolve_plain_scalar(text).is_string());
  }
  CHECK(has(config_error([] { resolve_plain_scalar("9223372036854775808"); }), "64 bits"));
  CHECK(has(config_error([] { resolve_plain_scalar("1e999"); }), "range of a double"));
}

TEST_CASE("quoted scalars stay strings and keys keep their lines") {
  const ConfigNode tree = read_yaml_text("a: '1'\nb: \"true\"\nc:\n  d: [x, 2, null]\n", "t.yaml");
  CHECK(tree.find("a")->as_string() == "1");
  CHECK(tree.find("b")->as_string() == "true");
  CHECK(tree.find_member("c")->mark.text() == "t.yaml:3");
  CHECK(tree.find("c")->find("d")->as_list()[1].as_int() == 2);
  CHECK(tree.find("c")->find("d")->mark().text() == "t.yaml:4");
}

TEST_CASE("aliases and merge keys copy values") {
  const ConfigNode tree = read_yaml_text("base: &b {x: 1, y: 2}\nuse: {<<: *b, y: 3}\nlist: [*b, *b]\n", "t.yaml");
  CHECK(tree.find("use")->find("x")->as_int() == 1);
  CHECK(tree.find("use")->find("y")->as_int() == 3);
  CHECK(tree.find("list")->as_list()[1].find("y")->as_int() == 2);
}

TEST_CASE("JSON and YAML of one config give one tree") {
  const ConfigNode yaml = read_yaml_text("a: 1\nb: [1.5, null, text]\nc: {d: true}\n", "t.yaml");
  const ConfigNode json = read_json_text("{\"a\":1,\n\"b\":[1.5,null,\"text\"],\"c\":{\"d\":true}}", "t.json");
  CHECK(yaml.same_value(json));
  CHECK(json.find_member("b")->mark.text() == "t.json:2");
}

TEST_CASE("hostile text ends in a ConfigError that names file and line") {
  const auto yaml = [](const std::string& text) { return config_error([&] { read_yaml_text(text, "bad.yaml"); }); };
  CHECK(has(yaml("a: 1\na: 2\n"), "bad.yaml:2: key \"a\" appears twice"));
  CHECK(has(yaml("a: [1, 2\n"), "bad.yaml"));
  CHECK(has(yaml("a: !!python/object:os.system x\n"), "tag"));
  CHECK(has(yaml("a: *nowhere\n"), "bad.yaml:1"));
  CHECK(has(yaml("a: &x [*x]\n"), "contains it"));
  CHECK(has(yaml("? [a]\n: 1\n"), "key must be a scalar"));
  CHECK(has(yaml("a: 1\n---\nb: 2\n"), "one YAML document"));
  CHECK(has(yaml("a: \xff\xfe\n"), "not UTF-8"));
  CHECK(has(yaml(std::string("a: 1\nb: \0\n", 10)), "bad.yaml:2: a NUL byte"));
  CHECK(has(yaml(std::string(100, '[') + std::string(100, ']')), "nest deeper"));
  CHECK(has(yaml(std::string(100000, '[')), "bad.yaml:1"));
  std::string deep_blocks;
  for (int i = 0; i < 5000; ++i) deep_blocks += "- ";
  CHECK(has(yaml(deep_blocks), "nest deeper"));
  std::string deep_maps;
  for (int i = 0; i < 500; ++i) deep_maps += "{a: ";
  CHECK(has(yaml(deep_maps + std::string(500, '}')), "nest deeper"));
  CHECK(has(yaml(deep_maps), "bad.yaml:1"));
  std::string bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n";
  for (int i = 1; i < 30; ++i) {
    const std::string below = "*a" + std::to_string(i - 1);
    bomb += cat("a", i, ": &a", i, " [", below, ", ", below, ", ", below, ", ", below, ", ", below, "]\n");
  }
  CHECK(has(yaml(bomb), "values"));
  CHECK(has(yaml(std::string(5 << 20, 'a')), "bytes expected"));
  const auto json = [](const std::string& text) { return config_error([&] { read_json_text(text, "bad.json"); }); };
  CHECK(has(json("{\"a\": 1,\n \"a\": 2}"), "bad.json:2"));
  CHECK(has(json("{\"a\": 1,}"), "bad.json:1"));
  CHECK(has(json("{\"a\": 18446744073709551615}"), "64 signed bits"));
  CHECK(has(json("{\"a\": 99999999999999999999}"), "64 bits"));
  CHECK(has(json(std::string(1000, '[')), "nest deeper"));
  CHECK(has(json(""), "ends too early"));
}

TEST_CASE("random edits of a config never end in anything but a ConfigError") {
  const std::string good =
      "a: &x {b: [1, 2.5, 'c'], d: \"e\\n\"}\n# note\nf: {<<: *x, g: |\n  text\n  more\n  }\nh: ~\n? i\n: >-\n  j\n";
  const int rounds = test::long_run() ? 200000 : 3000;
  int refused = 0;
  std::mt19937 engine(7);
  for (int round = 0; round < rounds; ++round) {
    std::string text = good;
    for (int edit = 0; edit < 3; ++edit) {
      const std::array<std::size_t, 3> random = {engine() >> 8, engine() >> 8, engine() >> 8};
      const std::size_t at = random[0] % text.size();
      constexpr std::string_view kBytes = "[]{}:,-?&*!|>'\"%@` \n\t#<~\\\x01\x80\xc3x0";
      if (random[1] % 3 == 0) {
        text.erase(at, 1 + random[2] % 5);
      } else if (random[1] % 3 == 1) {
        text.insert(at, 1, kBytes[random[2] % kBytes.size()]);
      } else {
        text[at] = kBytes[random[2] % kBytes.size()];
      }
      if (text.empty()) break;
    }
    try {
      const ConfigNode tree = read_yaml_text(text, "fuzz.yaml");
      const ConfigNode again = read_yaml_text(to_yaml(tree), "again.yaml");
      CHECK_MESSAGE(again.same_value(tree), to_yaml(tree));
    } catch (const ConfigError&) {
      ++refused;
    }
  }
  CHECK(refused > 0);
  CHECK(refused < rounds);
}

TEST_CASE("the YAML writer's text reads back to the same values") {
  ConfigNode tree = ConfigNode::map();
  tree.set("plain", "samples/gpt.yaml");
  tree.set("looks like a number", "1e-3");
  tree.set("true", "true");
  tree.set("odd", "a: b # c\n\ttab \"quote\" \\ é \x7f");
  tree.set("empty", "");
  tree.set("float", 1e-5);
  tree.set("whole", 3.0);
  tree.set("huge", -std::numeric_limits<double>::infinity());
  tree.set("none", ConfigNode());
  tree.set("empty_list", ConfigNode::list());
  tree.set("empty_map", ConfigNode::map());
  ConfigNode inner = ConfigNode::map();
  inner.set("x", 1);
  inner.set("deep", ConfigNode(ConfigNode::List{ConfigNode(ConfigNode::List{1, 2}), inner, "s"}));
  tree.set("list", ConfigNode(ConfigNode::List{inner, ConfigNode(ConfigNode::List{inner}), 4}));
  const ConfigNode again = read_yaml_text(to_yaml(tree), "again.yaml");
  CHECK_MESSAGE(again.same_value(tree), to_yaml(tree));
  CHECK(again.find("whole")->is_float());
}

TEST_CASE("a struct is read with its defaults, and what was left out keeps them") {
  const Loop loop = parse_loop(
      "max_epochs: 1e1\nmax_iters: 20\nlevel: 255\nlimit: .inf\nlr_mult: {head: 2, stem: 0.5}\nscaler: {hysteresis: "
      "4}\n"
      "nested: {initial_scale: 8}\nstages: [{}, {hysteresis: 7}]\nanything: {a: [1]}\ncudnn_benchmark: false\n"
      "visualizer: null\nsize: [32, 16]\n");
  CHECK(loop.max_epochs == 10);
  CHECK(loop.max_iters == 20);
  CHECK(loop.level == 255);
  CHECK(std::isinf(loop.limit));
  CHECK(loop.lr_mult.at("head") == 2.0);
  CHECK(std::get<Scaler>(loop.scaler).hysteresis == 4);
  CHECK(std::get<Scaler>(loop.scaler).initial_scale == 65536.0);
  CHECK(loop.nested.initial_scale == 8.0);
  CHECK(loop.stages.size() == 2);
  CHECK(loop.stages[1].hysteresis == 7);
  CHECK(loop.size == std::array<int, 2>{32, 16});
  CHECK(loop.betas == std::vector<double>{0.9, 0.999});
  CHECK(loop.anything.find("a")->as_list().size() == 1);
  CHECK(std::get<bool>(parse_loop("max_epochs: 1\nscaler: true\n").scaler));
}

TEST_CASE("all mistakes come in one message, each with path, line and a hint") {
  const std::string text = config_error([] {
    parse_loop(
        "by_epoch: 'true'\nmax_itres: 3\nlevel: 256\nratio: 1.5\nlimit: .nan\npolicy: statik\nbetas: [0.9, 1.0]\n"
        "size: [1, 2, 3]\nlr_mult: {head: -1}\nscaler: 3\nnested: {hysterisis: 1}\nstages: [{hysteresis: 0}]\n"
        "visualizer: {type: X}\ncudnn_benchmark: true\nmax_iters: 1.5\n");
  });
  INFO(text);
  CHECK(has(text, "16 mistakes in t.yaml:"));
  CHECK(has(text, "by_epoch (t.yaml:1): expected bool, got string \"true\"; remove the quotes"));
  CHECK(has(text, "max_epochs (t.yaml:1): missing: int, epochs to train"));
  CHECK(has(text, "max_itres (t.yaml:2): unknown key; did you mean \"max_iters\"?"));
  CHECK(has(text, "level (t.yaml:3): must be from 0 to 255, got int 256"));
  CHECK(has(text, "ratio (t.yaml:4): must be <= 1, got float 1.5"));
  CHECK(has(text, "limit (t.yaml:5): must be finite"));
  CHECK(has(text, "policy (t.yaml:6): must be one of static, auto; got string \"statik\"; did you mean \"static\"?"));
  CHECK(has(text, "betas.1 (t.yaml:7): must be < 1"));
  CHECK(has(text, "size (t.yaml:8): expected a list of 2, got a list of 3"));
  CHECK(has(text, "lr_mult.head (t.yaml:9): must be > 0, got int -1"));
  CHECK(has(text, "scaler (t.yaml:10): expected bool or map, got int 3"));
  CHECK(has(text, "nested.hysterisis (t.yaml:11): unknown key; did you mean \"hysteresis\"?"));
  CHECK(has(text, "stages.0.hysteresis (t.yaml:12): must be >= 1"));
  CHECK(has(text, "visualizer (t.yaml:13): not in this version"));
  CHECK(
      has(text, "cudnn_benchmark (t.yaml:14): has no meaning here (cuDNN picks nothing here); only false is accepted"));
  CHECK(has(text, "max_iters (t.yaml:15): expected int or null, got float 1.5"));
}

TEST_CASE("a check between fields runs once the fields are good") {
  CHECK(has(config_error([] { parse_loop("max_epochs: 3\nmax_iters: 2\n"); }),
            "max_iters (t.yaml:2): must reach max_epochs"));
  CHECK_FALSE(has(config_error([] { parse_loop("max_epochs: 3\nmax_iters: 2\nlevel: -1\n"); }), "must reach"));
  const std::string both =
      config_error([] { parse_loop("max_epochs: 3\nmax_iters: 2\nratio: 0.9\nby_epoch: false\n"); });
  INFO(both);
  CHECK(has(both, "2 mistakes"));
  CHECK(has(both, "ratio (t.yaml:3): is too much without by_epoch"));
}

TEST_CASE("the effective config holds every option and reads back to itself") {
  const Loop loop = parse_loop("max_epochs: 2\nscaler: {hysteresis: 4}\nstages: [{}]\nlr_mult: {a.b: 2}\n");
  const ConfigNode effective = effective_config(loop);
  CHECK(effective.as_map().size() == 14);
  CHECK(effective.find("max_iters")->is_null());
  CHECK(effective.find("ratio")->as_float() == 0.1);
  CHECK(effective.find("scaler")->find("initial_scale")->as_float() == 65536.0);
  const std::string yaml = to_yaml(effective);
  const Loop again = parse_config<Loop>(read_yaml_text(yaml, "again.yaml"), "again.yaml");
  CHECK_MESSAGE(effective_config(again).same_value(effective), yaml);
}

TEST_CASE("help lists every option with type, default and bounds") {
  const std::string help = options_help<Loop>();
  INFO(help);
  CHECK(has(help, "max_epochs"));
  CHECK(has(help, "required"));
  CHECK(has(help, "nested.hysteresis"));
  CHECK(has(help, "stages[].initial_scale"));
  CHECK(has(help, "one of static, auto"));
  CHECK(has(help, "visualizer: refused: not in this version"));
  CHECK(has(help, "cudnn_benchmark: retired, only false"));
  for (std::size_t begin = 0; begin < help.size();) {
    const std::size_t end = help.find('\n', begin);
    CHECK(end - begin <= 110);
    begin = end + 1;
  }
}

TEST_CASE("the nearest name forgives typing errors and nothing more") {
  const std::vector<std::string> names = {"max_epochs", "max_iters", "val_interval", "lr"};
  CHECK(nearest_name("max_epoch", names) == "max_epochs");
  CHECK(nearest_name("mxa_epochs", names) == "max_epochs");
  CHECK(nearest_name("MAX-ITERS", names) == "max_iters");
  CHECK(nearest_name("rl", names) == "lr");
  CHECK(nearest_name("banana", names).empty());
  CHECK(nearest_name(std::string(100000, 'x'), names).empty());
}

}  // namespace
