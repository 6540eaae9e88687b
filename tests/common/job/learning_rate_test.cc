#include "common/job/learning_rate.h"

#include <gtest/gtest.h>

namespace ps {
namespace {

LearningRateSpec Spec(const std::string& schedule) {
  LearningRateSpec spec;
  spec.base = 0.4;
  spec.schedule = schedule;
  return spec;
}

TEST(LearningRateTest, ConstantNeverChanges) {
  const LearningRate rate(Spec("constant"), 10, 1000);
  EXPECT_DOUBLE_EQ(rate.At(0), 0.4);
  EXPECT_DOUBLE_EQ(rate.At(1'000'000), 0.4);
}

TEST(LearningRateTest, WarmupRisesLinearlyFromZero) {
  LearningRateSpec spec = Spec("constant");
  spec.warmup_epochs = 2;
  const LearningRate rate(spec, 10, 1000);
  EXPECT_DOUBLE_EQ(rate.At(0), 0);
  EXPECT_DOUBLE_EQ(rate.At(500), 0.1);
  EXPECT_DOUBLE_EQ(rate.At(1000), 0.2);
  EXPECT_DOUBLE_EQ(rate.At(2000), 0.4);
}

TEST(LearningRateTest, CosineFallsFromTheBaseToItsFinalFactor) {
  LearningRateSpec spec = Spec("cosine");
  spec.final_factor = 0.1;
  const LearningRate rate(spec, 10, 1000);
  EXPECT_DOUBLE_EQ(rate.At(0), 0.4);
  EXPECT_NEAR(rate.At(5000), 0.4 * 0.55, 1e-12);
  EXPECT_NEAR(rate.At(10'000), 0.04, 1e-12);
  EXPECT_NEAR(rate.At(50'000), 0.04, 1e-12);
}

TEST(LearningRateTest, CosineBeginsAfterTheWarmup) {
  LearningRateSpec spec = Spec("cosine");
  spec.warmup_epochs = 2;
  const LearningRate rate(spec, 10, 1000);
  EXPECT_DOUBLE_EQ(rate.At(2000), 0.4);
  EXPECT_NEAR(rate.At(6000), 0.2, 1e-12);
}

TEST(LearningRateTest, StepsMultiplyInTurn) {
  LearningRateSpec spec = Spec("step");
  spec.step_factor = 0.5;
  spec.step_epochs = {6, 3};
  const LearningRate rate(spec, 10, 1000);
  EXPECT_DOUBLE_EQ(rate.At(2999), 0.4);
  EXPECT_DOUBLE_EQ(rate.At(3000), 0.2);
  EXPECT_DOUBLE_EQ(rate.At(6000), 0.1);
}

TEST(LearningRateTest, LinearFallsFromTheEndOfTheWarmupToItsFinalFactor) {
  LearningRateSpec spec = Spec("linear");
  spec.warmup_epochs = 2;
  spec.final_factor = 0.25;
  const LearningRate rate(spec, 10, 1000);
  EXPECT_DOUBLE_EQ(rate.At(1000), 0.2);
  EXPECT_DOUBLE_EQ(rate.At(2000), 0.4);
  EXPECT_DOUBLE_EQ(rate.At(6000), 0.25);
  EXPECT_DOUBLE_EQ(rate.At(10'000), 0.1);
  EXPECT_DOUBLE_EQ(rate.At(90'000), 0.1);
}

TEST(LearningRateTest, InverseSquareRootFallsFromTheEndOfTheWarmup) {
  LearningRateSpec spec = Spec("inverse_square_root");
  spec.warmup_epochs = 1;
  const LearningRate rate(spec, 10, 1000);
  EXPECT_DOUBLE_EQ(rate.At(500), 0.2);
  EXPECT_DOUBLE_EQ(rate.At(1000), 0.4);
  EXPECT_DOUBLE_EQ(rate.At(4000), 0.2);
  EXPECT_DOUBLE_EQ(rate.At(100'000), 0.04);
}

TEST(LearningRateTest, AScheduleWithoutRecordsIsStillANumber) {
  const LearningRate rate(Spec("cosine"), 1, 0);
  EXPECT_NEAR(rate.At(0), 0, 1e-12);
  EXPECT_NEAR(rate.At(7), 0, 1e-12);
}

}  // namespace
}  // namespace ps
