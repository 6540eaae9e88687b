// A round is written, committed and cleaned up while the disk fails at one call after the other,
// and while the power goes before each: a committed checkpoint is always there, whole and right.
#include "tests/support/faulty_disk.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint/manifest.h"
#include "checkpoint/verify.h"
#include "common/check.h"
#include "ps-server/core/shard.h"
#include "ps-server/shell/checkpoint_store.h"
#include "tests/ps-server/core/server_testing.h"
#include "tests/ps-server/shell/temporary_directory.h"

namespace ps::server {
namespace {

namespace fs = std::filesystem;

using ps::testing::DiskCall;
using ps::testing::DiskFault;
using ps::testing::FaultyDiskAfterPowerCut;
using ps::testing::FaultyDiskBeforeEach;
using ps::testing::FaultyDiskCalls;
using ps::testing::FaultyDiskEnd;
using ps::testing::FaultyDiskFailAt;
using ps::testing::FaultyDiskWatch;
using testing::ConstantRules;
using testing::TemporaryDirectory;
using testing::operator+=;

constexpr std::uint32_t kShards = 2;

// A job of two shards of blocks and rows, and its checkpoints as one server keeps them.
class FaultyDiskTest : public ::testing::Test {
 protected:
  FaultyDiskTest()
      : layout_(testing::MakeLayout({{TableRule::Sgd, std::vector<std::uint32_t>(8, 600)}}, kShards,
                                    {2})) {
    rules_ = ConstantRules(1.0);
    rules_.rows.push_back(testing::MakeRowRules(0, 2, 1.0));
    root_ = fs::canonical(directory_.path()) / "root";
    fs::create_directories(root_);
    for (std::uint32_t shard = 0; shard < kShards; ++shard) {
      shards_.push_back(
          std::make_unique<Shard>(layout_, rules_, ShardId(shard), Epoch(1), 1, false));
      const auto initial = testing::ConstantShard(layout_, ShardId(shard), 1.5f);
      PS_CHECK(shards_.back()->Init(testing::Parse(layout_, initial)) == wire::Code::Applied,
               shard);
    }
    store_ = std::make_unique<CheckpointStore>(root_, "p1");
  }
  ~FaultyDiskTest() override { FaultyDiskEnd(); }

  static std::string NameOf(std::uint64_t round) { return "job-7/ckpt-" + std::to_string(round); }

  // One push to each shard: a block of it, and rows.
  void Push() {
    ++clock_;
    for (std::uint32_t number = 0; number < kShards; ++number) {
      testing::Bytes bytes =
          testing::SparseBlock(number * 4 + clock_ % 4, 600, {7, 100}, {0.25f, -0.5f});
      std::vector<std::uint64_t> keys;
      for (std::uint64_t key = 1; keys.size() < 20; ++key) {
        const std::uint64_t one = key * 131 + clock_ % 3;
        if (codec::ShardOfRow(one, kShards) == ShardId(number)) keys.push_back(one);
      }
      bytes += testing::PushedRows(0, keys, std::vector<float>(keys.size() * 2, 0.125f));
      SegmentContent content;
      const Status parsed = ParsePush(layout_, ShardId(number), bytes, content);
      PS_CHECK(parsed.ok(), parsed.ok() ? "" : parsed.error().message);
      Shard& shard = *shards_[number];
      const auto pushed = shard.Push(testing::MakeMember(0, 11),
                                     PushFacts{Clock(clock_), shard.version(), 1024, false},
                                     content.blocks, 1, content.rows);
      PS_CHECK(pushed.code == wire::Code::Applied, number);
    }
  }

  struct Made {
    std::vector<checkpoint::ShardImage> images;
    std::string manifest_hash;
  };

