// Config files: what is inherited, replaced from the environment and overridden, and which value wins.
#include <cstdlib>
#include <filesystem>
#include <string>

#include <doctest/doctest.h>

#include "core/base/error.h"
#include "core/base/file.h"
#include "strategy/config/load.h"
#include "tests/support/temp_dir.h"

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

/// Folder with config files.
struct ConfigFolder {
  std::string write(const std::string& name, const std::string& text) const {
    const std::string path = (folder.path() / name).string();
    std::filesystem::create_directories(std::filesystem::path(path).parent_path());
    write_file_atomically(path, text);
    return path;
  }
  test::TempDir folder;
};

TEST_CASE("a file extends, replaces and deletes what its bases say") {
  const ConfigFolder at;
  at.write("base/model.yaml", "model: {type: GPT, depth: 6, width: 384}\nlist: [1, 2, 3]\n");
  at.write("base/run.yml", "_base_: more/run.json\ntrain: {max_epochs: 3}\n");
  at.write("base/more/run.json", "{\"train\": {\"max_epochs\": 1, \"val\": true}, \"seed\": 7}");
  const std::string path = at.write("gpt.yaml",
                                    "_base_: [base/model.yaml, base/run.yml]\n"
                                    "model:\n  _delete_: true\n  type: MLP\nlist: [4]\ntrain: {val: false}\n");
  const ConfigNode tree = load_config(path);
  CHECK(tree.find("_base_") == nullptr);
  CHECK(tree.find("model")->as_map().size() == 1);
  CHECK(tree.find("model")->find("type")->as_string() == "MLP");
  CHECK(tree.find("list")->as_list().size() == 1);
  CHECK(tree.find("train")->find("max_epochs")->as_int() == 3);
  CHECK_FALSE(tree.find("train")->find("val")->as_bool());
  CHECK(tree.find("seed")->as_int() == 7);
  CHECK(has(tree.find("seed")->mark().text(), "run.json:1"));
}

TEST_CASE("bases that go in a circle, clash or are missing are refused by name") {
  const ConfigFolder at;
  const std::string a = at.write("a.yaml", "_base_: b.yaml\n");
  at.write("b.yaml", "x: 1\n_base_: ./a.yaml\n");
  const std::string circle = config_error([&] { load_config(a); });
  CHECK(has(circle, "b.yaml:2"));
  CHECK(has(circle, "circle"));
  at.write("one.yaml", "k: 1\n");
  at.write("two.yaml", "k: 2\n");
  const std::string clash = config_error([&] { load_config(at.write("c.yaml", "_base_: [one.yaml, two.yaml]\n")); });
  CHECK(has(clash, "two.yaml:1"));
  CHECK(has(clash, "one.yaml:1"));
  const std::string missing = config_error([&] { load_config(at.write("d.yaml", "\n_base_: nowhere.yaml\n")); });
  CHECK(has(missing, "d.yaml:2"));
  CHECK(has(missing, "nowhere.yaml"));
  CHECK(
      has(config_error([&] { load_config(at.write("e.yaml", "_base_: {a: 1}\n")); }), "e.yaml:1: _base_ takes a path"));
  CHECK(has(config_error([&] { load_config("config.py"); }), "Python configs"));
  CHECK(has(config_error([&] { load_config(at.folder.path().string() + "/none.yaml"); }), "none.yaml"));
  CHECK(has(config_error([&] { load_config(at.write("l.yaml", "- 1\n")); }), "map of keys, got a list of 1"));
  const std::string scalar = config_error([&] { load_config(at.write("f.yaml", "_base_: one.yaml\nk: {a: 1}\n")); });
  CHECK(has(scalar, "f.yaml:2"));
  CHECK(has(scalar, "_delete_"));
  CHECK(has(config_error([&] { load_config(at.write("g.yaml", "k: {_delete_: 3}\n")); }), "k._delete_"));
}

