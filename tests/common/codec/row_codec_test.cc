#include "common/codec/row_codec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <random>
#include <sstream>
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
  Bytes bytes(MaxRowBytes(count, kWidth, content, codec));
  bytes.resize(EncodeRows(table, keys, values, kWidth, content, codec, bytes.data()));
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

Keys KeysOf(const RowsView& part) {
  Keys keys = {77};
  DecodeKeys(part, keys);
  return keys;
}

TEST(RowCodecTest, APushHasKeysAndValues) {
  for (const ValueCodec codec : {ValueCodec::Fp32, ValueCodec::Bf16}) {
    const Bytes bytes = Push(3, {5, 1ull << 60}, {1, -2, 0.5F, 4}, codec);
    const auto parts = Parse(bytes, RowContent::kKeysAndValues);
    ASSERT_EQ(parts.size(), 1u);
    EXPECT_EQ(parts[0].table, 3u);
    ASSERT_EQ(parts[0].count, 2u);
    EXPECT_THAT(KeysOf(parts[0]), ElementsAre(5, 1ull << 60));
    EXPECT_THAT(Row(parts[0], 0), ElementsAre(1, -2));
    EXPECT_THAT(Row(parts[0], 1), ElementsAre(0.5F, 4));
  }
}

TEST(RowCodecTest, APullHasKeysAndItsReplyValues) {
  const Bytes pull = Encode(3, {5, 9, 11}, {}, RowContent::kKeys, ValueCodec::Absent);
  const auto asked = Parse(pull, RowContent::kKeys);
  ASSERT_EQ(asked.size(), 1u);
  EXPECT_THAT(KeysOf(asked[0]), ElementsAre(5, 9, 11));
  EXPECT_TRUE(asked[0].value_bytes.empty());
  const Bytes reply = Encode(3, {}, {1, 2, 3, 4, 5, 6}, RowContent::kValues, ValueCodec::Bf16);
  const auto given = Parse(reply, RowContent::kValues);
  ASSERT_EQ(given.size(), 1u);
  ASSERT_EQ(given[0].count, 3u);
  EXPECT_THAT(Row(given[0], 2), ElementsAre(5, 6));
  EXPECT_TRUE(KeysOf(given[0]).empty());
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
  EXPECT_FALSE(bytes.empty()) << name;
  return bytes;
}

TEST(RowCodecTest, ThePartsOfTheDocumentAreWhatItSays) {
  const Bytes push = DocumentedBytes("rows push");
  EXPECT_EQ(Push(3, {5, 256}, {1, -2, 0.5F, 4}, ValueCodec::Bf16), push);
  const auto pushed = Parse(push, RowContent::kKeysAndValues);
  ASSERT_EQ(pushed.size(), 1u);
  EXPECT_EQ(pushed[0].table, 3u);
  EXPECT_THAT(KeysOf(pushed[0]), ElementsAre(5, 256));
  EXPECT_THAT(Row(pushed[0], 1), ElementsAre(0.5F, 4));

  const Bytes pull = DocumentedBytes("rows pull");
  EXPECT_EQ(Encode(3, {3, 4, 5, 21}, {}, RowContent::kKeys, ValueCodec::Absent), pull);
  const auto asked = Parse(pull, RowContent::kKeys);
  ASSERT_EQ(asked.size(), 1u);
  EXPECT_THAT(KeysOf(asked[0]), ElementsAre(3, 4, 5, 21));

  const Bytes reply = DocumentedBytes("rows int8");
  EXPECT_EQ(Encode(3, {}, {127, -3, 0, 0}, RowContent::kValues, ValueCodec::Int8), reply);
  const auto given = Parse(reply, RowContent::kValues);
  ASSERT_EQ(given.size(), 1u);
  EXPECT_THAT(Row(given[0], 0), ElementsAre(127, -3));
  EXPECT_THAT(Row(given[0], 1), ElementsAre(0, 0));
}

// ---- values of 8 bits

