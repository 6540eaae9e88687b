#include "coordinator/core/retention.h"

#include <algorithm>

namespace ps::coordinator {

std::vector<Round> ExpiredCheckpoints(const std::vector<CommittedCheckpoint>& checkpoints,
                                      const RetentionRule& rule, const std::set<Round>& held) {
  const std::size_t keep = std::max<std::size_t>(rule.keep, 1);
  std::vector<Round> expired;
  std::size_t newest = 0;  // kept for being among the newest
  std::size_t kept = 0;    // for that or their numbers
  for (auto one = checkpoints.rbegin(); one != checkpoints.rend(); ++one) {
    const bool new_enough = !one->damaged && newest < keep;
    const bool by_number = !one->damaged && rule.keep_every > 0 && one->ordinal > 0 &&
                           one->ordinal % rule.keep_every == 0 && kept < kCheckpointsMax;
    newest += new_enough ? 1 : 0;
    kept += new_enough || by_number ? 1 : 0;
    if (!new_enough && !by_number && !one->pinned && !held.contains(one->round)) {
      expired.push_back(one->round);
    }
  }
  std::reverse(expired.begin(), expired.end());
  return expired;
}

std::set<Round> RoundsOnDisk(const std::vector<CommittedCheckpoint>& checkpoints) {
  std::set<Round> rounds;
  for (const CommittedCheckpoint& one : checkpoints) {
    rounds.insert(one.round);
    rounds.insert(one.bases.begin(), one.bases.end());
  }
  return rounds;
}

}  // namespace ps::coordinator
