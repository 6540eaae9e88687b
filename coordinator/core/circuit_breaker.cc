#include "coordinator/core/circuit_breaker.h"

namespace ps::coordinator {

bool CircuitBreaker::Fail(const std::string& name, std::uint64_t now_ms) {
  const bool before = UnsteadyUntil(name, now_ms) != 0;
  std::erase_if(failures_, [&](const auto& entry) {
    return now_ms > entry.second.back() + kWindowMs + kRestMs;
  });
  std::deque<std::uint64_t>& failures = failures_[name];
  failures.push_back(now_ms);
  if (failures.size() > kFailures) failures.pop_front();
  return !before && UnsteadyUntil(name, now_ms) != 0;
}

std::uint64_t CircuitBreaker::UnsteadyUntil(const std::string& name, std::uint64_t now_ms) const {
  const auto at = failures_.find(name);
  if (at == failures_.end() || at->second.size() < kFailures) return 0;
  const std::deque<std::uint64_t>& failures = at->second;
  const std::uint64_t until = failures.back() + kRestMs;
  return failures.back() <= failures.front() + kWindowMs && now_ms < until ? until : 0;
}

}  // namespace ps::coordinator
