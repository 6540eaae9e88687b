#include "ps-server/core/shard.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <random>
#include <set>

#include "tests/ps-server/core/server_testing.h"

namespace ps::server {
namespace {

using testing::ApplyPulled;
using testing::Bytes;
using testing::ConstantRules;
using testing::ConstantShard;
using testing::DenseBlock;
using testing::MakeLayout;
using testing::MakeMember;
using testing::Parse;
using testing::SparseBlock;

constexpr std::uint32_t kElements = 1000;

class ShardTest : public ::testing::Test {
 protected:
  ShardTest() { Init(shard_, 0); }

  void Init(Shard& shard, float value) {
    const Bytes bytes = ConstantShard(layout_, shard.id(), value);
    ASSERT_EQ(shard.Init(Parse(layout_, bytes)), wire::Code::Applied);
  }

  PushVerdict Push(std::uint64_t clock, const Bytes& bytes, std::uint64_t base = 0,
                   bool replay = false) {
    return PushTo(shard_, member_, clock, bytes, base, replay);
  }
  PushVerdict PushTo(Shard& shard, const Member& member, std::uint64_t clock, const Bytes& bytes,
                     std::uint64_t base = 0, bool replay = false, std::uint32_t samples = 1) {
    return shard.Push(member, PushFacts{Clock(clock), base, samples, replay}, Parse(layout_, bytes),
                      2);
  }
  Bytes One(std::uint16_t position, float value) {
    return SparseBlock(0, kElements, {position}, {value});
  }

