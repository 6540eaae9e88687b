#include "ps-server/core/rows/row_store.h"

#include <algorithm>
#include <bit>

#include "common/check.h"

namespace ps::server {
namespace {

constexpr std::size_t kSlabBytes = std::size_t{1} << 20;
constexpr std::uint32_t kFirstRows = 16;
// What CowPages keeps of a slab.
constexpr std::size_t kSlabOverhead = 64;

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

void RowStore::Remove(RowNumber row) {
  RowRecord& record = *Change(row);
  record.updates = 0;
  record.last_used = free_;
  free_ = row;
  --size_;
}

}  // namespace ps::server
