// Tells steps that cannot be right by their loss and by the norm of their gradient.
//
// Each of the two is predicted from its own history, as a logarithm, since losses
// differ by factors. The prediction is Holt's linear one, made robust: level l,
// slope b, and the mean size s of the errors.
//     x = ln(max(value, 1e-8))    p = l + b    e = x - p    sigma = 1.2533 s
//     score = e / sigma           plausible up to exp(p + threshold * sigma)
//     e' = e, at most 3 sigma either way
//     l = p + 0.05 e'    b = 0.998 b + 0.0001 e'    s += 0.02 (min(|e|, 3 sigma) - s)
// The first 50 values are only looked at: l is their median then, and s their mean distance from
// it. Nothing is implausible until the warm-up is over, in which training may change fast. A single
// outlier hardly moves the prediction, but a lasting change of level is followed within some ten
// steps. Only what is above the plausible range is implausible: a loss that is too small does no
// harm.
//
// Source: Holt, "Forecasting seasonals and trends by exponentially weighted moving averages"
// (1957); clipped errors as in Gelper, Fried and Croux, "Robust forecasting with exponential and
// Holt-Winters smoothing" (2010). Pure; one thread.
#pragma once

#include <cstdint>
#include <vector>

namespace ps::worker {

// One series of positive values.
class SeriesPredictor {
 public:
  // Values that it begins with.
  static constexpr std::size_t kFirst = 50;
  // Series that hardly vary are taken to vary by so much, of ln(value).
  static constexpr double kSigmaLeast = 0.02;

  bool ready() const { return first_.size() >= kFirst; }
  // How far the value is above the prediction, in standard deviations; negative below it. 0 until
  // ready(); infinite for what is not finite.
  double Score(double value) const;
  // The value with that score; infinite until ready().
  double At(double score) const;
  void Learn(double value);

 private:
  double sigma() const;

  std::vector<double> first_;  // logarithms
  double level_ = 0;
  double slope_ = 0;
  double error_ = 0;
};

struct StepValues {
  double loss = 0;
  double gradient_norm = 0;
};

class LossCalibration {
 public:
  // Steps that are computed in fp32 after a fault of the precision; twice as many after the next.
  static constexpr std::uint32_t kHoldFirst = 200;
  static constexpr std::uint32_t kHoldMost = 3200;

  // `threshold` is a score; `warmup` are steps that are learned first and not judged.
  LossCalibration(double threshold, std::uint32_t warmup);

  double threshold() const { return threshold_; }

  struct Verdict {
    bool plausible = true;
    double loss_score = 0;
    double norm_score = 0;
    // The plausible ranges; their upper ends are the bounds.
    double loss_least = 0;
    double loss_most = 0;
    double norm_least = 0;
    double norm_most = 0;
  };
  Verdict Judge(const StepValues& step) const;
  // Once for each step, whatever became of it: the last values that it had.
  void Learn(const StepValues& step);

  // In fp32 the step was plausible: those that follow are computed so, too.
  void HoldPrecision();
  // Call once when a step begins: whether it is one of those.
  bool BeginStep();

 private:
  const double threshold_;
  std::uint32_t warmup_left_;
  SeriesPredictor loss_;
  SeriesPredictor norm_;
  std::uint32_t hold_left_ = 0;
  std::uint32_t hold_next_ = kHoldFirst;
};

}  // namespace ps::worker
