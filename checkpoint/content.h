// The content of a shard as it passes by: what a checkpoint or another copy of the shard has of it,
// piece by piece, so that nobody needs memory for a second copy.
//
// The order is that of a part: the meta, the blocks, the rows of each table by their keys, the
// sketches. ContentCheck stands before a sink and lets nothing through that does not fit what came
// before; whether it was all, and with the right digest, is known at the end. So a sink undoes what
// it has done if the end does not come. Pure, one thread each.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/image.h"
#include "checkpoint/record.h"
#include "common/ids.h"
#include "common/result.h"

namespace ps::checkpoint {

// XXH3-128 of something, or the sum of such hashes modulo 2^128.
struct ContentHash {
  std::uint64_t low = 0;
  std::uint64_t high = 0;

  ContentHash& operator+=(const ContentHash& other) {
    low += other.low;
    high += other.high + (low < other.low ? 1 : 0);
    return *this;
  }
  friend bool operator==(const ContentHash&, const ContentHash&) = default;
};
ContentHash HashOf(const void* bytes, std::size_t count);

// What the digest of a shard is made of beside its meta: each can be known from an earlier cut if
// what it is of has not changed.
struct ContentHashes {
  std::vector<ContentHash> blocks;                 // of their records' contents
  std::vector<ContentHash> rows;                   // of each table: the sum over its rows
  std::vector<std::vector<ContentHash>> sketches;  // of each table's pieces
};
// The digest of a shard, as 32 hex digits.
std::string DigestOf(std::string_view meta, const ContentHashes& hashes);

// Borrowed arguments are gone after the call. What a sink refuses is the error of who calls.
class ShardSink {
 public:
  virtual ~ShardSink() = default;

  virtual Status Begin(const ShardMeta& meta) = 0;
  // The block at `index` of the shard, as its record has it (EncodeBlock).
  virtual Status AddBlock(std::size_t index, std::string_view content) = 0;
  // The next rows of a table, whole and in order.
  virtual Status AddRows(std::uint32_t table, std::span<const std::byte> records) = 0;
  // The next counters of a table's sketch.
  virtual Status AddSketch(std::uint32_t table, std::span<const std::uint8_t> counters) = 0;
};

// After an error it is of no use any more.
class ContentCheck {
 public:
  // `sink` outlives the check. `with_digest`: Finish() gives it, which costs a pass over all bytes.
  ContentCheck(ShardId shard, ShardSink& sink, bool with_digest)
      : shard_(shard), sink_(sink), with_digest_(with_digest) {}

  // Contents of records that have been unsealed; rows also fewer or more than a record has.
  Status AddMeta(std::string_view content);
  Status AddBlock(std::uint32_t block, std::string_view content);
  Status AddRows(std::uint32_t table, std::string_view records);
  Status AddSketch(std::uint32_t table, std::uint64_t at, std::string_view counters);

  // kInvalid if something is missing. The digest of the shard, or "".
  Result<std::string> Finish();

  // Null before AddMeta().
  const ShardMeta* meta() const { return has_meta_ ? &meta_ : nullptr; }

 private:
  const ShardId shard_;
  ShardSink& sink_;
  const bool with_digest_;

  bool has_meta_ = false;
  ShardMeta meta_;
  std::string meta_content_;
  ContentHashes hashes_;
  std::size_t blocks_ = 0;  // that are there
  struct Table {
    std::uint64_t rows = 0;
    std::uint64_t last_key = 0;
    std::uint64_t sketch_bytes = 0;
  };
  std::vector<Table> tables_;
};

// Makes an image of what comes.
class ImageSink : public ShardSink {
 public:
  // More than `bytes_max` of content is refused before room is made for it.
  explicit ImageSink(std::uint64_t bytes_max) : bytes_max_(bytes_max) {}

  Status Begin(const ShardMeta& meta) override;
  Status AddBlock(std::size_t index, std::string_view content) override;
  Status AddRows(std::uint32_t table, std::span<const std::byte> records) override;
  Status AddSketch(std::uint32_t table, std::span<const std::uint8_t> counters) override;

  ShardImage Take() { return std::move(image_); }

 private:
  const std::uint64_t bytes_max_;
  ShardImage image_;
  std::size_t elements_ = 0;  // of the blocks that are there
};

// All of an image that CheckImage() passes, but Finish().
Status SendImage(const ShardImage& image, ContentCheck& to);

}  // namespace ps::checkpoint
