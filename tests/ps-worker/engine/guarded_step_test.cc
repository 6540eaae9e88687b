#include "ps-worker/engine/guarded_step.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <vector>

namespace ps::worker {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Does what it is told to, and remembers how it was asked.
class ScriptedModel final : public Model {
 public:
  struct Answer {
    double loss = 0.5;
    float gradient = 1;
  };

  using Model::Step;
  Result<double> Step(const Batch&, const StepMode& mode) override {
    modes.push_back(mode);
    const Answer answer = answers(mode);
    gradients_.assign(4, answer.gradient);
    return answer.loss;
  }
  std::span<float> parameters() override { return parameters_; }
  std::span<const float> gradients() const override { return gradients_; }
  void ReadBuffers(std::span<float>, std::span<float>) const override {}
  void WriteBuffers(std::span<const float>, std::span<const float>) override {}
  Result<EvaluationSums> Evaluate(const Batch&) override { return EvaluationSums(); }

  std::function<Answer(const StepMode&)> answers = [](const StepMode&) { return Answer(); };
  std::vector<StepMode> modes;

 private:
  std::vector<float> parameters_{1, 2, 3, 4};
  std::vector<float> gradients_;
};

class GuardedStepTest : public ::testing::Test {
 protected:
  GuardedStep Make(Precision precision) {
    return GuardedStep(spec_, model_, precision, [this] { ++restored_; });
  }
  static Batch OfRecords(std::uint32_t records) {
    Batch batch;
    batch.records = records;
    return batch;
  }
  ComputeResult Run(GuardedStep& step, std::uint32_t records = 100) {
    model_.modes.clear();
    auto result = step.Run(OfRecords(records));
    EXPECT_TRUE(result.ok());
    return *result;
  }
  std::vector<Precision> Precisions() const {
    std::vector<Precision> all;
    for (const StepMode& mode : model_.modes) all.push_back(mode.precision);
    return all;
  }
  // So many quiet steps.
  void Quiet(GuardedStep& step, int steps) {
    model_.answers = [this](const StepMode&) {
      noise_ = noise_ == 1 ? 1.1 : 1;
      return ScriptedModel::Answer{0.5 * noise_, static_cast<float>(noise_)};
    };
    for (int i = 0; i < steps; ++i) EXPECT_TRUE(Run(step).kept()) << i;
  }

