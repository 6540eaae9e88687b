// How stale applied pushes were: counts by value, in fixed buckets.
//
// Small values, which bounds are about, have buckets of their own. A plain value; any thread.
#pragma once

#include <array>
#include <cstdint>

namespace ps::server {

class StalenessHistogram {
 public:
  // Upper ends of the buckets, inclusive; the last bucket has none.
  static constexpr std::array<std::uint64_t, 16> kUpTo = {0,  1,  2,  3,  4,  5,   6,   8,
                                                          12, 16, 24, 32, 64, 128, 256, 1024};
  static constexpr std::size_t kBuckets = kUpTo.size() + 1;

  void Count(std::uint64_t value);

  std::uint64_t count() const { return count_; }
  std::uint64_t sum() const { return sum_; }
  std::uint64_t largest() const { return largest_; }
  // How many are in the bucket alone.
  std::uint64_t bucket(std::size_t index) const { return buckets_[index]; }

  StalenessHistogram& operator+=(const StalenessHistogram& other);

 private:
  std::array<std::uint64_t, kBuckets> buckets_{};
  std::uint64_t count_ = 0;
  std::uint64_t sum_ = 0;
  std::uint64_t largest_ = 0;
};

}  // namespace ps::server
