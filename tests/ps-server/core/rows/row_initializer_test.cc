#include "ps-server/core/rows/row_initializer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

namespace ps::server {
namespace {

using Kind = RowInitializer::Kind;

std::vector<float> Draw(const RowInitializer& initializer, std::uint64_t key, std::size_t width) {
  std::vector<float> values(width, 99);
  initializer.Fill(key, values);
  return values;
}

struct Moments {
  double mean = 0;
  double deviation = 0;
  float lowest = 0;
  float highest = 0;
};

Moments MomentsOf(const RowInitializer& initializer) {
  Moments moments;
  double sum = 0;
  double squares = 0;
  std::size_t count = 0;
  for (std::uint64_t key = 0; key < 20'000; ++key) {
    for (const float value : Draw(initializer, key, 10)) {
      sum += value;
      squares += double{value} * value;
      moments.lowest = count == 0 ? value : std::min(moments.lowest, value);
      moments.highest = count == 0 ? value : std::max(moments.highest, value);
      ++count;
    }
  }
  moments.mean = sum / static_cast<double>(count);
  moments.deviation = std::sqrt(squares / static_cast<double>(count) - moments.mean * moments.mean);
  return moments;
}

TEST(RowInitializerTest, ConstantFillsEveryPosition) {
  EXPECT_EQ(Draw(RowInitializer(Kind::kConstant, 0.25F, 0, 7, 1), 5, 3),
            (std::vector<float>{0.25F, 0.25F, 0.25F}));
  EXPECT_EQ(Draw(RowInitializer(), 5, 2), (std::vector<float>{0, 0}));
}

TEST(RowInitializerTest, UniformIsWithinItsBoundsAndEven) {
  const Moments moments = MomentsOf(RowInitializer(Kind::kUniform, -1, 3, 42, 1));
  EXPECT_GE(moments.lowest, -1.0F);
  EXPECT_LT(moments.highest, 3.0F);
  EXPECT_NEAR(moments.mean, 1, 0.01);
  EXPECT_NEAR(moments.deviation, 4 / std::sqrt(12.0), 0.01);
}

TEST(RowInitializerTest, NormalHasItsMeanAndDeviation) {
  const Moments moments = MomentsOf(RowInitializer(Kind::kNormal, 2, 0.5F, 42, 1));
  EXPECT_NEAR(moments.mean, 2, 0.005);
  EXPECT_NEAR(moments.deviation, 0.5, 0.005);
  EXPECT_LT(moments.lowest, 2 - 4 * 0.5F);  // 200,000 draws reach beyond four deviations
  EXPECT_GT(moments.highest, 2 + 4 * 0.5F);
}

TEST(RowInitializerTest, TruncatedNormalStaysWithinTwoDeviations) {
  const Moments moments = MomentsOf(RowInitializer(Kind::kTruncatedNormal, 1, 0.1F, 42, 1));
  EXPECT_NEAR(moments.mean, 1, 0.001);
  EXPECT_NEAR(moments.deviation, 0.0879626, 0.001);  // of the truncated distribution
  EXPECT_GE(moments.lowest, 0.8F);
  EXPECT_LE(moments.highest, 1.2F);
  EXPECT_LT(moments.lowest, 0.801F);
}

TEST(RowInitializerTest, ValuesDependOnSeedTableKeyAndPositionAlone) {
  const RowInitializer initializer(Kind::kNormal, 0, 1, 42, 3);
  const std::vector<float> wide = Draw(initializer, 1'000'000'007, 9);
  for (std::size_t width = 1; width < wide.size(); ++width) {
    const std::vector<float> narrow = Draw(initializer, 1'000'000'007, width);
    EXPECT_TRUE(std::equal(narrow.begin(), narrow.end(), wide.begin())) << width;
  }
  EXPECT_NE(Draw(initializer, 1'000'000'007 + (std::uint64_t{1} << 32), 9), wide);
  EXPECT_NE(Draw(initializer, 1'000'000'008, 9), wide);
  EXPECT_NE(Draw(RowInitializer(Kind::kNormal, 0, 1, 43, 3), 1'000'000'007, 9), wide);
  EXPECT_NE(Draw(RowInitializer(Kind::kNormal, 0, 1, 42, 4), 1'000'000'007, 9), wide);
  EXPECT_NE(
      Draw(RowInitializer(Kind::kNormal, 0, 1, 42 + (std::uint64_t{1} << 32), 3), 1'000'000'007, 9),
      wide);
}

// Rows are made again from the initialiser after years and on other machines: these bits are part
// of the format of a job.
TEST(RowInitializerTest, TheBitsOfAKnownRowNeverChange) {
  const auto bits_of = [](Kind kind) {
    std::vector<std::uint32_t> bits;
    for (const float value : Draw(RowInitializer(kind, -0.5F, 0.5F, 42, 1), 12345, 5)) {
      bits.push_back(std::bit_cast<std::uint32_t>(value));
    }
    return bits;
  };
  // Made with Python: Philox written anew, statistics.NormalDist for the normals.
  EXPECT_EQ(bits_of(Kind::kUniform), (std::vector<std::uint32_t>{3190807161, 3192265735, 1053067298,
                                                                 3189557732, 1054434890}));
  EXPECT_EQ(bits_of(Kind::kNormal), (std::vector<std::uint32_t>{3208178673, 3208690373, 1036460222,
                                                                3207751196, 1046454400}));
  EXPECT_EQ(
      bits_of(Kind::kTruncatedNormal),
      (std::vector<std::uint32_t>{3207998146, 3208481330, 1029714094, 3207593474, 1042277472}));
}

TEST(RowInitializerTest, InverseNormalInvertsTheDistribution) {
  const auto distribution = [](double x) { return 0.5 * std::erfc(-x / std::sqrt(2.0)); };
  for (double x = -6.3; x <= 0; x += 0.01) {
    const double p = distribution(x);
    EXPECT_NEAR(InverseNormal(p), x, 1e-13) << x;
    if (x > -3) {
      EXPECT_NEAR(InverseNormal(1 - p), -x, 1e-11) << x;
    }
  }
  EXPECT_EQ(InverseNormal(0.5), 0);
}

}  // namespace
}  // namespace ps::server
