// Layouts, encoded blocks and messages for the tests of a server.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "common/check.h"
#include "common/codec/block_codec.h"
#include "common/codec/row_codec.h"
#include "common/layout/layout.h"
#include "common/messages/control.h"
#include "common/messages/wire.h"
#include "ps-server/core/lane_core.h"

namespace ps::server::testing {

struct TestTable {
  TableRule rule = TableRule::Sgd;
  std::vector<std::uint32_t> block_elements;
};

inline control::LayoutT MakeLayoutMessage(const std::vector<TestTable>& tables,
                                          const std::vector<std::uint32_t>& row_widths = {}) {
  control::LayoutT layout;
  for (const std::uint32_t width : row_widths) {
    auto info = std::make_unique<control::RowTableInfoT>();
    info->name = "rows" + std::to_string(layout.row_tables.size());
    info->width = width;
    layout.row_tables.push_back(std::move(info));
  }
  for (const TestTable& table : tables) {
    auto info = std::make_unique<control::TableInfoT>();
    info->name = "table" + std::to_string(layout.tables.size());
    info->rule = table.rule;
    info->first_block = layout.blocks;
    info->block_elements = table.block_elements;
    info->elements =
        std::accumulate(table.block_elements.begin(), table.block_elements.end(), std::uint64_t{0});
    layout.blocks += static_cast<std::uint32_t>(table.block_elements.size());
    layout.parameters += info->elements;
    layout.tables.push_back(std::move(info));
  }
  return layout;
}

inline LayoutView MakeLayout(const std::vector<TestTable>& tables, std::uint32_t shards,
                             const std::vector<std::uint32_t>& row_widths = {}) {
  return LayoutView::Create(MakeLayoutMessage(tables, row_widths), shards).value();
}

using Bytes = std::vector<std::byte>;

inline Bytes& operator+=(Bytes& left, const Bytes& right) {
  left.insert(left.end(), right.begin(), right.end());
  return left;
}

inline Bytes SparseBlock(std::uint32_t block, std::uint32_t elements,
                         const std::vector<std::uint16_t>& indices,
                         const std::vector<float>& values,
                         wire::IndexCodec index = wire::IndexCodec::Gap8,
                         wire::ValueCodec value = wire::ValueCodec::Fp32) {
  Bytes out(
      codec::MaxEncodedBytes(elements, static_cast<std::uint32_t>(indices.size()), index, value));
  out.resize(codec::EncodeBlock(block, elements, indices, values, index, value, out.data(), {}));
  return out;
}

inline Bytes DenseBlock(std::uint32_t block, const std::vector<float>& values,
                        wire::ValueCodec value = wire::ValueCodec::Fp32) {
  const auto elements = static_cast<std::uint32_t>(values.size());
  Bytes out(codec::MaxEncodedBytes(elements, elements, wire::IndexCodec::Dense, value));
  out.resize(codec::EncodeBlock(block, elements, {}, values, wire::IndexCodec::Dense, value,
                                out.data(), {}));
  return out;
}

// Rows in a push.
inline Bytes PushedRows(std::uint32_t table, const std::vector<std::uint64_t>& keys,
                        const std::vector<float>& values,
                        wire::ValueCodec value = wire::ValueCodec::Fp32) {
  const auto width = static_cast<std::uint32_t>(values.size() / keys.size());
  constexpr auto kContent = codec::RowContent::kKeysAndValues;
  Bytes out(codec::MaxRowBytes(keys.size(), width, kContent, value));
  out.resize(codec::EncodeRows(table, keys, values, width, kContent, value, out.data()));
  return out;
}

// Rows that a pull asks for.
inline Bytes AskedRows(std::uint32_t table, const std::vector<std::uint64_t>& keys) {
  constexpr auto kContent = codec::RowContent::kKeys;
  Bytes out(codec::MaxRowBytes(keys.size(), 1, kContent, wire::ValueCodec::Absent));
  out.resize(codec::EncodeRows(table, keys, {}, 1, kContent, wire::ValueCodec::Absent, out.data()));
  return out;
}

// The first `count` keys from `first` on whose rows are on the shard.
inline std::vector<std::uint64_t> KeysOfShard(const LayoutView& layout, std::uint32_t shard,
                                              std::size_t count, std::uint64_t first = 0) {
  std::vector<std::uint64_t> keys;
  for (std::uint64_t key = first; keys.size() < count; ++key) {
    if (codec::ShardOfRow(key, layout.shard_count()) == ShardId(shard)) keys.push_back(key);
  }
  return keys;
}

// The rows of a pull's segment, table by table, each row after the other.
inline std::vector<std::vector<float>> PulledRows(const LayoutView& layout,
                                                  std::span<const std::byte> payload) {
  std::vector<codec::RowsView> parts;
  const auto split = codec::SplitSegment(payload);
  PS_CHECK(split.ok());
  const Status status = codec::ParseRows(
      split.value().rows, codec::RowContent::kValues,
      [&](std::uint32_t table) { return layout.row_width(table); }, parts);
  PS_CHECK(status.ok());
  std::vector<std::vector<float>> rows(layout.row_table_count());
  for (const codec::RowsView& part : parts) {
    const std::uint32_t width = layout.row_width(part.table);
    rows[part.table].resize(std::size_t{part.count} * width);
    for (std::size_t row = 0; row < part.count; ++row) {
      codec::DecodeRow(part, row, std::span(rows[part.table]).subspan(row * width, width));
    }
  }
  return rows;
}

// All blocks of a shard, each element with the same value.
inline Bytes ConstantShard(const LayoutView& layout, ShardId shard, float value) {
  Bytes out;
  for (std::uint32_t block = layout.shard_first_block(shard);
       block < layout.shard_last_block(shard); ++block) {
    out += DenseBlock(block, std::vector<float>(layout.block(block).elements, value));
  }
  return out;
}

inline std::vector<codec::BlockView> Parse(const LayoutView& layout, const Bytes& bytes) {
  std::vector<codec::BlockView> blocks;
  const Status status = codec::ParseSegment(
      bytes, [&](std::uint32_t block) { return layout.block(block).elements; }, blocks);
  PS_CHECK(status.ok());
  return blocks;
}

// Writes the blocks of a pull's segment over `values`, which are those of the whole job.
inline void ApplyPulled(const LayoutView& layout, std::span<const std::byte> payload,
                        std::vector<std::vector<float>>& values) {
  std::vector<codec::BlockView> blocks;
  const Status status = codec::ParseSegment(
      payload, [&](std::uint32_t block) { return layout.block(block).elements; }, blocks);
  PS_CHECK(status.ok());
  std::vector<std::uint16_t> indices;
  std::vector<float> decoded;
  for (const codec::BlockView& block : blocks) {
    codec::DecodeIndices(block, indices);
    codec::DecodeValues(block, decoded);
    std::vector<float>& to = values[block.header.block()];
    to.resize(layout.block(block.header.block()).elements);
    for (std::size_t i = 0; i < indices.size(); ++i) to[indices[i]] = decoded[i];
  }
}

// Rules with a constant rate, so that a push of `reference_batch` samples changes w by rate * v.
inline JobRules ConstantRules(double rate, double reference_batch = 1) {
  LearningRateSpec spec;
  spec.base = rate;
  JobRules rules;
  rules.learning_rate = LearningRate(spec, 1, 1000);
  rules.reference_batch = reference_batch;
  return rules;
}

// Rules of a table of rows: zeros at first, a constant rate.
inline RowRules MakeRowRules(std::uint32_t table, std::uint32_t width, double rate,
                             OptimizerType type = OptimizerType::kSgd) {
  LearningRateSpec spec;
  spec.base = rate;
  OptimizerRules optimizer;
  optimizer.type = type;
  optimizer.learning_rate = rate;
  RowRules rules;
  rules.name = "rows" + std::to_string(table);
  rules.table = table;
  rules.width = width;
  rules.optimizer = Optimizer(optimizer);
  rules.learning_rate = LearningRate(spec, 1, 1000);
  rules.when_full = RowsFull::kRefuse;
  return rules;
}

inline Member MakeMember(std::uint32_t worker, std::uint32_t incarnation,
                         std::uint64_t first_clock = 0, bool draining = false) {
  return Member{WorkerId(worker), Incarnation(incarnation), Clock(first_clock), draining, false};
}

// A message to a lane, built piece by piece.
struct TestMessage {
  wire::LaneHeader header;
  std::vector<wire::Segment> segments;
  Bytes payload;