  // A round as the server plays it: images, manifest, and once that is there it is committed.
  Result<Made> WriteRound(std::uint64_t round) {
    Push();
    Made made;
    std::vector<FrozenShard> frozen;
    for (const auto& shard : shards_) {
      frozen.push_back(shard->Freeze(JobId(7), Round(round)));
      made.images.push_back(frozen.back().ToImage());
    }
    const auto prepared =
        PS_TRY(store_->Write(NameOf(round), std::move(frozen), Round(committed_)));
    const std::string manifest = ManifestText(prepared, round);
    PS_TRY(store_->WriteManifest(NameOf(round), {"p1"}, manifest));
    made.manifest_hash = checkpoint::Hash(manifest);
    for (const control::PreparedShardT& shard : prepared) {
      for (const auto& base : shard.bases) bases_[round].push_back(base->round);
    }
    return made;
  }

  static std::string ManifestText(const std::vector<control::PreparedShardT>& shards,
                                  std::uint64_t round) {
    checkpoint::Manifest manifest;
    manifest.job = JobId(7);
    manifest.job_name = "j";
    manifest.round = Round(round);
    manifest.program_version = "1";
    manifest.spec_json = "{}";
    checkpoint::ManifestTable table;
    table.name = "parameters";
    table.elements = 4800;
    manifest.tables.push_back(table);
    manifest.row_tables.push_back({"users", 2});
    for (const control::PreparedShardT& shard : shards) {
      std::vector<Round> bases;
      for (const auto& base : shard.bases) bases.emplace_back(base->round);
      manifest.shards.push_back({ShardId(shard.shard), "p1", Epoch(shard.epoch), shard.version,
                                 shard.bytes, shard.digest, shard.values_digest, shard.rows,
                                 shard.state_bytes, bases});
    }
    auto text = checkpoint::ToJson(manifest);
    PS_CHECK(text.ok(), text.ok() ? "" : text.error().message);
    return std::move(text).value();
  }

  void Commit(std::uint64_t round, Made made) {
    committed_ = round;
    newest_ = std::move(made);
  }

  // The committed one and what it builds on; as the coordinator says after each commit.
  void DeleteOldRounds() {
    std::vector<std::uint64_t> keep = bases_[committed_];
    keep.push_back(committed_);
    store_->DeleteOldRounds(JobId(7), Round(committed_), keep);
  }

  // That the round is there, with the committed manifest, and every shard of it what it was.
  static void ExpectWhole(const fs::path& root, std::uint64_t round, const Made& made) {
    const auto verified = checkpoint::VerifyCheckpoint(root / NameOf(round), {});
    ASSERT_TRUE(verified.ok()) << verified.error().message;
    EXPECT_EQ(verified->manifest_hash, made.manifest_hash);
    EXPECT_TRUE(verified->findings.empty()) << verified->findings.front();
    RestoreReader reader(root);
    for (std::uint32_t shard = 0; shard < kShards; ++shard) {
      checkpoint::ImageSink sink(std::uint64_t{1} << 30);
      const Status read = reader.Read(NameOf(round), ShardId(shard), sink);
      ASSERT_TRUE(read.ok()) << read.error().message;
      EXPECT_TRUE(sink.Take() == made.images[shard]) << "shard " << shard;
    }
  }

  // Calls that a round makes, with the deletion of what it makes old.
  std::uint64_t CountCalls() {
    FaultyDiskFailAt(DiskCall::kWriting, 0, DiskFault::kNone);
    const auto made = WriteRound(next_);
    PS_CHECK(made.ok(), made.ok() ? "" : made.error().message);
    Commit(next_++, *made);
    DeleteOldRounds();
    return FaultyDiskCalls(DiskCall::kWriting);
  }

