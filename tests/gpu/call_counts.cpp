// Counts what a CUDA program asks of the driver that costs a step its speed: memory from the system, and waits of the
// host for the device. Loaded before the program (LD_PRELOAD), it sees every library in it: each of them, static
// copies of the CUDA runtime too, finds the driver's functions by name, through dlsym and then cuGetProcAddress, and
// gets counting ones here. At the end of the process the counts are written to the file that CALL_COUNTS names. Waits
// are counted from the last allocation on: those of a start, which differ from run to run, lie before it.
//
// Delicate: a counting function forwards six integer registers, which is what any of these functions takes at most on
// x86-64, so it needs no declaration of them and no CUDA header. dlsym itself is replaced, and its real one is found by
// its version in glibc.
#include <array>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include <dlfcn.h>

namespace {

using Word = std::uintptr_t;
using Function = int (*)(Word, Word, Word, Word, Word, Word);

struct Call {
  const char* kind;
  const char* name;
};
// The driver's names without version suffixes, as cuGetProcAddress takes them.
constexpr std::array kCalls{Call{"allocations", "cuMemAlloc"},
                            Call{"allocations", "cuMemAllocPitch"},
                            Call{"allocations", "cuMemAllocManaged"},
                            Call{"allocations", "cuMemAllocAsync"},
                            Call{"allocations", "cuMemAllocFromPoolAsync"},
                            Call{"allocations", "cuMemCreate"},
                            Call{"allocations", "cuMemAllocHost"},
                            Call{"allocations", "cuMemHostAlloc"},
                            Call{"allocations", "cuMemHostRegister"},
                            Call{"releases", "cuMemFree"},
                            Call{"releases", "cuMemFreeAsync"},
                            Call{"releases", "cuMemFreeHost"},
                            Call{"releases", "cuMemHostUnregister"},
                            Call{"synchronisations", "cuCtxSynchronize"},
                            Call{"synchronisations", "cuStreamSynchronize"},
                            Call{"synchronisations", "cuEventSynchronize"},
                            Call{"synchronisations", "cuMemcpy"},
                            Call{"synchronisations", "cuMemcpyHtoD"},
                            Call{"synchronisations", "cuMemcpyDtoH"},
                            Call{"synchronisations", "cuMemcpyDtoD"}};

std::array<std::atomic<std::uint64_t>, kCalls.size()> counts{};
std::array<std::atomic<Function>, kCalls.size()> real{};
std::atomic<Function> real_lookup = nullptr;

bool is_kind(std::size_t call, const char* kind) { return std::strcmp(kCalls[call].kind, kind) == 0; }

template <std::size_t kCall>
int counted(Word a, Word b, Word c, Word d, Word e, Word f) {
  counts[kCall].fetch_add(1, std::memory_order_relaxed);
  if (is_kind(kCall, "allocations")) {
    for (std::size_t i = 0; i < kCalls.size(); ++i) {
      if (is_kind(i, "synchronisations")) counts[i] = 0;
    }
  }
  return real[kCall].load()(a, b, c, d, e, f);
}

template <std::size_t... kCall>
constexpr std::array<Function, sizeof...(kCall)> counting(std::index_sequence<kCall...>) {
  return {counted<kCall>...};
}
constexpr std::array kCounting = counting(std::make_index_sequence<kCalls.size()>{});

/// True if `name` is that of a call, with or without a version or a stream suffix.
bool is_named(const char* name, const char* call) {
  const std::size_t length = std::strlen(call);
  if (std::strncmp(name, call, length) != 0) return false;
  const char* const rest = name + length;
  return *rest == '\0' || std::strncmp(rest, "_v", 2) == 0 || std::strncmp(rest, "_pt", 3) == 0;
}

/// The counting function for one that was found, or that itself.
void* replaced(const char* name, void* found) {
  for (std::size_t i = 0; i < kCalls.size(); ++i) {
    if (found == nullptr || !is_named(name, kCalls[i].name)) continue;
    real[i] = reinterpret_cast<Function>(found);
    return reinterpret_cast<void*>(kCounting[i]);
  }
  return found;
}

/// cuGetProcAddress(name, &function, version, flags, status).
int lookup(Word name, Word function, Word version, Word flags, Word status, Word rest) {
  const int result = real_lookup.load()(name, function, version, flags, status, rest);
  auto** const found = reinterpret_cast<void**>(function);
  const auto* const text = reinterpret_cast<const char*>(name);
  if (result != 0 || found == nullptr || *found == nullptr || text == nullptr) return result;
  if (is_named(text, "cuGetProcAddress")) {
    real_lookup = reinterpret_cast<Function>(*found);
    *found = reinterpret_cast<void*>(lookup);
  } else {
    *found = replaced(text, *found);
  }
  return result;
}

struct Report {
  ~Report() {
    const char* const path = std::getenv("CALL_COUNTS");
    std::FILE* const file = path != nullptr ? std::fopen(path, "w") : nullptr;
    if (file == nullptr) return;
    for (std::size_t i = 0; i < kCalls.size(); ++i) {
      std::fprintf(file, "%s %s %llu\n", kCalls[i].kind, kCalls[i].name,
                   static_cast<unsigned long long>(counts[i].load()));
    }
    std::fprintf(file, "found driver %d\n", real_lookup.load() != nullptr ? 1 : 0);
    std::fclose(file);
  }
} report;

}  // namespace

extern "C" void* dlsym(void* handle, const char* name) noexcept {
  using Lookup = void* (*)(void*, const char*);
  static const auto found = reinterpret_cast<Lookup>(dlvsym(RTLD_NEXT, "dlsym", "GLIBC_2.2.5"));
  void* const result = found(handle, name);
  if (result == nullptr) return result;
  if (is_named(name, "cuGetProcAddress")) {
    real_lookup = reinterpret_cast<Function>(result);
    return reinterpret_cast<void*>(lookup);
  }
  return replaced(name, result);
}
