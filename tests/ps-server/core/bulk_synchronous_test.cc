// Staleness 0: the pushes of a clock are summed in the order of workers and applied at once.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <random>
#include <vector>

#include "checkpoint/record.h"
#include "tests/ps-server/core/server_testing.h"

namespace ps::server::testing {
namespace {

constexpr std::uint32_t kShards = 5;
constexpr std::uint32_t kWorkers = 3;
constexpr std::uint32_t kClocks = 25;
constexpr std::uint32_t kRowWidth = 4;
constexpr std::size_t kRowsPushed = 40;  // different ones on each shard and table
const JobId kJob(1);

JobRules BulkRules() {
  JobRules rules = ConstantRules(0.25, /*reference_batch=*/32);
  rules.bulk_synchronous = true;
  rules.version_gap_max = 1;  // must not matter
  // What rows a shard has depends on every push before: it counts sightings, and has no room for
  // all.
  rules.rows = {MakeRowRules(0, kRowWidth, 0.1, OptimizerType::kAdagrad),
                MakeRowRules(1, 1, 0.25, OptimizerType::kAdam)};
  rules.rows[0].sightings = 2;
  rules.rows[0].max_bytes = kShards * 25 * (kRowOverheadBytes + 2 * kRowWidth * sizeof(float));
  rules.rows[0].when_full = RowsFull::kLru;
  return rules;
}

LayoutView TestLayout() {
  return MakeLayout({{TableRule::Sgd, {300, 70, 200, 65}}, {TableRule::Average, {9, 6}}}, kShards,
                    {kRowWidth, 1});
}

LiveMembers Members(std::uint64_t version, std::vector<Member> members) {
  return LiveMembers{version, std::move(members)};
}

// The job on some lanes, each shard on lane (shard % lanes).
class Job {
 public:
  Job(const LayoutView& layout, std::uint32_t lanes) : layout_(layout), lanes_(lanes) {
    for (std::uint32_t i = 0; i < lanes; ++i) {
      LaneMap map;
      map.version = 1;
      for (std::uint32_t shard = i; shard < kShards; shard += lanes) {
        map.shards.push_back(OwnShard{ShardId(shard), Epoch(1), 1, Round()});
      }
      std::vector<Member> members;
      for (std::uint32_t worker = 0; worker < kWorkers; ++worker) {
        members.push_back(MakeMember(worker, worker + 11));
      }
      lanes_[i].SetJob(JobSetup{kJob, layout, BulkRules(), map, Members(1, members)});
      TestMessage init(wire::Kind::Init, 0, 11);
      for (const OwnShard& own : map.shards) {
        init.Segment(own.shard.value(), 1, ConstantShard(layout, own.shard, 0.1F));
      }
      Send(lanes_[i], init);
    }
  }

  // The push of a clock, the same whoever asks: random values in random places, some dense, and
  // random rows.
  TestMessage Push(std::uint32_t worker, std::uint64_t clock, std::uint32_t lane) const {
    std::mt19937 random(static_cast<std::uint32_t>(worker * 1000 + clock));
    std::normal_distribution<float> normal;
    TestMessage message(wire::Kind::Push, worker, worker + 11);
    message.Clock(clock).Flags(wire::kCoversLane).Samples(20 + worker);
    for (std::uint32_t shard = 0; shard < kShards; ++shard) {
      Bytes bytes;
      for (auto block = layout_.shard_first_block(ShardId(shard));
           block < layout_.shard_last_block(ShardId(shard)); ++block) {
        const std::uint32_t elements = layout_.block(block).elements;
        const bool dense = random() % 3 == 0;
        std::vector<std::uint16_t> indices;
        std::vector<float> values;
        for (std::uint32_t i = 0; i < elements; ++i) {
          if (!dense && random() % 4 != 0) continue;
          indices.push_back(static_cast<std::uint16_t>(i));
          values.push_back(normal(random));
        }
        if (values.size() == elements) {
          bytes += DenseBlock(block, values);
        } else if (!values.empty()) {
          bytes += SparseBlock(block, elements, indices, values, wire::IndexCodec::Rice,
                               wire::ValueCodec::Bits4);
        }
      }
      for (std::uint32_t table = 0; table < layout_.row_table_count(); ++table) {
        std::vector<std::uint64_t> keys;
        std::vector<float> values;
        for (const std::uint64_t key : KeysOfShard(layout_, shard, kRowsPushed)) {
          if (random() % 3 != 0) continue;
          keys.push_back(key);
          for (std::uint32_t i = 0; i < layout_.row_width(table); ++i) {
            values.push_back(normal(random));
          }
        }
        if (!keys.empty()) bytes += PushedRows(table, keys, values);
      }
      const bool skipped = random() % 6 == 0;
      if (shard % lanes_.size() == lane && !skipped && !bytes.empty()) {
        message.Segment(shard, 1, bytes, 1);
      }
    }
    return message;
  }
  TestReply SendPush(std::uint32_t worker, std::uint64_t clock, std::uint32_t lane) {
    return SendOne(lanes_[lane], Push(worker, clock, lane));
  }

