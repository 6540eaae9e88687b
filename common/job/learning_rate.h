// The learning rate of a job as a function of the samples it has trained.
//
// Schedules run on samples and not on steps or time, so that the number of
// workers and their speed do not change what a rate means. Pure; any thread.
#pragma once

#include <cstdint>
#include <vector>

#include "common/job/job_spec.h"

namespace ps {

class LearningRate {
 public:
  LearningRate() = default;
  // `records` of one epoch and `epochs` to train turn the specification's epochs into samples.
  LearningRate(const LearningRateSpec& spec, double epochs, std::uint64_t records);

  double At(std::uint64_t samples_trained) const;

 private:
  enum class Schedule { kConstant, kStep, kCosine, kLinear, kInverseSquareRoot };

  double base_ = 0;
  Schedule schedule_ = Schedule::kConstant;
  double warmup_samples_ = 0;
  double total_samples_ = 0;
  double final_factor_ = 0;
  double step_factor_ = 1;
  std::vector<double> step_samples_;  // increasing
};

}  // namespace ps
