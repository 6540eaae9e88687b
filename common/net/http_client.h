// One blocking HTTP call, with TLS or without, for ds-cli and tests.
//
// Of a server with TLS the certificate must be vouched for, and for the host of the URL. A token is
// sent only to such a server, or within this host.
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
  bool tls = false;  // https
  std::string host;
  std::string port;    // "80" or "443" if the URL names none
  std::string target;  // "/" if the URL names none
};

struct HttpAccess {
  std::string authorities;  // PEM file of those that may vouch for a server; empty: the system's
  std::string token;        // empty: none
};

// "http://host:port/path?query", or https; without a scheme it is http. [::1] is understood.
// kUsage otherwise.
Result<HttpUrl> ParseHttpUrl(const std::string& url);

// A non-empty body is sent as application/json. Answers are read up to 64 MiB.
//   kUsage        the URL makes no sense
//   kUnreachable  no connection by the deadline: nothing listens there, or the name is unknown
//   kTimeout      connected, but no answer by the deadline; the request may have been carried out
//   kMaybeApplied the connection broke after the request was sent
//   kInvalid      what answered does not speak HTTP, or no TLS
//   kDenied       nobody vouches for its certificate, or for another host; or the token would be
//                 sent to another host without TLS. Nothing was sent
// And as OpenClientTls(). Each message names host:port.
Result<HttpReply> HttpCall(const std::string& method, const std::string& url,
                           const std::string& body, Milliseconds deadline,
                           const HttpAccess& access = {});

}  // namespace ps::net
