// TLS for HTTP: what a server shows, and whom a client believes. TLS 1.2 and 1.3 by OpenSSL.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "common/result.h"

namespace boost::asio::ssl {
class context;
}

namespace ps::net {

// Shared by whoever makes connections with it and the connections themselves.
using TlsContext = std::shared_ptr<boost::asio::ssl::context>;

struct TlsFiles {
  std::string certificate;  // PEM: the server's own, then those up to the authority
  std::string key;          // PEM, without a passphrase

  bool given() const { return !certificate.empty(); }
};

struct ServerTls {
  TlsContext context;
  std::int64_t until_ms = 0;  // when the certificate expires, Unix time
};

// kIo if a file cannot be read; kDenied if others than owner and group may read the key; kInvalid
// if they are no such files or do not belong together.
Result<ServerTls> OpenServerTls(const TlsFiles& files);

// `authorities`: a PEM file of those that may vouch for a server; empty: those of the system.
Result<TlsContext> OpenClientTls(const std::string& authorities);

}  // namespace ps::net
