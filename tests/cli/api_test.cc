#include "cli/api.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>

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
      {400, ErrorCode::kInvalid},     {422, ErrorCode::kInvalid},     {401, ErrorCode::kDenied},
      {403, ErrorCode::kDenied},      {404, ErrorCode::kNotFound},    {409, ErrorCode::kConflict},
      {503, ErrorCode::kUnreachable}, {504, ErrorCode::kUnreachable}, {500, ErrorCode::kInternal},
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
    return ++calls < 4 ? AnswerError(503, "unreachable", "no leader") : Answer(200, "{}");
  });
  TestEnvironment test;
  EXPECT_TRUE(MakeApi(test, {fake.url()}).Get("/").ok());
  EXPECT_EQ(calls.load(), 4);
}

TEST(ApiTest, WithoutALeaderTheCallEndsAfterItsDeadline) {
  FakeCoordinator fake(
      [](const net::HttpRequest&) { return AnswerError(503, "unreachable", "no leader"); });
  TestEnvironment test;
  const std::int64_t start = test.environment().now_ms();
  const auto answer = MakeApi(test, {fake.url()}).Get("/");
  EXPECT_EQ(answer.error().code, ErrorCode::kUnreachable);
  EXPECT_THAT(answer.error().message, HasSubstr("no leader"));
  EXPECT_LE(test.environment().now_ms() - start, 15'000);
}

TEST(ApiTest, AnInterruptionEndsTheCall) {
  FakeCoordinator fake(
      [](const net::HttpRequest&) { return AnswerError(503, "unreachable", "no leader"); });
  TestEnvironment test;
  test.InterruptAfterSleeps(2);
  EXPECT_EQ(MakeApi(test, {fake.url()}).Get("/").error().code, ErrorCode::kClosed);
}

TEST(ApiTest, ASubmissionWhoseOutcomeIsUnknownIsNotSentTwice) {
  FakeCoordinator fake([](const net::HttpRequest& request) {
    return request.method == "GET" ? Answer(200, "{}") : AnswerError(504, "timeout", "too late");
  });
  TestEnvironment test;
  const auto answer = MakeApi(test, {fake.url()}).Post("/v1/jobs", Json::object());
  EXPECT_EQ(answer.error().code, ErrorCode::kMaybeApplied);
  EXPECT_THAT(fake.requests(), ElementsAre("GET /v1/version", "POST /v1/jobs"));
}

TEST(ApiTest, PathsAreEncoded) {
  EXPECT_EQ(UrlEncode("fashion-mlp_1.~"), "fashion-mlp_1.~");
  EXPECT_EQ(UrlEncode("../a b?x=1&\xff"), "..%2Fa%20b%3Fx%3D1%26%FF");
}

}  // namespace
}  // namespace ps::cli
