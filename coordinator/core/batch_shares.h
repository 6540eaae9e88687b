// How many records a push of each worker has, where batches follow the workers' speeds.
//
// A worker's speed is the records that it trains in a second of computing, measured over windows of
// kWindowMs of its computing, of which a newer one counts half. What it waits for others is no part
// of it, so that a fast worker is seen to be fast while it waits for a slow one.
//
// As long as the fastest worker is less than kUnequal times as fast as the slowest one, all pushes
// have the usual size. Then, until they are within kEqual again, a push has the usual size times
// the worker's speed over the mean speed: all need the same time for it, and all pushes of a clock
// together have as many records as before. A share is at most kMost times more or less than usual,
// and follows changes of more than kStep. Pure; one thread.
#pragma once

#include <cstdint>
#include <vector>

#include "common/ids.h"

namespace ps::coordinator {

class BatchShares {
 public:
  static constexpr std::uint64_t kWindowMs = 1000;
  static constexpr double kUnequal = 1.3;
  static constexpr double kEqual = 1.15;
  static constexpr double kStep = 0.1;
  static constexpr double kMost = 4;

  // `usual`: records of a push; shares are whole multiples of `unit`, 1 .. usual.
  BatchShares(std::uint32_t usual, std::uint32_t unit, std::size_t workers);

  // What the task of a slot has done since it began: its first report only begins a window. True if
  // the workers were alike and are not any more, or the other way round.
  bool Observe(std::size_t slot, Incarnation task, std::uint64_t samples, std::uint64_t compute_ms);
  // The slot has no task now: nothing is known of the next one, which has the usual share.
  void Forget(std::size_t slot);

  std::uint32_t push_records(std::size_t slot) const { return workers_[slot].share; }
  // Records a second of computing; 0: not known.
  double speed(std::size_t slot) const { return workers_[slot].speed; }
  bool unequal() const { return unequal_; }

 private:
  struct Worker {
    Incarnation task;
    std::uint64_t samples = 0;  // at the beginning of the window, as the next
    std::uint64_t compute_ms = 0;
    double speed = 0;
    std::uint32_t share = 0;
  };

  bool Share();

  const std::uint32_t usual_;
  const std::uint32_t unit_;
  std::vector<Worker> workers_;
  bool unequal_ = false;
};

}  // namespace ps::coordinator
