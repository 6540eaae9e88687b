// Lines of a log that strangers can cause: some a second, then their number. One thread at a time.
#pragma once

#include <spdlog/spdlog.h>

#include <cstdint>
#include <string>
#include <utility>

#include "common/net/loop.h"

namespace ps::net {

class SparseLog {
 public:
  static constexpr int kLinesPerSecond = 5;

  // `what`: "connections or messages were refused"; their number stands before it.
  explicit SparseLog(std::string what) : what_(std::move(what)) {}

  void Warn(const std::string& text) {
    const std::int64_t second = WallClockMs() / 1000;
    if (second != second_) {
      if (left_out_ > 0) spdlog::warn("{} more {}", left_out_, what_);
      second_ = second;
      written_ = 0;
      left_out_ = 0;
    }
    if (written_ < kLinesPerSecond) {
      ++written_;
      spdlog::warn("{}", text);
    } else {
      ++left_out_;
    }
  }

 private:
  const std::string what_;
  std::int64_t second_ = 0;
  int written_ = 0;
  std::uint64_t left_out_ = 0;
};

}  // namespace ps::net
