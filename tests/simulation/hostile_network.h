// Exactly-once under a hostile network: the real push streams, retention rings and lanes of one job
// in one thread, from a seed.
//
// 2 to 4 workers push integer-valued updates, of blocks and in most jobs of rows of embedding
// tables too, to 1 to 3 lanes while messages are lost, repeated, stalled and overtaken, connections
// are cut, pushes come back as too old or not finite, tasks die and are replayed by their agents,
// servers are lost and their shards restored from checkpoints. A coordinator of a few rules (those
// of coordinator/core/job.h) does what it takes. Then the faults stop, all must settle, and every
// entry of every shard must hold the exact sum of what was pushed.
#pragma once

#include <cstdint>
#include <string>

namespace ps::simulation {

struct HostileReport {
  std::string violation;  // empty: all rules were kept
  std::uint64_t steps = 0;
  std::uint64_t messages = 0;
  std::uint64_t lost = 0;
  std::uint64_t repeated = 0;
  std::uint64_t cuts = 0;
  std::uint64_t garbled = 0;
  std::uint64_t replays = 0;
  std::uint64_t too_old = 0;
  std::uint64_t non_finite = 0;
  std::uint64_t rows = 0;      // pushed
  std::uint64_t measured = 0;  // pushes whose staleness was counted
  std::uint64_t task_deaths = 0;
  std::uint64_t server_deaths = 0;
  std::uint64_t checkpoints = 0;
  std::uint64_t unheard_too_old = 0;  // segments that died with the task they should go back to
  std::int64_t virtual_ms = 0;

  HostileReport& operator+=(const HostileReport& other);
};

HostileReport RunHostileNetwork(std::uint64_t seed);

}  // namespace ps::simulation
