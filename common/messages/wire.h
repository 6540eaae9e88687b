// Constants and checked access for the structs of wire.fbs.
//
// Frames come from the network: nothing here trusts a length, a count or an
// alignment. Parse*() copies structs out of the frame (a received ZeroMQ frame
// may start at any address) and checks that the frame is exactly as long as it
// says; what a field means is checked by who uses it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "common/result.h"
#include "wire_generated.h"

namespace ps::wire {

inline constexpr std::uint32_t kMagic = 0x31505344;  // "DSP1"
inline constexpr std::uint16_t kProtocolVersion = 2;
inline constexpr std::uint32_t kMaxSegments = 4096;
inline constexpr std::uint64_t kMaxPayloadBytes = std::uint64_t{1} << 30;
inline constexpr std::uint32_t kBlockElements = 65536;
// Pushes, or answers to pushes, in one message.
inline constexpr std::uint32_t kMaxBatch = 64;

// LaneHeader.flags
// Push: every shard of the job on this lane takes part; those without a segment get an empty push.
// Only valid when map_version is the server's own, else the message is refused with StaleMap.
// Without the flag exactly the listed shards take part (a zero-length segment is an empty push).
inline constexpr std::uint8_t kCoversLane = 1;
// Push: sent again after a restore or reconnect; the staleness test is skipped.
inline constexpr std::uint8_t kReplay = 2;
// Hold: on (out of the staleness rule); absent: back in.
inline constexpr std::uint8_t kHoldOn = 4;
// Pull: values as fp32 (default bf16).
inline constexpr std::uint8_t kPullFp32 = 8;
// Pull: always answer with a snapshot of every listed shard.
inline constexpr std::uint8_t kPullSnapshot = 16;
// Replicate: no push; what is held of the clocks up to `clock` is applied.
inline constexpr std::uint8_t kReplicateRelease = 32;
// ReplicaImage: the last piece.
inline constexpr std::uint8_t kLastPiece = 64;

static_assert(sizeof(LaneHeader) == 72);
static_assert(sizeof(Segment) == 32);
static_assert(sizeof(BlockHeader) == 16);

struct Head {
  LaneHeader header;
  std::vector<Segment> segments;
};

// Checks magic, version, kind, counts and the frame's length. kInvalid otherwise; the message says
// which. `segments` of the result is reused by ParseInto to avoid an allocation per message.
Status ParseInto(std::span<const std::byte> frame, Head& head);

// The same of the head that `frame` begins with; others may follow it (a batch). Returns its bytes.
Result<std::size_t> ParseFirst(std::span<const std::byte> frame, Head& head);

// The segment's bytes inside the payload; kInvalid if they do not lie inside.
Result<std::span<const std::byte>> SegmentPayload(const Segment& segment,
                                                  std::span<const std::byte> payload);

// Serialises header (with `segments` filled in) and segments as frame 1.
std::vector<std::byte> BuildHead(LaneHeader header, std::span<const Segment> segments);
// Appends them to `frame`, as the next head of a batch if it is not empty.
void AppendHead(LaneHeader header, std::span<const Segment> segments,
                std::vector<std::byte>& frame);

}  // namespace ps::wire
