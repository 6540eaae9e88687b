#include "ps-server/core/lane_core.h"

#include "ps-server/core/partial_load.h"
#include "tests/ps-server/core/lane_core_fixture.h"

namespace ps::server::testing {
namespace {

using LaneCoreTest = LaneCoreFixture;

// ---- hello and init

TEST_F(LaneCoreTest, HelloNamesEveryShardWithItsStateAndTheWorkersWatermark) {
  TestReply reply = SendOne(lane_, TestMessage(wire::Kind::Hello, 0, 11).Request(77));
  EXPECT_EQ(reply.kind(), wire::Kind::HelloReply);
  EXPECT_EQ(reply.to, "w11");
  EXPECT_EQ(reply.head.header.request(), 77u);
  EXPECT_EQ(reply.head.header.map_version(), 1u);
  ASSERT_EQ(reply.head.segments.size(), 4u);
  EXPECT_EQ(reply.CodeOf(2), wire::Code::Blank);
  EXPECT_EQ(reply.Find(2)->epoch(), kEpoch);

  InitAll();
  Send(lane_, PushMessage(11, 1, {0}));
  reply = SendOne(lane_, TestMessage(wire::Kind::Hello, 0, 11));
  EXPECT_EQ(reply.CodeOf(0), wire::Code::Applied);
  EXPECT_EQ(reply.Find(0)->version(), 1u);
  EXPECT_EQ(reply.Find(3)->version(), 1u) << "an empty push counts as well";
  reply = SendOne(lane_, TestMessage(wire::Kind::Hello, 1, 12));
  EXPECT_EQ(reply.Find(0)->version(), 0u);
}

TEST_F(LaneCoreTest, InitOfASecondTaskChangesNothing) {
  InitAll();
  TestMessage again(wire::Kind::Init, 1, 12);
  again.Segment(0, kEpoch, ConstantShard(layout_, ShardId(0), 3));
  EXPECT_EQ(SendOne(lane_, again).CodeOf(0), wire::Code::Applied);
  EXPECT_EQ(ValueOf(0), 0);
}

TEST_F(LaneCoreTest, InitUnderAnotherEpochIsRefused) {
  TestMessage message(wire::Kind::Init, 0, 11);
  message.Segment(0, kEpoch - 1, ConstantShard(layout_, ShardId(0), 3));
  const TestReply reply = SendOne(lane_, message);
  EXPECT_EQ(reply.CodeOf(0), wire::Code::WrongEpoch);
  EXPECT_EQ(reply.Find(0)->epoch(), kEpoch);
}

// ---- push

TEST_F(LaneCoreTest, APushReplyListsOnlyShardsThatDidNotApply) {
  InitAll();
  const TestReply reply = SendOne(lane_, PushMessage(11, 1, {0, 2}).Request(9));
  EXPECT_EQ(reply.kind(), wire::Kind::PushReply);
  EXPECT_EQ(reply.head.header.clock(), 1u);
  EXPECT_EQ(reply.head.header.request(), 9u);
  EXPECT_TRUE(reply.head.segments.empty());
  EXPECT_EQ(ValueOf(0), 1);
  EXPECT_EQ(ValueOf(1), 0);
  EXPECT_EQ(ValueOf(2), 1);
  EXPECT_EQ(lane_.counters().pushes_applied, 4u);
}

TEST_F(LaneCoreTest, AResentPushIsAnsweredAndNotAppliedTwice) {
  InitAll();
  Send(lane_, PushMessage(11, 1, {0}));
  const TestReply reply = SendOne(lane_, PushMessage(11, 1, {0}));
  EXPECT_TRUE(reply.head.segments.empty());
  EXPECT_EQ(ValueOf(0), 1);
  EXPECT_EQ(lane_.counters().pushes_repeated, 4u);
}

TEST_F(LaneCoreTest, AGapIsListedForEveryShardWithItsWatermark) {
  InitAll();
  Send(lane_, PushMessage(11, 1, {}));
  const TestReply reply = SendOne(lane_, PushMessage(11, 3, {0}));
  ASSERT_EQ(reply.head.segments.size(), 4u);
  EXPECT_EQ(reply.CodeOf(0), wire::Code::Gap);
  EXPECT_EQ(reply.Find(3)->version(), 1u);
}

TEST_F(LaneCoreTest, CoveringTheLaneNeedsTheSameMap) {
  InitAll();
  const TestReply reply = SendOne(lane_, PushMessage(11, 1, {0}).MapVersion(2));
  EXPECT_EQ(reply.kind(), wire::Kind::Nack);
  EXPECT_EQ(reply.code(), wire::Code::StaleMap);
  EXPECT_EQ(reply.head.header.map_version(), 1u);
  EXPECT_EQ(ValueOf(0), 0);
}

TEST_F(LaneCoreTest, WithoutTheFlagExactlyTheListedShardsTakePart) {
  InitAll();
  TestMessage message = PushMessage(11, 1, {1});
  message.Flags(wire::kReplay).MapVersion(99).Segment(2, kEpoch);
  EXPECT_TRUE(SendOne(lane_, message).head.segments.empty());
  const TestReply hello = SendOne(lane_, TestMessage(wire::Kind::Hello, 0, 11));
  EXPECT_EQ(hello.Find(0)->version(), 0u);
  EXPECT_EQ(hello.Find(1)->version(), 1u);
  EXPECT_EQ(hello.Find(2)->version(), 1u) << "a segment without bytes is an empty push";
}

TEST_F(LaneCoreTest, AWrongEpochConcernsItsShardAlone) {
  InitAll();
  TestMessage message = PushMessage(11, 1, {0});
  message.Flags(0).Segment(1, kEpoch + 1, SparseBlock(1, kElements, {7}, {-1}));
  const TestReply reply = SendOne(lane_, message);
  ASSERT_EQ(reply.head.segments.size(), 1u);
  EXPECT_EQ(reply.CodeOf(1), wire::Code::WrongEpoch);
  EXPECT_EQ(reply.Find(1)->epoch(), kEpoch);
  EXPECT_EQ(ValueOf(0), 1);
  EXPECT_EQ(ValueOf(1), 0);
}

TEST_F(LaneCoreTest, AShardThatIsNotHereAnswersEpochZero) {
  InitAll();
  lane_.UpdateMap(JobId(1), MapOf(2, {0, 1}));
  TestMessage message = PushMessage(11, 1, {3});
  message.Flags(0);
  const TestReply reply = SendOne(lane_, message);
  EXPECT_EQ(reply.CodeOf(3), wire::Code::WrongEpoch);
  EXPECT_EQ(reply.Find(3)->epoch(), 0u);
}

TEST_F(LaneCoreTest, ABlankShardConsumesNoClock) {
  const TestReply reply = SendOne(lane_, PushMessage(11, 1, {0}));
  ASSERT_EQ(reply.head.segments.size(), 4u);
  EXPECT_EQ(reply.CodeOf(0), wire::Code::Blank);
  InitAll();
  EXPECT_TRUE(SendOne(lane_, PushMessage(11, 1, {0})).head.segments.empty());
}

TEST_F(LaneCoreTest, WhoIsNotInTheLiveSetIsRefused) {
  InitAll();
  TestReply reply = SendOne(lane_, PushMessage(13, 1, {0}));
  EXPECT_EQ(reply.code(), wire::Code::NotLive);
  // The incarnation lives, but not as this worker.
  TestMessage stolen = PushMessage(11, 1, {0});
  stolen.header.mutate_worker(1);
  reply = SendOne(lane_, stolen);
  EXPECT_EQ(reply.code(), wire::Code::NotLive);
  EXPECT_EQ(Refused(wire::Code::NotLive), 2u);
  EXPECT_EQ(ValueOf(0), 0);
}

TEST_F(LaneCoreTest, ADrainingIncarnationMayStillPush) {
  InitAll();
  lane_.UpdateLive(JobId(1), LiveOf(2, {MakeMember(0, 11, 0, true), MakeMember(1, 12)}));
  EXPECT_EQ(SendOne(lane_, PushMessage(11, 1, {0})).kind(), wire::Kind::PushReply);
  EXPECT_EQ(ValueOf(0), 1);
}

// ---- pull

TEST_F(LaneCoreTest, APullBringsTheValues) {
  InitAll();
  Send(lane_, PushMessage(11, 1, {0, 1}, -4));
  const TestReply reply = SendOne(lane_, PullMessage(11, 0).Request(5).Flags(wire::kPullFp32));
  EXPECT_EQ(reply.kind(), wire::Kind::PullReply);
  EXPECT_EQ(reply.head.header.request(), 5u);
  EXPECT_EQ(reply.head.header.clock(), 0u) << "the slowest has not pushed yet";
  std::vector<std::vector<float>> values(4);
  for (std::uint32_t shard = 0; shard < 4; ++shard) {
    EXPECT_EQ(reply.ContentOf(shard), wire::PullContent::Snapshot);
    EXPECT_EQ(reply.Find(shard)->version(), 1u);
    EXPECT_EQ(reply.Find(shard)->lineage(), kLineage);
    ApplyPulled(layout_, reply.PayloadOf(shard), values);
    const std::vector<float> own = lane_.FindShard(JobId(1), ShardId(shard))->values();
    EXPECT_TRUE(std::equal(own.begin(), own.end(), values[shard].begin(), values[shard].end()));
  }
}

TEST_F(LaneCoreTest, APullBringsOnlyWhatChangedSinceTheVersionThatThePullerHas) {
  InitAll();
  Send(lane_, PushMessage(11, 1, {0, 1}));
  Send(lane_, PushMessage(11, 2, {1}));
  TestMessage pull(wire::Kind::Pull, 0, 11);
  for (std::uint32_t shard = 0; shard < 4; ++shard) {
    pull.Segment(shard, kEpoch, {}, 1, kLineage);
  }
  const TestReply reply = SendOne(lane_, pull);
  EXPECT_EQ(reply.ContentOf(0), wire::PullContent::Unchanged);
  EXPECT_EQ(reply.ContentOf(1), wire::PullContent::Sparse);
  EXPECT_EQ(reply.Find(0)->version(), 2u);
  EXPECT_EQ(reply.payload.size(), sizeof(wire::BlockHeader) + 4) << "one position, one value";
  EXPECT_EQ(lane_.counters().shards_sparse, 1u);
  EXPECT_EQ(lane_.counters().shards_unchanged, 3u);
}

TEST_F(LaneCoreTest, APullWaitsUntilTheSlowestWorkerHasReachedItsClock) {
  InitAll();
  Send(lane_, PushMessage(11, 1, {}));
  EXPECT_TRUE(Send(lane_, PullMessage(11, 1)).empty());
  EXPECT_EQ(lane_.parked_pulls(), 1u);
  const std::vector<TestReply> replies = Send(lane_, PushMessage(12, 1, {}));
  ASSERT_EQ(replies.size(), 2u);
  EXPECT_EQ(replies[0].kind(), wire::Kind::PushReply);
  EXPECT_EQ(replies[1].kind(), wire::Kind::PullReply);
  EXPECT_EQ(replies[1].to, "w11");
  EXPECT_EQ(replies[1].head.header.clock(), 1u);
  EXPECT_EQ(lane_.parked_pulls(), 0u);
}

TEST_F(LaneCoreTest, EveryListedShardMustHaveReachedTheClock) {
  InitAll();
  Send(lane_, PushMessage(11, 1, {}));
  EXPECT_TRUE(Send(lane_, PullMessage(11, 1)).empty());
  TestMessage part(wire::Kind::Push, 1, 12);
  part.Clock(1).Segment(0, kEpoch).Segment(1, kEpoch).Segment(2, kEpoch);
  EXPECT_EQ(Send(lane_, part).size(), 1u);
  EXPECT_EQ(lane_.parked_pulls(), 1u);
  TestMessage rest(wire::Kind::Push, 1, 12);
  rest.Clock(1).Segment(3, kEpoch);
  EXPECT_EQ(Send(lane_, rest).size(), 2u);
}

TEST_F(LaneCoreTest, ANewerPullReplacesAParkedOne) {
  InitAll();
  EXPECT_TRUE(Send(lane_, PullMessage(11, 1).Request(1)).empty());
  EXPECT_TRUE(Send(lane_, PullMessage(11, 1).Request(2)).empty());
  EXPECT_EQ(lane_.counters().pulls_replaced, 1u);
  Send(lane_, PushMessage(11, 1, {}));
  const std::vector<TestReply> replies = Send(lane_, PushMessage(12, 1, {}));
  ASSERT_EQ(replies.size(), 2u);
  EXPECT_EQ(replies[1].head.header.request(), 2u);
}

TEST_F(LaneCoreTest, AHeldWorkerHoldsNobodyUp) {
  InitAll();
  Send(lane_, PushMessage(11, 1, {}));
  EXPECT_TRUE(Send(lane_, PullMessage(11, 1)).empty());
  std::vector<TestReply> replies =
      Send(lane_, TestMessage(wire::Kind::Hold, 1, 12).Flags(wire::kHoldOn));
  ASSERT_EQ(replies.size(), 2u);
  EXPECT_EQ(replies[0].kind(), wire::Kind::HoldReply);
  EXPECT_EQ(replies[1].kind(), wire::Kind::PullReply);
  replies = Send(lane_, TestMessage(wire::Kind::Hold, 1, 12));
  ASSERT_EQ(replies.size(), 1u);
  EXPECT_TRUE(Send(lane_, PullMessage(11, 1)).empty()) << "back in";
}

// Found by the cluster simulation: over a connection that broke it came after what replaced it, and
// everybody waited for an idle worker for ever.
TEST_F(LaneCoreTest, AHoldThatComesLateIsNotWhatTheWorkerWants) {
  InitAll();
  Send(lane_, PushMessage(11, 1, {}));
  Send(lane_, TestMessage(wire::Kind::Hold, 1, 12).Request(5).Flags(wire::kHoldOn));
  lane_.UpdateLive(JobId(1), LiveOf(2, {MakeMember(0, 11), MakeMember(1, 12)}));
  EXPECT_EQ(Send(lane_, TestMessage(wire::Kind::Hold, 1, 12).Request(4)).size(), 1u);
  EXPECT_EQ(Send(lane_, PullMessage(11, 1)).size(), 1u) << "still out";
}

TEST_F(LaneCoreTest, AHoldOutlivesAChangeOfTheLiveSet) {
  InitAll();
  Send(lane_, TestMessage(wire::Kind::Hold, 1, 12).Flags(wire::kHoldOn));
  lane_.UpdateLive(JobId(1), LiveOf(2, {MakeMember(0, 11), MakeMember(1, 12)}));
  Send(lane_, PushMessage(11, 1, {}));
  EXPECT_EQ(Send(lane_, PullMessage(11, 1)).size(), 1u);
}

TEST_F(LaneCoreTest, ADeadWorkerHoldsNobodyUp) {
  InitAll();
  Send(lane_, PushMessage(11, 1, {}));
  EXPECT_TRUE(Send(lane_, PullMessage(11, 1)).empty());
  lane_.UpdateLive(JobId(1), LiveOf(2, {MakeMember(0, 11), MakeMember(1, 12, 0, true)}));
  const std::vector<TestReply> replies = Replies(lane_);
  ASSERT_EQ(replies.size(), 1u);
  EXPECT_EQ(replies[0].kind(), wire::Kind::PullReply);
}

TEST_F(LaneCoreTest, AParkedPullOfTheDeadIsRefused) {
  InitAll();
  EXPECT_TRUE(Send(lane_, PullMessage(11, 1)).empty());
  lane_.UpdateLive(JobId(1), LiveOf(2, {MakeMember(1, 12)}));
  const std::vector<TestReply> replies = Replies(lane_);
  ASSERT_EQ(replies.size(), 1u);
  EXPECT_EQ(replies[0].code(), wire::Code::NotLive);
}

TEST_F(LaneCoreTest, APullOfABlankShardWaitsForItsInitialValues) {
  EXPECT_TRUE(Send(lane_, PullMessage(11, 0, {0})).empty());
  TestMessage init(wire::Kind::Init, 0, 11);
  init.Segment(0, kEpoch, ConstantShard(layout_, ShardId(0), 3));
  const std::vector<TestReply> replies = Send(lane_, init);
  ASSERT_EQ(replies.size(), 2u);
  EXPECT_EQ(replies[1].ContentOf(0), wire::PullContent::Snapshot);
}

TEST_F(LaneCoreTest, APullUnderAnotherEpochIsRefusedWithOurs) {
  InitAll();
  TestMessage pull = PullMessage(11, 0, {0});
  pull.Segment(1, kEpoch + 1);
  const TestReply reply = SendOne(lane_, pull);
  EXPECT_EQ(reply.kind(), wire::Kind::Nack);
  EXPECT_EQ(reply.code(), wire::Code::WrongEpoch);
  ASSERT_EQ(reply.head.segments.size(), 1u);
  EXPECT_EQ(reply.Find(1)->epoch(), kEpoch);
}

TEST_F(LaneCoreTest, AParkedPullIsRefusedWhenTheMapTakesItsShardAway) {
  InitAll();
  EXPECT_TRUE(Send(lane_, PullMessage(11, 1)).empty());
  lane_.UpdateMap(JobId(1), MapOf(2, {0, 1, 2}));
  const std::vector<TestReply> replies = Replies(lane_);
  ASSERT_EQ(replies.size(), 1u);
  EXPECT_EQ(replies[0].code(), wire::Code::WrongEpoch);
  EXPECT_EQ(replies[0].Find(3)->epoch(), 0u);
}

// ---- maps

TEST_F(LaneCoreTest, AShardKeepsItsStateWhileEpochAndLineageStayTheSame) {
  InitAll();
  Send(lane_, PushMessage(11, 1, {0, 1}));
  LaneMap map = MapOf(2, {0, 1, 2});
  map.shards[1].epoch = Epoch(kEpoch + 1);
  lane_.UpdateMap(JobId(1), map);
  EXPECT_EQ(ValueOf(0), 1);
  EXPECT_EQ(lane_.FindShard(JobId(1), ShardId(1))->state(), wire::Code::Blank);
  EXPECT_EQ(lane_.FindShard(JobId(1), ShardId(3)), nullptr);
  EXPECT_EQ(SendOne(lane_, TestMessage(wire::Kind::Hello, 0, 11)).head.segments.size(), 3u);
}

TEST_F(LaneCoreTest, AnOldMapAndAnOldLiveSetChangeNothing) {
  lane_.UpdateMap(JobId(1), MapOf(2, {0}));
  lane_.UpdateMap(JobId(1), MapOf(1, {0, 1, 2, 3}));
  EXPECT_EQ(lane_.FindShard(JobId(1), ShardId(1)), nullptr);
  lane_.UpdateLive(JobId(1), LiveOf(2, {MakeMember(0, 11)}));
  lane_.UpdateLive(JobId(1), LiveOf(1, {MakeMember(0, 11), MakeMember(1, 12)}));
  EXPECT_EQ(SendOne(lane_, TestMessage(wire::Kind::Hello, 1, 12)).code(), wire::Code::NotLive);
}

TEST_F(LaneCoreTest, AJobThatIsAnnouncedAgainKeepsItsShards) {
  InitAll();
  Send(lane_, PushMessage(11, 1, {0}));
  lane_.SetJob(JobSetup{JobId(1), layout_, ConstantRules(1.0), MapOf(1, {0, 1, 2, 3}),
                        LiveOf(1, {MakeMember(0, 11), MakeMember(1, 12)})});
  EXPECT_EQ(ValueOf(0), 1);
}

TEST_F(LaneCoreTest, ARestoredShardIsAskedForAndThenServes) {
  InitAll();
  Send(lane_, PushMessage(11, 1, {0}, -6));
  lane_.BeginRound(JobId(1), Round(4), 1, 1);
  Send(lane_, MarkerMessage(11, 4, 1));
  Send(lane_, MarkerMessage(12, 4, 0));
  const std::vector<LaneEvent> rounds = lane_.TakeEvents();
  ASSERT_EQ(rounds.size(), 1u);
  const checkpoint::ShardImage image = std::get<LaneFrozen>(rounds[0]).shards[0].ToImage();
  LaneMap map = MapOf(2, {0}, kEpoch + 1, 4);
  map.shards[0].lineage = 2;
  lane_.UpdateMap(JobId(1), map);
  const std::vector<LaneEvent> events = lane_.TakeEvents();
  ASSERT_EQ(events.size(), 1u);
  const auto& wanted = std::get<RestoreWanted>(events[0]);
  EXPECT_EQ(wanted.shard, ShardId(0));
  EXPECT_EQ(wanted.epoch, Epoch(kEpoch + 1));
  EXPECT_EQ(wanted.round, Round(4));

  TestMessage pull(wire::Kind::Pull, 0, 11);
  pull.Segment(0, kEpoch + 1);
  EXPECT_TRUE(Send(lane_, pull).empty());
  EXPECT_EQ(SendOne(lane_, TestMessage(wire::Kind::Hello, 0, 11)).CodeOf(0), wire::Code::Restoring);
  EXPECT_EQ(lane_.InstallRestored(JobId(1), Epoch(kEpoch), image, false).error().code,
            ErrorCode::kConflict);
  ASSERT_TRUE(lane_.InstallRestored(JobId(1), Epoch(kEpoch + 1), image, false).ok());
  const std::vector<TestReply> replies = Replies(lane_);
  ASSERT_EQ(replies.size(), 1u);
  EXPECT_EQ(replies[0].ContentOf(0), wire::PullContent::Snapshot);
  EXPECT_EQ(replies[0].Find(0)->lineage(), 2u);
  EXPECT_EQ(ValueOf(0), 6);
  EXPECT_EQ(SendOne(lane_, TestMessage(wire::Kind::Hello, 0, 11)).Find(0)->version(), 1u);
  EXPECT_FALSE(lane_.InstallRestored(JobId(9), Epoch(1), image, false).ok());
}

TEST_F(LaneCoreTest, AShardOfAJobThatLoadsWaitsForThatFirstAndForItsInitialValuesThen) {
  JobRules rules = ConstantRules(1.0);
  rules.loads = true;
  lane_.SetJob(
      JobSetup{JobId(2), layout_, rules, MapOf(1, {0, 1}), LiveOf(1, {MakeMember(0, 11)})});
  const std::vector<LaneEvent> events = lane_.TakeEvents();
  ASSERT_EQ(events.size(), 2u);
  const auto& wanted = std::get<RestoreWanted>(events[1]);
  EXPECT_EQ(wanted.shard, ShardId(1));
  EXPECT_EQ(wanted.round, Round());
  const auto init = [&] {
    TestMessage message(wire::Kind::Init, 0, 11, /*job=*/2);
    message.Segment(1, kEpoch, ConstantShard(layout_, ShardId(1), 5));
    return SendOne(lane_, message).CodeOf(1);
  };
  // Nothing takes the place of what is to come.
  EXPECT_EQ(init(), wire::Code::Restoring);

  // Elements 10 to 19 of the shard are those of a tensor of another job.
  const ModelParts job{{{"w", {10}, kElements + 10, false}}, {}};
  LoadSource source;
  source.parts = {{{"v", {10}, 3, false}}, {}};
  source.mapping.tensors = {{0, 0}};
  source.shard_begins = {0, 20};
  auto shard = wanted.MakeShard();
  {
    PartialLoad load(*shard, job);
    ASSERT_EQ(load.BeginSource(source), std::vector<ShardId>{ShardId(0)});
    load.BeginShard(ShardId(0));
    checkpoint::ShardImage image;
    image.job = JobId(1);
    image.round = Round(3);
    image.epoch = Epoch(1);
    image.block_elements = {20};
    for (int i = 0; i < 20; ++i) image.values.push_back(static_cast<float>(100 + i));
    checkpoint::ContentCheck check(ShardId(0), load, /*with_digest=*/false);
    ASSERT_TRUE(checkpoint::SendImage(image, check).ok());
    ASSERT_TRUE(load.EndSource().ok());
    load.Finish();
  }
  ASSERT_TRUE(lane_.InstallRestored(wanted, std::move(shard)).ok());
  EXPECT_EQ(SendOne(lane_, TestMessage(wire::Kind::Hello, 0, 11, /*job=*/2)).CodeOf(1),
            wire::Code::Blank);
  EXPECT_EQ(init(), wire::Code::Applied);
  const auto values = lane_.FindShard(JobId(2), ShardId(1))->values();
  for (std::size_t i = 0; i < values.size(); ++i) {
    EXPECT_EQ(values[i], i >= 10 && i < 20 ? static_cast<float>(100 + 3 + i - 10) : 5) << i;
  }
}

TEST_F(LaneCoreTest, ALoadThatEndsEarlyLeavesNothing) {
  const JobRules rules = ConstantRules(1.0);
  Shard shard(layout_, rules, ShardId(1), Epoch(1), 1, /*restoring=*/true);
  const ModelParts job{{{"w", {10}, kElements + 10, false}}, {}};
  LoadSource source;
  source.parts = {{{"v", {10}, 3, false}}, {}};
  source.mapping.tensors = {{0, 0}};
  source.shard_begins = {0, 8, 20};
  {
    PartialLoad load(shard, job);
    EXPECT_EQ(load.BeginSource(source), (std::vector<ShardId>{ShardId(0), ShardId(1)}));
    load.BeginShard(ShardId(0));
    checkpoint::ShardImage image;
    image.job = JobId(1);
    image.round = Round(3);
    image.epoch = Epoch(1);
    image.block_elements = {8};
    image.values.assign(8, 1.0f);
    checkpoint::ContentCheck check(ShardId(0), load, /*with_digest=*/false);
    ASSERT_TRUE(checkpoint::SendImage(image, check).ok());
    // Half of the tensor is missing.
    const Status ended = load.EndSource();
    ASSERT_FALSE(ended.ok());
    EXPECT_EQ(ended.error().message, "5 elements of its tensors are in none of its shards");
  }
  EXPECT_EQ(shard.state(), wire::Code::Restoring);
}

TEST_F(LaneCoreTest, ADroppedJobIsUnknown) {
  InitAll();
  EXPECT_TRUE(Send(lane_, PullMessage(11, 1)).empty());
  lane_.DropJob(JobId(1));
  ASSERT_EQ(Replies(lane_).size(), 1u);
  EXPECT_EQ(SendOne(lane_, PushMessage(11, 1, {0})).code(), wire::Code::UnknownJob);
  EXPECT_TRUE(lane_.Report().empty());
}

TEST_F(LaneCoreTest, TheReportNamesEveryShard) {
  InitAll();
  Send(lane_, PushMessage(11, 1, {0}));
  Send(lane_, PullMessage(11, 1));
  const std::vector<JobStatus> report = lane_.Report();
  ASSERT_EQ(report.size(), 1u);
  EXPECT_EQ(report[0].map_version, 1u);
  EXPECT_EQ(report[0].parked_pulls, 1u);
  ASSERT_EQ(report[0].shards.size(), 4u);
  EXPECT_EQ(report[0].shards[3].state, wire::Code::Applied);
  EXPECT_EQ(report[0].shards[3].version, 1u);
  EXPECT_EQ(report[0].counters.pushes, 1u);
}

TEST_F(LaneCoreTest, TheSameMessagesGiveTheSameAnswers) {
  const auto run = [&] {
    LaneCore lane;
    lane.SetJob(JobSetup{JobId(1), layout_, ConstantRules(0.3), MapOf(1, {0, 1, 2, 3}),
                         LiveOf(1, {MakeMember(0, 11), MakeMember(1, 12)})});
    std::vector<Bytes> out;
    const auto send = [&](const TestMessage& message) {
      lane.OnMessage("x", message.Head(), message.payload);
      std::vector<LaneReply> replies;
      lane.TakeReplies(replies);
      for (const LaneReply& reply : replies) {
        out.push_back(reply.head);
        out.emplace_back(reply.payload.data(), reply.payload.data() + reply.payload.size());
      }
    };
    TestMessage init(wire::Kind::Init, 0, 11);
    for (std::uint32_t shard = 0; shard < 4; ++shard) {
      init.Segment(shard, kEpoch, ConstantShard(layout_, ShardId(shard), 0.1f));
    }
    send(init);
    for (std::uint64_t clock = 1; clock <= 20; ++clock) {
      send(PushMessage(11, clock, {0, 3}, 0.1f * static_cast<float>(clock)));
      send(PullMessage(11, clock));
      send(PushMessage(12, clock, {1, 2, 3}, 0.7f));
    }
    return out;
  };
  EXPECT_EQ(run(), run());
}

}  // namespace
}  // namespace ps::server::testing
