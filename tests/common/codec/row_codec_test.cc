#include "common/codec/row_codec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "common/codec/block_codec.h"

namespace ps::codec {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using wire::IndexCodec;
using wire::ValueCodec;

using Bytes = std::vector<std::byte>;
using Keys = std::vector<std::uint64_t>;
using Values = std::vector<float>;

constexpr std::uint32_t kWidth = 2;

Bytes Encode(std::uint32_t table, const Keys& keys, const Values& values, RowContent content,
             ValueCodec codec) {
  const std::size_t count = content == RowContent::kValues ? values.size() / kWidth : keys.size();
  Bytes bytes(RowBytes(count, kWidth, content, codec));
  EncodeRows(table, keys, values, kWidth, content, codec, bytes.data());
  return bytes;
}

Bytes Push(std::uint32_t table, const Keys& keys, const Values& values,
           ValueCodec codec = ValueCodec::Fp32) {
  return Encode(table, keys, values, RowContent::kKeysAndValues, codec);
}

Bytes operator+(Bytes left, const Bytes& right) {
  left.insert(left.end(), right.begin(), right.end());
  return left;
}

// Tables 0 to 9 exist, and the last possible one.
std::uint32_t WidthOf(std::uint32_t table) {
  return table < 10 || table == kFirstRowTable - 1 ? kWidth : 0;
}

// The parts borrow from `bytes`.
std::vector<RowsView> Parse(const Bytes& bytes, RowContent content) {
  std::vector<RowsView> parts;
  const Status status = ParseRows(bytes, content, WidthOf, parts);
  EXPECT_TRUE(status.ok()) << (status.ok() ? "" : status.error().message);
  return parts;
}

std::vector<RowsView> Parse(Bytes&&, RowContent) = delete;

std::string ParseError(const Bytes& bytes, RowContent content = RowContent::kKeysAndValues) {
  std::vector<RowsView> parts;
  const Status status = ParseRows(bytes, content, WidthOf, parts);
  if (status.ok()) return "";
  EXPECT_EQ(status.error().code, ErrorCode::kInvalid);
  return status.error().message;
}

Values Row(const RowsView& part, std::size_t row) {
  Values values(kWidth);
  DecodeRow(part, row, values);
  return values;
}

TEST(RowCodecTest, APushHasKeysAndValues) {
  for (const ValueCodec codec : {ValueCodec::Fp32, ValueCodec::Bf16}) {
    const Bytes bytes = Push(3, {5, 1ull << 60}, {1, -2, 0.5F, 4}, codec);
    const auto parts = Parse(bytes, RowContent::kKeysAndValues);
    ASSERT_EQ(parts.size(), 1u);
    EXPECT_EQ(parts[0].table, 3u);
    ASSERT_EQ(parts[0].count, 2u);
    EXPECT_EQ(parts[0].key(0), 5u);
    EXPECT_EQ(parts[0].key(1), 1ull << 60);
    EXPECT_THAT(Row(parts[0], 0), ElementsAre(1, -2));
    EXPECT_THAT(Row(parts[0], 1), ElementsAre(0.5F, 4));
  }
}

TEST(RowCodecTest, APullHasKeysAndItsReplyValues) {
  const Bytes pull = Encode(3, {5, 9, 11}, {}, RowContent::kKeys, ValueCodec::Absent);
  const auto asked = Parse(pull, RowContent::kKeys);
  ASSERT_EQ(asked.size(), 1u);
  EXPECT_EQ(asked[0].key(2), 11u);
  EXPECT_TRUE(asked[0].value_bytes.empty());
  const Bytes reply = Encode(3, {}, {1, 2, 3, 4, 5, 6}, RowContent::kValues, ValueCodec::Bf16);
  const auto given = Parse(reply, RowContent::kValues);
  ASSERT_EQ(given.size(), 1u);
  ASSERT_EQ(given[0].count, 3u);
  EXPECT_THAT(Row(given[0], 2), ElementsAre(5, 6));
}

// The example of docs/wire-format.md.
TEST(RowCodecTest, ThePartOfATableLooksAsDocumented) {
  const std::vector<unsigned> expected = {
      0x03, 0x00, 0x00, 0x80, 0x02, 0x00, 0x00, 0x00, 0x18, 0x00, 0x00, 0x00, 0x03, 0x01,
      0x00, 0x00, 0x05, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00,
      0x00, 0x00, 0x00, 0x00, 0x80, 0x3f, 0x00, 0xc0, 0x00, 0x3f, 0x80, 0x40};
  const Bytes bytes = Push(3, {5, 256}, {1, -2, 0.5F, 4}, ValueCodec::Bf16);
  std::vector<unsigned> found;
  for (const std::byte byte : bytes) found.push_back(std::to_integer<unsigned>(byte));
  EXPECT_EQ(found, expected);
}

TEST(RowCodecTest, RowsStandBehindTheBlocksOfASegment) {
  const Values values(4, 1.5F);
  Bytes block(MaxEncodedBytes(4, 4, IndexCodec::Dense, ValueCodec::Fp32));
  EncodeBlock(7, 4, {}, values, IndexCodec::Dense, ValueCodec::Fp32, block.data(), {});
  const Bytes rows = Push(0, {1}, {1, 2}) + Push(4, {}, {}) + Push(9, {1, 2}, {1, 2, 3, 4});
  const Bytes segment = block + rows;
  const auto split = SplitSegment(segment);
  ASSERT_TRUE(split.ok());
  EXPECT_EQ(split->blocks.size(), block.size());
  EXPECT_EQ(split->rows.size(), rows.size());
  EXPECT_EQ(Parse(rows, RowContent::kKeysAndValues).size(), 3u);
  EXPECT_EQ(SplitSegment(block)->rows.size(), 0u);
  EXPECT_EQ(SplitSegment(rows)->blocks.size(), 0u);
  EXPECT_EQ(SplitSegment({})->blocks.size(), 0u);
  // The blocks' own parser does not take rows for blocks.
  std::vector<BlockView> blocks;
  EXPECT_FALSE(ParseSegment(
                   segment, [](std::uint32_t) { return 4; }, blocks)
                   .ok());
}

TEST(RowCodecTest, RefusesEveryCutOfASegment) {
  const Bytes rows = Push(1, {3, 4}, {1, 2, 3, 4}) + Push(2, {8}, {5, 6});
  const std::size_t first = RowBytes(2, kWidth, RowContent::kKeysAndValues, ValueCodec::Fp32);
  for (std::size_t size = 1; size < rows.size(); ++size) {
    if (size == first) continue;
    EXPECT_NE(ParseError(Bytes(rows.begin(), rows.begin() + static_cast<std::ptrdiff_t>(size))), "")
        << size;
  }
  EXPECT_FALSE(SplitSegment(std::span(rows).first(15)).ok());
}

TEST(RowCodecTest, RefusesKeysThatRepeatOrFall) {
  EXPECT_THAT(ParseError(Push(1, {3, 3}, {1, 2, 3, 4})), HasSubstr("key 3 after 3"));
  EXPECT_THAT(ParseError(Push(1, {3, 2}, {1, 2, 3, 4})), HasSubstr("key 2 after 3"));
  EXPECT_EQ(ParseError(Push(1, {0, std::numeric_limits<std::uint64_t>::max()}, {1, 2, 3, 4})), "");
}

TEST(RowCodecTest, RefusesTablesThatRepeatFallOrAreNotThere) {
  const Bytes one = Push(1, {3}, {1, 2});
  const Bytes last = Push(kFirstRowTable - 1, {3}, {1, 2});
  EXPECT_THAT(ParseError(one + one), HasSubstr("not in order"));
  EXPECT_THAT(ParseError(Push(2, {3}, {1, 2}) + one), HasSubstr("not in order"));
  EXPECT_THAT(ParseError(Push(10, {3}, {1, 2})), HasSubstr("no such table"));
  EXPECT_EQ(ParseError(one + last), "");
  EXPECT_NE(ParseError(last + one), "");
}

TEST(RowCodecTest, RefusesCodecsOfOtherMessages) {
  const Bytes push = Push(1, {3}, {1, 2});
  const Bytes pull = Encode(1, {3}, {}, RowContent::kKeys, ValueCodec::Absent);
  const Bytes reply = Encode(1, {}, {1, 2}, RowContent::kValues, ValueCodec::Fp32);
  EXPECT_THAT(ParseError(push, RowContent::kKeys), HasSubstr("codecs"));
  EXPECT_THAT(ParseError(push, RowContent::kValues), HasSubstr("codecs"));
  EXPECT_THAT(ParseError(pull, RowContent::kKeysAndValues), HasSubstr("codecs"));
  EXPECT_THAT(ParseError(pull, RowContent::kValues), HasSubstr("codecs"));
  EXPECT_THAT(ParseError(reply, RowContent::kKeysAndValues), HasSubstr("codecs"));
  for (int value = 2; value < 256; ++value) {
    Bytes damaged = push;
    damaged[13] = static_cast<std::byte>(value);
    EXPECT_NE(ParseError(damaged), "") << value;
  }
}

TEST(RowCodecTest, RefusesLengthsThatDoNotFit) {
  Bytes more_rows = Push(1, {3, 4}, {1, 2, 3, 4});
  more_rows[4] = std::byte{3};
  EXPECT_THAT(ParseError(more_rows), HasSubstr("bytes for 3 rows"));
  // Counts whose product with the width would wrap in 32 bits.
  for (const std::uint32_t count : {0x1000'0000u, 0x8000'0000u, 0xffff'ffffu}) {
    Bytes damaged = more_rows;
    std::memcpy(damaged.data() + 4, &count, sizeof(count));
    EXPECT_THAT(ParseError(damaged), HasSubstr("rows of 2 values"));
  }
  Bytes no_rows = Push(1, {3}, {1, 2});
  no_rows[4] = std::byte{0};
  EXPECT_THAT(ParseError(no_rows), HasSubstr("for no rows"));
  Bytes reserved = Push(1, {3}, {1, 2});
  reserved[15] = std::byte{1};
  EXPECT_THAT(ParseError(reserved), HasSubstr("reserved"));
}

TEST(RowCodecTest, RowsAreSpreadEvenlyOverShards) {
  for (const std::uint32_t shards : {1u, 3u, 16u, 1000u, 4096u}) {
    std::vector<int> rows(shards);
    const int keys = static_cast<int>(shards) * 400;
    for (int key = 0; key < keys; ++key) {
      const ShardId shard = ShardOfRow(static_cast<std::uint64_t>(key), shards);
      ASSERT_LT(shard.value(), shards);
      ++rows[shard.value()];
    }
    for (const int count : rows) {
      EXPECT_GT(count, 400 - 6 * 20);  // six standard deviations
      EXPECT_LT(count, 400 + 6 * 20);
    }
  }
}

// Workers and servers of different versions must agree.
TEST(RowCodecTest, TheShardOfAKeyNeverChanges) {
  // SplitMix64 from seed 0 begins with e220a8397b1dcdaf.
  EXPECT_EQ(ShardOfRow(0, 256), ShardId(0xe2));
  EXPECT_EQ(ShardOfRow(0, 10), ShardId(8));
}

}  // namespace
}  // namespace ps::codec
