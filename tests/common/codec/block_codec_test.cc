#include "common/codec/block_codec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>
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
constexpr IndexCodec kSparseCodecs[] = {IndexCodec::Gap8, IndexCodec::Raw16, IndexCodec::Rice,
                                        IndexCodec::Bitmap};
constexpr ValueCodec kValueCodecs[] = {ValueCodec::Fp32,  ValueCodec::Bf16,  ValueCodec::Int8,
                                       ValueCodec::Bits4, ValueCodec::Bits2, ValueCodec::Bits1};
constexpr ValueCodec kQuantising[] = {ValueCodec::Int8, ValueCodec::Bits4, ValueCodec::Bits2,
                                      ValueCodec::Bits1};

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

// Like those that error feedback sends: just above a threshold, of both signs.
Values SelectedValues(std::mt19937& random, std::size_t count) {
  std::exponential_distribution<float> above(4);
  Values values(count);
  for (float& value : values) value = (1 + above(random)) * (random() % 2 == 0 ? 1.0f : -1.0f);
  return values;
}

double RelativeError(const Values& values, const Values& sent) {
  double error = 0;
  double norm = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    error += (double{values[i]} - sent[i]) * (double{values[i]} - sent[i]);
    norm += double{values[i]} * values[i];
  }
  return norm > 0 ? std::sqrt(error / norm) : 0;
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

// Their rounding error depends on the group: what was sent is what counts.
TEST(BlockCodecTest, EveryPairOfCodecsDecodesToWhatTheEncoderSaysItSent) {
  std::mt19937 random(8);
  for (const std::uint32_t elements : {1u, 2u, 255u, 1000u, 65535u, 65536u}) {
    for (const double density : {0.0, 0.001, 0.01, 0.3, 1.0}) {
      const Indices indices = RandomIndices(random, elements, density);
      const Values values = RandomValues(random, indices.size());
      const auto count = static_cast<std::uint32_t>(values.size());
      for (const IndexCodec index : kSparseCodecs) {
        for (const ValueCodec value : kValueCodecs) {
          // One byte around it that must stay.
          Bytes bytes(MaxEncodedBytes(elements, count, index, value) + 1, std::byte{0xa5});
          Values sent(values.size());
          const std::size_t used =
              EncodeBlock(5, elements, indices, values, index, value, bytes.data(), sent);
          ASSERT_EQ(used, sizeof(wire::BlockHeader) + IndexBytes(elements, indices, index) +
                              ValueBytes(value, count));
          ASSERT_LT(used, bytes.size());
          ASSERT_EQ(bytes[used], std::byte{0xa5});
          bytes.resize(used);
          const Decoded decoded = Decode(bytes, elements);
          ASSERT_EQ(decoded.indices, indices) << elements << " " << static_cast<int>(index);
          ASSERT_EQ(decoded.values, sent) << elements << " " << static_cast<int>(value);
          // Without `sent` the bytes are the same.
          ASSERT_EQ(Encode(elements, indices, values, index, value), bytes);
          // And of values that somebody else has coded.
          Bytes coded(ValueBytes(value, count));
          WriteValues(values, value, coded.data(), {});
          Bytes again(MaxEncodedBytes(elements, count, index, value));
          again.resize(
              EncodeCodedBlock(5, elements, count, indices, coded, index, value, again.data()));
          ASSERT_EQ(again, bytes);
        }
      }
    }
  }
}

