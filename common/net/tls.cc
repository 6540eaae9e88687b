#include "common/net/tls.h"

#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <sys/stat.h>

#include <boost/asio/ssl/context.hpp>
#include <cerrno>
#include <cstring>
#include <utility>

#include "common/error_id.h"
#include "common/net/certificates.h"
#include "common/secret_file.h"

namespace ps::net {
namespace {

namespace ssl = boost::asio::ssl;
using boost::system::error_code;

Error Wrong(const std::string& path, const std::string& what, const error_code& error) {
  return Error{ErrorId::kCertificateFile, path + ": " + what + ": " + error.message()};
}

Status CheckThere(const std::string& path) {
  struct stat state {};
  if (::stat(path.c_str(), &state) == 0) return Ok();
  return Error{ErrorId::kSecretUnreadable, path + ": cannot be read: " + std::strerror(errno)};
}

TlsContext NewContext(ssl::context::method method) {
  auto context = std::make_shared<ssl::context>(method);
  SSL_CTX_set_min_proto_version(context->native_handle(), TLS1_2_VERSION);
  SSL_CTX_set_options(context->native_handle(), SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION |
                                                    SSL_OP_CIPHER_SERVER_PREFERENCE);
  return context;
}

}  // namespace

Result<ServerTls> OpenServerTls(const TlsFiles& files) {
  PS_TRY(CheckThere(files.certificate));
  PS_TRY(CheckSecretFile(files.key, SecretReaders::kOwnerAndGroup, "secret key"));
  TlsContext context = NewContext(ssl::context::tls_server);
  // Nobody asks at a terminal: a key with a passphrase is an error.
  error_code error;
  context->set_password_callback([](std::size_t, ssl::context::password_purpose) { return ""; },
                                 error);
  // Clients make one connection each: what is kept to resume it would be in vain.
  SSL_CTX_set_session_cache_mode(context->native_handle(), SSL_SESS_CACHE_OFF);
  SSL_CTX_set_options(context->native_handle(), SSL_OP_NO_TICKET);
  SSL_CTX_set_num_tickets(context->native_handle(), 0);
  context->use_certificate_chain_file(files.certificate, error);
  if (error) return Wrong(files.certificate, "is no certificate in PEM", error);
  context->use_private_key_file(files.key, ssl::context::pem, error);
  if (error) {
    return Wrong(files.key, "is no secret key in PEM, or not that of " + files.certificate, error);
  }
  return ServerTls{context, ExpiryMs(SSL_CTX_get0_certificate(context->native_handle()))};
}

Result<TlsContext> OpenClientTls(const std::string& authorities) {
  TlsContext context = NewContext(ssl::context::tls_client);
  error_code error;
  context->set_verify_mode(ssl::verify_peer, error);
  if (authorities.empty()) {
    context->set_default_verify_paths(error);
    if (error) return Wrong("the system's certificates", "cannot be read", error);
    return context;
  }
  PS_TRY(CheckThere(authorities));
  context->load_verify_file(authorities, error);
  if (error) return Wrong(authorities, "has no certificate in PEM", error);
  return context;
}

}  // namespace ps::net
