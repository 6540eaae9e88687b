// Latencies in buckets whose width grows with the value: any number of samples in fixed memory.
//
// A bucket is at most 1/128 of its value wide, so a percentile is at most 0.8 % off; the maximum is
// exact. Values are nanoseconds. One thread.
#pragma once

#include <array>
#include <cstdint>

namespace ps::bench {

class Histogram {
 public:
  void Add(std::uint64_t ns);
  void Add(const Histogram& other);

  std::uint64_t count() const { return count_; }
  std::uint64_t max() const { return max_; }
  // The value that `share` (0 to 1) of the samples do not exceed; 0 without samples.
  std::uint64_t Percentile(double share) const;

 private:
  static constexpr std::uint32_t kSteps = 128;  // of one power of two
  static constexpr std::uint32_t kPowers = 40;  // up to 2^47 ns, more than a day
  static std::uint32_t BucketOf(std::uint64_t ns);
  // The largest value of a bucket.
  static std::uint64_t LastOf(std::uint32_t bucket);

  std::array<std::uint64_t, (kPowers + 1) * kSteps> buckets_{};
  std::uint64_t count_ = 0;
  std::uint64_t max_ = 0;
};

}  // namespace ps::bench
