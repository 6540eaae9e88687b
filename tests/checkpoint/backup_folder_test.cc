#include "checkpoint/backup_folder.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "checkpoint/part_directory.h"
#include "checkpoint/remote/fetch.h"
#include "tests/checkpoint/checkpoint_fixture.h"

namespace ps::checkpoint {
namespace {

constexpr std::uint64_t kDayMs = 86'400'000;
constexpr const char* kJob = "job-3-mlp-20261122T000000000Z";

class BackupFolderTest : public CheckpointTest {
 protected:
  // A checkpoint of two servers, each with a shard; `bases` are said to have the rest of it.
  void Write(const fs::path& root, const fs::path& job, std::uint64_t round, std::uint64_t time_ms,
             const std::vector<Round>& bases = {}) {
    const fs::path directory = root / job / ("ckpt-" + std::to_string(round));
    std::vector<std::pair<std::string, WrittenShard>> all;
    for (std::uint32_t shard = 0; shard < 2; ++shard) {
      ShardImage image = MakeImage(shard, {7, 3});
      image.round = Round(round);
      image.values[0] = static_cast<float>(round);
      const std::string name = "server-" + std::to_string(shard);
      for (WrittenShard& written : WritePart(directory / name, {image})) {
        written.bases = bases;
        all.emplace_back(name, written);
      }
    }
    Manifest manifest = MakeManifest(all);
    manifest.round = Round(round);
    manifest.time_ms = time_ms;
    const auto text = ToJson(manifest);
    ASSERT_TRUE(text.ok()) << text.error().message;
    for (const auto& entry : all) {
      ASSERT_TRUE(WriteManifest(directory / entry.first, *text).ok());
    }
  }
  void Add(std::uint64_t round, std::uint64_t day, const std::vector<Round>& bases = {}) {
    Write(root_, kJob, round, day * kDayMs, bases);
  }

