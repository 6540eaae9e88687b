#include "coordinator/shell/api_access.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <memory>
#include <set>
#include <sstream>
#include <thread>

#include "common/net/certificates.h"
#include "common/net/http_client.h"
#include "tests/support/temp_directory.h"

namespace ps::coordinator {
namespace {

using net::ApiRole;
using net::Milliseconds;
using testing::HasSubstr;
using testing::Not;

class ApiAccessTest : public ::testing::Test {
 protected:
  ApiAccessTest() : server_(loop_, "127.0.0.1", 0), before_(spdlog::default_logger()) {
    spdlog::set_default_logger(std::make_shared<spdlog::logger>(
        "test", std::make_shared<spdlog::sinks::ostream_sink_mt>(log_)));
  }
  ~ApiAccessTest() override { spdlog::set_default_logger(before_); }

  std::string Path(const std::string& name) const { return (folder_ / name).string(); }
  void Write(const std::string& name, const std::string& text) {
    const std::string temporary = Path(name) + ".tmp";
    std::ofstream(temporary) << text;
    ::chmod(temporary.c_str(), 0600);
    std::filesystem::rename(temporary, Path(name));
  }
  // A token, and its line in the list.
  std::string Make(ApiRole role, const std::string& name,
                   std::optional<std::int64_t> until_ms = std::nullopt) {
    const std::string token = net::MakeApiToken().value();
    list_ += net::ApiTokenLine({role, name, net::ApiTokenHash(token), until_ms});
    Write("tokens", list_);
    return token;
  }
  void Open(net::TlsFiles tls = {}) {
    access_ = std::make_unique<ApiAccess>(loop_, server_, ApiSecurity{tls, Path("tokens")});
    const Status opened = access_->Open();
    ASSERT_TRUE(opened.ok()) << opened.error().message;
  }
  // The status of the answer; 0: admitted.
  int Ask(const std::string& method, const std::string& path, const std::string& authorization) {
    net::HttpRequest request;
    request.method = method;
    request.path = path;
    request.peer = "10.0.0.3:4711";
    if (!authorization.empty()) request.headers["authorization"] = authorization;
    const auto answer = access_->Admit(request);
    if (answer) answer_ = answer->body;
    return answer ? answer->status : 0;
  }
  int As(const std::string& token, const std::string& method, const std::string& path) {
    return Ask(method, path, "Bearer " + token);
  }
  template <typename Condition>
  bool Eventually(Condition condition) {
    return loop_.RunUntil(condition, Milliseconds(5000));
  }

