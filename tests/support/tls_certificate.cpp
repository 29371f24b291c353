// OpenSSL's calls for one P-256 key and one X.509 certificate. Delicate: what OpenSSL makes is owned by hand-written
// deleters; a call that fails ends the test instead of giving a certificate that means something else.
#include "tests/support/tls_certificate.h"

#include <algorithm>
#include <memory>
#include <stdexcept>

#include <openssl/bio.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

namespace castor::test {
namespace {

struct Free {
  void operator()(EVP_PKEY* p) const { EVP_PKEY_free(p); }
  void operator()(X509* p) const { X509_free(p); }
  void operator()(X509_EXTENSION* p) const { X509_EXTENSION_free(p); }
  void operator()(BIO* p) const { BIO_free(p); }
};

template <class T>
T* needed(T* made) {
  if (made == nullptr) throw std::runtime_error("cannot make a certificate");
  return made;
}

void check(int result) {
  if (result <= 0) throw std::runtime_error("cannot make a certificate");
}

void add_extension(X509* certificate, int kind, const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx_nodb(&context);
  X509V3_set_ctx(&context, certificate, certificate, nullptr, nullptr, 0);
  const std::unique_ptr<X509_EXTENSION, Free> extension(
      needed(X509V3_EXT_conf_nid(nullptr, &context, kind, value.c_str())));
  check(X509_add_ext(certificate, extension.get(), -1));
}

template <class Write>
std::string pem_of(Write write) {
  const std::unique_ptr<BIO, Free> out(needed(BIO_new(BIO_s_mem())));
  check(write(out.get()));
  char* data = nullptr;
  const long size = BIO_get_mem_data(out.get(), &data);
  return {data, static_cast<std::size_t>(size)};
}

}  // namespace

TlsCertificate make_certificate(const std::string& host) {
  const std::unique_ptr<EVP_PKEY, Free> key(needed(EVP_EC_gen("P-256")));
  const std::unique_ptr<X509, Free> certificate(needed(X509_new()));
  check(X509_set_version(certificate.get(), X509_VERSION_3));
  check(ASN1_INTEGER_set(X509_get_serialNumber(certificate.get()), 1));
  needed(X509_gmtime_adj(X509_getm_notBefore(certificate.get()), -3600));
  needed(X509_gmtime_adj(X509_getm_notAfter(certificate.get()), 24 * 3600));
  check(X509_set_pubkey(certificate.get(), key.get()));
  X509_NAME* name = X509_get_subject_name(certificate.get());
  check(X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, reinterpret_cast<const unsigned char*>("castor test"), -1,
                                   -1, 0));
  check(X509_set_issuer_name(certificate.get(), name));
  const bool address = host.find_first_not_of("0123456789.") == std::string::npos;
  add_extension(certificate.get(), NID_subject_alt_name, (address ? "IP:" : "DNS:") + host);
  add_extension(certificate.get(), NID_basic_constraints, "critical,CA:TRUE");
  check(X509_sign(certificate.get(), key.get(), EVP_sha256()));
  return {pem_of([&](BIO* out) { return PEM_write_bio_X509(out, certificate.get()); }), pem_of([&](BIO* out) {
            return PEM_write_bio_PrivateKey(out, key.get(), nullptr, nullptr, 0, nullptr, nullptr);
          })};
}

}  // namespace castor::test
