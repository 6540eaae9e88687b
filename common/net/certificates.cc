#include "common/net/certificates.h"

#include <openssl/bio.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <array>
#include <boost/asio/ip/address.hpp>
#include <ctime>
#include <memory>
#include <utility>

#include "common/error_id.h"
#include "common/net/list_file.h"

namespace ps::net {
namespace {

constexpr long kDaySeconds = 86'400;
constexpr long kSkewSeconds = 3600;  // clocks that are behind find it valid, too
constexpr char kAuthorityName[] = "ds cluster authority";
constexpr std::size_t kCommonNameCharsMax = 64;

template <auto Free>
struct Freer {
  template <typename T>
  void operator()(T* object) const {
    Free(object);
  }
};
using Key = std::unique_ptr<EVP_PKEY, Freer<EVP_PKEY_free>>;
using Certificate = std::unique_ptr<X509, Freer<X509_free>>;
using Extension = std::unique_ptr<X509_EXTENSION, Freer<X509_EXTENSION_free>>;
using Bio = std::unique_ptr<BIO, Freer<BIO_free_all>>;

Error Failed(const std::string& what) {
  const char* const reason = ERR_reason_error_string(ERR_get_error());
  ERR_clear_error();
  return Error{ErrorCode::kInternal, what + ": " + (reason == nullptr ? "OpenSSL fails" : reason)};
}

std::string TextOf(BIO* bio) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio, &data);
  return size > 0 ? std::string(data, static_cast<std::size_t>(size)) : std::string();
}

Result<std::string> PemOf(const EVP_PKEY* key) {
  const Bio bio(BIO_new(BIO_s_mem()));
  if (bio == nullptr ||
      PEM_write_bio_PrivateKey(bio.get(), key, nullptr, nullptr, 0, nullptr, nullptr) != 1) {
    return Failed("writing a key");
  }
  return TextOf(bio.get());
}

Result<std::string> PemOf(const X509* certificate) {
  const Bio bio(BIO_new(BIO_s_mem()));
  if (bio == nullptr || PEM_write_bio_X509(bio.get(), certificate) != 1) {
    return Failed("writing a certificate");
  }
  return TextOf(bio.get());
}

// A key with a passphrase is an error: nobody asks at the terminal.
int NoPassphrase(char* /*buffer*/, int /*size*/, int /*writing*/, void* /*data*/) { return -1; }

Result<Key> KeyOf(const std::string& pem, const std::string& what) {
  const Bio bio(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
  Key key(PEM_read_bio_PrivateKey(bio.get(), nullptr, NoPassphrase, nullptr));
  ERR_clear_error();
  if (key == nullptr) {
    return Error{ErrorId::kCertificateFile, what + " is no secret key in PEM without a passphrase"};
  }
  return key;
}

Result<Key> MakeKey() {
  Key key(EVP_EC_gen("P-256"));
  if (key == nullptr) return Failed("making a key");
  return key;
}

Status AddExtension(X509* certificate, X509* issuer, int kind, const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx_nodb(&context);
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  const Extension extension(X509V3_EXT_conf_nid(nullptr, &context, kind, value.c_str()));
  if (extension == nullptr || X509_add_ext(certificate, extension.get(), -1) != 1) {
    return Failed(std::string(OBJ_nid2sn(kind)) + " of a certificate");
  }
  return Ok();
}

// What every certificate has; the issuer's name, its extensions and its signature come after.
Result<Certificate> NewCertificate(const std::string& name, EVP_PKEY* key, long days) {
  Certificate certificate(X509_new());
  std::array<unsigned char, 16> serial{};
  if (certificate == nullptr || RAND_bytes(serial.data(), static_cast<int>(serial.size())) != 1) {
    return Failed("making a certificate");
  }
  serial[0] &= 0x7f;  // a serial number is positive
  const std::unique_ptr<BIGNUM, Freer<BN_free>> number(
      BN_bin2bn(serial.data(), static_cast<int>(serial.size()), nullptr));
  X509_NAME* const subject = X509_get_subject_name(certificate.get());
  const bool made =
      number != nullptr && X509_set_version(certificate.get(), X509_VERSION_3) == 1 &&
      BN_to_ASN1_INTEGER(number.get(), X509_get_serialNumber(certificate.get())) != nullptr &&
      X509_gmtime_adj(X509_getm_notBefore(certificate.get()), -kSkewSeconds) != nullptr &&
      X509_gmtime_adj(X509_getm_notAfter(certificate.get()), days * kDaySeconds) != nullptr &&
      X509_set_pubkey(certificate.get(), key) == 1 &&
      X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_UTF8,
                                 reinterpret_cast<const unsigned char*>(name.c_str()), -1, -1,
                                 0) == 1;
  if (!made) return Failed("making a certificate");
  return certificate;
}

