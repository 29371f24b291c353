// floors_check ROOT: reports every broken rule of the tree at ROOT, one a line, as FILE:LINE: [rule] text.
// Delicate: a tree without sources fails too, so that a wrong ROOT cannot pass. Exit codes: 0 clean, 1 violations,
// 2 usage or an unreadable tree.
#include <cstdio>
#include <exception>

#include "tests/style/floors.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fputs("usage: floors_check ROOT\n", stderr);
    return 2;
  }
  try {
    const castor::style::Report report = castor::style::check_tree(argv[1]);
    for (const auto& violation : report.violations) {
      std::printf("%s:%d: [%s] %s\n", violation.file.c_str(), violation.line, violation.rule.c_str(),
                  violation.text.c_str());
    }
    if (report.files == 0) std::printf("%s: no sources found; expected the root of the repository\n", argv[1]);
    const bool clean = report.violations.empty() && report.files > 0;
    std::printf("%d sources, %zu violations\n", report.files, report.violations.size());
    std::printf("%d passed, %d failed\n", clean ? 1 : 0, clean ? 0 : 1);
    return clean ? 0 : 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "floors_check: cannot read %s: %s\n", argv[1], error.what());
    return 2;
  }
}
