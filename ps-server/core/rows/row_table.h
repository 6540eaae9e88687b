// The rows of one embedding table on one shard.
//
// A row is `width` floats of values and a fixed number of slots for the
// optimizer, under a 64-bit key. It comes into being with a push; until then
// a read gives what the initialiser says, and changes nothing. What a table
// holds, and what it does next, is a function of the pushes it has seen in their
// order (or of the image it was restored from, and those after it), and of
// nothing else: not of reads, memory addresses or the order of the index.
//
// A push first updates the rows that are there, in the order of its keys. Then
// its unknown keys, in the same order, are each
// - rejected, unless seen in `sightings` pushes (AdmissionSketch: a key may get
//   in early, and one that is seen rarely may be forgotten);
// - refused, if the table is full and nothing may go, or the push alone is too
//   much; with another policy RowsToEvict() first makes room for them, and for
//   at least a sixteenth of `rows_max`, so that it does not run for each row;
// - made, from initialiser and initial slots, and updated.
// What is rejected or refused is dropped and counted.
//
// Ticks are numbers that the caller gives, in whatever unit, and that never
// fall. A row that no push has used for more than `unused_max` ticks is removed
// when a push crosses a multiple of `unused_max` / 16.
//
// Memory of a row: its floats and at most 24 bytes (16 of them in its record,
// the rest index), once the table has 1 MiB. Removed rows leave room for new
// ones; the memory itself is kept.
//
// One thread. No clock, no I/O.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory_resource>
#include <span>
#include <utility>
#include <vector>

#include "checkpoint/row_image.h"
#include "common/result.h"
#include "ps-server/core/rows/admission_sketch.h"
#include "ps-server/core/rows/removed_rows.h"
#include "ps-server/core/rows/row_eviction.h"
#include "ps-server/core/rows/row_index.h"
#include "ps-server/core/rows/row_initializer.h"
#include "ps-server/core/rows/row_store.h"

namespace ps::server {

inline constexpr std::uint32_t kRowWidthMax = 1024;
// Memory of a row beside its floats, at most.
inline constexpr std::size_t kRowOverheadBytes = 24;

struct RowTableRules {
  std::uint32_t table = 0;  // number in the job
  std::uint32_t width = 0;  // 1 .. kRowWidthMax
  RowInitializer initializer;
  std::vector<float> initial_slots;  // one for each slot, at most 2 * width
  std::uint32_t sightings = 1;       // pushes that must name a key until it is let in, 1 .. 256
  std::size_t sketch_bytes = 0;      // more than 0 if `sightings` is more than 1
  std::uint32_t unused_max = 0;      // ticks; 0: rows stay
  std::uint64_t rows_max = 0;        // 0: no bound
  RowsFull when_full = RowsFull::kRefuse;
};

// Since the table was made.
struct RowCounters {
  std::uint64_t created = 0;
  std::uint64_t rejected = 0;  // pushed values dropped, the key was not seen often enough
  std::uint64_t refused = 0;   // pushed values dropped, there was no room
  std::uint64_t expired = 0;
  std::uint64_t evicted = 0;
};

// A table as of an instant; may be read and ended on any one thread, and outlive the table.
class FrozenRowTable {
 public:
  std::uint64_t content_bytes() const { return rows_.size() * rows_.record_bytes(); }
  // The table without its rows.
  const checkpoint::RowTableImage& head() const { return head_; }
  const FrozenRows& rows() const { return rows_; }
  const RemovedRows::Frozen& removed() const { return removed_; }
  // A copy of all rows, not sorted.
  checkpoint::RowTableImage ToImage() const;

 private:
  friend class RowTable;

  FrozenRowTable(checkpoint::RowTableImage head, FrozenRows rows, RemovedRows::Frozen removed)
      : head_(std::move(head)), rows_(std::move(rows)), removed_(std::move(removed)) {}

  checkpoint::RowTableImage head_;
  FrozenRows rows_;
  RemovedRows::Frozen removed_;
};

class RowTable {
 public:
  // `hash_seed` is best not known to who chooses the keys; it changes no result. `memory` is as
  // CowPages asks.
  RowTable(RowTableRules rules, std::uint64_t hash_seed, std::pmr::memory_resource* memory);

  const RowTableRules& rules() const { return rules_; }
  std::uint64_t rows() const { return rows_.size(); }
  // All memory that the table has taken.
  std::size_t bytes() const { return rows_.bytes() + index_.bytes() + sketch_.bytes(); }
  // What writes to frozen memory have copied so far.
  std::uint64_t bytes_copied() const { return rows_.bytes_copied(); }
  const RowCounters& counters() const { return counters_; }

  // Calls visit(position in `keys`, values) in order; values is null for a row that is not there,
  // whose values are rules().initializer's.
  template <typename Visit>
  void Read(std::span<const std::uint64_t> keys, Visit visit) const {
    const std::size_t fetched = sizeof(RowRecord) + rules_.width * sizeof(float);
    index_.FindEach(keys, fetched, [&](std::size_t at, RowNumber row) {
      visit(at, row != kNoRow ? rows_.At(row)->floats() : nullptr);
    });
  }

  // One push; each key at most once. Calls update(position in `keys`, pushes applied to the row and
  // its slots with this one, values, slots) for each row that is there or made.
  template <typename Update>
  void Push(std::span<const std::uint64_t> keys, std::uint32_t tick, Update update) {
    AdvanceTo(tick);
    unknown_.clear();
    index_.FindEach(keys, rows_.record_bytes(), [&](std::size_t at, RowNumber row) {
      if (row == kNoRow) {
        unknown_.push_back(static_cast<std::uint32_t>(at));
        return;
      }
      Apply(row, at, update);
    });
    if (unknown_.empty()) return;
    Admit(keys);
    for (const std::uint32_t at : unknown_) Apply(Create(keys[at]), at, update);
  }

  // All that makes the table, as of now; see cow_pages.h.
  FrozenRowTable Freeze() const;
  // Into a table without rows. kInvalid if the image is of another shape or CheckRows() refuses it.
  // A sketch of another size starts afresh.
  Status Restore(const checkpoint::RowTableImage& image);
  // The same in pieces, which together must pass CheckRows(). `head` is the image without rows and
  // sketch; room is made for `expected` rows.
  Status BeginRestore(const checkpoint::RowTableImage& head, std::uint64_t expected);
  void RestoreRows(std::span<const std::byte> records);
  void RestoreSketch(std::span<const std::uint8_t> counters, std::uint64_t sightings);

 private:
  template <typename Update>
  void Apply(RowNumber row, std::size_t at, Update& update) {
    const RowStore::Changing record = rows_.Change(row);
    record->last_used = now_;
    if (record->updates != std::numeric_limits<std::uint32_t>::max()) ++record->updates;
    update(at, record->updates - 1, record->floats(), record->floats() + rules_.width);
  }
  void AdvanceTo(std::uint32_t tick);
  // Leaves in `unknown_` the keys to make rows for, and makes room for them.
  void Admit(std::span<const std::uint64_t> keys);
  RowNumber Create(std::uint64_t key);
  void Remove(RowNumber row);

  const RowTableRules rules_;
  RowStore rows_;
  RowIndex index_;
  AdmissionSketch sketch_;
  std::uint32_t now_ = 0;
  RowCounters counters_;
  mutable RemovedRows removed_;         // Freeze() begins a new interval
  std::vector<std::uint32_t> unknown_;  // positions in the keys of the push under way
};

}  // namespace ps::server
