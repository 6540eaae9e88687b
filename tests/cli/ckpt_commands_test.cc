#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <memory>
#include <optional>

#include "checkpoint/remote/file_service.h"
#include "common/net/context.h"
#include "common/net/zmq_socket.h"
#include "tests/cli/fake_coordinator.h"
#include "tests/cli/small_checkpoint.h"
#include "tests/cli/test_environment.h"

namespace ps::cli {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

FakeCoordinator::Handler WithCheckpoint(const std::string& hash) {
  return [hash](const net::HttpRequest& request) {
    if (request.path != "/v1/jobs/fashion/checkpoints") {
      return AnswerError(404, ErrorId::kJobUnknown, "there is no job");
    }
    return Answer(200, nlohmann::json{{"checkpoints",
                                       {{{"round", 2}, {"directory", "7/2"}},
                                        {{"round", 3},
                                         {"time", "2026-01-02T03:04:05.000Z"},
                                         {"step", 1500},
                                         {"samples", 64000},
                                         {"bytes", 83123},
                                         {"state_bytes", 912000},
                                         {"bases", {2, 1}},
                                         {"damaged", false},
                                         {"shards", 1},
                                         {"directory", "7/3"},
                                         {"manifest_hash", hash},
                                         {"final", true}}}}}
                           .dump());
  };
}

// A server that has the checkpoint, and a coordinator that knows both.
class FetchTest : public ::testing::Test {
 protected:
  FetchTest() {
    const std::string hash = WriteCheckpoint(test_.directory() / "server" / kRound);
    service_ =
        checkpoint::FileService::Start(context_, test_.directory() / "server", "tcp://127.0.0.1:*")
            .value();
    fake_.emplace([this, hash](const net::HttpRequest& request) {
      if (request.path == "/v1/nodes") {
        return Answer(200, nlohmann::json{{"nodes",
                                           {{{"name", "c"}, {"kind", "coordinator"}},
                                            {{"name", "s"},
                                             {"kind", "server"},
                                             {"store", "one"},
                                             {"files", service_ ? service_->endpoint() : ""}}}}}
                               .dump());
      }
      return Answer(
          200, nlohmann::json{{"checkpoints",
                               {{{"round", 3}, {"directory", kRound}, {"manifest_hash", hash}}}}}
                   .dump());
    });
    test_.Set("DS_COORDINATOR", fake_->url());
    test_.Set("TMPDIR", test_.directory().string());
  }

