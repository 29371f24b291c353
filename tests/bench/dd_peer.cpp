// Runs dd and reads what it prints.
#include "tests/bench/dd_peer.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>

#include "core/base/error.h"

namespace castor::bench {
namespace {

double dd_seconds(const std::string& arguments) {
  const std::string command = "LC_ALL=C dd " + arguments + " 2>&1";
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> pipe(popen(command.c_str(), "r"), pclose);
  if (pipe == nullptr) throw Error("cannot start dd");
  std::string text;
  char part[512];
  while (std::fgets(part, sizeof part, pipe.get()) != nullptr) text += part;
  const std::size_t at = text.find("copied, ");
  if (at == std::string::npos) throw Error("dd failed: " + text);
  return std::stod(text.substr(at + std::strlen("copied, ")));
}

}  // namespace

double dd_write_seconds(const std::string& path, std::uint64_t bytes) {
  return dd_seconds("if=/dev/zero of=" + path + cat(" bs=8M count=", bytes >> 23) + " oflag=direct conv=fsync");
}

double dd_read_seconds(const std::string& path) {
  return dd_seconds("if=" + path + " of=/dev/null bs=8M iflag=direct");
}

double median_of(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

}  // namespace castor::bench
