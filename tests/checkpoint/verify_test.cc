#include "checkpoint/verify.h"

#include <gtest/gtest.h>

#include "tests/checkpoint/checkpoint_fixture.h"

namespace ps::checkpoint {
namespace {

class VerifyTest : public CheckpointTest {
 protected:
  void SetUp() override {
    CheckpointTest::SetUp();
    std::vector<std::pair<std::string, WrittenShard>> all;
    for (std::uint32_t server = 0; server < 3; ++server) {
      const std::string name = "server-" + std::to_string(server);
      const std::vector<WrittenShard> written =
          WritePart(round() / name, {WithRows(MakeImage(2 * server, {50, 6}), 6, 400, 64),
                                     WithRows(MakeImage(2 * server + 1), 6, 400, 64)});
      for (const WrittenShard& shard : written) all.emplace_back(name, shard);
    }
    manifest_ = MakeManifest(all);
    manifest_.row_tables = {{"users", 3}, {"items", 1024}};
    text_ = *ToJson(manifest_);
    for (std::uint32_t server = 0; server < 3; ++server) {
      ASSERT_TRUE(WriteManifest(round() / ("server-" + std::to_string(server)), text_).ok());
    }
  }

  fs::path round() const { return root_ / "round-12"; }
  VerifyReport Verify() const {
    Result<VerifyReport> report = VerifyCheckpoint(round(), {});
    if (!report.ok()) {
      ADD_FAILURE() << report.error().message;
      return {};
    }
    return *report;
  }
  static bool Mentions(const VerifyReport& report, const std::string& text) {
    for (const std::string& finding : report.findings) {
      if (finding.find(text) != std::string::npos) return true;
    }
    return false;
  }

