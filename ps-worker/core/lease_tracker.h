// How far this task is in the leases it was granted: what its progress reports and cuts say.
//
// Leases are trained in the order of their ids. A finished one is reported again and again until a
// committed checkpoint covers it, because the coordinator that heard of it first may have died
// before it wrote that down. Pure state, one thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

#include "common/messages/control.h"

namespace ps::worker {

class LeaseTracker {
 public:
  // Finished leases beyond this number are forgotten, oldest first.
  static constexpr std::size_t kFinishedMax = 2048;

  // Takes the new ones among `leases`: repeated and senseless ones are left out.
  std::vector<control::LeaseT> Add(const std::vector<control::LeaseT>& leases);
  std::uint64_t highest() const { return highest_; }

  // `done` records of the lease are trained and pushed. True if that finished it.
  bool Trained(std::uint64_t id, std::uint64_t done);
  // Every lease with its position, in order.
  std::vector<control::LeaseT> Positions() const;

  // The cut of a round stands here; once it is committed, what was finished by then is forgotten.
  void Cut(std::uint64_t round);
  void Committed(std::uint64_t round);

 private:
  struct Entry {
    control::LeaseT lease;
    std::uint64_t finished_before_round = 0;  // the first cut that has it finished; 0: none yet
    bool Finished() const { return lease.done >= lease.end - lease.begin; }
  };

  std::deque<Entry> entries_;  // by id
  std::uint64_t highest_ = 0;
};

}  // namespace ps::worker