TEST(BlockCodecTest, ReadersOfAllVariantsAgree) {
  std::mt19937 random(9);
  for (const double density : {0.0002, 0.01, 0.05, 0.3, 0.97}) {
    const Indices indices = RandomIndices(random, kElements, density);
    const Values values = RandomValues(random, indices.size());
    for (const IndexCodec index : kSparseCodecs) {
      for (const ValueCodec value : kValueCodecs) {
        // In a buffer of its own that ends with it, so that reading on would be seen.
        const Bytes bytes = Encode(kElements, indices, values, index, value);
        std::vector<BlockView> blocks;
        ASSERT_TRUE(Parse(bytes, blocks).ok());
        Values expected;
        DecodeValues(blocks[0], expected);
        for (const kernels::Table* const* variant = kernels::Available(); *variant != nullptr;
             ++variant) {
          EntryReader reader(blocks[0], **variant);
          Indices positions(indices.size() + EntryReader::kRoom);
          Values read(indices.size() + EntryReader::kPiece);
          std::size_t at = 0;
          while (const std::size_t count = reader.Next(&positions[at], &read[at])) at += count;
          positions.resize(at);
          read.resize(at);
          ASSERT_EQ(positions, indices) << (*variant)->name << " " << static_cast<int>(index);
          ASSERT_TRUE(at == 0 || std::memcmp(read.data(), expected.data(), at * sizeof(float)) == 0)
              << (*variant)->name << " " << static_cast<int>(value);
        }
      }
    }
  }
}

