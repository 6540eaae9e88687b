// A checkpoint of two servers, restored on other numbers of servers, is the same to whoever reads
// it.
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint/export.h"
#include "checkpoint/manifest.h"
#include "common/check.h"
#include "ps-server/core/shard.h"
#include "ps-server/core/shard_load.h"
#include "ps-server/shell/checkpoint_store.h"
#include "tests/ps-server/core/server_testing.h"
#include "tests/ps-server/shell/temporary_directory.h"

namespace ps::server {
namespace {

using testing::TemporaryDirectory;
using testing::operator+=;

constexpr std::uint32_t kShards = 8;
constexpr std::uint32_t kBlocks = 20;
constexpr std::uint32_t kElements = 300;
constexpr std::uint32_t kWidth = 3;

using Shards = std::vector<std::unique_ptr<Shard>>;

class ReshardTest : public ::testing::Test {
 protected:
  ReshardTest()
      : layout_(
            testing::MakeLayout({{TableRule::Sgd, std::vector<std::uint32_t>(kBlocks, kElements)}},
                                kShards, {kWidth})) {
    rules_ = testing::ConstantRules(1.0);
    rules_.rows.push_back(testing::MakeRowRules(0, kWidth, 1.0, OptimizerType::kAdagrad));
  }

  Shards NewShards(std::uint32_t epoch, bool restoring) const {
    Shards shards;
    for (std::uint32_t number = 0; number < kShards; ++number) {
      shards.push_back(std::make_unique<Shard>(layout_, rules_, ShardId(number), Epoch(epoch),
                                               epoch, restoring));
    }
    return shards;
  }

  void Push(Shards& shards, std::uint64_t clock) const {
    for (const auto& shard : shards) {
      const ShardId id = shard->id();
      testing::Bytes bytes;
      for (std::uint32_t block = 0; block < kBlocks; ++block) {
        if (layout_.shard_of_block(block) != id) continue;
        bytes += testing::SparseBlock(block, kElements, {3, 70, 211},
                                      {0.25f * static_cast<float>(clock), -0.5f, 0.125f});
      }
      const auto keys = testing::KeysOfShard(layout_, id.value(), 40);
      std::vector<float> gradients;
      for (std::size_t i = 0; i < keys.size() * kWidth; ++i) {
        gradients.push_back(0.01f * static_cast<float>(i + clock));
      }
      bytes += testing::PushedRows(0, keys, gradients);
      SegmentContent content;
      const Status parsed = ParsePush(layout_, id, bytes, content);
      PS_CHECK(parsed.ok(), parsed.ok() ? "" : parsed.error().message);
      const auto pushed = shard->Push(testing::MakeMember(0, 11),
                                      PushFacts{Clock(clock), shard->version(), 64, false},
                                      content.blocks, 1, content.rows);
      PS_CHECK(pushed.code == wire::Code::Applied, clock);
    }
  }

  static std::string NameOf(std::uint64_t round) { return "job-7/ckpt-" + std::to_string(round); }

  // Checkpoints of one round, which an export names, lie in folders of their own.
  std::filesystem::path Root(const std::string& folder) const { return directory_.path() / folder; }

