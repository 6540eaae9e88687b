#include "ps-worker/core/loss_calibration.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

namespace ps::worker {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Uniform in ln between -0.3 and 0.3, the same everywhere.
class Noise {
 public:
  double Next() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return std::exp(0.6 * (static_cast<double>(state_ >> 40) / static_cast<double>(1u << 24)) -
                    0.3);
  }

 private:
  std::uint64_t state_ = 1;
};

TEST(SeriesPredictorTest, SaysNothingWhileItWarmsUp) {
  SeriesPredictor series;
  for (int i = 0; i < 50; ++i) {
    EXPECT_FALSE(series.ready());
    EXPECT_EQ(series.Score(i == 49 ? 1e9 : 1), 0);
    EXPECT_EQ(series.At(5), kInfinity);
    series.Learn(1 + 0.01 * i);
  }
  EXPECT_TRUE(series.ready());
  EXPECT_GT(series.Score(2.5), 1);
}

// By hand: of the first values 17 are e^0, 17 e^1 and 16 e^2, so l = 1 and s = 33/50.
TEST(SeriesPredictorTest, FollowsItsFormula) {
  SeriesPredictor series;
  for (int i = 0; i < 50; ++i) series.Learn(std::exp(i % 3));
  const double s = 33.0 / 50;
  EXPECT_NEAR(series.Score(std::exp(2.0)), 1 / (1.2533 * s), 1e-9);
  EXPECT_NEAR(std::log(series.At(2)), 1 + 2 * 1.2533 * s, 1e-9);

  series.Learn(std::exp(2.0));  // e = 1, within 3 sigma
  const double level = 1 + 0.05;
  const double slope = 1e-4;
  const double error = s + 0.02 * (1 - s);
  EXPECT_NEAR(series.Score(std::exp(2.0)), (2 - level - slope) / (1.2533 * error), 1e-9);

  // An outlier counts as 3 sigma.
  series.Learn(std::exp(50.0));
  const double clamped = 3 * 1.2533 * error;
  const double level2 = level + slope + 0.05 * clamped;
  const double slope2 = 0.998 * slope + 1e-4 * clamped;
  const double error2 = error + 0.02 * (clamped - error);
  EXPECT_NEAR(series.Score(std::exp(2.0)), (2 - level2 - slope2) / (1.2533 * error2), 1e-9);
}

TEST(SeriesPredictorTest, WhatIsNotFiniteIsInfinitelyFarAndNotLearned) {
  SeriesPredictor series;
  EXPECT_EQ(series.Score(std::nan("")), kInfinity);
  for (int i = 0; i < 49; ++i) series.Learn(1);
  series.Learn(kInfinity);
  EXPECT_FALSE(series.ready());
  series.Learn(1);
  const double before = series.Score(3);
  series.Learn(std::nan(""));
  EXPECT_EQ(series.Score(3), before);
}

// A series that does not vary at all: a twentieth more is no anomaly, a fifth is one.
TEST(SeriesPredictorTest, ASeriesWithoutNoiseHasALeastDeviation) {
  SeriesPredictor series;
  for (int i = 0; i < 500; ++i) series.Learn(0.25);
  EXPECT_LT(series.Score(0.25 * 1.05), 5);
  EXPECT_GT(series.Score(0.25 * 1.2), 5);
}

StepValues Quiet(Noise& noise) { return {0.5 * noise.Next(), 2 * noise.Next()}; }

TEST(LossCalibrationTest, OnlyWhatIsAboveTheRangeIsImplausible) {
  LossCalibration calibration(5, 50);
  Noise noise;
  for (int i = 0; i < 1000; ++i) {
    const auto step = Quiet(noise);
    EXPECT_TRUE(calibration.Judge(step).plausible) << i;
    calibration.Learn(step);
  }
  EXPECT_TRUE(calibration.Judge({0.001, 2}).plausible);
  EXPECT_TRUE(calibration.Judge({0.5, 0.001}).plausible);
  const auto loss = calibration.Judge({8, 2});
  EXPECT_FALSE(loss.plausible);
  EXPECT_GT(loss.loss_score, 5);
  EXPECT_LT(loss.norm_score, 5);
  EXPECT_LT(loss.loss_least, 0.35);
  EXPECT_GT(loss.loss_most, 0.65);
  EXPECT_LT(loss.loss_most, 8);
  const auto norm = calibration.Judge({0.5, 200});
  EXPECT_FALSE(norm.plausible);
  EXPECT_LT(norm.loss_score, 5);
  EXPECT_GT(norm.norm_score, 5);
  EXPECT_FALSE(calibration.Judge({0.5, kInfinity}).plausible);
}

