#include "common/net/http_server.h"

#include <openssl/err.h>
#include <openssl/ssl.h>

#include <algorithm>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <boost/beast/version.hpp>
#include <cctype>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "common/check.h"
#include "common/error_id.h"
#include "common/net/http_stream.h"
#include "common/net/peer_rates.h"

namespace ps::net {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using tcp = boost::asio::ip::tcp;
using boost::system::error_code;

namespace {

constexpr std::size_t kFirstReadBytes = 4096;
constexpr Milliseconds kAcceptRetry{100};
// After an error answer the rest of the request is read and thrown away, or the closing socket's
// reset would destroy the answer before the client reads it.
constexpr Milliseconds kDiscardTime{2000};
constexpr std::size_t kDiscardBytesMax = std::size_t{64} << 20;
constexpr std::size_t kDiscardChunk = 64u << 10;
// For who speaks HTTP to a port with TLS; as it stands, since it is not sent by TLS.
constexpr std::string_view kWantsTls =
    "HTTP/1.1 400 Bad Request\r\nServer: ds/" PS_VERSION
    "\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: 62\r\n\r\n"
    R"({"error":"this port speaks TLS: its URL begins with https://"})";

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// False when a percent sign is not followed by two hex digits, or codes a zero byte.
bool PercentDecode(std::string_view text, bool plus_is_space, std::string& out) {
  out.clear();
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '+' && plus_is_space) {
      out.push_back(' ');
    } else if (text[i] != '%') {
      out.push_back(text[i]);
    } else {
      if (text.size() - i < 3) return false;
      const int high = HexDigit(text[i + 1]);
      const int low = HexDigit(text[i + 2]);
      if (high < 0 || low < 0 || high + low == 0) return false;
      out.push_back(static_cast<char>(high * 16 + low));
      i += 2;
    }
  }
  return true;
}

bool SplitTarget(HttpRequest& request) {
  const std::string_view target = request.target;
  if (target.empty() || target[0] != '/') return false;
  const auto question = target.find('?');
  if (!PercentDecode(target.substr(0, question), false, request.path)) return false;
  if (question == std::string_view::npos) return true;
  std::string_view rest = target.substr(question + 1);
  while (!rest.empty()) {
    const auto end = std::min(rest.find('&'), rest.size());
    const std::string_view pair = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    if (pair.empty()) continue;
    const auto equals = std::min(pair.find('='), pair.size());
    std::string name;
    std::string value;
    if (!PercentDecode(pair.substr(0, equals), true, name) ||
        !PercentDecode(pair.substr(std::min(equals + 1, pair.size())), true, value)) {
      return false;
    }
    request.query[name] = std::move(value);
  }
  return true;
}

// The address whose connections and requests are counted together: of IPv6, of one network.
std::string CountedAs(const asio::ip::address& address) {
  if (address.is_v4()) return address.to_string();
  const auto six = address.to_v6();
  if (six.is_v4_mapped()) {
    return asio::ip::make_address_v4(asio::ip::v4_mapped, six).to_string();
  }
  const auto bytes = six.to_bytes();
  return {bytes.begin(), bytes.begin() + 8};
}

// A line end inside a header's value would let who chose the value write headers of his own.
std::string OneLine(std::string value) {
  std::replace_if(
      value.begin(), value.end(),
      [](char c) { return std::iscntrl(static_cast<unsigned char>(c)) != 0; }, '?');
  return value;
}

int StatusOf(ErrorCode code) {
  switch (code) {
    case ErrorCode::kUsage:
    case ErrorCode::kInvalid: return 400;
    case ErrorCode::kDenied: return 403;
    case ErrorCode::kNotFound: return 404;
    case ErrorCode::kConflict: return 409;
    case ErrorCode::kUnreachable:
    case ErrorCode::kClosed: return 503;
    case ErrorCode::kTimeout: return 504;
    case ErrorCode::kInternal:
    case ErrorCode::kMaybeApplied:
    case ErrorCode::kIo: return 500;
  }
  return 500;
}

}  // namespace

std::string HttpRequest::QueryOr(const std::string& name, const std::string& fallback) const {
  const auto found = query.find(name);
  return found == query.end() ? fallback : found->second;
}

HttpResponse JsonResponse(int status, const nlohmann::json& value) {
  HttpResponse response;
  response.status = status;
  // Bytes that are no UTF-8 (a log line, a file name) are replaced; by default dump() would throw.
  response.body = value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  return response;
}

