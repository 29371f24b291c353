// Digests of bytes: XXH3, 64 bits, behind one header.
//
// Every byte of a checkpoint stands under one, so hashing must cost less than moving the bytes does. Delicate: it finds
// accidents (a flipped bit, a torn write, a wrong file), not forgers: anybody can make bytes for a given digest.
// Source: https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md, section "XXH3".
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace castor {

/// XXH3 of some bytes, seed 0.
std::uint64_t xxh3(std::span<const std::byte> bytes);

/// The same over bytes that come in pieces.
class Xxh3Stream {
 public:
  Xxh3Stream();
  ~Xxh3Stream();
  Xxh3Stream(const Xxh3Stream&) = delete;
  Xxh3Stream& operator=(const Xxh3Stream&) = delete;

  void update(std::span<const std::byte> bytes);
  /// Of everything since the construction or the last reset.
  std::uint64_t digest() const;
  void reset();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// 16 hexadecimal digits, lower case, most significant first.
std::string hex_of_digest(std::uint64_t digest);
/// The digest of exactly 16 lower-case hexadecimal digits, or nothing.
std::optional<std::uint64_t> digest_of_hex(std::string_view text);

}  // namespace castor