  TestMessage(wire::Kind kind, std::uint32_t worker, std::uint32_t incarnation,
              std::uint64_t job = 1)
      : header(wire::kMagic, wire::kProtocolVersion, static_cast<std::uint8_t>(kind), 0, job,
               worker, incarnation, 0, 1, 1, 0, 1, 0, 0) {}

  TestMessage& Clock(std::uint64_t clock) {
    header.mutate_clock(clock);
    return *this;
  }
  TestMessage& Request(std::uint64_t request) {
    header.mutate_request(request);
    return *this;
  }
  TestMessage& Flags(std::uint8_t flags) {
    header.mutate_flags(flags);
    return *this;
  }
  TestMessage& MapVersion(std::uint64_t version) {
    header.mutate_map_version(version);
    return *this;
  }
  TestMessage& Token(std::uint64_t token) {
    header.mutate_token(token);
    return *this;
  }
  TestMessage& Samples(std::uint32_t samples) {
    header.mutate_samples(samples);
    return *this;
  }
  TestMessage& Segment(std::uint32_t shard, std::uint32_t epoch, const Bytes& bytes = {},
                       std::uint64_t version = 0, std::uint32_t lineage = 1) {
    segments.push_back(wire::Segment(shard, epoch, version, lineage, 0, 0, 0,
                                     static_cast<std::uint32_t>(payload.size()),
                                     static_cast<std::uint32_t>(bytes.size())));
    payload += bytes;
    return *this;
  }
  Bytes Head() const {
    wire::LaneHeader complete = header;
    complete.mutate_payload_bytes(payload.size());
    return wire::BuildHead(complete, segments);
  }
};

struct TestReply {
  std::string to;
  wire::Head head;
  ByteBuffer payload;