HttpResponse TextResponse(int status, std::string text) {
  HttpResponse response;
  response.status = status;
  response.content_type = "text/plain; charset=utf-8";
  response.body = std::move(text);
  return response;
}

HttpResponse ErrorResponse(int status, const Error& error) {
  return JsonResponse(status, {{"apiVersion", "ds/v1"},
                               {"error",
                                {{"code", ErrorIdName(error.id)},
                                 {"kind", ErrorCodeName(error.code)},
                                 {"message", error.message}}}});
}

HttpResponse ErrorResponse(const Error& error) {
  return ErrorResponse(StatusOf(error.code), error);
}

HttpResponse RedirectResponse(const std::string& location) {
  HttpResponse response = ErrorResponse(307, {ErrorCode::kUnreachable, "ask " + location});
  response.headers.emplace_back("Location", location);
  return response;
}

struct HttpServer::State : std::enable_shared_from_this<HttpServer::State> {
  State(Loop& owner, std::string listen_address, std::uint16_t listen_port,
        HttpServerOptions server_options)
      : loop(owner),
        address(std::move(listen_address)),
        port(listen_port),
        options(server_options),
        rates(options.rate_per_peer, options.burst_per_peer),
        acceptor(owner.context()),
        retry(owner) {}

  void Accept();
  void Close();

  Loop& loop;
  const std::string address;
  const std::uint16_t port;
  const HttpServerOptions options;
  PeerRates rates;
  tcp::acceptor acceptor;
  Timer retry;
  Handler handler;
  Gate gate;
  TlsContext tls;
  std::map<std::string, std::size_t> connections_of;  // by address, as it is counted
  HttpServerCounters counters;
  // A session takes itself out when it closes, which also ends the circle of ownership.
  std::unordered_set<std::shared_ptr<Session>> sessions;
  bool closed = false;
};

// One connection: reads a request, waits for its answer, writes it, and begins again.
class HttpServer::Session : public std::enable_shared_from_this<HttpServer::Session> {
 public:
  Session(std::shared_ptr<State> server, tcp::socket socket, std::string peer, std::string address)
      : server_(std::move(server)),
        options_(server_->options),
        counters_(server_->counters),
        stream_(std::move(socket)),
        answer_timer_(server_->loop),
        peer_(std::move(peer)),
        address_(std::move(address)) {
    error_code ignored;
    stream_.tcp().socket().set_option(tcp::no_delay(true), ignored);
    ++server_->connections_of[address_];
    if (server_->tls) stream_.Encrypt(server_->tls);
  }

  void Begin();
  void Answer(std::uint64_t number, HttpResponse response);
  bool Waits(std::uint64_t number) const { return waiting_ && number == number_; }
  Loop& loop() { return server_->loop; }

  void Close() {
    if (closed_) return;
    const auto self = shared_from_this();
    closed_ = true;
    waiting_ = false;
    server_->sessions.erase(self);
    server_->counters.connections = server_->sessions.size();
    const auto others = server_->connections_of.find(address_);
    if (--others->second == 0) server_->connections_of.erase(others);
    answer_timer_.Cancel();
    error_code ignored;
    stream_.tcp().socket().shutdown(tcp::socket::shutdown_both, ignored);
    stream_.tcp().close();
  }

 private:
  void ReadFirst(Milliseconds patience);
  void HandshakeFailed(error_code error);
  void ReadHeader();
  bool Admit();
  void ReadBody();
  void ReadFailed(error_code error);
  void Handle();
  void Write(HttpResponse response);
  void Refuse(int status, const std::string& message);
  void EndOfAnswer();
  void DiscardRest();
  void Discard(std::size_t budget);

  const std::shared_ptr<State> server_;
  const HttpServerOptions& options_;
  HttpServerCounters& counters_;
  HttpStream stream_;
  beast::flat_buffer buffer_;
  Timer answer_timer_;
  const std::string peer_;
  const std::string address_;
  HttpRequest request_;
  std::optional<http::request_parser<http::string_body>> parser_;
  std::optional<http::response<http::string_body>> response_;
  std::optional<http::response_serializer<http::string_body>> serializer_;
  std::vector<char> discarded_;
  std::uint64_t number_ = 0;  // of the request that is being answered
  bool waiting_ = false;      // for its answer
  bool head_ = false;         // answered without its body
  bool keep_alive_ = false;
  bool closed_ = false;
};

