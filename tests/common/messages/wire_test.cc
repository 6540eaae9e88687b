#include "common/messages/wire.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <sstream>

#include "common/codec/block_codec.h"

namespace ps::wire {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

using Bytes = std::vector<std::byte>;

// A push of one segment of 10 bytes.
LaneHeader PushHeader() {
  return LaneHeader(kMagic, kProtocolVersion, static_cast<std::uint8_t>(Kind::Push), kCoversLane, 7,
                    1, 3, 42, 99, 2, 0, 128, 10, 0x1122334455667788);
}

Bytes PushFrame(std::size_t segments = 1) {
  const std::vector<Segment> list(segments, Segment(4, 2, 1000, 1, 0, 0, 0, 0, 10));
  return BuildHead(PushHeader(), list);
}

std::string ErrorOf(std::span<const std::byte> frame) {
  Head head;
  const Status status = ParseInto(frame, head);
  if (status.ok()) return "";
  EXPECT_EQ(status.error().code, ErrorCode::kInvalid);
  return status.error().message;
}

// The frame with a field of its header replaced.
template <typename T>
Bytes With(std::size_t offset, T value) {
  Bytes frame = PushFrame();
  std::memcpy(frame.data() + offset, &value, sizeof(value));
  return frame;
}

TEST(WireTest, HeadSurvivesTheRoundTrip) {
  Head head;
  ASSERT_TRUE(ParseInto(PushFrame(), head).ok());
  EXPECT_EQ(head.header.kind(), static_cast<std::uint8_t>(Kind::Push));
  EXPECT_EQ(head.header.flags(), kCoversLane);
  EXPECT_EQ(head.header.job(), 7u);
  EXPECT_EQ(head.header.clock(), 42u);
  EXPECT_EQ(head.header.samples(), 128u);
  ASSERT_EQ(head.segments.size(), 1u);
  EXPECT_EQ(head.segments[0].shard(), 4u);
  EXPECT_EQ(head.segments[0].version(), 1000u);
}

TEST(WireTest, FrameMayStartAtAnyAddress) {
  const Bytes frame = PushFrame(3);
  for (std::size_t shift = 0; shift < 8; ++shift) {
    Bytes shifted(shift + frame.size());
    std::memcpy(shifted.data() + shift, frame.data(), frame.size());
    Head head;
    ASSERT_TRUE(ParseInto(std::span(shifted).subspan(shift), head).ok());
    EXPECT_EQ(head.segments.size(), 3u);
    EXPECT_EQ(head.segments[2].shard(), 4u);
  }
}

TEST(WireTest, SegmentsOfAnEarlierMessageDoNotStay) {
  Head head;
  ASSERT_TRUE(ParseInto(PushFrame(5), head).ok());
  ASSERT_TRUE(ParseInto(PushFrame(0), head).ok());
  EXPECT_TRUE(head.segments.empty());
}

TEST(WireTest, EveryCutOrLongerFrameIsRefused) {
  Bytes frame = PushFrame(2);
  for (std::size_t size = 0; size < frame.size(); ++size) {
    EXPECT_NE(ErrorOf(std::span(frame).first(size)), "") << size;
  }
  EXPECT_EQ(ErrorOf(frame), "");
  frame.push_back(std::byte{0});
  EXPECT_THAT(ErrorOf(frame), HasSubstr("has 137 bytes, 136 expected for 2 segments"));
}

TEST(WireTest, WrongMagicIsRefused) {
  EXPECT_THAT(ErrorOf(With<std::uint32_t>(0, 0x32505344)), HasSubstr("wrong magic"));
  EXPECT_THAT(ErrorOf(With<std::uint8_t>(0, 0)), HasSubstr("wrong magic"));
}

TEST(WireTest, OtherProtocolVersionIsNamed) {
  EXPECT_THAT(ErrorOf(With<std::uint16_t>(4, 1)),
              HasSubstr("protocol version 1, this program speaks 2"));
}

TEST(WireTest, UnknownKindIsRefused) {
  EXPECT_THAT(ErrorOf(With<std::uint8_t>(6, 0)), HasSubstr("unknown kind 0"));
  EXPECT_THAT(ErrorOf(With<std::uint8_t>(6, 20)), HasSubstr("unknown kind 20"));
}

TEST(WireTest, TooManySegmentsAreRefusedBeforeTheyAreCounted) {
  EXPECT_EQ(ErrorOf(PushFrame(kMaxSegments)), "");
  EXPECT_THAT(ErrorOf(PushFrame(kMaxSegments + 1)), HasSubstr("4097 segments, at most 4096"));
  EXPECT_THAT(ErrorOf(With<std::uint32_t>(48, 0xffffffff)), HasSubstr("4294967295 segments"));
}

TEST(WireTest, TooLargePayloadIsRefused) {
  EXPECT_EQ(ErrorOf(With<std::uint64_t>(56, kMaxPayloadBytes)), "");
  EXPECT_THAT(ErrorOf(With<std::uint64_t>(56, kMaxPayloadBytes + 1)),
              HasSubstr("payload of 1073741825 bytes"));
}

TEST(WireTest, SegmentOutsideOfThePayloadIsRefused) {
  const Bytes payload(100);
  const auto part = [&payload](std::uint32_t offset, std::uint32_t length) {
    return SegmentPayload(Segment(4, 2, 1000, 1, 0, 0, 0, offset, length), payload);
  };
  ASSERT_TRUE(part(90, 10).ok());
  EXPECT_EQ(part(90, 10).value().data(), payload.data() + 90);
  EXPECT_TRUE(part(100, 0).ok());
  EXPECT_FALSE(part(90, 11).ok());
  EXPECT_FALSE(part(101, 0).ok());
  // The end must not wrap around 32 bits.
  const auto wrapped = part(0xffffffff, 2);
  ASSERT_FALSE(wrapped.ok());
  EXPECT_THAT(wrapped.error().message, HasSubstr("shard 4: segment [4294967295, 4294967297)"));
}

TEST(WireTest, FieldsLieWhereTheDocumentSays) {
  const Bytes frame = PushFrame();
  const auto at = [&frame](std::size_t offset) { return std::to_integer<int>(frame[offset]); };
  EXPECT_THAT(std::vector<int>({at(0), at(1), at(2), at(3)}), ElementsAre('D', 'S', 'P', '1'));
  EXPECT_EQ(at(6), 5);
  EXPECT_EQ(at(8), 7);
  EXPECT_EQ(at(24), 42);
  EXPECT_EQ(at(32), 99);
  EXPECT_EQ(at(48), 1);
  EXPECT_EQ(at(52), 128);
  EXPECT_EQ(at(64), 0x88);
  EXPECT_EQ(at(71), 0x11);
  EXPECT_EQ(at(72), 4);
  EXPECT_EQ(at(100), 10);
}

// The lines of a block ```hex NAME of docs/wire-format.md: an offset, then bytes.
Bytes DocumentedBytes(const std::string& name) {
  std::ifstream file(PS_WIRE_FORMAT_FILE);
  Bytes bytes;
  bool inside = false;
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("```", 0) == 0) {
      inside = line == "```hex " + name;
      continue;
    }
    if (!inside) continue;
    std::istringstream words(line);
    std::string word;
    words >> word;
    EXPECT_EQ(std::stoul(word, nullptr, 16), bytes.size());
    while (words >> word) bytes.push_back(static_cast<std::byte>(std::stoul(word, nullptr, 16)));
  }
  return bytes;
}

