#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <optional>

#include "checkpoint/backup_folder.h"
#include "checkpoint/manifest.h"
#include "checkpoint/remote/file_service.h"
#include "checkpoint/remote/remote_storage.h"
#include "checkpoint/verify.h"
#include "common/net/context.h"
#include "common/net/loop.h"
#include "common/net/zmq_socket.h"
#include "tests/cli/fake_coordinator.h"
#include "tests/cli/small_checkpoint.h"
#include "tests/cli/test_environment.h"

namespace ps::cli {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr std::uint64_t kDayMs = 86'400'000;

// A server with checkpoints of one job, and a coordinator that knows both.
class BackupTest : public ::testing::Test {
 protected:
  BackupTest() {
    service_ = checkpoint::FileService::Start(context_, servers(), "tcp://127.0.0.1:*").value();
    fake_.emplace([this](const net::HttpRequest& request) { return Handle(request); });
    test_.Set("DS_COORDINATOR", fake_->url());
  }

  // So many days old.
  void Add(std::uint64_t round, std::uint64_t days) {
    const std::string directory = "job-7/ckpt-" + std::to_string(round);
    const auto now = static_cast<std::uint64_t>(net::WallClockMs());
    const std::string hash =
        WriteCheckpoint(servers() / directory, {1, 2, 3, static_cast<float>(round)}, Round(round),
                        now - days * kDayMs);
    const std::lock_guard lock(mutex_);
    checkpoints_[round] = {{"round", round}, {"directory", directory}, {"manifest_hash", hash}};
  }
  void Set(std::uint64_t round, const char* member) {
    const std::lock_guard lock(mutex_);
    checkpoints_[round][member] = true;
  }
  void Forget(std::uint64_t round) {
    const std::lock_guard lock(mutex_);
    checkpoints_.erase(round);
    fs::remove_all(servers() / ("job-7/ckpt-" + std::to_string(round)));
  }
  net::HttpResponse Handle(const net::HttpRequest& request) {
    const std::lock_guard lock(mutex_);
    if (request.path == "/v1/version") {
      return Answer(200, json{{"version", "0.1.0"}, {"leader", true}}.dump());
    }
    if (request.path == "/v1/nodes") {
      const json server{{"name", "s"},
                        {"kind", "server"},
                        {"store", "one"},
                        {"files", service_ ? service_->endpoint() : ""}};
      return Answer(200, json{{"nodes", {server}}}.dump());
    }
    if (request.path == "/v1/jobs/fashion") {
      const json job{{"id", 7}, {"name", "fashion"}, {"created", "2026-11-22T21:50:00.123Z"}};
      return Answer(200, json{{"job", job}}.dump());
    }
    if (request.path == "/v1/jobs/7/checkpoints") {
      json list = json::array();
      for (const auto& entry : checkpoints_) list.push_back(entry.second);
      return Answer(200, json{{"checkpoints", list}}.dump());
    }
    for (auto& [round, checkpoint] : checkpoints_) {
      const std::string path = "/v1/jobs/7/checkpoints/" + std::to_string(round);
      if (request.path != path + "/pin" && request.path != path + "/unpin") continue;
      checkpoint["pinned"] = request.path == path + "/pin";
      return Answer(200, json{{"checkpoint", checkpoint}}.dump());
    }
    return AnswerError(404, ErrorId::kNotFound, "there is no " + request.path);
  }
  std::vector<std::uint64_t> Pinned() {
    const std::lock_guard lock(mutex_);
    std::vector<std::uint64_t> rounds;
    for (const auto& [round, checkpoint] : checkpoints_) {
      if (checkpoint.value("pinned", false)) rounds.push_back(round);
    }
    return rounds;
  }
  std::vector<std::string> Asked(const std::string& what) {
    std::vector<std::string> found;
    for (const std::string& one : fake_->requests()) {
      if (one.find(what) != std::string::npos) found.push_back(one);
    }
    return found;
  }

  int Backup(std::vector<std::string> more = {}, const std::string& name = "fashion") {
    std::vector<std::string> words = {"ckpt", "backup", name, "--to", folder().string(),
                                      "-o",   "json"};
    words.insert(words.end(), more.begin(), more.end());
    return test_.Run(words);
  }
  json Said() { return json::parse(test_.output(), nullptr, false); }
  std::vector<std::uint64_t> Listed() {
    EXPECT_EQ(test_.Run({"ckpt", "list", "--backup", folder().string(), "-o", "json"}), 0)
        << test_.errors();
    std::vector<std::uint64_t> rounds;
    const json said = Said();
    for (const json& one : said["backups"]) rounds.push_back(one["round"]);
    return rounds;
  }

