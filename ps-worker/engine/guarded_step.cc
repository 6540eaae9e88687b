#include "ps-worker/engine/guarded_step.h"

#include <cmath>
#include <cstdio>
#include <utility>

#include "ps-worker/core/kernels/kernels.h"

namespace ps::worker {
namespace {

std::string NumberText(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.4g", value);
  return text;
}

std::string Describe(const char* what, double value, double least, double most, double score) {
  return std::string("the ") + what + " is " + NumberText(value) + ", plausible are " +
         NumberText(least) + " to " + NumberText(most) + " (" + NumberText(score) +
         " deviations above the prediction)";
}

std::string Describe(const LossCalibration::Verdict& verdict, const StepValues& step,
                     double threshold) {
  std::string text;
  if (!(verdict.loss_score <= threshold)) {
    text = Describe("loss", step.loss, verdict.loss_least, verdict.loss_most, verdict.loss_score);
  }
  if (!(verdict.norm_score <= threshold)) {
    text += (text.empty() ? "" : ", ") + Describe("gradient norm", step.gradient_norm,
                                                  verdict.norm_least, verdict.norm_most,
                                                  verdict.norm_score);
  }
  return text;
}

}  // namespace

GuardedStep::GuardedStep(const TrainingSpec& spec, Model& model, Precision precision,
                         std::function<void()> restore_buffers)
    : model_(model), precision_(precision), restore_buffers_(std::move(restore_buffers)) {
  if (ScalesLoss(spec.loss_scaling.mode, precision)) {
    LossScalerOptions options;
    options.initial_scale = static_cast<float>(spec.loss_scaling.initial_scale);
    options.growth_factor = spec.loss_scaling.growth_factor;
    options.backoff_factor = spec.loss_scaling.backoff_factor;
    options.growth_interval = static_cast<std::uint32_t>(spec.loss_scaling.growth_interval);
    scaler_.emplace(options);
  }
  if (spec.loss_calibration.enabled) {
    calibration_.emplace(spec.loss_calibration.threshold,
                         static_cast<std::uint32_t>(spec.loss_calibration.warmup_steps));
  }
}

std::optional<LossScale> GuardedStep::loss_scale() const {
  return scaler_ ? std::optional(scaler_->state()) : std::nullopt;
}

void GuardedStep::RestoreLossScale(const LossScale& state) {
  if (scaler_) scaler_->Restore(state);
}

Result<StepValues> GuardedStep::Compute(const Batch& batch, Precision precision,
                                        const std::function<void()>* meanwhile) {
  StepMode mode;
  mode.precision = precision;
  mode.meanwhile = meanwhile;
  if (scaler_) mode.loss_scale = scaler_->scale();
  StepValues values;
  values.loss = PS_TRY(model_.Step(batch, mode));
  if (!scaler_ && !calibration_) return values;
  double squares = model_.GradientSquares();
  const std::size_t tables = batch.rows == nullptr ? 0 : batch.rows->tables.size();
  for (std::uint32_t table = 0; table < tables; ++table) {
    const auto gradient = model_.row_gradients(table);
    squares += kernels::Fastest().squares(gradient.data(), gradient.size());
  }
  values.gradient_norm = std::sqrt(squares);
  return values;
}

bool GuardedStep::IsComparable(std::uint32_t records) {
  const bool comparable = 2 * std::uint64_t{records} >= records_before_;
  records_before_ = records;
  return comparable;
}

Result<ComputeResult> GuardedStep::Run(const Batch& batch, const std::function<void()>* meanwhile) {
  ComputeResult result;
  const bool held = calibration_ && calibration_->BeginStep();
  const Precision precision = held ? Precision::kFp32 : precision_;
  StepValues values = PS_TRY(Compute(batch, precision, meanwhile));
  result.loss = values.loss;
  const bool finite = std::isfinite(values.gradient_norm);
  if (scaler_) {
    const float scale = scaler_->scale();
    scaler_->Update(/*overflow=*/!finite);
    // What is not finite without a scale is so because of the batch or the weights.
    result.overflow = !finite && std::isfinite(values.loss) && scale > 1;
    if (result.overflow) {
      result.nonfinite = "the gradient is not finite at the loss scale " + NumberText(scale);
      return result;
    }
  }
  if (!std::isfinite(values.loss)) result.nonfinite = "the loss is not finite";
  if (!result.nonfinite.empty() || !finite || !calibration_ || !IsComparable(batch.records)) {
    return result;
  }

  const auto verdict = calibration_->Judge(values);
  if (!verdict.plausible) {
    result.implausible = Describe(verdict, values, calibration_->threshold());
    restore_buffers_();
    values = PS_TRY(Compute(batch, Precision::kFp32, nullptr));
    result.redone = calibration_->Judge(values).plausible;
    if (result.redone) {
      result.loss = values.loss;
      if (precision != Precision::kFp32) {
        calibration_->HoldPrecision();
        if (scaler_) scaler_->BackOff();
      }
    }
  }
  calibration_->Learn(values);
  return result;
}

}  // namespace ps::worker
