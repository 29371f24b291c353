// What is logged while a test looks.
#pragma once

#include <fstream>
#include <sstream>
#include <string>

#include "core/base/log.h"
#include "tests/support/temp_dir.h"

namespace castor::test {

/// While it lives this thread's logger writes to a file of its own and not to the console.
class LogCapture {
 public:
  std::string text() const {
    std::stringstream all;
    all << std::ifstream(path()).rdbuf();
    return all.str();
  }

 private:
  std::string path() const { return (dir_.path() / "log").string(); }
  LogOptions options() const {
    LogOptions made;
    made.file = path();
    made.use_console = false;
    return made;
  }

  TempDir dir_;
  Logger logger_{options()};
  LogScope scope_{logger_};
};

}  // namespace castor::test
