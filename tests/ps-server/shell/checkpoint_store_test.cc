#include "ps-server/shell/checkpoint_store.h"

#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <thread>

#include "checkpoint/remote/file_service.h"
#include "common/check.h"
#include "common/net/zmq_socket.h"
#include "ps-server/core/shard.h"
#include "ps-server/core/shard_load.h"
#include "tests/ps-server/core/server_testing.h"
#include "tests/ps-server/shell/temporary_directory.h"

namespace ps::server {
namespace {

namespace fs = std::filesystem;

using testing::ConstantRules;
using testing::MakeLayoutMessage;
using testing::TemporaryDirectory;
using testing::operator+=;

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

std::vector<Round> BasesOf(const control::PreparedShardT& shard) {
  std::vector<Round> bases;
  for (const auto& base : shard.bases) bases.emplace_back(base->round);
  return bases;
}

Result<checkpoint::ShardImage> ReadImage(RestoreReader& reader, const std::string& round,
                                         ShardId shard) {
  checkpoint::ImageSink sink(std::uint64_t{1} << 32);
  PS_TRY(reader.Read(round, shard, sink));
  return sink.Take();
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
                               shard.bytes, shard.digest, shard.values_digest, shard.rows,
                               shard.state_bytes, BasesOf(shard)});
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
  const auto refused = PrepareCheckpointRoot(directory.path() / "file" / "below");
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::kIo);
  EXPECT_FALSE(PrepareCheckpointRoot(directory.path() / "file").ok());
}

TEST(CheckpointStoreTest, ADirectoryKeepsItsIdentity) {
  const TemporaryDirectory directory;
  const auto one = PrepareCheckpointRoot(directory.path() / "a");
  ASSERT_TRUE(one.ok()) << one.error().message;
  EXPECT_EQ(one->size(), 32u);
  EXPECT_EQ(PrepareCheckpointRoot(directory.path() / "a").value(), *one);
  EXPECT_NE(PrepareCheckpointRoot(directory.path() / "b").value(), *one);
  // Several that start at once in a new directory agree.
  std::vector<std::string> found(8);
  std::vector<std::thread> threads;
  for (std::string& id : found) {
    threads.emplace_back([&] { id = PrepareCheckpointRoot(directory.path() / "c").value(); });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::string& id : found) EXPECT_EQ(id, found.front());
  for (const std::string text : {"", "x", "0123", "0123456789abcdef0123456789abcdeg\n"}) {
    std::ofstream(directory.path() / "a" / "STORE", std::ios::trunc) << text;
    const auto refused = PrepareCheckpointRoot(directory.path() / "a");
    ASSERT_FALSE(refused.ok()) << text;
    EXPECT_EQ(refused.error().code, ErrorCode::kInvalid);
  }
}

// A round that the server p1 wrote, in its own directory and copied to another one.
class SourcesTest : public ::testing::Test {
 protected:
  SourcesTest() {
    CheckpointStore store(Root("own"), "p1");
    const auto prepared = store.Write(kRound, Frozen({image_}), Round());
    PS_CHECK(prepared.ok(), prepared.error().message);
    service_ = checkpoint::FileService::Start(context_, Root("own"), "tcp://127.0.0.1:*").value();
    const checkpoint::RemoteStorage source(context_, service_->endpoint());
    PS_CHECK(CopyPart(source, kRound, Root("copy"), kRound, "p1", {}, {}).ok(), "no copy");
    const std::string text = ManifestText(*prepared, 3, "p1");
    PS_CHECK(store.WriteManifest(kRound, {"p1"}, text).ok(), "no manifest");
    CheckpointStore other(Root("copy"), "p2");
    PS_CHECK(other.WriteManifest(kRound, {"p1"}, text).ok(), "no manifest");
  }

  fs::path Root(const std::string& name) const { return directory_.path() / name; }
  std::vector<PartSource> Sources() const { return {{"own", service_->endpoint()}}; }

