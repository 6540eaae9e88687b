#include "ps-server/core/dense_kernels.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>

#include "tests/ps-server/core/server_testing.h"

namespace ps::server {
namespace {

using testing::Bytes;
using testing::DenseBlock;
using testing::MakeLayout;
using testing::Parse;
using testing::SparseBlock;

struct Case {
  wire::IndexCodec index;
  wire::ValueCodec value;
  double density;
};

class DenseKernelsTest : public ::testing::TestWithParam<Case> {
 protected:
  static constexpr std::uint32_t kElements = 10'000;

  // A push of random entries, and the same decoded by the codec.
  void MakePush() {
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    const bool dense = GetParam().index == wire::IndexCodec::Dense;
    for (std::uint32_t at = 0; at < kElements; ++at) {
      if (dense || std::uniform_real_distribution<>()(random) < GetParam().density) {
        if (!dense) indices_.push_back(static_cast<std::uint16_t>(at));
        sent_.push_back(normal(random));
      }
      before_.push_back(normal(random));
    }
    // One byte in front, so that nothing in the encoded block is aligned.
    bytes_.resize(1);
    if (dense) {
      testing::operator+=(bytes_, DenseBlock(0, sent_, GetParam().value));
    } else {
      testing::operator+=(
          bytes_, SparseBlock(0, kElements, indices_, sent_, GetParam().index, GetParam().value));
    }
    const LayoutView layout = MakeLayout({{TableRule::Sgd, {kElements}}}, 1);
    std::vector<codec::BlockView> blocks;
    ASSERT_TRUE(codec::ParseSegment(
                    std::span<const std::byte>(bytes_).subspan(1),
                    [](std::uint32_t) { return kElements; }, blocks)
                    .ok());
    push_ = blocks.at(0);
    codec::DecodeIndices(push_, positions_);
    codec::DecodeValues(push_, decoded_);
  }

  std::vector<std::uint16_t> indices_;
  std::vector<float> sent_;
  std::vector<float> before_;
  Bytes bytes_;
  codec::BlockView push_;
  std::vector<std::uint16_t> positions_;
  std::vector<float> decoded_;
};

TEST_P(DenseKernelsTest, AverageMovesOnlyTheNamedPositionsTowardsTheValue) {
  MakePush();
  std::vector<float> expected = before_;
  for (std::size_t i = 0; i < positions_.size(); ++i) {
    expected[positions_[i]] += (decoded_[i] - expected[positions_[i]]) * 0.5f;
  }
  std::vector<float> values = before_;
  ApplyAverage(values.data(), 1, push_, 0.5f);
  for (std::uint32_t at = 0; at < kElements; ++at) ASSERT_FLOAT_EQ(values[at], expected[at]);
}

TEST_P(DenseKernelsTest, MaximumKeepsTheLarger) {
  MakePush();
  std::vector<float> expected = before_;
  for (std::size_t i = 0; i < positions_.size(); ++i) {
    expected[positions_[i]] = std::max(expected[positions_[i]], decoded_[i]);
  }
  std::vector<float> values = before_;
  ApplyMaximum(values.data(), 1, push_);
  EXPECT_EQ(values, expected);
}

constexpr std::size_t kWords = BitmapWords(wire::kBlockElements);

TEST(BlockBitmapTest, CountsEveryBitOfAnyWord) {
  std::vector<std::uint64_t> words(kWords, ~std::uint64_t{0});
  const BlockBitmap bitmap(words.data(), kWords);
  EXPECT_EQ(CountPositions(bitmap), kWords * 64);
  std::fill(words.begin(), words.end(), 0);
  EXPECT_EQ(CountPositions(bitmap), 0u);
  for (std::size_t bit = 0; bit < kWords * 64; ++bit) {
    words[bit / 64] = std::uint64_t{1} << (bit % 64);
    ASSERT_EQ(CountPositions(bitmap), 1u) << bit;
    words[bit / 64] = 0;
  }
}

TEST(BlockBitmapTest, HasAsManyWordsAsTheBlockNeeds) {
  EXPECT_EQ(BitmapWords(1), 1u);
  EXPECT_EQ(BitmapWords(64), 1u);
  EXPECT_EQ(BitmapWords(65), 2u);
  for (const std::size_t count : {0u, 1u, 15u, 16u, 17u, 31u, 33u}) {
    std::vector<std::uint64_t> words(count, 0x8000000000000001u);
    EXPECT_EQ(CountPositions(BlockBitmap(words)), 2 * count);
  }
}

TEST_P(DenseKernelsTest, MarkedPositionsAreThoseOfTheCodec) {
  MakePush();
  if (push_.dense()) return;  // it has no index stream
  std::vector<std::uint64_t> words(kWords, 0);
  const BlockBitmap bitmap(words.data(), kWords);
  MarkPositions(push_.positions(), bitmap);
  EXPECT_EQ(CountPositions(bitmap), positions_.size());
  std::vector<std::uint16_t> collected;
  CollectPositions(bitmap, collected);
  EXPECT_EQ(collected, positions_);
}

INSTANTIATE_TEST_SUITE_P(
    Codecs, DenseKernelsTest,
    ::testing::Values(Case{wire::IndexCodec::Dense, wire::ValueCodec::Fp32, 1},
                      Case{wire::IndexCodec::Dense, wire::ValueCodec::Bf16, 1},
                      Case{wire::IndexCodec::Gap8, wire::ValueCodec::Fp32, 0.01},
                      Case{wire::IndexCodec::Gap8, wire::ValueCodec::Bf16, 0.3},
                      Case{wire::IndexCodec::Gap8, wire::ValueCodec::Bf16, 0.0005},
                      Case{wire::IndexCodec::Raw16, wire::ValueCodec::Fp32, 0.001},
                      Case{wire::IndexCodec::Raw16, wire::ValueCodec::Bf16, 0.2},
                      Case{wire::IndexCodec::Rice, wire::ValueCodec::Bits2, 0.01},
                      Case{wire::IndexCodec::Rice, wire::ValueCodec::Bf16, 0.3},
                      Case{wire::IndexCodec::Bitmap, wire::ValueCodec::Bits4, 0.5},
                      Case{wire::IndexCodec::Dense, wire::ValueCodec::Int8, 1}));

TEST(DenseKernelsTest, BuffersInRecordsKeepWhatLiesBetweenThem) {
  const Bytes bytes = DenseBlock(0, {6, 1});
  std::vector<codec::BlockView> blocks;
  ASSERT_TRUE(codec::ParseSegment(
                  bytes, [](std::uint32_t) { return 2u; }, blocks)
                  .ok());
  std::vector<float> values = {2, 9, 9, 9, 3, 9, 9, 9};
  ApplyAverage(values.data(), 4, blocks[0], 0.5f);
  EXPECT_EQ(values, (std::vector<float>{4, 9, 9, 9, 2, 9, 9, 9}));
  ApplyMaximum(values.data(), 4, blocks[0]);
  EXPECT_EQ(values, (std::vector<float>{6, 9, 9, 9, 2, 9, 9, 9}));
}

}  // namespace
}  // namespace ps::server
