// The records of a table's rows, by row number.
//
// A record is a header and then the row's floats, values first, slots after
// them, with nothing in between: one row is one stretch of memory.
//
//   [key 8][updates 4][last used 4][values: width x 4][slots x 4]
//
// Records lie in slabs of up to 1 MiB that never move; only the first slab is
// copied when it grows, so that a small table costs little. Numbers of removed
// rows are used again, the last first. A record whose `updates` is 0 is free.
// Memory beside the records: none but the unused end of the last slab.
//
// Freeze() shares the slabs with a view (cow_pages.h), which is what a checkpoint
// is made from; of a slab that it shares, the lines of a row that is written on are
// saved for the view, and not the whole slab.
//
// One thread, but for views. `memory` is as CowPages asks.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory_resource>
#include <span>
#include <utility>
#include <vector>

#include "ps-server/core/cow_pages.h"

namespace ps::server {

using RowNumber = std::uint32_t;
inline constexpr RowNumber kNoRow = std::numeric_limits<RowNumber>::max();

// Four words, so that a record needs no padding whatever its width.
struct RowRecord {
  std::uint32_t key_low;
  std::uint32_t key_high;
  // Pushes applied to the row with these slots, plus 1; stays at its maximum. A row that was taken
  // over without its slots begins with 1 again.
  std::uint32_t updates;
  std::uint32_t last_used;  // tick of the last push

  std::uint64_t key() const { return std::uint64_t{key_high} << 32 | key_low; }
  void set_key(std::uint64_t key) {
    key_low = static_cast<std::uint32_t>(key);
    key_high = static_cast<std::uint32_t>(key >> 32);
  }
  float* floats() { return reinterpret_cast<float*>(this + 1); }
  const float* floats() const { return reinterpret_cast<const float*>(this + 1); }
};

namespace detail {

// Where the record of a row lies.
struct RowPlaces {
  std::size_t record_bytes;
  std::uint32_t slab_shift;  // log2 of the records of a slab

  std::size_t SlabOf(RowNumber row) const { return row >> slab_shift; }
  std::size_t OffsetOf(RowNumber row) const {
    return (row & ((RowNumber{1} << slab_shift) - 1)) * record_bytes;
  }
  RowNumber slab_rows() const { return RowNumber{1} << slab_shift; }
};

}  // namespace detail

// All rows as of an instant. May be read and ended on any one thread, and outlive the store.
class FrozenRows {
 public:
  std::uint64_t size() const { return size_; }
  std::size_t record_bytes() const { return places_.record_bytes; }

  // The number of the freeze, and whether rows of a slab are not as at the freeze `since`.
  std::uint32_t number() const { return slabs_.number(); }
  std::size_t slabs() const { return slabs_.size(); }
  bool Changed(std::size_t slab, std::uint64_t since) const { return slabs_.Changed(slab, since); }
  // Calls visit(RowNumber, const RowRecord&) for the rows of a slab in the order of their numbers.
  // The records are there until the next call.
  template <typename Visit>
  void ForEachIn(std::size_t slab, Visit visit) const {
    const RowNumber first = static_cast<RowNumber>(slab) << places_.slab_shift;
    if (first >= used_) return;
    const RowNumber end = first + std::min(places_.slab_rows(), used_ - first);
    const std::byte* record = slabs_.Read(slab, scratch_);
    for (RowNumber row = first; row < end; ++row, record += places_.record_bytes) {
      const auto& one = *reinterpret_cast<const RowRecord*>(record);
      if (one.updates != 0) visit(row, one);
    }
  }
  // Copies the record of a row, record_bytes() of them.
  void Copy(RowNumber row, std::byte* to) const {
    slabs_.CopyRange(places_.SlabOf(row), places_.OffsetOf(row), places_.record_bytes, to);
  }

 private:
  friend class RowStore;

  FrozenRows(FrozenPages slabs, detail::RowPlaces places, RowNumber used, std::uint64_t size)
      : slabs_(std::move(slabs)), places_(places), used_(used), size_(size) {}

  FrozenPages slabs_;
  mutable std::vector<std::byte> scratch_;
  detail::RowPlaces places_;
  RowNumber used_;
  std::uint64_t size_;
};

class RowStore {
 public:
  RowStore(std::uint32_t floats_per_row, std::pmr::memory_resource* memory);

  std::size_t record_bytes() const { return places_.record_bytes; }
  std::uint64_t size() const { return size_; }
  // What the slabs take.
  std::size_t bytes() const;
  // What writes to frozen slabs have copied so far.
  std::uint64_t bytes_copied() const { return slabs_.bytes_copied(); }

  // A record whose content is not defined; the caller sets all of it. Records of the first slab may
  // move.
  RowNumber Create();
  void Remove(RowNumber row);
  // Whole records, into a store that no row was removed from; the number of the first one, after
  // which the others follow.
  RowNumber Append(std::span<const std::byte> records);

  const RowRecord* At(RowNumber row) const {
    return reinterpret_cast<const RowRecord*>(slabs_.Read(places_.SlabOf(row)) +
                                              places_.OffsetOf(row));
  }
  // A record that may be written on as long as this lives.
  class Changing {
   public:
    RowRecord& operator*() const { return *record_; }
    RowRecord* operator->() const { return record_; }

   private:
    friend class RowStore;
    Changing(CowPages::Writing slab, std::size_t offset)
        : slab_(std::move(slab)), record_(reinterpret_cast<RowRecord*>(slab_.data() + offset)) {}

    CowPages::Writing slab_;
    RowRecord* record_;
  };
  // Records of the same slab may move. Until it has ended the store may be read, and nothing else.
  Changing Change(RowNumber row) {
    const std::size_t offset = places_.OffsetOf(row);
    return {slabs_.WriteRange(places_.SlabOf(row), offset, places_.record_bytes), offset};
  }

  FrozenRows Freeze() const { return {slabs_.Freeze(), places_, used_, size_}; }
  // Freezes so far.
  std::uint32_t freezes() const { return slabs_.freezes(); }

  // Calls visit(RowNumber, const RowRecord&) for all rows in the order of their numbers. `visit`
  // may remove the row that it is called for.
  template <typename Visit>
  void ForEach(Visit visit) const {
    for (RowNumber row = 0; row < used_; ++row) {
      const RowRecord& record = *At(row);
      if (record.updates != 0) visit(row, record);
    }
  }

 private:
  void GrowFirstSlab();

  const detail::RowPlaces places_;
  CowPages slabs_;
  std::uint32_t first_slab_rows_ = 0;
  RowNumber used_ = 0;       // numbers given out so far, removed ones included
  RowNumber free_ = kNoRow;  // the removed row to use next; its `last_used` names the one after it
  std::uint64_t size_ = 0;
};

}  // namespace ps::server
