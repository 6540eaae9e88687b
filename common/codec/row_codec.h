// How rows of embedding tables travel: a part for each table, behind the blocks of a segment.
//
// A part is a BlockHeader whose block number is kFirstRowTable + the table's
// number and whose count is that of its rows, then keys (KeysDelta, see
// key_codec.h) and values (`width` a row, Fp32, Bf16 or Int8), as
// docs/wire-format.md has them:
//
//   in a Push       keys and values
//   in a Pull       keys, values Absent
//   in a PullReply  values of the rows in the order of the Pull's keys, no keys (Dense)
//
// Which shard a row is on is a function of its key alone. Parsers are safe on
// hostile bytes, buffers may have any alignment. Pure functions, any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string_view>
#include <vector>

#include "common/ids.h"
#include "common/messages/wire.h"
#include "common/result.h"

namespace ps::codec {

// Block numbers from here on are tables of rows.
inline constexpr std::uint32_t kFirstRowTable = 0x8000'0000;

// The shard of a row: the first number of SplitMix64 seeded with the key, its upper half times
// `shards`, divided by 2^32.
ShardId ShardOfRow(std::uint64_t key, std::uint32_t shards);
// Whether a key can be on `shard` of so many, and on `other` of `others`.
bool MayShareRows(ShardId shard, std::uint32_t shards, ShardId other, std::uint32_t others);

// What the part of a table has, by the message that it is in.
enum class RowContent { kKeysAndValues, kKeys, kValues };

// The part of one table, borrowed from the payload. Keys are read in order (DecodeKeys), values by
// the number of the row.
struct RowsView {
  std::uint32_t table = 0;
  std::uint32_t count = 0;  // rows
  wire::ValueCodec value_codec = wire::ValueCodec::Absent;
  std::span<const std::byte> key_bytes;    // of `count` keys, or none
  std::span<const std::byte> value_bytes;  // of `count` rows, or none
};

// Fp32, Bf16 or Int8 by their words in a job file.
wire::ValueCodec RowCodecNamed(std::string_view name);

// Splits a segment's bytes into those of its blocks and those of its rows, by the numbers in the
// headers. kInvalid if a header does not fit; nothing else is checked.
struct SegmentParts {
  std::span<const std::byte> blocks;
  std::span<const std::byte> rows;
};
Result<SegmentParts> SplitSegment(std::span<const std::byte> payload);

// Takes the rows of a segment apart; `parts` is replaced. `width_of(table)` returns the floats of a
// row, or 0 if there is no such table. kInvalid unless tables increase, every count, codec, length
// and scale is good, and keys increase strictly; and if a pull asks for more than an answer holds,
// as few bytes can be many keys.
Status ParseRows(std::span<const std::byte> rows, RowContent content,
                 const std::function<std::uint32_t(std::uint32_t)>& width_of,
                 std::vector<RowsView>& parts);

// False if a key of the part belongs on another shard.
bool RowsOfShard(const RowsView& part, ShardId shard, std::uint32_t shards);
// False if any value is inf or NaN.
bool AllFinite(const RowsView& part);

// Bytes of the values of one row.
std::size_t RowValueBytes(std::uint32_t width, wire::ValueCodec codec);
// Largest number of bytes of a part, header included; of kValues exactly that.
std::size_t MaxRowBytes(std::size_t count, std::uint32_t width, RowContent content,
                        wire::ValueCodec codec);

// Writes the header of a part of so many rows and, behind it, `bytes` of keys and values, which are
// for the caller to write.
void WriteRowsHeader(std::uint32_t table, std::size_t count, std::size_t bytes, RowContent content,
                     wire::ValueCodec codec, std::byte* out);
// Writes a whole part at `out`, which holds MaxRowBytes(), and returns the bytes written. `keys`
// increase strictly (empty for kValues), `values` has `width` floats a row (empty for kKeys, whose
// codec is Absent). Those of kKeysAndValues are gradients.
std::size_t EncodeRows(std::uint32_t table, std::span<const std::uint64_t> keys,
                       std::span<const float> values, std::uint32_t width, RowContent content,
                       wire::ValueCodec codec, std::byte* out);

// Appends a checked part that has keys to `out`, header included.
void AppendRows(const RowsView& part, std::vector<std::byte>& out);

// All keys of a part, which replace `keys`.
void DecodeKeys(const RowsView& part, std::vector<std::uint64_t>& keys);
// The values of one row of a part that was checked for this width.
void DecodeRow(const RowsView& part, std::size_t row, std::span<float> values);
// The other way: writes the values of a row at `out`, and returns the bytes written. Int8 rounds to
// the nearest; what is not finite is taken for the greatest bf16.
std::size_t EncodeRow(std::span<const float> values, wire::ValueCodec codec, std::byte* out);
// The same of the gradient of a row. Int8 rounds up or down by chance, so that small values count
// on the average as much as they are: nobody keeps what is lost. Chance is a function of key and
// gradient, so that the same ones are always the same bytes.
std::size_t EncodeGradient(std::uint64_t key, std::span<const float> values, wire::ValueCodec codec,
                           std::byte* out);

}  // namespace ps::codec
