#include "ps-worker/core/adaptive_ratio.h"

#include <algorithm>

#include "common/check.h"

namespace ps::worker {
namespace {

constexpr double kFall = 0.75;
constexpr double kRise = 1.1;

}  // namespace

AdaptiveRatio::AdaptiveRatio(double least, double most)
    : least_(least), most_(most), ratio_(least) {
  PS_CHECK(least > 0 && least <= most && most <= 1, least, most);
}

bool AdaptiveRatio::Observe(std::uint32_t pushes_without_verdict) {
  waiting_ += pushes_without_verdict;
  return ++steps_ >= kSteps;
}

void AdaptiveRatio::Adjust(double sent, double residual) {
  const double waiting = static_cast<double>(waiting_) / std::max(1u, steps_);
  steps_ = 0;
  waiting_ = 0;
  if (waiting > kBehind) {
    ratio_ = std::max(least_, ratio_ * kFall);
  } else if (waiting < kFree && residual > sent) {
    ratio_ = std::min(most_, ratio_ * kRise);
  }
}

}  // namespace ps::worker
