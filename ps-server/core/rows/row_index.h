// Finds the number of a row by its key.
//
// Hashed buckets of one cache line, 12 rows each:
//
//   [tags: 12 x 1][passed 1][0: 3][row numbers: 12 x 4]
//
// A tag is 8 bits of the key's hash, 0 for an empty place; all twelve are
// compared at once. A row that finds its bucket full lies in one of the next;
// `passed` counts the rows that went past a bucket, so that a search ends at
// the first bucket that nobody passed. The keys are in the records.
//
// Buckets are in pages of 64 (4 KiB), pages in segments of up to eight, which
// get one page more when 85 % full, and beyond eight are split in two; a
// directory over the highest bits of the hash names the segment (extendible
// hashing). So growth costs no more than the rebuilding of one segment at a
// time, all memory is in blocks of one size, and from the first split on (2,600
// rows) the index takes between 6.3 and 7.9 bytes a row. Fewer than 64 buckets
// are one smaller page.
//
// The order of rows in the index is never visible. The hash is seeded, so that
// nobody who does not know the seed can make keys that meet in one bucket.
//
// One thread. `rows` and `memory` outlive the index.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory_resource>
#include <span>
#include <vector>

#include "ps-server/core/rows/row_store.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace ps::server {

class RowIndex {
 public:
  RowIndex(const RowStore& rows, std::uint64_t seed, std::pmr::memory_resource* memory);
  ~RowIndex();
  RowIndex(const RowIndex&) = delete;
  RowIndex& operator=(const RowIndex&) = delete;

  RowNumber Find(std::uint64_t key) const;

  // Calls visit(position in `keys`, row or kNoRow) in order. The records are fetched into the cache
  // ahead of the call, their first `record_bytes` at least. `visit` changes neither index nor
  // store.
  template <typename Visit>
  void FindEach(std::span<const std::uint64_t> keys, std::size_t record_bytes, Visit visit) const;

  // `row` has the key already, which is not in the index.
  void Insert(RowNumber row);
  // The same of the rows [first, first + count).
  void InsertAll(RowNumber first, RowNumber count);
  // Makes room for so many rows at once, if the index is empty.
  void Reserve(std::uint64_t rows);
  // `row` is in the index, and its record still has the key.
  void Remove(RowNumber row);

  std::size_t bytes() const;

 private:
  static constexpr std::uint32_t kBucketRows = 12;

  struct alignas(64) Bucket {
    std::array<std::uint8_t, 16> tags;  // 12 tags, `passed`, 3 unused
    std::array<RowNumber, kBucketRows> rows;
  };
  static_assert(sizeof(Bucket) == 64);
  static constexpr std::size_t kPassed = kBucketRows;  // place in `tags`

  static constexpr std::uint32_t kPageBuckets = 64;

  struct Segment {
    explicit Segment(std::pmr::memory_resource* memory) : pages(memory) {}

    Bucket& bucket(std::uint32_t at) const { return pages[at / kPageBuckets][at % kPageBuckets]; }
    std::uint32_t After(std::uint32_t at) const { return at + 1 == bucket_count ? 0 : at + 1; }

    std::pmr::vector<Bucket*> pages;
    std::uint32_t bucket_count = 0;
    std::uint32_t rows = 0;
    std::uint32_t depth = 0;  // highest bits of the hash that its keys have in common
  };

  // A search under way.
  struct Probe {
    const Segment* segment = nullptr;
    const Bucket* bucket = nullptr;
    std::uint32_t at = 0;          // number of the bucket in the segment
    std::uint32_t candidates = 0;  // places in the bucket with an equal tag
    std::uint8_t tag = 0;
  };

  std::uint64_t HashOf(std::uint64_t key) const;
  static std::uint8_t TagOf(std::uint64_t hash);
  static std::uint32_t BucketOf(std::uint64_t hash, std::uint32_t bucket_count);
  static std::uint32_t Matches(const Bucket& bucket, std::uint8_t tag);
  static void Place(Segment& segment, std::uint64_t hash, RowNumber row);
  std::size_t DirectoryAt(std::uint64_t hash) const {
    return static_cast<std::size_t>(hash >> 1 >> (63 - depth_));
  }
  std::uint64_t HashOfRow(RowNumber row) const { return HashOf(rows_.At(row)->key()); }

  // Gives the segment so many buckets, all empty.
  void Resize(Segment& segment, std::uint32_t bucket_count);
  struct Entry {
    std::uint64_t hash;
    RowNumber row;
  };
  std::vector<Entry> EntriesOf(const Segment& segment) const;
  void Grow(std::uint64_t hash);
  void Rebuild(Segment& segment, std::uint32_t bucket_count);
  void Split(std::size_t segment_at, std::uint64_t hash);
  void PrefetchRecord(RowNumber row, std::size_t record_bytes) const;

  const RowStore& rows_;
  const std::uint64_t seed_;
  std::pmr::memory_resource* const memory_;
  std::pmr::vector<Segment> segments_;
  std::pmr::vector<std::uint32_t> directory_;  // places in segments_; 2^depth_ entries
  std::uint32_t depth_ = 0;
  std::size_t bucket_bytes_ = 0;
};

