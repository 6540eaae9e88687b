// The pushes of one worker that no committed checkpoint covers, in memory that outlives the worker.
//
// The memory is the caller's: shared memory mapped by a task and later by its agent
// (ps-worker/task/ring_file.h), or a plain buffer in tests.
//
//   +--------+----------------------------------------------------------------+
//   | header | data: records of 64-byte multiples, round and round             |
//   | 4 KiB  |   entry: head 64 | payload | parts 32 each | padding            |
//   |        |   skip:  head 64 | unused up to the end of the data             |
//   +--------+----------------------------------------------------------------+
//
// The writer may be killed between any two instructions. A record is written whole before `head`
// moves over it, in one release store; space is given back by one store of `tail`. So whoever opens
// the region after that finds whole entries with contiguous clocks, or nothing. Open() trusts none
// of it: every offset, length and checksum is verified before use, but payloads are not (the
// servers check them).
//
// Belongs to one thread, but for RingPin, which any thread may let go. A pinned entry keeps its
// bytes, and the memory stays mapped (`keep_alive`), until the last pin is gone.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "common/ids.h"
#include "common/result.h"

namespace ps::worker {

struct RingIdentity {
  JobId job;
  WorkerId worker;
  Incarnation incarnation;
  std::uint32_t generation = 0;
  std::uint32_t shards = 0;
  Clock first_clock;  // the first entry has first_clock + 1
  friend bool operator==(const RingIdentity&, const RingIdentity&) = default;
};

// One shard's segment of an entry, as it lies in the region.
struct RingPart {
  std::uint32_t shard = 0;
  std::uint32_t offset = 0;  // into the entry's payload
  std::uint32_t bytes = 0;
  std::uint32_t is_void = 0;  // 1: came back (or was refused); replayed as an empty push
  std::uint64_t base_version = 0;
  std::uint32_t lineage = 0;
  std::uint32_t reserved = 0;
};
static_assert(sizeof(RingPart) == 32);

// An entry's place in the stream of records; `lease_done` of lease_id's records are trained with
// it.
struct RingEntryInfo {
  Clock clock;
  std::uint32_t samples = 0;
  std::uint32_t flags = 0;
  std::uint64_t lease_id = 0;
  std::uint64_t lease_done = 0;
};

// Borrowed from the region: valid until the entry is released, or while a RingPin of it lives.
struct RingEntryView {
  RingEntryInfo info;
  std::span<const std::byte> payload;
  std::span<const RingPart> parts;  // increasing shards

  // The part of a shard, or null if the push left this shard untouched.
  const RingPart* FindPart(ShardId shard) const;
};

// Keeps one entry's bytes in place. May be moved to and destroyed on any thread.
class RingPin {
 public:
  RingPin() = default;
  ~RingPin() { Reset(); }
  RingPin(RingPin&& other) noexcept;
  RingPin& operator=(RingPin&& other) noexcept;

  void Reset();

 private:
  friend class RetentionRing;
  // Shared by the ring and the sends in flight, which end on libzmq's threads.
  std::shared_ptr<std::atomic<std::uint32_t>> count_;
  std::shared_ptr<void> keep_alive_;
};

class RetentionRing {
 public:
  static constexpr std::size_t kHeaderBytes = 4096;
  static constexpr std::size_t kRegionBytesMin = 2 * kHeaderBytes;

  // Formats the region for a new incarnation. kInvalid if it is too small or not 64-byte aligned.
  static Result<RetentionRing> Create(std::span<std::byte> region, const RingIdentity& identity,
                                      std::shared_ptr<void> keep_alive = nullptr);
  // Opens what a writer left behind; kInvalid with the reason if any of it cannot be right.
  static Result<RetentionRing> Open(std::span<std::byte> region,
                                    std::shared_ptr<void> keep_alive = nullptr);

  RetentionRing(RetentionRing&&) = default;
  RetentionRing& operator=(RetentionRing&&) = default;

  const RingIdentity& identity() const { return identity_; }

  // ---- writing, one entry at a time

  struct Reservation {
    std::span<std::byte> payload;  // max_payload bytes, the caller's until Commit or Cancel
    std::size_t region_begin = 0;  // bytes of the region that Commit may touch, for who backs it
    std::size_t region_end = 0;    //   with memory only on demand
  };
  enum class ReserveStatus {
    kReserved,
    kFull,      // released entries are still pinned, or a checkpoint must come first
    kTooLarge,  // more than the whole ring
  };
  // Room for one entry. At most one reservation is open.
  ReserveStatus Reserve(std::size_t max_payload, std::size_t max_parts, Reservation& reservation);
  // Publishes the entry: info.clock must be last_clock() + 1, parts increase by shard and lie
  // inside the first `payload_bytes` of the reserved payload.
  void Commit(const RingEntryInfo& info, std::size_t payload_bytes,
              std::span<const RingPart> parts);
  void Cancel();

  // ---- reading

  Clock first_clock() const { return identity_.first_clock; }
  // Clocks up to it are covered by a committed checkpoint and gone.
  Clock released() const { return released_; }
  Clock last_clock() const;
  bool empty() const { return Visible() == 0; }
  // False if the clock is not (or no longer) here.
  bool Find(Clock clock, RingEntryView& view) const;
  RingPin Pin(Clock clock);

  // The segment came back to the task or was refused: from now on a replay sends it empty. False if
  // it is so already, or there is no such segment.
  bool MarkVoid(Clock clock, ShardId shard);
  // A committed checkpoint covers all clocks up to `clock`.
  void Release(Clock clock);

  std::size_t used_bytes() const { return static_cast<std::size_t>(head_ - tail_); }
  std::size_t capacity_bytes() const { return capacity_; }

 private:
  struct Slot {
    Clock clock;
    std::uint64_t begin = 0;  // virtual offset, as head_
    std::uint64_t bytes = 0;
    std::shared_ptr<std::atomic<std::uint32_t>> pins;
  };

  RetentionRing() = default;
  std::size_t Visible() const;
  const Slot* SlotOf(Clock clock) const;
  std::byte* At(std::uint64_t offset) const { return data_ + offset % capacity_; }
  void WriteSkip(std::uint64_t at, std::uint64_t bytes);
  void StoreHead();
  void StoreTail();
  void Trim();
  Status Walk();

  RingIdentity identity_;
  std::byte* region_ = nullptr;
  std::byte* data_ = nullptr;
  std::uint64_t capacity_ = 0;
  std::shared_ptr<void> keep_alive_;

  // Virtual offsets only grow; the place in the data is offset % capacity_.
  std::uint64_t head_ = 0;
  std::uint64_t tail_ = 0;
  Clock released_;
  std::deque<Slot> slots_;  // in [tail_, head_), released but pinned ones in front

  bool reserved_ = false;
  std::uint64_t reserved_begin_ = 0;
  std::uint64_t reserved_bytes_ = 0;
  std::size_t reserved_payload_ = 0;
  std::size_t reserved_parts_ = 0;
};

}  // namespace ps::worker
