#include "common/job/learning_rate.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace ps {

LearningRate::LearningRate(const LearningRateSpec& spec, double epochs, std::uint64_t records)
    : base_(spec.base), final_factor_(spec.final_factor), step_factor_(spec.step_factor) {
  const double samples_per_epoch = static_cast<double>(records);
  if (spec.schedule == "cosine") schedule_ = Schedule::kCosine;
  if (spec.schedule == "linear") schedule_ = Schedule::kLinear;
  if (spec.schedule == "inverse_square_root") schedule_ = Schedule::kInverseSquareRoot;
  if (spec.schedule == "step") schedule_ = Schedule::kStep;
  warmup_samples_ = spec.warmup_epochs * samples_per_epoch;
  total_samples_ = epochs * samples_per_epoch;
  for (const double epoch : spec.step_epochs) step_samples_.push_back(epoch * samples_per_epoch);
  std::sort(step_samples_.begin(), step_samples_.end());
}

double LearningRate::At(std::uint64_t samples_trained) const {
  const double samples = static_cast<double>(samples_trained);
  if (samples < warmup_samples_) return base_ * samples / warmup_samples_;
  const double span = total_samples_ - warmup_samples_;
  const double progress = span > 0 ? std::clamp((samples - warmup_samples_) / span, 0.0, 1.0) : 1.0;
  switch (schedule_) {
    case Schedule::kConstant: break;
    case Schedule::kCosine: {
      const double wave = 0.5 * (1 + std::cos(std::numbers::pi * progress));
      return base_ * (final_factor_ + (1 - final_factor_) * wave);
    }
    case Schedule::kLinear: return base_ * (1 - (1 - final_factor_) * progress);
    case Schedule::kInverseSquareRoot:
      return samples > warmup_samples_ ? base_ * std::sqrt(warmup_samples_ / samples) : base_;
    case Schedule::kStep: {
      double rate = base_;
      for (const double step : step_samples_) {
        if (samples >= step) rate *= step_factor_;
      }
      return rate;
    }
  }
  return base_;
}

}  // namespace ps