  const TemporaryDirectory directory_;
  fs::path root_;
  const LayoutView layout_;
  JobRules rules_;
  std::vector<std::unique_ptr<Shard>> shards_;
  std::unique_ptr<CheckpointStore> store_;
  std::uint64_t clock_ = 0;
  std::uint64_t next_ = 1;
  std::uint64_t committed_ = 0;
  Made newest_;
  std::map<std::uint64_t, std::vector<std::uint64_t>> bases_;
};

TEST_F(FaultyDiskTest, AFaultAtAnyCallCostsAtMostTheRound) {
  FaultyDiskWatch(root_.c_str());
  std::uint64_t calls = CountCalls();
  ASSERT_GT(calls, 50u) << "or the faults hit nothing";
  std::map<DiskFault, int> failed;
  std::map<DiskFault, int> unharmed;
  for (const DiskFault fault : {DiskFault::kIoError, DiskFault::kNoSpace, DiskFault::kShort}) {
    // A round that builds on others has other calls than one that does not.
    calls = std::max(calls, CountCalls());
    for (std::uint64_t n = 1; n <= calls + 2; ++n) {
      SCOPED_TRACE("fault " + std::to_string(static_cast<int>(fault)) + " at call " +
                   std::to_string(n));
      const std::uint64_t round = next_++;
      FaultyDiskFailAt(DiskCall::kWriting, n, fault);
      auto made = WriteRound(round);
      if (made.ok()) {
        Commit(round, std::move(made).value());
        DeleteOldRounds();
        ++unharmed[fault];
      } else {
        EXPECT_EQ(made.error().code, ErrorCode::kIo) << made.error().message;
        ++failed[fault];
        EXPECT_TRUE(store_->Discard(NameOf(round)).ok());
        EXPECT_FALSE(fs::exists(root_ / NameOf(round) / "p1"));
        EXPECT_FALSE(fs::exists(root_ / NameOf(round) / "p1.partial"));
      }
      FaultyDiskFailAt(DiskCall::kWriting, 0, DiskFault::kNone);
      ExpectWhole(root_, committed_, newest_);
      if (HasFailure()) return;
      // Now and then from the beginning, so that chains do not grow without end.
      if (n % 7 == 0) store_->Forget(JobId(7));
    }
  }
  // Nearly every call matters; a short write is gone on with.
  EXPECT_GT(failed[DiskFault::kIoError], unharmed[DiskFault::kIoError]);
  EXPECT_GT(failed[DiskFault::kNoSpace], unharmed[DiskFault::kNoSpace]);
  EXPECT_EQ(failed[DiskFault::kShort], 0);
  EXPECT_GT(unharmed[DiskFault::kShort], 50);
}

TEST_F(FaultyDiskTest, AReadThatFailsFailsTheRestoreAndGivesOutNothingWrong) {
  FaultyDiskWatch(root_.c_str());
  CountCalls();
  CountCalls();
  FaultyDiskFailAt(DiskCall::kReading, 0, DiskFault::kNone);
  ExpectWhole(root_, committed_, newest_);
  const std::uint64_t calls = FaultyDiskCalls(DiskCall::kReading);
  ASSERT_GT(calls, 20u);
  int failed = 0;
  for (const DiskFault fault : {DiskFault::kIoError, DiskFault::kShort}) {
    for (std::uint64_t n = 1; n <= calls; ++n) {
      SCOPED_TRACE("fault " + std::to_string(static_cast<int>(fault)) + " at read " +
                   std::to_string(n));
      FaultyDiskFailAt(DiskCall::kReading, n, fault);
      RestoreReader reader(root_);
      for (std::uint32_t shard = 0; shard < kShards; ++shard) {
        checkpoint::ImageSink sink(std::uint64_t{1} << 30);
        const Status read = reader.Read(NameOf(committed_), ShardId(shard), sink);
        if (!read.ok()) {
          ++failed;
          // And the next try, which finds a disk that works, succeeds.
          checkpoint::ImageSink again(std::uint64_t{1} << 30);
          const Status retried = reader.Read(NameOf(committed_), ShardId(shard), again);
          ASSERT_TRUE(retried.ok()) << retried.error().message;
          EXPECT_TRUE(again.Take() == newest_.images[shard]);
        } else {
          EXPECT_TRUE(sink.Take() == newest_.images[shard]);
        }
      }
    }
  }
  EXPECT_GT(failed, 10);
}

// Before each call of two rounds the power goes. What is committed by then is on the disk.
TEST_F(FaultyDiskTest, APowerCutAtAnyCallLeavesWhatIsCommitted) {
  const fs::path cuts = fs::canonical(directory_.path()) / "cuts";
  FaultyDiskWatch(root_.c_str());
  CountCalls();
  struct Cut {
    fs::path root;
    std::uint64_t committed = 0;
    const Made* made = nullptr;
    std::uint64_t writing = 0;  // a round that is not committed
  };
  struct Walk {
    fs::path folder;
    std::vector<Cut> cuts;
    std::uint64_t committed = 0;
    const Made* made = nullptr;
    std::uint64_t writing = 0;
    std::uint32_t turn = 0;
  };
  // Nothing that is not synced, some of it, and all of it is on the disk.
  const std::vector<std::uint32_t> chances = {0, 300, 700, 1000};
  for (const std::uint32_t chance : chances) {
    SCOPED_TRACE(chance);
    std::vector<std::unique_ptr<Made>> mades;
    mades.push_back(std::make_unique<Made>(newest_));
    Walk walk;
    walk.folder = cuts / std::to_string(chance);
    walk.turn = chance;
    walk.committed = committed_;
    walk.made = mades.back().get();
    FaultyDiskBeforeEach(
        [](std::uint64_t n, void* context) {
          Walk& at = *static_cast<Walk*>(context);
          const fs::path root = at.folder / std::to_string(at.cuts.size());
          fs::create_directories(root);
          FaultyDiskAfterPowerCut(root.c_str(), n * 1000 + at.turn, at.turn);
          at.cuts.push_back({root, at.committed, at.made, at.writing});
        },
        &walk);
    for (int turn = 0; turn < 2; ++turn) {
      const std::uint64_t round = next_++;
      walk.writing = round;
      auto made = WriteRound(round);
      ASSERT_TRUE(made.ok()) << made.error().message;
      mades.push_back(std::make_unique<Made>(*made));
      Commit(round, std::move(made).value());
      walk.committed = round;
      walk.made = mades.back().get();
      walk.writing = 0;
      DeleteOldRounds();
    }
    // Also once all is done.
    fs::create_directories(walk.folder / "end");
    FaultyDiskBeforeEach(nullptr, nullptr);
    FaultyDiskAfterPowerCut((walk.folder / "end").c_str(), 1, chance);
    walk.cuts.push_back({walk.folder / "end", walk.committed, walk.made, 0});
    EXPECT_GT(walk.cuts.size(), 100u);
    std::size_t readable = 0;
    std::size_t tried = 0;
    for (const Cut& cut : walk.cuts) {
      SCOPED_TRACE(cut.root.string());
      ExpectWhole(cut.root, cut.committed, *cut.made);
      if (HasFailure()) return;
      if (cut.writing == 0) continue;
      // Of what was not committed, what reads is what was written.
      for (const auto& made : mades) {
        if (made->images[0].round != Round(cut.writing)) continue;
        RestoreReader reader(cut.root);
        for (std::uint32_t shard = 0; shard < kShards; ++shard) {
          checkpoint::ImageSink sink(std::uint64_t{1} << 30);
          if (!reader.Read(NameOf(cut.writing), ShardId(shard), sink).ok()) continue;
          ++readable;
          EXPECT_TRUE(sink.Take() == made->images[shard]);
        }
      }
      // What the cut has left is no obstacle to who writes there.
      if (++tried % 10 != 0) continue;
      CheckpointStore after(cut.root, "p1");
      ASSERT_TRUE(after.Discard(NameOf(cut.writing)).ok());
      std::vector<FrozenShard> frozen;
      for (const auto& shard : shards_) {
        frozen.push_back(shard->Freeze(JobId(7), Round(cut.writing)));
      }
      const auto written = after.Write(NameOf(cut.writing), std::move(frozen), Round());
      EXPECT_TRUE(written.ok()) << written.error().message;
    }
    fs::remove_all(walk.folder);
    RecordProperty("readable_" + std::to_string(chance), static_cast<int>(readable));
  }
}

}  // namespace
}  // namespace ps::server
