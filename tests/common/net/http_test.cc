#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <string>
#include <thread>

#include "common/check.h"
#include "common/error_id.h"
#include "common/net/http_client.h"
#include "common/net/http_server.h"
#include "common/net/unique_fd.h"

namespace ps::net {
namespace {

constexpr Milliseconds kDeadline{10'000};

int PortOf(const std::string& endpoint) {
  return std::stoi(endpoint.substr(endpoint.rfind(':') + 1));
}

sockaddr_in Loopback(int port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

// A client that sends what it likes.
class RawClient {
 public:
  explicit RawClient(const std::string& endpoint)
      : fd_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    const sockaddr_in address = Loopback(PortOf(endpoint));
    PS_CHECK(::connect(fd_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) ==
             0);
    const timeval patience{10, 0};
    ::setsockopt(fd_.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
  }
  void Send(const std::string& bytes) {
    for (std::size_t done = 0; done < bytes.size();) {
      const auto sent = ::send(fd_.get(), bytes.data() + done, bytes.size() - done, MSG_NOSIGNAL);
      if (sent <= 0) return;
      done += static_cast<std::size_t>(sent);
    }
  }
  void EndOfSending() { ::shutdown(fd_.get(), SHUT_WR); }
  // Up to and with `end`, or to the end of the connection.
  std::string ReadTo(const std::string& end) {
    std::string text;
    char c = 0;
    while (text.find(end) == std::string::npos && ::recv(fd_.get(), &c, 1, 0) == 1) {
      text.push_back(c);
    }
    return text;
  }
  std::string ReadAll() {
    std::string text;
    char buffer[4096];
    ssize_t got = 0;
    while ((got = ::recv(fd_.get(), buffer, sizeof(buffer), 0)) > 0) {
      text.append(buffer, static_cast<std::size_t>(got));
    }
    return text;
  }

 private:
  UniqueFd fd_;
};

// The server on a thread of its own, so that the blocking client can call it.
class HttpTest : public ::testing::Test {
 protected:
  void Start(HttpServerOptions options, HttpServer::Handler handler) {
    server_ = std::make_unique<HttpServer>(loop_, "127.0.0.1", 0, options);
    server_->OnRequest(std::move(handler));
    auto endpoint = server_->Start();
    PS_CHECK(endpoint.ok());
    endpoint_ = *endpoint;
    thread_ = std::thread([this] { loop_.Run(); });
  }
  void StartEcho(HttpServerOptions options = {}) {
    Start(options, [](const HttpRequest& request, const Responder& responder) {
      responder.Answer(JsonResponse(200, {{"method", request.method},
                                          {"path", request.path},
                                          {"query", request.query},
                                          {"body", request.body}}));
    });
  }
  ~HttpTest() override {
    if (thread_.joinable()) {
      loop_.Stop();
      thread_.join();
    }
    server_.reset();
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
  template <typename Condition>
  bool Eventually(Condition condition) {
    for (int i = 0; i < 2000; ++i) {
      if (condition()) return true;
      std::this_thread::sleep_for(Milliseconds(5));
    }
    return false;
  }
  Result<HttpReply> Call(const std::string& method, const std::string& target,
                         const std::string& body = "", Milliseconds deadline = kDeadline) {
    return HttpCall(method, "http://" + endpoint_ + target, body, deadline);
  }

  Loop loop_;
  std::unique_ptr<HttpServer> server_;
  // The loop's too: touched by its handlers, and here only after the thread has ended.
  std::optional<Timer> timer_;
  std::vector<Responder> kept_;
  std::string endpoint_;
  std::thread thread_;
};

TEST_F(HttpTest, ARequestReachesTheHandlerDecodedAndItsAnswerTheClient) {
  StartEcho();
  const auto reply = Call("POST", "/v1/jobs/my%20job?wait=1&name=a%26b+c&flag", R"({"x":1})");
  ASSERT_TRUE(reply.ok()) << reply.error().message;
  EXPECT_EQ(reply->status, 200);
  EXPECT_EQ(reply->content_type, "application/json");
  const auto body = nlohmann::json::parse(reply->body);
  EXPECT_EQ(body["method"], "POST");
  EXPECT_EQ(body["path"], "/v1/jobs/my job");
  EXPECT_EQ(body["query"]["wait"], "1");
  EXPECT_EQ(body["query"]["name"], "a&b c");
  EXPECT_EQ(body["query"]["flag"], "");
  EXPECT_EQ(body["body"], R"({"x":1})");
}

TEST_F(HttpTest, AConnectionIsKeptForSeveralRequestsAlsoWhenTheyComeAtOnce) {
  StartEcho();
  RawClient client(endpoint_);
  for (int i = 0; i < 3; ++i) {
    client.Send("GET /n" + std::to_string(i) + " HTTP/1.1\r\nHost: x\r\n\r\n");
    const std::string answer = client.ReadTo("{}}");
    EXPECT_NE(answer.find("200 OK"), std::string::npos);
    EXPECT_NE(answer.find("/n" + std::to_string(i)), std::string::npos);
  }
  client.Send(
      "GET /a HTTP/1.1\r\nHost: x\r\n\r\nGET /b HTTP/1.1\r\nHost: x\r\n\r\n"
      "GET /c HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  const std::string rest = client.ReadAll();
  const auto a = rest.find("\"/a\"");
  const auto b = rest.find("\"/b\"");
  const auto c = rest.find("\"/c\"");
  ASSERT_NE(c, std::string::npos) << rest;
  EXPECT_LT(a, b);
  EXPECT_LT(b, c);
  EXPECT_EQ(Counters().requests, 6u);
}

TEST_F(HttpTest, AnAnswerMayComeLaterFromTheLoop) {
  Start({}, [this](const HttpRequest&, const Responder& responder) {
    timer_.emplace(loop_);
    timer_->After(Milliseconds(30), [responder] {
      EXPECT_FALSE(responder.answered());
      responder.Answer(TextResponse(202, "later"));
      EXPECT_TRUE(responder.answered());
      responder.Answer(TextResponse(500, "ignored"));
    });
  });
  const auto reply = Call("GET", "/");
  ASSERT_TRUE(reply.ok());
  EXPECT_EQ(reply->status, 202);
  EXPECT_EQ(reply->body, "later");
}

TEST_F(HttpTest, WithoutAnAnswerByTheDeadlineTheServerAnswers504) {
  HttpServerOptions options;
  options.answer_timeout = Milliseconds(50);
  Start(options,
        [this](const HttpRequest&, const Responder& responder) { kept_.push_back(responder); });
  const auto reply = Call("GET", "/");
  ASSERT_TRUE(reply.ok());
  EXPECT_EQ(reply->status, 504);
  EXPECT_EQ(Counters().timed_out_answers, 1u);
  std::atomic<bool> late{false};
  loop_.Post([&] {
    kept_[0].Answer(TextResponse(200, "too late"));
    late = true;
  });
  EXPECT_TRUE(Eventually([&late] { return late.load(); }));
}

TEST_F(HttpTest, ADroppedResponderIsAnsweredWith500) {
  Start({}, [](const HttpRequest&, const Responder&) {});
  const auto reply = Call("GET", "/");
  ASSERT_TRUE(reply.ok());
  EXPECT_EQ(reply->status, 500);
}

TEST_F(HttpTest, AnOversizedBodyIsRefusedWith413WhetherAnnouncedOrNot) {
  HttpServerOptions options;
  options.body_bytes_max = 1000;
  StartEcho(options);
  const auto reply = Call("POST", "/", std::string(5'000'000, 'x'));
  ASSERT_TRUE(reply.ok()) << reply.error().message;
  EXPECT_EQ(reply->status, 413);
  RawClient chunked(endpoint_);
  chunked.Send("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
  for (int i = 0; i < 20; ++i) chunked.Send("64\r\n" + std::string(100, 'y') + "\r\n");
  chunked.EndOfSending();
  EXPECT_NE(chunked.ReadAll().find("413"), std::string::npos);
  EXPECT_EQ(Call("POST", "/", std::string(1000, 'x'))->status, 200);
  EXPECT_EQ(Counters().bad_requests, 2u);
}

TEST_F(HttpTest, AnOversizedHeaderIsRefusedWith431) {
  StartEcho();
  RawClient client(endpoint_);
  client.Send("GET / HTTP/1.1\r\nX: " + std::string(20'000, 'x') + "\r\n\r\n");
  client.EndOfSending();
  EXPECT_NE(client.ReadAll().find("431"), std::string::npos);
}

TEST_F(HttpTest, JunkIsAnsweredWith400OrClosedAndTheServerGoesOn) {
  StartEcho();
  for (const std::string& junk :
       {std::string("\x16\x03\x01\x02\x00\x01\x00", 7), std::string("hello\r\n\r\n"),
        std::string("GET / HTTP/9.9\r\n\r\n"), std::string("GET nowhere HTTP/1.1\r\n\r\n"),
        std::string("GET /%zz HTTP/1.1\r\n\r\n"), std::string("GET /a?b=%00 HTTP/1.1\r\n\r\n"),
        std::string("POST / HTTP/1.1\r\nContent-Length: abc\r\n\r\n"),
        std::string("POST / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n")}) {
    RawClient client(endpoint_);
    client.Send(junk);
    client.EndOfSending();
    EXPECT_EQ(client.ReadAll().rfind("HTTP/1.1 4", 0), 0u) << junk;
  }
  std::mt19937 random(5);
  for (int i = 0; i < 100; ++i) {
    RawClient client(endpoint_);
    std::string junk = i % 2 == 0 ? "GET / HTTP/1.1\r\n" : "";
    for (int n = static_cast<int>(random() % 500); n > 0; --n) {
      junk.push_back(static_cast<char>(random()));
    }
    client.Send(junk);
    client.EndOfSending();
    (void)client.ReadAll();
  }
  EXPECT_EQ(Call("GET", "/")->status, 200);
  EXPECT_GT(Counters().bad_requests, 8u);
  EXPECT_TRUE(Eventually([this] { return Counters().connections == 0; }));
}

TEST_F(HttpTest, ACutRequestIsClosedAndCounted) {
  StartEcho();
  for (const std::string& cut :
       {std::string("GET / HT"), std::string("GET / HTTP/1.1\r\nHost: x\r\n"),
        std::string("POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\n12345")}) {
    RawClient client(endpoint_);
    client.Send(cut);
    client.EndOfSending();
    EXPECT_EQ(client.ReadAll(), "");
  }
  EXPECT_TRUE(Eventually([this] { return Counters().bad_requests == 3; }));
  EXPECT_EQ(Counters().requests, 0u);
}

TEST_F(HttpTest, SlowRequestsAndIdleConnectionsAreClosed) {
  HttpServerOptions options;
  options.idle_timeout = Milliseconds(40);
  options.request_timeout = Milliseconds(40);
  StartEcho(options);
  RawClient idle(endpoint_);
  EXPECT_EQ(idle.ReadAll(), "");
  EXPECT_EQ(Counters().bad_requests, 0u);
  RawClient slow(endpoint_);
  slow.Send("GET / HTTP/1.1\r\n");
  EXPECT_EQ(slow.ReadAll(), "");
  EXPECT_TRUE(Eventually([this] { return Counters().bad_requests == 1; }));
}

TEST_F(HttpTest, MoreConnectionsThanTheBoundAreClosedAtOnce) {
  HttpServerOptions options;
  options.connections_max = 2;
  StartEcho(options);
  auto first = std::make_unique<RawClient>(endpoint_);
  RawClient second(endpoint_);
  ASSERT_TRUE(Eventually([this] { return Counters().connections == 2; }));
  RawClient third(endpoint_);
  EXPECT_EQ(third.ReadAll(), "");
  EXPECT_EQ(Counters().refused_connections, 1u);
  first.reset();
  ASSERT_TRUE(Eventually([this] { return Counters().connections == 1; }));
  EXPECT_EQ(Call("GET", "/")->status, 200);
}

TEST_F(HttpTest, OneAddressDoesNotTakeAllConnections) {
  HttpServerOptions options;
  options.connections_per_peer = 1;
  StartEcho(options);
  {
    RawClient first(endpoint_);
    ASSERT_TRUE(Eventually([this] { return Counters().connections == 1; }));
    RawClient second(endpoint_);
    EXPECT_EQ(second.ReadAll(), "");
    EXPECT_EQ(Counters().refused_connections, 1u);
  }
  ASSERT_TRUE(Eventually([this] { return Counters().connections == 0; }));
  EXPECT_EQ(Call("GET", "/")->status, 200);
}

TEST_F(HttpTest, WhoAsksTooOftenIsToldToWait) {
  HttpServerOptions options;
  options.rate_per_peer = 0.001;
  options.burst_per_peer = 3;  // a connection and two requests
  StartEcho(options);
  RawClient client(endpoint_);
  for (int i = 0; i < 2; ++i) {
    client.Send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    EXPECT_NE(client.ReadTo("{}}").find("200 OK"), std::string::npos);
  }
  client.Send("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  const std::string answer = client.ReadAll();
  EXPECT_EQ(answer.rfind("HTTP/1.1 429", 0), 0u) << answer;
  EXPECT_NE(answer.find("Retry-After: 1\r\n"), std::string::npos);
  EXPECT_EQ(Counters().too_many_requests, 1u);
  RawClient next(endpoint_);
  EXPECT_EQ(next.ReadAll(), "");
}

TEST_F(HttpTest, WhoMayNotAskIsAnsweredBeforeHisBodyIsRead) {
  server_ = std::make_unique<HttpServer>(loop_, "127.0.0.1", 0);
  std::atomic<int> handled{0};
  server_->OnHeader([](const HttpRequest& request) -> std::optional<HttpResponse> {
    const auto header = request.headers.find("authorization");
    if (header != request.headers.end() && header->second == "Bearer good") return std::nullopt;
    return ErrorResponse(401, {ErrorCode::kDenied, "who are you?"});
  });
  server_->OnRequest([&handled](const HttpRequest& request, const Responder& responder) {
    ++handled;
    responder.Answer(TextResponse(200, request.body));
  });
  endpoint_ = server_->Start().value();
  thread_ = std::thread([this] { loop_.Run(); });
  RawClient stranger(endpoint_);
  stranger.Send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n");
  EXPECT_EQ(stranger.ReadTo("\r\n").rfind("HTTP/1.1 401", 0), 0u);
  RawClient waits(endpoint_);
  waits.Send("POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
  EXPECT_EQ(waits.ReadTo("\r\n").rfind("HTTP/1.1 401", 0), 0u);
  RawClient twice(endpoint_);
  twice.Send("GET / HTTP/1.1\r\nAuthorization: Bearer bad\r\nAuthorization: Bearer good\r\n\r\n");
  EXPECT_EQ(twice.ReadTo("\r\n").rfind("HTTP/1.1 400", 0), 0u);
  // Without a body the connection stays for another try.
  RawClient again(endpoint_);
  again.Send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_NE(again.ReadTo("}").find("401"), std::string::npos);
  EXPECT_EQ(handled.load(), 0);
  again.Send(
      "POST / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer good\r\nConnection: close\r\n"
      "Content-Length: 5\r\n\r\nhello");
  EXPECT_NE(again.ReadAll().find("hello"), std::string::npos);
  EXPECT_EQ(handled.load(), 1);
  EXPECT_EQ(Counters().refused_requests, 3u);
}

TEST_F(HttpTest, HeadHasTheLengthButNoBody) {
  Start({}, [](const HttpRequest&, const Responder& responder) {
    responder.Answer(TextResponse(200, "twelve bytes"));
  });
  RawClient client(endpoint_);
  client.Send("HEAD / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  const std::string text = client.ReadAll();
  EXPECT_NE(text.find("Content-Length: 12\r\n"), std::string::npos) << text;
  EXPECT_EQ(text.find("twelve"), std::string::npos);
  const auto reply = Call("HEAD", "/");
  ASSERT_TRUE(reply.ok()) << reply.error().message;
  EXPECT_EQ(reply->body, "");
}

TEST_F(HttpTest, AClientThatWaitsForContinueGetsIt) {
  StartEcho();
  RawClient client(endpoint_);
  client.Send(
      "POST /c HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect: 100-continue\r\n"
      "Content-Length: 5\r\n\r\n");
  EXPECT_EQ(client.ReadTo("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  client.Send("12345");
  EXPECT_NE(client.ReadAll().find("\"body\":\"12345\""), std::string::npos);
}

TEST_F(HttpTest, ARedirectNamesTheLeaderAndHeadersStayOnOneLine) {
  Start({}, [](const HttpRequest&, const Responder& responder) {
    responder.Answer(RedirectResponse("http://node2:7070/v1\r\nEvil: yes"));
  });
  const auto reply = Call("GET", "/");
  ASSERT_TRUE(reply.ok());
  EXPECT_EQ(reply->status, 307);
  EXPECT_EQ(reply->location, "http://node2:7070/v1??Evil: yes");
}

TEST_F(HttpTest, TheServerMayGoWhileARequestWaits) {
  std::atomic<bool> asked{false};
  Start({}, [&](const HttpRequest&, const Responder& responder) {
    kept_.push_back(responder);
    asked = true;
  });
  std::optional<Result<HttpReply>> reply;
  std::thread client([&] { reply = Call("GET", "/"); });
  ASSERT_TRUE(Eventually([&asked] { return asked.load(); }));
  loop_.Post([this] { server_.reset(); });
  client.join();
  ASSERT_TRUE(reply.has_value());
  ASSERT_FALSE(reply->ok());
  EXPECT_EQ(reply->error().code, ErrorCode::kMaybeApplied);
  std::atomic<bool> done{false};
  loop_.Post([&] {
    EXPECT_TRUE(kept_[0].answered());
    kept_[0].Answer(TextResponse(200, "nobody"));
    done = true;
  });
  EXPECT_TRUE(Eventually([&done] { return done.load(); }));
}

TEST_F(HttpTest, APortThatIsTakenIsAConflict) {
  StartEcho();
  Loop loop;
  HttpServer second(loop, "127.0.0.1", static_cast<std::uint16_t>(PortOf(endpoint_)));
  const auto started = second.Start();
  ASSERT_FALSE(started.ok());
  EXPECT_EQ(started.error().code, ErrorCode::kConflict);
  HttpServer named(loop, "no-address", 0);
  EXPECT_EQ(named.Start().error().code, ErrorCode::kUsage);
}

TEST(HttpResponseTest, ErrorCodesHaveTheirStatus) {
  EXPECT_EQ(ErrorResponse(Error{ErrorCode::kNotFound, "x"}).status, 404);
  EXPECT_EQ(ErrorResponse(Error{ErrorCode::kConflict, "x"}).status, 409);
  EXPECT_EQ(ErrorResponse(Error{ErrorCode::kInvalid, "x"}).status, 400);
  EXPECT_EQ(ErrorResponse(Error{ErrorCode::kUnreachable, "x"}).status, 503);
  EXPECT_EQ(ErrorResponse(Error{ErrorCode::kIo, "x"}).status, 500);
  EXPECT_EQ(ErrorResponse(404, {ErrorId::kJobUnknown, "no \"job\""}).body,
            R"({"apiVersion":"ds/v1","error":{"code":"DS-E0801","kind":"not_found",)"
            R"("message":"no \"job\""}})");
  // No UTF-8; must not throw.
  EXPECT_FALSE(ErrorResponse({ErrorCode::kInvalid, "\xff\xfe"}).body.empty());
}

// A port that accepts, may say something, and then keeps silent.
class SilentServer {
 public:
  explicit SilentServer(std::string says, bool closes)
      : fd_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address = Loopback(0);
    socklen_t size = sizeof(address);
    PS_CHECK(::bind(fd_.get(), reinterpret_cast<sockaddr*>(&address), size) == 0);
    PS_CHECK(::listen(fd_.get(), 4) == 0);
    PS_CHECK(::getsockname(fd_.get(), reinterpret_cast<sockaddr*>(&address), &size) == 0);
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this, says = std::move(says), closes] {
      client_ = UniqueFd(::accept(fd_.get(), nullptr, nullptr));
      char buffer[4096];
      (void)!::recv(client_.get(), buffer, sizeof(buffer), 0);
      (void)!::send(client_.get(), says.data(), says.size(), MSG_NOSIGNAL);
      if (closes) client_.Reset();
    });
  }
  ~SilentServer() { thread_.join(); }
  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }

 private:
  UniqueFd fd_;
  UniqueFd client_;
  int port_ = 0;
  std::thread thread_;
};

TEST(HttpClientTest, NothingListeningIsSaidWithHostAndPort) {
  std::string address;
  {
    Loop loop;
    HttpServer server(loop, "127.0.0.1", 0);
    address = server.Start().value();
  }
  const auto reply = HttpCall("GET", "http://" + address + "/", "", kDeadline);
  ASSERT_FALSE(reply.ok());
  EXPECT_EQ(reply.error().code, ErrorCode::kUnreachable);
  EXPECT_EQ(reply.error().message, "nothing listens on " + address);
}

TEST(HttpClientTest, AServerThatNeverAnswersIsGivenUpAtTheDeadline) {
  const SilentServer server("", false);
  const auto begin = MonotonicMs();
  const auto reply = HttpCall("GET", server.address(), "", Milliseconds(100));
  ASSERT_FALSE(reply.ok());
  EXPECT_EQ(reply.error().code, ErrorCode::kTimeout);
  EXPECT_NE(reply.error().message.find(server.address()), std::string::npos);
  EXPECT_GE(MonotonicMs() - begin, 99);
  EXPECT_LT(MonotonicMs() - begin, 5000);
}

TEST(HttpClientTest, AHalfAnswerIsGivenUpAtTheDeadline) {
  const SilentServer server("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345", false);
  const auto reply = HttpCall("GET", server.address(), "", Milliseconds(100));
  ASSERT_FALSE(reply.ok());
  EXPECT_EQ(reply.error().code, ErrorCode::kTimeout);
}

TEST(HttpClientTest, AConnectionClosedInsideTheAnswerMayHaveBeenApplied) {
  const SilentServer server("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345", true);
  const auto reply = HttpCall("POST", server.address() + "/v1/jobs", "{}", kDeadline);
  ASSERT_FALSE(reply.ok());
  EXPECT_EQ(reply.error().code, ErrorCode::kMaybeApplied);
  EXPECT_NE(reply.error().message.find(server.address()), std::string::npos);
}

TEST(HttpClientTest, APeerThatDoesNotSpeakHttpIsNamed) {
  const SilentServer server("SSH-2.0-OpenSSH_9.2\r\n\r\n", true);
  const auto reply = HttpCall("GET", server.address(), "", kDeadline);
  ASSERT_FALSE(reply.ok());
  EXPECT_EQ(reply.error().code, ErrorCode::kInvalid);
  EXPECT_NE(reply.error().message.find(server.address()), std::string::npos);
}

TEST(HttpClientTest, ATokenIsNotSentToOthersWithoutTls) {
  HttpAccess access;
  access.token = "secret";
  const auto reply = HttpCall("GET", "http://node1.invalid/", "", kDeadline, access);
  ASSERT_FALSE(reply.ok());
  EXPECT_EQ(reply.error().code, ErrorCode::kDenied);
  EXPECT_NE(reply.error().message.find("node1.invalid"), std::string::npos);
  EXPECT_EQ(reply.error().message.find("secret"), std::string::npos);
}

TEST(HttpClientTest, UrlsAreTakenApart) {
  const auto plain = ParseHttpUrl("http://node1:7070/v1/jobs?x=1");
  ASSERT_TRUE(plain.ok());
  EXPECT_EQ(plain->host, "node1");
  EXPECT_EQ(plain->port, "7070");
  EXPECT_EQ(plain->target, "/v1/jobs?x=1");
  const auto bare = ParseHttpUrl("node1");
  ASSERT_TRUE(bare.ok());
  EXPECT_EQ(bare->port, "80");
  EXPECT_EQ(bare->target, "/");
  const auto ipv6 = ParseHttpUrl("http://[::1]:81/");
  ASSERT_TRUE(ipv6.ok());
  EXPECT_EQ(ipv6->host, "::1");
  EXPECT_EQ(ipv6->port, "81");
  EXPECT_FALSE(ipv6->tls);
  const auto tls = ParseHttpUrl("https://node1/v1");
  ASSERT_TRUE(tls.ok());
  EXPECT_TRUE(tls->tls);
  EXPECT_EQ(tls->port, "443");
  for (const char* const bad :
       {"", "ftp://a/", "https://", "http://", "http://a:b/", "a:70000", "a:0", "a:", "::1", "[::1",
        "[::1]x", "http://a b/", "http://a/x y", "http://user@a/", "http://a/\r\nX: y"}) {
    const auto parsed = ParseHttpUrl(bad);
    ASSERT_FALSE(parsed.ok()) << bad;
    EXPECT_EQ(parsed.error().code, ErrorCode::kUsage);
  }
  EXPECT_EQ(HttpCall("FETCH IT", "http://a/", "", kDeadline).error().code, ErrorCode::kUsage);
}

}  // namespace
}  // namespace ps::net
