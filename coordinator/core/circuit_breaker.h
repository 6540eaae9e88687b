// Keeps new work away from what fails again and again.
//
// Who fails kFailures times within kWindowMs is unsteady until it has gone kRestMs
// without another failure: it keeps what it has and gets nothing new as long as
// somebody else can take it. A leader's memory: the next one starts afresh.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <string>

namespace ps::coordinator {

class CircuitBreaker {
 public:
  static constexpr std::size_t kFailures = 5;
  static constexpr std::uint64_t kWindowMs = 60'000;
  static constexpr std::uint64_t kRestMs = 60'000;

  // Returns whether it is unsteady from now on, and was not before.
  bool Fail(const std::string& name, std::uint64_t now_ms);
  // 0: it is not.
  std::uint64_t UnsteadyUntil(const std::string& name, std::uint64_t now_ms) const;

 private:
  std::map<std::string, std::deque<std::uint64_t>> failures_;  // the last kFailures, in ms
};

}  // namespace ps::coordinator