TEST(BlockCodecTest, KernelsOfAllVariantsAgreeOnEveryLength) {
  std::mt19937 random(10);
  std::vector<std::byte> bytes(300);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  Values table(16);
  for (std::size_t i = 0; i < 8; ++i) {
    table[i] = 0.25f * static_cast<float>(i);
    table[8 + i] = -table[i];
  }
  for (const kernels::Table* const* variant = kernels::Available(); *variant != nullptr;
       ++variant) {
    const kernels::Table& ours = **variant;
    const kernels::Table& plain = **kernels::Available();
    for (std::size_t size = 0; size <= 150; ++size) {
      // Exactly so many bytes: the sanitizer sees what is read behind them.
      const std::vector<std::byte> part(bytes.begin() + 3,
                                        bytes.begin() + 3 + static_cast<long>(size));
      EXPECT_EQ(ours.count_ones(part.data(), size), plain.count_ones(part.data(), size));
      Values left(2 * size + 1);
      Values right(2 * size + 1);
      ours.look_up(part.data(), 4, 2 * size, table.data(), left.data());
      plain.look_up(part.data(), 4, 2 * size, table.data(), right.data());
      EXPECT_EQ(std::memcmp(left.data(), right.data(), 2 * size * sizeof(float)), 0)
          << ours.name << " " << size;
      ours.scale_int8(part.data(), size, 0.3f, left.data());
      plain.scale_int8(part.data(), size, 0.3f, right.data());
      EXPECT_EQ(left, right) << ours.name << " " << size;
    }
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
                      RoundTripCase{0.001, IndexCodec::Rice, ValueCodec::Bf16},
                      RoundTripCase{0.01, IndexCodec::Rice, ValueCodec::Bf16},
                      RoundTripCase{0.3, IndexCodec::Rice, ValueCodec::Fp32},
                      RoundTripCase{1.0, IndexCodec::Rice, ValueCodec::Bf16},
                      RoundTripCase{0.001, IndexCodec::Bitmap, ValueCodec::Bf16},
                      RoundTripCase{0.3, IndexCodec::Bitmap, ValueCodec::Fp32},
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

struct DocumentedBlock {
  const char* name;
  std::uint32_t elements;
  Indices indices;
  Values values;
};

TEST(BlockCodecTest, BlocksOfTheDocumentAreWhatItSays) {
  const DocumentedBlock documented[] = {
      {"rice 2bit", kElements, {0, 3, 12, 13, 30}, {1, -2, 1, 2, -2}},
      {"bitmap 1bit", 20, {1, 8, 9, 19}, {1.5f, -1.5f, 1.5f, 1.5f}},
      {"gap8 4bit", kElements, {5, 6, 7}, {-1, 4.5f, 2}},
      {"dense int8", 3, {0, 1, 2}, {127, -3, 0}},
  };
  for (const DocumentedBlock& one : documented) {
    const Bytes bytes = DocumentedBytes(one.name);
    const Decoded decoded = Decode(bytes, one.elements);
    EXPECT_EQ(decoded.indices, one.indices) << one.name;
    EXPECT_EQ(decoded.values, one.values) << one.name;
    // The encoder writes the same.
    std::vector<BlockView> blocks;
    ASSERT_TRUE(Parse(bytes, blocks, one.elements).ok()) << one.name;
    const Indices none;
    EXPECT_EQ(Encode(one.elements, blocks[0].dense() ? none : one.indices, one.values,
                     blocks[0].index_codec(), blocks[0].value_codec(), blocks[0].header.block()),
              bytes)
        << one.name;
  }
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

TEST(BlockCodecTest, LastElementAloneIsEncodedByAllCodecs) {
  for (const IndexCodec index : kSparseCodecs) {
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
    for (const IndexCodec index : kSparseCodecs) {
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

TEST(BlockCodecTest, BlocksMayBeginAgainAsOftenAsTheCallerSays) {
  Bytes segment;
  for (const std::uint32_t block : {2u, 3u, 3u, 1u, 2u}) {
    const Bytes one = Encode(kElements, {9}, {1}, IndexCodec::Gap8, ValueCodec::Bf16, block);
    segment.insert(segment.end(), one.begin(), one.end());
  }
  std::vector<BlockView> blocks;
  const auto elements_of = [](std::uint32_t) { return kElements; };
  EXPECT_TRUE(ParseSegment(segment, elements_of, blocks, 3).ok());
  ASSERT_EQ(blocks.size(), 5u);
  EXPECT_EQ(blocks[3].header.block(), 1u);
  EXPECT_THAT(ParseSegment(segment, elements_of, blocks, 2).error().message,
              HasSubstr("block 1: listed after block 3"));
}

TEST(BlockCodecTest, ForeignBlockIsRefused) {
  EXPECT_THAT(ParseError(Encode(kElements, {9}, {1}, IndexCodec::Gap8, ValueCodec::Bf16, 100)),
              HasSubstr("block 100: does not belong to this segment"));
}

TEST(BlockCodecTest, EveryTruncationIsRefused) {
  for (const IndexCodec index : kSparseCodecs) {
    for (const ValueCodec value : kValueCodecs) {
      const Bytes whole = Encode(1000, {1, 400}, {1, 2}, index, value);
      for (std::size_t size = 1; size < whole.size(); ++size) {
        Bytes cut(whole.begin(), whole.begin() + static_cast<long>(size));
        EXPECT_NE(ParseError(cut, 1000), "") << size;
        if (size < sizeof(wire::BlockHeader)) continue;
        cut[8] = static_cast<std::byte>(size - sizeof(wire::BlockHeader));
        EXPECT_NE(ParseError(cut, 1000), "") << size << " announced";
      }
    }
  }
}

TEST(BlockCodecTest, EveryTrailingByteIsRefused) {
  for (const IndexCodec index : kSparseCodecs) {
    for (const ValueCodec value : kValueCodecs) {
      for (int extra = 1; extra <= 16; ++extra) {
        Bytes bytes = Encode(1000, {1, 400}, {1, 2}, index, value);
        bytes.resize(bytes.size() + static_cast<std::size_t>(extra));
        EXPECT_NE(ParseError(bytes, 1000), "") << extra;
        bytes[8] = static_cast<std::byte>(std::to_integer<int>(bytes[8]) + extra);
        EXPECT_NE(ParseError(bytes, 1000), "") << extra;
      }
    }
  }
}

// Rice: 5 entries, remainders of 2 bits (planes 1 byte each), then the unary stream.
TEST(BlockCodecTest, RiceStreamsThatCannotBeAreRefused) {
  const auto error = [](const std::string& stream, std::uint32_t elements) {
    Bytes bytes =
        Hex("05 00 00 00 03 00 00 00 00 00 00 00 04 01 00 00 " + stream + " 80 3f 80 3f 80 3f");
    bytes[8] = static_cast<std::byte>(bytes.size() - sizeof(wire::BlockHeader));
    return ParseError(bytes, elements);
  };
  // Gaps of 1, 2 and 4 + 3: the entries 1, 4 and 12.
  EXPECT_EQ(error("02 05 06 0b", 13), "");
  EXPECT_THAT(error("02 05 06 0b", 12), HasSubstr("index 12 in a block of 12 elements"));
  EXPECT_THAT(error("10 05 06 0b", 13), HasSubstr("remainders of 16 bits"));
  EXPECT_THAT(error("02 0d 06 0b", 13), HasSubstr("bits behind the last one"));
  EXPECT_THAT(error("02 05 86 0b", 13), HasSubstr("bits behind the last one"));
  EXPECT_THAT(error("02 05 06 0b 00", 13), HasSubstr("ends in zeros"));
  EXPECT_THAT(error("02 05 06 1b", 13), HasSubstr("has 4 entries, 3 announced"));
  EXPECT_THAT(error("02 05 06 03", 13), HasSubstr("has 2 entries, 3 announced"));
  EXPECT_THAT(error("02 05 06", 13), HasSubstr("an index stream of 3 bytes, 4 expected"));
  // A quotient that only 64 bits hold.
  EXPECT_THAT(error(
                  "0f 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 " +
                      [] {
                        std::string zeros;
                        for (int i = 0; i < 180; ++i) zeros += "00 ";
                        return zeros;
                      }() +
                      "07",
                  kElements),
              HasSubstr("in a block of 65536 elements"));
}

TEST(BlockCodecTest, BitmapsThatCannotBeAreRefused) {
  const auto error = [](const std::string& stream) {
    Bytes bytes = Hex("05 00 00 00 02 00 00 00 00 00 00 00 05 01 00 00 " + stream + " 80 3f 80 3f");
    bytes[8] = static_cast<std::byte>(bytes.size() - sizeof(wire::BlockHeader));
    return ParseError(bytes, 12);
  };
  EXPECT_EQ(error("01 08"), "");
  EXPECT_THAT(error("01 10"), HasSubstr("bits behind the last one"));
  EXPECT_THAT(error("03 08"), HasSubstr("has 3 entries, 2 announced"));
  EXPECT_THAT(error("03"), HasSubstr("an index stream of 1 bytes, 2 expected"));
  EXPECT_THAT(error("03 00 00"), HasSubstr("an index stream of 3 bytes, 2 expected"));
}

TEST(BlockCodecTest, ScalesAreFiniteAndNotNegative) {
  for (const ValueCodec codec : kQuantising) {
    const Bytes good = Encode(4, {}, {1, -2, 0, 1}, IndexCodec::Dense, codec);
    EXPECT_EQ(ParseError(good, 4), "");
    for (const int upper : {0x7f, 0xff, 0xbf}) {  // infinity or NaN, the same negative, -1
      Bytes bad = good;
      bad[16] = std::byte{0x80};
      bad[17] = static_cast<std::byte>(upper);
      EXPECT_THAT(ParseError(bad, 4), HasSubstr("a scale of")) << upper;
    }
  }
  // 127 times this scale would be finite, -128 times not.
  EXPECT_THAT(ParseError(Hex("05 00 00 00 01 00 00 00 03 00 00 00 00 03 00 00 00 7c 80"), 1),
              HasSubstr("a scale of"));
  EXPECT_EQ(ParseError(Hex("05 00 00 00 01 00 00 00 03 00 00 00 00 03 00 00 ff 7b 80"), 1), "");
}

TEST(BlockCodecTest, BitsBehindTheLastValueAreZero) {
  EXPECT_THAT(ParseError(Hex("05 00 00 00 01 00 00 00 05 00 00 00 00 04 00 00 00 3f 80 3f 17"), 1),
              HasSubstr("bits behind its last value"));
  EXPECT_THAT(ParseError(Hex("05 00 00 00 01 00 00 00 05 00 00 00 00 05 00 00 00 3f 80 3f 04"), 1),
              HasSubstr("bits behind its last value"));
  EXPECT_THAT(ParseError(Hex("05 00 00 00 01 00 00 00 03 00 00 00 00 06 00 00 80 3f 02"), 1),
              HasSubstr("bits behind its last value"));
}

TEST(BlockCodecTest, QuantisedValuesAreFiniteWhateverCameIn) {
  const float infinity = std::numeric_limits<float>::infinity();
  const float greatest = std::numeric_limits<float>::max();
  const float least = std::numeric_limits<float>::denorm_min();
  const Values groups[] = {{infinity, 1},         {-infinity, -1}, {std::nanf(""), 2},
                           {greatest, -greatest}, {least, -least}, {0.0f, -0.0f},
                           {greatest, least},     {1e-38f, 2e-38f}};
  for (const Values& values : groups) {
    for (const ValueCodec codec : kQuantising) {
      Values sent(2);
      Bytes bytes(MaxEncodedBytes(2, 2, IndexCodec::Dense, codec));
      bytes.resize(EncodeBlock(5, 2, {}, values, IndexCodec::Dense, codec, bytes.data(), sent));
      const Decoded decoded = Decode(bytes, 2);
      EXPECT_EQ(decoded.values, sent);
      for (const float value : sent) EXPECT_TRUE(std::isfinite(value)) << values[0];
    }
  }
}

// One that stands far out takes a centroid of its own and does not blur the other one.
TEST(BlockCodecTest, OutlierDoesNotChangeWhatTheOthersAreSentAs) {
  Values values(512, 1.0f);
  values[77] = 1e15f;
  Values sent(values.size());
  Bytes bytes(ValueBytes(ValueCodec::Bits2, values.size()));
  WriteValues(values, ValueCodec::Bits2, bytes.data(), sent);
  EXPECT_EQ(sent[0], 1.0f);
  EXPECT_NEAR(sent[77], 1e15f, 1e13f);
}

// The bounds are those of the study's table for densities of 1 to 5 %, and some more.
TEST(BlockCodecTest, ErrorsOfSelectedValuesAreSmall) {
  std::mt19937 random(12);
  const Values values = SelectedValues(random, 20000);
  const auto error = [&](ValueCodec codec) {
    Values sent(values.size());
    Bytes bytes(ValueBytes(codec, values.size()));
    EXPECT_EQ(WriteValues(values, codec, bytes.data(), sent), bytes.data() + bytes.size());
    return RelativeError(values, sent);
  };
  EXPECT_LT(error(ValueCodec::Bf16), 0.002);
  EXPECT_LT(error(ValueCodec::Int8), 0.006);
  EXPECT_LT(error(ValueCodec::Bits4), 0.06);
  EXPECT_LT(error(ValueCodec::Bits2), 0.12);
  EXPECT_LT(error(ValueCodec::Bits1), 0.2);
  EXPECT_LT(error(ValueCodec::Bits2), 0.7 * error(ValueCodec::Bits1));
}

// Else an error that is fed back could grow.
TEST(BlockCodecTest, NoGroupIsSentWithMoreErrorThanItHasMagnitude) {
  std::mt19937 random(13);
  for (int round = 0; round < 200; ++round) {
    Values values = RandomValues(random, 1 + random() % 700);
    if (round % 2 == 0) {
      for (float& value : values) value = std::pow(value, 7.0f);  // some stand far out
    }
    for (const ValueCodec codec : kQuantising) {
      Values sent(values.size());
      Bytes bytes(ValueBytes(codec, values.size()));
      WriteValues(values, codec, bytes.data(), sent);
      EXPECT_LE(RelativeError(values, sent), 1) << static_cast<int>(codec);
    }
  }
}

TEST(BlockCodecTest, SmallestIndexCodecIsTheSmallestAndWithinTheBound) {
  std::mt19937 random(14);
  for (const std::uint32_t elements : {1u, 100u, 5000u, 65536u}) {
    for (const double density : {0.0001, 0.001, 0.01, 0.05, 0.2, 0.5, 0.9, 1.0}) {
      Indices indices = RandomIndices(random, elements, density);
      if (indices.empty()) indices.push_back(0);
      const IndexCodec smallest = SmallestIndexCodec(elements, indices);
      const auto count = static_cast<std::uint32_t>(indices.size());
      EXPECT_EQ(smallest == IndexCodec::Dense, count == elements);
      const std::size_t bytes = IndexBytes(elements, indices, smallest);
      for (const IndexCodec codec : kSparseCodecs) {
        EXPECT_LE(bytes, IndexBytes(elements, indices, codec)) << elements << " " << density;
        EXPECT_LE(IndexBytes(elements, indices, codec), MaxIndexBytes(elements, count, codec));
      }
      EXPECT_LE(bytes, MaxIndexBytes(elements, count, ChooseIndexCodec(elements, count)));
    }
  }
}

// Entries in one place: the closed form of Rice's parameter is far from the best one.
TEST(BlockCodecTest, HeapedEntriesGetARiceParameterOfTheirOwn) {
  Indices indices;
  for (std::uint16_t i = 0; i < 600; ++i) indices.push_back(static_cast<std::uint16_t>(4 * i));
  const Bytes bytes =
      Encode(kElements, indices, Values(600, 1.0f), IndexCodec::Rice, ValueCodec::Bits1);
  EXPECT_LT(bytes.size(), 420u);  // the six planes of the closed form alone are 450
  EXPECT_EQ(Decode(bytes).indices, indices);
}

TEST(BlockCodecTest, OnePercentOfTwoBitsCostsWhatTheStudySays) {
  std::mt19937 random(15);
  std::size_t bytes = 0;
  constexpr int kBlocks = 160;  // more than 10 M elements
  for (int block = 0; block < kBlocks; ++block) {
    const Indices indices = RandomIndices(random, kElements, 0.01);
    bytes += Encode(kElements, indices, SelectedValues(random, indices.size()),
                    SmallestIndexCodec(kElements, indices), ValueCodec::Bits2)
                 .size();
  }
  EXPECT_LT(static_cast<double>(bytes) / kBlocks / kElements, 0.0135);
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
  EXPECT_THAT(ParseError(Hex("05 00 00 00 00 00 00 00 00 00 00 00 06 01 00 00")),
              HasSubstr("unknown index codec 6"));
  EXPECT_THAT(ParseError(Hex("05 00 00 00 00 00 00 00 00 00 00 00 01 07 00 00")),
              HasSubstr("unknown value codec 7"));
  EXPECT_THAT(ParseError(Hex("05 00 00 00 00 00 00 00 00 00 00 00 01 01 00 01")),
              HasSubstr("reserved"));
}

// Whatever passes ParseSegment must decode to increasing positions and finite values, and encode to
// the same bytes if there is but one way.
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
    const bool exact = block.value_codec() <= ValueCodec::Bf16;
    if (exact && !AllFinite(block)) return;  // a signalling NaN comes back quiet
    if (!exact) {
      for (const float value : values) ASSERT_TRUE(std::isfinite(value));
    }
    const Bytes one = Encode(elements, indices, values, block.index_codec(), block.value_codec(),
                             block.header.block());
    // Scales and the Rice parameter are chosen anew.
    if (!exact || block.index_codec() == IndexCodec::Rice) {
      ASSERT_EQ(Decode(one, elements).indices, indices);
      return;
    }
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
      bytes = Encode(elements, indices, values, kSparseCodecs[below(std::size(kSparseCodecs))],
                     kValueCodecs[below(std::size(kValueCodecs))]);
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

TEST(BlockCodecTest, ChosenIndexCodecIsAboutTheSmallestForRandomPositions) {
  std::mt19937 random(5);
  for (const double density : {0.0005, 0.001, 0.002, 0.004, 0.01, 0.1}) {
    const Indices indices = RandomIndices(random, kElements, density);
    const IndexCodec chosen =
        ChooseIndexCodec(kElements, static_cast<std::uint32_t>(indices.size()));
    const IndexCodec smallest = SmallestIndexCodec(kElements, indices);
    EXPECT_LE(static_cast<double>(IndexBytes(kElements, indices, chosen)),
              1.02 * static_cast<double>(IndexBytes(kElements, indices, smallest)))
        << density;
  }
}

}  // namespace
}  // namespace ps::codec