  std::vector<std::uint64_t> Listed() {
    std::vector<std::uint64_t> rounds;
    const auto backups = ListBackups(root_);
    EXPECT_TRUE(backups.ok());
    for (const Backup& backup : *backups) rounds.push_back(backup.round.value());
    return rounds;
  }
  std::vector<std::string> OnDisk() {
    std::vector<std::string> parts;
    for (const auto& round : fs::directory_iterator(root_ / kJob)) {
      for (const auto& part : fs::directory_iterator(round)) {
        parts.push_back(round.path().filename().string() + "/" + part.path().filename().string());
      }
    }
    std::sort(parts.begin(), parts.end());
    return parts;
  }
  // Those older than seven days go, but for the newest two.
  SweepReport Sweep(std::uint64_t today, std::size_t keep_min = 2) {
    const auto swept = SweepBackups(root_, kJob, {7 * kDayMs, keep_min}, today * kDayMs);
    EXPECT_TRUE(swept.ok()) << (swept.ok() ? "" : swept.error().message);
    return swept.ok() ? *swept : SweepReport();
  }
  void CutManifests(std::uint64_t round) {
    for (const char* part : {"server-0", "server-1"}) {
      const fs::path file = root_ / kJob / ("ckpt-" + std::to_string(round)) / part / kManifestFile;
      WriteFile(file, ReadFile(file).substr(0, 100));
    }
  }
};

using Rounds = std::vector<std::uint64_t>;

TEST_F(BackupFolderTest, ABackupIsWhatHasAManifest) {
  Add(4, 1);
  Add(7, 2, {Round(4)});
  // What a backup that was cut off leaves.
  WritePart(root_ / kJob / "ckpt-9" / "server-0", {MakeImage(0)});
  fs::create_directories(root_ / kJob / "ckpt-9" / "server-1.partial");
  fs::create_directories(root_ / "lost+found");
  const auto backups = ListBackups(root_);
  ASSERT_TRUE(backups.ok());
  EXPECT_EQ(Listed(), (Rounds{4, 7}));
  const Backup& newest = backups->back();
  EXPECT_EQ(newest.damage, "");
  EXPECT_EQ(newest.job, JobId(3));
  EXPECT_EQ(newest.time_ms, 2 * kDayMs);
  EXPECT_EQ(newest.bases, std::set<Round>{Round(4)});
  EXPECT_EQ(newest.parts.size(), 4u);
  EXPECT_EQ(ListBackups(root_ / "none").error().code, ErrorCode::kNotFound);
}

TEST_F(BackupFolderTest, WhatIsOldGoesButForTheNewest) {
  for (std::uint64_t day = 1; day <= 12; ++day) Add(day * 10, day);
  const SweepReport swept = Sweep(12);
  EXPECT_EQ(Listed(), (Rounds{50, 60, 70, 80, 90, 100, 110, 120}));
  EXPECT_EQ(swept.removed.size(), 4u);
  EXPECT_EQ(swept.parts, 8u);
  EXPECT_EQ(OnDisk().size(), 16u);
  // A year later nothing has come.
  Sweep(400);
  EXPECT_EQ(Listed(), (Rounds{110, 120}));
  Sweep(400, 1);
  EXPECT_EQ(Listed(), (Rounds{120}));
}

TEST_F(BackupFolderTest, WhatAKeptOneBuildsOnStaysUnlisted) {
  Add(1, 1);
  Add(2, 2, {Round(1)});
  Add(3, 3, {Round(2), Round(1)});
  Add(4, 20);
  Add(5, 21, {Round(4)});
  Sweep(21, 3);
  EXPECT_EQ(Listed(), (Rounds{3, 4, 5}));
  EXPECT_EQ(OnDisk().size(), 10u);
  EXPECT_EQ((*ListBackups(root_))[0].damage, "");
  Sweep(21);
  EXPECT_EQ(Listed(), (Rounds{4, 5}));
  EXPECT_EQ(OnDisk(), (std::vector<std::string>{"ckpt-4/server-0", "ckpt-4/server-1",
                                                "ckpt-5/server-0", "ckpt-5/server-1"}));
}

TEST_F(BackupFolderTest, LeftoversGoWithTheNextSweep) {
  Add(4, 1);
  WritePart(root_ / kJob / "ckpt-3" / "server-0", {MakeImage(0)});
  fs::create_directories(root_ / kJob / "ckpt-3" / "server-1.partial");
  EXPECT_EQ(Sweep(1).parts, 2u);
  EXPECT_EQ(OnDisk(), (std::vector<std::string>{"ckpt-4/server-0", "ckpt-4/server-1"}));
  EXPECT_FALSE(fs::exists(root_ / kJob / "ckpt-3"));
}

TEST_F(BackupFolderTest, WhatIsNotWholeIsShownAndCountsForNothing) {
  for (std::uint64_t round = 1; round <= 4; ++round) Add(round, round);
  fs::remove_all(root_ / kJob / "ckpt-4" / "server-1");
  const auto backups = ListBackups(root_);
  ASSERT_EQ(backups->size(), 4u);
  EXPECT_NE(backups->back().damage.find("server-1 is missing"), std::string::npos);
  // The newest two that are whole are others.
  Sweep(100);
  EXPECT_EQ(Listed(), (Rounds{2, 3}));
}

TEST_F(BackupFolderTest, NothingIsDeletedWhileAManifestCannotBeRead) {
  Add(1, 1);
  Add(2, 2, {Round(1)});
  Add(3, 3);
  Add(4, 4);
  CutManifests(2);
  const SweepReport swept = Sweep(100);
  EXPECT_TRUE(swept.held_up);
  EXPECT_EQ(swept.parts, 0u);
  EXPECT_EQ(Listed(), (Rounds{2, 3, 4}));
  EXPECT_EQ(OnDisk().size(), 8u) << "the parts that 2 may need";
  EXPECT_TRUE((*ListBackups(root_))[0].unreadable);
}

TEST_F(BackupFolderTest, AManifestOfTheFutureStays) {
  Add(1, 500);
  Add(2, 1);
  Add(3, 2);
  Sweep(10, 1);
  EXPECT_EQ(Listed(), (Rounds{1, 3}));
}

TEST_F(BackupFolderTest, JobsOfOneNumberAreTwo) {
  Add(1, 1);
  const std::string other = BackupJobFolder("3", "mlp", "2027-01-01T00:00:00.000Z");
  EXPECT_EQ(other, "job-3-mlp-20270101T000000000Z");
  EXPECT_EQ(BackupJobFolder("3", "a b/../ü", "").find('/'), std::string::npos);
  Write(root_, other, 1, kDayMs);
  EXPECT_EQ(Listed(), (Rounds{1, 1}));
  Sweep(100);
  EXPECT_EQ(Listed(), (Rounds{1, 1}));
}

TEST_F(BackupFolderTest, TheCatalogueIsWhatIsThere) {
  Add(1, 1);
  Add(2, 2, {Round(1)});
  WriteFile(root_ / kCatalogueFile, "junk");
  ASSERT_TRUE(WriteCatalogue(root_).ok());
  const auto json = nlohmann::json::parse(ReadFile(root_ / kCatalogueFile), nullptr, false);
  ASSERT_EQ(json["backups"].size(), 2u);
  EXPECT_EQ(json["backups"][1]["bases"], nlohmann::json::array({1}));
  EXPECT_EQ(json["backups"][1]["directory"], std::string(kJob) + "/ckpt-2");
  EXPECT_EQ(json["backups"][0]["manifest_hash"],
            Hash(ReadFile(root_ / kJob / "ckpt-1" / "server-0" / kManifestFile)));
}

TEST_F(BackupFolderTest, OneAtATime) {
  auto first = LockBackups(root_ / "new");
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(LockBackups(root_ / "new").error().code, ErrorCode::kConflict);
  { const FileDescriptor taken = std::move(first).value(); }
  EXPECT_TRUE(LockBackups(root_ / "new").ok());
}

// ---- what fills it

class FetchTest : public BackupFolderTest {
 protected:
  void SetUp() override {
    BackupFolderTest::SetUp();
    Write(root_ / "servers", "job-3", 1, kDayMs);
    Write(root_ / "servers", "job-3", 2, 2 * kDayMs, {Round(1)});
  }
  Result<FetchReport> Fetch(std::uint64_t round, const FetchProgress& progress = {}) {
    const std::string name = "ckpt-" + std::to_string(round);
    FetchOrder order{"job-3/" + name, "", root_ / kJob / name, true};
    return FetchCheckpoint({&servers()}, order, progress);
  }
  const Storage& servers() {
    if (!servers_) servers_ = std::make_unique<LocalStorage>(root_ / "servers");
    return *servers_;
  }
  static void Flip(const fs::path& file) {
    std::string content = ReadFile(file);
    content[content.size() / 2] ^= 4;
    WriteFile(file, content);
  }

