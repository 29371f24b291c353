// OpenSSL's message digests behind one class.
//
// Delicate: every call reports failure by its return value and never by an exception; a failure here means no memory
// or a crippled library, which no caller can do anything about.
#include "strategy/source/sha256.h"

#include <array>
#include <cerrno>
#include <vector>

#include <openssl/evp.h>

#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/file_error.h"
#include "core/base/interrupt.h"

namespace castor::strategy {
namespace {

void check(int result) {
  if (result != 1) throw InternalError("sha256: the crypto library failed");
}

}  // namespace

struct Sha256::State {
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  State() = default;
  State(const State&) = delete;
  State& operator=(const State&) = delete;
  ~State() { EVP_MD_CTX_free(context); }
};

Sha256::Sha256() : state_(std::make_unique<State>()) {
  check(state_->context != nullptr ? 1 : 0);
  check(EVP_DigestInit_ex(state_->context, EVP_sha256(), nullptr));
}

Sha256::~Sha256() = default;

void Sha256::update(std::span<const std::byte> bytes) {
  check(EVP_DigestUpdate(state_->context, bytes.data(), bytes.size()));
}

std::string Sha256::hex() {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::array<unsigned char, 32> digest{};
  check(EVP_DigestFinal_ex(state_->context, digest.data(), nullptr));
  std::string out;
  for (const unsigned char byte : digest) {
    out += kDigits[byte >> 4];
    out += kDigits[byte & 15];
  }
  return out;
}

std::string sha256_hex(std::string_view text) {
  Sha256 digest;
  digest.update(as_byte_span(text));
  return digest.hex();
}

std::string sha256_of_file(const std::string& path, FileSystem& files) {
  const File file = File::open(path, OpenMode::read, files);
  std::vector<std::byte> buffer(std::size_t{1} << 20);
  Sha256 digest;
  for (std::uint64_t offset = 0;;) {
    if (stop_requested()) throw IoError(cat("check ", quote_name(path, 4096), ": stopped"), path, EINTR);
    const std::size_t got = file.read_up_to(buffer, offset);
    digest.update(std::span(buffer).first(got));
    offset += got;
    if (got < buffer.size()) return digest.hex();
  }
}

}  // namespace castor::strategy
