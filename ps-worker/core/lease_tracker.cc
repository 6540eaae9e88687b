#include "ps-worker/core/lease_tracker.h"

#include <algorithm>

namespace ps::worker {

std::vector<control::LeaseT> LeaseTracker::Add(const std::vector<control::LeaseT>& leases) {
  std::vector<control::LeaseT> sorted = leases;
  std::sort(sorted.begin(), sorted.end(),
            [](const control::LeaseT& a, const control::LeaseT& b) { return a.id < b.id; });
  std::vector<control::LeaseT> added;
  for (const control::LeaseT& lease : sorted) {
    if (lease.id <= highest_ || lease.begin >= lease.end || lease.done >= lease.end - lease.begin) {
      continue;
    }
    highest_ = lease.id;
    entries_.push_back(Entry{lease, 0});
    added.push_back(lease);
  }
  return added;
}

bool LeaseTracker::Trained(std::uint64_t id, std::uint64_t done) {
  const auto found = std::find_if(entries_.begin(), entries_.end(),
                                  [id](const Entry& entry) { return entry.lease.id == id; });
  if (found == entries_.end() || done <= found->lease.done) return false;
  const bool was_finished = found->Finished();
  found->lease.done = std::min(done, found->lease.end - found->lease.begin);
  const bool finishes = !was_finished && found->Finished();
  const auto finished = static_cast<std::size_t>(std::count_if(
      entries_.begin(), entries_.end(), [](const Entry& entry) { return entry.Finished(); }));
  if (finished > kFinishedMax && entries_.front().Finished()) entries_.pop_front();
  return finishes;
}

std::vector<control::LeaseT> LeaseTracker::Positions() const {
  std::vector<control::LeaseT> positions;
  positions.reserve(entries_.size());
  for (const Entry& entry : entries_) positions.push_back(entry.lease);
  return positions;
}

void LeaseTracker::Cut(std::uint64_t round) {
  for (Entry& entry : entries_) {
    if (entry.Finished() && entry.finished_before_round == 0) {
      entry.finished_before_round = round;
    }
  }
}

void LeaseTracker::Committed(std::uint64_t round) {
  std::erase_if(entries_, [round](const Entry& entry) {
    return entry.finished_before_round != 0 && entry.finished_before_round <= round;
  });
}

}  // namespace ps::worker
