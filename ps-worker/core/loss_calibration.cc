#include "ps-worker/core/loss_calibration.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/check.h"

namespace ps::worker {
namespace {

constexpr double kValueLeast = 1e-8;
constexpr double kSigmaOfMeanError = 1.2533;  // sqrt(pi / 2), of a normal distribution
constexpr double kErrorMost = 3;              // of what is learned, in sigma
constexpr double kLevelRate = 0.05;
constexpr double kSlopeKept = 0.998;
constexpr double kSlopeRate = 1e-4;
constexpr double kErrorRate = 0.02;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

double Logarithm(double value) { return std::log(std::max(value, kValueLeast)); }

double Median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace

double SeriesPredictor::sigma() const { return std::max(kSigmaOfMeanError * error_, kSigmaLeast); }

double SeriesPredictor::Score(double value) const {
  if (!std::isfinite(value)) return kInfinity;
  return ready() ? (Logarithm(value) - (level_ + slope_)) / sigma() : 0;
}

double SeriesPredictor::At(double score) const {
  return ready() ? std::exp(level_ + slope_ + score * sigma()) : kInfinity;
}

void SeriesPredictor::Learn(double value) {
  if (!std::isfinite(value)) return;
  const double x = Logarithm(value);
  if (!ready()) {
    first_.push_back(x);
    if (!ready()) return;
    level_ = Median(first_);
    for (const double one : first_) error_ += std::abs(one - level_);
    error_ /= static_cast<double>(first_.size());
    return;
  }
  const double prediction = level_ + slope_;
  const double bound = kErrorMost * sigma();
  const double error = std::clamp(x - prediction, -bound, bound);
  level_ = prediction + kLevelRate * error;
  slope_ = kSlopeKept * slope_ + kSlopeRate * error;
  error_ += kErrorRate * (std::abs(error) - error_);
}

LossCalibration::LossCalibration(double threshold, std::uint32_t warmup)
    : threshold_(threshold), warmup_left_(warmup) {
  PS_CHECK(threshold > 0, threshold);
}

LossCalibration::Verdict LossCalibration::Judge(const StepValues& step) const {
  Verdict verdict;
  verdict.loss_score = loss_.Score(step.loss);
  verdict.norm_score = norm_.Score(step.gradient_norm);
  verdict.loss_least = loss_.ready() ? loss_.At(-threshold_) : 0;
  verdict.loss_most = loss_.At(threshold_);
  verdict.norm_least = norm_.ready() ? norm_.At(-threshold_) : 0;
  verdict.norm_most = norm_.At(threshold_);
  verdict.plausible =
      warmup_left_ > 0 || (verdict.loss_score <= threshold_ && verdict.norm_score <= threshold_);
  return verdict;
}

void LossCalibration::Learn(const StepValues& step) {
  if (warmup_left_ > 0) --warmup_left_;
  loss_.Learn(step.loss);
  norm_.Learn(step.gradient_norm);
}

void LossCalibration::HoldPrecision() {
  hold_left_ = hold_next_;
  hold_next_ = std::min(2 * hold_next_, kHoldMost);
}

bool LossCalibration::BeginStep() {
  if (hold_left_ == 0) return false;
  --hold_left_;
  return true;
}

}  // namespace ps::worker
