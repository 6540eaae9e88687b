#include "ps-server/core/rows/row_index.h"

#include <cstring>

#include "common/check.h"

namespace ps::server {
namespace {

constexpr std::uint32_t kSegmentPages = 8;
constexpr std::uint32_t kDepthMax = 32;
constexpr std::uint8_t kPassedForever = 255;  // counted no further, and not back

// 85 %, above which a segment grows.
constexpr std::uint64_t RowsMax(std::uint64_t buckets) { return buckets * 12 * 17 / 20; }

}  // namespace

RowIndex::RowIndex(const RowStore& rows, std::uint64_t seed, std::pmr::memory_resource* memory)
    : rows_(rows), seed_(seed), memory_(memory), segments_(memory), directory_(memory) {
  Resize(segments_.emplace_back(memory_), 1);
  directory_.push_back(0);
}

RowIndex::~RowIndex() {
  for (Segment& segment : segments_) Resize(segment, 0);
}

void RowIndex::Resize(Segment& segment, std::uint32_t bucket_count) {
  const auto page_bytes = [](std::uint32_t buckets) {
    return std::min(buckets, kPageBuckets) * sizeof(Bucket);
  };
  const std::size_t pages = (std::size_t{bucket_count} + kPageBuckets - 1) / kPageBuckets;
  const std::size_t bytes = page_bytes(bucket_count);
  const std::size_t bytes_before = page_bytes(segment.bucket_count);
  while (segment.pages.size() > (bytes == bytes_before ? pages : 0)) {
    memory_->deallocate(segment.pages.back(), bytes_before, alignof(Bucket));
    bucket_bytes_ -= bytes_before;
    segment.pages.pop_back();
  }
  while (segment.pages.size() < pages) {
    segment.pages.push_back(static_cast<Bucket*>(memory_->allocate(bytes, alignof(Bucket))));
    bucket_bytes_ += bytes;
  }
  for (Bucket* const page : segment.pages) std::memset(static_cast<void*>(page), 0, bytes);
  segment.bucket_count = bucket_count;
  segment.rows = 0;
}

std::size_t RowIndex::bytes() const {
  return bucket_bytes_ + segments_.capacity() * (sizeof(Segment) + kSegmentPages * sizeof(void*)) +
         directory_.capacity() * sizeof(directory_[0]);
}

RowNumber RowIndex::Find(std::uint64_t key) const {
  const std::uint64_t hash = HashOf(key);
  const Segment& segment = segments_[directory_[DirectoryAt(hash)]];
  const std::uint8_t tag = TagOf(hash);
  std::uint32_t at = BucketOf(hash, segment.bucket_count);
  for (std::uint32_t tried = 0; tried < segment.bucket_count; ++tried) {
    const Bucket& bucket = segment.bucket(at);
    for (std::uint32_t left = Matches(bucket, tag); left != 0; left &= left - 1) {
      const RowNumber row = bucket.rows[static_cast<unsigned>(std::countr_zero(left))];
      if (rows_.At(row)->key() == key) return row;
    }
    if (bucket.tags[kPassed] == 0) break;
    at = segment.After(at);
  }
  return kNoRow;
}

void RowIndex::Place(Segment& segment, std::uint64_t hash, RowNumber row) {
  std::uint32_t at = BucketOf(hash, segment.bucket_count);
  for (;;) {
    Bucket& bucket = segment.bucket(at);
    if (const std::uint32_t empty = Matches(bucket, 0); empty != 0) {
      const auto place = static_cast<unsigned>(std::countr_zero(empty));
      bucket.tags[place] = TagOf(hash);
      bucket.rows[place] = row;
      ++segment.rows;
      return;
    }
    if (bucket.tags[kPassed] != kPassedForever) ++bucket.tags[kPassed];
    at = segment.After(at);
  }
}

void RowIndex::Insert(RowNumber row) {
  const std::uint64_t hash = HashOfRow(row);
  const Segment& now = segments_[directory_[DirectoryAt(hash)]];
  if (now.rows + 1 > RowsMax(now.bucket_count)) Grow(hash);
  Place(segments_[directory_[DirectoryAt(hash)]], hash, row);
}

void RowIndex::InsertAll(RowNumber first, RowNumber count) {
  constexpr RowNumber kGroup = 16;
  std::array<std::uint64_t, kGroup> hashes;
  for (RowNumber at = 0; at < count; at += kGroup) {
    const RowNumber rows = std::min(kGroup, count - at);
    for (RowNumber i = 0; i < rows; ++i) {
      hashes[i] = HashOfRow(first + at + i);
      const Segment& segment = segments_[directory_[DirectoryAt(hashes[i])]];
      __builtin_prefetch(&segment.bucket(BucketOf(hashes[i], segment.bucket_count)), 1);
    }
    for (RowNumber i = 0; i < rows; ++i) {
      const Segment& now = segments_[directory_[DirectoryAt(hashes[i])]];
      if (now.rows + 1 > RowsMax(now.bucket_count)) Grow(hashes[i]);
      Place(segments_[directory_[DirectoryAt(hashes[i])]], hashes[i], first + at + i);
    }
  }
}

void RowIndex::Reserve(std::uint64_t rows) {
  if (segments_.size() != 1 || segments_[0].rows != 0) return;
  const std::uint64_t segment_rows = RowsMax(std::uint64_t{kSegmentPages} * kPageBuckets);
  std::uint32_t depth = 0;
  while (depth < kDepthMax && rows >> depth > segment_rows) ++depth;
  const std::uint64_t each = rows >> depth;
  if (depth == 0 && each <= RowsMax(kPageBuckets)) return;  // it grows fast
  // What chance puts into one segment beyond its share lets that grow by itself.
  const auto pages = static_cast<std::uint32_t>(each / RowsMax(kPageBuckets) + 1);
  segments_.reserve(std::size_t{1} << depth);
  directory_.resize(std::size_t{1} << depth);
  depth_ = depth;
  for (std::uint32_t number = 0; number < directory_.size(); ++number) {
    directory_[number] = number;
    Segment& segment = number == 0 ? segments_[0] : segments_.emplace_back(memory_);
    segment.depth = depth;
    Resize(segment, pages * kPageBuckets);
  }
}

void RowIndex::Remove(RowNumber row) {
  const std::uint64_t hash = HashOfRow(row);
  Segment& segment = segments_[directory_[DirectoryAt(hash)]];
  const std::uint8_t tag = TagOf(hash);
  std::uint32_t at = BucketOf(hash, segment.bucket_count);
  for (std::uint32_t tried = 0;; ++tried) {
    PS_CHECK(tried < segment.bucket_count, row, segment.rows);
    Bucket& bucket = segment.bucket(at);
    for (std::uint32_t left = Matches(bucket, tag); left != 0; left &= left - 1) {
      const auto place = static_cast<unsigned>(std::countr_zero(left));
      if (bucket.rows[place] != row) continue;
      bucket.tags[place] = 0;
      --segment.rows;
      // What is left after many removals is packed again.
      if (segment.bucket_count > 1 && std::uint64_t{segment.rows} * 5 < segment.bucket_count * 12) {
        Rebuild(segment, segment.bucket_count / 2);
      }
      return;
    }
    if (bucket.tags[kPassed] != kPassedForever) --bucket.tags[kPassed];
    at = segment.After(at);
  }
}

std::vector<RowIndex::Entry> RowIndex::EntriesOf(const Segment& segment) const {
  std::vector<Entry> entries;
  entries.reserve(segment.rows);
  for (std::uint32_t at = 0; at < segment.bucket_count; ++at) {
    const Bucket& bucket = segment.bucket(at);
    for (std::uint32_t place = 0; place < kBucketRows; ++place) {
      if (bucket.tags[place] == 0) continue;
      __builtin_prefetch(rows_.At(bucket.rows[place]));
      entries.push_back(Entry{0, bucket.rows[place]});
    }
  }
  for (Entry& entry : entries) entry.hash = HashOfRow(entry.row);
  return entries;
}

void RowIndex::Rebuild(Segment& segment, std::uint32_t bucket_count) {
  const std::vector<Entry> entries = EntriesOf(segment);
  Resize(segment, bucket_count);
  for (const Entry& entry : entries) Place(segment, entry.hash, entry.row);
}

void RowIndex::Grow(std::uint64_t hash) {
  const std::uint32_t at = directory_[DirectoryAt(hash)];
  Segment& segment = segments_[at];
  const std::uint32_t count = segment.bucket_count;
  if (count < kPageBuckets) {
    Rebuild(segment, std::min(kPageBuckets, count + (count + 3) / 4));
    return;
  }
  // The directory stays small even if somebody found keys with like hashes: then the segment grows
  // beyond the usual.
  const bool directory_fits = segment.depth < depth_ || directory_.size() < 8 * segments_.size();
  if (count >= kSegmentPages * kPageBuckets && directory_fits && segment.depth < kDepthMax) {
    Split(at, hash);
  } else {
    Rebuild(segment, count + std::max(1u, count / (4 * kPageBuckets)) * kPageBuckets);
  }
}

void RowIndex::Split(std::size_t segment_at, std::uint64_t hash) {
  if (segments_[segment_at].depth == depth_) {
    std::pmr::vector<std::uint32_t> doubled(memory_);
    doubled.reserve(directory_.size() * 2);
    for (const std::uint32_t entry : directory_) doubled.insert(doubled.end(), 2, entry);
    directory_ = std::move(doubled);
    ++depth_;
  }
  const auto number = static_cast<std::uint32_t>(segments_.size());
  Segment& upper = segments_.emplace_back(memory_);
  Segment& lower = segments_[segment_at];
  const std::vector<Entry> entries = EntriesOf(lower);
  const std::uint32_t depth = ++lower.depth;
  upper.depth = depth;
  const auto is_upper = [depth](std::uint64_t of) { return (of >> (64 - depth) & 1) != 0; };
  std::uint64_t upper_rows = 0;
  for (const Entry& entry : entries) upper_rows += is_upper(entry.hash) ? 1 : 0;
  const auto pages_for = [](std::uint64_t rows) {
    const std::uint64_t page_rows = RowsMax(kPageBuckets);
    return static_cast<std::uint32_t>(rows / page_rows + 1) * kPageBuckets;
  };
  Resize(lower, pages_for(entries.size() - upper_rows));
  Resize(upper, pages_for(upper_rows));
  for (const Entry& entry : entries) {
    Place(is_upper(entry.hash) ? upper : lower, entry.hash, entry.row);
  }
  // The entries of the directory that named the segment lie together; the upper half of them
  // changes.
  const std::size_t half = std::size_t{1} << (depth_ - depth);
  const std::size_t first = (DirectoryAt(hash) / (2 * half)) * 2 * half;
  for (std::size_t i = 0; i < half; ++i) directory_[first + half + i] = number;
}

}  // namespace ps::server
