#include "common/net/http_client.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509_vfy.h>
#include <openssl/x509v3.h>

#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/address.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <boost/beast/version.hpp>
#include <charconv>
#include <chrono>
#include <optional>
#include <string_view>

#include "common/error_id.h"
#include "common/net/http_stream.h"
#include "common/net/this_host.h"

namespace ps::net {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using tcp = boost::asio::ip::tcp;
using boost::system::error_code;

namespace {

constexpr std::uint64_t kReplyBytesMax = std::uint64_t{64} << 20;

// One call, as a chain of operations on an io_context of its own; the deadline is that of the
// io_context's run, so it covers each of them.
class Call {
 public:
  Call(const HttpUrl& url, http::verb verb, const std::string& body, const HttpAccess& access)
      : access_(access),
        host_(url.host),
        port_(url.port),
        where_((url.host.find(':') != std::string::npos ? "[" + url.host + "]" : url.host) + ":" +
               url.port),
        request_(verb, url.target, 11) {
    request_.set(http::field::host, where_);
    request_.set(http::field::user_agent, "ds/" PS_VERSION);
    request_.keep_alive(false);
    if (!access.token.empty()) {
      request_.set(http::field::authorization, "Bearer " + access.token);
    }
    if (!body.empty()) {
      request_.set(http::field::content_type, "application/json");
      request_.body() = body;
    }
    request_.prepare_payload();
    parser_.body_limit(kReplyBytesMax);
    // The answer to HEAD names a length but has no body.
    parser_.skip(verb == http::verb::head);
  }

