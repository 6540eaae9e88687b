#include "common/codec/row_codec.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <string>

#include "common/check.h"
#include "common/codec/kernels/kernels.h"
#include "common/codec/key_codec.h"
#include "common/codec/value_codec.h"

namespace ps::codec {
namespace {

constexpr std::size_t kScaleBytes = sizeof(std::uint16_t);
// Of a pull: Int8, the shortest but for its scales, makes a byte of each.
constexpr std::uint64_t kAskedValuesMax = wire::kMaxPayloadBytes;

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
  const bool has_values = value == wire::ValueCodec::Fp32 || value == wire::ValueCodec::Bf16 ||
                          value == wire::ValueCodec::Int8;
  switch (content) {
    case RowContent::kKeysAndValues: return index == wire::IndexCodec::KeysDelta && has_values;
    case RowContent::kKeys:
      return index == wire::IndexCodec::KeysDelta && value == wire::ValueCodec::Absent;
    case RowContent::kValues: return index == wire::IndexCodec::Dense && has_values;
  }
  return false;
}

std::uint16_t ScaleOf(const std::byte* row) {
  std::uint16_t bits;
  std::memcpy(&bits, row, sizeof(bits));
  return bits;
}

bool ScalesFit(std::span<const std::byte> rows, std::size_t row_bytes) {
  bool fit = true;
  for (std::size_t at = 0; at < rows.size(); at += row_bytes) {
    fit = fit && IsInt8Scale(ScaleOf(rows.data() + at));
  }
  return fit;
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
  const std::size_t row_bytes = RowValueBytes(width, part.value_codec);
  const std::uint64_t value_bytes = std::uint64_t{part.count} * row_bytes;
  if (body.size() < value_bytes || (content == RowContent::kValues && body.size() != value_bytes)) {
    return bad(std::to_string(body.size()) + " bytes for " + std::to_string(part.count) +
               " rows of " + std::to_string(width) + " values");
  }
  part.key_bytes = body.first(body.size() - value_bytes);
  part.value_bytes = body.last(value_bytes);
  if (content != RowContent::kValues && !KeysFit(part.count, part.key_bytes)) {
    return bad(std::to_string(part.key_bytes.size()) + " bytes are not those of " +
               std::to_string(part.count) + " keys");
  }
  if (part.value_codec == wire::ValueCodec::Int8 && !ScalesFit(part.value_bytes, row_bytes)) {
    return bad("a scale is negative or not finite");
  }
  return part;
}

// To the nearest code.
struct Nearest {
  float operator()(std::size_t, std::uint32_t) const { return 0.5f; }
};

// Up or down: what a value is above the code below it is how likely it goes up.
class ByChance {
 public:
  ByChance(std::uint64_t key, std::uint32_t greatest)
      : seed_(static_cast<std::uint32_t>(
            (key ^ std::uint64_t{greatest} << 32) * 0x9e3779b97f4a7c15u >> 32)) {}

  // 0 .. 1 - 2^-16, which a magnitude up to 127 can be added to without being rounded up.
  float operator()(std::size_t at, std::uint32_t value) const {
    std::uint32_t hash = (value ^ seed_) + static_cast<std::uint32_t>(at) * 0x9e3779b9u;
    hash = (hash ^ hash >> 16) * 0x7feb352du;
    hash = (hash ^ hash >> 15) * 0x846ca68bu;
    return static_cast<float>(static_cast<int>(hash >> 16)) * 0x1p-16f;
  }

