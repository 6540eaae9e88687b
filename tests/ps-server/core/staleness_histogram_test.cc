#include "ps-server/core/staleness_histogram.h"

#include <gtest/gtest.h>

namespace ps::server {
namespace {

TEST(StalenessHistogramTest, AValueIsInTheBucketOfTheFirstEndThatIsNotBelowIt) {
  for (const std::uint64_t value : {0ull, 1ull, 6ull, 7ull, 8ull, 9ull, 1024ull, 1025ull, ~0ull}) {
    StalenessHistogram histogram;
    histogram.Count(value);
    for (std::size_t i = 0; i < StalenessHistogram::kBuckets; ++i) {
      const bool last = i == StalenessHistogram::kUpTo.size();
      const bool fits = last || value <= StalenessHistogram::kUpTo[i];
      const bool beyond_the_one_before = i == 0 || value > StalenessHistogram::kUpTo[i - 1];
      EXPECT_EQ(histogram.bucket(i), fits && beyond_the_one_before ? 1u : 0u) << value << " " << i;
    }
    EXPECT_EQ(histogram.largest(), value);
  }
}

TEST(StalenessHistogramTest, HistogramsAddUp) {
  StalenessHistogram left;
  left.Count(3);
  left.Count(4);
  StalenessHistogram right;
  right.Count(4);
  right.Count(100);
  left += right;
  EXPECT_EQ(left.count(), 4u);
  EXPECT_EQ(left.sum(), 111u);
  EXPECT_EQ(left.largest(), 100u);
  EXPECT_EQ(left.bucket(4), 2u);
}

}  // namespace
}  // namespace ps::server
