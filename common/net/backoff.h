// Waits between attempts: they double up to a limit, with seeded jitter so that the
// members of a cluster do not all try again at the same moment.
#pragma once

#include <algorithm>
#include <cstdint>
#include <random>

#include "common/net/loop.h"

namespace ps::net {

class Backoff {
 public:
  Backoff(Milliseconds first, Milliseconds limit, std::uint64_t seed)
      : first_(std::max(first, Milliseconds(1))), limit_(std::max(limit, first_)), random_(seed) {}

  // Between half of the current wait and the whole of it.
  Milliseconds Next() {
    const auto whole = current_.count() == 0 ? first_ : current_;
    current_ = std::min(whole * 2, limit_);
    std::uniform_int_distribution<std::int64_t> pick((whole.count() + 1) / 2, whole.count());
    return Milliseconds(pick(random_));
  }
  // After a success.
  void Reset() { current_ = Milliseconds(0); }

 private:
  const Milliseconds first_;
  const Milliseconds limit_;
  std::mt19937_64 random_;
  Milliseconds current_{0};
};

}  // namespace ps::net
