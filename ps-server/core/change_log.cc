#include "ps-server/core/change_log.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace ps::server {

void ChangeLog::Reset(std::uint64_t version) {
  count_ = 0;
  head_ = 0;
  used_ = 0;
  known_since_ = version;
}

wire::BlockHeader ChangeLog::LoadHeader(std::size_t at) const {
  wire::BlockHeader header;
  std::memcpy(&header, ring_.data() + at, sizeof(header));
  return header;
}

std::size_t ChangeLog::IndexBytes(const wire::BlockHeader& header) {
  const auto values = static_cast<wire::ValueCodec>(header.value_codec());
  if (values == wire::ValueCodec::Absent) return header.bytes();
  return header.bytes() - codec::ValueBytes(values, header.count());
}

void ChangeLog::Remember(const Record& record) {
  if (count_ == records_.size()) {
    std::vector<Record> more(std::max<std::size_t>(16, 2 * count_));
    for (std::size_t i = 0; i < count_; ++i) more[i] = RecordAt(i);
    records_ = std::move(more);
    first_ = 0;
  }
  records_[(first_ + count_) % records_.size()] = record;
  ++count_;
}

void ChangeLog::ForgetOldest() {
  const Record& oldest = RecordAt(0);
  used_ -= oldest.bytes + oldest.skipped;
  known_since_ = oldest.version;
  first_ = (first_ + 1) % records_.size();
  --count_;
  if (count_ == 0) {
    head_ = 0;
    used_ = 0;
  }
}

bool ChangeLog::Reserve(std::uint64_t version, std::size_t bytes) {
  if (bytes > capacity_) {
    Reset(version);
    return false;
  }
  if (ring_.empty()) ring_.resize(capacity_);
  // A record is contiguous: what is left at the end of the ring may have to be skipped.
  for (;;) {
    const bool wraps = head_ + bytes > capacity_;
    const std::size_t skipped = wraps ? capacity_ - head_ : 0;
    if (used_ + skipped + bytes <= capacity_) {
      if (wraps) head_ = 0;
      Remember(Record{version, head_, bytes, skipped});
      used_ += skipped + bytes;
      return true;
    }
    ForgetOldest();
  }
}

void ChangeLog::Append(std::uint64_t version, std::span<const std::byte> encoded) {
  if (encoded.empty() || !Reserve(version, encoded.size())) return;
  std::memcpy(ring_.data() + head_, encoded.data(), encoded.size());
  head_ += encoded.size();
}

void ChangeLog::Append(std::uint64_t version, std::span<const codec::BlockView> blocks,
                       bool whole_blocks) {
  std::size_t bytes = 0;
  for (const codec::BlockView& block : blocks) {
    if (block.count() == 0 && !whole_blocks) continue;
    bytes += sizeof(wire::BlockHeader);
    if (!whole_blocks) bytes += block.index_bytes.size();
  }
  if (bytes == 0 || !Reserve(version, bytes)) return;
  std::size_t at = head_;
  for (const codec::BlockView& block : blocks) {
    if (block.count() == 0 && !whole_blocks) continue;
    const bool whole = whole_blocks || block.dense();
    const wire::BlockHeader header(
        block.header.block(), block.count(),
        whole ? 0 : static_cast<std::uint32_t>(block.index_bytes.size()),
        whole ? static_cast<std::uint8_t>(wire::IndexCodec::Dense) : block.header.index_codec(),
        static_cast<std::uint8_t>(wire::ValueCodec::Absent), 0);
    std::memcpy(ring_.data() + at, &header, sizeof(header));
    at += sizeof(header);
    if (header.bytes() > 0) {
      std::memcpy(ring_.data() + at, block.index_bytes.data(), header.bytes());
    }
    at += header.bytes();
  }
  head_ = at;
}

}  // namespace ps::server
