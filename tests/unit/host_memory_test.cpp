// The host's memory as the kernel's files give it, in folders that stand for machines and containers.
#include "core/base/host_memory.h"

#include <filesystem>
#include <fstream>
#include <string>

#include <doctest/doctest.h>

#include "tests/support/temp_dir.h"

namespace castor {
namespace {

constexpr std::size_t kMebibyte = std::size_t{1} << 20;

/// A machine of 1000 MiB, 800 of which are free.
class Machine {
 public:
  explicit Machine(const std::string& groups) {
    write("proc/meminfo", "MemTotal:        1024000 kB\nMemFree:          102400 kB\nMemAvailable:     819200 kB\n");
    write("proc/self/cgroup", groups);
  }
  void write(const std::string& name, const std::string& text) const {
    std::filesystem::create_directories((folder_.path() / name).parent_path());
    std::ofstream(folder_.path() / name) << text;
  }
  HostMemory memory() const { return host_memory(folder_.path().string()); }

 private:
  test::TempDir folder_;
};

void check_memory(const Machine& machine, std::size_t total_mib, std::size_t free_mib) {
  CHECK(machine.memory().total == total_mib * kMebibyte);
  CHECK(machine.memory().free == free_mib * kMebibyte);
}

std::string mib(std::size_t count) { return std::to_string(count * kMebibyte) + "\n"; }

TEST_CASE("without limits the machine's memory counts, page cache as free") {
  check_memory(Machine("0::/\n"), 1000, 800);
  check_memory(Machine(""), 1000, 800);
  const Machine limitless("0::/job\n");
  limitless.write("sys/fs/cgroup/job/memory.max", "max\n");
  check_memory(limitless, 1000, 800);
}

TEST_CASE("the control group's limit is what there is, less what it uses beside page cache") {
  const Machine machine("0::/jobs/one\n");
  machine.write("sys/fs/cgroup/jobs/one/memory.max", mib(600));
  machine.write("sys/fs/cgroup/jobs/one/memory.current", mib(300));
  machine.write("sys/fs/cgroup/jobs/one/memory.stat",
                "active_file 5\ninactive_file " + mib(100) + "inactive_file_x 7\n");
  check_memory(machine, 600, 400);
  SUBCASE("of those above it the smallest counts, and what others use of it") {
    machine.write("sys/fs/cgroup/jobs/memory.max", mib(500));
    machine.write("sys/fs/cgroup/jobs/memory.current", mib(450));
    check_memory(machine, 500, 50);
    machine.write("sys/fs/cgroup/jobs/memory.max", mib(700));
    check_memory(machine, 600, 250);
  }
  SUBCASE("the machine may have less left") {
    machine.write("proc/meminfo", "MemTotal: 1024000 kB\nMemAvailable: 10240 kB\n");
    check_memory(machine, 600, 10);
  }
  SUBCASE("more in use than the limit is no memory, not very much") {
    machine.write("sys/fs/cgroup/jobs/one/memory.current", mib(900));
    check_memory(machine, 600, 0);
  }
}

TEST_CASE("version 1 of control groups, whose containers see their own group at the root") {
  const Machine machine("5:cpu:/x\n4:blkio,memory:/docker/1\n0::/\n");
  machine.write("sys/fs/cgroup/memory/memory.limit_in_bytes", mib(400));
  machine.write("sys/fs/cgroup/memory/memory.usage_in_bytes", mib(100));
  machine.write("sys/fs/cgroup/memory/memory.stat", "inactive_file 1\ntotal_inactive_file " + mib(20));
  check_memory(machine, 400, 320);
  machine.write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");  // none
  check_memory(machine, 1000, 800);
}

TEST_CASE("files that are missing or make no sense limit nothing") {
  const test::TempDir empty;
  CHECK(host_memory(empty.path().string()).total == 0);
  const Machine machine("nonsense\n0::\n3:memory\n0::/a/../b\n");
  machine.write("sys/fs/cgroup/memory.max", "lots\n");
  check_memory(machine, 1000, 800);
}

TEST_CASE("this host has memory, and ranks share it alike") {
  const std::size_t total = host_memory().total;
  CHECK(total > 64 * kMebibyte);
  CHECK(host_memory_share().total == total);
  share_host_memory(4);
  CHECK(host_memory_share().total == total / 4);
  share_host_memory(1);
}

}  // namespace
}  // namespace castor
