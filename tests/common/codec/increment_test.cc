#include "common/codec/increment.h"

#include <gtest/gtest.h>
#include <xmmintrin.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace ps::codec {
namespace {

std::uint16_t Held(float value) { return HeldOf(value); }

TEST(IncrementTest, ASumIsRoundedToTheNearestBf16) {
  EXPECT_EQ(AddIncrement(Held(1.0f), 0.5f), Held(1.5f));
  EXPECT_EQ(AddIncrement(Held(1.0f), 0.001f), Held(1.0f));
  EXPECT_EQ(AddIncrement(Held(-3.0f), 3.0f), 0);
  EXPECT_EQ(AddIncrement(Held(256.0f), 1.0f), Held(256.0f)) << "a tie goes to even";
  EXPECT_EQ(AddIncrement(Held(258.0f), 1.0f), Held(260.0f));
}

TEST(IncrementTest, DenormalsCountAsZero) {
  constexpr float kLeast = std::numeric_limits<float>::min();
  EXPECT_EQ(Held(kLeast / 2), 0);
  EXPECT_EQ(Held(-kLeast / 2), 0);
  EXPECT_EQ(Held(kLeast), 0x0080);
  EXPECT_EQ(AddIncrement(Held(kLeast), kLeast / 2), Held(kLeast));
  EXPECT_EQ(AddIncrement(Held(kLeast), -kLeast * 1.5f), 0) << "the sum is a denormal";
  EXPECT_EQ(AddIncrement(Held(kLeast), -kLeast * 1.0078125f), 0);
}

TEST(IncrementTest, InfinitiesAndNaNsStayWhatTheyAre) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(AddIncrement(Held(kInfinity), -1e38f), Held(kInfinity));
  EXPECT_EQ(AddIncrement(Held(3e38f), 3e38f), Held(kInfinity));
  EXPECT_TRUE(std::isnan(Bf16ToFloat(AddIncrement(Held(std::nanf("")), 1.0f))));
}

// A server treats denormals as zero while it applies a push, a worker does not.
TEST(IncrementTest, TheBitsDoNotDependOnTheModeOfTheProcessor) {
  std::mt19937 random(5);
  std::vector<std::pair<std::uint16_t, float>> sums;
  for (int i = 0; i < 200000; ++i) {
    // Exponents at the lower end, where it could matter, and all others.
    const std::uint32_t range = i % 2 == 0 ? 4 : 255;
    const auto any = [&] {
      const auto exponent = static_cast<std::uint32_t>(random() % range) << 23;
      return std::bit_cast<float>(static_cast<std::uint32_t>(random() & 0x807fffffu) | exponent);
    };
    const float start = any();
    sums.emplace_back(HeldOf(start), any());
  }
  const auto all = [&] {
    std::vector<std::uint16_t> results;
    for (const auto& [held, increment] : sums) results.push_back(AddIncrement(held, increment));
    return results;
  };
  const auto plain = all();
  const unsigned before = _mm_getcsr();
  _mm_setcsr(before | 0x8040u);
  const auto flushed = all();
  _mm_setcsr(before);
  EXPECT_EQ(plain, flushed);
}

TEST(IncrementTest, TheHashIsThatOfAllThatWasAdded) {
  const std::vector<std::uint16_t> held = {1, 2, 3, 4, 5};
  HeldHash whole;
  whole.Add(held);
  HeldHash parts;
  parts.Add(std::span(held).first(2));
  parts.Add(std::span(held).subspan(2));
  EXPECT_EQ(whole.Digest(), parts.Digest());
  HeldHash other;
  other.Add(std::span(held).first(4));
  EXPECT_NE(whole.Digest(), other.Digest());
}

}  // namespace
}  // namespace ps::codec
