// Keys and values of the database of a checkpoint part, byte by byte as FORMAT.md has them.
//
// Encode* never fail on an image that passed CheckImage. Decode* are safe on any
// bytes: kInvalid says what is wrong, and never depends on how long a count
// claims to be. Pure functions, any thread.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/image.h"
#include "common/result.h"

namespace ps::checkpoint {

enum class RecordKind : std::uint8_t {
  kMeta = 1,
  kBlock = 2,
  kRows = 3,
  kSketch = 4,
  kRemoved = 5,  // keys of rows that a part this one builds on has, and that are gone
  kBases = 6,    // the rounds that the part builds on
};

inline constexpr std::size_t kKeyBytes = 9;      // of metas and blocks
inline constexpr std::size_t kRowKeyBytes = 17;  // of rows, sketches and removed keys
inline constexpr std::size_t kChecksumBytes = 8;
// Content of a record of rows, of a sketch or of removed keys, at most; at least one row.
inline constexpr std::size_t kChunkBytes = std::size_t{256} << 10;
// Parts that one builds on.
inline constexpr std::size_t kBasesMax = 1000;

// Numbers are big-endian, so that the order of keys is that of the numbers.
// kMeta, kBlock, kBases: kind, shard and block.
std::string EncodeKey(RecordKind kind, ShardId shard, std::uint32_t block);
// kRows, kRemoved, kSketch: kind, shard, table, and the key of the first row or the place of the
// first byte.
std::string EncodeRowKey(RecordKind kind, ShardId shard, std::uint32_t table, std::uint64_t first);

struct RecordKey {
  RecordKind kind = RecordKind::kMeta;
  ShardId shard;
  std::uint32_t block = 0;  // of those with a `first`: the table
  std::uint64_t first = 0;  // kRows, kRemoved, kSketch
};
Result<RecordKey> DecodeKey(std::string_view key);

// XXH3-64 of the content, seeded with that of the key, then the content.
std::string Seal(std::string_view key, std::string_view content);
// The content of a sealed value, borrowed from it.
Result<std::string_view> Unseal(std::string_view key, std::string_view value);

struct ShardMeta {
  ShardImage image;  // without values, slots and counts of elements, rows and sketches
  // What the records of each table come to.
  struct Rows {
    std::uint64_t rows = 0;
    std::uint64_t sketch_bytes = 0;
  };
  std::vector<Rows> rows;
};

// Everything of the image but what ShardMeta::image lacks.
std::string EncodeMeta(const ShardImage& image);
// The same of an image that may lack it: `rows` is what its tables come to.
std::string EncodeMeta(const ShardImage& head, std::span<const ShardMeta::Rows> rows);
Result<ShardMeta> DecodeMeta(std::string_view bytes);
// kInvalid unless the parts of the meta agree with each other.
Status CheckMeta(const ShardMeta& meta);

// Rounds that a shard in a part builds on, from the newest to the one that is whole.
std::string EncodeBases(std::span<const Round> bases);
Result<std::vector<Round>> DecodeBases(std::string_view bytes);
// kInvalid unless they are older than `round`, decreasing and not too many.
Status CheckBases(Round round, std::span<const Round> bases);

// Bytes of a block record's content for each element: the value, its slots, its count.
std::size_t BytesPerElement(const ShardImage& image);
// Values, slots and counts of the block at `index` of the image, of which `offset` elements are
// before it.
std::string EncodeBlock(const ShardImage& image, std::size_t index, std::size_t offset);
// Puts them into the image, whose vectors have their sizes. kInvalid for a wrong length.
Status DecodeBlock(std::string_view content, std::size_t index, std::size_t offset,
                   ShardImage& image);

// Rows of each record of a table but the last, which may have fewer.
std::size_t RowsPerRecord(const RowTableImage& table);
// kInvalid unless the content can be a record of rows whose key names the row `first`.
Status CheckRowsRecord(std::string_view content, std::uint64_t first, const RowTableImage& table);
// The same of removed keys, which increase.
Status CheckRemovedRecord(std::string_view content, std::uint64_t first);

}  // namespace ps::checkpoint
