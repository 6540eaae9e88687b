#include "ps-server/core/staleness_histogram.h"

#include <algorithm>

namespace ps::server {

void StalenessHistogram::Count(std::uint64_t value) {
  const auto at = std::lower_bound(kUpTo.begin(), kUpTo.end(), value);
  ++buckets_[static_cast<std::size_t>(at - kUpTo.begin())];
  ++count_;
  sum_ += value;
  largest_ = std::max(largest_, value);
}

StalenessHistogram& StalenessHistogram::operator+=(const StalenessHistogram& other) {
  for (std::size_t i = 0; i < kBuckets; ++i) buckets_[i] += other.buckets_[i];
  count_ += other.count_;
  sum_ += other.sum_;
  largest_ = std::max(largest_, other.largest_);
  return *this;
}

}  // namespace ps::server
