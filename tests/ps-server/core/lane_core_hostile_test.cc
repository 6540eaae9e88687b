// Messages that no honest worker sends: nothing may change, crash or be read beyond its end.
#include <random>

#include "tests/ps-server/core/lane_core_fixture.h"

namespace ps::server::testing {
namespace {

class LaneCoreHostileTest : public LaneCoreFixture {
 protected:
  LaneCoreHostileTest() { InitAll(); }

  void ExpectUntouched() {
    for (std::uint32_t shard = 0; shard < 4; ++shard) {
      const Shard& own = *lane_.FindShard(JobId(1), ShardId(shard));
      EXPECT_EQ(own.version(), 0u);
      for (const float value : own.values()) ASSERT_EQ(value, 0);
    }
  }
  void ExpectRefused(const TestMessage& message, wire::Code code = wire::Code::Malformed) {
    const TestReply reply = SendOne(lane_, message);
    EXPECT_EQ(reply.kind(), wire::Kind::Nack);
    EXPECT_EQ(reply.code(), code);
    ExpectUntouched();
  }
};

TEST_F(LaneCoreHostileTest, OneBadSegmentRefusesTheWholeMessage) {
  Bytes bad = SparseBlock(1, kElements, {7}, {-1});
  bad.pop_back();
  TestMessage message = PushMessage(11, 1, {0});
  message.Segment(1, kEpoch, bad);
  ExpectRefused(message);
  EXPECT_EQ(Refused(wire::Code::Malformed), 1u);
}

TEST_F(LaneCoreHostileTest, ABlockOfAnotherShardIsRefused) {
  TestMessage message = PushMessage(11, 1, {});
  message.Segment(0, kEpoch, SparseBlock(1, kElements, {7}, {-1}));
  ExpectRefused(message);
}

TEST_F(LaneCoreHostileTest, AShardThatTheJobDoesNotHaveIsRefused) {
  TestMessage message = PushMessage(11, 1, {});
  message.Segment(4, kEpoch, {});
  ExpectRefused(message);
  message = PushMessage(11, 1, {});
  message.Segment(0xffffffff, kEpoch, {});
  ExpectRefused(message);
  ExpectRefused(PullMessage(11, 0, {4}));
}

TEST_F(LaneCoreHostileTest, AShardListedTwiceIsRefused) {
  ExpectRefused(PushMessage(11, 1, {0, 0}));
  ExpectRefused(PullMessage(11, 0, {1, 1}));
}

TEST_F(LaneCoreHostileTest, ASegmentOutsideThePayloadIsRefused) {
  TestMessage message = PushMessage(11, 1, {0});
  message.segments[0].mutate_offset(0xfffffff0);
  ExpectRefused(message);
  message = PushMessage(11, 1, {0});
  message.segments[0].mutate_length(0xffffffff);
  ExpectRefused(message);
}

TEST_F(LaneCoreHostileTest, APayloadOfAnotherLengthThanAnnouncedIsRefused) {
  const TestMessage message = PushMessage(11, 1, {0});
  const Bytes head = message.Head();
  lane_.OnMessage("w", head, std::span<const std::byte>(message.payload).first(3));
  const std::vector<TestReply> replies = Replies(lane_);
  ASSERT_EQ(replies.size(), 1u);
  EXPECT_EQ(replies[0].code(), wire::Code::Malformed);
  ExpectUntouched();
}

TEST_F(LaneCoreHostileTest, UnknownFlagsAreRefused) {
  ExpectRefused(PushMessage(11, 1, {0}).Flags(wire::kCoversLane | 128));
  ExpectRefused(PushMessage(11, 1, {0}).Flags(wire::kHoldOn));
  ExpectRefused(PullMessage(11, 0).Flags(wire::kReplay));
}

TEST_F(LaneCoreHostileTest, AnswersAreNotRequestsAndGetNoAnswer) {
  for (const wire::Kind kind : {wire::Kind::HelloReply, wire::Kind::PushReply, wire::Kind::Nack}) {
    EXPECT_TRUE(Send(lane_, TestMessage(kind, 0, 11)).empty());
  }
  EXPECT_EQ(Refused(wire::Code::Malformed), 3u);
}

TEST_F(LaneCoreHostileTest, AnotherProtocolVersionIsNamed) {
  TestMessage message(wire::Kind::Hello, 0, 11);
  message.header.mutate_version(wire::kProtocolVersion + 1);
  ExpectRefused(message, wire::Code::BadVersion);
}

TEST_F(LaneCoreHostileTest, WithoutTheTokenOfItsJobNobodyGetsAnything) {
  constexpr std::uint64_t kToken = 0x1234567890;
  lane_.SetJob(JobSetup{JobId(2), layout_, ConstantRules(1.0), MapOf(1, {0, 1}),
                        LiveOf(1, {MakeMember(0, 11)}), kToken});
  for (const wire::Kind kind :
       {wire::Kind::Hello, wire::Kind::Init, wire::Kind::Push, wire::Kind::Pull, wire::Kind::Marker,
        wire::Kind::Hold, wire::Kind::Replicate, wire::Kind::ReplicaHello,
        wire::Kind::ReplicaImage}) {
    for (const std::uint64_t token : {std::uint64_t{0}, kToken + 1}) {
      TestMessage message(kind, 0, 11, 2);
      message.Segment(0, kEpoch, ConstantShard(layout_, ShardId(0), 1));
      const TestReply reply = SendOne(lane_, message.Token(token));
      EXPECT_EQ(reply.kind(), wire::Kind::Nack);
      EXPECT_EQ(reply.code(), wire::Code::Denied);
      EXPECT_TRUE(reply.head.segments.empty());
      EXPECT_EQ(reply.head.header.map_version(), 0u);
      EXPECT_EQ(lane_.TakeDenied(), JobId(2));
      EXPECT_EQ(lane_.TakeDenied(), std::nullopt);
    }
  }
  EXPECT_EQ(Refused(wire::Code::Denied), 18u);
  EXPECT_EQ(lane_.FindShard(JobId(2), ShardId(0))->state(), wire::Code::Blank);
  // The token of a job is good for that job alone.
  ExpectRefused(TestMessage(wire::Kind::Hello, 0, 11).Token(kToken), wire::Code::Denied);
  const TestReply hello = SendOne(lane_, TestMessage(wire::Kind::Hello, 0, 11, 2).Token(kToken));
  EXPECT_EQ(hello.kind(), wire::Kind::HelloReply);
  EXPECT_EQ(hello.head.header.token(), 0u);  // answers tell it to nobody
}

TEST_F(LaneCoreHostileTest, BytesThatAreNotOursAreCountedAndNotAnswered) {
  const Bytes junk(200, std::byte{0x5a});
  lane_.OnMessage("w", junk, {});
  lane_.OnMessage("w", {}, junk);
  EXPECT_TRUE(Replies(lane_).empty());
  EXPECT_EQ(Refused(wire::Code::Malformed), 2u);
}

TEST_F(LaneCoreHostileTest, TooManySegmentsOrTooManyBytesAreTooLarge) {
  TestMessage message(wire::Kind::Push, 0, 11);
  Bytes head = message.Head();
  wire::LaneHeader header = message.header;
  header.mutate_segments(wire::kMaxSegments + 1);
  std::memcpy(head.data(), &header, sizeof(header));
  lane_.OnMessage("w", head, {});
  std::vector<TestReply> replies = Replies(lane_);
  ASSERT_EQ(replies.size(), 1u);
  EXPECT_EQ(replies[0].code(), wire::Code::TooLarge);

  header = message.header;
  header.mutate_payload_bytes(wire::kMaxPayloadBytes + 1);
  std::memcpy(head.data(), &header, sizeof(header));
  lane_.OnMessage("w", head, {});
  replies = Replies(lane_);
  ASSERT_EQ(replies.size(), 1u);
  EXPECT_EQ(replies[0].code(), wire::Code::TooLarge);
}

TEST_F(LaneCoreHostileTest, MarkersAndHoldsCarryNothing) {
  TestMessage marker = MarkerMessage(11, 1, 0);
  marker.Segment(0, kEpoch);
  ExpectRefused(marker);
  TestMessage hold(wire::Kind::Hold, 0, 11);
  hold.payload = Bytes(4);
  ExpectRefused(hold);
  TestMessage pull = PullMessage(11, 0, {});
  pull.payload = Bytes(4);
  ExpectRefused(pull);
}

TEST_F(LaneCoreHostileTest, NoMutatedMessageCrashesOrChangesMoreThanItsOwnClock) {
  std::mt19937 random(99);
  for (int round = 0; round < 20'000; ++round) {
    TestMessage message = round % 3 == 0   ? PullMessage(11, random() % 3)
                          : round % 3 == 1 ? PushMessage(11, 1 + random() % 3, {0, 1, 2, 3}, 0)
                                           : MarkerMessage(11, random() % 3, 0);
    Bytes head = message.Head();
    Bytes payload = message.payload;
    for (std::size_t flips = random() % 4; flips > 0; --flips) {
      head[random() % head.size()] ^= std::byte(1u << random() % 8);
      if (!payload.empty()) payload[random() % payload.size()] ^= std::byte(1u << random() % 8);
    }
    if (random() % 8 == 0) head.resize(random() % (head.size() + 1));
    if (random() % 8 == 0) payload.resize(random() % (payload.size() + 1));
    // Exactly as long as it is, so that a sanitizer sees the first byte read beyond the end.
    const std::vector<std::byte> exact_head(head.begin(), head.end());
    const std::vector<std::byte> exact_payload(payload.begin(), payload.end());
    lane_.OnMessage("w", exact_head, exact_payload);
    for (const TestReply& reply : Replies(lane_)) {
      ASSERT_NE(reply.kind(), wire::Kind::Invalid);
    }
    lane_.TakeEvents();
    ASSERT_LE(lane_.parked_pulls(), 2u);
  }
  for (std::uint32_t shard = 0; shard < 4; ++shard) {
    for (const float value : lane_.FindShard(JobId(1), ShardId(shard))->values()) {
      ASSERT_TRUE(value == value);
    }
  }
}

}  // namespace
}  // namespace ps::server::testing
