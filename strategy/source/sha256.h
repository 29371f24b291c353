// SHA-256, by which publishers of weights say what a file must hold. OpenSSL's, which uses the processor's own
// instructions; its headers stay in the .cpp file.
//
// Delicate: hashing a large file takes seconds to minutes, so sha256_of_file looks at the stop flag.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "core/base/file_system.h"

namespace castor::strategy {

/// A digest of bytes that come in pieces.
class Sha256 {
 public:
  Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;
  ~Sha256();

  void update(std::span<const std::byte> bytes);
  /// 64 hexadecimal digits, lower case. Called once, last.
  std::string hex();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// The digest of a text.
std::string sha256_hex(std::string_view text);

/// The digest of a file. Throws IoError, with code EINTR if Ctrl-C came in between.
std::string sha256_of_file(const std::string& path, FileSystem& files = posix_file_system());

}  // namespace castor::strategy
