// Reading the kernel's small text files.
//
// Delicate: a container may see its own control group at the mount's root while /proc names the path that the host
// knows, so every folder from the named one up to the root is asked, and one that is not there limits nothing.
#include "core/base/host_memory.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>
#include <string_view>

#include "core/base/error.h"

namespace castor {
namespace {

constexpr std::uint64_t kNoLimit = std::numeric_limits<std::uint64_t>::max();

std::atomic<int> sharers{1};

// The file's one number; nothing for "max" and for a file that is not there.
std::optional<std::uint64_t> number_in(const std::string& path) {
  std::ifstream file(path);
  std::uint64_t value = 0;
  if (file >> value) return value;
  return std::nullopt;
}

// The number behind a name in a file of lines "name number".
std::optional<std::uint64_t> number_behind(const std::string& path, std::string_view name) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with(name)) continue;
    std::istringstream rest(line.substr(name.size()));
    std::uint64_t value = 0;
    if (rest >> value) return value;
  }
  return std::nullopt;
}

// The files of one version of control groups.
struct Names {
  const char* mount;
  const char* limit;
  const char* used;
  const char* reclaimable;  // in memory.stat: page cache that goes before anything else does
};
constexpr Names kVersion2{"/sys/fs/cgroup", "/memory.max", "/memory.current", "inactive_file"};
constexpr Names kVersion1{"/sys/fs/cgroup/memory", "/memory.limit_in_bytes", "/memory.usage_in_bytes",
                          "total_inactive_file"};

void limit_by(HostMemory& memory, std::uint64_t machine, const std::string& folder, const Names& names) {
  const std::uint64_t limit = number_in(folder + names.limit).value_or(kNoLimit);
  if (limit >= machine) return;  // a number beyond the machine is how v1 says "none"
  memory.total = std::min(memory.total, static_cast<std::size_t>(limit));
  const std::uint64_t used = number_in(folder + names.used).value_or(0);
  const std::uint64_t cache = number_behind(folder + "/memory.stat", names.reclaimable).value_or(0);
  const std::uint64_t held = used - std::min(used, cache);
  memory.free = std::min(memory.free, static_cast<std::size_t>(limit - std::min(limit, held)));
}

}  // namespace

HostMemory host_memory(const std::string& root) {
  constexpr std::uint64_t kKibibyte = 1024;
  const std::string meminfo = root + "/proc/meminfo";
  HostMemory memory;
  memory.total = static_cast<std::size_t>(number_behind(meminfo, "MemTotal:").value_or(0) * kKibibyte);
  memory.free = static_cast<std::size_t>(number_behind(meminfo, "MemAvailable:").value_or(0) * kKibibyte);
  const std::size_t machine = memory.total;
  std::ifstream groups(root + "/proc/self/cgroup");  // lines "number:controllers:path"
  for (std::string line; std::getline(groups, line);) {
    const std::size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = cat(",", line.substr(first + 1, second - first - 1), ",");
    const bool is_version_2 = controllers == ",,";
    if (!is_version_2 && controllers.find(",memory,") == std::string::npos) continue;
    const Names& names = is_version_2 ? kVersion2 : kVersion1;
    for (std::string path = line.substr(second + 1);; path.resize(path.rfind('/'))) {
      if (path == "/") path.clear();
      limit_by(memory, machine, root + names.mount + path, names);
      if (path.find('/') == std::string::npos) break;
    }
  }
  return memory;
}

void share_host_memory(int processes) { sharers = std::max(processes, 1); }

HostMemory host_memory_share() {
  const HostMemory all = host_memory();
  const auto by = static_cast<std::size_t>(sharers.load());
  return {all.total / by, all.free / by};
}

}  // namespace castor
