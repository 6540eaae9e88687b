// A small HTTP/1.1 server on a Loop, with TLS or without, for the REST interface and the metrics
// page.
//
// Keep-alive, bounded connections (in all and of each address), bounded header and body, a bounded
// rate for each address, and a deadline on each phase. A request that makes no sense is answered
// 400, 413 or 431 and the connection closed, one that comes too often 429; one that is cut or too
// slow is only closed; all are counted. Who may ask is decided by the header, before any of a body
// is read. The handler gets whole requests, on the loop, and answers at once or later through the
// Responder; if nobody does, the server answers 504 itself. Whoever speaks HTTP to a port with TLS
// is told so.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/net/loop.h"
#include "common/net/tls.h"
#include "common/result.h"

namespace ps::net {

struct HttpRequest {
  std::string method;                          // "GET"
  std::string target;                          // as sent: "/v1/jobs/7?wait=1"
  std::string path;                            // decoded, without the query: "/v1/jobs/7"
  std::map<std::string, std::string> query;    // decoded; of equal names the last one wins
  std::map<std::string, std::string> headers;  // names in lower case
  std::string body;
  std::string peer;  // "127.0.0.1:51234"

  // The value of a query parameter, or `fallback`.
  std::string QueryOr(const std::string& name, const std::string& fallback) const;
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::string body;
  std::vector<std::pair<std::string, std::string>> headers = {};
};

HttpResponse JsonResponse(int status, const nlohmann::json& value);
HttpResponse TextResponse(int status, std::string text);
// {"apiVersion": "ds/v1", "error": {"code": "DS-E0801", "kind": "not_found", "message": ...}}
HttpResponse ErrorResponse(int status, const Error& error);
// The same with the status that fits the code: kNotFound 404, kConflict 409, kInvalid and kUsage
// 400, kDenied 403, kUnreachable and kClosed 503, kTimeout 504, others 500.
HttpResponse ErrorResponse(const Error& error);
// 307 with a Location header: ask the leader.
HttpResponse RedirectResponse(const std::string& location);

// Answers one request, once; later calls are ignored, and so is an answer after the connection or
// the server is gone or the deadline over. Copies answer the same request. If the last copy goes
// without an answer the client gets 500. To be used on the loop's thread.
class Responder {
 public:
  class Pending;

  explicit Responder(std::shared_ptr<Pending> pending) : pending_(std::move(pending)) {}

  void Answer(HttpResponse response) const;
  // True once answered, or when the client does not wait any more.
  bool answered() const;

 private:
  std::shared_ptr<Pending> pending_;
};

struct HttpServerOptions {
  std::size_t connections_max = 256;       // one more is closed at once
  std::size_t connections_per_peer = 128;  // of one address
  // Connections and requests of one address a second, and at once after a pause; 0: no bound.
  double rate_per_peer = 0;
  double burst_per_peer = 0;
  std::uint32_t header_bytes_max = 16u << 10;
  std::uint64_t body_bytes_max = std::uint64_t{16} << 20;
  Milliseconds handshake_timeout{5'000};  // of TLS
  Milliseconds first_timeout{15'000};     // until the first request begins
  Milliseconds idle_timeout{60'000};      // between two requests
  Milliseconds request_timeout{15'000};   // from the first byte of a request to its last
  Milliseconds answer_timeout{30'000};    // until the handler has answered, else 504
  Milliseconds write_timeout{15'000};
};

struct HttpServerCounters {
  std::uint64_t requests = 0;
  std::uint64_t bad_requests = 0;  // junk, oversized, cut in the middle, too slow
  std::uint64_t refused_connections = 0;
  std::uint64_t refused_requests = 0;   // by who decides who may ask
  std::uint64_t too_many_requests = 0;  // 429
  std::uint64_t failed_handshakes = 0;
  std::uint64_t timed_out_answers = 0;
  std::size_t connections = 0;  // open now
};

class HttpServer {
 public:
  using Handler = std::function<void(const HttpRequest&, Responder)>;
  // The answer to a request that is not to be carried out; nothing: it is. The body is not there.
  using Gate = std::function<std::optional<HttpResponse>(const HttpRequest&)>;

  // `address` is a numeric IP address; port 0: any free one.
  HttpServer(Loop& loop, std::string address, std::uint16_t port, HttpServerOptions options = {});
  // Closes the port and all connections.
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  // Set before Start(). Runs for every request of every method and path.
  void OnRequest(Handler handler);

  // Set before Start(). Runs for every request once its header is there.
  void OnHeader(Gate gate);

  // From now on new connections speak TLS, and only that. May be called again, with another
  // certificate; connections that are there keep theirs.
  void UseTls(TlsContext tls);

  // Binds and listens; returns "127.0.0.1:7070" with the real port. kConflict: the port is taken.
  Result<std::string> Start();

  HttpServerCounters counters() const;

 private:
  friend class Responder;
  struct State;
  class Session;

  // Shared with the connections' pending operations.
  const std::shared_ptr<State> state_;
};

}  // namespace ps::net
