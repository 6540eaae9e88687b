// One step of a model, computed in the precision of the task and looked at before
// anything of it is kept.
//
// With loss scaling (core/loss_scaler.h) the loss is scaled, and a gradient that
// is not finite is the scale's matter. With calibration (core/loss_calibration.h)
// an implausible step is computed again in fp32: then it counts as it comes out,
// or, if it stays implausible, not at all. Both cost one pass over the gradients,
// an implausible step its time again. Steps of few records, as at the end of an epoch, vary more
// than others and are not judged.
//
// One thread. After a step that is to be kept the model has its gradients.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "common/job/job_spec.h"
#include "common/result.h"
#include "ps-worker/core/loss_calibration.h"
#include "ps-worker/core/loss_scaler.h"
#include "ps-worker/core/precision.h"
#include "ps-worker/engine/model.h"
#include "ps-worker/engine/workload.h"

namespace ps::worker {

class GuardedStep {
 public:
  // The model is borrowed. `restore_buffers` takes back what a step that does not count has done to
  // the model's buffers.
  GuardedStep(const TrainingSpec& spec, Model& model, Precision precision,
              std::function<void()> restore_buffers);

  // Gradients that are not finite are `nonfinite` only where the loss scale is why; the others are
  // found by who takes them.
  // `meanwhile`: as in StepMode, or null.
  Result<ComputeResult> Run(const Batch& batch, const std::function<void()>* meanwhile = nullptr);

  Precision precision() const { return precision_; }
  // Nothing where the loss is not scaled.
  std::optional<LossScale> loss_scale() const;
  void RestoreLossScale(const LossScale& state);

 private:
  // Forward and backward; the norm is not finite if a gradient is not.
  Result<StepValues> Compute(const Batch& batch, Precision precision,
                             const std::function<void()>* meanwhile);
  // False if the step has too few records to be compared with those before it.
  bool IsComparable(std::uint32_t records);

  Model& model_;
  const Precision precision_;
  const std::function<void()> restore_buffers_;
  std::optional<LossScaler> scaler_;
  std::optional<LossCalibration> calibration_;
  std::uint32_t records_before_ = 0;
};

}  // namespace ps::worker
