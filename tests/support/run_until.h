// Runs an io_context in the calling thread until a condition holds: how a test waits.
#pragma once

#include <algorithm>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <chrono>

namespace ps::test {

// False if the condition does not hold within `deadline`. It is looked at after each event.
template <typename Condition>
bool RunUntil(boost::asio::io_context& io, Condition condition,
              std::chrono::milliseconds deadline = std::chrono::milliseconds(20'000)) {
  const auto work = boost::asio::make_work_guard(io);
  const auto end = std::chrono::steady_clock::now() + deadline;
  if (io.stopped()) io.restart();
  while (!condition()) {
    const auto left = end - std::chrono::steady_clock::now();
    if (left.count() <= 0) return false;
    io.run_one_for(
        std::min<std::chrono::steady_clock::duration>(left, std::chrono::milliseconds(20)));
  }
  return true;
}

// Runs for a while, for what must not happen.
inline void RunFor(boost::asio::io_context& io, std::chrono::milliseconds duration) {
  RunUntil(
      io, [] { return false; }, duration);
}

}  // namespace ps::test
