#include "ps-worker/core/row_push.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>

#include "common/codec/row_codec.h"

namespace ps::worker {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr std::uint32_t kShards = 5;

LayoutView Layout() {
  control::LayoutT layout;
  auto table = std::make_unique<control::TableInfoT>();
  table->name = "parameters";
  table->elements = 10;
  table->block_elements = {10};
  layout.tables.push_back(std::move(table));
  layout.blocks = 1;
  for (const std::uint32_t width : {2u, 1u}) {
    auto rows = std::make_unique<control::RowTableInfoT>();
    rows->name = "rows" + std::to_string(width);
    rows->width = width;
    layout.row_tables.push_back(std::move(rows));
  }
  return LayoutView::Create(layout, kShards).value();
}

RowPush Make(wire::ValueCodec codec = wire::ValueCodec::Fp32) {
  return RowPush(Layout(), {codec, codec});
}

using Rows = std::map<std::uint64_t, std::vector<float>>;

// What a push writes, over all shards, by table. Every row must be on its own shard.
std::vector<Rows> Written(const RowPush& push) {
  std::vector<Rows> tables(2);
  std::vector<std::byte> space(push.MaxBytes());
  std::size_t used = 0;
  for (std::uint32_t shard = 0; shard < kShards; ++shard) {
    const auto out = std::span(space).subspan(used);
    const std::size_t bytes = push.EncodeShard(ShardId(shard), out);
    used += bytes;
    std::vector<codec::RowsView> parts;
    EXPECT_TRUE(codec::ParseRows(
                    out.first(bytes), codec::RowContent::kKeysAndValues,
                    [](std::uint32_t table) { return 2 - table; }, parts)
                    .ok());
    for (const auto& part : parts) {
      std::vector<float> values(2 - part.table);
      std::vector<std::uint64_t> keys;
      codec::DecodeKeys(part, keys);
      for (std::size_t row = 0; row < part.count; ++row) {
        EXPECT_EQ(codec::ShardOfRow(keys[row], kShards), ShardId(shard));
        codec::DecodeRow(part, row, values);
        tables[part.table][keys[row]] = values;
      }
    }
  }
  return tables;
}

// The bytes of all shards' segments, as one push of a single shard would come back.
void Return(RowPush& push, const RowPush& from) {
  for (std::uint32_t shard = 0; shard < kShards; ++shard) {
    std::vector<std::byte> bytes(from.MaxBytes());
    bytes.resize(from.EncodeShard(ShardId(shard), bytes));
    ASSERT_TRUE(push.TakeBack(bytes).ok());
  }
}

TEST(RowPushTest, EveryRowIsWrittenOnItsShard) {
  RowPush push = Make();
  TableRows first;
  for (std::uint64_t key = 0; key < 100; ++key) {
    first.keys.push_back(key * 7919);
    first.values.insert(first.values.end(), {static_cast<float>(key), 0.5f});
  }
  push.Select({first, {{3}, {-1}}});
  EXPECT_EQ(push.entries(), 201u);
  const auto tables = Written(push);
  EXPECT_EQ(tables[0].size(), 100u);
  EXPECT_THAT(tables[0].at(99 * 7919), ElementsAre(99, 0.5f));
  EXPECT_THAT(tables[1].at(3), ElementsAre(-1));
}

TEST(RowPushTest, WhatCameBackIsAddedToTheNextPushByKey) {
  RowPush push = Make();
  push.Select({{{1, 5}, {1, 2, 3, 4}}, {}});
  Return(push, push);
  EXPECT_EQ(push.ResidualSumOfSquares(), 1 + 4 + 9 + 16);
  push.Select({{{2, 5, 9}, {10, 10, 20, 20, 30, 30}}, {{7}, {7}}});
  EXPECT_EQ(push.ResidualSumOfSquares(), 0);
  const auto tables = Written(push);
  EXPECT_EQ(tables[0], (Rows{{1, {1, 2}}, {2, {10, 10}}, {5, {23, 24}}, {9, {30, 30}}}));
  EXPECT_EQ(tables[1], (Rows{{7, {7}}}));
}

TEST(RowPushTest, AFlushSelectsTheResidualAloneAndASkippedStepKeepsIt) {
  RowPush push = Make();
  push.Select({{{4}, {1, 1}}, {}});
  Return(push, push);
  Return(push, push);
  push.SelectNothing();
  EXPECT_EQ(push.MaxBytes(), 0u);
  EXPECT_EQ(push.ResidualSumOfSquares(), 8);
  push.Select({});
  EXPECT_EQ(Written(push)[0], (Rows{{4, {2, 2}}}));
  push.Select({});
  EXPECT_EQ(push.entries(), 0u);
}

TEST(RowPushTest, SumsNeverBecomeInfinite) {
  RowPush push = Make(wire::ValueCodec::Bf16);
  push.Select({{{4}, {kRowLimit, -kRowLimit}}, {}});
  for (int i = 0; i < 5; ++i) Return(push, push);
  push.Select({{{4}, {kRowLimit, -kRowLimit}}, {}});
  const auto values = Written(push)[0].at(4);
  EXPECT_NEAR(values[0], 1e38f, 1e36f);
  EXPECT_NEAR(values[1], -1e38f, 1e36f);
}

TEST(RowPushTest, WhatIsWrittenFitsItsBound) {
  for (const auto codec :
       {wire::ValueCodec::Fp32, wire::ValueCodec::Bf16, wire::ValueCodec::Int8}) {
    for (const std::size_t count : {1u, 2u, 5u, 6u, 16u, 17u, 79u, 80u, 1000u}) {
      RowPush push = Make(codec);
      TableRows rows;
      // Far apart, so that no stream of keys is much shorter than its bound.
      for (std::uint64_t key = 0; key < count; ++key) {
        rows.keys.push_back(key * (~std::uint64_t{0} / count));
        rows.values.push_back(static_cast<float>(key));
      }
      push.Select({{}, rows});
      EXPECT_EQ(Written(push)[1].size(), count);
    }
  }
}

TEST(RowPushTest, RowsOf8BitsComeBackAsTheyWereWritten) {
  RowPush push = Make(wire::ValueCodec::Int8);
  push.Select({{{1, 5}, {127, 2, -0.5f, 0.25f}}, {{3}, {0}}});
  const auto written = Written(push);
  EXPECT_THAT(written[0].at(1), ElementsAre(127, 2));
  EXPECT_NEAR(written[0].at(5)[0], -0.5f, 0.005f);
  EXPECT_THAT(written[1].at(3), ElementsAre(0));
  Return(push, push);
  push.Select({});
  // A row whose greatest value has the code 127 has the same codes again.
  EXPECT_THAT(Written(push)[0].at(1), ElementsAre(127, 2));
}

TEST(RowPushTest, SegmentsOfAnotherLayoutChangeNothing) {
  RowPush push = Make();
  push.Select({{{4}, {1, 1}}, {{5}, {1}}});
  std::vector<std::byte> bytes;
  for (std::uint32_t shard = 0; shard < kShards; ++shard) {
    std::vector<std::byte> part(push.MaxBytes());
    part.resize(push.EncodeShard(ShardId(shard), part));
    if (part.size() > bytes.size()) bytes = part;
  }
  bytes.pop_back();
  EXPECT_FALSE(push.TakeBack(bytes).ok());
  EXPECT_EQ(push.ResidualSumOfSquares(), 0);
}

}  // namespace
}  // namespace ps::worker
