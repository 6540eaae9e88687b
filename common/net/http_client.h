// One blocking HTTP call, for ds-cli and tests.
//
// The deadline is for the whole call: name lookup, connect, request and answer. (The system's
// resolver cannot be interrupted: a dead DNS server may hold the call a little longer.)
// Any status is a reply, redirects are not followed: that is the caller's choice.
#pragma once

#include <cstdint>
#include <string>

#include "common/net/loop.h"
#include "common/result.h"

namespace ps::net {

struct HttpReply {
  int status = 0;
  std::string body;
  std::string content_type;
  std::string location;  // of a redirect, else empty
};

struct HttpUrl {
  std::string host;
  std::string port;    // "80" if the URL names none
  std::string target;  // "/" if the URL names none
};

// "http://host:port/path?query"; the scheme may be left out, [::1] is understood. kUsage otherwise.
Result<HttpUrl> ParseHttpUrl(const std::string& url);

// A non-empty body is sent as application/json. Answers are read up to 64 MiB.
//   kUsage        the URL makes no sense
//   kUnreachable  no connection by the deadline: nothing listens there, or the name is unknown
//   kTimeout      connected, but no answer by the deadline; the request may have been carried out
//   kMaybeApplied the connection broke after the request was sent
//   kInvalid      what answered does not speak HTTP
// Each message names host:port.
Result<HttpReply> HttpCall(const std::string& method, const std::string& url,
                           const std::string& body, Milliseconds deadline);

}  // namespace ps::net
