#include "cli/doctor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>

#include "common/net/api_tokens.h"
#include "common/net/loop.h"
#include "common/net/tls.h"
#include "tests/cli/fake_coordinator.h"
#include "tests/cli/test_environment.h"

namespace ps::cli {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using State = Finding::State;

TEST(DoctorTest, ADirectoryIsTriedAndLeftAsItWas) {
  TestEnvironment test;
  const Finding good = CheckDirectory(test.directory());
  EXPECT_NE(good.state, State::kFail) << good.detail;
  EXPECT_THAT(good.detail, HasSubstr("fsync of 4 KiB in "));
  EXPECT_TRUE(std::filesystem::is_empty(test.directory()));
  const Finding missing = CheckDirectory(test.directory() / "missing");
  EXPECT_EQ(missing.state, State::kFail);
  EXPECT_THAT(missing.detail, HasSubstr("No such file"));
}

TEST(DoctorTest, APortThatSomebodyHasIsFound) {
  FakeCoordinator fake([](const net::HttpRequest&) { return Answer(200, "{}"); });
  const int taken = std::stoi(fake.url().substr(fake.url().rfind(':') + 1));
  EXPECT_EQ(CheckPort(taken).state, State::kFail);
  EXPECT_THAT(CheckPort(taken).detail, HasSubstr("in use"));
}

TEST(DoctorTest, KeysAreLookedForInTheListAndAMonthAhead) {
  TestEnvironment test;
  const auto path = [&](const std::string& name) { return (test.directory() / name).string(); };
  const auto make = [&](const std::string& name, const std::string& until) {
    std::vector<std::string> words = {"auth",  "create",   "server",    name,
                                      "--key", path(name), "--trusted", path("trusted")};
    if (!until.empty()) words.insert(words.end(), {"--until", until});
    ASSERT_EQ(test.Run(words), 0) << test.errors();
  };
  make("forever", "");
  make("soon", "2027-01-31");
  constexpr std::int64_t kDayMs = std::int64_t{24} * 3600 * 1000;
  // 2027-01-31 begins 20849 days after 1970.
  const auto state = [&](const std::string& name, std::int64_t days) {
    return CheckKey(path(name), path("trusted"), days * kDayMs).state;
  };
  EXPECT_EQ(state("forever", 30'000), State::kOk);
  EXPECT_EQ(state("soon", 20'849 - 31), State::kOk);
  EXPECT_EQ(state("soon", 20'849 - 20), State::kWarn);
  EXPECT_EQ(state("soon", 20'850), State::kFail);
  ASSERT_EQ(test.Run({"auth", "revoke", "forever", "--trusted", path("trusted")}), 0);
  const Finding gone = CheckKey(path("forever"), path("trusted"), 0);
  EXPECT_EQ(gone.state, State::kFail);
  EXPECT_THAT(gone.detail, HasSubstr("is not in "));
  EXPECT_EQ(CheckKey(path("none"), path("trusted"), 0).state, State::kFail);
}

TEST(DoctorTest, WhatACoordinatorsApiBeginsWithIsLookedAt) {
  TestEnvironment test;
  const auto path = [&](const std::string& name) { return (test.directory() / name).string(); };
  const auto now = net::WallClockMs();
  constexpr std::int64_t kDayMs = std::int64_t{24} * 3600 * 1000;
  ASSERT_EQ(test.Run({"auth", "certificate", "node1", "--host", "node1", "--cert",
                      path("node1-api.crt"), "--key", path("node1-api.key"), "--ca", path("ca.crt"),
                      "--ca-key", path("ca.key")}),
            0)
      << test.errors();
  const net::TlsFiles files{path("node1-api.crt"), path("node1-api.key")};
  const std::int64_t until = net::OpenServerTls(files)->until_ms;
  EXPECT_EQ(CheckCertificate(files, now).state, State::kOk);
  EXPECT_EQ(CheckCertificate(files, until - 20 * kDayMs).state, State::kWarn);
  EXPECT_EQ(CheckCertificate(files, until).state, State::kFail);
  EXPECT_EQ(CheckCertificate({path("node1-api.crt"), path("ca.key")}, now).state, State::kFail);

  const auto create = [&](std::vector<std::string> words) {
    words.insert(words.begin(), {"token", "create"});
    words.insert(words.end(), {"--tokens", path("tokens"), "--to", path(words[3])});
    return test.Run(words);
  };
  EXPECT_EQ(CheckTokens(path("tokens"), now).state, State::kFail);
  ASSERT_EQ(create({"submitter", "anna", "--until", "2099-01-31"}), 0) << test.errors();
  EXPECT_EQ(CheckTokens(path("tokens"), now).state, State::kFail) << "nobody is an admin";
  ASSERT_EQ(create({"admin", "bob"}), 0) << test.errors();
  EXPECT_EQ(CheckTokens(path("tokens"), now).state, State::kOk);
  const auto end = net::ApiTokens::ReadFile(path("tokens"))->tokens()[0].until_ms.value();
  const Finding soon = CheckTokens(path("tokens"), end - 3 * kDayMs);
  EXPECT_EQ(soon.state, State::kWarn);
  EXPECT_THAT(soon.detail, HasSubstr("2 tokens; over within a month: anna"));
  EXPECT_THAT(CheckTokens(path("tokens"), end).detail, HasSubstr("2 tokens; over: anna"));
}

TEST(DoctorTest, AZooKeeperThatIsAwayIsGivenUpInTime) {
  const auto begun = std::chrono::steady_clock::now();
  const Finding away = CheckZooKeeper("127.0.0.1:1/ds", "", 300);
  EXPECT_EQ(away.state, State::kFail);
  EXPECT_THAT(away.detail, HasSubstr("no session within 300 ms"));
  EXPECT_LT(std::chrono::steady_clock::now() - begun, std::chrono::seconds(10));
  EXPECT_EQ(CheckZooKeeper("127.0.0.1:no", "", 300).state, State::kFail);
}

TEST(DoctorTest, TheClusterIsAskedAndEachServerConnectedTo) {
  std::string url;
  FakeCoordinator fake([&](const net::HttpRequest& request) {
    if (request.path == "/v1/version") {
      // It lives in another year, and its ZooKeeper is away.
      return Answer(200, json{{"version", PS_VERSION},
                              {"id", "c"},
                              {"time_ms", 1000},
                              {"zookeeper", "127.0.0.1:1/ds"}}
                             .dump());
    }
    const std::string here = "tcp://" + url.substr(url.find("://") + 3);
    return Answer(
        200, json{{"nodes",
                   {{{"name", "s1"}, {"kind", "server"}, {"state", "ready"}, {"lanes", {here}}},
                    {{"name", "s2"},
                     {"kind", "server"},
                     {"state", "unsteady"},
                     {"lanes", {"tcp://127.0.0.1:1"}}},
                    {{"name", "w"}, {"kind", "worker"}, {"state", "ready"}}}}}
                 .dump());
  });
  url = fake.url();
  TestEnvironment test;
  test.UseRealTime();
  test.Set("DS_COORDINATOR", url);
  EXPECT_EQ(test.Run({"node", "doctor", "--deadline", "300ms", "-o", "json", "--dir",
                      test.directory().string()}),
            10)
      << test.errors();
  const json answer = json::parse(test.output());
  const auto state_of = [&](const std::string& check) {
    std::string states;
    for (const json& finding : answer["findings"]) {
      if (finding["check"] == check) states += finding["state"].get<std::string>() + " ";
    }
    return states;
  };
  EXPECT_EQ(state_of("coordinator"), "ok ");
  EXPECT_EQ(state_of("clock of the coordinator"), "fail ");
  EXPECT_EQ(state_of("ZooKeeper 127.0.0.1:1/ds"), "fail ");
  EXPECT_EQ(state_of("server s1"), "ok ");
  EXPECT_EQ(state_of("server s2"), "warn fail ");
  EXPECT_EQ(state_of("worker w"), "");
  EXPECT_NE(state_of("directory " + test.directory().string()), "");
  EXPECT_EQ(test.Run({"node", "doctor", "--deadline", "300ms"}), 10);
  EXPECT_THAT(test.output(), HasSubstr("--advertise of that server"));
}

TEST(DoctorTest, BeforeAStartNoCoordinatorIsAsked) {
  TestEnvironment test;
  EXPECT_NE(test.Run({"node", "doctor", "--offline", "-o", "json"}), 6) << test.errors();
  EXPECT_EQ(json::parse(test.output())["findings"].size(), 6u);
  EXPECT_EQ(test.Run({"node", "doctor"}), 6);  // nobody to ask
}

}  // namespace
}  // namespace ps::cli
