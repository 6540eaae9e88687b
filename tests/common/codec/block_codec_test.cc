#include "common/codec/block_codec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <sstream>

namespace ps::codec {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using wire::IndexCodec;
using wire::ValueCodec;

using Bytes = std::vector<std::byte>;
using Indices = std::vector<std::uint16_t>;
using Values = std::vector<float>;

constexpr std::uint32_t kElements = 65536;

Bytes Hex(const std::string& text) {
  Bytes bytes;
  std::istringstream words(text);
  std::string word;
  while (words >> word) bytes.push_back(static_cast<std::byte>(std::stoul(word, nullptr, 16)));
  return bytes;
}

Bytes Encode(std::uint32_t elements, const Indices& indices, const Values& values, IndexCodec index,
             ValueCodec value, std::uint32_t block = 5) {
  const auto count = static_cast<std::uint32_t>(values.size());
  Bytes bytes(MaxEncodedBytes(elements, count, index, value));
  const std::size_t used =
      EncodeBlock(block, elements, indices, values, index, value, bytes.data(), {});
  EXPECT_LE(used, bytes.size());
  bytes.resize(used);
  return bytes;
}

Status Parse(std::span<const std::byte> bytes, std::vector<BlockView>& blocks,
             std::uint32_t elements = kElements) {
  return ParseSegment(
      bytes, [elements](std::uint32_t block) { return block < 100 ? elements : 0; }, blocks);
}

std::string ParseError(const Bytes& bytes, std::uint32_t elements = kElements) {
  std::vector<BlockView> blocks;
  const Status status = Parse(bytes, blocks, elements);
  if (status.ok()) return "";
  EXPECT_EQ(status.error().code, ErrorCode::kInvalid);
  return status.error().message;
}

struct Decoded {
  Indices indices;
  Values values;
};

Decoded Decode(const Bytes& bytes, std::uint32_t elements = kElements) {
  std::vector<BlockView> blocks;
  const Status status = Parse(bytes, blocks, elements);
  EXPECT_TRUE(status.ok()) << status.error().message;
  Decoded decoded;
  if (!status.ok() || blocks.size() != 1) return decoded;
  DecodeIndices(blocks[0], decoded.indices);
  DecodeValues(blocks[0], decoded.values);
  return decoded;
}

Indices RandomIndices(std::mt19937& random, std::uint32_t elements, double density) {
  Indices indices;
  std::bernoulli_distribution take(density);
  for (std::uint32_t i = 0; i < elements; ++i) {
    if (take(random)) indices.push_back(static_cast<std::uint16_t>(i));
  }
  return indices;
}

Values RandomValues(std::mt19937& random, std::size_t count) {
  std::normal_distribution<float> normal;
  Values values(count);
  for (float& value : values) value = normal(random);
  return values;
}

struct RoundTripCase {
  double density;
  IndexCodec index;
  ValueCodec value;
};

class RoundTripTest : public ::testing::TestWithParam<RoundTripCase> {};

TEST_P(RoundTripTest, DecodesToWhatTheEncoderSaysItSentAndEncodesAgainToTheSameBytes) {
  const RoundTripCase& c = GetParam();
  std::mt19937 random(7);
  for (const std::uint32_t elements : {1u, 2u, 255u, 256u, 257u, 1000u, 65535u, 65536u}) {
    const Indices indices = RandomIndices(random, elements, c.density);
    const Values values = RandomValues(random, indices.size());
    const auto count = static_cast<std::uint32_t>(values.size());
    Bytes bytes(MaxEncodedBytes(elements, count, c.index, c.value));
    Values sent(values.size());
    bytes.resize(EncodeBlock(5, elements, indices, values, c.index, c.value, bytes.data(), sent));

    const Decoded decoded = Decode(bytes, elements);
    ASSERT_EQ(decoded.indices, indices) << elements;
    ASSERT_EQ(decoded.values, sent) << elements;
    for (std::size_t i = 0; i < values.size(); ++i) {
      ASSERT_LE(std::abs(sent[i] - values[i]), std::abs(values[i]) / 256);
    }
    ASSERT_EQ(Encode(elements, decoded.indices, decoded.values, c.index, c.value), bytes);
  }
}

INSTANTIATE_TEST_SUITE_P(
    DensitiesAndCodecs, RoundTripTest,
    ::testing::Values(RoundTripCase{0.0, IndexCodec::Gap8, ValueCodec::Fp32},
                      RoundTripCase{0.0, IndexCodec::Raw16, ValueCodec::Bf16},
                      RoundTripCase{0.001, IndexCodec::Gap8, ValueCodec::Bf16},
                      RoundTripCase{0.001, IndexCodec::Raw16, ValueCodec::Bf16},
                      RoundTripCase{0.01, IndexCodec::Gap8, ValueCodec::Fp32},
                      RoundTripCase{0.01, IndexCodec::Raw16, ValueCodec::Fp32},
                      RoundTripCase{0.3, IndexCodec::Gap8, ValueCodec::Bf16},
                      RoundTripCase{1.0, IndexCodec::Gap8, ValueCodec::Fp32},
                      RoundTripCase{1.0, IndexCodec::Raw16, ValueCodec::Bf16},
                      RoundTripCase{1.0, IndexCodec::Dense, ValueCodec::Fp32},
                      RoundTripCase{1.0, IndexCodec::Dense, ValueCodec::Bf16}));

TEST(BlockCodecTest, Gap8BytesAreTheDocumentedOnes) {
  EXPECT_EQ(Encode(kElements, {0, 3, 300}, {1.0f, -2.0f, 0.5f}, IndexCodec::Gap8, ValueCodec::Bf16),
            Hex("05 00 00 00  03 00 00 00  0a 00 00 00  01 01 00 00 "
                "00 02 ff 29  80 3f 00 c0 00 3f"));
}

TEST(BlockCodecTest, Raw16BytesAreTheDocumentedOnes) {
  EXPECT_EQ(Encode(kElements, {3, 65535}, {1.0f, -2.0f}, IndexCodec::Raw16, ValueCodec::Fp32, 7),
            Hex("07 00 00 00  02 00 00 00  0c 00 00 00  02 00 00 00 "
                "03 00 ff ff  00 00 80 3f 00 00 00 c0"));
}

TEST(BlockCodecTest, DenseBytesAreTheDocumentedOnes) {
  EXPECT_EQ(Encode(2, {}, {1.0f, 0.0f}, IndexCodec::Dense, ValueCodec::Bf16, 1),
            Hex("01 00 00 00  02 00 00 00  04 00 00 00  00 01 00 00  80 3f 00 00"));
}

TEST(BlockCodecTest, GapsAroundTheSkipKeepTheirLength) {
  // After index 0 a gap of g positions leads to index g + 1.
  const auto stream = [](std::uint16_t gap) {
    const Bytes bytes = Encode(kElements, {0, static_cast<std::uint16_t>(gap + 1)}, {1, 1},
                               IndexCodec::Gap8, ValueCodec::Bf16);
    const Decoded decoded = Decode(bytes);
    EXPECT_THAT(decoded.indices, ElementsAre(0, gap + 1));
    return Bytes(bytes.begin() + 17, bytes.end() - 4);
  };
  EXPECT_EQ(stream(253), Hex("fd"));
  EXPECT_EQ(stream(254), Hex("fe"));
  EXPECT_EQ(stream(255), Hex("ff 00"));
  EXPECT_EQ(stream(256), Hex("ff 01"));
  EXPECT_EQ(stream(509), Hex("ff fe"));
  EXPECT_EQ(stream(510), Hex("ff ff 00"));
}

TEST(BlockCodecTest, LastElementAloneIsEncodedByBothCodecs) {
  for (const IndexCodec index : {IndexCodec::Gap8, IndexCodec::Raw16}) {
    const Decoded decoded = Decode(Encode(kElements, {65535}, {2}, index, ValueCodec::Fp32));
    EXPECT_THAT(decoded.indices, ElementsAre(65535));
    EXPECT_THAT(decoded.values, ElementsAre(2.0f));
  }
}

TEST(BlockCodecTest, DenseBlockDecodesToAllPositions) {
  const Bytes bytes = Encode(4, {}, {1, 2, 3, 4}, IndexCodec::Dense, ValueCodec::Fp32);
  const Decoded decoded = Decode(bytes, 4);
  EXPECT_THAT(decoded.indices, ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(decoded.values, ElementsAre(1, 2, 3, 4));
}

TEST(BlockCodecTest, BlocksMayStartAtAnyAddress) {
  std::mt19937 random(3);
  for (std::size_t shift = 0; shift < 8; ++shift) {
    const Indices indices = RandomIndices(random, 1000, 0.1);
    const Values values = RandomValues(random, indices.size());
    for (const IndexCodec index : {IndexCodec::Gap8, IndexCodec::Raw16}) {
      const auto count = static_cast<std::uint32_t>(values.size());
      Bytes bytes(shift + MaxEncodedBytes(1000, count, index, ValueCodec::Fp32));
      const std::size_t used =
          EncodeBlock(5, 1000, indices, values, index, ValueCodec::Fp32, bytes.data() + shift, {});
      std::vector<BlockView> blocks;
      ASSERT_TRUE(Parse(std::span(bytes).subspan(shift, used), blocks, 1000).ok());
      Indices decoded_indices;
      Values decoded_values;
      DecodeIndices(blocks[0], decoded_indices);
      DecodeValues(blocks[0], decoded_values);
      EXPECT_EQ(decoded_indices, indices);
      EXPECT_EQ(decoded_values, values);
      EXPECT_TRUE(AllFinite(blocks[0]));
    }
  }
}

TEST(BlockCodecTest, SegmentSplitsIntoItsBlocks) {
  Bytes segment = Encode(kElements, {9}, {1}, IndexCodec::Gap8, ValueCodec::Bf16, 3);
  const Bytes empty = Encode(kElements, {}, {}, IndexCodec::Gap8, ValueCodec::Bf16, 4);
  const Bytes third = Encode(kElements, {8}, {2}, IndexCodec::Raw16, ValueCodec::Fp32, 99);
  segment.insert(segment.end(), empty.begin(), empty.end());
  segment.insert(segment.end(), third.begin(), third.end());
  std::vector<BlockView> blocks;
  ASSERT_TRUE(Parse(segment, blocks).ok());
  ASSERT_EQ(blocks.size(), 3u);
  EXPECT_EQ(blocks[0].header.block(), 3u);
  EXPECT_EQ(blocks[1].count(), 0u);
  EXPECT_EQ(blocks[2].header.block(), 99u);
}

TEST(BlockCodecTest, EmptySegmentHasNoBlocks) {
  std::vector<BlockView> blocks(3);
  EXPECT_TRUE(Parse({}, blocks).ok());
  EXPECT_TRUE(blocks.empty());
}

TEST(BlockCodecTest, BlocksThatDoNotIncreaseAreRefused) {
  Bytes segment = Encode(kElements, {9}, {1}, IndexCodec::Gap8, ValueCodec::Bf16, 3);
  const Bytes again = segment;
  segment.insert(segment.end(), again.begin(), again.end());
  EXPECT_THAT(ParseError(segment), HasSubstr("block 3: listed after block 3"));
}

TEST(BlockCodecTest, ForeignBlockIsRefused) {
  EXPECT_THAT(ParseError(Encode(kElements, {9}, {1}, IndexCodec::Gap8, ValueCodec::Bf16, 100)),
              HasSubstr("block 100: does not belong to this segment"));
}

TEST(BlockCodecTest, EveryTruncationIsRefused) {
  for (const IndexCodec index : {IndexCodec::Gap8, IndexCodec::Raw16}) {
    const Bytes whole = Encode(kElements, {1, 400}, {1, 2}, index, ValueCodec::Fp32);
    for (std::size_t size = 1; size < whole.size(); ++size) {
      EXPECT_NE(ParseError(Bytes(whole.begin(), whole.begin() + static_cast<long>(size))), "")
          << size;
    }
  }
}

TEST(BlockCodecTest, EveryTrailingByteIsRefused) {
  for (int extra = 1; extra <= 16; ++extra) {
    Bytes bytes = Encode(kElements, {1, 400}, {1, 2}, IndexCodec::Gap8, ValueCodec::Fp32);
    bytes.resize(bytes.size() + static_cast<std::size_t>(extra));
    EXPECT_NE(ParseError(bytes), "") << extra;
    bytes[8] = static_cast<std::byte>(std::to_integer<int>(bytes[8]) + extra);
    EXPECT_NE(ParseError(bytes), "") << extra;
  }
}

TEST(BlockCodecTest, RepeatedOrFallingIndexIsRefused) {
  EXPECT_THAT(ParseError(Hex("05 00 00 00 02 00 00 00 08 00 00 00 02 01 00 00 "
                             "03 00 03 00 80 3f 80 3f")),
              HasSubstr("index 3 after 3"));
  EXPECT_THAT(ParseError(Hex("05 00 00 00 02 00 00 00 08 00 00 00 02 01 00 00 "
                             "03 00 02 00 80 3f 80 3f")),
              HasSubstr("index 2 after 3"));
}

TEST(BlockCodecTest, IndexBeyondTheBlockIsRefused) {
  EXPECT_THAT(ParseError(Hex("05 00 00 00 01 00 00 00 04 00 00 00 02 01 00 00 0a 00 80 3f"), 10),
              HasSubstr("index 10 in a block of 10 elements"));
  EXPECT_THAT(ParseError(Hex("05 00 00 00 01 00 00 00 03 00 00 00 01 01 00 00 0a 80 3f"), 10),
              HasSubstr("index 10 in a block of 10 elements"));
  EXPECT_EQ(ParseError(Hex("05 00 00 00 01 00 00 00 03 00 00 00 01 01 00 00 09 80 3f"), 10), "");
}

TEST(BlockCodecTest, CountThatIsNotTheStreamsIsRefused) {
  EXPECT_THAT(ParseError(Hex("05 00 00 00 01 00 00 00 04 00 00 00 01 01 00 00 00 00 80 3f")),
              HasSubstr("its index stream has 2 entries, 1 announced"));
  EXPECT_THAT(ParseError(Hex("05 00 00 00 01 00 00 00 02 00 00 00 01 01 00 00 80 3f")),
              HasSubstr("an empty index stream for 1 entries"));
  EXPECT_THAT(ParseError(Hex("05 00 00 00 0b 00 00 00 02 00 00 00 01 01 00 00 80 3f"), 10),
              HasSubstr("11 entries for 10 elements"));
  EXPECT_THAT(ParseError(Hex("05 00 00 00 02 00 00 00 06 00 00 00 02 01 00 00 01 00 80 3f 80 3f")),
              HasSubstr("an index stream of 2 bytes, 4 expected"));
  EXPECT_THAT(ParseError(Hex("05 00 00 00 02 00 00 00 02 00 00 00 00 01 00 00 80 3f"), 2),
              HasSubstr("2 bytes for 2 values of 4 bytes"));
}

TEST(BlockCodecTest, SkipAtTheEndOfAStreamIsRefused) {
  EXPECT_THAT(ParseError(Hex("05 00 00 00 01 00 00 00 04 00 00 00 01 01 00 00 01 ff 80 3f")),
              HasSubstr("ends in a skip"));
}

TEST(BlockCodecTest, DenseBlockMustBeWhole) {
  EXPECT_THAT(ParseError(Hex("05 00 00 00 01 00 00 00 02 00 00 00 00 01 00 00 80 3f"), 2),
              HasSubstr("dense with 1 entries, 2 expected"));
  EXPECT_THAT(ParseError(Hex("05 00 00 00 01 00 00 00 03 00 00 00 00 01 00 00 00 80 3f"), 1),
              HasSubstr("dense with 1 bytes beside its values"));
}

TEST(BlockCodecTest, UnknownCodecsAndReservedBytesAreRefused) {
  EXPECT_THAT(ParseError(Hex("05 00 00 00 00 00 00 00 00 00 00 00 03 01 00 00")),
              HasSubstr("unknown index codec 3"));
  EXPECT_THAT(ParseError(Hex("05 00 00 00 00 00 00 00 00 00 00 00 01 02 00 00")),
              HasSubstr("unknown value codec 2"));
  EXPECT_THAT(ParseError(Hex("05 00 00 00 00 00 00 00 00 00 00 00 01 01 00 01")),
              HasSubstr("reserved"));
}

// Whatever passes ParseSegment must decode to increasing positions and encode to the same bytes.
void ExpectCanonical(const Bytes& bytes, std::uint32_t elements) {
  std::vector<BlockView> blocks;
  if (!Parse(bytes, blocks, elements).ok()) return;
  Bytes again;
  for (const BlockView& block : blocks) {
    Indices indices;
    Values values;
    DecodeIndices(block, indices);
    DecodeValues(block, values);
    ASSERT_EQ(indices.size(), block.count());
    for (std::size_t i = 0; i < indices.size(); ++i) {
      ASSERT_LT(indices[i], elements);
      if (i > 0) {
        ASSERT_LT(indices[i - 1], indices[i]);
      }
    }
    if (!AllFinite(block)) return;  // a signalling NaN comes back quiet
    const auto index = static_cast<IndexCodec>(block.header.index_codec());
    const auto value = static_cast<ValueCodec>(block.header.value_codec());
    const Bytes one = Encode(elements, indices, values, index, value, block.header.block());
    again.insert(again.end(), one.begin(), one.end());
  }
  ASSERT_EQ(again, bytes);
}

TEST(BlockCodecTest, RandomAndFlippedBytesNeverBreakTheDecoder) {
  std::mt19937 random(11);
  const auto below = [&random](std::size_t bound) { return random() % bound; };
  for (int round = 0; round < 20000; ++round) {
    Bytes bytes;
    const auto elements = static_cast<std::uint32_t>(1 + below(600));
    if (round % 4 == 0) {
      bytes.resize(below(64));
      for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
    } else {
      const Indices indices = RandomIndices(random, elements, 0.05);
      const Values values = RandomValues(random, indices.size());
      bytes = Encode(elements, indices, values,
                     round % 2 == 0 ? IndexCodec::Gap8 : IndexCodec::Raw16, ValueCodec::Bf16);
      for (std::size_t flips = below(4); flips > 0; --flips) {
        bytes[below(bytes.size())] = static_cast<std::byte>(random());
      }
    }
    ExpectCanonical(bytes, elements);
  }
}

TEST(BlockCodecTest, NonFiniteValuesAreFound) {
  for (const ValueCodec codec : {ValueCodec::Fp32, ValueCodec::Bf16}) {
    for (const float bad :
         {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
          std::numeric_limits<float>::quiet_NaN()}) {
      Values values(37, 1.0f);
      values[36] = bad;
      const Bytes bytes = Encode(37, {}, values, IndexCodec::Dense, codec);
      std::vector<BlockView> blocks;
      ASSERT_TRUE(Parse(bytes, blocks, 37).ok());
      EXPECT_FALSE(AllFinite(blocks[0]));
    }
  }
}

TEST(BlockCodecTest, Bf16RoundsToNearestEven) {
  EXPECT_EQ(FloatToBf16(1.0f), 0x3f80);
  EXPECT_EQ(FloatToBf16(1.0f + 1.0f / 256), 0x3f80);  // half way, to even
  EXPECT_EQ(FloatToBf16(1.0f + 3.0f / 256), 0x3f82);  // half way, to even
  EXPECT_EQ(FloatToBf16(1.0f + 1.01f / 256), 0x3f81);
  EXPECT_EQ(FloatToBf16(-0.0f), 0x8000);
  EXPECT_EQ(FloatToBf16(std::numeric_limits<float>::infinity()), 0x7f80);
  EXPECT_EQ(FloatToBf16(std::numeric_limits<float>::max()), 0x7f80);
  EXPECT_TRUE(std::isnan(Bf16ToFloat(FloatToBf16(std::numeric_limits<float>::quiet_NaN()))));
}

TEST(BlockCodecTest, EveryBf16ThatIsNoNanSurvivesTheRoundTrip) {
  for (std::uint32_t bits = 0; bits <= 0xffff; ++bits) {
    const float value = Bf16ToFloat(static_cast<std::uint16_t>(bits));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(Bf16ToFloat(FloatToBf16(value))));
    } else {
      ASSERT_EQ(FloatToBf16(value), bits);
    }
  }
}

TEST(BlockCodecTest, ChosenIndexCodecIsTheSmallerForRandomPositions) {
  std::mt19937 random(5);
  for (const double density : {0.0005, 0.001, 0.002, 0.004, 0.01, 0.1}) {
    const Indices indices = RandomIndices(random, kElements, density);
    const Values values(indices.size(), 1.0f);
    const IndexCodec chosen =
        ChooseIndexCodec(kElements, static_cast<std::uint32_t>(indices.size()));
    const IndexCodec other = chosen == IndexCodec::Gap8 ? IndexCodec::Raw16 : IndexCodec::Gap8;
    EXPECT_LE(Encode(kElements, indices, values, chosen, ValueCodec::Bf16).size(),
              Encode(kElements, indices, values, other, ValueCodec::Bf16).size())
        << density;
  }
}

}  // namespace
}  // namespace ps::codec
