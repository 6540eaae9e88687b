#include "ps-server/core/rows/admission_sketch.h"

#include <gtest/gtest.h>

#include <vector>

namespace ps::server {
namespace {

TEST(AdmissionSketchTest, CountsHowOftenAKeyWasSeenBefore) {
  AdmissionSketch sketch(1 << 16);
  for (std::uint32_t times = 0; times < 300; ++times) {
    EXPECT_EQ(sketch.Saw(77), std::min(times, kSightingsMax)) << times;
  }
  EXPECT_EQ(sketch.Saw(78), 0u);
}

TEST(AdmissionSketchTest, NeverCountsTooLittleAndRarelyTooMuch) {
  AdmissionSketch sketch(1 << 16);
  const std::uint64_t keys = sketch.bytes() / 8 / 3;  // three sightings each before the halving
  std::uint64_t wrong = 0;
  for (std::uint32_t times = 0; times < 3; ++times) {
    for (std::uint64_t key = 0; key < keys; ++key) {
      const std::uint32_t seen = sketch.Saw(key * 1'000'003);
      ASSERT_GE(seen, times);
      wrong += seen > times ? 1 : 0;
    }
  }
  EXPECT_LT(wrong, keys * 3 / 100);
}

TEST(AdmissionSketchTest, HalvesAfterAnEighthOfItsCounters) {
  AdmissionSketch sketch(1 << 12);
  for (int i = 0; i < 100; ++i) (void)sketch.Saw(1);
  for (std::uint64_t i = 100; i < sketch.bytes() / 8; ++i) (void)sketch.Saw(2);
  EXPECT_EQ(sketch.sightings(), sketch.bytes() / 8);
  EXPECT_EQ(sketch.Saw(1), 50u);
  EXPECT_EQ(sketch.sightings(), 1u);
}

TEST(AdmissionSketchTest, ARestoredSketchGoesOnAsTheOriginal) {
  AdmissionSketch sketch(1 << 12);
  for (std::uint64_t key = 0; key < 400; ++key) (void)sketch.Saw(key % 60);
  const std::vector<std::uint8_t> counters(sketch.counters().begin(), sketch.counters().end());
  AdmissionSketch other(1 << 12);
  ASSERT_TRUE(other.Restore(counters, sketch.sightings()));
  for (std::uint64_t key = 0; key < 1000; ++key) {
    ASSERT_EQ(sketch.Saw(key % 90), other.Saw(key % 90)) << key;
  }
}

TEST(AdmissionSketchTest, TakesNothingFromASketchOfAnotherSize) {
  AdmissionSketch sketch(1 << 12);
  EXPECT_EQ(sketch.Saw(1), 0u);
  EXPECT_FALSE(sketch.Restore(std::vector<std::uint8_t>(64, 9), 3));
  EXPECT_EQ(sketch.Saw(1), 1u);
}

}  // namespace
}  // namespace ps::server