  const LayoutView layout_ = MakeLayout(
      {{TableRule::Sgd, {kElements, 300}}, {TableRule::Average, {10}}, {TableRule::Maximum, {4}}},
      1);
  JobRules rules_ = ConstantRules(1.0);
  const Member member_ = MakeMember(0, 11);
  Shard shard_{layout_, rules_, ShardId(0), Epoch(3), 1, false};
};

TEST_F(ShardTest, PushesAreAppliedInTheOrderOfTheirClocks) {
  EXPECT_EQ(Push(1, One(5, -2)).code, wire::Code::Applied);
  EXPECT_EQ(Push(2, One(5, -3)).code, wire::Code::Applied);
  EXPECT_EQ(shard_.values()[5], 5);
  EXPECT_EQ(shard_.version(), 2u);
  EXPECT_EQ(shard_.samples_trained(), 2u);
  EXPECT_EQ(shard_.Watermark(member_), Clock(2));
}

TEST_F(ShardTest, DuplicatePushIsAnsweredAgainAndNotApplied) {
  Push(1, One(5, -2));
  const PushVerdict again = Push(1, One(5, -2));
  EXPECT_EQ(again.code, wire::Code::Applied);
  EXPECT_TRUE(again.repeated);
  EXPECT_EQ(shard_.values()[5], 2);
  EXPECT_EQ(shard_.version(), 1u);
  EXPECT_EQ(shard_.samples_trained(), 1u);
}

TEST_F(ShardTest, AGapIsRefusedAndNamesTheWatermark) {
  Push(1, {});
  const PushVerdict verdict = Push(3, One(5, -2));
  EXPECT_EQ(verdict.code, wire::Code::Gap);
  EXPECT_EQ(verdict.version, 1u);
  EXPECT_EQ(shard_.values()[5], 0);
  EXPECT_EQ(shard_.Watermark(member_), Clock(1));
  EXPECT_EQ(Push(2, {}).code, wire::Code::Applied);
  EXPECT_EQ(Push(3, One(5, -2)).code, wire::Code::Applied);
}

TEST_F(ShardTest, AnIncarnationNeverSeenBeginsAtItsFirstClock) {
  const Member late = MakeMember(1, 12, 40);
  EXPECT_EQ(shard_.Watermark(late), Clock(40));
  EXPECT_EQ(PushTo(shard_, late, 1, One(1, 1)).code, wire::Code::Applied);
  EXPECT_EQ(shard_.values()[1], 0) << "a clock before the first one is not applied";
  EXPECT_EQ(PushTo(shard_, late, 42, {}).code, wire::Code::Gap);
  EXPECT_EQ(PushTo(shard_, late, 41, One(1, -1)).code, wire::Code::Applied);
  EXPECT_EQ(shard_.values()[1], 1);
}

TEST_F(ShardTest, IncarnationsOfOneWorkerAreCountedApart) {
  const Member next = MakeMember(0, 12);
  EXPECT_EQ(Push(1, One(0, -1)).code, wire::Code::Applied);
  EXPECT_EQ(PushTo(shard_, next, 1, One(0, -1)).code, wire::Code::Applied);
  EXPECT_EQ(shard_.values()[0], 2);
}

TEST_F(ShardTest, TooOldBeyondTheBoundConsumesTheClockAndIsRepeated) {
  rules_.version_gap_max = 2;
  const Member fast = MakeMember(1, 12);
  for (std::uint64_t clock = 1; clock <= 3; ++clock) PushTo(shard_, fast, clock, One(1, 0), clock);
  ASSERT_EQ(shard_.version(), 3u);
  EXPECT_EQ(Push(1, One(5, -1), 1).code, wire::Code::Applied) << "3 - 1 is within the bound";
  EXPECT_EQ(Push(2, One(5, -1), 1).code, wire::Code::TooOld);
  EXPECT_EQ(shard_.values()[5], 1);
  EXPECT_EQ(shard_.version(), 4u);
  EXPECT_EQ(shard_.Watermark(member_), Clock(2));
  const PushVerdict again = Push(2, One(5, -1), 4);
  EXPECT_EQ(again.code, wire::Code::TooOld);
  EXPECT_TRUE(again.repeated);
  EXPECT_EQ(shard_.values()[5], 1);
}

TEST_F(ShardTest, ABoundThatFollowsTheWorkersIsTwiceTheirNumber) {
  rules_.version_gap_max = 2;
  rules_.version_gap_follows = true;
  const Member fast = MakeMember(1, 12);
  for (std::uint64_t clock = 1; clock <= 6; ++clock) PushTo(shard_, fast, clock, One(1, 0), clock);
  const Bytes bytes = One(5, -1);
  const auto push = [&](std::uint64_t clock, std::uint32_t workers) {
    const PushFacts facts{Clock(clock), shard_.version() - 6, 1, false};
    return shard_.Push(member_, facts, Parse(layout_, bytes), workers).code;
  };
  EXPECT_EQ(push(1, 3), wire::Code::Applied);
  EXPECT_EQ(push(2, 2), wire::Code::TooOld);
  EXPECT_EQ(push(3, 1), wire::Code::TooOld);
}

TEST_F(ShardTest, ReplayAndEmptyPushesAreNeverTooOld) {
  rules_.version_gap_max = 1;
  const Member fast = MakeMember(1, 12);
  for (std::uint64_t clock = 1; clock <= 9; ++clock) PushTo(shard_, fast, clock, {});
  EXPECT_EQ(Push(1, One(5, -1), 0, /*replay=*/true).code, wire::Code::Applied);
  EXPECT_EQ(Push(2, {}, 0).code, wire::Code::Applied);
  EXPECT_EQ(Push(3, One(5, -1), 0).code, wire::Code::TooOld);
}

TEST_F(ShardTest, ABaseAheadOfARestoredShardIsNotTooOld) {
  EXPECT_EQ(Push(1, One(5, -1), 1'000'000).code, wire::Code::Applied);
}

TEST_F(ShardTest, NonFiniteIsRefusedWholeAndConsumesTheClock) {
  for (const float bad :
       {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    const std::uint64_t clock = shard_.Watermark(member_).value() + 1;
    Bytes bytes = SparseBlock(0, kElements, {1, 2}, {-1, -1});
    testing::operator+=(bytes, SparseBlock(1, 300, {7}, {bad}));
    EXPECT_EQ(Push(clock, bytes).code, wire::Code::NonFinite);
    EXPECT_EQ(Push(clock, bytes).code, wire::Code::NonFinite);
    EXPECT_EQ(shard_.Watermark(member_), Clock(clock));
  }
  for (const float value : shard_.values()) ASSERT_EQ(value, 0);
  EXPECT_EQ(shard_.version(), 0u);
}

TEST_F(ShardTest, VerdictsOfTheLastClocksAreKeptApart) {
  rules_.version_gap_max = 1;
  const Member other = MakeMember(1, 12);
  for (std::uint64_t clock = 1; clock <= 4; ++clock) PushTo(shard_, other, clock, {});
  std::vector<wire::Code> verdicts;
  for (std::uint64_t clock = 1; clock <= 100; ++clock) {
    // Every third is computed on values that are too old.
    const std::uint64_t base = clock % 3 == 0 ? 0 : shard_.version();
    verdicts.push_back(Push(clock, One(1, 1), base).code);
    EXPECT_EQ(verdicts.back(), clock % 3 == 0 ? wire::Code::TooOld : wire::Code::Applied);
  }
  for (std::uint64_t clock = 100 - kVerdictsKept + 1; clock <= 100; ++clock) {
    EXPECT_EQ(Push(clock, One(1, 1)).code, verdicts[clock - 1]) << clock;
  }
  EXPECT_EQ(Push(3, One(1, 1)).code, wire::Code::Applied) << "no longer kept";
}

TEST_F(ShardTest, InitIsTakenOnceAndKeptAfterwards) {
  Shard shard(layout_, rules_, ShardId(0), Epoch(1), 1, false);
  EXPECT_EQ(shard.state(), wire::Code::Blank);
  EXPECT_EQ(PushTo(shard, member_, 1, One(1, 1)).code, wire::Code::Blank);
  EXPECT_EQ(shard.Watermark(member_), Clock(0));
  Init(shard, 2);
  Init(shard, 9);
  EXPECT_EQ(shard.values()[0], 2);
  EXPECT_EQ(shard.state(), wire::Code::Applied);
}

TEST_F(ShardTest, InitMustBringEveryBlockDenseFullPrecisionAndFinite) {
  Shard shard(layout_, rules_, ShardId(0), Epoch(1), 1, false);
  const Bytes first = DenseBlock(0, std::vector<float>(kElements));
  EXPECT_EQ(shard.Init(Parse(layout_, first)), wire::Code::Malformed);
  EXPECT_EQ(shard.Init({}), wire::Code::Malformed);

  Bytes half = DenseBlock(0, std::vector<float>(kElements), wire::ValueCodec::Bf16);
  Bytes sparse = SparseBlock(0, kElements, {1}, {1});
  Bytes infinite = DenseBlock(0, std::vector<float>(kElements, INFINITY));
  for (Bytes* bytes : {&half, &sparse, &infinite}) {
    testing::operator+=(*bytes, DenseBlock(1, std::vector<float>(300)));
    testing::operator+=(*bytes, DenseBlock(2, std::vector<float>(10)));
    testing::operator+=(*bytes, DenseBlock(3, std::vector<float>(4)));
  }
  EXPECT_EQ(shard.Init(Parse(layout_, half)), wire::Code::Malformed);
  EXPECT_EQ(shard.Init(Parse(layout_, sparse)), wire::Code::Malformed);
  EXPECT_EQ(shard.Init(Parse(layout_, infinite)), wire::Code::NonFinite);
  EXPECT_EQ(shard.state(), wire::Code::Blank);
}

TEST_F(ShardTest, EveryTableFollowsItsOwnRule) {
  Bytes bytes = DenseBlock(2, std::vector<float>(10, 4));
  testing::operator+=(bytes, DenseBlock(3, {1, -1, 2, 0}));
  EXPECT_EQ(Push(1, bytes).code, wire::Code::Applied);
  EXPECT_EQ(Push(2, bytes).code, wire::Code::Applied);
  const std::size_t average = kElements + 300;
  EXPECT_FLOAT_EQ(shard_.values()[average], 3) << "half of the way, twice: two live workers";
  EXPECT_EQ(shard_.values()[average + 10], 1);
  EXPECT_EQ(shard_.values()[average + 11], 0);
  EXPECT_EQ(shard_.values()[average + 12], 2);
}

TEST_F(ShardTest, SgdFollowsTheScheduleAndTheSizeOfTheBatch) {
  LearningRateSpec spec;
  spec.base = 0.5;
  spec.schedule = "cosine";
  spec.warmup_epochs = 0.1;
  rules_.learning_rate = LearningRate(spec, 2, 1000);
  rules_.reference_batch = 64;
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  std::vector<double> reference(kElements, 0.0);
  std::uint64_t samples_trained = 0;
  for (std::uint64_t clock = 1; clock <= 60; ++clock) {
    std::set<std::uint16_t> touched;
    while (touched.size() < 50) touched.insert(random() % kElements);
    const std::vector<std::uint16_t> indices(touched.begin(), touched.end());
    std::vector<float> values;
    for (std::size_t i = 0; i < indices.size(); ++i) values.push_back(normal(random));
    const std::uint32_t samples = 16 + random() % 32;
    PushTo(shard_, member_, clock, SparseBlock(0, kElements, indices, values), shard_.version(),
           false, samples);
    const double rate = rules_.learning_rate.At(samples_trained) * samples / 64.0;
    for (std::size_t i = 0; i < indices.size(); ++i) {
      reference[indices[i]] -= rate * static_cast<double>(values[i]);
    }
    samples_trained += samples;
  }
  EXPECT_EQ(shard_.samples_trained(), samples_trained);
  const std::vector<float> found = shard_.values();
  for (std::uint32_t at = 0; at < kElements; ++at) {
    ASSERT_NEAR(found[at], reference[at], 1e-5) << at;
  }
}

TEST_F(ShardTest, WeightDecayShrinksTheBlocksOfAPushAndPullsBringThem) {
  Shard shard(layout_, rules_, ShardId(0), Epoch(3), 1, false);
  Init(shard, 8);
  rules_ = ConstantRules(0.5);
  OptimizerRules decaying;
  decaying.weight_decay = 0.5;
  rules_.optimizer = Optimizer(decaying);
  PushTo(shard, member_, 1, SparseBlock(0, kElements, {}, {}));
  EXPECT_EQ(PushTo(shard, member_, 2, One(5, 1)).code, wire::Code::Applied);
  EXPECT_EQ(shard.values()[4], 4.5f);
  EXPECT_EQ(shard.values()[5], 4.0f);
  EXPECT_EQ(shard.values()[kElements], 8) << "a block without entries is left alone";
  PullScratch scratch;
  ByteBuffer out;
  EXPECT_EQ(shard.Pull({1, 1, true, false}, scratch, out), wire::PullContent::Sparse);
  std::vector<std::vector<float>> pulled(4);
  ApplyPulled(layout_, out, pulled);
  EXPECT_EQ(pulled[0][999], 4.5f);
}

// ---- pulls

TEST_F(ShardTest, APullOfTheSameVersionIsUnchanged) {
  Push(1, One(3, 1));
  PullScratch scratch;
  ByteBuffer out;
  EXPECT_EQ(shard_.Pull({1, 1, false, false}, scratch, out), wire::PullContent::Unchanged);
  Push(2, {});
  EXPECT_EQ(shard_.Pull({1, 1, false, false}, scratch, out), wire::PullContent::Unchanged)
      << "an empty push changes no value";
  EXPECT_TRUE(out.empty());
}

TEST_F(ShardTest, WhoHasNothingOrAnotherLineageOrTheFutureGetsASnapshot) {
  Push(1, One(3, 1));
  PullScratch scratch;
  ByteBuffer out;
  EXPECT_EQ(shard_.Pull({0, 1, false, false}, scratch, out), wire::PullContent::Snapshot);
  EXPECT_EQ(shard_.Pull({1, 2, false, false}, scratch, out), wire::PullContent::Snapshot);
  EXPECT_EQ(shard_.Pull({2, 1, false, false}, scratch, out), wire::PullContent::Snapshot);
  EXPECT_EQ(shard_.Pull({1, 1, false, true}, scratch, out), wire::PullContent::Snapshot);
}

TEST_F(ShardTest, ASnapshotEqualsTheValuesAndBuffersKeepFullPrecision) {
  Push(1, One(3, -1.00001f));
  Bytes bytes = DenseBlock(2, std::vector<float>(10, 2.00001f));
  testing::operator+=(bytes, DenseBlock(3, {16777215, 1, 2, 3}));
  Push(2, bytes);
  PullScratch scratch;
  for (const bool fp32 : {true, false}) {
    ByteBuffer out;
    EXPECT_EQ(shard_.Pull({0, 1, fp32, true}, scratch, out), wire::PullContent::Snapshot);
    EXPECT_EQ(out.size(), shard_.MaxPullBytes(fp32));
    std::vector<std::vector<float>> pulled(4);
    ApplyPulled(layout_, out, pulled);
    EXPECT_EQ(pulled[0][3], fp32 ? 1.00001f : 1.0f);
    EXPECT_EQ(pulled[2][0], shard_.values()[kElements + 300]);
    EXPECT_EQ(pulled[3][0], 16777215.0f);
  }
}

TEST_F(ShardTest, SparsePullsEqualASnapshotAfterRandomPushes) {
  std::mt19937 random(17);
  std::normal_distribution<float> normal;
  rules_ = ConstantRules(0.1);
  for (const bool fp32 : {true, false}) {
    Shard shard(layout_, rules_, ShardId(0), Epoch(1), 9, false);
    Init(shard, 1);
    // Pullers that come at different intervals, so that answers span different numbers of pushes.
    struct Puller {
      std::uint64_t version = 0;
      std::uint64_t interval;
      std::vector<std::vector<float>> values;
    };
    std::vector<Puller> pullers;
    for (const std::uint64_t interval : {1u, 3u, 17u, 60u}) {
      pullers.push_back(Puller{0, interval, std::vector<std::vector<float>>(4)});
    }
    PullScratch scratch;
    int sparse = 0;
    int snapshots = 0;
    for (std::uint64_t clock = 1; clock <= 200; ++clock) {
      Bytes bytes;
      const std::vector<std::pair<std::uint32_t, std::uint32_t>> blocks = {
          {0, kElements}, {1, 300}, {2, 10}, {3, 4}};
      for (const auto& block : blocks) {
        if (random() % 3 == 0) continue;
        if (block.first >= 2 || random() % 40 == 0) {
          std::vector<float> values;
          for (std::uint32_t i = 0; i < block.second; ++i) values.push_back(normal(random));
          testing::operator+=(bytes, DenseBlock(block.first, values));
          continue;
        }
        std::set<std::uint16_t> touched;
        for (std::size_t i = 0; i < 8; ++i) touched.insert(random() % block.second);
        const std::vector<std::uint16_t> indices(touched.begin(), touched.end());
        std::vector<float> values;
        for (std::size_t i = 0; i < indices.size(); ++i) values.push_back(normal(random));
        constexpr std::array kCodecs = {wire::IndexCodec::Gap8, wire::IndexCodec::Raw16,
                                        wire::IndexCodec::Rice, wire::IndexCodec::Bitmap};
        const auto codec = kCodecs[random() % kCodecs.size()];
        const auto value = random() % 2 == 0 ? wire::ValueCodec::Fp32 : wire::ValueCodec::Bits2;
        testing::operator+=(bytes,
                            SparseBlock(block.first, block.second, indices, values, codec, value));
      }
      ASSERT_EQ(PushTo(shard, member_, clock, bytes, shard.version()).code, wire::Code::Applied);
      for (Puller& puller : pullers) {
        if (clock % puller.interval != 0) continue;
        ByteBuffer out;
        const wire::PullContent content =
            shard.Pull({puller.version, 9, fp32, false}, scratch, out);
        sparse += content == wire::PullContent::Sparse ? 1 : 0;
        snapshots += content == wire::PullContent::Snapshot ? 1 : 0;
        ASSERT_LE(out.size(), shard.MaxPullBytes(fp32));
        ApplyPulled(layout_, out, puller.values);
        puller.version = shard.version();

        ByteBuffer whole;
        shard.Pull({0, 9, fp32, true}, scratch, whole);
        std::vector<std::vector<float>> expected(4);
        ApplyPulled(layout_, whole, expected);
        ASSERT_EQ(puller.values, expected) << "clock " << clock << " every " << puller.interval;
      }
    }
    EXPECT_GT(sparse, 100);
    EXPECT_GT(snapshots, 0);
    EXPECT_LE(shard.memory_use().change_log, shard.values().size() * sizeof(float) / 2);
  }
}

// ---- who is the slowest

TEST_F(ShardTest, TheSlowestClockIsThatOfTheMembersThatCount) {
  std::vector<Member> members = {MakeMember(0, 11), MakeMember(1, 12, 5), MakeMember(2, 13)};
  members[2].draining = true;
  EXPECT_EQ(shard_.SlowestClock(members), Clock(0));
  Push(1, {});
  EXPECT_EQ(shard_.SlowestClock(members), Clock(1));
  for (std::uint64_t clock = 2; clock <= 8; ++clock) Push(clock, {});
  EXPECT_EQ(shard_.SlowestClock(members), Clock(5));
  members[1].held = true;
  shard_.MembersChanged();
  EXPECT_EQ(shard_.SlowestClock(members), Clock(8));
  members[0].held = true;
  shard_.MembersChanged();
  EXPECT_EQ(shard_.SlowestClock(members), Clock(std::numeric_limits<std::uint64_t>::max()));
}

// ---- checkpoints

TEST_F(ShardTest, MemoryIsCountedAndSoIsWhatAFrozenShardMakesPushesCopy) {
  const std::uint64_t dense = (kElements + 300 + 10 + 4) * sizeof(float);
  EXPECT_EQ(shard_.memory_use().dense, dense);
  EXPECT_EQ(shard_.memory_use().change_log, 0u);
  Push(1, One(5, 1));
  EXPECT_GT(shard_.memory_use().change_log, 0u);
  EXPECT_EQ(shard_.memory_use().copied, 0u);
  {
    const auto frozen = shard_.Freeze(JobId(1), Round(6));
    Push(2, One(5, 1));
    Push(3, One(6, 1));
    EXPECT_EQ(shard_.memory_use().copied, detail::kLine) << "the line of both, once";
    EXPECT_EQ(shard_.memory_use().dense, dense);
  }
  Push(4, One(7, 1));
  EXPECT_EQ(shard_.memory_use().copied, detail::kLine);
}

TEST_F(ShardTest, AFrozenImageRestoresToTheSameShard) {
  rules_.version_gap_max = 1;
  for (std::uint64_t clock = 1; clock <= 70; ++clock) {
    Push(clock, One(clock % 10, 1), clock % 5 == 0 ? 0 : shard_.version());
  }
  PushTo(shard_, MakeMember(1, 12, 40), 41, One(3, 1), shard_.version());
  const checkpoint::ShardImage image = shard_.Freeze(JobId(1), Round(6)).ToImage();
  EXPECT_EQ(image.epoch, Epoch(3));
  ASSERT_EQ(image.marks.size(), 2u);
  EXPECT_EQ(image.marks[0].verdicts.size(), kVerdictsKept);
  EXPECT_EQ(image.marks[1].verdicts.size(), 1u);

  Shard restored(layout_, rules_, ShardId(0), Epoch(4), 2, true);
  EXPECT_EQ(restored.state(), wire::Code::Restoring);
  EXPECT_EQ(PushTo(restored, member_, 1, {}).code, wire::Code::Restoring);
  ASSERT_TRUE(restored.Restore(image, false).ok());
  checkpoint::ShardImage again = restored.Freeze(JobId(1), Round(6)).ToImage();
  again.epoch = image.epoch;
  again.lineage = image.lineage;
  EXPECT_EQ(again, image);
  for (std::uint64_t clock = 10; clock <= 70; ++clock) {
    EXPECT_EQ(PushTo(restored, member_, clock, One(0, 1)).code, Push(clock, One(0, 1)).code);
  }
  EXPECT_EQ(PushTo(restored, member_, 71, One(0, 1), 0, true).code, wire::Code::Applied);
}

TEST_F(ShardTest, PullsOfTheOldLineageGetASnapshotAfterARestore) {
  Push(1, One(3, 1));
  Shard restored(layout_, rules_, ShardId(0), Epoch(4), 2, true);
  ASSERT_TRUE(restored.Restore(shard_.Freeze(JobId(1), Round(6)).ToImage(), false).ok());
  PullScratch scratch;
  ByteBuffer out;
  EXPECT_EQ(restored.Pull({1, 1, false, false}, scratch, out), wire::PullContent::Snapshot);
  out.clear();
  EXPECT_EQ(restored.Pull({1, 2, false, false}, scratch, out), wire::PullContent::Unchanged);
}

TEST_F(ShardTest, FromAnotherJobOnlyTheValuesAreTaken) {
  Push(1, One(3, -1));
  Shard other(layout_, rules_, ShardId(0), Epoch(1), 1, true);
  ASSERT_TRUE(
      other.Restore(shard_.Freeze(JobId(1), Round(6)).ToImage(), /*values_only=*/true).ok());
  EXPECT_EQ(other.values()[3], 1);
  EXPECT_EQ(other.version(), 0u);
  EXPECT_EQ(other.samples_trained(), 0u);
  EXPECT_EQ(other.Watermark(member_), Clock(0));
}

TEST_F(ShardTest, AnImageWithVerdictsOrHeldPushesThatCannotBeIsRefused) {
  Push(1, One(3, -1));
  const checkpoint::ShardImage good = shard_.Freeze(JobId(1), Round(6)).ToImage();
  Shard restored(layout_, rules_, ShardId(0), Epoch(4), 2, true);
  checkpoint::ShardImage bad = good;
  bad.marks[0].verdicts[0] = static_cast<std::uint8_t>(wire::Code::Gap);
  EXPECT_EQ(restored.Restore(bad, false).error().code, ErrorCode::kInvalid);
  bad = good;
  bad.held.push_back({WorkerId(0), Incarnation(11), Clock(2), 1, {}});  // the watermark is 1
  EXPECT_EQ(restored.Restore(bad, false).error().code, ErrorCode::kInvalid);
  bad.held[0].clock = Clock(1);
  bad.held[0].incarnation = Incarnation(99);  // of nobody
  EXPECT_EQ(restored.Restore(bad, false).error().code, ErrorCode::kInvalid);
  EXPECT_TRUE(restored.Restore(good, false).ok());
}

TEST_F(ShardTest, AnImageThatDoesNotFitIsRefusedAndTheShardStillWaits) {
  const checkpoint::ShardImage good = shard_.Freeze(JobId(1), Round(6)).ToImage();
  EXPECT_EQ(shard_.Restore(good, false).error().code, ErrorCode::kConflict);
  Shard restored(layout_, rules_, ShardId(0), Epoch(4), 2, true);
  checkpoint::ShardImage bad = good;
  bad.block_elements[0] = 999;
  EXPECT_FALSE(restored.Restore(bad, false).ok());
  bad = good;
  bad.values.pop_back();
  EXPECT_FALSE(restored.Restore(bad, false).ok());
  bad = good;
  bad.shard = ShardId(1);
  EXPECT_FALSE(restored.Restore(bad, false).ok());
  bad = good;
  bad.marks.push_back({WorkerId(0), Incarnation(1), Clock(5), Clock(4), {}});
  EXPECT_FALSE(restored.Restore(bad, false).ok());
  bad = good;
  bad.marks.push_back({WorkerId(0), Incarnation(1), Clock(5), Clock(6), {0, 0}});
  EXPECT_FALSE(restored.Restore(bad, false).ok());
  bad = good;
  bad.marks.push_back({WorkerId(0), Incarnation(1), Clock(5), Clock(6), {0}});
  bad.marks.push_back(bad.marks.back());
  EXPECT_FALSE(restored.Restore(bad, false).ok());
  EXPECT_EQ(restored.state(), wire::Code::Restoring);
  EXPECT_TRUE(restored.Restore(good, false).ok());
}

}  // namespace
}  // namespace ps::server