// What the copies of one Responder share.
class Responder::Pending {
 public:
  Pending(std::weak_ptr<HttpServer::Session> session, std::uint64_t number)
      : session_(std::move(session)), number_(number) {}
  ~Pending() {
    const auto session = session_.lock();
    if (!session || !session->Waits(number_)) return;
    // Not from inside whatever destroys the last copy.
    session->loop().Post([session, number = number_] {
      session->Answer(number,
                      ErrorResponse(500, {ErrorCode::kInternal, "the request was not answered"}));
    });
  }
  Pending(const Pending&) = delete;
  Pending& operator=(const Pending&) = delete;

  void Answer(HttpResponse response) {
    const auto session = session_.lock();
    if (session) session->Answer(number_, std::move(response));
  }
  bool answered() const {
    const auto session = session_.lock();
    return !session || !session->Waits(number_);
  }

 private:
  const std::weak_ptr<HttpServer::Session> session_;
  const std::uint64_t number_;
};

void Responder::Answer(HttpResponse response) const { pending_->Answer(std::move(response)); }
bool Responder::answered() const { return pending_->answered(); }

void HttpServer::Session::Begin() {
  if (!stream_.encrypted()) return ReadFirst(options_.first_timeout);
  stream_.tcp().expires_after(options_.handshake_timeout);
  stream_.tls().async_handshake(asio::ssl::stream_base::server,
                                [self = shared_from_this()](const error_code& error) {
                                  if (self->closed_) return;
                                  if (error) {
                                    self->HandshakeFailed(error);
                                  } else {
                                    self->ReadFirst(self->options_.first_timeout);
                                  }
                                });
}

void HttpServer::Session::HandshakeFailed(error_code error) {
  ++counters_.failed_handshakes;
  const bool speaks_http =
      error.category() == asio::error::get_ssl_category() &&
      ERR_GET_REASON(static_cast<unsigned long>(error.value())) == SSL_R_HTTP_REQUEST;
  if (!speaks_http) return Close();
  stream_.tcp().expires_after(options_.write_timeout);
  asio::async_write(stream_.tcp(), asio::buffer(kWantsTls),
                    [self = shared_from_this()](const error_code& failed, std::size_t) {
                      if (self->closed_) return;
                      if (failed) {
                        self->Close();
                      } else {
                        self->DiscardRest();
                      }
                    });
}

// Waits for the first byte of a request.
void HttpServer::Session::ReadFirst(Milliseconds patience) {
  if (closed_) return;
  parser_.emplace();
  parser_->header_limit(options_.header_bytes_max);
  parser_->body_limit(options_.body_bytes_max);
  if (buffer_.size() > 0) {
    ReadHeader();
    return;
  }
  stream_.tcp().expires_after(patience);
  stream_.async_read_some(buffer_.prepare(kFirstReadBytes),
                          [self = shared_from_this()](const error_code& error, std::size_t bytes) {
                            if (self->closed_) return;
                            if (error) {
                              self->Close();
                              return;
                            }
                            self->buffer_.commit(bytes);
                            self->ReadHeader();
                          });
}

void HttpServer::Session::ReadHeader() {
  stream_.tcp().expires_after(options_.request_timeout);
  http::async_read_header(stream_, buffer_, *parser_,
                          [self = shared_from_this()](const error_code& error, std::size_t) {
                            if (self->closed_) return;
                            if (error) {
                              self->ReadFailed(error);
                              return;
                            }
                            if (!self->Admit()) return;
                            const auto& header = self->parser_->get();
                            if (!self->parser_->is_done() &&
                                beast::iequals(header[http::field::expect], "100-continue")) {
                              static constexpr std::string_view kContinue =
                                  "HTTP/1.1 100 Continue\r\n\r\n";
                              asio::async_write(self->stream_, asio::buffer(kContinue),
                                                [self](const error_code& failed, std::size_t) {
                                                  if (self->closed_) return;
                                                  if (failed) {
                                                    self->ReadFailed(failed);
                                                  } else {
                                                    self->ReadBody();
                                                  }
                                                });
                              return;
                            }
                            self->ReadBody();
                          });
}

void HttpServer::Session::ReadBody() {
  http::async_read(stream_, buffer_, *parser_,
                   [self = shared_from_this()](const error_code& error, std::size_t) {
                     if (self->closed_) return;
                     if (error) {
                       self->ReadFailed(error);
                     } else {
                       self->Handle();
                     }
                   });
}

void HttpServer::Session::ReadFailed(error_code error) {
  ++counters_.bad_requests;
  if (error == http::error::header_limit || error == http::error::buffer_overflow) {
    Refuse(431, "the request's header is too long");
  } else if (error == http::error::body_limit) {
    Refuse(413, "the request's body is longer than " + std::to_string(options_.body_bytes_max) +
                    " bytes");
  } else if (error == beast::error::timeout) {
    Close();
  } else if (error != http::error::partial_message && error != http::error::end_of_stream &&
             error.category() == make_error_code(http::error::bad_method).category()) {
    Refuse(400, "not an HTTP request: " + error.message());
  } else {
    Close();
  }
}