  std::unique_ptr<LocalStorage> servers_;
};

TEST_F(FetchTest, OnlyWhatIsNotThereIsCopied) {
  const auto first = Fetch(1);
  ASSERT_TRUE(first.ok()) << first.error().message;
  EXPECT_EQ(first->parts, 2u);
  EXPECT_GT(first->bytes, 0u);
  const auto second = Fetch(2);
  ASSERT_TRUE(second.ok());
  EXPECT_EQ(second->parts, 4u);
  EXPECT_EQ(second->present, 2u);
  EXPECT_EQ(second->repaired, 0u);
  EXPECT_EQ(Fetch(2)->bytes, 0u);
  EXPECT_EQ(Listed(), (Rounds{1, 2}));
}

TEST_F(FetchTest, WhatIsThereAndDamagedIsReplacedInAnyFile) {
  ASSERT_TRUE(Fetch(1).ok());
  const fs::path part = root_ / kJob / "ckpt-1" / "server-0";
  const std::string manifest = ReadFile(part / kManifestFile);
  for (const fs::path& file : FilesOf(part)) {
    if (file.filename() == kManifestFile || fs::file_size(file) == 0) continue;
    Flip(file);
    const auto fetched = Fetch(2);
    ASSERT_TRUE(fetched.ok()) << file << fetched.error().message;
    EXPECT_EQ(fetched->repaired, 1u) << file;
    EXPECT_TRUE(CheckPart(part, {}).ok()) << file;
    // It is still a backup of its own.
    EXPECT_EQ(ReadFile(part / kManifestFile), manifest);
    EXPECT_FALSE(fs::exists(part.string() + ".partial"));
  }
  fs::remove(part / "CURRENT");
  EXPECT_EQ(Fetch(2)->repaired, 1u);
}

TEST_F(FetchTest, WhereverItIsCutOffNothingIsListedAndItGoesOn) {
  std::uint64_t pieces = 0;
  std::uint64_t all = 0;
  ASSERT_TRUE(Fetch(2, [&](std::uint64_t piece, std::uint64_t total) {
                ++pieces;
                all = total;
                EXPECT_LE(piece, total);
                return true;
              }).ok());
  EXPECT_EQ(Fetch(2)->present, 4u);
  ASSERT_GT(pieces, 4u);
  fs::remove_all(root_ / kJob);
  std::uint64_t copied = 0;
  for (std::uint64_t cut = 0; cut < pieces; ++cut) {
    std::uint64_t seen = 0;
    const auto stopped = Fetch(2, [&](std::uint64_t, std::uint64_t) { return seen++ < cut; });
    if (stopped.ok()) break;  // what came before is not copied again, so it is soon over
    EXPECT_EQ(stopped.error().code, ErrorCode::kClosed);
    EXPECT_TRUE(!fs::exists(root_ / kJob) || Listed().empty()) << cut;
    ++copied;
  }
  EXPECT_GT(copied, 2u);
  ASSERT_TRUE(Fetch(2).ok());
  EXPECT_EQ(Listed(), Rounds{2});
  EXPECT_EQ((*ListBackups(root_))[0].damage, "");
}

TEST_F(FetchTest, ADamagedSourceIsRefusedAndWhatIsThereStays) {
  ASSERT_TRUE(Fetch(1).ok());
  const fs::path part = root_ / kJob / "ckpt-1" / "server-0";
  for (const fs::path& file : FilesOf(root_ / "servers/job-3/ckpt-1/server-0")) {
    if (file.extension() == ".sst") Flip(file);
  }
  Flip(part / "CURRENT");
  const auto before = ReadFile(part / "CURRENT");
  EXPECT_EQ(Fetch(2).error().code, ErrorCode::kInvalid);
  EXPECT_EQ(ReadFile(part / "CURRENT"), before);
  EXPECT_EQ(Listed(), Rounds{1});
}

TEST_F(FetchTest, WithoutRoomNothingBegins) {
  EXPECT_TRUE(CheckFreeBytes(root_ / "not/there/yet", 1).ok());
  const Status full = CheckFreeBytes(root_ / "not/there/yet", UINT64_MAX / 2);
  ASSERT_FALSE(full.ok());
  EXPECT_EQ(full.error().code, ErrorCode::kIo);
  EXPECT_NE(full.error().message.find("not enough space"), std::string::npos);
}

}  // namespace
}  // namespace ps::checkpoint