  // What a server with that folder gets.
  Result<checkpoint::ShardImage> Read(const std::string& folder,
                                      const std::vector<PartSource>& sources) {
    RestoreReader reader(Root(folder), folder, context_);
    reader.SetSources(sources);
    for (;;) {
      checkpoint::ImageSink sink(std::uint64_t{1} << 30);
      const Status read = reader.Read(kRound, ShardId(0), sink);
      if (read.ok()) return sink.Take();
      if (!reader.again()) return read.error();
    }
  }
  void Damage(const std::string& folder) {
    for (const auto& file : fs::directory_iterator(Root(folder) / kRound / "p1")) {
      if (file.path().extension() == ".sst") fs::resize_file(file, file.file_size() / 2);
    }
  }

  static constexpr const char* kRound = "job-7/ckpt-3";
  const TemporaryDirectory directory_;
  const checkpoint::ShardImage image_ = MakeImage(0, 3, 1.5f);
  net::Context context_;
  std::unique_ptr<checkpoint::FileService> service_;
};

TEST_F(SourcesTest, WhoHasNothingReadsFromAnother) {
  EXPECT_EQ(Read("none", Sources()).value(), image_);
  EXPECT_FALSE(fs::exists(Root("none")));
  EXPECT_EQ(Read("copy", {}).value(), image_);
}

TEST_F(SourcesTest, ADamagedPartIsReplacedByTheCopyOfAnother) {
  const auto repair = [this](const std::vector<PartSource>& sources) {
    return RepairPart(context_, sources, Root("copy"), kRound, "p1", {});
  };
  const fs::path part = Root("copy") / kRound / "p1";
  Damage("copy");
  std::ofstream(part / "MANIFEST.json", std::ios::trunc) << "{";
  EXPECT_EQ(Read("copy", {}).error().code, ErrorCode::kInvalid);
  EXPECT_EQ(repair({}).error().code, ErrorCode::kNotFound);
  EXPECT_EQ(repair({{"gone", "tcp://127.0.0.1:1"}}).error().code, ErrorCode::kIo);
  EXPECT_EQ(Read("copy", {}).error().code, ErrorCode::kInvalid) << "it stays as it was";
  const Status repaired = repair(Sources());
  ASSERT_TRUE(repaired.ok()) << repaired.error().message;
  EXPECT_EQ(Read("copy", {}).value(), image_);
  EXPECT_EQ(fs::file_size(part / "MANIFEST.json"),
            fs::file_size(Root("own") / kRound / "p1" / "MANIFEST.json"));
  EXPECT_FALSE(fs::exists(part.string() + ".partial"));
  // What others build on has no manifest where it was only copied: the own one stays.
  fs::remove(Root("own") / kRound / "p1" / "MANIFEST.json");
  Damage("copy");
  ASSERT_TRUE(repair(Sources()).ok());
  EXPECT_EQ(Read("copy", {}).value(), image_);
  // A copy that is damaged, too, takes nobody's place.
  Damage("copy");
  Damage("own");
  EXPECT_EQ(repair(Sources()).error().code, ErrorCode::kIo);
  EXPECT_TRUE(fs::exists(part / "MANIFEST.json"));
  EXPECT_FALSE(fs::exists(part.string() + ".partial"));
  // What has been deleted meanwhile does not come back.
  fs::remove_all(part);
  EXPECT_EQ(repair(Sources()).error().code, ErrorCode::kNotFound);
  EXPECT_FALSE(fs::exists(part));
  EXPECT_EQ(RepairPart(context_, Sources(), Root("copy"), kRound, "../../x", {}).error().code,
            ErrorCode::kDenied);
}

TEST_F(SourcesTest, WhatIsDamagedHereIsReadFromElsewhere) {
  Damage("copy");
  EXPECT_EQ(Read("copy", {}).error().code, ErrorCode::kInvalid);
  EXPECT_EQ(Read("copy", Sources()).value(), image_);
}

TEST_F(SourcesTest, DamagedEverywhereIsDamage) {
  Damage("copy");
  Damage("own");
  EXPECT_EQ(Read("copy", Sources()).error().code, ErrorCode::kInvalid);
  EXPECT_EQ(Read("none", Sources()).error().code, ErrorCode::kInvalid);
}

TEST_F(SourcesTest, WhatNobodyHasIsNotFoundAndWhatMayBeElsewhereIsUnreachable) {
  EXPECT_EQ(Read("none", {}).error().code, ErrorCode::kNotFound);
  const std::vector<PartSource> sources = Sources();
  service_.reset();
  EXPECT_EQ(Read("none", sources).error().code, ErrorCode::kUnreachable);
  // Damage here says nothing as long as another may have it.
  Damage("copy");
  EXPECT_EQ(Read("copy", sources).error().code, ErrorCode::kUnreachable);
}

