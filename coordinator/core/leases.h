// Who trains which records: every record once per epoch, whatever happens to the workers.
//
// The records of a job form one sequence of positions 0 .. epochs * records;
// position p is record p % records of the shuffled epoch p / records. A worker
// trains leases, ranges of positions inside one epoch, in the order granted,
// and reports how far it is. What a dead worker did not train goes back into
// the pool. Pure state, owned by the coordinator's loop.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <set>
#include <vector>

#include "common/ids.h"
#include "common/messages/control.h"
#include "common/result.h"

namespace ps::coordinator {

class JsonWriter;

struct Range {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
  friend bool operator==(const Range&, const Range&) = default;
};

class LeaseBook {
 public:
  struct Options {
    std::uint64_t records = 0;        // of one epoch
    std::uint64_t total = 0;          // positions of the whole job
    std::uint64_t batch = 1;          // leases are whole batches but for the end of an epoch
    std::uint64_t lease_records = 1;  // size of a lease while there is plenty
    std::uint64_t workers = 1;  // as are wanted: leases shrink towards the end to share it out
    // Bulk-synchronous: leases of one size go to the workers in turn, so that who trains what does
    // not depend on who asks first. What the dead leave goes to whoever asks; after a Reset() all
    // workers have again what they would have had.
    bool in_turn = false;
  };

  LeaseBook() = default;
  explicit LeaseBook(const Options& options);

  // The next lease for a worker; nothing if none is left now (others may still return some). With
  // `push_records` its pushes have so many records instead of a batch, which the lease says.
  std::optional<control::LeaseT> Grant(WorkerId worker, Incarnation incarnation,
                                       std::uint32_t push_records = 0);
  // Leases of the worker above `highest`: granted, but the worker may never have heard of them.
  std::vector<control::LeaseT> GrantedAbove(Incarnation incarnation, std::uint64_t highest) const;

  // Moves a lease's `done` forward; reports of unknown leases and steps back are ignored.
  void Progress(Incarnation incarnation, std::uint64_t lease, std::uint64_t done);
  // The worker is gone. With `last_lease` (from its retention ring) everything before it is trained
  // and it is trained up to `last_done`; without, what was reported last holds. The rest returns.
  void Return(WorkerId worker, Incarnation incarnation, std::optional<std::uint64_t> last_lease,
              std::uint64_t last_done);
  // A ring found later shows that the worker trained more than was known when it was returned;
  // that is taken from the pool again, or counted as repeated if it has been granted since.
  void Reclaim(Incarnation incarnation, std::uint64_t last_lease, std::uint64_t last_done);

  // Checkpoint: the remaining positions at a cut. BeginCut, then CutWorker when the worker's cut
  // arrives (in order with its reports), then Remaining once all are there.
  void BeginCut();
  void CutWorker(Incarnation incarnation);
  std::vector<Range> RemainingAtCut() const;

  bool AllTrained() const;
  bool NothingToGrant() const;
  std::uint64_t trained() const;
  std::uint64_t total() const { return options_.total; }
  std::uint64_t workers() const { return options_.workers; }
  // From now on. Not with `in_turn`.
  void SetWorkers(std::uint64_t workers);
  std::uint64_t repeated() const { return repeated_; }

  // Starts over from what remained at a checkpoint, with all workers.
  void Reset(const std::vector<Range>& remaining);

  void Write(JsonWriter& out) const;
  static Result<LeaseBook> FromJson(const nlohmann::json& json);

 private:
  struct Holding {
    Incarnation incarnation;
    WorkerId worker;
    Range range;
    std::uint64_t done = 0;
    std::uint32_t push_records = 0;
  };
  // What a worker without a ring gave back, so that Reclaim can take it out of the pool again.
  struct Returned {
    Incarnation incarnation;
    std::uint64_t lease = 0;
    Range whole;
    std::uint64_t done = 0;
  };

  // in_turn: the lease with a position, of those that are cut off one after the other.
  struct Turn {
    std::uint64_t number = 0;  // from 0
    Range range;
  };
  Turn TurnOf(std::uint64_t position) const;
  void ResetTurns(const std::vector<Range>& remaining);

  // The next range for the worker, taken out of where it was; nothing if none is left for it.
  std::optional<Range> Take(std::uint32_t push_records);
  std::optional<Range> TakeInTurn(WorkerId worker);
  void GiveBack(Range range);
  // Removes the part of `range` that still lies in the pool; returns how many positions that was.
  std::uint64_t TakeFromPool(Range range);

  Options options_;
  std::uint64_t cursor_ = 0;  // positions from here on were never granted
  std::uint64_t next_lease_ = 1;
  std::uint64_t repeated_ = 0;
  std::vector<Range> pool_;                                // given back; sorted, not touching
  std::map<std::uint32_t, std::vector<Range>> set_aside_;  // in_turn: by worker, oldest first
  std::set<std::uint32_t> absent_;                         // in_turn: dead, nothing is set aside
  std::map<std::uint64_t, Holding> holdings_;              // by lease id
  std::vector<Returned> returned_;                         // bounded, newest last

  bool cut_open_ = false;
  std::map<Incarnation, bool> cut_workers_;
  std::vector<Range> cut_remaining_;
};

}  // namespace ps::coordinator