// Takes over what the header says. False: the answer is on its way, the request goes no further.
bool HttpServer::Session::Admit() {
  const auto& message = parser_->get();
  request_ = HttpRequest();
  request_.method = std::string(message.method_string());
  request_.target = std::string(message.target());
  request_.peer = peer_;
  bool twice = false;  // who he says he is
  for (const auto& field : message) {
    std::string name(field.name_string());
    std::transform(name.begin(), name.end(), name.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    twice = twice || (name == "authorization" && request_.headers.contains(name));
    request_.headers[name] = std::string(field.value());
  }
  head_ = message.method() == http::verb::head;
  if (twice || !SplitTarget(request_)) {
    ++counters_.bad_requests;
    Refuse(400, twice ? "the request has two Authorization headers"
                      : "the request's path or query is not valid");
    return false;
  }
  std::optional<HttpResponse> refusal;
  if (!server_->rates.Take(address_, loop().NowMs())) {
    ++counters_.too_many_requests;
    refusal =
        ErrorResponse(429, {ErrorId::kTooManyRequests,
                            "too many requests come from this address; try again in a second"});
    refusal->headers.emplace_back("Retry-After", "1");
  } else if (server_->gate) {
    // A copy, because it may destroy the server.
    const auto gate = server_->gate;
    refusal = gate(request_);
    if (closed_) return false;
    if (refusal) ++counters_.refused_requests;
  }
  if (!refusal) return true;
  // A body that nobody reads would be taken for the next request.
  keep_alive_ = message.keep_alive() && parser_->is_done();
  Write(std::move(*refusal));
  return false;
}

void HttpServer::Session::Handle() {
  auto message = parser_->release();
  keep_alive_ = message.keep_alive();
  HttpRequest request = std::move(request_);
  request.body = std::move(message.body());
  ++counters_.requests;
  ++number_;
  waiting_ = true;
  stream_.tcp().expires_never();
  answer_timer_.After(options_.answer_timeout, [this] {
    const auto self = shared_from_this();
    ++counters_.timed_out_answers;
    Answer(number_,
           ErrorResponse(504, {ErrorCode::kTimeout,
                               "no answer within " +
                                   std::to_string(options_.answer_timeout.count()) + " ms"}));
  });
  // Nothing is read meanwhile: only the server's set keeps the session.
  const Responder responder(std::make_shared<Responder::Pending>(weak_from_this(), number_));
  // A copy, because the handler may destroy the server.
  const auto handler = server_->handler;
  if (handler) handler(request, responder);
}

void HttpServer::Session::Answer(std::uint64_t number, HttpResponse response) {
  loop().AssertInLoop();
  if (closed_ || !Waits(number)) return;
  waiting_ = false;
  answer_timer_.Cancel();
  Write(std::move(response));
}

void HttpServer::Session::Refuse(int status, const std::string& message) {
  keep_alive_ = false;
  head_ = false;
  Write(ErrorResponse(status, {ErrorId::kRequestBody, message}));
}

void HttpServer::Session::Write(HttpResponse response) {
  const int status = response.status >= 100 && response.status <= 999 ? response.status : 500;
  response_.emplace(static_cast<http::status>(status), 11);
  response_->set(http::field::server, "ds/" PS_VERSION);
  response_->set(http::field::content_type, OneLine(std::move(response.content_type)));
  for (auto& [name, value] : response.headers) response_->set(OneLine(name), OneLine(value));
  response_->keep_alive(keep_alive_);
  response_->content_length(response.body.size());
  if (!head_) response_->body() = std::move(response.body);
  serializer_.emplace(*response_);
  stream_.tcp().expires_after(options_.write_timeout);
  http::async_write(stream_, *serializer_,
                    [self = shared_from_this()](const error_code& error, std::size_t) {
                      if (self->closed_) return;
                      if (error) {
                        self->Close();
                        return;
                      }
                      self->serializer_.reset();
                      self->response_.reset();
                      if (self->keep_alive_) {
                        self->ReadFirst(self->options_.idle_timeout);
                      } else {
                        self->EndOfAnswer();
                      }
                    });
}

// Tells TLS that no more comes; whether the client says the same does not matter.
void HttpServer::Session::EndOfAnswer() {
  if (!stream_.encrypted()) return DiscardRest();
  stream_.tcp().expires_after(kDiscardTime);
  stream_.tls().async_shutdown([self = shared_from_this()](const error_code&) {
    if (!self->closed_) self->DiscardRest();
  });
}

void HttpServer::Session::DiscardRest() {
  error_code ignored;
  stream_.tcp().socket().shutdown(tcp::socket::shutdown_send, ignored);
  discarded_.resize(kDiscardChunk);
  stream_.tcp().expires_after(kDiscardTime);
  Discard(kDiscardBytesMax);
}

// Below TLS: nobody wants to know what it is.
void HttpServer::Session::Discard(std::size_t budget) {
  stream_.tcp().async_read_some(
      asio::buffer(discarded_),
      [self = shared_from_this(), budget](const error_code& error, std::size_t bytes) {
        if (self->closed_) return;
        if (error || bytes >= budget) {
          self->Close();
        } else {
          self->Discard(budget - bytes);
        }
      });
}

void HttpServer::State::Accept() {
  acceptor.async_accept([self = shared_from_this()](const error_code& error, tcp::socket socket) {
    if (self->closed) return;
    if (error) {
      // Out of descriptors, most likely: others may free some.
      self->retry.After(kAcceptRetry, [state = self.get()] { state->Accept(); });
      return;
    }
    error_code ignored;
    const auto endpoint = socket.remote_endpoint(ignored);
    std::string counted_as = CountedAs(endpoint.address());
    const auto others = self->connections_of.find(counted_as);
    if (self->sessions.size() >= self->options.connections_max ||
        (others != self->connections_of.end() &&
         others->second >= self->options.connections_per_peer) ||
        !self->rates.Take(counted_as, self->loop.NowMs())) {
      ++self->counters.refused_connections;
      socket.close(ignored);
    } else {
      const auto session = std::make_shared<Session>(
          self, std::move(socket),
          endpoint.address().to_string() + ":" + std::to_string(endpoint.port()),
          std::move(counted_as));
      self->sessions.insert(session);
      self->counters.connections = self->sessions.size();
      session->Begin();
    }
    self->Accept();
  });
}

void HttpServer::State::Close() {
  closed = true;
  retry.Cancel();
  error_code ignored;
  acceptor.close(ignored);
  // Each takes itself out of the set.
  const std::vector<std::shared_ptr<Session>> open(sessions.begin(), sessions.end());
  for (const auto& session : open) session->Close();
}

HttpServer::HttpServer(Loop& loop, std::string address, std::uint16_t port,
                       HttpServerOptions options)
    : state_(std::make_shared<State>(loop, std::move(address), port, options)) {}

HttpServer::~HttpServer() {
  state_->loop.AssertInLoop();
  state_->Close();
}

void HttpServer::OnRequest(Handler handler) { state_->handler = std::move(handler); }

void HttpServer::OnHeader(Gate gate) { state_->gate = std::move(gate); }

void HttpServer::UseTls(TlsContext tls) {
  state_->loop.AssertInLoop();
  state_->tls = std::move(tls);
}

Result<std::string> HttpServer::Start() {
  State& state = *state_;
  state.loop.AssertInLoop();
  const std::string wanted = state.address + ":" + std::to_string(state.port);
  error_code error;
  const auto address = asio::ip::make_address(state.address, error);
  if (error) {
    return Error{ErrorId::kOptionValue, "'" + state.address + "' is not a numeric IP address"};
  }
  const tcp::endpoint endpoint(address, state.port);
  state.acceptor.open(endpoint.protocol(), error);
  if (!error) state.acceptor.set_option(tcp::acceptor::reuse_address(true), error);
  if (!error) state.acceptor.bind(endpoint, error);
  if (!error) state.acceptor.listen(asio::socket_base::max_listen_connections, error);
  if (error) {
    error_code ignored;
    state.acceptor.close(ignored);
    return Error{
        error == asio::error::address_in_use ? ErrorId::kPortTaken : ErrorId::kAddressUnusable,
        "cannot listen on " + wanted + ": " + error.message()};
  }
  const auto local = state.acceptor.local_endpoint(error);
  if (error) return Error{ErrorCode::kInternal, "asking for the port: " + error.message()};
  state.Accept();
  const std::string host = local.address().is_v6() ? "[" + local.address().to_string() + "]"
                                                   : local.address().to_string();
  return host + ":" + std::to_string(local.port());
}

HttpServerCounters HttpServer::counters() const { return state_->counters; }

}  // namespace ps::net
