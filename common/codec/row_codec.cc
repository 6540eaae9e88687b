#include "common/codec/row_codec.h"

#include <algorithm>
#include <limits>
#include <string>

#include "common/check.h"
#include "common/codec/block_codec.h"

namespace ps::codec {
namespace {

constexpr std::size_t kKeyBytes = sizeof(std::uint64_t);

std::size_t ValueBytes(wire::ValueCodec codec) {
  switch (codec) {
    case wire::ValueCodec::Fp32: return 4;
    case wire::ValueCodec::Bf16: return 2;
    default: return 0;  // Absent: rows have no others
  }
  return 0;
}

Result<wire::BlockHeader> ReadHeader(std::span<const std::byte> bytes) {
  wire::BlockHeader header;
  if (bytes.size() < sizeof(header)) {
    return Error{ErrorCode::kInvalid, "segment ends in " + std::to_string(bytes.size()) +
                                          " bytes, too few for the header of a block"};
  }
  std::memcpy(&header, bytes.data(), sizeof(header));
  if (header.bytes() > bytes.size() - sizeof(header)) {
    return Error{ErrorCode::kInvalid, "block " + std::to_string(header.block()) + ": " +
                                          std::to_string(header.bytes()) +
                                          " bytes announced, the segment has " +
                                          std::to_string(bytes.size() - sizeof(header)) + " left"};
  }
  return header;
}

bool CodecsFit(const wire::BlockHeader& header, RowContent content) {
  const auto index = static_cast<wire::IndexCodec>(header.index_codec());
  const auto value = static_cast<wire::ValueCodec>(header.value_codec());
  const bool has_values = value == wire::ValueCodec::Fp32 || value == wire::ValueCodec::Bf16;
  switch (content) {
    case RowContent::kKeysAndValues: return index == wire::IndexCodec::Keys64 && has_values;
    case RowContent::kKeys:
      return index == wire::IndexCodec::Keys64 && value == wire::ValueCodec::Absent;
    case RowContent::kValues: return index == wire::IndexCodec::Dense && has_values;
  }
  return false;
}

Result<RowsView> ParsePart(const wire::BlockHeader& header, std::span<const std::byte> body,
                           RowContent content, std::uint32_t width) {
  const std::uint32_t table = header.block() - kFirstRowTable;
  const auto bad = [table](const std::string& what) {
    return Error{ErrorCode::kInvalid, "rows of table " + std::to_string(table) + ": " + what};
  };
  if (header.reserved() != 0) return bad("its reserved bytes are not zero");
  if (width == 0) return bad("there is no such table");
  if (!CodecsFit(header, content)) {
    return bad("codecs " + std::to_string(header.index_codec()) + " and " +
               std::to_string(header.value_codec()) + " are not those of this message");
  }
  RowsView part;
  part.table = table;
  part.count = header.count();
  part.value_codec = static_cast<wire::ValueCodec>(header.value_codec());
  const std::uint64_t key_bytes =
      content == RowContent::kValues ? 0 : std::uint64_t{part.count} * kKeyBytes;
  const std::uint64_t row_bytes = std::uint64_t{width} * ValueBytes(part.value_codec);
  if (part.count > 0 && (body.size() < key_bytes || (body.size() - key_bytes) % part.count != 0 ||
                         (body.size() - key_bytes) / part.count != row_bytes)) {
    return bad(std::to_string(body.size()) + " bytes for " + std::to_string(part.count) +
               " rows of " + std::to_string(width) + " values");
  }
  if (part.count == 0 && !body.empty()) {
    return bad(std::to_string(body.size()) + " bytes for no rows");
  }
  part.key_bytes = body.first(key_bytes);
  part.value_bytes = body.subspan(key_bytes);
  for (std::size_t row = 1; row < part.key_bytes.size() / kKeyBytes; ++row) {
    if (part.key(row) <= part.key(row - 1)) {
      return bad("key " + std::to_string(part.key(row)) + " after " +
                 std::to_string(part.key(row - 1)));
    }
  }
  return part;
}

}  // namespace

ShardId ShardOfRow(std::uint64_t key, std::uint32_t shards) {
  std::uint64_t hash = key + 0x9e3779b97f4a7c15u;
  hash = (hash ^ hash >> 30) * 0xbf58476d1ce4e5b9u;
  hash = (hash ^ hash >> 27) * 0x94d049bb133111ebu;
  hash ^= hash >> 31;
  return ShardId(static_cast<std::uint32_t>((hash >> 32) * shards >> 32));
}

bool MayShareRows(ShardId shard, std::uint32_t shards, ShardId other, std::uint32_t others) {
  // A shard has the hashes from shard / shards to before (shard + 1) / shards of all.
  const auto before = [](std::uint64_t one, std::uint32_t of, std::uint64_t two, std::uint32_t in) {
    return one * in < two * of;
  };
  return before(shard.value(), shards, std::uint64_t{other.value()} + 1, others) &&
         before(other.value(), others, std::uint64_t{shard.value()} + 1, shards);
}

Result<SegmentParts> SplitSegment(std::span<const std::byte> payload) {
  std::size_t at = 0;
  while (at < payload.size()) {
    const wire::BlockHeader header = PS_TRY(ReadHeader(payload.subspan(at)));
    if (header.block() >= kFirstRowTable) break;
    at += sizeof(header) + header.bytes();
  }
  return SegmentParts{payload.first(at), payload.subspan(at)};
}

Status ParseRows(std::span<const std::byte> rows, RowContent content,
                 const std::function<std::uint32_t(std::uint32_t)>& width_of,
                 std::vector<RowsView>& parts) {
  parts.clear();
  std::uint32_t least = kFirstRowTable;
  while (!rows.empty()) {
    const wire::BlockHeader header = PS_TRY(ReadHeader(rows));
    if (header.block() < least) {
      return Error{ErrorCode::kInvalid, "block " + std::to_string(header.block()) +
                                            ": stands among rows, or not in order"};
    }
    const auto body = rows.subspan(sizeof(header), header.bytes());
    parts.push_back(
        PS_TRY(ParsePart(header, body, content, width_of(header.block() - kFirstRowTable))));
    rows = rows.subspan(sizeof(header) + header.bytes());
    if (header.block() == std::numeric_limits<std::uint32_t>::max()) {
      if (rows.empty()) break;
      return Error{ErrorCode::kInvalid, "a block after the last possible number"};
    }
    least = header.block() + 1;
  }
  return Ok();
}

bool RowsOfShard(const RowsView& part, ShardId shard, std::uint32_t shards) {
  bool all = true;
  for (std::size_t row = 0; row < part.key_bytes.size() / kKeyBytes; ++row) {
    all = all && ShardOfRow(part.key(row), shards) == shard;
  }
  return all;
}

bool AllFinite(const RowsView& part) { return ValuesFinite(part.value_codec, part.value_bytes); }

std::size_t RowBytes(std::size_t count, std::uint32_t width, RowContent content,
                     wire::ValueCodec codec) {
  const std::size_t key_bytes = content == RowContent::kValues ? 0 : kKeyBytes;
  return sizeof(wire::BlockHeader) + count * (key_bytes + width * ValueBytes(codec));
}

void WriteRowsHeader(std::uint32_t table, std::size_t count, std::uint32_t width,
                     RowContent content, wire::ValueCodec codec, std::byte* out) {
  const std::size_t bytes = RowBytes(count, width, content, codec) - sizeof(wire::BlockHeader);
  PS_CHECK(table < kFirstRowTable && bytes <= wire::kMaxPayloadBytes, table, count, bytes);
  const auto index =
      content == RowContent::kValues ? wire::IndexCodec::Dense : wire::IndexCodec::Keys64;
  const wire::BlockHeader header(
      kFirstRowTable + table, static_cast<std::uint32_t>(count), static_cast<std::uint32_t>(bytes),
      static_cast<std::uint8_t>(index), static_cast<std::uint8_t>(codec), 0);
  std::memcpy(out, &header, sizeof(header));
}

void EncodeRows(std::uint32_t table, std::span<const std::uint64_t> keys,
                std::span<const float> values, std::uint32_t width, RowContent content,
                wire::ValueCodec codec, std::byte* out) {
  const std::size_t count = content == RowContent::kValues ? values.size() / width : keys.size();
  PS_CHECK(content == RowContent::kKeys ? values.empty() : values.size() == count * width, table,
           count, values.size());
  PS_CHECK((content == RowContent::kKeys) == (codec == wire::ValueCodec::Absent), table);
  WriteRowsHeader(table, count, width, content, codec, out);
  out += sizeof(wire::BlockHeader);
  if (content != RowContent::kValues && count > 0) {
    std::memcpy(out, keys.data(), count * kKeyBytes);
    out += count * kKeyBytes;
  }
  if (content != RowContent::kKeys) EncodeRow(values, codec, out);
}

void AppendRows(const RowsView& part, std::vector<std::byte>& out) {
  const wire::BlockHeader header(
      kFirstRowTable + part.table, part.count,
      static_cast<std::uint32_t>(part.key_bytes.size() + part.value_bytes.size()),
      static_cast<std::uint8_t>(wire::IndexCodec::Keys64),
      static_cast<std::uint8_t>(part.value_codec), 0);
  const auto* bytes = reinterpret_cast<const std::byte*>(&header);
  out.insert(out.end(), bytes, bytes + sizeof(header));
  out.insert(out.end(), part.key_bytes.begin(), part.key_bytes.end());
  out.insert(out.end(), part.value_bytes.begin(), part.value_bytes.end());
}

void DecodeKeys(const RowsView& part, std::vector<std::uint64_t>& keys) {
  keys.resize(part.key_bytes.size() / kKeyBytes);
  if (!keys.empty()) std::memcpy(keys.data(), part.key_bytes.data(), part.key_bytes.size());
}

void DecodeRow(const RowsView& part, std::size_t row, std::span<float> values) {
  const std::size_t bytes = values.size() * ValueBytes(part.value_codec);
  const std::byte* const from = part.value_bytes.data() + row * bytes;
  if (part.value_codec == wire::ValueCodec::Fp32) {
    std::memcpy(values.data(), from, bytes);
    return;
  }
  for (std::size_t i = 0; i < values.size(); ++i) {
    std::uint16_t bits;
    std::memcpy(&bits, from + i * 2, sizeof(bits));
    values[i] = Bf16ToFloat(bits);
  }
}

std::size_t EncodeRow(std::span<const float> values, wire::ValueCodec codec, std::byte* out) {
  if (values.empty()) return 0;
  if (codec == wire::ValueCodec::Fp32) {
    std::memcpy(out, values.data(), values.size_bytes());
    return values.size_bytes();
  }
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::uint16_t bits = FloatToBf16(values[i]);
    std::memcpy(out + i * 2, &bits, sizeof(bits));
  }
  return values.size() * 2;
}

}  // namespace ps::codec