 private:
  std::uint32_t seed_;
};

// The magnitudes as bits, those of no number or above all of bf16 as the greatest of those.
std::uint32_t MagnitudeBits(std::uint32_t value) {
  constexpr std::uint32_t kGreatest = 0x7f7f0000u;
  return std::min(value & 0x7fffffffu, kGreatest);
}

template <typename Rounding>
std::size_t WriteInt8(std::span<const float> values, std::uint32_t greatest,
                      const Rounding& rounding, std::byte* out) {
  const std::uint16_t scale =
      greatest == 0 ? std::uint16_t{0} : Int8ScaleOf(std::bit_cast<float>(greatest));
  const float inverse = greatest == 0 ? 0 : 1 / Bf16ToFloat(scale);
  std::memcpy(out, &scale, sizeof(scale));
  std::byte* const codes = out + kScaleBytes;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const auto value = std::bit_cast<std::uint32_t>(values[i]);
    const float magnitude = std::bit_cast<float>(MagnitudeBits(value)) * inverse;
    const int code = std::min(static_cast<int>(magnitude + rounding(i, value)), 127);
    const int sign = -static_cast<int>(value >> 31);  // -1 where it is negative
    codes[i] = static_cast<std::byte>((code ^ sign) - sign);
  }
  return kScaleBytes + values.size();
}

std::uint32_t GreatestOf(std::span<const float> values) {
  return MagnitudeBits(kernels::Fastest().largest32(
      reinterpret_cast<const std::byte*>(values.data()), values.size()));
}

}  // namespace

wire::ValueCodec RowCodecNamed(std::string_view name) {
  if (name == "fp32") return wire::ValueCodec::Fp32;
  if (name == "int8") return wire::ValueCodec::Int8;
  PS_CHECK(name == "bf16", name);
  return wire::ValueCodec::Bf16;
}

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
  std::uint64_t asked = 0;  // values
  while (!rows.empty()) {
    const wire::BlockHeader header = PS_TRY(ReadHeader(rows));
    if (header.block() < least) {
      return Error{ErrorCode::kInvalid, "block " + std::to_string(header.block()) +
                                            ": stands among rows, or not in order"};
    }
    const auto body = rows.subspan(sizeof(header), header.bytes());
    const std::uint32_t width = width_of(header.block() - kFirstRowTable);
    asked += std::uint64_t{header.count()} * width;
    if (content == RowContent::kKeys && asked > kAskedValuesMax) {
      return Error{ErrorCode::kInvalid, "rows of " + std::to_string(asked) + " values asked for"};
    }
    parts.push_back(PS_TRY(ParsePart(header, body, content, width)));
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
  KeyReader reader(part.count, part.key_bytes);
  std::uint64_t keys[kKeyGroup];
  while (const std::size_t count = reader.Next(keys)) {
    const bool all = std::all_of(keys, keys + count, [shard, shards](std::uint64_t key) {
      return ShardOfRow(key, shards) == shard;
    });
    if (!all) return false;
  }
  return true;
}

bool AllFinite(const RowsView& part) { return ValuesFinite(part.value_codec, part.value_bytes); }

std::size_t RowValueBytes(std::uint32_t width, wire::ValueCodec codec) {
  switch (codec) {
    case wire::ValueCodec::Fp32: return std::size_t{width} * 4;
    case wire::ValueCodec::Bf16: return std::size_t{width} * 2;
    case wire::ValueCodec::Int8: return kScaleBytes + width;
    default: return 0;  // Absent: rows have no others
  }
  return 0;
}

std::size_t MaxRowBytes(std::size_t count, std::uint32_t width, RowContent content,
                        wire::ValueCodec codec) {
  const std::size_t key_bytes = content == RowContent::kValues ? 0 : MaxKeyBytes(count);
  return sizeof(wire::BlockHeader) + key_bytes + count * RowValueBytes(width, codec);
}

void WriteRowsHeader(std::uint32_t table, std::size_t count, std::size_t bytes, RowContent content,
                     wire::ValueCodec codec, std::byte* out) {
  PS_CHECK(table < kFirstRowTable && bytes <= wire::kMaxPayloadBytes, table, count, bytes);
  const auto index =
      content == RowContent::kValues ? wire::IndexCodec::Dense : wire::IndexCodec::KeysDelta;
  const wire::BlockHeader header(
      kFirstRowTable + table, static_cast<std::uint32_t>(count), static_cast<std::uint32_t>(bytes),
      static_cast<std::uint8_t>(index), static_cast<std::uint8_t>(codec), 0);
  std::memcpy(out, &header, sizeof(header));
}