  // Before Run(), for https.
  Status Encrypt() {
    stream_.Encrypt(PS_TRY(OpenClientTls(access_.authorities)));
    SSL* const ssl = stream_.tls().native_handle();
    error_code is_name;
    asio::ip::make_address(host_, is_name);
    X509_VERIFY_PARAM* const wanted = SSL_get0_param(ssl);
    X509_VERIFY_PARAM_set_hostflags(wanted, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
    const bool set = is_name ? X509_VERIFY_PARAM_set1_host(wanted, host_.c_str(), 0) == 1 &&
                                   SSL_set_tlsext_host_name(ssl, host_.c_str()) == 1
                             : X509_VERIFY_PARAM_set1_ip_asc(wanted, host_.c_str()) == 1;
    if (!set) return Error{ErrorId::kUrl, "'" + host_ + "' is no name for a certificate"};
    return Ok();
  }

  Result<HttpReply> Run(Milliseconds deadline) {
    resolver_.async_resolve(host_, port_, [this](const error_code& error, auto results) {
      if (error) return Finish(ErrorId::kHostUnknown, "cannot find host " + host_ + ": ", error);
      Connect(results);
    });
    io_.run_for(deadline);
    if (!result_) {
      const std::string within = " within " + std::to_string(deadline.count()) + " ms";
      if (!connected_) {
        return Error{ErrorId::kConnectTimeout, where_ + " does not accept a connection" + within};
      }
      return Error{ErrorId::kAnswerTimeout,
                   where_ + " accepted the connection but did not answer" + within};
    }
    return std::move(*result_);
  }

 private:
  void Connect(const tcp::resolver::results_type& results) {
    stream_.tcp().async_connect(results, [this](const error_code& error, const tcp::endpoint&) {
      if (error == asio::error::connection_refused) {
        return Finish(ErrorId::kNothingListens, "nothing listens on " + where_, {});
      }
      if (error) return Finish(ErrorId::kUnreachable, "cannot connect to " + where_ + ": ", error);
      if (stream_.encrypted()) {
        Greet();
      } else {
        Write();
      }
    });
  }

  void Greet() {
    stream_.tls().async_handshake(asio::ssl::stream_base::client, [this](const error_code& error) {
      if (!error) return Write();
      const long verdict = SSL_get_verify_result(stream_.tls().native_handle());
      if (verdict != X509_V_OK) {
        return Finish(ErrorId::kCertificateNotTrusted,
                      "the certificate of " + where_ + " is not to be trusted: " +
                          X509_verify_cert_error_string(verdict) + " (authorities: " +
                          (access_.authorities.empty() ? "the system's" : access_.authorities) +
                          ")",
                      {});
      }
      const bool no_tls =
          error.category() == asio::error::get_ssl_category() &&
          ERR_GET_REASON(static_cast<unsigned long>(error.value())) == SSL_R_WRONG_VERSION_NUMBER;
      if (no_tls) {
        return Finish(ErrorId::kNoTls, "what listens on " + where_ + " does not speak TLS", {});
      }
      Finish(ErrorId::kUnreachable, "no TLS with " + where_ + ": ", error);
    });
  }

  void Write() {
    connected_ = true;
    http::async_write(stream_, request_, [this](const error_code& error, std::size_t) {
      // Who refuses a request early may have closed already; its answer can be read even so.
      write_error_ = error;
      Read();
    });
  }

  void Read() {
    http::async_read(stream_, buffer_, parser_, [this](const error_code& error, std::size_t) {
      if (error) {
        const bool junk = error.category() == make_error_code(http::error::bad_method).category() &&
                          error != http::error::end_of_stream &&
                          error != http::error::partial_message;
        if (junk) {
          return Finish(ErrorId::kNoTls,
                        "what listens on " + where_ + " gave no valid answer: ", error);
        }
        return Finish(ErrorId::kOutcomeUnknown,
                      where_ + " closed the connection before its answer was complete: ",
                      write_error_ ? write_error_ : error);
      }
      const auto& message = parser_.get();
      HttpReply reply;
      reply.status = static_cast<int>(message.result_int());
      reply.content_type = std::string(message[http::field::content_type]);
      reply.location = std::string(message[http::field::location]);
      reply.body = message.body();
      result_ = std::move(reply);
    });
  }

  void Finish(ErrorId id, const std::string& text, const error_code& error) {
    result_ = Error{id, error ? text + error.message() : text};
  }

  const HttpAccess access_;
  const std::string host_;
  const std::string port_;
  const std::string where_;
  asio::io_context io_{1};
  tcp::resolver resolver_{io_};
  HttpStream stream_{io_};
  beast::flat_buffer buffer_;
  http::request<http::string_body> request_;
  http::response_parser<http::string_body> parser_;
  error_code write_error_;
  bool connected_ = false;
  std::optional<Result<HttpReply>> result_;
};

bool HasControlOrSpace(const std::string& text) {
  return std::any_of(text.begin(), text.end(), [](char c) {
    const auto byte = static_cast<unsigned char>(c);
    return byte <= 0x20 || byte == 0x7f;
  });
}

}  // namespace

Result<HttpUrl> ParseHttpUrl(const std::string& url) {
  const Error bad{ErrorId::kUrl, "'" + url + "' is not a URL like http://host:port/path"};
  HttpUrl result;
  std::string rest = url;
  const auto scheme = rest.find("://");
  if (scheme != std::string::npos) {
    result.tls = rest.substr(0, scheme) == "https";
    if (!result.tls && rest.substr(0, scheme) != "http") return bad;
    rest.erase(0, scheme + 3);
  }
  const auto slash = std::min(rest.find_first_of("/?"), rest.size());
  result.target = rest.substr(slash);
  if (result.target.empty() || result.target[0] != '/') result.target.insert(0, "/");
  const std::string authority = rest.substr(0, slash);
  std::size_t colon = authority.rfind(':');
  if (!authority.empty() && authority[0] == '[') {
    const auto bracket = authority.find(']');
    if (bracket == std::string::npos) return bad;
    result.host = authority.substr(1, bracket - 1);
    colon = bracket + 1 < authority.size() ? bracket + 1 : std::string::npos;
    if (colon != std::string::npos && authority[colon] != ':') return bad;
  } else {
    result.host = authority.substr(0, colon);
    if (result.host.find(':') != std::string::npos) return bad;
  }
  result.port =
      colon == std::string::npos ? (result.tls ? "443" : "80") : authority.substr(colon + 1);
  unsigned port = 0;
  const char* const end = result.port.data() + result.port.size();
  const auto parsed = std::from_chars(result.port.data(), end, port);
  if (parsed.ec != std::errc() || parsed.ptr != end || port == 0 || port > 65535) return bad;
  if (result.host.empty() || HasControlOrSpace(result.host) || HasControlOrSpace(result.target) ||
      result.host.find('@') != std::string::npos) {
    return bad;
  }
  return result;
}

Result<HttpReply> HttpCall(const std::string& method, const std::string& url,
                           const std::string& body, Milliseconds deadline,
                           const HttpAccess& access) {
  const HttpUrl parsed = PS_TRY(ParseHttpUrl(url));
  const http::verb verb = http::string_to_verb(method);
  if (verb == http::verb::unknown) {
    return Error{ErrorCode::kUsage, "'" + method + "' is not an HTTP method"};
  }
  if (!access.token.empty() && !parsed.tls && !IsLoopback(parsed.host)) {
    return Error{ErrorId::kTokenInTheClear, "the token is not sent to " + parsed.host +
                                                " without TLS: the URL must begin with https://"};
  }
  Call call(parsed, verb, body, access);
  if (parsed.tls) PS_TRY(call.Encrypt());
  return call.Run(deadline);
}

}  // namespace ps::net
