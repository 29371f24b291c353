// Type tables: adding, finding, checking, building and explaining types by name.
#include <memory>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "core/base/error.h"
#include "strategy/config.h"
#include "strategy/config/text_source.h"
#include "strategy/type_table.h"

namespace {

using namespace castor;
using namespace castor::strategy;

struct Shape;  // what the tables make is only declared where they are declared

struct TestRegistry : TypeDirectory {
  TypeTable<std::unique_ptr<Shape>(int)> shapes{"shape", *this};
  TypeTable<std::string()> colours{"colour", *this};
};

struct Shape {
  virtual ~Shape() = default;
  virtual double area() const = 0;
};

struct SquareConfig {
  double side = 1;
  TypedConfig colour{"Grey"};
};
template <class V>
void describe(V& v, SquareConfig& c) {
  v.field("side", c.side, "length in metres", more_than(0));
  v.field("colour", c.colour, "paint", registered("colour"), or_name());
}
struct Square : Shape {
  explicit Square(double length) : side(length) {}
  double area() const override { return side * side; }
  double side;
};

struct StackConfig {
  std::vector<TypedConfig> parts;
};
template <class V>
void describe(V& v, StackConfig& c) {
  v.field("parts", c.parts, "shapes on each other", registered("shape"), non_empty(), required);
}

struct GreyConfig {
  int level = 50;
};
template <class V>
void describe(V& v, GreyConfig& c) {
  v.field("level", c.level, "percent of black", at_least(0), at_most(100));
}

struct StackShape : Shape {
  double area() const override { return total; }
  double total = 0;
};

struct SceneConfig {
  TypedConfig shape;
  std::optional<TypedConfig> extra = TypedConfig("Square");
};
template <class V>
void describe(V& v, SceneConfig& c) {
  v.field("shape", c.shape, "what is seen", registered("shape"), required);
  v.field("extra", c.extra, "what else; null for nothing", registered("shape"));
}

void fill(TestRegistry& registry) {
  registry.colours.add<GreyConfig>("Grey", "between black and white",
                                   [](const GreyConfig& c) { return cat("grey ", c.level); });
  registry.colours.alias("black", "no light", read_yaml_text("{type: Grey, level: 100}", "alias"));
  registry.colours.refuse("Red", "not in this version: only grey is mixed");
  registry.shapes
      .add<SquareConfig>("Square", "four equal sides",
                         [](const SquareConfig& c, int scale) { return std::make_unique<Square>(c.side * scale); })
      .add<StackConfig>("Stack", "several shapes", [&registry](const StackConfig& c, int scale) {
        auto stack = std::make_unique<StackShape>();
        for (const TypedConfig& part : c.parts) stack->total += registry.shapes.build(part, scale)->area();
        return stack;
      });
}

TypedConfig typed(const std::string& yaml) {
  TypedConfig out;
  out.node = read_yaml_text(yaml, "t.yaml");
  out.type = out.node.find("type")->as_string();
  out.path = "scene.shape";
  return out;
}

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

TEST_CASE("a table builds what a config names, with its context") {
  TestRegistry registry;
  fill(registry);
  CHECK(registry.shapes.build(typed("{type: Square, side: 3}"), 2)->area() == 36);
  CHECK(registry.shapes.build(typed("{type: Stack, parts: [{type: Square}, {type: Square, side: 2}]}"), 1)->area() ==
        5);
  CHECK(registry.colours.build(TypedConfig("Grey")) == "grey 50");
}

TEST_CASE("a short name stands for a type with options, and options beside it win") {
  TestRegistry registry;
  fill(registry);
  CHECK(registry.colours.build(TypedConfig("black")) == "grey 100");
  CHECK(registry.colours.build(typed("{type: black, level: 90}")) == "grey 90");
  CHECK(registry.colours.effective(TypedConfig("black")).find("type")->as_string() == "Grey");
}

TEST_CASE("a name can be registered once") {
  TestRegistry registry;
  fill(registry);
  const std::string text = config_error([&] {
    registry.shapes.add<NoOptions>("Square", "again",
                                   [](const NoOptions&, int) { return std::make_unique<Square>(1); });
  });
  CHECK(has(text, "two things called \"Square\" among the shapes"));
  CHECK_THROWS_AS(registry.colours.refuse("Grey", "why"), ConfigError);
  CHECK_THROWS_AS((TypeTable<std::string()>{"shape", registry}), InternalError);
}

TEST_CASE("unknown and refused types are told apart, with the nearest name and where else the name is known") {
  TestRegistry registry;
  fill(registry);
  const auto report = [&](const std::string& yaml) {
    Diagnostics diagnostics;
    registry.shapes.check(typed(yaml), diagnostics);
    return diagnostics.report("");
  };
  CHECK(has(report("{type: Sqare}"), "scene.shape.type (t.yaml:1): unknown shape \"Sqare\"; did you mean \"Square\"?"));
  CHECK(has(report("{type: Grey}"), "that is a colour; known: Square, Stack"));
  Diagnostics diagnostics;
  registry.colours.check(TypedConfig("Red"), diagnostics);
  CHECK(has(diagnostics.report(""), "Red: not in this version"));
}

TEST_CASE("a check goes into the parts that a type holds") {
  TestRegistry registry;
  fill(registry);
  Diagnostics diagnostics;
  registry.shapes.check(typed("type: Stack\nparts:\n- {type: Square, sides: 1}\n- {type: Cube}\n- {side: 2}\n"
                              "- {type: Square, colour: {type: Grey, level: 101}}\n- {type: Square, colour: Red}\n"),
                        diagnostics);
  const std::string text = diagnostics.report("");
  INFO(text);
  CHECK(diagnostics.size() == 5);
  CHECK(has(text, "scene.shape.parts.0.sides (t.yaml:3): unknown key; did you mean \"side\"?"));
  CHECK(has(text, "scene.shape.parts.1.type (t.yaml:4): unknown shape \"Cube\""));
  CHECK(has(text, "scene.shape.parts.2.type (t.yaml:5): missing"));
  CHECK(has(text, "scene.shape.parts.3.colour.level (t.yaml:6): must be <= 100"));
  CHECK(has(text, "scene.shape.parts.4.colour.type (t.yaml:7): Red: not in this version"));
  CHECK_THROWS_AS(registry.shapes.build(typed("{type: Square, side: 0}"), 1), ConfigError);
}

TEST_CASE("options left over from another type get the hint to drop them") {
  TestRegistry registry;
  fill(registry);
  ConfigNode tree = read_yaml_text("{type: Square, side: 2}", "base.yaml");
  Diagnostics diagnostics;
  merge_config(tree, read_yaml_text("{type: Stack, parts: [{type: Square}]}", "child.yaml"), diagnostics);
  TypedConfig merged;
  merged.type = "Stack";
  merged.node = tree;
  registry.shapes.check(merged, diagnostics);
  CHECK(has(diagnostics.report(""), "side (base.yaml:1): unknown key; "));
  CHECK(has(diagnostics.report(""), "_delete_: true"));
}

TEST_CASE("the effective config of a typed part holds the defaults of all levels") {
  TestRegistry registry;
  fill(registry);
  const auto scene = parse_config<SceneConfig>(read_yaml_text("{shape: {type: Square, colour: black}}", "s.yaml"),
                                               "s.yaml", &registry);
  const ConfigNode effective = effective_config(scene, &registry);
  INFO(to_yaml(effective));
  CHECK(effective.find("shape")->find("side")->as_float() == 1.0);
  CHECK(effective.find("shape")->find("colour")->find("type")->as_string() == "Grey");
  CHECK(effective.find("shape")->find("colour")->find("level")->as_int() == 100);
  CHECK(effective.find("extra")->find("colour")->find("level")->as_int() == 50);
  const auto again = parse_config<SceneConfig>(effective, "again", &registry);
  CHECK(effective_config(again, &registry).same_value(effective));
  const auto none =
      parse_config<SceneConfig>(read_yaml_text("{shape: {type: Square}, extra: null}", "s.yaml"), "s.yaml", &registry);
  CHECK_FALSE(none.extra.has_value());
  CHECK(has(config_error([&] { parse_config<SceneConfig>(read_yaml_text("{shape: null}", "s"), "s", &registry); }),
            "shape (s:1): expected {type: ...}, got null"));
}

TEST_CASE("help explains a type, a short name and a refusal") {
  TestRegistry registry;
  fill(registry);
  CHECK(has(registry.shapes.help("Square"), "Square (shape): four equal sides"));
  CHECK(has(registry.shapes.help("Square"), "length in metres; > 0"));
  CHECK(has(registry.colours.help("black"), "short for"));
  CHECK(has(registry.colours.help("Red"), "refused: not in this version"));
  CHECK(has(config_error([&] { registry.shapes.help("Sqare"); }), "did you mean"));
  CHECK(registry.find_table("colour") == &registry.colours);
  CHECK(registry.find_table("sound") == nullptr);
}

}  // namespace