Status Sign(X509* certificate, X509* issuer, EVP_PKEY* key) {
  if (X509_sign(certificate, key, EVP_sha256()) == 0 ||
      X509_verify(certificate, X509_get0_pubkey(issuer)) != 1) {
    return Failed("signing a certificate");
  }
  return Ok();
}

// "DNS:node1,IP:10.0.0.7"
Result<std::string> AlternativeNames(const std::vector<std::string>& hosts) {
  std::string names;
  for (const std::string& host : hosts) {
    boost::system::error_code is_name;
    boost::asio::ip::make_address(host, is_name);
    const bool good = !is_name || (host.size() < 254 && host.find_first_of("@:_") == host.npos &&
                                   IsListName(host));
    if (!good)
      return Error{ErrorId::kOptionValue, "`" + host + "` is no name or address of a host"};
    names += std::string(names.empty() ? "" : ",") + (is_name ? "DNS:" : "IP:") + host;
  }
  if (names.empty()) return Error{ErrorId::kOptionValue, "a certificate is for at least one host"};
  return names;
}

}  // namespace

Result<PemPair> MakeAuthority(int days) {
  const Key key = PS_TRY(MakeKey());
  const Certificate certificate = PS_TRY(NewCertificate(kAuthorityName, key.get(), days));
  X509* const own = certificate.get();
  if (X509_set_issuer_name(own, X509_get_subject_name(own)) != 1) return Failed("an issuer");
  PS_TRY(AddExtension(own, own, NID_basic_constraints, "critical,CA:TRUE,pathlen:0"));
  PS_TRY(AddExtension(own, own, NID_key_usage, "critical,keyCertSign,cRLSign"));
  PS_TRY(AddExtension(own, own, NID_subject_key_identifier, "hash"));
  PS_TRY(Sign(own, own, key.get()));
  return PemPair{PS_TRY(PemOf(own)), PS_TRY(PemOf(key.get()))};
}

Result<ServerCertificate> MakeServerCertificate(const PemPair& authority,
                                                const std::vector<std::string>& hosts, int days,
                                                const std::string& key_pem) {
  const std::string names = PS_TRY(AlternativeNames(hosts));
  const Key issuer_key = PS_TRY(KeyOf(authority.key, "the authority: its key"));
  const Bio bio(BIO_new_mem_buf(authority.certificate.data(),
                                static_cast<int>(authority.certificate.size())));
  const Certificate issuer_owner(PEM_read_bio_X509(bio.get(), nullptr, NoPassphrase, nullptr));
  X509* const issuer = issuer_owner.get();
  const bool good = issuer != nullptr && X509_check_private_key(issuer, issuer_key.get()) == 1 &&
                    X509_check_ca(issuer) != 0;
  ERR_clear_error();
  if (!good) {
    return Error{ErrorId::kCertificateFile,
                 "the authority: its certificate is none of an authority, or not of its key"};
  }
  const Key key = key_pem.empty() ? PS_TRY(MakeKey()) : PS_TRY(KeyOf(key_pem, "the key: it"));
  const Certificate certificate =
      PS_TRY(NewCertificate(hosts.front().substr(0, kCommonNameCharsMax), key.get(), days));
  X509* const own = certificate.get();
  if (X509_set_issuer_name(own, X509_get_subject_name(issuer)) != 1) return Failed("an issuer");
  PS_TRY(AddExtension(own, issuer, NID_basic_constraints, "critical,CA:FALSE"));
  PS_TRY(AddExtension(own, issuer, NID_key_usage, "critical,digitalSignature"));
  PS_TRY(AddExtension(own, issuer, NID_ext_key_usage, "serverAuth"));
  PS_TRY(AddExtension(own, issuer, NID_subject_alt_name, names));
  PS_TRY(AddExtension(own, issuer, NID_subject_key_identifier, "hash"));
  PS_TRY(AddExtension(own, issuer, NID_authority_key_identifier, "keyid"));
  PS_TRY(Sign(own, issuer, issuer_key.get()));
  return ServerCertificate{{PS_TRY(PemOf(own)), PS_TRY(PemOf(key.get()))}, ExpiryMs(own)};
}

std::int64_t ExpiryMs(const X509* certificate) {
  std::tm date{};
  if (certificate == nullptr || ASN1_TIME_to_tm(X509_get0_notAfter(certificate), &date) != 1) {
    return 0;
  }
  return static_cast<std::int64_t>(::timegm(&date)) * 1000;
}

}  // namespace ps::net