  const test::TempDirectory folder_;
  std::string list_ = "# tokens\n";
  net::Loop loop_;
  net::HttpServer server_;
  std::ostringstream log_;
  std::shared_ptr<spdlog::logger> before_;
  std::unique_ptr<ApiAccess> access_;
  std::string answer_;
};

TEST_F(ApiAccessTest, ARoleAllowsWhatThoseBelowItMayDo) {
  const std::string viewer = Make(ApiRole::kViewer, "grafana");
  const std::string submitter = Make(ApiRole::kSubmitter, "anna");
  const std::string admin = Make(ApiRole::kAdmin, "root");
  Open();
  const struct {
    const char* method;
    const char* path;
    int viewer, submitter, admin;
  } cases[] = {{"GET", "/v1/jobs", 0, 0, 0},
               {"GET", "/metrics", 0, 0, 0},
               {"POST", "/v1/jobs", 403, 0, 0},
               {"POST", "/v1/jobs/7/cancel", 403, 0, 0},
               {"POST", "/v1/nodes/server-1", 403, 403, 0},
               {"POST", "/v1/jobs/7/rollback", 403, 403, 0},
               {"POST", "/v1/imports", 403, 403, 0},
               {"DELETE", "/v1/jobs/7", 404, 404, 404},
               {"GET", "/etc/passwd", 404, 404, 404}};
  for (const auto& item : cases) {
    EXPECT_EQ(As(viewer, item.method, item.path), item.viewer) << item.path;
    EXPECT_EQ(As(submitter, item.method, item.path), item.submitter) << item.path;
    EXPECT_EQ(As(admin, item.method, item.path), item.admin) << item.path;
  }
  EXPECT_EQ(As(viewer, "POST", "/v1/jobs"), 403);
  EXPECT_THAT(answer_, HasSubstr("one of a submitter would"));
  EXPECT_THAT(answer_, HasSubstr(R"("code":"DS-E0503","kind":"denied")"));
  EXPECT_THAT(log_.str(), HasSubstr("refused 10.0.0.3:4711: grafana (viewer) is no submitter (POST "
                                    "/v1/jobs)"));
  EXPECT_THAT(log_.str(), HasSubstr("anna (submitter) at 10.0.0.3:4711: POST /v1/jobs/7/cancel"));
  for (const std::string& token : {viewer, submitter, admin}) {
    EXPECT_THAT(log_.str(), Not(HasSubstr(token.substr(4))));
  }
}

TEST_F(ApiAccessTest, ASubmitterEndsHisOwnJobsOnly) {
  const std::string viewer = Make(ApiRole::kViewer, "grafana");
  const std::string anna = Make(ApiRole::kSubmitter, "anna");
  const std::string laptop = Make(ApiRole::kSubmitter, "anna:laptop");
  const std::string bert = Make(ApiRole::kSubmitter, "bert");
  const std::string admin = Make(ApiRole::kAdmin, "root");
  Open();
  const auto request = [](const std::string& token, const std::string& path) {
    net::HttpRequest made;
    made.method = "POST";
    made.path = path;
    made.peer = "10.0.0.3:4711";
    made.headers["authorization"] = "Bearer " + token;
    return made;
  };
  const auto about = [&](const std::string& token, const char* what, const std::string& owner) {
    const auto answer =
        access_->AdmitToJob(request(token, std::string("/v1/jobs/7/") + what), owner);
    if (answer) answer_ = answer->body;
    return answer ? answer->status : 0;
  };
  EXPECT_EQ(access_->OwnerOf(request(laptop, "/v1/jobs")), "anna");
  EXPECT_EQ(access_->OwnerOf(request("nobody", "/v1/jobs")), "");
  for (const char* what : {"cancel", "suspend", "resume", "scale", "rebalance"}) {
    EXPECT_EQ(about(anna, what, "anna"), 0) << what;
    EXPECT_EQ(about(laptop, what, "anna"), 0) << what;
    EXPECT_EQ(about(admin, what, "anna"), 0) << what;
    EXPECT_EQ(about(bert, what, "anna"), 403) << what;
    EXPECT_EQ(about(bert, what, ""), 403) << what;
    EXPECT_EQ(about("nobody", what, ""), 403) << what;
  }
  EXPECT_EQ(about(bert, "checkpoints/3/pin", "anna"), 0) << "who makes backups keeps what he reads";
  EXPECT_EQ(about(bert, "cancel", "anna"), 403);
  EXPECT_THAT(answer_, HasSubstr("the job is anna's: anna or an admin may do that, not bert"));
  EXPECT_THAT(log_.str(), HasSubstr("refused 10.0.0.3:4711: bert asked about a job of anna (POST "
                                    "/v1/jobs/7/cancel)"));
}

TEST_F(ApiAccessTest, WithoutAValidTokenEverythingLooksTheSame) {
  const std::string late = Make(ApiRole::kAdmin, "late", 1'600'000'000'000);
  const std::string good = Make(ApiRole::kAdmin, "root");
  Open();
  const std::string stranger = net::MakeApiToken().value();
  std::set<std::string> answers;
  for (const std::string& token : {late, stranger, std::string("x"), std::string()}) {
    for (const char* path : {"/v1/jobs", "/metrics", "/no/such/path", "/v1/jobs/7/cancel"}) {
      EXPECT_EQ(As(token, "GET", path), 401) << path;
      answers.insert(answer_);
    }
  }
  EXPECT_EQ(answers.size(), 1u);
  for (const std::string& header :
       {std::string(), good, "Basic " + good, std::string("Bearer"), "Bearer  " + good}) {
    EXPECT_EQ(Ask("GET", "/v1/jobs", header), 401) << header;
  }
  EXPECT_EQ(Ask("GET", "/v1/jobs", "bearer " + good), 0) << "the scheme's case does not count";
  EXPECT_EQ(Ask("GET", "/healthz", ""), 0);
  EXPECT_EQ(access_->counters().refused, 21u);
  EXPECT_THAT(log_.str(), HasSubstr("the token of late has expired on 2020-09-13"));
  for (const std::string& token : {late, stranger, good}) {
    EXPECT_THAT(log_.str() + answer_, Not(HasSubstr(token.substr(4))));
  }
}

TEST_F(ApiAccessTest, WhatStrangersSendStaysOnItsLine) {
  Make(ApiRole::kAdmin, "root");
  Open();
  EXPECT_EQ(Ask("GET\r\n", "/v1/jobs\n[critical] all is lost\x1b[2J" + std::string(5000, 'x'), ""),
            401);
  EXPECT_THAT(log_.str(), HasSubstr("/v1/jobs?[critical]"));
  EXPECT_LT(log_.str().size(), 1000u);
}

TEST_F(ApiAccessTest, TheListIsReadAgainWithinASecond) {
  const std::string anna = Make(ApiRole::kSubmitter, "anna");
  Open();
  EXPECT_EQ(As(anna, "GET", "/v1/jobs"), 0);
  const std::string bob = Make(ApiRole::kViewer, "bob");
  const std::int64_t begin = loop_.NowMs();
  ASSERT_TRUE(Eventually([&] { return As(bob, "GET", "/v1/jobs") == 0; }));
  EXPECT_LT(loop_.NowMs() - begin, 1500);
  // What makes no sense changes nothing.
  Write("tokens", "nonsense\n");
  ASSERT_TRUE(Eventually([&] { return log_.str().find("nonsense") != std::string::npos; }));
  EXPECT_EQ(As(bob, "GET", "/v1/jobs"), 0);
  Write("tokens", "# nobody\n");
  access_->Reload();
  EXPECT_EQ(As(anna, "GET", "/v1/jobs"), 401);
  EXPECT_EQ(As(bob, "GET", "/v1/jobs"), 401);
}

TEST_F(ApiAccessTest, ANewCertificateIsShownWithoutARestart) {
  const std::string token = Make(ApiRole::kViewer, "anna");
  const auto certify = [this](const net::PemPair& authority) {
    const auto made = net::MakeServerCertificate(authority, {"127.0.0.1"}, 30);
    // One after the other, as an operator does.
    Write("api.key", made->pair.key);
    Write("api.crt", made->pair.certificate);
  };
  certify(net::MakeAuthority(30).value());
  Open({Path("api.crt"), Path("api.key")});
  const std::int64_t until_ms = access_->certificate_until_ms();
  EXPECT_GT(until_ms, net::WallClockMs() + std::int64_t{29} * 86'400'000);
  const std::string endpoint = server_.Start().value();
  const net::PemPair authority = net::MakeAuthority(30).value();
  Write("ca.crt", authority.certificate);
  certify(authority);
  std::atomic<bool> trusted{false};
  std::atomic<bool> over{false};
  server_.OnRequest([](const net::HttpRequest&, const net::Responder& responder) {
    responder.Answer(net::TextResponse(200, "ok"));
  });
  std::thread client([&] {
    const net::HttpAccess access{Path("ca.crt"), token};
    while (!trusted && !over) {
      const auto reply =
          net::HttpCall("GET", "https://" + endpoint + "/v1/jobs", "", Milliseconds(1000), access);
      trusted = reply.ok() && reply->status == 200;
      std::this_thread::sleep_for(Milliseconds(20));
    }
  });
  EXPECT_TRUE(Eventually([&] { return trusted.load(); }));
  over = true;
  client.join();
}

TEST(ApiSecurityTest, BeyondThisHostTokensAndTlsAreWanted) {
  const net::TlsFiles tls{"api.crt", "api.key"};
  const ApiSecurity none{};
  const ApiSecurity only_tls{tls, ""};
  const ApiSecurity only_tokens{{}, "tokens"};
  const ApiSecurity both{tls, "tokens"};
  for (const auto& security : {none, only_tls, only_tokens, both}) {
    EXPECT_TRUE(security.Check("127.0.0.1", false).ok());
  }
  EXPECT_TRUE(both.Check("0.0.0.0", false).ok());
  EXPECT_TRUE(both.Check("10.0.0.3", true).ok());
  EXPECT_TRUE(none.Check("10.0.0.3", true).ok());
  EXPECT_TRUE(only_tls.Check("10.0.0.3", true).ok());
  for (const auto& security : {none, only_tls, only_tokens}) {
    const Status status = security.Check("10.0.0.3", false);
    ASSERT_FALSE(status.ok());
    EXPECT_EQ(status.error().code, ErrorCode::kUsage);
    EXPECT_THAT(status.error().message, HasSubstr("10.0.0.3"));
  }
  EXPECT_FALSE(only_tokens.Check("10.0.0.3", true).ok()) << "tokens in the clear";
  EXPECT_FALSE((ApiSecurity{{"api.crt", ""}, "tokens"}.Check("127.0.0.1", false).ok()));
}

}  // namespace
}  // namespace ps::coordinator
