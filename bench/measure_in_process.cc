#include <limits>
#include <vector>

#include "bench/clock.h"
#include "bench/measure.h"
#include "bench/plain_loops.h"
#include "bench/plan.h"
#include "common/codec/block_codec.h"
#include "ps-server/core/lane_core.h"

namespace ps::bench {
namespace {

constexpr std::uint32_t kIncarnation = 1;
constexpr float kRate = 0.001f;

// One push as a lane gets it: frame 1 is made anew for each clock, frame 2 is the plan's.
struct LaneMessage {
  wire::LaneHeader header;
  std::vector<wire::Segment> segments;
  std::span<const std::byte> payload;
};

LaneMessage MessageOf(const EncodedPush& push) {
  LaneMessage message;
  for (const worker::RingPart& part : push.parts) {
    message.segments.push_back(
        wire::Segment(part.shard, 1, 0, 1, 0, 0, 0, part.offset, part.bytes));
  }
  message.payload = push.payload;
  message.header = wire::LaneHeader(wire::kMagic, wire::kProtocolVersion,
                                    static_cast<std::uint8_t>(wire::Kind::Push), wire::kCoversLane,
                                    1, 0, kIncarnation, 0, 1, 1, 0, 1, push.payload.size(), 0);
  return message;
}

server::JobSetup SetupOf(const Plan& plan) {
  server::LaneMap map;
  map.version = 1;
  for (std::uint32_t shard = 0; shard < plan.layout.shard_count(); ++shard) {
    map.shards.push_back(server::OwnShard{ShardId(shard), Epoch(1), 1, Round()});
  }
  server::LiveMembers live;
  live.version = 1;
  live.members.push_back(
      server::Member{WorkerId(0), Incarnation(kIncarnation), Clock(), false, false});
  server::JobRules rules;
  LearningRateSpec rate;
  rate.base = kRate;
  rules.learning_rate = LearningRate(rate, 1, 1);
  rules.version_gap_max = std::numeric_limits<std::uint64_t>::max();
  return server::JobSetup{JobId(1), plan.layout, rules, map, live};
}

void InitShards(server::LaneCore& lane, const Plan& plan) {
  std::vector<std::byte> payload;
  for (std::uint32_t number = 0; number < plan.layout.shard_count(); ++number) {
    payload.clear();
    const ShardId shard(number);
    for (std::uint32_t block = plan.layout.shard_first_block(shard);
         block < plan.layout.shard_last_block(shard); ++block) {
      const std::vector<float> values(plan.layout.block(block).elements, 1.0f);
      const std::size_t at = payload.size();
      payload.resize(at + sizeof(wire::BlockHeader) + values.size() * sizeof(float));
      codec::EncodeBlock(block, static_cast<std::uint32_t>(values.size()), {}, values,
                         wire::IndexCodec::Dense, wire::ValueCodec::Fp32, payload.data() + at, {});
    }
    const wire::Segment segment(number, 1, 0, 1, 0, 0, 0, 0,
                                static_cast<std::uint32_t>(payload.size()));
    const wire::LaneHeader header(wire::kMagic, wire::kProtocolVersion,
                                  static_cast<std::uint8_t>(wire::Kind::Init), 0, 1, 0,
                                  kIncarnation, 0, 1, 1, 0, 1, payload.size(), 0);
    lane.OnMessage("w", wire::BuildHead(header, {&segment, 1}), payload);
  }
  std::vector<server::LaneReply> replies;
  lane.TakeReplies(replies);
}

// Calls `once` until the time is over and counts the calls after the warm-up.
template <typename Once>
void Repeat(const Options& options, Row& row, Once once) {
  const std::uint64_t warm = NowNs() + Nanoseconds(options.warm_up_seconds);
  while (NowNs() < warm) once();
  const std::uint64_t begin = NowNs();
  const std::uint64_t end = begin + Nanoseconds(options.seconds);
  std::uint64_t now = begin;
  while (now < end) {
    once();
    const std::uint64_t done = NowNs();
    row.latency.Add(done - now);
    now = done;
    ++row.operations;
  }
  row.seconds = static_cast<double>(now - begin) / 1e9;
}

Status MeasureApply(const Options& options, const Plan& plan, Row& row) {
  server::LaneCore lane;
  lane.SetJob(SetupOf(plan));
  InitShards(lane, plan);
  std::vector<LaneMessage> messages;
  for (const EncodedPush& push : plan.pushes) messages.push_back(MessageOf(push));
  std::uint64_t clock = 0;
  std::vector<server::LaneReply> replies;
  std::vector<std::byte> head;
  Repeat(options, row, [&] {
    LaneMessage& message = messages[++clock % messages.size()];
    message.header.mutate_clock(clock);
    head.clear();
    wire::AppendHead(message.header, message.segments, head);
    lane.OnMessage("w", head, message.payload);
    lane.TakeReplies(replies);
  });
  if (lane.counters().pushes_applied != clock * plan.layout.shard_count()) {
    return Error{ErrorCode::kInternal, "the lane has not applied every push"};
  }
  return Ok();
}

void MeasureKernel(const Options& options, const Plan& plan, Row& row) {
  std::vector<float> table(plan.parameters, 1.0f);
  struct Flat {
    std::vector<std::uint32_t> indices;
    std::vector<float> values;
  };
  std::vector<Flat> flat;
  for (const EncodedPush& push : plan.pushes) {
    Flat& one = flat.emplace_back();
    std::vector<codec::BlockView> blocks;
    const Status parsed = codec::ParseSegment(
        push.payload, [&](std::uint32_t block) { return plan.layout.block(block).elements; },
        blocks);
    PS_CHECK(parsed.ok());
    std::vector<std::uint16_t> indices;
    std::vector<float> values;
    for (const codec::BlockView& block : blocks) {
      codec::DecodeIndices(block, indices);
      codec::DecodeValues(block, values);
      const std::uint32_t first = block.header.block() * wire::kBlockElements;
      for (const std::uint16_t index : indices) one.indices.push_back(first + index);
      one.values.insert(one.values.end(), values.begin(), values.end());
    }
  }
  std::size_t turn = 0;
  Repeat(options, row, [&] {
    const Flat& one = flat[++turn % flat.size()];
    if (plan.dense) {
      AddDense(table, one.values, -kRate);
    } else {
      AddSparse(table, one.indices, one.values, -kRate);
    }
  });
}

}  // namespace

Result<Row> MeasureInProcess(const Options& options, Operation operation, std::uint64_t size) {
  const Plan plan = PS_TRY(Plan::Make(options, operation, size));
  Row row;
  row.operation = operation;
  row.carrier = Carrier::kNone;
  row.bytes = plan.value_bytes;
  row.entries = plan.entries;
  if (operation == Operation::kApply) {
    PS_TRY(MeasureApply(options, plan, row));
  } else {
    MeasureKernel(options, plan, row);
  }
  return row;
}

}  // namespace ps::bench
