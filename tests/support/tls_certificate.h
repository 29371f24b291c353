// A self-signed certificate made when a test runs, so that no key lies in the tree and none ever expires.
#pragma once

#include <string>

namespace castor::test {

/// A certificate and its private key, both in PEM form.
struct TlsCertificate {
  std::string certificate;
  std::string key;
};

/// A certificate that signs itself, valid for a day.
///   host   the one name or IPv4 address it stands for
/// Throws std::runtime_error if the crypto library fails.
TlsCertificate make_certificate(const std::string& host);

}  // namespace castor::test