  wire::Kind kind() const { return static_cast<wire::Kind>(head.header.kind()); }
  wire::Code code() const { return static_cast<wire::Code>(head.header.samples()); }
  const wire::Segment* Find(std::uint32_t shard) const {
    for (const wire::Segment& segment : head.segments) {
      if (segment.shard() == shard) return &segment;
    }
    return nullptr;
  }
  wire::Code CodeOf(std::uint32_t shard) const {
    const wire::Segment* segment = Find(shard);
    PS_CHECK(segment != nullptr, shard);
    return static_cast<wire::Code>(segment->code());
  }
  wire::PullContent ContentOf(std::uint32_t shard) const {
    const wire::Segment* segment = Find(shard);
    PS_CHECK(segment != nullptr, shard);
    return static_cast<wire::PullContent>(segment->code());
  }
  std::span<const std::byte> PayloadOf(std::uint32_t shard) const {
    const wire::Segment* segment = Find(shard);
    PS_CHECK(segment != nullptr, shard);
    return std::span<const std::byte>(payload).subspan(segment->offset(), segment->length());
  }
};

inline std::vector<TestReply> Replies(LaneCore& lane) {
  std::vector<TestReply> replies;
  std::vector<LaneReply> taken;
  lane.TakeReplies(taken);
  for (const LaneReply& reply : taken) {
    for (std::span<const std::byte> head(reply.head); !head.empty();) {
      TestReply parsed;
      parsed.to = reply.to;
      head = head.subspan(wire::ParseFirst(head, parsed.head).value());
      PS_CHECK(parsed.head.header.payload_bytes() == reply.payload.size());
      parsed.payload.assign(reply.payload.data(), reply.payload.data() + reply.payload.size());
      replies.push_back(std::move(parsed));
    }
  }
  return replies;
}

// Sends one message from a peer named after the worker and returns what came out.
inline std::vector<TestReply> Send(LaneCore& lane, const TestMessage& message) {
  lane.OnMessage("w" + std::to_string(message.header.incarnation()), message.Head(),
                 message.payload);
  return Replies(lane);
}

// The one reply that is expected.
inline TestReply SendOne(LaneCore& lane, const TestMessage& message) {
  std::vector<TestReply> replies = Send(lane, message);
  PS_CHECK(replies.size() == 1, replies.size());
  return std::move(replies.front());
}

}  // namespace ps::server::testing
