// The tables of the floors and the walk over the tree.
//
//   core <- autograd, formats;  autograd <- dist;  all of them <- strategy;  anything <- samples, tests
//   core:      base <- device <- tensor <- ops           autograd:  graph (files at its top) <- ops <- nn <- optim
//
// Delicate: a folder that the tables do not know is a violation, not a hole in the check.
#include "tests/style/floors.h"

#include <algorithm>
#include <array>
#include <fstream>
#include <iterator>
#include <optional>
#include <span>
#include <string_view>

#include "tests/style/directives.h"

namespace castor::style {
namespace {

namespace fs = std::filesystem;
using Names = std::span<const std::string_view>;

constexpr std::array<std::string_view, 7> kTops{"core", "autograd", "formats", "dist", "strategy", "samples", "tests"};

struct Floor {
  std::string_view name;
  std::array<std::string_view, 7> may_include;
};
constexpr std::array<Floor, 7> kFloors{{
    {"core", {"core"}},
    {"autograd", {"core", "autograd"}},
    {"formats", {"core", "formats"}},
    {"dist", {"core", "autograd", "dist"}},
    {"strategy", {"core", "autograd", "formats", "dist", "strategy"}},
    {"samples", {"core", "autograd", "formats", "dist", "strategy", "samples"}},
    {"tests", {"core", "autograd", "formats", "dist", "strategy", "samples", "tests"}},
}};

// A folder includes those before it and itself. "graph" stands for the files at autograd's top.
// "pch" has what the compiler reads ahead for every target; nobody includes it.
constexpr std::array<std::string_view, 5> kCoreOrder{"pch", "base", "device", "tensor", "ops"};
constexpr std::array<std::string_view, 4> kAutogradOrder{"graph", "ops", "nn", "optim"};

// Folders of strategy: plugins, which do not include each other, and those that serve them all.
constexpr std::array<std::string_view, 3> kPlugins{"ddp", "low_level_zero", "gemini"};
constexpr std::array<std::string_view, 9> kSharedFolders{"checkpoint", "cli",    "config",    "data",  "hooks",
                                                         "metric",     "runner", "scheduler", "source"};

constexpr std::array<std::string_view, 6> kEmptyWords{"utils", "util", "helpers", "helper", "common", "misc"};

struct Vendor {
  std::string_view name;
  std::array<std::string_view, 12> headers;  // a prefix of the included path
  std::string_view where;
  bool (*allowed)(std::string_view stem);
};

bool has_word(std::string_view stem, std::string_view word) {
  std::size_t begin = 0;
  while (begin <= stem.size()) {
    const std::size_t end = std::min(stem.find('_', begin), stem.size());
    if (stem.substr(begin, end - begin) == word) return true;
    begin = end + 1;
  }
  return false;
}

constexpr std::array<Vendor, 5> kVendors{{
    {"CUDA",
     {"cuda", "cublas", "cudnn", "curand", "cusparse", "cub/", "thrust/", "cutlass/", "cute/", "nvtx3/", "mma.h",
      "cooperative_groups"},
     "*_cuda* and cuda_* files",
     [](std::string_view stem) { return has_word(stem, "cuda"); }},
    {"NCCL",
     {"nccl.h"},
     "*_nccl* and *_cuda* files",
     [](std::string_view stem) { return has_word(stem, "nccl") || has_word(stem, "cuda"); }},
    {"MPI", {"mpi.h"}, "*_mpi* files", [](std::string_view stem) { return has_word(stem, "mpi"); }},
    {"oneDNN",
     {"dnnl", "oneapi/dnnl"},
     "*onednn* files",
     [](std::string_view stem) { return has_word(stem, "onednn"); }},
    {"libcurl", {"curl/"}, "*_curl* files", [](std::string_view stem) { return has_word(stem, "curl"); }},
}};

// Seconds of compile time each: a header that includes one makes all its users pay.
constexpr std::array<std::string_view, 7> kHeavyHeaders{
    "nlohmann/json.hpp", "CLI/", "spdlog/", "yaml-cpp/", "boost/", "curl/", "openssl/"};

bool contains(Names names, std::string_view name) { return std::ranges::find(names, name) != names.end(); }

bool starts_with_any(Names prefixes, std::string_view text) {
  return std::ranges::any_of(prefixes, [&](std::string_view p) { return !p.empty() && text.starts_with(p); });
}

std::string joined(Names names) {
  std::string text;
  for (const std::string_view name : names) {
    if (!name.empty()) text += (text.empty() ? "" : ", ") + std::string(name);
  }
  return text;
}

/// The folders of a path from the root, then its file name.
std::vector<std::string> parts_of(std::string_view path) {
  std::vector<std::string> parts;
  for (const fs::path& part : fs::path(path)) parts.push_back(part.string());
  return parts;
}

std::string stem_of(std::string_view file_name) { return std::string(file_name.substr(0, file_name.find('.'))); }

bool is_header(std::string_view name) {
  return name.ends_with(".h") || name.ends_with(".hpp") || name.ends_with(".cuh") || name.ends_with(".h.in");
}
bool is_source(std::string_view name) {
  return is_header(name) || name.ends_with(".cpp") || name.ends_with(".cc") || name.ends_with(".cu");
}

/// The place of a file in its floor's inner order, or nothing when the folder is not in it.
std::optional<std::size_t> layer_of(const std::vector<std::string>& parts, Names order) {
  // A file at the top that is named like a folder (autograd/ops.h) is that folder's front door.
  std::string_view folder = parts.size() > 2 ? std::string_view(parts[1]) : std::string_view();
  const std::string stem = stem_of(parts.back());
  if (parts.size() == 2) folder = contains(order, stem) ? std::string_view(stem) : std::string_view("graph");
  const auto found = std::ranges::find(order, folder);
  if (found == order.end()) return std::nullopt;
  return static_cast<std::size_t>(found - order.begin());
}

std::optional<Names> inner_order(std::string_view floor) {
  if (floor == "core") return Names(kCoreOrder);
  if (floor == "autograd") return Names(kAutogradOrder);
  return std::nullopt;
}

/// Checks one source file; collects into the report.
class FileCheck {
 public:
  FileCheck(const fs::path& root, std::string file, Report& report)
      : root_(root), file_(std::move(file)), parts_(parts_of(file_)), report_(report) {}