  fs::path servers() const { return test_.directory() / "servers"; }
  fs::path folder() const { return test_.directory() / "backup"; }
  fs::path Job() const { return folder() / "job-7-fashion-20261122T215000123Z"; }

  TestEnvironment test_;
  net::Context context_;
  std::unique_ptr<checkpoint::FileService> service_;
  std::mutex mutex_;
  std::map<std::uint64_t, json> checkpoints_;
  std::optional<FakeCoordinator> fake_;
};

TEST_F(BackupTest, TheNewestIsCopiedAndVerifiesAndIsListed) {
  Add(3, 1);
  Add(5, 0);
  ASSERT_EQ(Backup(), 0) << test_.errors();
  EXPECT_EQ(Said()["round"], 5);
  EXPECT_EQ(Said()["directory"], (Job() / "ckpt-5").string());
  EXPECT_GT(Said()["bytes"], 0);
  EXPECT_EQ(test_.Run({"ckpt", "verify", "--dir", (Job() / "ckpt-5").string()}), 0);
  EXPECT_TRUE(fs::exists(folder() / checkpoint::kCatalogueFile));
  ASSERT_EQ(Backup({}, "fashion@3"), 0) << test_.errors();
  EXPECT_THAT(Listed(), ElementsAre(3, 5));
  EXPECT_EQ(test_.Run({"ckpt", "list", "--backup", folder().string()}), 0);
  EXPECT_THAT(test_.output(), HasSubstr("job-7-fashion-20261122T215000123Z/ckpt-5"));
  EXPECT_EQ(test_.Run({"ckpt", "list", "--backup", folder().string(), "other", "-o", "name"}), 0);
  EXPECT_EQ(test_.output(), "");
}

TEST_F(BackupTest, ItIsPinnedWhileItIsCopiedAndNoLonger) {
  Add(5, 0);
  ASSERT_EQ(Backup(), 0) << test_.errors();
  EXPECT_THAT(Asked("pin"), ElementsAre("POST /v1/jobs/7/checkpoints/5/pin",
                                        "POST /v1/jobs/7/checkpoints/5/unpin"));
  EXPECT_THAT(Pinned(), ElementsAre());
  EXPECT_FALSE(fs::exists(Job() / "PINNED"));
  // An operator's pin stays as it is.
  Set(5, "pinned");
  ASSERT_EQ(Backup(), 0);
  EXPECT_THAT(Pinned(), ElementsAre(5));
}

TEST_F(BackupTest, APinThatWasLeftGoesWithTheNextBackup) {
  Add(4, 1);
  Add(5, 0);
  Set(4, "pinned");
  fs::create_directories(Job());
  test_.Write("backup/job-7-fashion-20261122T215000123Z/PINNED", "4");
  ASSERT_EQ(Backup(), 0) << test_.errors();
  EXPECT_THAT(Pinned(), ElementsAre());
  // Also one of a checkpoint that is gone.
  test_.Write("backup/job-7-fashion-20261122T215000123Z/PINNED", "2");
  ASSERT_EQ(Backup(), 0) << test_.errors();
}

TEST_F(BackupTest, WhatIsDamagedOnTheServersIsNotTheNewest) {
  Add(4, 1);
  Add(5, 0);
  Set(5, "damaged");
  ASSERT_EQ(Backup(), 0) << test_.errors();
  EXPECT_EQ(Said()["round"], 4);
  Set(4, "damaged");
  EXPECT_EQ(Backup(), 3);
}

TEST_F(BackupTest, OldBackupsGoByAgeButNotTheNewest) {
  for (const auto& [round, days] : std::vector<std::pair<int, int>>{{1, 40}, {2, 30}, {3, 20}}) {
    Add(static_cast<std::uint64_t>(round), static_cast<std::uint64_t>(days));
    ASSERT_EQ(Backup({"--keep-min", "3"}), 0) << test_.errors();
  }
  EXPECT_THAT(Listed(), ElementsAre(1, 2, 3));
  ASSERT_EQ(Backup(), 0);
  EXPECT_EQ(Said()["removed"].size(), 1u);
  EXPECT_THAT(Listed(), ElementsAre(2, 3));
  ASSERT_EQ(Backup({"--keep-min", "1", "--keep-days", "25"}), 0);
  EXPECT_THAT(Listed(), ElementsAre(3));
  EXPECT_FALSE(fs::exists(Job() / "ckpt-2"));
}

TEST_F(BackupTest, WhatIsThereIsNotCopiedAgainUnlessItIsDamaged) {
  Add(5, 0);
  ASSERT_EQ(Backup(), 0);
  ASSERT_EQ(Backup(), 0);
  EXPECT_EQ(Said()["bytes"], 0);
  EXPECT_EQ(Said()["parts_present"], 1);
  for (const auto& file : fs::directory_iterator(Job() / "ckpt-5" / "server-1")) {
    if (file.path().extension() == ".sst") fs::resize_file(file.path(), 10);
  }
  ASSERT_EQ(Backup(), 0) << test_.errors();
  EXPECT_EQ(Said()["parts_repaired"], 1);
  EXPECT_EQ(test_.Run({"ckpt", "verify", "--dir", (Job() / "ckpt-5").string()}), 0);
}

TEST_F(BackupTest, AFailureNamesItselfAndChangesNothing) {
  Add(5, 0);
  ASSERT_EQ(Backup(), 0);
  Add(6, 0);
  service_.reset();
  EXPECT_EQ(Backup(), 6);
  EXPECT_THAT(Listed(), ElementsAre(5));
  EXPECT_THAT(Pinned(), ElementsAre());
  EXPECT_EQ(Backup({}, "fashion@9"), 3);
  EXPECT_EQ(Backup({}, "nobody"), 3);
  EXPECT_EQ(Backup({"--rate", "x"}), 2);
  EXPECT_EQ(Backup({"--keep-min", "0"}), 2);
  const auto lock = checkpoint::LockBackups(folder());
  ASSERT_TRUE(lock.ok());
  EXPECT_EQ(Backup(), 4);
  EXPECT_THAT(test_.errors(), HasSubstr("another backup is under way"));
  EXPECT_EQ(test_.Run({"ckpt", "list", "--backup", (test_.directory() / "none").string()}), 3);
  EXPECT_EQ(test_.Run({"ckpt", "list"}), 2);
}

TEST_F(BackupTest, ABackupThatWasInterruptedIsTakenUpAgain) {
  Add(5, 0);
  test_.InterruptAfterSleeps(1);
  EXPECT_EQ(Backup({"--rate", "10k"}), 130);
  EXPECT_THAT(Listed(), ElementsAre());
  test_.InterruptAfterSleeps(-1);
  ASSERT_EQ(Backup(), 0) << test_.errors();
  EXPECT_THAT(Listed(), ElementsAre(5));
  EXPECT_THAT(Pinned(), ElementsAre());
}

// ---- import

// A coordinator that takes an import, and goes through these phases.
class ImportTest : public ::testing::Test {
 protected:
  ImportTest() {
    fake_.emplace([this](const net::HttpRequest& request) { return Handle(request); });
    test_.Set("DS_COORDINATOR", fake_->url());
  }