std::size_t EncodeRows(std::uint32_t table, std::span<const std::uint64_t> keys,
                       std::span<const float> values, std::uint32_t width, RowContent content,
                       wire::ValueCodec codec, std::byte* out) {
  const std::size_t count = content == RowContent::kValues ? values.size() / width : keys.size();
  PS_CHECK(content == RowContent::kKeys ? values.empty() : values.size() == count * width, table,
           count, values.size());
  PS_CHECK((content == RowContent::kKeys) == (codec == wire::ValueCodec::Absent), table);
  std::size_t bytes = sizeof(wire::BlockHeader);
  if (content != RowContent::kValues) bytes += EncodeKeys(keys, out + bytes);
  for (std::size_t row = 0; row < count && content != RowContent::kKeys; ++row) {
    const auto one = values.subspan(row * width, width);
    bytes += content == RowContent::kValues ? EncodeRow(one, codec, out + bytes)
                                            : EncodeGradient(keys[row], one, codec, out + bytes);
  }
  WriteRowsHeader(table, count, bytes - sizeof(wire::BlockHeader), content, codec, out);
  return bytes;
}

void AppendRows(const RowsView& part, std::vector<std::byte>& out) {
  const wire::BlockHeader header(
      kFirstRowTable + part.table, part.count,
      static_cast<std::uint32_t>(part.key_bytes.size() + part.value_bytes.size()),
      static_cast<std::uint8_t>(wire::IndexCodec::KeysDelta),
      static_cast<std::uint8_t>(part.value_codec), 0);
  const auto* bytes = reinterpret_cast<const std::byte*>(&header);
  out.insert(out.end(), bytes, bytes + sizeof(header));
  out.insert(out.end(), part.key_bytes.begin(), part.key_bytes.end());
  out.insert(out.end(), part.value_bytes.begin(), part.value_bytes.end());
}

void DecodeKeys(const RowsView& part, std::vector<std::uint64_t>& keys) {
  keys.resize(part.key_bytes.empty() ? 0 : part.count);
  KeyReader reader(keys.size(), part.key_bytes);
  std::size_t at = 0;
  while (at < keys.size()) {
    const std::size_t count = reader.Next(keys.data() + at);
    PS_CHECK(count > 0, "the keys were checked", at, keys.size());
    at += count;
  }
}

void DecodeRow(const RowsView& part, std::size_t row, std::span<float> values) {
  const std::size_t bytes =
      RowValueBytes(static_cast<std::uint32_t>(values.size()), part.value_codec);
  const std::byte* const from = part.value_bytes.data() + row * bytes;
  if (part.value_codec == wire::ValueCodec::Fp32) {
    std::memcpy(values.data(), from, bytes);
    return;
  }
  if (part.value_codec == wire::ValueCodec::Int8) {
    kernels::Fastest().scale_int8(from + kScaleBytes, values.size(), Bf16ToFloat(ScaleOf(from)),
                                  values.data());
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
  if (codec == wire::ValueCodec::Int8) return WriteInt8(values, GreatestOf(values), Nearest(), out);
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::uint16_t bits = FloatToBf16(values[i]);
    std::memcpy(out + i * 2, &bits, sizeof(bits));
  }
  return values.size() * 2;
}

std::size_t EncodeGradient(std::uint64_t key, std::span<const float> values, wire::ValueCodec codec,
                           std::byte* out) {
  if (codec != wire::ValueCodec::Int8) return EncodeRow(values, codec, out);
  const std::uint32_t greatest = GreatestOf(values);
  return WriteInt8(values, greatest, ByChance(key, greatest), out);
}

}  // namespace ps::codec
