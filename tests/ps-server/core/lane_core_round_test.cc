#include "tests/ps-server/core/lane_core_fixture.h"

namespace ps::server::testing {
namespace {

class LaneCoreRoundTest : public LaneCoreFixture {
 protected:
  LaneCoreRoundTest() {
    InitAll();
    Send(lane_, PushMessage(11, 1, {0, 1}));
    Send(lane_, PushMessage(12, 1, {2}));
  }
  void Begin(std::uint64_t round, std::uint64_t live = 1, std::uint64_t map = 1) {
    lane_.BeginRound(JobId(1), Round(round), live, map);
  }
};

TEST_F(LaneCoreRoundTest, ShardsFreezeWhenTheMarkersOfAllLiveWorkersAreThere) {
  Begin(1);
  EXPECT_TRUE(Send(lane_, MarkerMessage(11, 1, 1)).empty());
  EXPECT_TRUE(lane_.TakeEvents().empty());
  const std::vector<TestReply> replies = Send(lane_, MarkerMessage(12, 1, 1));
  ASSERT_EQ(replies.size(), 2u);
  for (const TestReply& reply : replies) {
    EXPECT_EQ(reply.kind(), wire::Kind::MarkerReply);
    EXPECT_EQ(reply.head.header.request(), 1u);
  }
  const std::vector<LaneEvent> events = lane_.TakeEvents();
  ASSERT_EQ(events.size(), 1u);
  const auto& frozen = std::get<LaneFrozen>(events[0]);
  EXPECT_EQ(frozen.round, Round(1));
  ASSERT_EQ(frozen.shards.size(), 4u);
  EXPECT_EQ(frozen.shards[0].ToImage().values[7], 1);
  EXPECT_EQ(frozen.shards[3].ToImage().values[7], 0);
  EXPECT_EQ(frozen.shards[0].ToImage().version, 2u);
  EXPECT_EQ(frozen.shards[0].ToImage().marks.size(), 2u);
}

TEST_F(LaneCoreRoundTest, PushesAfterTheCutAreNotInTheImage) {
  Begin(1);
  Send(lane_, MarkerMessage(11, 1, 1));
  Send(lane_, PushMessage(12, 2, {2}));
  Send(lane_, MarkerMessage(12, 1, 2));
  const std::vector<LaneEvent> events = lane_.TakeEvents();
  ASSERT_EQ(events.size(), 1u);
  Send(lane_, PushMessage(11, 2, {0}));
  const auto& frozen = std::get<LaneFrozen>(events[0]);
  EXPECT_EQ(frozen.shards[0].ToImage().values[7], 1);
  EXPECT_EQ(frozen.shards[2].ToImage().values[7], 2) << "the push before its marker is in";
  EXPECT_EQ(ValueOf(0), 2);
}

TEST_F(LaneCoreRoundTest, AMarkerThatOvertookTheBeginningOfItsRoundWaits) {
  EXPECT_TRUE(Send(lane_, MarkerMessage(11, 3, 1)).empty());
  EXPECT_TRUE(Send(lane_, MarkerMessage(12, 3, 1)).empty());
  Begin(3);
  EXPECT_EQ(Replies(lane_).size(), 2u);
  EXPECT_EQ(lane_.TakeEvents().size(), 1u);
}

TEST_F(LaneCoreRoundTest, AMarkerOfAnOlderRoundIsRefused) {
  Begin(3);
  const TestReply reply = SendOne(lane_, MarkerMessage(11, 2, 1));
  EXPECT_EQ(reply.kind(), wire::Kind::Nack);
  EXPECT_EQ(reply.code(), wire::Code::RoundAborted);
  EXPECT_EQ(reply.head.header.request(), 2u);
}

TEST_F(LaneCoreRoundTest, AResentMarkerOfAFrozenRoundIsAnsweredAgain) {
  Begin(1);
  Send(lane_, MarkerMessage(11, 1, 1));
  Send(lane_, MarkerMessage(12, 1, 1));
  EXPECT_EQ(SendOne(lane_, MarkerMessage(11, 1, 1)).kind(), wire::Kind::MarkerReply);
  EXPECT_EQ(lane_.TakeEvents().size(), 1u) << "and nothing is frozen twice";
  lane_.AbortRound(JobId(1), Round(1));
  EXPECT_EQ(SendOne(lane_, MarkerMessage(11, 1, 1)).code(), wire::Code::RoundAborted);
}

TEST_F(LaneCoreRoundTest, ALostPushBeforeTheMarkerIsWaitedFor) {
  Begin(1);
  Send(lane_, MarkerMessage(11, 1, 2));
  EXPECT_TRUE(Send(lane_, MarkerMessage(12, 1, 1)).empty());
  EXPECT_TRUE(lane_.TakeEvents().empty());
  const std::vector<TestReply> replies = Send(lane_, PushMessage(11, 2, {0}));
  EXPECT_EQ(replies.size(), 3u) << "the push and both markers are answered";
  const std::vector<LaneEvent> events = lane_.TakeEvents();
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(std::get<LaneFrozen>(events[0]).shards[0].ToImage().values[7], 2);
}

TEST_F(LaneCoreRoundTest, APushAfterItsOwnMarkerFailsTheRound) {
  Begin(1);
  Send(lane_, MarkerMessage(11, 1, 1));
  Send(lane_, PushMessage(11, 2, {0}));
  const std::vector<TestReply> replies = Send(lane_, MarkerMessage(12, 1, 1));
  ASSERT_EQ(replies.size(), 2u);
  EXPECT_EQ(replies[0].code(), wire::Code::RoundAborted);
  const std::vector<LaneEvent> events = lane_.TakeEvents();
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(std::get<LaneRoundFailed>(events[0]).round, Round(1));
}

TEST_F(LaneCoreRoundTest, AnAbortAnswersTheWaitingMarkers) {
  Begin(1);
  Send(lane_, MarkerMessage(11, 1, 1));
  lane_.AbortRound(JobId(1), Round(1));
  const std::vector<TestReply> replies = Replies(lane_);
  ASSERT_EQ(replies.size(), 1u);
  EXPECT_EQ(replies[0].code(), wire::Code::RoundAborted);
  EXPECT_TRUE(Send(lane_, MarkerMessage(12, 2, 1)).empty());
  Begin(2);
  Send(lane_, MarkerMessage(11, 2, 1));
  EXPECT_EQ(lane_.TakeEvents().size(), 1u);
}

TEST_F(LaneCoreRoundTest, AnAbortOfARoundThatNeverBeganHereAnswersItsMarkers) {
  EXPECT_TRUE(Send(lane_, MarkerMessage(11, 5, 1)).empty());
  lane_.AbortRound(JobId(1), Round(5));
  ASSERT_EQ(Replies(lane_).size(), 1u);
  Begin(5);
  EXPECT_EQ(SendOne(lane_, MarkerMessage(11, 5, 1)).code(), wire::Code::RoundAborted);
}

TEST_F(LaneCoreRoundTest, AChangeOfTheLiveSetAbortsTheOpenRound) {
  Begin(1);
  Send(lane_, MarkerMessage(11, 1, 1));
  lane_.UpdateLive(JobId(1), LiveOf(2, {MakeMember(0, 11)}));
  const std::vector<TestReply> replies = Replies(lane_);
  ASSERT_EQ(replies.size(), 1u);
  EXPECT_EQ(replies[0].code(), wire::Code::RoundAborted);
  ASSERT_EQ(lane_.TakeEvents().size(), 1u);
}

TEST_F(LaneCoreRoundTest, AChangeOfTheMapAbortsTheOpenRound) {
  Begin(1);
  Send(lane_, MarkerMessage(11, 1, 1));
  lane_.UpdateMap(JobId(1), MapOf(2, {0, 1}));
  EXPECT_EQ(Replies(lane_).size(), 1u);
  const std::vector<LaneEvent> events = lane_.TakeEvents();
  ASSERT_EQ(events.size(), 1u);
  EXPECT_TRUE(std::holds_alternative<LaneRoundFailed>(events[0]));
}

TEST_F(LaneCoreRoundTest, ARoundOfAnotherLiveSetOrMapCannotBeServed) {
  Begin(1, 2, 1);
  Begin(2, 1, 2);
  lane_.BeginRound(JobId(7), Round(1), 1, 1);
  const std::vector<LaneEvent> events = lane_.TakeEvents();
  ASSERT_EQ(events.size(), 3u);
  for (const LaneEvent& event : events) {
    EXPECT_TRUE(std::holds_alternative<LaneRoundFailed>(event));
  }
}

TEST_F(LaneCoreRoundTest, ABlankShardKeepsTheRoundWaiting) {
  lane_.UpdateMap(JobId(1), MapOf(2, {0, 1, 2, 3}, kEpoch + 1));
  Begin(1, 1, 2);
  Send(lane_, MarkerMessage(11, 1, 0));
  Send(lane_, MarkerMessage(12, 1, 0));
  EXPECT_TRUE(lane_.TakeEvents().empty());
  TestMessage init(wire::Kind::Init, 0, 11);
  for (std::uint32_t shard = 0; shard < 4; ++shard) {
    init.Segment(shard, kEpoch + 1, ConstantShard(layout_, ShardId(shard), 0));
  }
  Send(lane_, init);
  EXPECT_EQ(lane_.TakeEvents().size(), 1u);
}

TEST_F(LaneCoreRoundTest, DrainingWorkersSendNoMarkers) {
  lane_.UpdateLive(JobId(1), LiveOf(2, {MakeMember(0, 11), MakeMember(1, 12, 0, true)}));
  Begin(1, 2, 1);
  EXPECT_EQ(Send(lane_, MarkerMessage(11, 1, 1)).size(), 1u);
  EXPECT_EQ(lane_.TakeEvents().size(), 1u);
}

// Workers do not speak to it, so no marker comes either.
TEST_F(LaneCoreRoundTest, ALaneWithoutShardsOfTheJobTakesPartWithNothing) {
  lane_.UpdateMap(JobId(1), MapOf(2, {}));
  Begin(1, 1, 2);
  const std::vector<LaneEvent> events = lane_.TakeEvents();
  ASSERT_EQ(events.size(), 1u);
  EXPECT_TRUE(std::get<LaneFrozen>(events[0]).shards.empty());
}

}  // namespace
}  // namespace ps::server::testing
