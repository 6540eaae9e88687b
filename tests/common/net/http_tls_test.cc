#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <atomic>
#include <fstream>
#include <random>
#include <string>
#include <thread>

#include "common/check.h"
#include "common/net/certificates.h"
#include "common/net/http_client.h"
#include "common/net/http_server.h"
#include "common/net/tls.h"
#include "common/net/unique_fd.h"
#include "tests/support/temp_directory.h"

namespace ps::net {
namespace {

using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

constexpr Milliseconds kDeadline{10'000};

// A server with TLS on a thread of its own, and files of an authority for it.
class HttpTlsTest : public ::testing::Test {
 protected:
  HttpTlsTest() : authority_(MakeAuthority(10).value()) {
    Write("ca.crt", authority_.certificate);
    access_.authorities = Path("ca.crt");
    Certify({"127.0.0.1", "localhost"});
  }
  ~HttpTlsTest() override {
    if (thread_.joinable()) {
      loop_.Stop();
      thread_.join();
    }
    server_.reset();
  }

  std::string Path(const std::string& name) const { return (folder_ / name).string(); }
  void Write(const std::string& name, const std::string& text, mode_t mode = 0600) {
    std::ofstream(Path(name), std::ios::binary | std::ios::trunc) << text;
    PS_CHECK(::chmod(Path(name).c_str(), mode) == 0);
  }
  // Of our authority, into api.crt and api.key.
  void Certify(const std::vector<std::string>& hosts, int days = 1) {
    const auto made = MakeServerCertificate(authority_, hosts, days);
    PS_CHECK(made.ok());
    Write("api.crt", made->pair.certificate);
    Write("api.key", made->pair.key);
  }
  TlsContext ServerContext() {
    return OpenServerTls({Path("api.crt"), Path("api.key")}).value().context;
  }
  void Start(HttpServerOptions options = {}, bool tls = true) {
    server_ = std::make_unique<HttpServer>(loop_, "127.0.0.1", 0, options);
    if (tls) server_->UseTls(ServerContext());
    server_->OnRequest([this](const HttpRequest& request, const Responder& responder) {
      ++requests_;
      const auto header = request.headers.find("authorization");
      responder.Answer(TextResponse(
          200,
          (header == request.headers.end() ? "nobody" : header->second) + ": " + request.body));
    });
    endpoint_ = server_->Start().value();
    thread_ = std::thread([this] { loop_.Run(); });
  }
  std::string Url(const std::string& host = "127.0.0.1") const {
    return "https://" + host + endpoint_.substr(endpoint_.rfind(':'));
  }
  Result<HttpReply> Call(const std::string& url, const std::string& body = "") {
    return HttpCall(body.empty() ? "GET" : "POST", url, body, kDeadline, access_);
  }
  HttpServerCounters Counters() {
    std::atomic<bool> done{false};
    HttpServerCounters counters;
    loop_.Post([&] {
      counters = server_->counters();
      done = true;
    });
    while (!done) std::this_thread::sleep_for(Milliseconds(1));
    return counters;
  }
  // What the server says to these bytes, until it closes the connection.
  std::string Raw(const std::string& bytes, bool ends = true) {
    const UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port =
        htons(static_cast<std::uint16_t>(std::stoi(endpoint_.substr(endpoint_.rfind(':') + 1))));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    PS_CHECK(::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
    const timeval patience{10, 0};
    ::setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    (void)!::send(fd.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (ends) ::shutdown(fd.get(), SHUT_WR);
    std::string text;
    char buffer[4096];
    ssize_t got = 0;
    while ((got = ::recv(fd.get(), buffer, sizeof(buffer), 0)) > 0) {
      text.append(buffer, static_cast<std::size_t>(got));
    }
    return text;
  }

  const test::TempDirectory folder_;
  const PemPair authority_;
  HttpAccess access_;
  Loop loop_;
  std::unique_ptr<HttpServer> server_;
  std::atomic<int> requests_{0};
  std::string endpoint_;
  std::thread thread_;
};

TEST_F(HttpTlsTest, ACallIsAnsweredAndHasItsToken) {
  Start();
  access_.token = "abc";
  for (const char* host : {"127.0.0.1", "localhost"}) {
    const auto reply = Call(Url(host), "hello");
    ASSERT_TRUE(reply.ok()) << reply.error().message;
    EXPECT_EQ(reply->status, 200);
    EXPECT_EQ(reply->body, "Bearer abc: hello");
  }
  access_.token.clear();
  EXPECT_EQ(Call(Url())->body, "nobody: ");
}

TEST_F(HttpTlsTest, LargeBodiesPassBothWays) {
  Start();
  const std::string body(3'000'000, 'x');
  const auto reply = Call(Url(), body);
  ASSERT_TRUE(reply.ok()) << reply.error().message;
  EXPECT_EQ(reply->body.size(), body.size() + 8);
  // More than the server takes: the answer still arrives.
  const auto refused = Call(Url(), std::string(17u << 20, 'x'));
  ASSERT_TRUE(refused.ok()) << refused.error().message;
  EXPECT_EQ(refused->status, 413);
}

TEST_F(HttpTlsTest, AServerThatNobodyVouchesForHearsNothing) {
  Start();
  access_.token = "abc";
  Write("other.crt", MakeAuthority(1)->certificate);
  const std::string cases[] = {Path("other.crt"), ""};
  for (const std::string& authorities : cases) {
    access_.authorities = authorities;
    const auto reply = Call(Url());
    ASSERT_FALSE(reply.ok());
    EXPECT_EQ(reply.error().code, ErrorCode::kDenied) << reply.error().message;
    EXPECT_THAT(reply.error().message, HasSubstr("is not to be trusted"));
    EXPECT_THAT(reply.error().message, Not(HasSubstr("abc")));
  }
  EXPECT_EQ(requests_.load(), 0);
  access_.authorities = Path("nowhere.crt");
  EXPECT_EQ(Call(Url()).error().code, ErrorCode::kIo);
  Write("nowhere.crt", "no certificate");
  EXPECT_EQ(Call(Url()).error().code, ErrorCode::kInvalid);
}

TEST_F(HttpTlsTest, ACertificateForAnotherHostOrOfAnotherTimeIsNotTaken) {
  Certify({"node7", "10.0.0.7"});
  Start();
  for (const char* host : {"127.0.0.1", "localhost"}) {
    const auto reply = Call(Url(host));
    ASSERT_FALSE(reply.ok());
    EXPECT_EQ(reply.error().code, ErrorCode::kDenied) << reply.error().message;
    EXPECT_THAT(reply.error().message, HasSubstr("mismatch"));
  }
  Certify({"127.0.0.1"}, 0);
  loop_.Post([this, tls = ServerContext()] { server_->UseTls(tls); });
  const auto reply = Call(Url());
  ASSERT_FALSE(reply.ok());
  EXPECT_EQ(reply.error().code, ErrorCode::kDenied) << reply.error().message;
  EXPECT_THAT(reply.error().message, HasSubstr("expired"));
  EXPECT_EQ(requests_.load(), 0);
  Certify({"127.0.0.1"});
  loop_.Post([this, tls = ServerContext()] { server_->UseTls(tls); });
  EXPECT_TRUE(Call(Url()).ok()) << "a new certificate is in force at once";
}

TEST_F(HttpTlsTest, WhoSpeaksHttpToAPortWithTlsIsTold) {
  Start();
  const auto reply = HttpCall("GET", "http://" + endpoint_ + "/v1/jobs", "", kDeadline);
  ASSERT_TRUE(reply.ok()) << reply.error().message;
  EXPECT_EQ(reply->status, 400);
  EXPECT_THAT(reply->body, HasSubstr("https://"));
  EXPECT_THAT(Raw("POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\n0123456789"),
              StartsWith("HTTP/1.1 400"));
  EXPECT_EQ(requests_.load(), 0);
  EXPECT_EQ(Counters().failed_handshakes, 2u);
}

TEST_F(HttpTlsTest, APortWithoutTlsIsNamed) {
  Start({}, false);
  const auto reply = Call(Url());
  ASSERT_FALSE(reply.ok());
  EXPECT_EQ(reply.error().code, ErrorCode::kInvalid) << reply.error().message;
  EXPECT_THAT(reply.error().message, HasSubstr("does not speak TLS"));
}

TEST_F(HttpTlsTest, JunkAndSilenceInTheHandshakeEndTheConnectionAlone) {
  HttpServerOptions options;
  options.handshake_timeout = Milliseconds(100);
  Start(options);
  const std::int64_t begin = MonotonicMs();
  (void)Raw("", false);
  (void)Raw("\x16\x03\x01", false);
  EXPECT_LT(MonotonicMs() - begin, 5000);
  std::mt19937 random(7);
  for (int i = 0; i < 50; ++i) {
    std::string junk =
        i % 2 == 0 ? std::string("\x16\x03\x01\x01\x00\x01\x00\x00\xfc\x03\x03", 11) : "";
    for (int n = static_cast<int>(random() % 500); n > 0; --n) {
      junk.push_back(static_cast<char>(random()));
    }
    (void)Raw(junk);
  }
  EXPECT_TRUE(Call(Url()).ok());
  EXPECT_GE(Counters().failed_handshakes, 50u);
}

TEST_F(HttpTlsTest, FilesThatDoNotFitAreRefused) {
  const auto code = [this] {
    const auto opened = OpenServerTls({Path("api.crt"), Path("api.key")});
    return opened.ok() ? ErrorCode::kInternal : opened.error().code;
  };
  EXPECT_EQ(code(), ErrorCode::kInternal) << "they fit";
  PS_CHECK(::chmod(Path("api.key").c_str(), 0604) == 0);
  EXPECT_EQ(code(), ErrorCode::kDenied);
  Write("api.key", authority_.key);
  EXPECT_EQ(code(), ErrorCode::kInvalid);
  Write("api.key", "junk");
  EXPECT_EQ(code(), ErrorCode::kInvalid);
  Certify({"127.0.0.1"});
  Write("api.crt", "junk");
  EXPECT_EQ(code(), ErrorCode::kInvalid);
  ASSERT_EQ(::unlink(Path("api.crt").c_str()), 0);
  EXPECT_EQ(code(), ErrorCode::kIo);
}

TEST(CertificatesTest, WhatIsNoHostOrNoAuthorityIsRefused) {
  const PemPair authority = MakeAuthority(1).value();
  for (const char* host : {"", "a b", "a,DNS:b", "*.node", "a/b", "user@node"}) {
    EXPECT_EQ(MakeServerCertificate(authority, {host}, 1).error().code, ErrorCode::kUsage) << host;
  }
  EXPECT_EQ(MakeServerCertificate(authority, {}, 1).error().code, ErrorCode::kUsage);
  const auto server = MakeServerCertificate(authority, {"node1", "::1"}, 1);
  ASSERT_TRUE(server.ok()) << server.error().message;
  EXPECT_EQ(MakeServerCertificate(server->pair, {"node1"}, 1).error().code, ErrorCode::kInvalid);
  EXPECT_EQ(
      MakeServerCertificate({authority.certificate, server->pair.key}, {"node1"}, 1).error().code,
      ErrorCode::kInvalid);
  const auto renewed = MakeServerCertificate(authority, {"node1"}, 1, server->pair.key);
  ASSERT_TRUE(renewed.ok());
  EXPECT_EQ(renewed->pair.key, server->pair.key);
  EXPECT_NE(renewed->pair.certificate, server->pair.certificate);
}

}  // namespace
}  // namespace ps::net
