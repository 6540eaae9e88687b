#include "ps-server/shell/checkpoint_store.h"

#include <gtest/gtest.h>

#include <fstream>

#include "common/check.h"
#include "ps-server/core/shard.h"
#include "tests/ps-server/core/server_testing.h"
#include "tests/ps-server/shell/temporary_directory.h"

namespace ps::server {
namespace {

namespace fs = std::filesystem;

using testing::ConstantRules;
using testing::MakeLayoutMessage;
using testing::TemporaryDirectory;

checkpoint::ShardImage MakeImage(std::uint32_t shard, std::uint64_t round, float value) {
  checkpoint::ShardImage image;
  image.job = JobId(7);
  image.round = Round(round);
  image.shard = ShardId(shard);
  image.epoch = Epoch(2);
  image.lineage = 1;
  image.version = 40 + shard;
  image.samples_trained = 900;
  image.first_block = shard;
  image.block_elements = {100};
  image.values.assign(100, value);
  image.marks.push_back({WorkerId(0), Incarnation(3), Clock(1), Clock(3), {0, 1}});
  return image;
}

// What shards freeze to that were made from these images.
std::vector<FrozenShard> Frozen(const std::vector<checkpoint::ShardImage>& images) {
  const control::LayoutT message = MakeLayoutMessage({{TableRule::Sgd, {100, 100}}});
  const LayoutView layout = LayoutView::Create(message, 2).value();
  const JobRules rules = ConstantRules(1.0);
  std::vector<FrozenShard> frozen;
  for (const checkpoint::ShardImage& image : images) {
    Shard shard(layout, rules, image.shard, image.epoch, image.lineage, /*restoring=*/true);
    const Status restored = shard.Restore(image, /*values_only=*/false);
    PS_CHECK(restored.ok(), restored.error().message);
    frozen.push_back(shard.Freeze(image.job, image.round));
  }
  return frozen;
}

std::string ManifestText(const std::vector<control::PreparedShardT>& shards, std::uint64_t round,
                         const std::string& server) {
  checkpoint::Manifest manifest;
  manifest.job = JobId(7);
  manifest.job_name = "j";
  manifest.round = Round(round);
  manifest.program_version = "1";
  manifest.spec_json = "{}";
  checkpoint::ManifestTable table;
  table.name = "parameters";
  table.elements = 200;
  manifest.tables.push_back(table);
  for (const control::PreparedShardT& shard : shards) {
    manifest.shards.push_back({ShardId(shard.shard), server, Epoch(shard.epoch), shard.version,
                               shard.bytes, shard.digest, shard.values_digest, shard.rows});
  }
  auto text = checkpoint::ToJson(manifest);
  PS_CHECK(text.ok(), text.ok() ? "" : text.error().message);
  return std::move(text).value();
}

TEST(CheckpointStoreTest, NamesMayNotLeadOutOfTheRoot) {
  EXPECT_EQ(ResolveRound("/data/ck", "job-1/ckpt-2").value(), fs::path("/data/ck/job-1/ckpt-2"));
  EXPECT_EQ(ResolveRound("/data/ck/", "job-1/ckpt-2").value(), fs::path("/data/ck/job-1/ckpt-2"));
  EXPECT_EQ(ResolveRound("/data/ck", "/data/ck/job-1").value(), fs::path("/data/ck/job-1"));
  for (const char* bad : {"", ".", "..", "../x", "a/../../x", "a/..", "/etc", "/data/ckx/a",
                          "/data/ck", "/data/ck/"}) {
    const auto resolved = ResolveRound("/data/ck", bad);
    ASSERT_FALSE(resolved.ok()) << bad;
    EXPECT_EQ(resolved.error().code, ErrorCode::kDenied);
  }
}

TEST(CheckpointStoreTest, TheRoundBesideANamedOne) {
  EXPECT_EQ(RoundName("job-7/ckpt-3", Round(5)), "job-7/ckpt-5");
  EXPECT_EQ(RoundName("ckpt-3", Round(5)), "ckpt-5");
  EXPECT_EQ(RoundName("job-7/exported", Round(5)), "job-7/exported");
  EXPECT_EQ(RoundName("job-7/ckpt-3x", Round(5)), "job-7/ckpt-3x");
}

TEST(CheckpointStoreTest, ADirectoryThatCannotBeWrittenIsRefused) {
  const TemporaryDirectory directory;
  EXPECT_TRUE(PrepareCheckpointRoot(directory.path() / "a" / "b").ok());
  std::ofstream(directory.path() / "file") << "x";
  const Status refused = PrepareCheckpointRoot(directory.path() / "file" / "below");
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::kIo);
  EXPECT_FALSE(PrepareCheckpointRoot(directory.path() / "file").ok());
}

TEST(CheckpointStoreTest, WhatIsWrittenIsReadBackEqual) {
  const TemporaryDirectory directory;
  const CheckpointStore store(directory.path(), "p1");
  const std::vector<checkpoint::ShardImage> images = {MakeImage(0, 3, 1.5f),
                                                      MakeImage(1, 3, -2.5f)};
  const auto prepared = store.Write("job-7/ckpt-3", Frozen(images));
  ASSERT_TRUE(prepared.ok()) << prepared.error().message;
  ASSERT_EQ(prepared->size(), 2u);
  EXPECT_EQ(prepared->at(1).version, 41u);
  EXPECT_EQ(prepared->at(1).samples, 900u);
  EXPECT_EQ(prepared->at(1).values_digest, checkpoint::ValuesDigest(images[1].values));
  ASSERT_TRUE(store.WriteManifest("job-7/ckpt-3", ManifestText(*prepared, 3, "p1")).ok());

  RestoreReader reader(directory.path());
  const auto read = reader.Read("job-7/ckpt-3", ShardId(1));
  ASSERT_TRUE(read.ok()) << read.error().message;
  EXPECT_EQ(*read, images[1]);
  EXPECT_EQ(*reader.Read("job-7/ckpt-3", ShardId(0)), images[0]);
  EXPECT_EQ(reader.Read("job-7/ckpt-3", ShardId(2)).error().code, ErrorCode::kNotFound);
  EXPECT_FALSE(reader.Read("job-7/ckpt-4", ShardId(0)).ok());
  EXPECT_FALSE(reader.Read("../job-7/ckpt-3", ShardId(0)).ok());
}

TEST(CheckpointStoreTest, RowsAreWrittenInTheOrderOfTheirKeys) {
  const TemporaryDirectory directory;
  const CheckpointStore store(directory.path(), "p1");
  const LayoutView layout = testing::MakeLayout({{TableRule::Sgd, {100}}}, 1, {1});
  JobRules rules = ConstantRules(1.0);
  rules.rows.push_back(testing::MakeRowRules(0, 1, 1.0));
  Shard shard(layout, rules, ShardId(0), Epoch(2), 1, /*restoring=*/false);
  const auto initial = testing::ConstantShard(layout, ShardId(0), 1.5f);
  ASSERT_EQ(shard.Init(testing::Parse(layout, initial)), wire::Code::Applied);
  const std::vector<std::vector<std::uint64_t>> pushes = {{70, 1'000'000}, {3, 12}};
  for (std::uint64_t clock = 1; clock <= pushes.size(); ++clock) {
    const auto bytes = testing::PushedRows(0, pushes[clock - 1], {0.5f, -0.5f});
    SegmentContent content;
    ASSERT_TRUE(ParsePush(layout, ShardId(0), bytes, content).ok());
    ASSERT_EQ(shard
                  .Push(testing::MakeMember(0, 11), PushFacts{Clock(clock), 0, 1, false},
                        content.blocks, 1, content.rows)
                  .code,
              wire::Code::Applied);
  }
  const checkpoint::ShardImage image = shard.Freeze(JobId(7), Round(3)).ToImage();
  std::vector<FrozenShard> frozen;
  frozen.push_back(shard.Freeze(JobId(7), Round(3)));
  // The shard goes on; what was frozen does not.
  const auto later = testing::PushedRows(0, {12, 71}, {2.0f, 2.0f});
  SegmentContent content;
  ASSERT_TRUE(ParsePush(layout, ShardId(0), later, content).ok());
  shard.Push(testing::MakeMember(0, 11), PushFacts{Clock(3), 0, 1, false}, content.blocks, 1,
             content.rows);
  EXPECT_NE(shard.Freeze(JobId(7), Round(3)).ToImage(), image);
  const auto prepared = store.Write("job-7/ckpt-3", std::move(frozen));
  ASSERT_TRUE(prepared.ok()) << prepared.error().message;
  EXPECT_EQ(prepared->at(0).rows, 4u);
  EXPECT_EQ(prepared->at(0).digest, checkpoint::Digest(image));
  ASSERT_TRUE(store.WriteManifest("job-7/ckpt-3", ManifestText(*prepared, 3, "p1")).ok());
  RestoreReader reader(directory.path());
  const auto read = reader.Read("job-7/ckpt-3", ShardId(0));
  ASSERT_TRUE(read.ok()) << read.error().message;
  EXPECT_EQ(*read, image);
}

TEST(CheckpointStoreTest, AManifestNeedsAPartAndMustBeOne) {
  const TemporaryDirectory directory;
  const CheckpointStore store(directory.path(), "p1");
  EXPECT_FALSE(store.WriteManifest("job-7/ckpt-3", "{}").ok());
  ASSERT_TRUE(store.Write("job-7/ckpt-3", Frozen({MakeImage(0, 3, 1)})).ok());
  EXPECT_EQ(store.WriteManifest("job-7/ckpt-3", "{}").error().code, ErrorCode::kInvalid);
}

TEST(CheckpointStoreTest, ADiscardedRoundIsGone) {
  const TemporaryDirectory directory;
  const CheckpointStore store(directory.path(), "p1");
  ASSERT_TRUE(store.Write("job-7/ckpt-3", Frozen({MakeImage(0, 3, 1)})).ok());
  ASSERT_TRUE(store.Discard("job-7/ckpt-3").ok());
  EXPECT_FALSE(fs::exists(directory.path() / "job-7" / "ckpt-3" / "p1"));
  EXPECT_TRUE(store.Discard("job-7/ckpt-3").ok()) << "nothing to do is no error";
}

TEST(CheckpointStoreTest, OldRoundsGoWithThePartsOfServersThatAreGone) {
  const TemporaryDirectory directory;
  const CheckpointStore store(directory.path(), "p1");
  const CheckpointStore gone(directory.path(), "p0");
  for (std::uint64_t round = 1; round <= 5; ++round) {
    const std::string name = "job-7/ckpt-" + std::to_string(round);
    ASSERT_TRUE(store.Write(name, Frozen({MakeImage(0, round, 1)})).ok());
    if (round <= 2) {
      ASSERT_TRUE(gone.Write(name, Frozen({MakeImage(1, round, 1)})).ok());
    }
  }
  fs::create_directories(directory.path() / "job-7" / "ckpt-1" / "p9.partial");
  fs::create_directories(directory.path() / "job-7" / "notes");
  const std::vector<std::uint64_t> keep = {2, 4};
  EXPECT_EQ(store.DeleteOldRounds(JobId(7), Round(4), keep), 2);
  EXPECT_FALSE(fs::exists(directory.path() / "job-7" / "ckpt-1"));
  EXPECT_TRUE(fs::exists(directory.path() / "job-7" / "ckpt-2" / "p0"));
  EXPECT_FALSE(fs::exists(directory.path() / "job-7" / "ckpt-3"));
  EXPECT_TRUE(fs::exists(directory.path() / "job-7" / "ckpt-4" / "p1"));
  EXPECT_TRUE(fs::exists(directory.path() / "job-7" / "ckpt-5" / "p1")) << "a newer round";
  EXPECT_TRUE(fs::exists(directory.path() / "job-7" / "notes"));
  EXPECT_EQ(store.DeleteOldRounds(JobId(8), Round(4), keep), 0);
}

}  // namespace
}  // namespace ps::server
