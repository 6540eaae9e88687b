#include "ps-worker/engine/initializer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <vector>

namespace ps::worker {
namespace {

std::vector<float> Uniform(std::uint64_t seed, const char* name, std::size_t count,
                           float bound = 1) {
  std::vector<float> values(count);
  FillUniform(seed, name, bound, values);
  return values;
}

TEST(InitializerTest, AValueDependsOnSeedNameAndPositionAlone) {
  const auto values = Uniform(1, "weight", 1000);
  EXPECT_EQ(Uniform(1, "weight", 1000), values);
  const auto fewer = Uniform(1, "weight", 10);
  EXPECT_TRUE(std::equal(fewer.begin(), fewer.end(), values.begin()));
  EXPECT_NE(Uniform(2, "weight", 1000), values);
  EXPECT_NE(Uniform(1, "weight2", 1000), values);
}

// Checkpoints and tasks of another version must come to the same values.
TEST(InitializerTest, TheSequenceNeverChanges) {
  const auto values = Uniform(42, "linear0.weight", 3);
  EXPECT_EQ(values[0], 0x1.639628p-1f);
  EXPECT_EQ(values[1], -0x1.44a25p-3f);
  EXPECT_EQ(values[2], 0x1.b4cp-8f);
}

TEST(InitializerTest, ValuesFillTheirRangeEvenly) {
  const auto values = Uniform(7, "weight", 100'000, 0.5f);
  const auto [least, most] = std::minmax_element(values.begin(), values.end());
  EXPECT_GE(*least, -0.5f);
  EXPECT_LT(*most, 0.5f);
  EXPECT_LT(*least, -0.499f);
  EXPECT_GT(*most, 0.499f);
  const double mean = std::accumulate(values.begin(), values.end(), 0.0) / 100'000;
  EXPECT_NEAR(mean, 0, 0.005);
  double squares = 0;
  for (const float value : values) squares += double{value} * value;
  EXPECT_NEAR(squares / 100'000, 1.0 / 12, 0.002);
}

TEST(InitializerTest, WithBoundZeroAllAreZero) {
  for (const float value : Uniform(1, "weight", 10, 0)) EXPECT_EQ(value, 0.0f);
}

}  // namespace
}  // namespace ps::worker
