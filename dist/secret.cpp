// OpenSSL's HMAC and random numbers, confined to this file.
#include "dist/secret.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>

#include "core/base/error.h"

namespace castor::dist {

Challenge random_challenge() {
  Challenge bytes;
  if (RAND_bytes(reinterpret_cast<unsigned char*>(bytes.data()), static_cast<int>(bytes.size())) != 1) {
    throw InternalError("job secret: the system gives no random bytes");
  }
  return bytes;
}

JobSecret JobSecret::random() {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string text;
  for (const std::byte byte : random_challenge()) {
    text += kDigits[std::to_integer<std::size_t>(byte >> 4)];
    text += kDigits[std::to_integer<std::size_t>(byte & std::byte{15})];
  }
  return JobSecret(std::move(text));
}

Proof JobSecret::prove(std::string_view side, const Challenge& first, const Challenge& second) const {
  std::string message(side);
  for (const Challenge* part : {&first, &second})
    message.append(reinterpret_cast<const char*>(part->data()), part->size());
  Proof proof;
  unsigned length = 0;
  const unsigned char* done = HMAC(EVP_sha256(), text_.data(), static_cast<int>(text_.size()),
                                   reinterpret_cast<const unsigned char*>(message.data()), message.size(),
                                   reinterpret_cast<unsigned char*>(proof.data()), &length);
  if (done == nullptr || length != proof.size()) throw InternalError("job secret: HMAC-SHA256 failed");
  return proof;
}

bool equal_proofs(const Proof& a, const Proof& b) { return CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0; }

}  // namespace castor::dist