  net::HttpResponse Handle(const net::HttpRequest& request) {
    const std::lock_guard lock(mutex_);
    if (request.path == "/v1/version") {
      return Answer(200, json{{"version", "0.1.0"}, {"leader", true}}.dump());
    }
    if (request.path == "/v1/imports") {
      body_ = json::parse(request.body, nullptr, false);
      // As the servers do.
      const checkpoint::RemoteStorage storage(context_, body_.value("endpoint", ""));
      const auto text = checkpoint::FindManifest(body_.value("directory", ""), "", storage);
      read_ = text.ok() ? *text : text.error().message;
      return Answer(201, json{{"job", Job("importing")}}.dump());
    }
    if (request.path == "/v1/jobs/9") {
      const std::string phase = phases_.front();
      if (phases_.size() > 1) phases_.erase(phases_.begin());
      return Answer(200, json{{"job", Job(phase)}}.dump());
    }
    return AnswerError(404, ErrorId::kNotFound, "there is no " + request.path);
  }
  static json Job(const std::string& phase) {
    json job{{"id", 9}, {"name", "fashion"}, {"phase", phase}, {"reason", "nobody has room"}};
    if (phase == "imported") {
      job["last_checkpoint"] = {{"round", 3}, {"step", 1500}, {"bytes", 100}, {"copies", 2}};
    }
    return job;
  }
  int Import(const fs::path& directory, std::vector<std::string> more = {}) {
    std::vector<std::string> words = {"ckpt", "import", directory.string(), "-o", "json"};
    words.insert(words.end(), more.begin(), more.end());
    return test_.Run(words);
  }
  bool Asked() {
    const auto requests = fake_->requests();
    return std::find(requests.begin(), requests.end(), "POST /v1/imports") != requests.end();
  }

