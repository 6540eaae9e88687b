#include "cli/api.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>

#include "cli/certificates.h"
#include "common/net/api_tokens.h"
#include "tests/cli/fake_coordinator.h"
#include "tests/cli/test_environment.h"

namespace ps::cli {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

Api MakeApi(TestEnvironment& test, const std::vector<std::string>& urls) {
  return Api(test.environment(), Context{urls, "the test", ""});
}

TEST(ApiTest, AnAnswerIsJson) {
  FakeCoordinator fake([](const net::HttpRequest&) { return Answer(200, R"({"x": 1})"); });
  TestEnvironment test;
  Api api = MakeApi(test, {fake.url() + "/"});
  const auto answer = api.Get("/v1/jobs");
  ASSERT_TRUE(answer.ok()) << answer.error().message;
  EXPECT_EQ(IntegerOf(*answer, "x"), 1);
  EXPECT_THAT(fake.requests(), ElementsAre("GET /v1/jobs"));
}

TEST(ApiTest, WhatIsNoJsonObjectIsNoCoordinator) {
  for (const char* body : {"hello", "[1]", ""}) {
    FakeCoordinator fake([body](const net::HttpRequest&) { return Answer(200, body); });
    TestEnvironment test;
    EXPECT_EQ(MakeApi(test, {fake.url()}).Get("/").error().code, ErrorCode::kInternal) << body;
  }
}

TEST(ApiTest, EveryStatusHasItsErrorCode) {
  const std::pair<int, ErrorCode> cases[] = {
      {400, ErrorCode::kInvalid},     {422, ErrorCode::kInvalid},
      {401, ErrorCode::kDenied},      {403, ErrorCode::kDenied},
      {404, ErrorCode::kNotFound},    {409, ErrorCode::kConflict},
      {429, ErrorCode::kUnreachable}, {503, ErrorCode::kUnreachable},
      {504, ErrorCode::kUnreachable}, {500, ErrorCode::kInternal},
      {405, ErrorCode::kInternal}};
  for (const auto& item : cases) {
    EXPECT_EQ(ErrorOfAnswer(item.first, "", "u").code, item.second) << item.first;
  }
}

TEST(ApiTest, TheMessageOfAnErrorComesFromItsBody) {
  EXPECT_EQ(
      ErrorOfAnswer(404, R"({"error": {"code": "not_found", "message": "no job 7"}})", "u").message,
      "no job 7");
  EXPECT_EQ(ErrorOfAnswer(404, R"({"error": "no job 7"})", "u").message, "no job 7");
  EXPECT_EQ(ErrorOfAnswer(500, "oh\x1b no", "u").message,
            "u answered with HTTP status 500: oh? no");
  EXPECT_EQ(ErrorOfAnswer(500, "{}", "u").message, "u answered with HTTP status 500");
}

TEST(ApiTest, TheCodeOfAnErrorIsTheServers) {
  const auto id = [](const std::string& code, int status = 404) {
    return ErrorOfAnswer(status, R"({"error": {"code": ")" + code + R"(", "message": "x"}})", "u")
        .id;
  };
  EXPECT_EQ(id("DS-E0801"), ErrorId::kJobUnknown);
  EXPECT_EQ(ErrorIdName(id("DS-E9998")), "DS-E9998");  // of a newer one
  EXPECT_EQ(id("not_found"), ErrorId::kNotFound);      // of an older one
  EXPECT_EQ(id("DS-Exyz", 409), ErrorId::kConflict);
}

TEST(ApiTest, WhatAllCoordinatorsAnswerAlikeIsTheError) {
  TestEnvironment test;
  EXPECT_EQ(MakeApi(test, {"http://127.0.0.1:1"}).Get("/").error().id, ErrorId::kNothingListens);
  FakeCoordinator fake(
      [](const net::HttpRequest&) { return AnswerError(503, ErrorId::kNoLeader, "no leader"); });
  EXPECT_EQ(MakeApi(test, {fake.url()}).Get("/").error().id, ErrorId::kNoLeader);
  EXPECT_EQ(MakeApi(test, {"http://127.0.0.1:1", fake.url()}).Get("/").error().id,
            ErrorId::kNoCoordinatorReady);
}

TEST(ApiTest, ARedirectIsFollowedWithItsBodyAndRemembered) {
  FakeCoordinator leader([](const net::HttpRequest& request) {
    return Answer(200, nlohmann::json{{"got", request.body}}.dump());
  });
  FakeCoordinator standby([&leader](const net::HttpRequest& request) {
    net::HttpResponse response = Answer(307, "");
    response.headers.emplace_back("Location", leader.url() + request.target);
    return response;
  });
  TestEnvironment test;
  Api api = MakeApi(test, {standby.url()});
  const auto answer = api.Post("/v1/jobs", Json{{"a", 1}});
  ASSERT_TRUE(answer.ok()) << answer.error().message;
  EXPECT_EQ(TextOf(*answer, "got"), "{\"a\":1}");
  EXPECT_EQ(api.context().coordinators.front(), leader.url());
  ASSERT_TRUE(api.Get("/again").ok());
  EXPECT_THAT(leader.requests(), ElementsAre("GET /v1/version", "POST /v1/jobs", "GET /again"));
}

TEST(ApiTest, ACircleOfRedirectsEnds) {
  std::promise<std::string> second_url;
  const std::shared_future<std::string> known = second_url.get_future().share();
  FakeCoordinator first([known](const net::HttpRequest&) {
    net::HttpResponse response = Answer(307, "");
    response.headers.emplace_back("Location", known.get() + "/x");
    return response;
  });
  FakeCoordinator second([&first](const net::HttpRequest&) {
    net::HttpResponse response = Answer(307, "");
    response.headers.emplace_back("Location", first.url() + "/x");
    return response;
  });
  second_url.set_value(second.url());
  TestEnvironment test;
  EXPECT_EQ(MakeApi(test, {first.url()}).Get("/x").error().code, ErrorCode::kUnreachable);
}

TEST(ApiTest, TheNextCoordinatorIsAskedWhenOneIsAway) {
  FakeCoordinator fake([](const net::HttpRequest&) { return Answer(200, "{}"); });
  TestEnvironment test;
  Api api = MakeApi(test, {"http://127.0.0.1:1", fake.url()});
  ASSERT_TRUE(api.Get("/").ok());
  EXPECT_EQ(api.context().coordinators.front(), fake.url());
}

TEST(ApiTest, NobodyThereNamesEveryPlaceAtOnce) {
  TestEnvironment test;
  const auto answer = MakeApi(test, {"http://127.0.0.1:1", "http://127.0.0.1:2"}).Get("/");
  ASSERT_FALSE(answer.ok());
  EXPECT_EQ(answer.error().code, ErrorCode::kUnreachable);
  EXPECT_THAT(answer.error().message, HasSubstr("127.0.0.1:1"));
  EXPECT_THAT(answer.error().message, HasSubstr("127.0.0.1:2"));
  EXPECT_THAT(answer.error().message, HasSubstr("known from the test"));
}

TEST(ApiTest, ACallIsRepeatedUntilThereIsALeader) {
  std::atomic<int> calls{0};
  FakeCoordinator fake([&calls](const net::HttpRequest&) {
    return ++calls < 4 ? AnswerError(503, ErrorId::kNoLeader, "no leader") : Answer(200, "{}");
  });
  TestEnvironment test;
  EXPECT_TRUE(MakeApi(test, {fake.url()}).Get("/").ok());
  EXPECT_EQ(calls.load(), 4);
}

TEST(ApiTest, WithoutALeaderTheCallEndsAfterItsDeadline) {
  FakeCoordinator fake(
      [](const net::HttpRequest&) { return AnswerError(503, ErrorId::kNoLeader, "no leader"); });
  TestEnvironment test;
  const std::int64_t start = test.environment().now_ms();
  const auto answer = MakeApi(test, {fake.url()}).Get("/");
  EXPECT_EQ(answer.error().code, ErrorCode::kUnreachable);
  EXPECT_THAT(answer.error().message, HasSubstr("no leader"));
  EXPECT_LE(test.environment().now_ms() - start, 15'000);
}

TEST(ApiTest, AnInterruptionEndsTheCall) {
  FakeCoordinator fake(
      [](const net::HttpRequest&) { return AnswerError(503, ErrorId::kNoLeader, "no leader"); });
  TestEnvironment test;
  test.InterruptAfterSleeps(2);
  EXPECT_EQ(MakeApi(test, {fake.url()}).Get("/").error().code, ErrorCode::kClosed);
}

TEST(ApiTest, ASubmissionWhoseOutcomeIsUnknownIsNotSentTwice) {
  FakeCoordinator fake([](const net::HttpRequest& request) {
    return request.method == "GET" ? Answer(200, "{}")
                                   : AnswerError(504, ErrorId::kTimeout, "too late");
  });
  TestEnvironment test;
  const auto answer = MakeApi(test, {fake.url()}).Post("/v1/jobs", Json::object());
  EXPECT_EQ(answer.error().code, ErrorCode::kMaybeApplied);
  EXPECT_THAT(fake.requests(), ElementsAre("GET /v1/version", "POST /v1/jobs"));
}

TEST(ApiTest, WhatTheCoordinatorKnowsAgainIsSentUntilItIsAnswered) {
  std::atomic<int> left = 2;
  FakeCoordinator fake([&](const net::HttpRequest& request) {
    if (request.method == "GET" || left-- == 0) return Answer(200, "{}");
    return AnswerError(504, ErrorId::kTimeout, "too late");
  });
  TestEnvironment test;
  EXPECT_TRUE(MakeApi(test, {fake.url()}).PostRepeatable("/v1/jobs", Json::object()).ok());
  EXPECT_THAT(fake.requests(),
              ElementsAre("GET /v1/version", "POST /v1/jobs", "POST /v1/jobs", "POST /v1/jobs"));
}

TEST(ApiTest, WhatIsNeverAnsweredMayHaveBeenCarriedOut) {
  FakeCoordinator fake([](const net::HttpRequest& request) {
    return request.method == "GET" ? Answer(200, "{}")
                                   : AnswerError(504, ErrorId::kTimeout, "too late");
  });
  TestEnvironment test;
  const auto answer = MakeApi(test, {fake.url()}).PostRepeatable("/v1/jobs", Json::object());
  EXPECT_EQ(answer.error().code, ErrorCode::kMaybeApplied);
  EXPECT_GT(fake.requests().size(), 3u);
}

// Coordinators with TLS, and somebody who has a token and knows their authority.
class SecureApiTest : public testing::Test {
 protected:
  SecureApiTest() : token_(net::MakeApiToken().value()) {
    CertificateOrder order;
    order.hosts = {"127.0.0.1"};
    order.certificate = test_.directory() / "api.crt";
    order.key = test_.directory() / "api.key";
    order.authority = test_.directory() / "ca.crt";
    order.authority_key = test_.directory() / "ca.key";
    PS_CHECK(MakeCertificate(order).ok());
    tls_ = {order.certificate.string(), order.key.string()};
    access_ = {order.authority.string(), token_};
  }
  Api Make(const std::vector<std::string>& urls) {
    Context context{urls, "the test", ""};
    context.access = access_;
    context.token_file = "anna.token";
    return Api(test_.environment(), context);
  }

  TestEnvironment test_;
  const std::string token_;
  net::TlsFiles tls_;
  net::HttpAccess access_;
};

TEST_F(SecureApiTest, ARedirectIsFollowedWithTlsAndToken) {
  FakeCoordinator leader([](const net::HttpRequest&) { return Answer(200, "{}"); }, tls_);
  FakeCoordinator standby(
      [&leader](const net::HttpRequest& request) {
        net::HttpResponse response = Answer(307, "");
        response.headers.emplace_back("Location", leader.url() + request.target);
        return response;
      },
      tls_);
  Api api = Make({standby.url()});
  const auto answer = api.Post("/v1/jobs", Json{{"a", 1}});
  ASSERT_TRUE(answer.ok()) << answer.error().message;
  EXPECT_THAT(leader.requests(), ElementsAre("GET /v1/version", "POST /v1/jobs"));
  EXPECT_EQ(leader.last_authorization(), "Bearer " + token_);
  EXPECT_EQ(leader.last_body(), "{\"a\":1}");
}

TEST_F(SecureApiTest, ARedirectToOneWithoutTlsIsNotFollowed) {
  FakeCoordinator thief([](const net::HttpRequest&) { return Answer(200, "{}"); });
  FakeCoordinator standby(
      [&thief](const net::HttpRequest& request) {
        net::HttpResponse response = Answer(307, "");
        response.headers.emplace_back("Location", thief.url() + request.target);
        return response;
      },
      tls_);
  const auto answer = Make({standby.url()}).Get("/v1/jobs");
  ASSERT_FALSE(answer.ok());
  EXPECT_EQ(answer.error().code, ErrorCode::kDenied);
  EXPECT_THAT(answer.error().message, HasSubstr("has no TLS"));
  EXPECT_THAT(thief.requests(), ElementsAre());
}

TEST_F(SecureApiTest, AServerThatIsNotTrustedGetsNothingAndTheNextIsAsked) {
  FakeCoordinator good([](const net::HttpRequest&) { return Answer(200, "{}"); }, tls_);
  TestEnvironment other;
  CertificateOrder order;
  order.hosts = {"127.0.0.1"};
  order.certificate = other.directory() / "api.crt";
  order.key = other.directory() / "api.key";
  order.authority = other.directory() / "ca.crt";
  order.authority_key = other.directory() / "ca.key";
  ASSERT_TRUE(MakeCertificate(order).ok());
  FakeCoordinator stranger([](const net::HttpRequest&) { return Answer(200, "{}"); },
                           {order.certificate.string(), order.key.string()});
  EXPECT_TRUE(Make({stranger.url(), good.url()}).Get("/v1/jobs").ok());
  const auto answer = Make({stranger.url()}).Get("/v1/jobs");
  ASSERT_FALSE(answer.ok());
  EXPECT_EQ(answer.error().code, ErrorCode::kDenied);
  EXPECT_THAT(answer.error().message, HasSubstr("is not to be trusted"));
  EXPECT_THAT(answer.error().message, testing::Not(HasSubstr(token_)));
  EXPECT_THAT(stranger.requests(), ElementsAre());
}

TEST_F(SecureApiTest, ADenialNamesWhereTheTokenIsFrom) {
  FakeCoordinator fake(
      [](const net::HttpRequest& request) {
        return AnswerError(request.path == "/v1/nodes" ? 403 : 401, ErrorId::kDenied, "no");
      },
      tls_);
  auto answer = Make({fake.url()}).Get("/v1/jobs");
  EXPECT_EQ(answer.error().code, ErrorCode::kDenied);
  EXPECT_THAT(answer.error().message, HasSubstr("anna.token"));
  answer = Make({fake.url()}).Get("/v1/nodes");
  EXPECT_EQ(answer.error().code, ErrorCode::kDenied);
  access_.token.clear();
  answer = Make({fake.url()}).Get("/v1/jobs");
  EXPECT_THAT(answer.error().message, HasSubstr("DS_TOKEN_FILE"));
}

TEST(ApiTest, WhoIsToldToWaitAsksAgain) {
  std::atomic<int> calls{0};
  FakeCoordinator fake([&calls](const net::HttpRequest& request) {
    return request.method == "POST" && ++calls < 3
               ? AnswerError(429, ErrorId::kTooManyRequests, "too many requests")
               : Answer(200, "{}");
  });
  TestEnvironment test;
  EXPECT_TRUE(MakeApi(test, {fake.url()}).Post("/v1/jobs", Json::object()).ok());
  EXPECT_EQ(calls.load(), 3);
}

TEST(ApiTest, PathsAreEncoded) {
  EXPECT_EQ(UrlEncode("fashion-mlp_1.~"), "fashion-mlp_1.~");
  EXPECT_EQ(UrlEncode("../a b?x=1&\xff"), "..%2Fa%20b%3Fx%3D1%26%FF");
}

}  // namespace
}  // namespace ps::cli
