// Memory that several processes of one machine map, whoever made it.
//
// It has no name in any folder: its maker keeps a descriptor (memfd), others open it through the maker's process and
// descriptor numbers, and it vanishes with the last process that maps it, killed or not. Delicate: a process number may
// mean another process in another container, so the memory carries a random mark behind its bytes that the address
// names. It is sealed: nobody can shorten it under the feet of the others.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

namespace castor {

class SharedMemory {
 public:
  enum class Access : unsigned char { kRead, kReadWrite };

  /// `bytes` zero bytes (a multiple of 4096), aligned to 2 MiB; a page costs nothing until it is touched.
  /// Null where the system refuses.
  static std::unique_ptr<SharedMemory> make(std::size_t bytes);
  /// Maps what another process, or this one, made; null if it cannot be reached from here, such as from another
  /// machine.
  ///   address  what its maker's `address()` says
  ///   bytes    those that the maker asked for
  static std::unique_ptr<SharedMemory> take(const std::string& address, std::size_t bytes, Access access);

  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;
  ~SharedMemory();

  std::byte* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }
  /// How others find it while this object lives; empty for one that was taken.
  const std::string& address() const { return address_; }
  /// Gives the pages of a range back to the system; whoever reads them later finds zeros.
  void discard(std::size_t offset, std::size_t bytes) const;

 private:
  SharedMemory(std::byte* data, std::size_t bytes, int descriptor) : data_(data), bytes_(bytes), file_(descriptor) {}

  std::byte* data_;
  std::size_t bytes_;  // without the page of the mark
  int file_;           // the maker's descriptor, -1 for others
  std::string address_;
};

}  // namespace castor
