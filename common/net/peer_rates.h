// How often each address may ask: buckets that fill at a rate up to a bound.
//
// An IPv6 host has 2^64 addresses of its own, so there the first half counts. Of more addresses
// than kAddressesMax those that have not asked for long are forgotten; if all have, the rest share
// one bucket. Pure; one thread.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>

namespace ps::net {

class PeerRates {
 public:
  static constexpr std::size_t kAddressesMax = 4096;

  // Per second, and how many at once after a pause. No rate: no bound.
  PeerRates(double rate, double burst) : rate_(rate), burst_(std::max(burst, 1.0)) {}

  // False: too often. `now_ms` never goes back.
  bool Take(const std::string& address, std::int64_t now_ms) {
    if (rate_ <= 0) return true;
    auto at = buckets_.find(address);
    if (at == buckets_.end()) {
      if (buckets_.size() >= kAddressesMax) Forget(now_ms);
      const bool room = buckets_.size() < kAddressesMax;
      at = buckets_.try_emplace(room ? address : std::string(), Bucket{burst_, now_ms}).first;
    }
    Bucket& bucket = at->second;
    bucket.left = Left(bucket, now_ms);
    bucket.at_ms = now_ms;
    if (bucket.left < 1) return false;
    bucket.left -= 1;
    return true;
  }

  std::size_t size() const { return buckets_.size(); }

 private:
  struct Bucket {
    double left = 0;
    std::int64_t at_ms = 0;
  };

  double Left(const Bucket& bucket, std::int64_t now_ms) const {
    return std::min(burst_, bucket.left + rate_ * static_cast<double>(now_ms - bucket.at_ms) / 1e3);
  }

  // Those that are full again: they would begin like that anyway. At most once a second, as
  // strangers with many addresses would have us look through all of them each time.
  void Forget(std::int64_t now_ms) {
    if (now_ms - forgot_ms_ < 1000 && forgot_ms_ != 0) return;
    forgot_ms_ = now_ms;
    std::erase_if(buckets_,
                  [&](const auto& entry) { return Left(entry.second, now_ms) >= burst_; });
  }

  const double rate_;
  const double burst_;
  std::map<std::string, Bucket> buckets_;
  std::int64_t forgot_ms_ = 0;
};

}  // namespace ps::net
