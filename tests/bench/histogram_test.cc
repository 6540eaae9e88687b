#include "bench/histogram.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>

namespace ps::bench {
namespace {

TEST(HistogramTest, PercentilesAreWithinOnePercent) {
  Histogram histogram;
  for (std::uint64_t value = 1; value <= 100'000; ++value) histogram.Add(value * 10);
  EXPECT_EQ(histogram.count(), 100'000u);
  for (const double share : {0.001, 0.5, 0.9, 0.99, 0.999}) {
    EXPECT_NEAR(static_cast<double>(histogram.Percentile(share)), share * 1e6, share * 1e4)
        << share;
  }
  EXPECT_EQ(histogram.Percentile(1), 1'000'000u);
  EXPECT_EQ(histogram.max(), 1'000'000u);
}

TEST(HistogramTest, SmallValuesAreExact) {
  Histogram histogram;
  for (std::uint64_t value = 0; value < 128; ++value) histogram.Add(value);
  EXPECT_EQ(histogram.Percentile(0.5), 63u);
  EXPECT_EQ(histogram.Percentile(1), 127u);
}

TEST(HistogramTest, NothingWasMeasured) { EXPECT_EQ(Histogram().Percentile(0.99), 0u); }

TEST(HistogramTest, AValueBeyondTheLastBucketIsTheMaximum) {
  Histogram histogram;
  histogram.Add(std::numeric_limits<std::uint64_t>::max());
  EXPECT_EQ(histogram.max(), std::numeric_limits<std::uint64_t>::max());
  EXPECT_GT(histogram.Percentile(0.5), std::uint64_t{1} << 40);
}

TEST(HistogramTest, TheSumHasTheSamplesOfBoth) {
  Histogram left;
  Histogram right;
  for (int i = 0; i < 90; ++i) left.Add(100);
  for (int i = 0; i < 10; ++i) right.Add(100'000);
  left.Add(right);
  EXPECT_EQ(left.count(), 100u);
  EXPECT_EQ(left.Percentile(0.9), 100u);
  EXPECT_EQ(left.max(), 100'000u);
}

}  // namespace
}  // namespace ps::bench