  // Each of `servers` writes every so-many-th shard.
  void Write(const Shards& shards, const std::string& folder, std::uint64_t round,
             std::uint32_t servers) const {
    std::vector<checkpoint::ManifestShard> stored(kShards);
    for (std::uint32_t server = 0; server < servers; ++server) {
      const std::string name = "p" + std::to_string(server);
      CheckpointStore store(Root(folder), name);
      std::vector<FrozenShard> frozen;
      for (std::uint32_t number = server; number < kShards; number += servers) {
        frozen.push_back(shards[number]->Freeze(JobId(7), Round(round)));
      }
      const auto prepared = store.Write(NameOf(round), std::move(frozen), Round());
      ASSERT_TRUE(prepared.ok()) << prepared.error().message;
      for (const control::PreparedShardT& shard : *prepared) {
        stored[shard.shard] = {ShardId(shard.shard), name,
                               Epoch(shard.epoch),   shard.version,
                               shard.bytes,          shard.digest,
                               shard.values_digest,  shard.rows,
                               shard.state_bytes,    {}};
      }
    }
    checkpoint::Manifest manifest;
    manifest.job = JobId(7);
    manifest.job_name = "j";
    manifest.round = Round(round);
    manifest.program_version = "1";
    manifest.spec_json = "{}";
    const std::uint64_t elements = kBlocks * kElements;
    manifest.tables = {{"parameters",
                        TableRule::Sgd,
                        elements,
                        {{"w", {static_cast<std::int64_t>(elements)}, 0, elements}}}};
    manifest.row_tables = {{"users", kWidth}};
    manifest.shards = std::move(stored);
    const auto text = checkpoint::ToJson(manifest);
    ASSERT_TRUE(text.ok()) << text.error().message;
    for (std::uint32_t server = 0; server < servers; ++server) {
      const CheckpointStore store(Root(folder), "p" + std::to_string(server));
      const Status written =
          store.WriteManifest(NameOf(round), {"p" + std::to_string(server)}, *text);
      ASSERT_TRUE(written.ok()) << written.error().message;
    }
  }

  // Digests of the exported files, but of the manifest.
  std::map<std::string, std::string> Export(const std::string& folder, std::uint64_t round) const {
    const auto exported = checkpoint::ExportCheckpoint(
        Root(folder) / NameOf(round), "", Root(folder) / ("export-" + std::to_string(round)), {});
    EXPECT_TRUE(exported.ok()) << exported.error().message;
    std::map<std::string, std::string> digests;
    if (!exported.ok()) return digests;
    for (const auto& file : exported->files) {
      if (file.name != "manifest.json") digests[file.name] = file.digest;
    }
    return digests;
  }

  const TemporaryDirectory directory_;
  const LayoutView layout_;
  JobRules rules_;
};

TEST_F(ReshardTest, OfTwoServersOnOneThreeAndFiveTheExportIsTheSameBitForBit) {
  Shards shards = NewShards(1, /*restoring=*/false);
  for (const auto& shard : shards) {
    const auto initial = testing::ConstantShard(layout_, shard->id(), 1.5f);
    ASSERT_EQ(shard->Init(testing::Parse(layout_, initial)), wire::Code::Applied);
  }
  for (std::uint64_t clock = 1; clock <= 5; ++clock) Push(shards, clock);
  Write(shards, "of-2", 1, 2);
  const auto before = Export("of-2", 1);
  ASSERT_EQ(before.size(), 3u);
  Push(shards, 6);
  Write(shards, "of-2", 2, 2);
  const auto unbroken = Export("of-2", 2);
  EXPECT_NE(unbroken, before);
  std::uint32_t epoch = 1;
  for (const std::uint32_t servers : {1u, 3u, 5u}) {
    SCOPED_TRACE(servers);
    Shards restored = NewShards(++epoch, /*restoring=*/true);
    for (std::uint32_t server = 0; server < servers; ++server) {
      RestoreReader reader(Root("of-2"));
      for (std::uint32_t number = server; number < kShards; number += servers) {
        ShardLoad load(*restored[number], {/*values_only=*/false, /*expect=*/true});
        const Status read = reader.Read(NameOf(1), ShardId(number), load);
        ASSERT_TRUE(read.ok()) << read.error().message;
        load.Finish();
      }
    }
    const std::string folder = "of-" + std::to_string(servers);
    Write(restored, folder, 1, servers);
    EXPECT_EQ(Export(folder, 1), before);
    // What is made of it goes on as it would have without, with the optimizer's state too.
    Push(restored, 6);
    Write(restored, folder, 2, servers);
    EXPECT_EQ(Export(folder, 2), unbroken);
  }
}

}  // namespace
}  // namespace ps::server
