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

enum class RecordKind : std::uint8_t { kMeta = 1, kBlock = 2, kRows = 3, kSketch = 4 };

inline constexpr std::size_t kKeyBytes = 9;      // of metas and blocks
inline constexpr std::size_t kRowKeyBytes = 17;  // of rows and sketches
inline constexpr std::size_t kChecksumBytes = 8;
// Content of a record of rows or of a sketch, at most; at least one row.
inline constexpr std::size_t kChunkBytes = std::size_t{256} << 10;

// Numbers are big-endian, so that the order of keys is that of the numbers.
// kMeta, kBlock: kind, shard and block.
std::string EncodeKey(RecordKind kind, ShardId shard, std::uint32_t block);
// kRows, kSketch: kind, shard, table, and the key of the first row or the place of the first byte.
std::string EncodeRowKey(RecordKind kind, ShardId shard, std::uint32_t table, std::uint64_t first);

struct RecordKey {
  RecordKind kind = RecordKind::kMeta;
  ShardId shard;
  std::uint32_t block = 0;  // kRows, kSketch: the table
  std::uint64_t first = 0;  // kRows, kSketch
};
Result<RecordKey> DecodeKey(std::string_view key);

// XXH3-64 of the content, seeded with that of the key, then the content.
std::string Seal(std::string_view key, std::string_view content);
// The content of a sealed value, borrowed from it.
Result<std::string_view> Unseal(std::string_view key, std::string_view value);

// Everything of the image but values, slots and counts of elements, rows and sketches.
std::string EncodeMeta(const ShardImage& image);

struct ShardMeta {
  ShardImage image;
  // What the records of each table come to.
  struct Rows {
    std::uint64_t rows = 0;
    std::uint64_t sketch_bytes = 0;
  };
  std::vector<Rows> rows;
};
Result<ShardMeta> DecodeMeta(std::string_view bytes);

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
// Appends the content of a record of rows whose key names the row `first`. kInvalid unless it is
// the next one of a table of `rows` rows.
Status DecodeRows(std::string_view content, std::uint64_t first, std::uint64_t rows,
                  RowTableImage& table);
// The same of a sketch of `bytes` bytes.
Status DecodeSketch(std::string_view content, std::uint64_t first, std::uint64_t bytes,
                    RowTableImage& table);

}  // namespace ps::checkpoint
