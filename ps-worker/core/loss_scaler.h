// The scale of the loss of one task: PyTorch's GradScaler, value for value.
//
// In fp16 gradients below 6e-8 become 0. So the loss is multiplied by `scale`
// before the backward pass and the gradients by Inverse(scale) after it. Where one is
// not finite the scale was too large: the step is skipped and the scale
// multiplied by the backoff factor; after `growth_interval` steps in a row
// without this it is multiplied by the growth factor, unless it would be
// infinite. As in PyTorch there is no lower bound.
//
// Source: torch/amp/grad_scaler.py and the kernel _amp_update_scale_ of PyTorch
// 2.3, whose roundings are kept: scale and inverse are fp32, products are
// computed in double. Pure; one thread.
#pragma once

#include <cstdint>

namespace ps::worker {

// What goes on from step to step.
struct LossScale {
  float scale = 65536;
  std::uint32_t growth_tracker = 0;  // steps since the last change or overflow

  friend bool operator==(const LossScale&, const LossScale&) = default;
};

struct LossScalerOptions {
  float initial_scale = 65536;
  double growth_factor = 2;     // more than 1
  double backoff_factor = 0.5;  // between 0 and 1
  std::uint32_t growth_interval = 2000;
};

class LossScaler {
 public:
  explicit LossScaler(const LossScalerOptions& options);

  const LossScale& state() const { return state_; }
  float scale() const { return state_.scale; }
  // What gradients are multiplied with.
  static float Inverse(float scale) { return static_cast<float>(1.0 / static_cast<double>(scale)); }

  // After each step: whether a gradient was not finite.
  void Update(bool overflow);
  // As an overflow does: for a fault of the precision that left every value finite.
  void BackOff();
  // Goes on from another task's or a checkpoint's. One that is not finite or not positive is left.
  void Restore(const LossScale& state);

 private:
  const LossScalerOptions options_;
  LossScale state_;
};

}  // namespace ps::worker