// Three stages, each a group of keys behind the one before, so that the cache lines of several
// groups are on their way while one is worked on: hash and fetch the bucket; compare tags and fetch
// the records that may be meant; compare keys.
template <typename Visit>
void RowIndex::FindEach(std::span<const std::uint64_t> keys, std::size_t record_bytes,
                        Visit visit) const {
  constexpr std::size_t kGroup = 16;
  std::array<Probe, 3 * kGroup> probes;
  const std::size_t groups = (keys.size() + kGroup - 1) / kGroup;
  const auto for_group = [&](std::size_t group, auto stage) {
    Probe* const probe = &probes[group % 3 * kGroup];
    const std::size_t begin = group * kGroup;
    const std::size_t count = std::min(kGroup, keys.size() - begin);
    for (std::size_t i = 0; i < count; ++i) stage(begin + i, probe[i]);
  };
  for (std::size_t step = 0; step < groups + 2; ++step) {
    if (step < groups) {
      for_group(step, [&](std::size_t at, Probe& probe) {
        const std::uint64_t hash = HashOf(keys[at]);
        probe.segment = &segments_[directory_[DirectoryAt(hash)]];
        probe.at = BucketOf(hash, probe.segment->bucket_count);
        probe.bucket = &probe.segment->bucket(probe.at);
        probe.tag = TagOf(hash);
        __builtin_prefetch(probe.bucket);
      });
    }
    if (step >= 1 && step - 1 < groups) {
      for_group(step - 1, [&](std::size_t, Probe& probe) {
        probe.candidates = Matches(*probe.bucket, probe.tag);
        if (probe.candidates == 0 && probe.bucket->tags[kPassed] != 0) {
          // One row in thirty lies in the next bucket.
          probe.at = probe.segment->After(probe.at);
          probe.bucket = &probe.segment->bucket(probe.at);
          probe.candidates = Matches(*probe.bucket, probe.tag);
        }
        for (std::uint32_t left = probe.candidates; left != 0; left &= left - 1) {
          PrefetchRecord(probe.bucket->rows[static_cast<unsigned>(std::countr_zero(left))],
                         record_bytes);
        }
      });
    }
    if (step >= 2) {
      for_group(step - 2, [&](std::size_t at, const Probe& probe) {
        for (std::uint32_t left = probe.candidates; left != 0; left &= left - 1) {
          const RowNumber row = probe.bucket->rows[static_cast<unsigned>(std::countr_zero(left))];
          if (rows_.At(row)->key() == keys[at]) return visit(at, row);
        }
        visit(at, probe.bucket->tags[kPassed] == 0 ? kNoRow : Find(keys[at]));
      });
    }
  }
}

inline std::uint64_t RowIndex::HashOf(std::uint64_t key) const {
  // The finaliser of MurmurHash3, which is a bijection: two keys never agree in all 64 bits.
  std::uint64_t hash = key ^ seed_;
  hash = (hash ^ hash >> 33) * 0xff51afd7ed558ccdu;
  hash = (hash ^ hash >> 33) * 0xc4ceb9fe1a85ec53u;
  return hash ^ hash >> 33;
}

// The directory takes the highest bits, the tag bits 32 to 39, the bucket the lowest 32.
inline std::uint8_t RowIndex::TagOf(std::uint64_t hash) {
  const auto tag = static_cast<std::uint8_t>(hash >> 32);
  return tag == 0 ? std::uint8_t{1} : tag;
}

inline std::uint32_t RowIndex::BucketOf(std::uint64_t hash, std::uint32_t bucket_count) {
  return static_cast<std::uint32_t>((hash & 0xffffffffu) * bucket_count >> 32);
}

inline std::uint32_t RowIndex::Matches(const Bucket& bucket, std::uint8_t tag) {
#if defined(__SSE2__)
  const __m128i tags = _mm_load_si128(reinterpret_cast<const __m128i*>(bucket.tags.data()));
  const __m128i equal = _mm_cmpeq_epi8(tags, _mm_set1_epi8(static_cast<char>(tag)));
  return static_cast<std::uint32_t>(_mm_movemask_epi8(equal)) & ((1u << kBucketRows) - 1);
#else
  std::uint32_t matches = 0;
  for (std::uint32_t place = 0; place < kBucketRows; ++place) {
    matches |= (bucket.tags[place] == tag ? 1u : 0u) << place;
  }
  return matches;
#endif
}

inline void RowIndex::PrefetchRecord(RowNumber row, std::size_t record_bytes) const {
  // The hardware follows a longer record by itself.
  constexpr std::size_t kFetchedMax = 512;
  constexpr std::uintptr_t kLine = 64;
  const auto from = reinterpret_cast<std::uintptr_t>(rows_.At(row));
  const std::uintptr_t to = from + std::min(record_bytes, kFetchedMax);
  for (std::uintptr_t line = from & ~(kLine - 1); line < to; line += kLine) {
    __builtin_prefetch(reinterpret_cast<const void*>(line));  // NOLINT(performance-no-int-to-ptr)
  }
}

}  // namespace ps::server
