// Where the recorded data of tests/parity/data lies, for any suite and any working directory.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <stdexcept>
#include <string>

namespace castor::test {

/// The path of a file or folder of tests/parity/data: under CASTOR_TEST_DATA, or in the tree above the working
/// directory. Throws std::runtime_error if it is in neither.
inline std::string recorded_path(const std::string& name) {
  if (const char* folder = std::getenv("CASTOR_TEST_DATA")) return (std::filesystem::path(folder) / name).string();
  for (std::filesystem::path at = std::filesystem::current_path();; at = at.parent_path()) {
    const std::filesystem::path file = at / "tests" / "parity" / "data" / name;
    if (std::filesystem::exists(file)) return file.string();
    if (at == at.parent_path()) break;
  }
  throw std::runtime_error("tests/parity/data/" + name +
                           " is neither above the working directory nor under CASTOR_TEST_DATA");
}

}  // namespace castor::test