TEST(WireTest, ExampleOfTheDocumentIsThePushItDescribes) {
  Head head;
  const Status parsed = ParseInto(DocumentedBytes("frame1"), head);
  ASSERT_TRUE(parsed.ok()) << parsed.error().message;
  EXPECT_EQ(head.header.kind(), static_cast<std::uint8_t>(Kind::Push));
  EXPECT_EQ(head.header.flags(), kCoversLane);
  EXPECT_EQ(head.header.job(), 7u);
  EXPECT_EQ(head.header.worker(), 1u);
  EXPECT_EQ(head.header.incarnation(), 3u);
  EXPECT_EQ(head.header.clock(), 42u);
  EXPECT_EQ(head.header.request(), (std::uint64_t{1} << 40) + 5);
  EXPECT_EQ(head.header.map_version(), 2u);
  EXPECT_EQ(head.header.samples(), 128u);
  EXPECT_EQ(head.header.token(), 0x1122334455667788u);
  const Bytes payload = DocumentedBytes("frame2");
  EXPECT_EQ(head.header.payload_bytes(), payload.size());
  ASSERT_EQ(head.segments.size(), 1u);
  EXPECT_EQ(head.segments[0].shard(), 4u);
  EXPECT_EQ(head.segments[0].epoch(), 2u);
  EXPECT_EQ(head.segments[0].lineage(), 1u);
  EXPECT_EQ(head.segments[0].version(), 1000u);
  const auto part = SegmentPayload(head.segments[0], payload);
  ASSERT_TRUE(part.ok());
  std::vector<codec::BlockView> blocks;
  const auto elements_of = [](std::uint32_t block) { return block == 10 ? 2u : 65536u; };
  ASSERT_TRUE(codec::ParseSegment(part.value(), elements_of, blocks).ok());
  ASSERT_EQ(blocks.size(), 2u);
  std::vector<std::uint16_t> indices;
  std::vector<float> values;
  EXPECT_EQ(blocks[0].header.block(), 9u);
  codec::DecodeIndices(blocks[0], indices);
  codec::DecodeValues(blocks[0], values);
  EXPECT_THAT(indices, ElementsAre(0, 3, 300));
  EXPECT_THAT(values, ElementsAre(1.0f, -2.0f, 0.5f));
  EXPECT_EQ(blocks[1].header.block(), 10u);
  EXPECT_TRUE(blocks[1].dense());
  codec::DecodeValues(blocks[1], values);
  EXPECT_THAT(values, ElementsAre(1.0f, -0.25f));
}

}  // namespace
}  // namespace ps::wire
