#include "bench/histogram.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace ps::bench {

std::uint32_t Histogram::BucketOf(std::uint64_t ns) {
  // Below kSteps each value has a bucket; above, the seven bits behind the first one count.
  if (ns < kSteps) return static_cast<std::uint32_t>(ns);
  const auto shift = static_cast<std::uint32_t>(std::bit_width(ns) - std::bit_width(kSteps));
  const std::uint32_t power = std::min(shift + 1, kPowers);
  if (shift + 1 > kPowers) return power * kSteps + kSteps - 1;
  return power * kSteps + static_cast<std::uint32_t>((ns >> shift) - kSteps);
}

std::uint64_t Histogram::LastOf(std::uint32_t bucket) {
  const std::uint32_t power = bucket / kSteps;
  if (power == 0) return bucket;
  const std::uint64_t first = std::uint64_t{kSteps} + bucket % kSteps;
  return ((first + 1) << (power - 1)) - 1;
}

void Histogram::Add(std::uint64_t ns) {
  ++buckets_[BucketOf(ns)];
  ++count_;
  max_ = std::max(max_, ns);
}

void Histogram::Add(const Histogram& other) {
  for (std::size_t i = 0; i < buckets_.size(); ++i) buckets_[i] += other.buckets_[i];
  count_ += other.count_;
  max_ = std::max(max_, other.max_);
}

std::uint64_t Histogram::Percentile(double share) const {
  if (count_ == 0) return 0;
  const auto wanted = std::max<std::uint64_t>(
      1, static_cast<std::uint64_t>(std::ceil(share * static_cast<double>(count_))));
  std::uint64_t seen = 0;
  for (std::uint32_t bucket = 0; bucket < buckets_.size(); ++bucket) {
    seen += buckets_[bucket];
    if (seen >= wanted) return std::min(LastOf(bucket), max_);
  }
  return max_;
}

}  // namespace ps::bench
