// Several pushes in one message: each is a push of its own, with its own verdict.
#include <gtest/gtest.h>

#include <vector>

#include "ps-server/core/lane_core.h"
#include "tests/ps-server/core/lane_core_fixture.h"

namespace ps::server::testing {
namespace {

class LaneCoreBatchTest : public LaneCoreFixture {
 protected:
  LaneCoreBatchTest() { InitAll(); }

  // The messages as one: their heads follow each other and share a payload.
  static std::pair<Bytes, Bytes> BatchOf(const std::vector<TestMessage>& messages) {
    Bytes payload;
    for (const TestMessage& message : messages) payload += message.payload;
    Bytes heads;
    std::size_t before = 0;
    for (TestMessage message : messages) {
      for (wire::Segment& segment : message.segments) {
        segment.mutate_offset(segment.offset() + static_cast<std::uint32_t>(before));
      }
      before += message.payload.size();
      message.header.mutate_payload_bytes(payload.size());
      heads += wire::BuildHead(message.header, message.segments);
    }
    return {heads, payload};
  }
  std::vector<LaneReply> Raw(const Bytes& heads, const Bytes& payload) {
    lane_.OnMessage("w11", heads, payload);
    std::vector<LaneReply> replies;
    lane_.TakeReplies(replies);
    return replies;
  }
  std::vector<TestReply> SendBatch(const std::vector<TestMessage>& messages) {
    const auto [heads, payload] = BatchOf(messages);
    lane_.OnMessage("w11", heads, payload);
    return Replies(lane_);
  }
};

TEST_F(LaneCoreBatchTest, EachPushOfAMessageIsAppliedOnceAndAnswered) {
  const std::vector<TestMessage> pushes = {PushMessage(11, 1, {0, 1}), PushMessage(11, 2, {}),
                                           PushMessage(11, 3, {1})};
  const auto replies = SendBatch(pushes);
  ASSERT_EQ(replies.size(), 3u);
  for (std::uint64_t i = 0; i < 3; ++i) {
    EXPECT_EQ(replies[i].kind(), wire::Kind::PushReply);
    EXPECT_EQ(replies[i].head.header.clock(), i + 1);
    EXPECT_TRUE(replies[i].head.segments.empty());
  }
  EXPECT_EQ(ValueOf(0), 1);
  EXPECT_EQ(ValueOf(1), 2);
  EXPECT_EQ(ValueOf(2), 0);
  // The same bytes again: the same verdicts, and nothing moves.
  EXPECT_EQ(SendBatch(pushes).size(), 3u);
  EXPECT_EQ(ValueOf(1), 2);
}

TEST_F(LaneCoreBatchTest, TheAnswersTravelInOneMessage) {
  const auto [heads, payload] = BatchOf({PushMessage(11, 1, {0}), PushMessage(11, 2, {0})});
  const auto replies = Raw(heads, payload);
  ASSERT_EQ(replies.size(), 1u);
  EXPECT_EQ(replies[0].head.size(), 2 * sizeof(wire::LaneHeader));
}

TEST_F(LaneCoreBatchTest, AnswersToDifferentPeersAreDifferentMessages) {
  const TestMessage first = PushMessage(11, 1, {0});
  const TestMessage second = PushMessage(12, 1, {0});
  lane_.OnMessage("w11", first.Head(), first.payload);
  lane_.OnMessage("w12", second.Head(), second.payload);
  std::vector<LaneReply> replies;
  lane_.TakeReplies(replies);
  ASSERT_EQ(replies.size(), 2u);
  EXPECT_EQ(replies[0].to, "w11");
  EXPECT_EQ(replies[1].to, "w12");
}

TEST_F(LaneCoreBatchTest, AGapInTheMiddleIsAnsweredAsAGapAndTheRestToo) {
  const auto replies =
      SendBatch({PushMessage(11, 1, {0}), PushMessage(11, 3, {0}), PushMessage(11, 2, {0})});
  ASSERT_EQ(replies.size(), 3u);
  EXPECT_TRUE(replies[0].head.segments.empty());
  EXPECT_EQ(replies[1].CodeOf(0), wire::Code::Gap);
  EXPECT_TRUE(replies[2].head.segments.empty());
  EXPECT_EQ(ValueOf(0), 2);
}

TEST_F(LaneCoreBatchTest, WhatFollowsABadHeadIsNotRead) {
  TestMessage bad = PushMessage(11, 2, {0});
  bad.header.mutate_kind(99);
  const auto replies = SendBatch({PushMessage(11, 1, {0}), bad, PushMessage(11, 2, {0})});
  ASSERT_EQ(replies.size(), 2u);
  EXPECT_EQ(replies[0].kind(), wire::Kind::PushReply);
  EXPECT_EQ(replies[1].kind(), wire::Kind::Nack);
  EXPECT_EQ(replies[1].code(), wire::Code::Malformed);
  EXPECT_EQ(ValueOf(0), 1);
}

TEST_F(LaneCoreBatchTest, ACutHeadIsRefused) {
  auto [heads, payload] = BatchOf({PushMessage(11, 1, {0}), PushMessage(11, 2, {0})});
  heads.pop_back();
  lane_.OnMessage("w11", heads, payload);
  const auto replies = Replies(lane_);
  ASSERT_EQ(replies.size(), 2u);
  EXPECT_EQ(replies[1].code(), wire::Code::Malformed);
  EXPECT_EQ(ValueOf(0), 1);
}

TEST_F(LaneCoreBatchTest, OnlyPushesMayShareAMessage) {
  const auto pulls = SendBatch({PullMessage(11, 0), PullMessage(11, 0)});
  ASSERT_EQ(pulls.size(), 1u);
  EXPECT_EQ(pulls[0].code(), wire::Code::Malformed);
  const auto mixed = SendBatch({PushMessage(11, 1, {0}), PullMessage(11, 0)});
  ASSERT_EQ(mixed.size(), 2u);
  EXPECT_EQ(mixed[0].kind(), wire::Kind::PushReply);
  EXPECT_EQ(mixed[1].code(), wire::Code::Malformed);
}

TEST_F(LaneCoreBatchTest, AMessageOfTooManyPushesEndsAtTheBound) {
  std::vector<TestMessage> pushes;
  for (std::uint64_t clock = 1; clock <= wire::kMaxBatch + 1; ++clock) {
    pushes.push_back(PushMessage(11, clock, {0}));
  }
  const auto replies = SendBatch(pushes);
  ASSERT_EQ(replies.size(), wire::kMaxBatch + 1);
  EXPECT_EQ(replies.back().code(), wire::Code::TooLarge);
  EXPECT_EQ(ValueOf(0), static_cast<float>(wire::kMaxBatch));
}

}  // namespace
}  // namespace ps::server::testing
