#include "ps-server/core/rows/row_store.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "common/check.h"

namespace ps::server {
namespace {

constexpr std::size_t kSlabBytes = std::size_t{1} << 20;
constexpr std::size_t kAlignment = 64;
constexpr std::uint32_t kFirstRows = 16;

}  // namespace

RowStore::RowStore(std::uint32_t floats_per_row, std::pmr::memory_resource* memory)
    : record_bytes_(sizeof(RowRecord) + std::size_t{floats_per_row} * sizeof(float)),
      slab_shift_(static_cast<std::uint32_t>(std::bit_width(kSlabBytes / record_bytes_)) - 1),
      slab_mask_((RowNumber{1} << slab_shift_) - 1),
      memory_(memory),
      slabs_(memory) {}

RowStore::~RowStore() {
  for (std::size_t slab = 0; slab < slabs_.size(); ++slab) {
    const std::size_t rows = slab == 0 ? first_slab_rows_ : std::size_t{slab_mask_} + 1;
    memory_->deallocate(slabs_[slab], rows * record_bytes_, kAlignment);
  }
}

std::size_t RowStore::bytes() const {
  if (slabs_.empty()) return 0;
  const std::size_t rows = first_slab_rows_ + ((slabs_.size() - 1) << slab_shift_);
  return rows * record_bytes_ + slabs_.capacity() * sizeof(slabs_[0]);
}

void RowStore::GrowFirstSlab() {
  const std::uint32_t rows = std::min(std::max(first_slab_rows_ * 2, kFirstRows), slab_mask_ + 1);
  auto* grown = static_cast<std::byte*>(memory_->allocate(rows * record_bytes_, kAlignment));
  if (slabs_.empty()) {
    slabs_.push_back(grown);
  } else {
    std::memcpy(grown, slabs_[0], first_slab_rows_ * record_bytes_);
    memory_->deallocate(slabs_[0], first_slab_rows_ * record_bytes_, kAlignment);
    slabs_[0] = grown;
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
  if (used_ <= slab_mask_) {
    if (used_ == first_slab_rows_) GrowFirstSlab();
  } else if ((used_ & slab_mask_) == 0) {
    const std::size_t bytes = (std::size_t{slab_mask_} + 1) * record_bytes_;
    slabs_.push_back(static_cast<std::byte*>(memory_->allocate(bytes, kAlignment)));
  }
  return used_++;
}

void RowStore::Remove(RowNumber row) {
  RowRecord& record = *At(row);
  record.updates = 0;
  record.last_used = free_;
  free_ = row;
  --size_;
}

}  // namespace ps::server
