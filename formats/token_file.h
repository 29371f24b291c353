// A text as byte tokens, mapped from a file and split into a part to train on and a part held out.
//
// Delicate: the held-out part is the file's last bytes and its length a pure function of the file's size and the
// fraction, so that every run and every rank means the same bytes; and mapped files must not be rewritten in place.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "core/base/file.h"

namespace castor::formats {

/// A file of byte tokens (vocabulary of 256), mapped read only. Cheap to copy: copies share the mapping.
class TokenFile {
 public:
  /// Maps `path` and holds out its last floor(size * held_out_fraction) bytes.
  /// Throws IoError; FormatError if the file is empty or too small for the fraction to hold out a byte; ConfigError
  /// {"held_out_fraction"} unless 0 <= held_out_fraction < 1.
  static TokenFile open(const std::string& path, double held_out_fraction, FileSystem& files = posix_file_system());

  const std::string& path() const { return file_.path(); }
  /// Every token, in file order.
  std::span<const std::uint8_t> all() const;
  /// The tokens to train on: those before the held-out ones. Never empty.
  std::span<const std::uint8_t> train() const { return all().first(train_size_); }
  /// The tokens held out; empty only if the fraction is 0.
  std::span<const std::uint8_t> held_out() const { return all().subspan(train_size_); }

 private:
  TokenFile(MappedFile file, std::size_t train_size) : file_(std::move(file)), train_size_(train_size) {}

  MappedFile file_;
  std::size_t train_size_;
};

}  // namespace castor::formats