// Row by row, as Int8 and back.
Values ThroughInt8(const Values& values, std::size_t width) {
  Bytes bytes(RowValueBytes(static_cast<std::uint32_t>(width), ValueCodec::Int8));
  EXPECT_EQ(EncodeRow(values, ValueCodec::Int8, bytes.data()), bytes.size());
  RowsView part;
  part.count = 1;
  part.value_codec = ValueCodec::Int8;
  part.value_bytes = bytes;
  EXPECT_TRUE(AllFinite(part));
  Values back(width);
  DecodeRow(part, 0, back);
  return back;
}

TEST(RowCodecTest, RowsOf8BitsAreWithinHalfACodeOfWhatTheyWere) {
  std::mt19937_64 random(3);
  for (const std::size_t width : {1u, 2u, 7u, 16u, 64u, 513u, 1024u}) {
    for (const float size : {1e-30F, 1e-3F, 1.0F, 1e30F}) {
      Values values(width);
      std::normal_distribution<float> of(0, size);
      for (float& value : values) value = of(random);
      float greatest = 0;
      for (const float value : values) greatest = std::max(greatest, std::abs(value));
      const Values back = ThroughInt8(values, width);
      // A scale is rounded up by less than one part in 128.
      const float bound = greatest / 127 * (1 + 1.0F / 128) * 0.5001F;
      for (std::size_t i = 0; i < width; ++i) EXPECT_NEAR(back[i], values[i], bound) << i;
    }
  }
}

TEST(RowCodecTest, AnySizeOfValueIsFiniteIn8Bits) {
  const float infinity = std::numeric_limits<float>::infinity();
  const float greatest = std::numeric_limits<float>::max();
  const float least = std::numeric_limits<float>::denorm_min();
  EXPECT_THAT(ThroughInt8({0, -0.0F}, 2), ElementsAre(0, 0));
  for (const Values& values :
       {Values{infinity, 1}, Values{-infinity, 0}, Values{greatest, -greatest},
        Values{std::nanf(""), 2}, Values{least, -least}, Values{1e38F, -1e38F}}) {
    for (const float value : ThroughInt8(values, 2)) EXPECT_TRUE(std::isfinite(value));
  }
  EXPECT_THAT(ThroughInt8({1e38F, -1e38F}, 2),
              ElementsAre(::testing::FloatNear(1e38F, 1e36F), ::testing::FloatNear(-1e38F, 1e36F)));
}

TEST(RowCodecTest, GradientsOf8BitsAreRightOnTheAverage) {
  constexpr int kPushes = 20'000;
  // In codes of 1/127: far below half a code, where the nearest would always be 0, and others.
  const Values gradient = {1, 0.1F / 127, -0.3F / 127, 17.75F / 127, 0, -1};
  std::vector<double> sum(gradient.size());
  Values back(gradient.size());
  Bytes bytes(2 + gradient.size());
  for (std::uint64_t key = 0; key < kPushes; ++key) {
    EncodeGradient(key, gradient, ValueCodec::Int8, bytes.data());
    RowsView part;
    part.count = 1;
    part.value_codec = ValueCodec::Int8;
    part.value_bytes = bytes;
    DecodeRow(part, 0, back);
    for (std::size_t i = 0; i < sum.size(); ++i) {
      ASSERT_NEAR(back[i], gradient[i], 1.01F / 127);
      sum[i] += back[i];
    }
  }
  for (std::size_t i = 0; i < sum.size(); ++i) {
    // Six standard deviations of a code that is one or the other.
    EXPECT_NEAR(sum[i] / kPushes, gradient[i], 6 * 0.5 / std::sqrt(kPushes) / 127) << i;
  }
  EXPECT_EQ(sum[4], 0);
}

TEST(RowCodecTest, TheSameGradientIsTheSameBytes) {
  const Values gradient = {0.3F, -0.004F, 0.02F, 0.011F, 0.25F, -0.123F, 0.07F, 0.015F};
  const auto coded = [](std::uint64_t key, const Values& values) {
    Bytes bytes(2 + values.size());
    EncodeGradient(key, values, ValueCodec::Int8, bytes.data());
    return bytes;
  };
  EXPECT_EQ(coded(5, gradient), coded(5, gradient));
  int others = 0;
  for (std::uint64_t key = 6; key < 26; ++key) others += coded(key, gradient) != coded(5, gradient);
  EXPECT_GT(others, 15);
}

