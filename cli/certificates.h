// Files of certificates for the REST API, of an authority of the cluster's own, for whoever has
// none already (common/net/certificates.h). One thread.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "common/result.h"

namespace ps::cli {

struct CertificateOrder {
  std::vector<std::string> hosts;  // names and addresses that it is for
  int days = 365;
  std::filesystem::path certificate;
  std::filesystem::path key;
  std::filesystem::path authority;
  std::filesystem::path authority_key;
};

struct MadeCertificate {
  std::int64_t until_ms = 0;  // Unix time
  bool new_authority = false;
};

// Writes a certificate. Where its key, or the authority with its key, is not there yet, it is made;
// keys are for their owner alone. kUsage if a host is none; kDenied if others may use the
// authority's key; kInvalid if a file is no such thing.
Result<MadeCertificate> MakeCertificate(const CertificateOrder& order);

}  // namespace ps::cli
