#include "ps-worker/core/loss_scaler.h"

#include <cmath>

#include "common/check.h"

namespace ps::worker {

LossScaler::LossScaler(const LossScalerOptions& options)
    : options_(options), state_{options.initial_scale, 0} {
  PS_CHECK(options.initial_scale > 0 && options.growth_factor > 1 && options.backoff_factor > 0 &&
               options.backoff_factor < 1 && options.growth_interval > 0,
           options.initial_scale, options.growth_factor, options.backoff_factor,
           options.growth_interval);
}

void LossScaler::Update(bool overflow) {
  if (overflow) return BackOff();
  if (++state_.growth_tracker < options_.growth_interval) return;
  const auto grown = static_cast<float>(static_cast<double>(state_.scale) * options_.growth_factor);
  if (std::isfinite(grown)) state_.scale = grown;
  state_.growth_tracker = 0;
}

void LossScaler::BackOff() {
  state_.scale = static_cast<float>(static_cast<double>(state_.scale) * options_.backoff_factor);
  state_.growth_tracker = 0;
}

void LossScaler::Restore(const LossScale& state) {
  if (std::isfinite(state.scale) && state.scale > 0) state_ = state;
}

}  // namespace ps::worker
