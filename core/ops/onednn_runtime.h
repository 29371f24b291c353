// What the onednn*.cpp files share: the engine, the thread's stream, and the cache of primitives by key.
//
// Delicate: the cache is per thread, so lookups take no lock and the memory handles inside an entry are never shared.
// It is bounded: when shapes keep changing (generation with a growing context), it starts afresh.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <unordered_map>

namespace dnnl {
struct engine;
struct stream;
}  // namespace dnnl

namespace castor::onednn {

/// The process's engine for the CPU. Never destroyed.
const dnnl::engine& engine();
/// The calling thread's stream.
dnnl::stream& stream();

/// Everything that picks a primitive, as integers. Unused places are 0.
using Key = std::array<std::int64_t, 20>;

struct KeyHash {
  std::size_t operator()(const Key& key) const {
    std::uint64_t hash = 0x9E3779B97F4A7C15ull;
    for (const std::int64_t value : key) {
      hash = (hash ^ static_cast<std::uint64_t>(value)) * 0xFF51AFD7ED558CCDull;
      hash ^= hash >> 32;
    }
    return static_cast<std::size_t>(hash);
  }
};

/// Primitives of one kind that a thread has made.
template <class Entry>
class Cache {
 public:
  /// The entry for `key`; made by `make()`, which returns a unique_ptr, on first use.
  template <class Make>
  Entry& find_or_make(const Key& key, Make&& make) {
    const auto found = entries_.find(key);
    if (found != entries_.end()) return *found->second;
    if (entries_.size() >= kMaxEntries) entries_.clear();
    return *entries_.emplace(key, make()).first->second;
  }

 private:
  static constexpr std::size_t kMaxEntries = 1024;
  std::unordered_map<Key, std::unique_ptr<Entry>, KeyHash> entries_;
};

}  // namespace castor::onednn