  void run() {
    check_place();
    std::ifstream in(root_ / file_, std::ios::binary);
    const std::string source{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
    for (const Directive& directive : find_directives(source)) {
      if (directive.name == "include") check_include(directive);
      const bool conditional = directive.name == "if" || directive.name == "ifdef" || directive.name == "ifndef";
      if (conditional && file_ != "core/base/host_device.h") {
        add(directive.line, "no-conditionals",
            "#" + directive.name + " " + directive.argument +
                ": only core/base/host_device.h has conditionals; choose by which files are linked, or by a constant "
                "of "
                "build_config.h");
      }
    }
  }

 private:
  void add(int line, std::string rule, std::string text) {
    report_.violations.push_back({file_, line, std::move(rule), std::move(text)});
  }

  std::string_view floor() const { return parts_[0]; }

  void check_place() {
    const auto order = inner_order(floor());
    if (order && !layer_of(parts_, *order)) {
      add(0, "folders",
          "this place is not in the floor's order (" + joined(*order) +
              "): move the file, or add the folder to the tables in tests/style/floors.cpp");
    }
    if (floor() == "strategy" && parts_.size() > 2 && !contains(kPlugins, parts_[1]) &&
        !contains(kSharedFolders, parts_[1])) {
      add(0, "folders",
          "strategy/" + parts_[1] +
              " is not known: list it in tests/style/floors.cpp, as a plugin or as a shared folder");
    }
  }

  void check_include(const Directive& include) {
    const std::string path = included_path(include);
    if (path.empty()) return add(include.line, "include-path", "an include must name its file: " + include.argument);
    const std::vector<std::string> target = parts_of(path);
    if (contains(kTops, target[0]) && target.size() > 1) {
      check_floors(include.line, path, target);
    } else if (include.argument[0] == '"' && path != "build_config.h") {
      add(include.line, "include-path", "\"" + path + "\": own headers are named from the root, \"core/base/error.h\"");
    }
    if (floor() != "tests") check_vendors(include.line, path);
  }

  void check_floors(int line, const std::string& path, const std::vector<std::string>& target) {
    if (!fs::exists(root_ / path)) add(line, "include-path", path + " does not exist under the root");
    const auto own = std::ranges::find(kFloors, floor(), &Floor::name);
    if (own != kFloors.end() && !contains(own->may_include, target[0])) {
      return add(line, "floors",
                 std::string(floor()) + " may include " + joined(own->may_include) + "; not " + path +
                     ": move the code up, or hand the lower floor an interface");
    }
    if (target[0] != floor()) return;
    if (const auto order = inner_order(floor())) {
      const auto from = layer_of(parts_, *order);
      const auto to = layer_of(target, *order);
      if (from && to && *to > *from) {
        add(line, "layers",
            "inside " + std::string(floor()) + ", " + std::string((*order)[*from]) + " lies below " +
                std::string((*order)[*to]) + " and may not include " + path);
      }
    }
    if (floor() == "strategy" && parts_.size() > 2 && target.size() > 2 && parts_[1] != target[1] &&
        contains(kPlugins, parts_[1]) && contains(kPlugins, target[1])) {
      add(line, "plugins",
          "strategy/" + parts_[1] + " may not include " + path + ": what plugins share stands in strategy/ itself");
    }
  }

  void check_vendors(int line, const std::string& path) {
    const std::string stem = stem_of(parts_.back());
    for (const Vendor& vendor : kVendors) {
      if (starts_with_any(vendor.headers, path) && !vendor.allowed(stem)) {
        add(line, "vendor-headers",
            path + ": " + std::string(vendor.name) + " headers appear only in " + std::string(vendor.where));
      }
    }
    if (is_header(parts_.back()) && starts_with_any(kHeavyHeaders, path)) {
      add(line, "heavy-headers", path + " is slow to compile: include it in a .cpp file and declare forward here");
    }
  }

  const fs::path& root_;
  std::string file_;
  std::vector<std::string> parts_;
  Report& report_;
};

void check_name(const std::string& file, Report& report) {
  const std::string name = parts_of(file).back();
  const std::string stem = stem_of(name);
  for (const std::string_view word : kEmptyWords) {
    if (has_word(stem, word)) {
      report.violations.push_back(
          {file, 0, "file-names", "'" + std::string(word) + "' says nothing: name the file by what it is about"});
    }
  }
  const auto snake = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_'; };
  if (is_source(name) && !std::ranges::all_of(stem, snake)) {
    report.violations.push_back({file, 0, "file-names", "file names are snake_case"});
  }
}

}  // namespace

Report check_tree(const fs::path& root) {
  Report report;
  std::vector<std::string> files;
  for (const std::string_view top : kTops) {
    if (!fs::is_directory(root / top)) continue;
    for (auto it = fs::recursive_directory_iterator(root / top); it != fs::recursive_directory_iterator(); ++it) {
      const std::string name = it->path().filename().string();
      if (it->is_directory()) {
        if (name.starts_with('.') || name == "__pycache__") it.disable_recursion_pending();
        check_name(it->path().lexically_relative(root).generic_string(), report);
      } else {
        files.push_back(it->path().lexically_relative(root).generic_string());
      }
    }
  }
  std::ranges::sort(files);
  for (const std::string& file : files) {
    check_name(file, report);
    if (!is_source(file)) continue;
    ++report.files;
    FileCheck(root, file, report).run();
  }
  return report;
}

}  // namespace castor::style
