#include "ps-worker/engine/model.h"

#include <algorithm>

#include "common/check.h"
#include "ps-worker/core/kernels/kernels.h"

namespace ps::worker {

// Those of a model that computes on the CPU.

void Model::ReadParameters(std::span<float> values) {
  const auto held = parameters();
  PS_CHECK(held.size() == values.size(), held.size(), values.size());
  std::copy(held.begin(), held.end(), values.begin());
}

void Model::WriteParameters(std::span<const float> values) {
  const auto held = parameters();
  PS_CHECK(held.size() == values.size(), held.size(), values.size());
  std::copy(values.begin(), values.end(), held.begin());
}

double Model::GradientSquares() const {
  const auto gradient = gradients();
  return kernels::Fastest().squares(gradient.data(), gradient.size());
}

}  // namespace ps::worker
