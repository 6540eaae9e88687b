// Identifiers that every program of the cluster shares, each a type of its own.
//
// An Id<Tag> wraps an integer so that a shard number cannot be passed where a
// worker number is meant. Ids compare and hash like their number, print as it,
// and convert only explicitly.
#pragma once

#include <compare>
#include <cstdint>
#include <functional>
#include <ostream>

namespace ps {

template <typename Tag, typename Rep>
class Id {
 public:
  using rep = Rep;

  constexpr Id() = default;
  constexpr explicit Id(Rep value) : value_(value) {}

  constexpr Rep value() const { return value_; }

  friend constexpr auto operator<=>(Id, Id) = default;
  friend std::ostream& operator<<(std::ostream& out, Id id) { return out << +id.value_; }

 private:
  Rep value_ = 0;
};

// A job's number, never reused within one ZooKeeper tree. Its name is for people.
using JobId = Id<struct JobIdTag, std::uint64_t>;
// Virtual shard of a job, 0 .. shards - 1.
using ShardId = Id<struct ShardIdTag, std::uint32_t>;
// Worker slot of a job, 0 .. workers - 1. A replacement takes over the slot of the dead.
using WorkerId = Id<struct WorkerIdTag, std::uint32_t>;
// New each time a worker task starts; unique within a job for ever, across slots.
using Incarnation = Id<struct IncarnationTag, std::uint32_t>;
// Steps that a worker has finished pushing; the clock of a push is also its sequence number. The
// first push of an incarnation has the clock (first clock + 1), see LiveWorker::first_clock.
using Clock = Id<struct ClockTag, std::uint64_t>;
// Grows with each change of a shard's assignment.
using Epoch = Id<struct EpochTag, std::uint32_t>;
// Number of a checkpoint of a job, never reused, not even after an aborted round.
using Round = Id<struct RoundTag, std::uint64_t>;

}  // namespace ps

template <typename Tag, typename Rep>
struct std::hash<ps::Id<Tag, Rep>> {
  std::size_t operator()(ps::Id<Tag, Rep> id) const noexcept {
    return std::hash<Rep>{}(id.value());
  }
};