TEST(CheckpointStoreTest, WhatIsWrittenIsReadBackEqual) {
  const TemporaryDirectory directory;
  CheckpointStore store(directory.path(), "p1");
  const std::vector<checkpoint::ShardImage> images = {MakeImage(0, 3, 1.5f),
                                                      MakeImage(1, 3, -2.5f)};
  const auto prepared = store.Write("job-7/ckpt-3", Frozen(images), Round());
  ASSERT_TRUE(prepared.ok()) << prepared.error().message;
  ASSERT_EQ(prepared->size(), 2u);
  EXPECT_EQ(prepared->at(1).version, 41u);
  EXPECT_EQ(prepared->at(1).samples, 900u);
  EXPECT_EQ(prepared->at(1).values_digest, checkpoint::ValuesDigest(images[1].values));
  ASSERT_TRUE(store.WriteManifest("job-7/ckpt-3", {"p1"}, ManifestText(*prepared, 3, "p1")).ok());

  RestoreReader reader(directory.path());
  const auto read = ReadImage(reader, "job-7/ckpt-3", ShardId(1));
  ASSERT_TRUE(read.ok()) << read.error().message;
  EXPECT_EQ(*read, images[1]);
  EXPECT_EQ(*ReadImage(reader, "job-7/ckpt-3", ShardId(0)), images[0]);
  EXPECT_EQ(ReadImage(reader, "job-7/ckpt-3", ShardId(2)).error().code, ErrorCode::kNotFound);
  EXPECT_FALSE(ReadImage(reader, "job-7/ckpt-4", ShardId(0)).ok());
  EXPECT_FALSE(ReadImage(reader, "../job-7/ckpt-3", ShardId(0)).ok());
}

TEST(CheckpointStoreTest, RowsAreWrittenInTheOrderOfTheirKeys) {
  const TemporaryDirectory directory;
  CheckpointStore store(directory.path(), "p1");
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
  const auto prepared = store.Write("job-7/ckpt-3", std::move(frozen), Round());
  ASSERT_TRUE(prepared.ok()) << prepared.error().message;
  EXPECT_EQ(prepared->at(0).rows, 4u);
  EXPECT_EQ(prepared->at(0).digest, checkpoint::Digest(image));
  ASSERT_TRUE(store.WriteManifest("job-7/ckpt-3", {"p1"}, ManifestText(*prepared, 3, "p1")).ok());
  RestoreReader reader(directory.path());
  const auto read = ReadImage(reader, "job-7/ckpt-3", ShardId(0));
  ASSERT_TRUE(read.ok()) << read.error().message;
  EXPECT_EQ(*read, image);
}

TEST(CheckpointStoreTest, AManifestNeedsAPartAndMustBeOne) {
  const TemporaryDirectory directory;
  CheckpointStore store(directory.path(), "p1");
  EXPECT_FALSE(store.WriteManifest("job-7/ckpt-3", {"p1"}, "{}").ok());
  ASSERT_TRUE(store.Write("job-7/ckpt-3", Frozen({MakeImage(0, 3, 1)}), Round()).ok());
  EXPECT_EQ(store.WriteManifest("job-7/ckpt-3", {"p1"}, "{}").error().code, ErrorCode::kInvalid);
}

TEST(CheckpointStoreTest, ADiscardedRoundIsGone) {
  const TemporaryDirectory directory;
  CheckpointStore store(directory.path(), "p1");
  ASSERT_TRUE(store.Write("job-7/ckpt-3", Frozen({MakeImage(0, 3, 1)}), Round()).ok());
  ASSERT_TRUE(store.Discard("job-7/ckpt-3").ok());
  EXPECT_FALSE(fs::exists(directory.path() / "job-7" / "ckpt-3" / "p1"));
  EXPECT_TRUE(store.Discard("job-7/ckpt-3").ok()) << "nothing to do is no error";
}

