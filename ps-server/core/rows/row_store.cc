#include "ps-server/core/rows/row_store.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "common/check.h"

namespace ps::server {
namespace {

constexpr std::size_t kSlabBytes = std::size_t{1} << 20;
constexpr std::uint32_t kFirstRows = 16;
// What CowPages keeps of a slab.
constexpr std::size_t kSlabOverhead = 176;

}  // namespace

RowStore::RowStore(std::uint32_t floats_per_row, std::pmr::memory_resource* memory)
    : places_([&] {
        const std::size_t bytes = sizeof(RowRecord) + std::size_t{floats_per_row} * sizeof(float);
        return detail::RowPlaces{
            bytes, static_cast<std::uint32_t>(std::bit_width(kSlabBytes / bytes)) - 1};
      }()),
      slabs_(memory) {}

std::size_t RowStore::bytes() const { return slabs_.bytes() + slabs_.size() * kSlabOverhead; }

void RowStore::GrowFirstSlab() {
  const std::uint32_t rows =
      std::min(std::max(first_slab_rows_ * 2, kFirstRows), places_.slab_rows());
  if (slabs_.size() == 0) {
    slabs_.Append(rows * places_.record_bytes);
  } else {
    slabs_.Resize(0, rows * places_.record_bytes);
  }
  first_slab_rows_ = rows;
}

RowNumber RowStore::Create() {
  ++size_;
  if (free_ != kNoRow) {
    const RowNumber row = free_;
    free_ = At(row)->last_used;
    return row;
  }
  PS_CHECK(used_ < kNoRow, used_);
  if (places_.SlabOf(used_) == 0) {
    if (used_ == first_slab_rows_) GrowFirstSlab();
  } else if (places_.OffsetOf(used_) == 0) {
    slabs_.Append(places_.slab_rows() * places_.record_bytes);
  }
  return used_++;
}

RowNumber RowStore::Append(std::span<const std::byte> records) {
  PS_CHECK(free_ == kNoRow, free_);
  const RowNumber first = used_;
  const std::size_t bytes = places_.record_bytes;
  while (!records.empty()) {
    const RowNumber row = Create();
    const RowNumber in_slab = row & (places_.slab_rows() - 1);
    const RowNumber room =
        (places_.SlabOf(row) == 0 ? first_slab_rows_ : places_.slab_rows()) - in_slab;
    const std::size_t rows = std::min<std::size_t>(room, records.size() / bytes);
    std::memcpy(slabs_.Write(places_.SlabOf(row)) + places_.OffsetOf(row), records.data(),
                rows * bytes);
    records = records.subspan(rows * bytes);
    used_ += static_cast<RowNumber>(rows) - 1;  // the first one is counted
    size_ += rows - 1;
  }
  return first;
}

void RowStore::Remove(RowNumber row) {
  const Changing record = Change(row);
  record->updates = 0;
  record->last_used = free_;
  free_ = row;
  --size_;
}

}  // namespace ps::server