  LaneCore& lane(std::uint32_t number) { return lanes_[number]; }
  const Shard& shard(std::uint32_t number) const {
    return *lanes_[number % lanes_.size()].FindShard(kJob, ShardId(number));
  }
  // Values and rows of all shards.
  std::vector<std::pair<std::vector<float>, std::vector<checkpoint::RowTableImage>>> Values()
      const {
    std::vector<std::pair<std::vector<float>, std::vector<checkpoint::RowTableImage>>> values;
    for (std::uint32_t i = 0; i < kShards; ++i) {
      checkpoint::ShardImage image = shard(i).Freeze(kJob, Round(1)).ToImage();
      values.emplace_back(std::move(image.values), std::move(image.rows));
    }
    return values;
  }

 private:
  const LayoutView& layout_;
  std::vector<LaneCore> lanes_;
};

class BulkSynchronousTest : public ::testing::Test {
 protected:
  const LayoutView layout_ = TestLayout();
};

TEST_F(BulkSynchronousTest, ParametersAreTheSameBitForBitInAnyOrderOfArrivalOnAnyNumberOfLanes) {
  Job reference(layout_, 1);
  for (std::uint64_t clock = 1; clock <= kClocks; ++clock) {
    for (std::uint32_t worker = 0; worker < kWorkers; ++worker) {
      reference.SendPush(worker, clock, 0);
    }
  }
  const auto expected = reference.Values();
  const auto& table = reference.shard(0).rows().status(0);
  EXPECT_GT(table.rejected, 10u);
  EXPECT_GT(table.evicted, 10u);
  EXPECT_GT(reference.shard(0).rows().status(1).rows, 30u);
  for (std::uint32_t seed = 0; seed < 40; ++seed) {
    std::mt19937 random(seed);
    const std::uint32_t lanes = 1 + seed % 4;
    Job job(layout_, lanes);
    std::map<std::pair<std::uint32_t, std::uint32_t>, std::uint64_t> next;
    for (std::uint32_t left = lanes * kWorkers * kClocks; left > 0;) {
      const auto lane = static_cast<std::uint32_t>(random() % lanes);
      const auto worker = static_cast<std::uint32_t>(random() % kWorkers);
      std::uint64_t& clock = next[{lane, worker}];
      if (clock == kClocks) continue;
      // Now and then the push before is sent again.
      if (clock > 0 && random() % 5 == 0) job.SendPush(worker, clock, lane);
      job.SendPush(worker, ++clock, lane);
      --left;
    }
    ASSERT_EQ(job.Values(), expected) << "seed " << seed << ", " << lanes << " lanes";
    for (std::uint32_t i = 0; i < kShards; ++i) {
      EXPECT_EQ(job.shard(i).version(), kClocks);
      EXPECT_EQ(job.shard(i).samples_trained(), kClocks * (20 + 21 + 22));
      EXPECT_TRUE(job.shard(i).held().empty());
    }
  }
}

TEST_F(BulkSynchronousTest, AClockIsAppliedOnceItsLastPushIsThereAndPullsWaitForThat) {
  Job job(layout_, 1);
  job.SendPush(0, 1, 0);
  job.SendPush(2, 1, 0);
  EXPECT_EQ(job.shard(0).version(), 0u);
  EXPECT_EQ(job.shard(0).held().CountOf(Incarnation(11)), 1u);
  TestMessage pull(wire::Kind::Pull, 0, 11);
  pull.Clock(1).Flags(wire::kPullFp32).Segment(0, 1);
  EXPECT_TRUE(Send(job.lane(0), pull).empty());
  // The same push again changes nothing and has its verdict.
  EXPECT_TRUE(job.SendPush(0, 1, 0).head.segments.empty());
  const auto replies = Send(job.lane(0), job.Push(1, 1, 0));
  ASSERT_EQ(replies.size(), 2u);
  EXPECT_EQ(replies[1].kind(), wire::Kind::PullReply);
  EXPECT_EQ(job.shard(0).version(), 1u);
}

TEST_F(BulkSynchronousTest, TheRateIsThatOfAllSamplesOfTheClock) {
  // Samples 20, 21, 22 of a reference batch of 32, rate 0.25; one entry each in the same place.
  Job job(layout_, 1);
  for (std::uint32_t worker = 0; worker < kWorkers; ++worker) {
    TestMessage push(wire::Kind::Push, worker, worker + 11);
    push.Clock(1).Flags(wire::kCoversLane).Samples(20 + worker);
    push.Segment(0, 1, SparseBlock(0, 300, {7}, {1.0F + static_cast<float>(worker)}));
    SendOne(job.lane(0), push);
  }
  EXPECT_NEAR(job.shard(0).values()[7], 0.1 - 0.25 / 32 * (20 * 1 + 21 * 2 + 22 * 3), 1e-5);
}

TEST_F(BulkSynchronousTest, RowsOfAClockAreSummedByKeyAndAreOneUpdateEach) {
  JobRules rules = BulkRules();
  rules.rows[0] = MakeRowRules(0, kRowWidth, 0.5);
  Shard shard(layout_, rules, ShardId(0), Epoch(1), 1, false);
  const Bytes values = ConstantShard(layout_, ShardId(0), 0);
  ASSERT_EQ(shard.Init(Parse(layout_, values)), wire::Code::Applied);
  const std::vector<Member> members = {MakeMember(0, 11), MakeMember(1, 12), MakeMember(2, 13)};
  const auto keys = KeysOfShard(layout_, 0, 3);
  // Worker 0 has rows 0 and 2, worker 1 row 0 as bf16 in a push without blocks, worker 2 nothing.
  MergeScratch scratch;
  SegmentContent content;
  Bytes bytes = SparseBlock(0, 300, {7}, {1});
  bytes += PushedRows(0, {keys[0], keys[2]}, {1, 2, 3, 4, 5, 6, 7, 8});
  ASSERT_TRUE(ParsePush(layout_, ShardId(0), bytes, content).ok());
  shard.Push(members[0], PushFacts{Clock(1), 0, 24, false}, content.blocks, 3, content.rows);
  const Bytes other = PushedRows(0, {keys[0]}, {-1, -1, -1, -1}, wire::ValueCodec::Bf16);
  ASSERT_TRUE(ParsePush(layout_, ShardId(0), other, content).ok());
  shard.Push(members[1], PushFacts{Clock(1), 0, 8, false}, content.blocks, 3, content.rows);
  shard.Push(members[2], PushFacts{Clock(1), 0, 100, false}, {}, 3);
  EXPECT_EQ(shard.rows().status(0).pushed, 0u);
  shard.ApplyHeld(members, 3, scratch);
  EXPECT_EQ(shard.rows().status(0).pushed, 2u);
  PullScratch pull;
  ByteBuffer out;
  std::vector<codec::RowsView> asked;
  const Bytes wanted = AskedRows(0, keys);
  ASSERT_TRUE(ParsePull(layout_, ShardId(0), wanted, asked).ok());
  Shard::PullQuery query;
  query.fp32 = true;
  shard.Pull(query, pull, out, asked);
  // 0.5 * (24 g0 + 8 g1) / 32: the samples of the empty push do not count.
  const std::vector<float> expected = {-0.25F, -0.625F, -1,      -1.375F, 0,       0,
                                       0,      0,       -1.875F, -2.25F,  -2.625F, -3};
  EXPECT_EQ(PulledRows(layout_, out)[0], expected);
}

TEST_F(BulkSynchronousTest, TheDeadStopNobodyAndTheirPushesCountOnce) {
  Job job(layout_, 1);
  job.SendPush(0, 1, 0);
  job.SendPush(2, 1, 0);
  // Worker 1 dies in the middle of the clock: its agent pushes what it left.
  job.lane(0).UpdateLive(
      kJob, Members(2, {MakeMember(0, 11), MakeMember(1, 12, 0, true), MakeMember(2, 13)}));
  EXPECT_EQ(job.shard(0).version(), 1u);
  job.SendPush(1, 1, 0);
  EXPECT_EQ(job.shard(0).version(), 2u);
  job.SendPush(1, 1, 0);
  EXPECT_EQ(job.shard(0).version(), 2u);
  EXPECT_EQ(job.shard(0).samples_trained(), 20u + 21 + 22);
  // What somebody pushed who then left for good stays held for its clock.
  job.SendPush(0, 2, 0);
  job.lane(0).UpdateLive(kJob, Members(3, {MakeMember(2, 13)}));
  EXPECT_EQ(job.shard(0).version(), 2u);
  job.SendPush(2, 2, 0);
  EXPECT_EQ(job.shard(0).version(), 3u);
  EXPECT_EQ(job.shard(0).samples_trained(), 20u + 21 + 22 + 20 + 22);
}

TEST_F(BulkSynchronousTest, WhoHoldsIsNotWaitedFor) {
  Job job(layout_, 1);
  job.SendPush(0, 1, 0);
  job.SendPush(2, 1, 0);
  TestMessage hold(wire::Kind::Hold, 1, 12);
  hold.Flags(wire::kHoldOn);
  Send(job.lane(0), hold);
  EXPECT_EQ(job.shard(0).version(), 1u);
}

TEST_F(BulkSynchronousTest, AnOldHoldThatComesLateChangesNothing) {
  Job job(layout_, 1);
  job.SendPush(0, 1, 0);
  job.SendPush(2, 1, 0);
  TestMessage out(wire::Kind::Hold, 1, 12);
  TestMessage in = out;
  out.Flags(wire::kHoldOn).Request(5);
  EXPECT_EQ(SendOne(job.lane(0), out).kind(), wire::Kind::HoldReply);
  EXPECT_EQ(job.shard(0).version(), 1u);
  EXPECT_EQ(SendOne(job.lane(0), in.Request(4)).kind(), wire::Kind::HoldReply);
  // A new live set forgets neither.
  job.lane(0).UpdateLive(kJob,
                         Members(2, {MakeMember(0, 11), MakeMember(1, 12), MakeMember(2, 13)}));
  SendOne(job.lane(0), in.Request(4));
  job.SendPush(0, 2, 0);
  job.SendPush(2, 2, 0);
  EXPECT_EQ(job.shard(0).version(), 2u) << "worker 1 is not waited for";
  SendOne(job.lane(0), in.Request(6));
  job.SendPush(0, 3, 0);
  job.SendPush(2, 3, 0);
  EXPECT_EQ(job.shard(0).version(), 2u);
}

TEST_F(BulkSynchronousTest, AnImageHoldsThePushesThatWaitAndARestoredShardGoesOnWithThem) {
  Job job(layout_, 1);
  for (std::uint32_t worker = 0; worker < kWorkers; ++worker) job.SendPush(worker, 1, 0);
  job.SendPush(2, 2, 0);
  job.lane(0).TakeEvents();
  job.lane(0).BeginRound(kJob, Round(1), 1, 1);
  for (std::uint32_t worker = 0; worker < kWorkers; ++worker) {
    TestMessage marker(wire::Kind::Marker, worker, worker + 11);
    Send(job.lane(0), marker.Request(1).Clock(worker == 2 ? 2 : 1));
  }
  auto events = job.lane(0).TakeEvents();
  ASSERT_EQ(events.size(), 1u);
  const auto& frozen = std::get<LaneFrozen>(events[0]);
  for (std::uint64_t clock = 2; clock <= 3; ++clock) {
    for (std::uint32_t worker = 0; worker < kWorkers; ++worker) job.SendPush(worker, clock, 0);
  }
  const JobRules rules = BulkRules();
  for (std::uint32_t number = 0; number < kShards; ++number) {
    checkpoint::ShardImage image = frozen.shards[number].ToImage();
    ASSERT_EQ(image.held.size(), 1u);
    ASSERT_TRUE(checkpoint::CheckImage(image).ok());
    // The way of the disk.
    auto meta = checkpoint::DecodeMeta(checkpoint::EncodeMeta(image));
    ASSERT_TRUE(meta.ok()) << meta.error().message;
    checkpoint::ShardImage read = std::move(meta->image);
    read.values = image.values;
    for (std::size_t table = 0; table < image.rows.size(); ++table) {
      read.rows[table].records = image.rows[table].records;
      read.rows[table].sketch = image.rows[table].sketch;
    }
    EXPECT_EQ(read, image);

    // The workers that were there, who push again what the image has, and others in their places,
    // who go on where they were.
    const std::vector<Member> same = {MakeMember(0, 11), MakeMember(1, 12), MakeMember(2, 13)};
    const std::vector<Member> others = {MakeMember(0, 21, 1), MakeMember(1, 22, 1),
                                        MakeMember(2, 23, 2)};
    for (const std::vector<Member>& members : {same, others}) {
      Shard shard(layout_, rules, ShardId(number), Epoch(2), 2, /*restoring=*/true);
      ASSERT_TRUE(shard.Restore(read, /*values_only=*/false).ok());
      MergeScratch scratch;
      // Before they are there.
      EXPECT_FALSE(shard.ApplyHeld({}, 0, scratch).has_value());
      const std::vector<Member> dead = {MakeMember(1, 12, 0, true)};
      EXPECT_FALSE(shard.ApplyHeld(dead, 0, scratch).has_value());
      shard.MembersChanged();
      for (std::uint64_t clock = 2; clock <= 3; ++clock) {
        for (const std::uint32_t worker : {2u, 0u, 1u}) {
          if (Clock(clock) <= members[worker].first_clock) continue;
          const TestMessage push = job.Push(worker, clock, 0);
          const auto segment =
              std::find_if(push.segments.begin(), push.segments.end(),
                           [number](const wire::Segment& one) { return one.shard() == number; });
          Bytes bytes;
          if (segment != push.segments.end()) {
            const auto begin = push.payload.begin() + segment->offset();
            bytes.assign(begin, begin + segment->length());
          }
          SegmentContent content;
          ASSERT_TRUE(ParsePush(layout_, ShardId(number), bytes, content).ok());
          shard.Push(members[worker], PushFacts{Clock(clock), 0, push.header.samples(), true},
                     content.blocks, kWorkers, content.rows);
          shard.ApplyHeld(members, kWorkers, scratch);
        }
      }
      const auto values = job.shard(number).values();
      const auto restored = shard.values();
      EXPECT_TRUE(std::equal(values.begin(), values.end(), restored.begin(), restored.end()));
      checkpoint::ShardImage here = shard.Freeze(kJob, Round(2)).ToImage();
      EXPECT_EQ(here.rows, job.Values()[number].second);
    }
    // Bytes that no push could have brought are refused.
    if (!image.held[0].bytes.empty()) {
      image.held[0].bytes.pop_back();
      Shard other(layout_, rules, ShardId(number), Epoch(2), 2, /*restoring=*/true);
      EXPECT_FALSE(other.Restore(image, false).ok());
    }
  }
}

TEST_F(BulkSynchronousTest, AWorkerFarAheadIsToldToAskAgainAndLosesNothing) {
  Job job(layout_, 1);
  for (std::uint64_t clock = 1; clock <= kHeldPerWorkerMax; ++clock) job.SendPush(0, clock, 0);
  const TestReply refused = job.SendPush(0, kHeldPerWorkerMax + 1, 0);
  EXPECT_EQ(refused.CodeOf(0), wire::Code::Overloaded);
  for (std::uint32_t worker = 1; worker < kWorkers; ++worker) job.SendPush(worker, 1, 0);
  EXPECT_EQ(job.shard(0).version(), 1u);
  EXPECT_TRUE(job.SendPush(0, kHeldPerWorkerMax + 1, 0).head.segments.empty());
}

}  // namespace
}  // namespace ps::server::testing
