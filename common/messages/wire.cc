#include "common/messages/wire.h"

#include <cstring>
#include <string>

#include "common/error_id.h"

namespace ps::wire {
namespace {

Error Bad(std::string what) {
  return Error{ErrorId::kDataMessage, "data message refused: " + std::move(what)};
}

}  // namespace

Status ParseInto(std::span<const std::byte> frame, Head& head) {
  const std::size_t bytes = PS_TRY(ParseFirst(frame, head));
  if (frame.size() == bytes) return Ok();
  return Bad("the header frame has " + std::to_string(frame.size()) + " bytes, " +
             std::to_string(bytes) + " expected for " + std::to_string(head.header.segments()) +
             " segments");
}

Result<std::size_t> ParseFirst(std::span<const std::byte> frame, Head& head) {
  if (frame.size() < sizeof(LaneHeader)) {
    return Bad("the header frame has " + std::to_string(frame.size()) + " bytes, at least " +
               std::to_string(sizeof(LaneHeader)) + " expected");
  }
  std::memcpy(&head.header, frame.data(), sizeof(LaneHeader));
  const LaneHeader& header = head.header;
  if (header.magic() != kMagic) return Bad("wrong magic, this is not our protocol");
  if (header.version() != kProtocolVersion) {
    return Bad("protocol version " + std::to_string(header.version()) + ", this program speaks " +
               std::to_string(kProtocolVersion));
  }
  if (header.kind() < static_cast<std::uint8_t>(Kind::Hello) ||
      header.kind() > static_cast<std::uint8_t>(Kind::MAX)) {
    return Bad("unknown kind " + std::to_string(header.kind()));
  }
  if (header.segments() > kMaxSegments) {
    return Bad(std::to_string(header.segments()) + " segments, at most " +
               std::to_string(kMaxSegments));
  }
  if (header.payload_bytes() > kMaxPayloadBytes) {
    return Bad("a payload of " + std::to_string(header.payload_bytes()) + " bytes, at most " +
               std::to_string(kMaxPayloadBytes));
  }
  const std::size_t expected = sizeof(LaneHeader) + header.segments() * sizeof(Segment);
  if (frame.size() < expected) {
    return Bad("the header frame has " + std::to_string(frame.size()) + " bytes, " +
               std::to_string(expected) + " expected for " + std::to_string(header.segments()) +
               " segments");
  }
  head.segments.resize(header.segments());
  if (!head.segments.empty()) {
    std::memcpy(static_cast<void*>(head.segments.data()), frame.data() + sizeof(LaneHeader),
                head.segments.size() * sizeof(Segment));
  }
  return expected;
}

Result<std::span<const std::byte>> SegmentPayload(const Segment& segment,
                                                  std::span<const std::byte> payload) {
  const std::uint64_t end = std::uint64_t{segment.offset()} + segment.length();
  if (end > payload.size()) {
    return Bad("shard " + std::to_string(segment.shard()) + ": segment [" +
               std::to_string(segment.offset()) + ", " + std::to_string(end) +
               ") exceeds the payload of " + std::to_string(payload.size()) + " bytes");
  }
  return payload.subspan(segment.offset(), segment.length());
}

std::vector<std::byte> BuildHead(LaneHeader header, std::span<const Segment> segments) {
  std::vector<std::byte> frame;
  AppendHead(header, segments, frame);
  return frame;
}

void AppendHead(LaneHeader header, std::span<const Segment> segments,
                std::vector<std::byte>& frame) {
  header.mutate_segments(static_cast<std::uint32_t>(segments.size()));
  const std::size_t at = frame.size();
  frame.resize(at + sizeof(LaneHeader) + segments.size_bytes());
  std::memcpy(frame.data() + at, &header, sizeof(LaneHeader));
  if (!segments.empty()) {
    std::memcpy(frame.data() + at + sizeof(LaneHeader), segments.data(), segments.size_bytes());
  }
}

}  // namespace ps::wire
