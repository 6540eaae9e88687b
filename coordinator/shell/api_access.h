// Who may use the REST API: TLS, and a token in a role that the endpoint wants (api_roles.h).
//
// Certificate, key and list of tokens are read again within a second when a file changes, and on
// Reload(); what makes no sense is an error in the log and changes nothing. Who has no valid token
// gets 401 whatever he asks for, so that he learns nothing of what there is; who has one, but not
// the role, 403. Each is a line in the log (some a second, then their number), and so is each
// request that changes something; tokens are never written. One loop.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "common/net/api_tokens.h"
#include "common/net/file_state.h"
#include "common/net/http_server.h"
#include "common/net/loop.h"
#include "common/net/sparse_log.h"
#include "common/net/tls.h"
#include "common/result.h"

namespace ps::coordinator {

struct ApiSecurity {
  net::TlsFiles tls;   // none: plain HTTP
  std::string tokens;  // the list; none: everybody may do everything

  // kUsage if that is not enough to listen at `bind`. `insecure`: the network itself is guarded.
  Status Check(const std::string& bind, bool insecure) const;
};

class ApiAccess {
 public:
  ApiAccess(net::Loop& loop, net::HttpServer& server, ApiSecurity security);

  // Reads the files and sets the server up; before it starts. As OpenServerTls() and
  // ApiTokens::ReadFile().
  Status Open();

  // Reads the files again, changed or not.
  void Reload();

  // Nothing if the request may be carried out, else the answer.
  std::optional<net::HttpResponse> Admit(const net::HttpRequest& request);
  // The same of what is asked about a job of `owner`, once Admit() has nothing against it.
  std::optional<net::HttpResponse> AdmitToJob(const net::HttpRequest& request,
                                              const std::string& owner);
  // Whose jobs those are that the request submits: its token's name up to a colon, so that a person
  // may have several. Empty without tokens.
  std::string OwnerOf(const net::HttpRequest& request) const;

  struct Counters {
    std::uint64_t refused = 0;    // no valid token
    std::uint64_t forbidden = 0;  // not the role
  };
  const Counters& counters() const { return counters_; }
  // Of the certificate, Unix time; 0 without TLS.
  std::int64_t certificate_until_ms() const { return until_ms_; }

 private:
  // Whose token the request has; null: nobody's. It may have expired.
  const net::ApiToken* Find(const net::HttpRequest& request) const;
  void Look(bool again);
  Status ReadTls();
  Status ReadTokens();
  net::HttpResponse Refuse(const net::HttpRequest& request, int status, const std::string& log,
                           const Error& error);

  net::HttpServer& server_;
  const ApiSecurity security_;
  net::Timer look_;
  net::FileState certificate_file_;
  net::FileState key_file_;
  net::FileState tokens_file_;
  net::ApiTokens tokens_;
  std::int64_t until_ms_ = 0;
  net::SparseLog log_{"requests to the API were refused"};
  Counters counters_;
};

}  // namespace ps::coordinator
