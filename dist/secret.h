// The secret of a job: what a process must know before anything that it sends is looked at.
//
// Both sides prove it to each other by answering fresh random challenges (HMAC-SHA256), so it never crosses the wire
// and an overheard proof is worth nothing later. Delicate: it keeps strangers out of a job; it does not encrypt what
// ranks say afterwards. Source: RFC 2104.
#pragma once

#include <array>
#include <cstddef>
#include <string>
#include <string_view>

namespace castor::dist {

using Challenge = std::array<std::byte, 32>;
using Proof = std::array<std::byte, 32>;

class JobSecret {
 public:
  /// From any text, such as an environment variable.
  explicit JobSecret(std::string text) : text_(std::move(text)) {}
  /// 32 random bytes as hexadecimal text. Throws InternalError if the system has no randomness.
  static JobSecret random();

  const std::string& text() const { return text_; }
  /// What only a holder of the secret can say about two challenges; `side` keeps the two directions apart.
  Proof prove(std::string_view side, const Challenge& first, const Challenge& second) const;

 private:
  std::string text_;
};

/// Fresh random bytes. Throws InternalError if the system has none.
Challenge random_challenge();
/// Compares in a time that does not depend on where they differ.
bool equal_proofs(const Proof& a, const Proof& b);

}  // namespace castor::dist