TEST(RowCodecTest, RefusesScalesThatAreNegativeOrNotFinite) {
  const Bytes push = Push(1, {3, 4}, {1, 2, 3, 4}, ValueCodec::Int8);
  EXPECT_EQ(ParseError(push), "");
  EXPECT_EQ(Parse(push, RowContent::kKeysAndValues)[0].value_bytes.size(), 8u);
  for (const std::size_t row : {0u, 1u}) {
    const auto with = [&](std::uint16_t scale) {
      Bytes damaged = push;
      std::memcpy(damaged.data() + damaged.size() - 8 + 4 * row, &scale, sizeof(scale));
      return damaged;
    };
    EXPECT_EQ(ParseError(with(0)), "");
    EXPECT_EQ(ParseError(with(0x7bff)), "") << "the greatest whose codes are finite";
    for (const std::uint16_t bad : {0x7c00, 0x7f7f, 0x7f80, 0x7fc0, 0x8000, 0xbf80, 0xff80}) {
      EXPECT_THAT(ParseError(with(bad)), HasSubstr("a scale")) << bad;
    }
  }
  const Bytes reply = Encode(1, {}, {1, 2}, RowContent::kValues, ValueCodec::Int8);
  Bytes damaged = reply;
  damaged[sizeof(wire::BlockHeader) + 1] = std::byte{0xff};
  EXPECT_EQ(ParseError(reply, RowContent::kValues), "");
  EXPECT_THAT(ParseError(damaged, RowContent::kValues), HasSubstr("a scale"));
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
  const std::size_t first = Push(1, {3, 4}, {1, 2, 3, 4}).size();
  for (std::size_t size = 1; size < rows.size(); ++size) {
    if (size == first) continue;
    EXPECT_NE(ParseError(Bytes(rows.begin(), rows.begin() + static_cast<std::ptrdiff_t>(size))), "")
        << size;
  }
  EXPECT_FALSE(SplitSegment(std::span(rows).first(15)).ok());
}

TEST(RowCodecTest, RefusesKeysThatAreNotAStreamOfSoMany) {
  EXPECT_EQ(ParseError(Push(1, {0, std::numeric_limits<std::uint64_t>::max()}, {1, 2, 3, 4})), "");
  Bytes pull = Encode(1, {3, 4, 5, 21}, {}, RowContent::kKeys, ValueCodec::Absent);
  pull[4] = std::byte{3};
  EXPECT_THAT(ParseError(pull, RowContent::kKeys), HasSubstr("3 bytes are not those of 3 keys"));
  pull[4] = std::byte{4};
  pull[sizeof(wire::BlockHeader)] = std::byte{65};
  EXPECT_THAT(ParseError(pull, RowContent::kKeys), HasSubstr("are not those of 4 keys"));
}

// A byte can be 16 keys: without a bound a small pull would ask for more than there is memory for.
TEST(RowCodecTest, RefusesPullsOfMoreThanAnAnswerHolds) {
  const auto pull = [](std::uint32_t table, std::uint32_t count) {
    const Bytes keys(count / 16, std::byte{0});
    Bytes bytes(sizeof(wire::BlockHeader));
    WriteRowsHeader(table, count, keys.size(), RowContent::kKeys, ValueCodec::Absent, bytes.data());
    return bytes + keys;
  };
  constexpr std::uint32_t kMost = (std::uint32_t{1} << 30) / kWidth;
  EXPECT_THAT(ParseError(pull(1, kMost + 16), RowContent::kKeys), HasSubstr("asked for"));
  EXPECT_THAT(ParseError(pull(1, 0xffff'fff0u), RowContent::kKeys), HasSubstr("asked for"));
  EXPECT_EQ(ParseError(pull(1, 1 << 20), RowContent::kKeys), "");
  EXPECT_THAT(ParseError(pull(1, 1 << 20) + pull(2, kMost - (1 << 20) + 16), RowContent::kKeys),
              HasSubstr("asked for"));
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
  EXPECT_THAT(ParseError(no_rows), HasSubstr("are not those of 0 keys"));
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