TEST_CASE("environment and file variables are replaced before parsing") {
  const ConfigFolder at;
  setenv("CASTOR_TEST_SIZE", "12", 1);
  setenv("CASTOR_TEST_LINES", "1\nevil: true", 1);
  unsetenv("CASTOR_TEST_UNSET");
  const ConfigNode tree = load_config(at.write("v.yaml",
                                               "# {{$CASTOR_TEST_UNSET}} is not needed\n"
                                               "size: {{$CASTOR_TEST_SIZE:3}}\n"
                                               "other: {{ $CASTOR_TEST_UNSET:1e-3 }}\n"
                                               "none: {{$CASTOR_TEST_UNSET:}}\n"
                                               "path: '{{fileDirname}}/x/{{fileBasenameNoExtension}}{{fileExtname}}'\n"
                                               "template: '{{ user }} says'\n"));
  CHECK(tree.find("size")->as_int() == 12);
  CHECK(tree.find("other")->as_float() == 1e-3);
  CHECK(tree.find("none")->is_null());
  CHECK(tree.find("path")->as_string() == at.folder.path().string() + "/x/v.yaml");
  CHECK(tree.find("template")->as_string() == "{{ user }} says");
  CHECK(has(config_error([&] { load_config(at.write("w.yaml", "a: 1\nb: {{$CASTOR_TEST_UNSET}}\n")); }),
            "w.yaml:2: environment variable CASTOR_TEST_UNSET is not set"));
  CHECK(has(config_error([&] { load_config(at.write("x.yaml", "b: {{$CASTOR_TEST_LINES}}\n")); }), "line break"));
  CHECK(has(config_error([&] { load_config(at.write("y.yaml", "b: {{_base_.model.depth}}\n")); }),
            "not in this version"));
  CHECK(has(config_error([&] { load_config(at.write("z.yaml", "b: {{$}}\n")); }), "expected"));
}

TEST_CASE("overrides reach into maps and lists with typed values") {
  const ConfigFolder at;
  const std::string path = at.write("o.yaml", "a: {b: 1, keep: 2}\nl: [{x: 1}, {x: 2}]\nn: null\n");
  const ConfigNode tree =
      load_config(path, {"a.b=1e-3", "l.1.x=[1, {y: z}]", "n.new.deep=true", "m=8,11", "s='a,b'", "c=#fff",
                         "a={more: 1}", "e=a=b", "none=None", "l.0={_delete_: true, z: 1}"});
  CHECK(tree.find("a")->find("b")->as_float() == 1e-3);
  CHECK(tree.find("a")->find("keep")->as_int() == 2);
  CHECK(tree.find("a")->find("more")->as_int() == 1);
  CHECK(tree.find("l")->as_list()[1].find("x")->as_list()[1].find("y")->as_string() == "z");
  CHECK(tree.find("l")->as_list()[0].as_map().size() == 1);
  CHECK(tree.find("n")->find("new")->find("deep")->as_bool());
  CHECK(tree.find("m")->as_list()[1].as_int() == 11);
  CHECK(tree.find("s")->as_string() == "a,b");
  CHECK(tree.find("c")->as_string() == "#fff");
  CHECK(tree.find("e")->as_string() == "a=b");
  CHECK(tree.find("none")->is_null());
  CHECK(tree.find("a")->find("b")->mark().text() == "--cfg-options a.b");
}

TEST_CASE("all overrides that do not fit are reported together") {
  const ConfigFolder at;
  const std::string path = at.write("o.yaml", "a: 1\nl: [1]\n");
  const std::string text = config_error([&] {
    load_config(path, {"a.b=2", "l.1=3", "l.x=3", "noequals", "=3", "a..b=1", "q=[1", "big=99999999999999999999"});
  });
  CHECK(has(text, "8 mistakes"));
  CHECK(has(text, "a is int 1; it has no \"b\""));
  CHECK(has(text, "no index from 0 to 0"));
  CHECK(has(text, "key=value expected, got \"noequals\""));
  CHECK(has(text, "empty part"));
  CHECK(has(text, "64 bits"));
}

}  // namespace
