// Proves that the floors check can fail: each test writes a small tree with one broken rule and looks for its report.
// Delicate: a rule without such a test could be lost without anyone noticing.
#include "tests/style/floors.h"

#include <filesystem>
#include <fstream>
#include <map>
#include <string>

#include <doctest/doctest.h>

#include "tests/style/directives.h"
#include "tests/support/temp_dir.h"

namespace {

using castor::style::check_tree;
using castor::style::find_directives;
using castor::style::Report;
namespace fs = std::filesystem;

/// Checks a tree that holds these files (path from the root -> text) and an empty one for every header that may be
/// named.
Report check(const std::map<std::string, std::string>& files) {
  const castor::test::TempDir root;
  std::map<std::string, std::string> tree{
      {"core/base/error.h", ""},           {"core/device/device.h", ""},
      {"core/tensor/tensor.h", ""},        {"core/ops/norm.h", ""},
      {"autograd/variable.h", ""},         {"autograd/ops.h", ""},
      {"autograd/nn/module.h", ""},        {"autograd/optim/adam.h", ""},
      {"formats/manifest.h", ""},          {"dist/comm.h", ""},
      {"strategy/strategy.h", ""},         {"strategy/cli/castor_main.h", ""},
      {"strategy/gemini/placement.h", ""}, {"strategy/low_level_zero/zero.h", ""},
      {"samples/gpt/model.h", ""},         {"tests/support/tables.h", ""},
  };
  for (const auto& [path, text] : files) tree[path] = text;
  for (const auto& [path, text] : tree) {
    fs::create_directories((root.path() / path).parent_path());
    std::ofstream(root.path() / path) << text;
  }
  return check_tree(root.path());
}

/// The rule broken by one file, or "" if none is; fails the test if more than one place is reported.
std::string broken_rule(const std::string& path, const std::string& text) {
  const Report report = check({{path, text}});
  CHECK(report.violations.size() <= 1);
  if (report.violations.empty()) return "";
  CHECK(report.violations[0].file == path);
  return report.violations[0].rule;
}

std::string including(const std::string& path) { return "#pragma once\n#include \"" + path + "\"\n"; }

}  // namespace

TEST_CASE("a clean tree has no violations and all its sources are read") {
  const Report report = check({});
  CHECK(report.violations.empty());
  CHECK(report.files == 16);
}

TEST_CASE("a folder without sources reports that nothing was read") {
  const castor::test::TempDir root;
  CHECK(check_tree(root.path()).files == 0);
}

TEST_CASE("a lower floor that includes a higher one is reported") {
  CHECK(broken_rule("core/ops/a.cpp", including("autograd/variable.h")) == "floors");
  CHECK(broken_rule("autograd/a.cpp", including("formats/manifest.h")) == "floors");
  CHECK(broken_rule("formats/a.cpp", including("autograd/variable.h")) == "floors");
  CHECK(broken_rule("dist/a.cpp", including("formats/manifest.h")) == "floors");
  CHECK(broken_rule("dist/a.cpp", including("strategy/strategy.h")) == "floors");
  CHECK(broken_rule("strategy/a.cpp", including("samples/gpt/model.h")) == "floors");
  CHECK(broken_rule("samples/a.cpp", including("tests/support/tables.h")) == "floors");
  CHECK(broken_rule("core/ops/a.cpp", "#include <dist/comm.h>\n") == "floors");
}

TEST_CASE("a higher floor may include a lower one") {
  CHECK(broken_rule("dist/a.cpp", including("autograd/variable.h")).empty());
  CHECK(broken_rule("strategy/a.cpp", including("dist/comm.h")).empty());
  CHECK(broken_rule("strategy/a.cpp", including("formats/manifest.h")).empty());
  CHECK(broken_rule("tests/unit/a.cpp", including("samples/gpt/model.h")).empty());
  CHECK(broken_rule("core/base/a.cpp", including("build_config.h")).empty());
}

TEST_CASE("inside core the order is base, device, tensor, ops") {
  CHECK(broken_rule("core/base/a.cpp", including("core/device/device.h")) == "layers");
  CHECK(broken_rule("core/device/a.cpp", including("core/tensor/tensor.h")) == "layers");
  CHECK(broken_rule("core/tensor/a.cpp", including("core/ops/norm.h")) == "layers");
  CHECK(broken_rule("core/tensor/a.cpp", including("core/device/device.h")).empty());
  CHECK(broken_rule("core/extra/a.cpp", "") == "folders");
  CHECK(broken_rule("core/a.cpp", "") == "folders");
}

TEST_CASE("inside autograd the order is graph, ops, nn, optim") {
  CHECK(broken_rule("autograd/a.cpp", including("autograd/ops.h")) == "layers");
  CHECK(broken_rule("autograd/ops/a.cpp", including("autograd/nn/module.h")) == "layers");
  CHECK(broken_rule("autograd/nn/a.cpp", including("autograd/optim/adam.h")) == "layers");
  CHECK(broken_rule("autograd/ops/a.cpp", including("autograd/ops.h")).empty());
  CHECK(broken_rule("autograd/optim/a.cpp", including("autograd/nn/module.h")).empty());
  CHECK(broken_rule("autograd/extra/a.cpp", "") == "folders");
}