TEST(CheckpointStoreTest, OldRoundsGoWithThePartsOfServersThatAreGone) {
  const TemporaryDirectory directory;
  CheckpointStore store(directory.path(), "p1");
  CheckpointStore gone(directory.path(), "p0");
  for (std::uint64_t round = 1; round <= 5; ++round) {
    const std::string name = "job-7/ckpt-" + std::to_string(round);
    ASSERT_TRUE(store.Write(name, Frozen({MakeImage(0, round, 1)}), Round()).ok());
    if (round <= 2) {
      ASSERT_TRUE(gone.Write(name, Frozen({MakeImage(1, round, 1)}), Round()).ok());
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

// A shard of blocks and rows that is pushed to, and its rounds.
class IncrementalStoreTest : public ::testing::Test {
 protected:
  static constexpr std::uint32_t kBlocks = 40;
  static constexpr std::uint32_t kElements = 4096;

  IncrementalStoreTest()
      : layout_(testing::MakeLayout(
            {{TableRule::Sgd, std::vector<std::uint32_t>(kBlocks, kElements)}}, 1, {4})) {
    rules_ = ConstantRules(1.0);
    rules_.rows.push_back(testing::MakeRowRules(0, 4, 1.0, OptimizerType::kAdagrad));
  }

  void MakeShard() {
    shard_ = std::make_unique<Shard>(layout_, rules_, ShardId(0), Epoch(1), 1, false);
    const auto initial = testing::ConstantShard(layout_, ShardId(0), 1.5f);
    ASSERT_EQ(shard_->Init(testing::Parse(layout_, initial)), wire::Code::Applied);
  }

  // One push of some blocks and rows; a tick of rows is 1,024 samples.
  void Push(const std::vector<std::uint32_t>& blocks, const std::vector<std::uint64_t>& keys,
            std::uint32_t samples = 1024) {
    testing::Bytes bytes;
    for (const std::uint32_t block : blocks) {
      bytes += testing::SparseBlock(block, kElements, {7, 100}, {0.25f, -0.5f});
    }
    if (!keys.empty()) {
      bytes += testing::PushedRows(0, keys, std::vector<float>(keys.size() * 4, 0.125f));
    }
    SegmentContent content;
    ASSERT_TRUE(ParsePush(layout_, ShardId(0), bytes, content).ok());
    ASSERT_EQ(shard_
                  ->Push(testing::MakeMember(0, 11),
                         PushFacts{Clock(++clock_), shard_->version(), samples, false},
                         content.blocks, 1, content.rows)
                  .code,
              wire::Code::Applied);
  }

  static std::string NameOf(std::uint64_t round) { return "job-7/ckpt-" + std::to_string(round); }

  // Writes a round on `base` (0: on none); it is read back as what the shard was.
  control::PreparedShardT Write(std::uint64_t round, std::uint64_t base) {
    std::vector<FrozenShard> frozen;
    frozen.push_back(shard_->Freeze(JobId(7), Round(round)));
    const checkpoint::ShardImage image = frozen[0].ToImage();
    auto prepared = store_.Write(NameOf(round), std::move(frozen), Round(base));
    PS_CHECK(prepared.ok(), prepared.ok() ? "" : prepared.error().message);
    EXPECT_EQ(prepared->at(0).digest, checkpoint::Digest(image));
    EXPECT_EQ(prepared->at(0).values_digest, checkpoint::ValuesDigest(image.values));
    EXPECT_EQ(prepared->at(0).state_bytes, checkpoint::ContentBytes(image));
    EXPECT_TRUE(
        store_.WriteManifest(NameOf(round), {"p1"}, ManifestText(*prepared, round, "p1")).ok());
    RestoreReader reader(directory_.path());
    const auto read = ReadImage(reader, NameOf(round), ShardId(0));
    EXPECT_TRUE(read.ok() && *read == image) << (read.ok() ? "" : read.error().message);
    images_[round] = image;
    return prepared->at(0);
  }

  std::uint64_t BytesOnDisk(std::uint64_t round) const {
    std::uint64_t bytes = 0;
    for (const auto& file : fs::recursive_directory_iterator(directory_.path() / NameOf(round))) {
      if (file.is_regular_file()) bytes += file.file_size();
    }
    return bytes;
  }

  const TemporaryDirectory directory_;
  const LayoutView layout_;
  JobRules rules_;
  CheckpointStore store_{directory_.path(), "p1"};
  std::unique_ptr<Shard> shard_;
  std::uint64_t clock_ = 0;
  std::map<std::uint64_t, checkpoint::ShardImage> images_;
};

TEST_F(IncrementalStoreTest, ARoundWritesHardlyMoreThanTheBlocksAndRowsThatChanged) {
  MakeShard();
  std::vector<std::uint64_t> keys(200'000);
  for (std::uint64_t i = 0; i < keys.size(); ++i) keys[i] = i * 7919;
  for (std::size_t at = 0; at < keys.size(); at += 10'000) {
    Push({}, {keys.begin() + static_cast<std::ptrdiff_t>(at),
              keys.begin() + static_cast<std::ptrdiff_t>(at) + 10'000});
  }
  EXPECT_TRUE(Write(1, 0).bases.empty());
  constexpr std::uint64_t kRowBytes = 16 + 32;
  std::uint64_t round = 1;
  // One, three and five percent of the rows, spread over all slabs, and one or two of 40 blocks.
  for (const std::size_t percent : {1, 3, 5}) {
    std::vector<std::uint64_t> some;
    for (std::size_t at = percent; at < keys.size(); at += 100 / percent) some.push_back(keys[at]);
    const std::vector<std::uint32_t> blocks =
        percent == 1 ? std::vector<std::uint32_t>{3} : std::vector<std::uint32_t>{8, 31};
    Push(blocks, some);
    const control::PreparedShardT prepared = Write(round + 1, round);
    ++round;
    EXPECT_EQ(prepared.bases.size(), round - 1);
    const std::uint64_t dirty = some.size() * kRowBytes + blocks.size() * kElements * 4;
    EXPECT_GE(prepared.bytes, dirty);
    EXPECT_LE(static_cast<double>(prepared.bytes), 1.15 * static_cast<double>(dirty)) << percent;
    EXPECT_LE(static_cast<double>(BytesOnDisk(round)), 1.15 * static_cast<double>(dirty))
        << percent << " percent, with all that is around it";
  }
}

TEST_F(IncrementalStoreTest, AnAbortedRoundTakesNothingFromTheNextOne) {
  MakeShard();
  std::vector<std::uint64_t> keys(5000);
  for (std::uint64_t i = 0; i < keys.size(); ++i) keys[i] = i;
  Push({}, keys);
  Write(1, 0);
  Push({4}, {17});
  EXPECT_EQ(BasesOf(Write(2, 1)), std::vector<Round>{Round(1)});
  ASSERT_TRUE(store_.Discard(NameOf(2)).ok());
  Push({5}, {18});
  // What was in the aborted round is in this one.
  const control::PreparedShardT third = Write(3, 1);
  EXPECT_EQ(BasesOf(third), std::vector<Round>{Round(1)});
  EXPECT_GE(third.bytes, 2u * kElements * 4);
  EXPECT_LT(third.bytes, 3u * kElements * 4);
  // The abort of a round that was committed elsewhere is no abort: the coordinator names it.
  Push({6}, {19});
  EXPECT_EQ(BasesOf(Write(4, 3)), (std::vector<Round>{Round(3), Round(1)}));
}

TEST_F(IncrementalStoreTest, WithoutItsBaseAShardIsWrittenWhole) {
  MakeShard();
  Push({1}, {1, 2, 3});
  Write(1, 0);
  Push({1}, {2});
  EXPECT_TRUE(Write(2, 0).bases.empty()) << "it was told to";
  Push({1}, {2});
  EXPECT_FALSE(Write(3, 2).bases.empty());
  // A restored shard has another history, with the same epoch too.
  const checkpoint::ShardImage image = images_[3];
  shard_ = std::make_unique<Shard>(layout_, rules_, ShardId(0), Epoch(1), 1, /*restoring=*/true);
  ASSERT_TRUE(shard_->Restore(image, false).ok());
  Push({1}, {2});
  EXPECT_TRUE(Write(4, 3).bases.empty());
  Push({1}, {2});
  EXPECT_TRUE(Write(5, 3).bases.empty()) << "a round that is no base of this shard";
  Push({1}, {2});
  EXPECT_FALSE(Write(6, 5).bases.empty());
  fs::remove_all(directory_.path() / NameOf(5));
  Push({1}, {2});
  EXPECT_TRUE(Write(7, 6).bases.empty()) << "what the base builds on is gone";
  store_.Forget(JobId(7));
  Push({1}, {2});
  EXPECT_TRUE(Write(8, 7).bases.empty());
}

// Rows come, are used, expire, are evicted and come back; rounds are committed or aborted.
TEST_F(IncrementalStoreTest, RandomRoundsOfAShardAreReadBackEqual) {
  for (std::uint32_t seed = 0; seed < 6; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    rules_.rows[0].unused_max = seed % 2 == 0 ? 0 : 20;
    rules_.rows[0].max_bytes = seed % 3 == 0 ? 60'000 : 0;
    rules_.rows[0].when_full = seed % 4 == 0 ? RowsFull::kLru : RowsFull::kLfu;
    rules_.rows[0].sightings = seed % 5 == 0 ? 2 : 1;
    rules_.rows[0].sketch_bytes = 8192;
    fs::remove_all(directory_.path() / "job-7");
    store_.Forget(JobId(7));
    clock_ = 0;
    MakeShard();
    std::uint64_t base = 0;
    std::size_t on_others = 0;
    for (std::uint64_t round = 1; round <= 12; ++round) {
      const std::size_t pushes = random() % 4;
      for (std::size_t push = 0; push < pushes; ++push) {
        std::set<std::uint64_t> keys;
        const std::size_t count = round == 1 ? 800 : random() % 60;
        while (keys.size() < count) keys.insert(random() % 3000);
        std::vector<std::uint32_t> blocks;
        if (random() % 2 == 0) blocks.push_back(random() % kBlocks);
        Push(blocks, {keys.begin(), keys.end()}, random() % 3000);
      }
      const control::PreparedShardT prepared = Write(round, random() % 8 == 0 ? 0 : base);
      on_others += prepared.bases.empty() ? 0 : 1;
      if (random() % 4 == 0) {
        ASSERT_TRUE(store_.Discard(NameOf(round)).ok());
      } else {
        base = round;
      }
    }
    EXPECT_GE(on_others, 3u) << "or this tests little";
    // And a shard that is made of the last one goes on as if nothing had been.
    Shard restored(layout_, rules_, ShardId(0), Epoch(2), 2, /*restoring=*/true);
    ShardLoad load(restored, {false, true});
    RestoreReader reader(directory_.path());
    ASSERT_TRUE(reader.Read(NameOf(base), ShardId(0), load).ok());
    load.Finish();
    checkpoint::ShardImage image = restored.Freeze(JobId(7), Round(base)).ToImage();
    image.epoch = Epoch(1);
    image.lineage = 1;
    EXPECT_EQ(image, images_[base]);
  }
}

TEST_F(IncrementalStoreTest, AFailedLoadLeavesTheShardEmptyAndWaiting) {
  MakeShard();
  std::vector<std::uint64_t> keys(30'000);
  for (std::uint64_t i = 0; i < keys.size(); ++i) keys[i] = i;
  Push({0}, keys);
  Write(1, 0);
  // The last table of rows is damaged far from what is read when it is opened.
  const fs::path file = directory_.path() / NameOf(1) / "p1";
  bool changed = false;
  for (const auto& entry : fs::directory_iterator(file)) {
    if (entry.path().extension() != ".sst" || entry.file_size() < 1'000'000) continue;
    std::fstream table(entry.path(), std::ios::binary | std::ios::in | std::ios::out);
    table.seekp(static_cast<std::streamoff>(entry.file_size() / 2));
    table.put('x');
    table.put('y');
    changed = true;
  }
  ASSERT_TRUE(changed);
  Shard restored(layout_, rules_, ShardId(0), Epoch(2), 2, /*restoring=*/true);
  {
    ShardLoad load(restored, {false, true});
    RestoreReader reader(directory_.path());
    const Status read = reader.Read(NameOf(1), ShardId(0), load);
    ASSERT_FALSE(read.ok());
    EXPECT_EQ(read.error().code, ErrorCode::kInvalid);
  }
  EXPECT_EQ(restored.state(), wire::Code::Restoring);
  EXPECT_EQ(restored.rows().table(0).rows(), 0u);
  EXPECT_EQ(restored.memory_use().dense, 0u);
  ASSERT_TRUE(restored.Restore(images_[1], false).ok());
  EXPECT_EQ(restored.rows().table(0).rows(), 30'000u);
}

}  // namespace
}  // namespace ps::server
