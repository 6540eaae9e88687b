#include "ps-worker/core/adaptive_ratio.h"

#include <gtest/gtest.h>

namespace ps::worker {
namespace {

// Steps until the ratio is looked at, each with so many pushes on their way.
void Look(AdaptiveRatio& adaptive, std::uint32_t waiting, double sent = 1, double residual = 10) {
  for (std::uint32_t step = 1; step < AdaptiveRatio::kSteps; ++step) {
    ASSERT_FALSE(adaptive.Observe(waiting));
  }
  ASSERT_TRUE(adaptive.Observe(waiting));
  adaptive.Adjust(sent, residual);
}

TEST(AdaptiveRatioTest, RisesWhileTheLinkHasRoomAndStopsAtTheBound) {
  AdaptiveRatio adaptive(0.01, 0.05);
  EXPECT_EQ(adaptive.ratio(), 0.01);
  Look(adaptive, 0);
  EXPECT_DOUBLE_EQ(adaptive.ratio(), 0.011);
  for (int i = 0; i < 40; ++i) Look(adaptive, 0);
  EXPECT_EQ(adaptive.ratio(), 0.05);
}

TEST(AdaptiveRatioTest, FallsToTheLeastWherePushesPileUp) {
  AdaptiveRatio adaptive(0.01, 0.5);
  for (int i = 0; i < 30; ++i) Look(adaptive, 0);
  const double before = adaptive.ratio();
  EXPECT_GT(before, 0.1);
  Look(adaptive, 4);
  EXPECT_DOUBLE_EQ(adaptive.ratio(), 0.75 * before);
  for (int i = 0; i < 20; ++i) Look(adaptive, 3);
  EXPECT_EQ(adaptive.ratio(), 0.01);
}

TEST(AdaptiveRatioTest, StaysWhereTheLinkIsJustBusyEnough) {
  AdaptiveRatio adaptive(0.01, 0.5);
  Look(adaptive, 0);
  const double before = adaptive.ratio();
  for (int i = 0; i < 10; ++i) Look(adaptive, 1);
  EXPECT_EQ(adaptive.ratio(), before);
}

TEST(AdaptiveRatioTest, SendsNoMoreWhereLittleIsLeftBehind) {
  AdaptiveRatio adaptive(0.01, 0.5);
  for (int i = 0; i < 10; ++i) Look(adaptive, 0, 3, 2);
  EXPECT_EQ(adaptive.ratio(), 0.01);
}

TEST(AdaptiveRatioTest, WithoutAMarginTheRatioIsFixed) {
  AdaptiveRatio adaptive(0.02, 0.02);
  Look(adaptive, 0);
  Look(adaptive, 4);
  EXPECT_EQ(adaptive.ratio(), 0.02);
}

}  // namespace
}  // namespace ps::worker
