// Certificates for the REST API, of an authority of the cluster's own, as PEM texts.
//
// Keys are on the curve P-256, signatures ECDSA with SHA-256. Pure, but for random numbers and the
// time; any thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/result.h"

struct x509_st;  // OpenSSL's X509

namespace ps::net {

struct PemPair {
  std::string certificate;
  std::string key;  // secret
};

// A new authority, valid for so many days.
Result<PemPair> MakeAuthority(int days);

struct ServerCertificate {
  PemPair pair;
  std::int64_t until_ms = 0;  // Unix time
};

// A certificate of the authority for a server of these names and addresses. `key`: its secret key,
// or empty for a new one. kUsage if a host is none; kInvalid, beginning with "the authority: " or
// "the key: ", if one makes no sense.
Result<ServerCertificate> MakeServerCertificate(const PemPair& authority,
                                                const std::vector<std::string>& hosts, int days,
                                                const std::string& key = "");

// When it expires, Unix time; 0 if there is none.
std::int64_t ExpiryMs(const x509_st* certificate);

}  // namespace ps::net
