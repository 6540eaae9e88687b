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

#include "checkpoint/image.h"
#include "common/result.h"

namespace ps::checkpoint {

enum class RecordKind : std::uint8_t { kMeta = 1, kBlock = 2 };

inline constexpr std::size_t kKeyBytes = 9;
inline constexpr std::size_t kChecksumBytes = 8;

// kind, shard and block, big-endian, so that the order of keys is that of the numbers.
std::string EncodeKey(RecordKind kind, ShardId shard, std::uint32_t block);

struct RecordKey {
  RecordKind kind = RecordKind::kMeta;
  ShardId shard;
  std::uint32_t block = 0;
};
Result<RecordKey> DecodeKey(std::string_view key);

// XXH3-64 of the content, seeded with that of the key, then the content.
std::string Seal(std::string_view key, std::string_view content);
// The content of a sealed value, borrowed from it.
Result<std::string_view> Unseal(std::string_view key, std::string_view value);

// Everything of the image but values, slots and counts of elements.
std::string EncodeMeta(const ShardImage& image);
Result<ShardImage> DecodeMeta(std::string_view bytes);

// Bytes of a block record's content for each element: the value, its slots, its count.
std::size_t BytesPerElement(const ShardImage& image);
// Values, slots and counts of the block at `index` of the image, of which `offset` elements are
// before it.
std::string EncodeBlock(const ShardImage& image, std::size_t index, std::size_t offset);
// Puts them into the image, whose vectors have their sizes. kInvalid for a wrong length.
Status DecodeBlock(std::string_view content, std::size_t index, std::size_t offset,
                   ShardImage& image);

}  // namespace ps::checkpoint
