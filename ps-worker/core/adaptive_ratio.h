// Raises the ratio of a worker's pushes while its link carries more, within bounds.
//
// What is looked at every kSteps steps:
//   pushes without a verdict when a step begins: the link, or a server, is behind
//   if there are more than kBehind on average, and has room below kFree;
//   norms of what a push sent and of what it left behind: to send more is of use
//   only while the rest is the larger part.
// So the ratio falls by a quarter at once where pushes pile up, and rises by a tenth
// where they do not and the residual is large. Pure; one thread.
#pragma once

#include <cstdint>

namespace ps::worker {

class AdaptiveRatio {
 public:
  static constexpr std::uint32_t kSteps = 16;
  static constexpr double kBehind = 2;
  static constexpr double kFree = 1;

  // 0 < least <= most <= 1. Begins with the least.
  AdaptiveRatio(double least, double most);

  double ratio() const { return ratio_; }

  // Call before each step. True if Adjust() is to be called.
  bool Observe(std::uint32_t pushes_without_verdict);
  // `sent` and `residual` are norms, of the last push and of what stayed behind.
  void Adjust(double sent, double residual);

 private:
  const double least_;
  const double most_;
  double ratio_;
  std::uint32_t steps_ = 0;  // since the last Adjust()
  std::uint64_t waiting_ = 0;
};

}  // namespace ps::worker
