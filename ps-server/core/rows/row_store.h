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
// One thread. `memory` outlives the store and aligns to 64 bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory_resource>
#include <vector>

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

class RowStore {
 public:
  RowStore(std::uint32_t floats_per_row, std::pmr::memory_resource* memory);
  ~RowStore();
  RowStore(const RowStore&) = delete;
  RowStore& operator=(const RowStore&) = delete;

  std::size_t record_bytes() const { return record_bytes_; }
  std::uint64_t size() const { return size_; }
  // What the slabs take.
  std::size_t bytes() const;

  // A record whose content is not defined; the caller sets all of it. Records of the first slab may
  // move.
  RowNumber Create();
  void Remove(RowNumber row);

  RowRecord* At(RowNumber row) {
    return reinterpret_cast<RowRecord*>(slabs_[row >> slab_shift_] +
                                        (row & slab_mask_) * record_bytes_);
  }
  const RowRecord* At(RowNumber row) const { return const_cast<RowStore*>(this)->At(row); }

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

  const std::size_t record_bytes_;
  const std::uint32_t slab_shift_;  // log2 of the records of a slab
  const RowNumber slab_mask_;
  std::pmr::memory_resource* const memory_;
  std::pmr::vector<std::byte*> slabs_;
  std::uint32_t first_slab_rows_ = 0;
  RowNumber used_ = 0;       // numbers given out so far, removed ones included
  RowNumber free_ = kNoRow;  // the removed row to use next; its `last_used` names the one after it
  std::uint64_t size_ = 0;
};

}  // namespace ps::server