  Manifest manifest_;
  std::string text_;
};

TEST_F(VerifyTest, AGoodCheckpointHasNoFindings) {
  std::vector<std::uint32_t> progress;
  const Result<VerifyReport> report =
      VerifyCheckpoint(round(), [&](std::uint32_t done, std::uint32_t total) {
        EXPECT_EQ(total, 6u);
        progress.push_back(done);
      });
  ASSERT_TRUE(report.ok());
  EXPECT_EQ(report->findings, std::vector<std::string>{});
  EXPECT_EQ(report->shards, 6u);
  EXPECT_EQ(report->manifest, manifest_);
  EXPECT_EQ(report->manifest_hash, Hash(text_));
  EXPECT_GT(report->bytes, 3u * 65536 * 4);
  EXPECT_EQ(progress, (std::vector<std::uint32_t>{1, 2, 3, 4, 5, 6}));
}

TEST_F(VerifyTest, ADamagedShardIsNamedAndTheOthersAreGood) {
  for (const fs::path& file : FilesOf(round() / "server-1")) {
    std::string content = ReadFile(file);
    if (content.size() < 70'000) continue;
    content[500] ^= 1;
    WriteFile(file, content);
  }
  const VerifyReport report = Verify();
  EXPECT_TRUE(Mentions(report, "server-1"));
  EXPECT_TRUE(Mentions(report, "shard 3"));
  EXPECT_FALSE(Mentions(report, "shard 2:"));
  EXPECT_EQ(report.shards, 5u);
}

TEST_F(VerifyTest, AMissingPartIsAFinding) {
  fs::remove_all(round() / "server-2");
  const VerifyReport report = Verify();
  EXPECT_TRUE(Mentions(report, "server-2"));
  EXPECT_EQ(report.shards, 4u);
}

TEST_F(VerifyTest, AnUnfinishedPartDoesNotCount) {
  fs::rename(round() / "server-2", round() / "server-2.partial");
  EXPECT_EQ(Verify().shards, 4u);
}

TEST_F(VerifyTest, APartOfAnotherRoundIsFound) {
  fs::remove_all(round() / "server-0");
  ShardImage older = WithRows(MakeImage(0, {50, 6}), 6, 400, 64);
  older.round = Round(11);
  WritePart(round() / "server-0", {older, WithRows(MakeImage(1), 6, 400, 64)});
  const VerifyReport report = Verify();
  EXPECT_TRUE(Mentions(report, "shard 0"));
  EXPECT_TRUE(Mentions(report, "server-0/MANIFEST.json: the file is missing"));
  EXPECT_EQ(report.shards, 5u);
}

TEST_F(VerifyTest, RowsThatAreNotThoseOfTheManifestAreFound) {
  const auto verify_with = [&](auto change) {
    Manifest other = manifest_;
    change(other);
    for (int server = 0; server < 3; ++server) {
      WriteFile(round() / ("server-" + std::to_string(server)) / kManifestFile, *ToJson(other));
    }
    return Verify();
  };
  const VerifyReport count = verify_with([](Manifest& manifest) { --manifest.shards[2].rows; });
  EXPECT_TRUE(Mentions(count, "shard 2: it has 404 rows, the manifest says 403"));
  EXPECT_EQ(count.shards, 5u);
  EXPECT_TRUE(Mentions(verify_with([](Manifest& manifest) { manifest.row_tables[1].width = 1000; }),
                       "shard 0: its tables of rows are not those of the manifest"));
  EXPECT_EQ(verify_with([](Manifest& manifest) { manifest.row_tables.pop_back(); }).shards, 0u);
  // With another number of shards rows belong elsewhere.
  EXPECT_TRUE(Mentions(verify_with([](Manifest& manifest) { manifest.shards.pop_back(); }),
                       "belongs on another shard"));
}

TEST_F(VerifyTest, ADamagedCopyOfTheManifestIsAFinding) {
  std::string damaged = text_;
  damaged[damaged.find("\"step\": 6") + 8] = '7';
  WriteFile(round() / "server-0" / kManifestFile, damaged);
  const VerifyReport report = Verify();
  EXPECT_EQ(report.findings.size(), 1u);
  EXPECT_TRUE(Mentions(report, "server-0/MANIFEST.json"));
  EXPECT_EQ(report.manifest.step, 600u);
}

TEST_F(VerifyTest, AValidCopyThatDiffersIsOutvoted) {
  Manifest other = manifest_;
  other.step = 601;
  WriteFile(round() / "server-0" / kManifestFile, *ToJson(other));
  const VerifyReport report = Verify();
  EXPECT_TRUE(Mentions(report, "differs from the other copies"));
  EXPECT_EQ(report.manifest.step, 600u);
}

TEST_F(VerifyTest, WithoutAManifestNothingCounts) {
  for (int server = 0; server < 3; ++server) {
    fs::remove(round() / ("server-" + std::to_string(server)) / kManifestFile);
  }
  const Result<VerifyReport> report = VerifyCheckpoint(round(), {});
  ASSERT_FALSE(report.ok());
  EXPECT_EQ(report.error().code, ErrorCode::kInvalid);
  EXPECT_EQ(VerifyCheckpoint(root_ / "nothing", {}).error().code, ErrorCode::kNotFound);
}

TEST_F(VerifyTest, TheCommittedCopyIsFoundByItsHash) {
  Manifest other = manifest_;
  other.step = 601;
  WriteFile(round() / "server-0" / kManifestFile, *ToJson(other));
  EXPECT_EQ(*FindManifest(round(), Hash(text_)), text_);
  EXPECT_EQ(*FindManifest(round(), Hash(*ToJson(other))), *ToJson(other));
  EXPECT_FALSE(FindManifest(round(), HexDigest("other")).ok());
  EXPECT_TRUE(FindManifest(round()).ok());
}

TEST_F(VerifyTest, ACopyInTheRoundDirectoryItselfIsEnough) {
  for (int server = 0; server < 3; ++server) {
    fs::remove(round() / ("server-" + std::to_string(server)) / kManifestFile);
  }
  ASSERT_TRUE(WriteManifest(round(), text_).ok());
  EXPECT_EQ(*FindManifest(round(), Hash(text_)), text_);
  EXPECT_EQ(Verify().shards, 6u);
}

}  // namespace
}  // namespace ps::checkpoint
