// Which committed checkpoints of a job stay.
//
// Of a list these are: the newest `keep`, every `keep_every`-th, those that an
// operator has pinned, and those that other jobs start from. One that is damaged
// counts for nothing but a pin; the newest that is not is always among them. What
// a kept one builds on stays on the disk, listed or not. Pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <set>
#include <vector>

#include "common/ids.h"
#include "coordinator/core/job_state.h"

namespace ps::coordinator {

// Of a job, so that its state stays small enough for one node of ZooKeeper: beyond the first number
// the oldest that are there only as every `keep_every`-th go.
inline constexpr std::size_t kCheckpointsMax = 1000;
inline constexpr std::size_t kPinsMax = 100;

struct RetentionRule {
  std::size_t keep = 1;          // at least 1
  std::uint64_t keep_every = 0;  // 0: none for its number
};

// Those of `checkpoints`, which are in order, oldest first, that go. `held`: other jobs start from
// them.
std::vector<Round> ExpiredCheckpoints(const std::vector<CommittedCheckpoint>& checkpoints,
                                      const RetentionRule& rule, const std::set<Round>& held);

// Rounds of which nothing may be deleted from a disk: `checkpoints` and all that they build on.
std::set<Round> RoundsOnDisk(const std::vector<CommittedCheckpoint>& checkpoints);

}  // namespace ps::coordinator