  TrainingSpec spec_;
  ScriptedModel model_;
  int restored_ = 0;
  double noise_ = 1;
};

TEST_F(GuardedStepTest, WithoutScalingAndCalibrationItIsTheModelsStep) {
  auto step = Make(Precision::kBf16);
  const auto result = Run(step);
  EXPECT_TRUE(result.kept());
  EXPECT_EQ(result.loss, 0.5);
  EXPECT_THAT(Precisions(), ElementsAre(Precision::kBf16));
  EXPECT_EQ(model_.modes[0].loss_scale, 1);
  EXPECT_FALSE(step.loss_scale().has_value());
}

TEST_F(GuardedStepTest, Fp16IsScaledByItself) {
  auto step = Make(Precision::kFp16);
  Run(step);
  EXPECT_EQ(model_.modes[0].loss_scale, 65'536);
  spec_.loss_scaling.mode = "none";
  EXPECT_FALSE(Make(Precision::kFp16).loss_scale().has_value());
  spec_.loss_scaling.mode = "dynamic";
  spec_.loss_scaling.initial_scale = 8;
  EXPECT_EQ(Make(Precision::kFp32).loss_scale(), (LossScale{8, 0}));
}

TEST_F(GuardedStepTest, AnOverflowHalvesTheScaleUntilItFits) {
  auto step = Make(Precision::kFp16);
  model_.answers = [](const StepMode& mode) {
    return ScriptedModel::Answer{0.5, mode.loss_scale > 10'000 ? kInfinity : 1};
  };
  for (int i = 0; i < 3; ++i) {
    const auto result = Run(step);
    EXPECT_TRUE(result.overflow);
    EXPECT_FALSE(result.kept());
    EXPECT_THAT(result.nonfinite, HasSubstr("the gradient is not finite at the loss scale "));
  }
  EXPECT_TRUE(Run(step).kept());
  EXPECT_EQ(step.loss_scale(), (LossScale{8192, 1}));
}

// A gradient that is not finite at any scale is not the scale's fault in the end, and a loss never.
TEST_F(GuardedStepTest, WhatIsNotFiniteWithoutAScaleIsNoOverflow) {
  spec_.loss_scaling.initial_scale = 4;
  auto step = Make(Precision::kFp16);
  model_.answers = [](const StepMode&) { return ScriptedModel::Answer{0.5, kInfinity}; };
  EXPECT_TRUE(Run(step).overflow);
  EXPECT_TRUE(Run(step).overflow);
  EXPECT_FALSE(Run(step).overflow);
  EXPECT_LT(step.loss_scale()->scale, 1);
  model_.answers = [](const StepMode&) { return ScriptedModel::Answer{std::nan(""), kInfinity}; };
  step.RestoreLossScale({1024, 0});
  const auto result = Run(step);
  EXPECT_FALSE(result.overflow);
  EXPECT_EQ(result.nonfinite, "the loss is not finite");
  EXPECT_EQ(step.loss_scale()->scale, 512);
}

class CalibratedStepTest : public GuardedStepTest {
 protected:
  CalibratedStepTest() {
    spec_.loss_calibration.enabled = true;
    spec_.loss_calibration.warmup_steps = 60;
  }
};

TEST_F(CalibratedStepTest, AnImplausibleBatchIsComputedAgainInFp32AndSkipped) {
  auto step = Make(Precision::kBf16);
  Quiet(step, 100);
  model_.answers = [](const StepMode&) { return ScriptedModel::Answer{9, 1}; };
  const auto result = Run(step);
  EXPECT_THAT(Precisions(), ElementsAre(Precision::kBf16, Precision::kFp32));
  EXPECT_FALSE(result.kept());
  EXPECT_FALSE(result.redone);
  EXPECT_EQ(result.nonfinite, "");
  EXPECT_THAT(result.implausible, HasSubstr("the loss is 9, plausible are 0.3"));
  EXPECT_EQ(restored_, 1);
  // It says nothing of the precision: the next step is in bf16 again.
  Quiet(step, 1);
  EXPECT_THAT(Precisions(), ElementsAre(Precision::kBf16));
}

TEST_F(CalibratedStepTest, AFaultOfThePrecisionIsMendedAndFp32HeldForAWhile) {
  auto step = Make(Precision::kFp16);
  Quiet(step, 100);
  ASSERT_EQ(step.loss_scale()->scale, 65'536);
  model_.answers = [](const StepMode& mode) {
    return mode.precision == Precision::kFp32 ? ScriptedModel::Answer{0.51, 1}
                                              : ScriptedModel::Answer{0.5, 5000};
  };
  const auto result = Run(step);
  EXPECT_TRUE(result.kept());
  EXPECT_TRUE(result.redone);
  EXPECT_EQ(result.loss, 0.51);
  EXPECT_EQ(model_.gradients()[0], 1);
  EXPECT_THAT(result.implausible, HasSubstr("the gradient norm is 1e+04, plausible are "));
  EXPECT_EQ(step.loss_scale(), (LossScale{32'768, 0}));
  for (int i = 0; i < 200; ++i) {
    Quiet(step, 1);
    ASSERT_THAT(Precisions(), ElementsAre(Precision::kFp32)) << i;
  }
  Quiet(step, 1);
  EXPECT_THAT(Precisions(), ElementsAre(Precision::kFp16));
}

TEST_F(CalibratedStepTest, ADivergedRedoIsSkippedToo) {
  auto step = Make(Precision::kFp32);
  Quiet(step, 100);
  model_.answers = [this](const StepMode&) {
    return model_.modes.size() == 1 ? ScriptedModel::Answer{9, 1}
                                    : ScriptedModel::Answer{std::nan(""), kInfinity};
  };
  const auto result = Run(step);
  EXPECT_FALSE(result.kept());
  EXPECT_FALSE(result.redone);
}

// The last batch of an epoch may have one record, whose loss may be anything.
TEST_F(CalibratedStepTest, ABatchOfFewRecordsIsNotJudgedNorLearned) {
  auto step = Make(Precision::kFp32);
  Quiet(step, 100);
  model_.answers = [](const StepMode&) { return ScriptedModel::Answer{9, 20}; };
  EXPECT_TRUE(Run(step, 49).kept());
  EXPECT_EQ(model_.modes.size(), 1u);
  Quiet(step, 1);
  model_.answers = [](const StepMode&) { return ScriptedModel::Answer{9, 20}; };
  EXPECT_FALSE(Run(step, 50).kept());
}

TEST_F(CalibratedStepTest, AGradientThatIsNotFiniteIsLeftToWhoTakesIt) {
  auto step = Make(Precision::kFp32);
  Quiet(step, 100);
  model_.answers = [](const StepMode&) { return ScriptedModel::Answer{0.5, kInfinity}; };
  const auto result = Run(step);
  EXPECT_EQ(result.implausible, "");
  EXPECT_EQ(result.nonfinite, "");
  EXPECT_FALSE(result.overflow);
  EXPECT_EQ(model_.modes.size(), 1u);
}

}  // namespace
}  // namespace ps::worker