  static constexpr const char* kRound = "job-7/ckpt-3";
  TestEnvironment test_;
  net::Context context_;
  std::unique_ptr<checkpoint::FileService> service_;
  std::optional<FakeCoordinator> fake_;
};

TEST_F(FetchTest, ACheckpointComesFromTheServersAndVerifies) {
  const fs::path folder = test_.directory() / "copies";
  ASSERT_EQ(test_.Run({"ckpt", "fetch", "fashion@3", "--to", folder.string(), "-o", "json"}), 0)
      << test_.errors();
  const auto json = nlohmann::json::parse(test_.output());
  EXPECT_EQ(json["directory"], (folder / kRound).string());
  EXPECT_GT(json["bytes"], 0);
  EXPECT_EQ(test_.Run({"ckpt", "verify", "--dir", (folder / kRound).string()}), 0)
      << test_.errors();
  // What is there is not fetched again.
  ASSERT_EQ(test_.Run({"ckpt", "fetch", "fashion", "--to", folder.string(), "-o", "json"}), 0);
  EXPECT_EQ(nlohmann::json::parse(test_.output())["bytes"], 0);
}

TEST_F(FetchTest, WhatIsNotOnThisMachineIsFetchedForTheCommandAlone) {
  const auto count = [this] {
    return std::distance(fs::directory_iterator(test_.directory()), fs::directory_iterator());
  };
  const auto before = count();
  EXPECT_EQ(test_.Run({"ckpt", "verify", "fashion"}), 0) << test_.errors();
  EXPECT_EQ(test_.Run({"ckpt", "describe", "fashion@3", "-o", "json"}), 0) << test_.errors();
  EXPECT_EQ(count(), before) << "something stayed";
}

TEST_F(FetchTest, ServersThatHaveItNotOrDoNotAnswerAreNamed) {
  fs::remove_all(test_.directory() / "server" / "job-7");
  EXPECT_EQ(test_.Run({"ckpt", "verify", "fashion"}), 3);
  EXPECT_THAT(test_.errors(), HasSubstr("job-7/ckpt-3"));
  service_.reset();
  EXPECT_EQ(test_.Run({"ckpt", "verify", "fashion"}), 6);
  EXPECT_THAT(test_.errors(), HasSubstr("ds-cli node list"));
}

TEST_F(FetchTest, ARateIsUnderstoodAndKept) {
  for (const std::string rate : {"x", "0", "-1", "5X", "50MB", "1e9", "99999999999999999999"}) {
    EXPECT_EQ(test_.Run({"ckpt", "fetch", "fashion", "--to", (test_.directory() / "no").string(),
                         "--rate", rate}),
              2)
        << rate;
  }
  EXPECT_FALSE(fs::exists(test_.directory() / "no"));
  const std::int64_t before = test_.environment().now_ms();
  EXPECT_EQ(test_.Run({"ckpt", "fetch", "fashion", "--to", (test_.directory() / "slow").string(),
                       "--rate", "100k", "-o", "json"}),
            0)
      << test_.errors();
  const auto bytes = nlohmann::json::parse(test_.output())["bytes"].get<std::int64_t>();
  EXPECT_GE(test_.environment().now_ms() - before, bytes * 1000 / 100'000 - 1);
}

TEST(CkptCommandsTest, AGoodCheckpointVerifiesWithoutACoordinator) {
  TestEnvironment test;
  const fs::path round = test.directory() / "7" / "3";
  (void)WriteCheckpoint(round);
  EXPECT_EQ(test.Run({"ckpt", "verify", "--dir", round.string()}), 0) << test.errors();
  EXPECT_THAT(test.output(), HasSubstr("checkpoint 3 of fashion is good: 1 shards"));
  EXPECT_EQ(test.Run({"ckpt", "verify", "--dir", round.string(), "-o", "json"}), 0);
  EXPECT_THAT(test.output(), HasSubstr("\"findings\": []"));
}

TEST(CkptCommandsTest, AFlippedByteIsAFinding) {
  TestEnvironment test;
  const fs::path round = test.directory() / "7" / "3";
  (void)WriteCheckpoint(round);
  fs::path largest;
  for (const auto& entry : fs::directory_iterator(round / "server-1")) {
    if (entry.path().extension() == ".sst") largest = entry.path();
  }
  ASSERT_FALSE(largest.empty());
  {
    std::fstream file(largest, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(10);
    const char byte = static_cast<char>(file.get() ^ 1);
    file.seekp(10);
    file.put(byte);
  }
  EXPECT_EQ(test.Run({"ckpt", "verify", "--dir", round.string()}), 10);
  EXPECT_THAT(test.output(), HasSubstr(largest.filename().string()));
  EXPECT_THAT(test.errors(), HasSubstr("finding"));
}

TEST(CkptCommandsTest, WhatIsNotThereIsNotFound) {
  TestEnvironment test;
  EXPECT_EQ(test.Run({"ckpt", "verify", "--dir", (test.directory() / "none").string()}), 3);
  EXPECT_EQ(test.Run({"ckpt", "describe", "--dir", (test.directory() / "none").string()}), 3);
}

TEST(CkptCommandsTest, ADescriptionShowsTheManifest) {
  TestEnvironment test;
  const fs::path round = test.directory() / "7" / "3";
  const std::string hash = WriteCheckpoint(round);
  EXPECT_EQ(test.Run({"ckpt", "describe", "--dir", round.string(), "-o", "wide"}), 0);
  for (const char* part : {"fashion@3", "1,500", "parameters", "server-1", "builds on"}) {
    EXPECT_THAT(test.output(), HasSubstr(part));
  }
  EXPECT_THAT(test.output(), HasSubstr(hash));
  EXPECT_EQ(test.Run({"ckpt", "describe", "--dir", round.string(), "-o", "name"}), 0);
  EXPECT_EQ(test.output(), "fashion@3\n");
}

TEST(CkptCommandsTest, CheckpointsOfAJobAreListed) {
  FakeCoordinator fake(WithCheckpoint("abc"));
  TestEnvironment test;
  test.Set("DS_COORDINATOR", fake.url());
  EXPECT_EQ(test.Run({"ckpt", "list", "fashion"}), 0);
  EXPECT_THAT(test.output(), HasSubstr("83.1 kB"));
  EXPECT_EQ(test.Run({"ckpt", "list", "fashion", "-o", "wide"}), 0);
  EXPECT_THAT(test.output(), HasSubstr("BUILDS ON"));
  EXPECT_THAT(test.output(), HasSubstr("2,1"));
  EXPECT_EQ(test.Run({"ckpt", "list", "fashion", "-o", "name"}), 0);
  EXPECT_EQ(test.output(), "fashion@2\nfashion@3\n");
  EXPECT_EQ(test.Run({"ckpt", "list", "other"}), 3);
}

TEST(CkptCommandsTest, TheNewestCheckpointIsFoundBelowTheServersDirectory) {
  TestEnvironment test;
  const std::string hash = WriteCheckpoint(test.directory() / "root" / "7" / "3");
  FakeCoordinator fake(WithCheckpoint(hash));
  test.Set("DS_COORDINATOR", fake.url());
  const std::string root = (test.directory() / "root").string();
  EXPECT_EQ(test.Run({"ckpt", "verify", "fashion", "--checkpoint-dir", root}), 0) << test.errors();
  EXPECT_EQ(test.Run({"ckpt", "verify", "fashion@3", "--checkpoint-dir", root}), 0);
  EXPECT_EQ(test.Run({"ckpt", "verify", "fashion@9", "--checkpoint-dir", root}), 3);
  EXPECT_EQ(test.Run({"ckpt", "verify", "fashion@2", "--checkpoint-dir", root}), 3);
  EXPECT_THAT(test.errors(), HasSubstr("is not on this machine"));
  // Nobody said where, and this coordinator knows no servers to ask.
  EXPECT_EQ(test.Run({"ckpt", "verify", "fashion"}), 3);
}

TEST(CkptCommandsTest, AManifestThatTheClusterDidNotCommitIsAFinding) {
  TestEnvironment test;
  (void)WriteCheckpoint(test.directory() / "7" / "3");
  FakeCoordinator fake(WithCheckpoint("0123456789abcdef0123456789abcdef"));
  test.Set("DS_COORDINATOR", fake.url());
  EXPECT_EQ(test.Run({"ckpt", "verify", "fashion", "--checkpoint-dir", test.directory().string()}),
            10);
  EXPECT_THAT(test.output(), HasSubstr("the cluster committed 0123456789abcdef"));
}

TEST(CkptCommandsTest, PinsArePostedAndShown) {
  FakeCoordinator fake([](const net::HttpRequest& request) {
    if (request.path == "/v1/version") return Answer(200, R"({"version": "9.9"})");
    if (request.path == "/v1/jobs/fashion/checkpoints") {
      return Answer(200, R"({"checkpoints": [{"round": 3, "pinned": true}, {"round": 4}]})");
    }
    if (request.path == "/v1/jobs/fashion/checkpoints/3/pin" ||
        request.path == "/v1/jobs/fashion/checkpoints/3/unpin") {
      return Answer(200, R"({"checkpoint": {"round": 3, "pinned": true}})");
    }
    return AnswerError(404, ErrorId::kCheckpointUnknown, "job fashion has no checkpoint 9");
  });
  TestEnvironment test;
  test.Set("DS_COORDINATOR", fake.url());
  EXPECT_EQ(test.Run({"ckpt", "pin", "fashion", "3"}), 0) << test.errors();
  EXPECT_EQ(test.output(), "checkpoint fashion@3 is pinned\n");
  EXPECT_EQ(test.Run({"ckpt", "unpin", "fashion", "3"}), 0);
  EXPECT_EQ(test.output(), "checkpoint fashion@3 is not pinned\n");
  EXPECT_THAT(fake.requests(),
              testing::IsSupersetOf({"POST /v1/jobs/fashion/checkpoints/3/pin",
                                     "POST /v1/jobs/fashion/checkpoints/3/unpin"}));
  EXPECT_EQ(test.Run({"ckpt", "pin", "fashion", "3", "-o", "json"}), 0);
  EXPECT_THAT(test.output(), HasSubstr("\"pinned\": true"));
  EXPECT_EQ(test.Run({"ckpt", "pin", "fashion", "9"}), 3);
  EXPECT_EQ(test.Run({"ckpt", "pin", "fashion", "newest"}), 2);
  EXPECT_EQ(test.Run({"ckpt", "pin", "fashion"}), 2);
  EXPECT_EQ(test.Run({"ckpt", "list", "fashion"}), 0);
  EXPECT_THAT(test.output(), HasSubstr("PINNED"));
}

TEST(CkptCommandsTest, PruneShowsWhatWentAndWhatStays) {
  FakeCoordinator fake([](const net::HttpRequest& request) {
    if (request.path == "/v1/version") return Answer(200, R"({"version": "9.9"})");
    EXPECT_EQ(request.path, "/v1/jobs/fashion/checkpoints/prune");
    return Answer(
        200, R"({"removed": [1, 2], "needed": [2], "kept": [3], "bytes": 83123, "dry_run": true})");
  });
  TestEnvironment test;
  test.Set("DS_COORDINATOR", fake.url());
  EXPECT_EQ(test.Run({"ckpt", "prune", "fashion", "--keep", "1", "--dry-run"}), 0) << test.errors();
  EXPECT_EQ(nlohmann::json::parse(fake.last_body()),
            nlohmann::json({{"keep", 1}, {"dry_run", true}}));
  EXPECT_THAT(test.output(), HasSubstr("would be removed"));
  EXPECT_THAT(test.output(), HasSubstr("1, 2"));
  EXPECT_THAT(test.output(), HasSubstr("83.1 kB"));
  EXPECT_EQ(test.Run({"ckpt", "prune", "fashion", "-o", "name"}), 0);
  EXPECT_EQ(nlohmann::json::parse(fake.last_body()), nlohmann::json({{"dry_run", false}}));
  EXPECT_EQ(test.output(), "fashion@1\nfashion@2\n");
  EXPECT_EQ(test.Run({"ckpt", "prune", "fashion", "--keep", "0"}), 2);
}

TEST(CkptCommandsTest, ARollbackWithoutYesOnlySaysWhatItCosts) {
  FakeCoordinator fake([](const net::HttpRequest& request) {
    if (request.path == "/v1/version") return Answer(200, R"({"version": "9.9"})");
    EXPECT_EQ(request.path, "/v1/jobs/fashion/rollback");
    if (!nlohmann::json::parse(request.body)["confirm"].get<bool>()) {
      return AnswerError(409, ErrorId::kRollbackUnconfirmed,
                         "checkpoints 4, 5 are discarded; confirm it");
    }
    return Answer(200, R"({"round": 3, "step": 1500, "discarded": [4, 5], "job": {}})");
  });
  TestEnvironment test;
  test.Set("DS_COORDINATOR", fake.url());
  EXPECT_EQ(test.Run({"ckpt", "rollback", "fashion", "3"}), 4);
  EXPECT_THAT(test.errors(), HasSubstr("checkpoints 4, 5 are discarded; confirm it (with --yes)"));
  EXPECT_EQ(test.Run({"ckpt", "rollback", "fashion", "3", "--yes"}), 0) << test.errors();
  EXPECT_EQ(nlohmann::json::parse(fake.last_body()),
            nlohmann::json({{"round", 3}, {"confirm", true}}));
  EXPECT_EQ(test.output(),
            "job fashion goes back to checkpoint 3 at step 1,500; checkpoints discarded: 4, 5\n");
}

TEST(CkptCommandsTest, TwoCheckpointsAreComparedByNumberOrDirectory) {
  TestEnvironment test;
  const fs::path root = test.directory() / "root";
  const std::string hash = WriteCheckpoint(root / "7" / "3");
  const std::string other = WriteCheckpoint(root / "7" / "2", {1, 2, 3, 7}, Round(2));
  FakeCoordinator fake([&](const net::HttpRequest&) {
    return Answer(200,
                  nlohmann::json{{"checkpoints",
                                  {{{"round", 2}, {"directory", "7/2"}, {"manifest_hash", other}},
                                   {{"round", 3}, {"directory", "7/3"}, {"manifest_hash", hash}}}}}
                      .dump());
  });
  test.Set("DS_COORDINATOR", fake.url());
  const std::string place = root.string();
  EXPECT_EQ(test.Run({"ckpt", "diff", "fashion", "2", "3", "--checkpoint-dir", place}), 0)
      << test.errors();
  EXPECT_THAT(test.output(), HasSubstr("parameters"));
  EXPECT_THAT(test.output(), HasSubstr("1 of 4"));
  EXPECT_EQ(test.Run({"ckpt", "diff", "--dirs", (root / "7" / "2").string(),
                      (root / "7" / "3").string(), "-o", "json"}),
            0)
      << test.errors();
  const auto json = nlohmann::json::parse(test.output());
  EXPECT_EQ(json["before"]["round"], 2);
  EXPECT_EQ(json["after"]["round"], 3);
  EXPECT_EQ(json["different"], true);
  EXPECT_EQ(json["tables"][0]["elements_changed"], 1);
  EXPECT_EQ(json["tables"][0]["difference_norm"], 3.0);
  EXPECT_EQ(test.Run({"ckpt", "diff", "fashion", "2", "9", "--checkpoint-dir", place}), 3);
  EXPECT_EQ(test.Run({"ckpt", "diff", "fashion", "2"}), 2);
  EXPECT_EQ(test.Run({"ckpt", "diff", "--dirs", place}), 2);
}

}  // namespace
}  // namespace ps::cli