  fs::path folder() const { return test_.directory() / "backup"; }
  fs::path round() const { return folder() / "job-7-fashion-2026" / "ckpt-3"; }

  TestEnvironment test_;
  net::Context context_;
  std::mutex mutex_;
  std::vector<std::string> phases_ = {"importing", "importing", "imported"};
  json body_;
  std::string read_;
  std::optional<FakeCoordinator> fake_;
};

TEST_F(ImportTest, TheFilesAreGivenUntilItIsImported) {
  const std::string hash = WriteCheckpoint(round());
  ASSERT_EQ(Import(round(), {"--name", "before"}), 0) << test_.errors();
  EXPECT_EQ(body_["directory"], "job-7-fashion-2026/ckpt-3");
  EXPECT_EQ(body_["name"], "before");
  EXPECT_EQ(checkpoint::Hash(body_["manifest"].get<std::string>()), hash);
  EXPECT_EQ(checkpoint::Hash(read_), hash) << read_;
  const json said = json::parse(test_.output(), nullptr, false);
  EXPECT_EQ(said["job"], 9);
  EXPECT_EQ(said["round"], 3);
  // By a path of another form, too.
  EXPECT_EQ(Import(round().string() + "/../ckpt-3/"), 0) << test_.errors();
  EXPECT_EQ(test_.Run({"ckpt", "import", round().string()}), 0);
  EXPECT_THAT(test_.output(), HasSubstr("fashion@3 is imported, as job 9"));
}

TEST_F(ImportTest, OfAFolderTheNewestOfItsOnlyJobIsMeant) {
  (void)WriteCheckpoint(folder() / "job-7-fashion-2026" / "ckpt-12", {1, 2, 3, 4}, Round(12));
  (void)WriteCheckpoint(round());
  ASSERT_EQ(Import(folder()), 0) << test_.errors();
  EXPECT_EQ(body_["directory"], "job-7-fashion-2026/ckpt-12");
  (void)WriteCheckpoint(folder() / "job-7-fashion-2027" / "ckpt-1", {1, 2, 3, 4}, Round(1));
  EXPECT_EQ(Import(folder()), 2);
  EXPECT_THAT(test_.errors(), HasSubstr("job-7-fashion-2027"));
  ASSERT_EQ(Import(folder() / "job-7-fashion-2026"), 0) << test_.errors();
  EXPECT_EQ(body_["directory"], "job-7-fashion-2026/ckpt-12");
}

TEST_F(ImportTest, WhatIsDamagedOrNotThereIsNotEvenOffered) {
  EXPECT_EQ(Import(test_.directory() / "none"), 3);
  fs::create_directories(folder());
  EXPECT_EQ(Import(folder()), 3);
  const fs::path elsewhere = test_.directory() / "copies" / "ckpt-3";
  (void)WriteCheckpoint(elsewhere);
  EXPECT_EQ(Import(elsewhere), 2);
  (void)WriteCheckpoint(round());
  for (const auto& file : fs::directory_iterator(round() / "server-1")) {
    if (file.path().extension() == ".sst") fs::resize_file(file.path(), file.file_size() - 1);
  }
  EXPECT_EQ(Import(round()), 7);
  EXPECT_THAT(test_.errors(), HasSubstr("is damaged, nothing was imported"));
  EXPECT_FALSE(Asked());
}

TEST_F(ImportTest, AFailureIsTold) {
  (void)WriteCheckpoint(round());
  phases_ = {"importing", "failed"};
  EXPECT_EQ(Import(round()), 7);
  EXPECT_THAT(test_.errors(), HasSubstr("job 9 failed: nobody has room"));
  phases_ = {"importing"};
  test_.InterruptAfterSleeps(3);
  EXPECT_EQ(Import(round()), 130);
}

}  // namespace
}  // namespace ps::cli
