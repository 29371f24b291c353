// How much of the host's memory this process may use: what the machine has, what a container leaves of it, and the
// share of one rank where several run on the machine. Plans, placements and copies for saves go by it.
//
// Sources: proc(5) for /proc/meminfo, the kernel's admin guide for memory.max, memory.current and memory.stat of
// cgroups v2, and for memory.limit_in_bytes and memory.usage_in_bytes of v1.
#pragma once

#include <cstddef>
#include <string>

namespace castor {

/// Bytes; 0 = unknown.
struct HostMemory {
  std::size_t total = 0;  ///< of the machine, or the smallest limit of the control groups that this process is in
  std::size_t free = 0;   ///< what can be had now without swapping; page cache counts as free
};

/// Read anew at each call.
///   root  what stands before /proc and /sys: for tests
HostMemory host_memory(const std::string& root = "");

/// Says that so many processes, this one among them, use this host alike: the ranks of a job here. 1 unless said.
void share_host_memory(int processes);
/// host_memory() divided among them.
HostMemory host_memory_share();

}  // namespace castor