TEST_CASE("a plugin that includes another plugin is reported") {
  CHECK(broken_rule("strategy/gemini/a.cpp", including("strategy/low_level_zero/zero.h")) == "plugins");
  CHECK(broken_rule("strategy/ddp/a.cpp", including("strategy/gemini/placement.h")) == "plugins");
  CHECK(broken_rule("strategy/new_plugin/a.cpp", "") == "folders");
  CHECK(broken_rule("strategy/gemini/a.cpp", including("strategy/strategy.h")).empty());
  CHECK(broken_rule("strategy/gemini/a.cpp", including("strategy/cli/castor_main.h")).empty());
  CHECK(broken_rule("strategy/builtins.cpp", including("strategy/gemini/placement.h")).empty());
}

TEST_CASE("vendors' headers outside their files are reported") {
  CHECK(broken_rule("core/ops/norm.cpp", "#include <cuda_runtime.h>\n") == "vendor-headers");
  CHECK(broken_rule("core/ops/norm_cpu.cpp", "#include <cub/cub.cuh>\n") == "vendor-headers");
  CHECK(broken_rule("core/ops/norm_cuda.cu", "#include <cublasLt.h>\n").empty());
  CHECK(broken_rule("core/device/cuda_runtime.cpp", "#include <cuda_runtime.h>\n").empty());
  CHECK(broken_rule("core/ops/matmul_cpu.cpp", "#include <dnnl.hpp>\n") == "vendor-headers");
  CHECK(broken_rule("core/ops/matmul_cpu.cpp", "#include <oneapi/dnnl/dnnl.hpp>\n") == "vendor-headers");
  CHECK(broken_rule("core/device/onednn.cpp", "#include <dnnl.hpp>\n").empty());
  CHECK(broken_rule("dist/comm.cpp", "#include <nccl.h>\n") == "vendor-headers");
  CHECK(broken_rule("dist/comm_nccl.cpp", "#include <nccl.h>\n").empty());
  CHECK(broken_rule("dist/comm_tcp.cpp", "#include <mpi.h>\n") == "vendor-headers");
  CHECK(broken_rule("strategy/strategy.cpp", "#include <curl/curl.h>\n") == "vendor-headers");
  CHECK(broken_rule("strategy/source/http_curl.cpp", "#include <curl/curl.h>\n").empty());
}

TEST_CASE("a heavy header in a header is reported, in a .cpp it is not") {
  CHECK(broken_rule("strategy/a.h", "#include <nlohmann/json.hpp>\n") == "heavy-headers");
  CHECK(broken_rule("strategy/a.h", "#include <nlohmann/json_fwd.hpp>\n").empty());
  CHECK(broken_rule("strategy/a.cpp", "#include <nlohmann/json.hpp>\n").empty());
}

TEST_CASE("a preprocessor conditional is reported outside core/base/host_device.h") {
  CHECK(broken_rule("core/ops/a.cpp", "#ifdef FAST\n#endif\n") == "no-conditionals");
  CHECK(broken_rule("tests/unit/a.cpp", "int x;\n  #  if 1\n#endif\n") == "no-conditionals");
  CHECK(broken_rule("samples/a.h", "/* why */ #ifndef A\n#endif\n") == "no-conditionals");
  CHECK(broken_rule("core/base/host_device.h", "#ifdef __CUDACC__\n#endif\n").empty());
}

TEST_CASE("an own header must exist and be named from the root") {
  CHECK(broken_rule("core/ops/a.cpp", including("core/ops/gone.h")) == "include-path");
  CHECK(broken_rule("core/ops/a.cpp", including("norm.h")) == "include-path");
  CHECK(broken_rule("core/ops/a.cpp", including("../ops/norm.h")) == "include-path");
}

TEST_CASE("a file or folder whose name says nothing is reported") {
  for (const std::string name : {"utils", "helpers", "common", "misc", "tensor_utils", "helper"}) {
    CAPTURE(name);
    CHECK(broken_rule("core/base/" + name + ".h", "") == "file-names");
  }
  CHECK(broken_rule("tests/bench/common.py", "") == "file-names");
  CHECK(check({{"samples/common/a.cpp", ""}}).violations.at(0).rule == "file-names");
  CHECK(broken_rule("core/base/FileReader.h", "") == "file-names");
}

TEST_CASE("comments, strings and raw strings hide what looks like a directive") {
  CHECK(find_directives("/*\n#if 1\n*/\n// x\n").empty());
  CHECK(find_directives("auto a = R\"yaml(\n#if b\n)yaml\";\n").empty());
  CHECK(find_directives("int n = 1'000; char c = '\"'; char d = '\\'';\n#if 1\n").size() == 1);
  CHECK(find_directives("auto s = \"/*\";\n#if 1\n").size() == 1);
}

TEST_CASE("a directive keeps its line, name and argument") {
  const auto found = find_directives("\n#  include   <vector>  // why\n#define A \\\n  1\n#pragma once");
  REQUIRE(found.size() == 3);
  CHECK(found[0].line == 2);
  CHECK(found[0].name == "include");
  CHECK(castor::style::included_path(found[0]) == "vector");
  CHECK(found[1].name == "define");
  CHECK(found[2].line == 5);
  CHECK(found[2].argument == "once");
}