TEST(LossCalibrationTest, NothingIsImplausibleUntilTheWarmUpIsOver) {
  LossCalibration calibration(5, 100);
  Noise noise;
  for (int i = 0; i < 100; ++i) {
    EXPECT_TRUE(calibration.Judge({8, 200}).plausible) << i;
    calibration.Learn(Quiet(noise));
  }
  EXPECT_FALSE(calibration.Judge({8, 200}).plausible);
}

TEST(LossCalibrationTest, AnOutlierHidesNoOtherAndIsForgotten) {
  LossCalibration calibration(5, 50);
  Noise noise;
  for (int i = 0; i < 500; ++i) calibration.Learn(Quiet(noise));
  for (int i = 0; i < 5; ++i) {
    EXPECT_FALSE(calibration.Judge({8, 2}).plausible) << i;
    calibration.Learn({8, 2});
  }
  for (int i = 0; i < 200; ++i) calibration.Learn(Quiet(noise));
  EXPECT_FALSE(calibration.Judge({2, 2}).plausible);
}

// A change that stays is the new level, after some steps.
TEST(LossCalibrationTest, ALastingChangeIsFollowed) {
  LossCalibration calibration(5, 50);
  Noise noise;
  for (int i = 0; i < 500; ++i) calibration.Learn(Quiet(noise));
  int implausible = 0;
  for (int i = 0; i < 200; ++i) {
    auto step = Quiet(noise);
    step.loss *= 8;
    if (!calibration.Judge(step).plausible) ++implausible;
    calibration.Learn(step);
  }
  EXPECT_GT(implausible, 3);
  EXPECT_LT(implausible, 20);
}

struct Series {
  std::string name;
  std::vector<StepValues> steps;
};

std::vector<Series> RecordedCurves() {
  std::ifstream file(std::filesystem::path(PS_SOURCE_DIRECTORY) /
                     "tests/ps-worker/core/loss_curves.txt");
  std::vector<Series> all;
  std::string line;
  while (std::getline(file, line)) {
    if (line.starts_with('#')) continue;
    if (line.starts_with("series ")) {
      all.push_back({line.substr(7), {}});
      continue;
    }
    std::istringstream words(line);
    double loss = 0;
    double norm = 0;
    if (words >> loss >> norm)
      all.back().steps.push_back({std::exp(loss / 100), std::exp(norm / 100)});
  }
  return all;
}

constexpr std::uint32_t kWarmup = 600;  // as in the job file

TEST(RecordedCurvesTest, AQuietTrainingHasAtMostOneFalseAlarmInTenThousandSteps) {
  std::size_t judged = 0;
  std::size_t alarms = 0;
  for (const Series& series : RecordedCurves()) {
    LossCalibration calibration(5, kWarmup);
    ASSERT_GT(series.steps.size(), kWarmup) << series.name;
    judged += series.steps.size() - kWarmup;
    for (std::size_t i = 0; i < series.steps.size(); ++i) {
      const auto verdict = calibration.Judge(series.steps[i]);
      if (!verdict.plausible) {
        ++alarms;
        std::printf("%s, step %zu: %.2f and %.2f deviations\n", series.name.c_str(), i,
                    verdict.loss_score, verdict.norm_score);
      }
      calibration.Learn(series.steps[i]);
    }
  }
  EXPECT_GE(judged, 10'000u);
  EXPECT_LE(alarms, 1u);
}

// What a batch with wrong labels, and one with exploding features, had in trainings of this model:
// a loss of 8 and a norm of 9 or more at least, where a quiet step has 0.5 and 1.5.
TEST(RecordedCurvesTest, AnAnomalyAtAnyStepIsNoticed) {
  std::size_t staged = 0;
  std::size_t noticed = 0;
  for (const Series& series : RecordedCurves()) {
    LossCalibration calibration(5, kWarmup);
    for (std::size_t i = 0; i < series.steps.size(); ++i) {
      if (i >= kWarmup && i % 50 == 0) {
        ++staged;
        if (!calibration.Judge({8, 9}).plausible) ++noticed;
        calibration.Learn({8, 9});
      }
      calibration.Learn(series.steps[i]);
    }
  }
  EXPECT_GE(staged, 200u);
  EXPECT_GE(static_cast<double>(noticed), 0.9 * static_cast<double>(staged));
}

TEST(LossCalibrationTest, ThePrecisionIsHeldTwiceAsLongAfterEachFault) {
  LossCalibration calibration(5, 50);
  EXPECT_FALSE(calibration.BeginStep());
  for (const int held : {200, 400, 800, 1600, 3200, 3200}) {
    calibration.HoldPrecision();
    for (int i = 0; i < held; ++i) EXPECT_TRUE(calibration.BeginStep()) << held << ", " << i;
    EXPECT_FALSE(calibration.BeginStep()) << held;
  }
}

}  // namespace
}  // namespace ps::worker
