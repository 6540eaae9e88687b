#include "checkpoint/record.h"

#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <span>
#include <type_traits>

#include "checkpoint/manifest.h"
#include "common/error_id.h"
#include "common/layout/layout.h"

namespace ps::checkpoint {
namespace {

constexpr std::string_view kMetaMagic = "DSSHARD:";

template <typename T>
void Put(std::string& out, T value) {
  static_assert(std::is_unsigned_v<T>);
  char bytes[sizeof(T)];
  std::memcpy(bytes, &value, sizeof(T));
  out.append(bytes, sizeof(T));
}

template <typename T>
void PutBigEndian(std::string& out, T value) {
  static_assert(std::is_unsigned_v<T>);
  for (int shift = 8 * (sizeof(T) - 1); shift >= 0; shift -= 8) {
    out.push_back(static_cast<char>(value >> shift));
  }
}

template <typename T>
T GetBigEndian(const char* bytes) {
  T value = 0;
  for (std::size_t i = 0; i < sizeof(T); ++i) {
    value = static_cast<T>(value << 8) | static_cast<unsigned char>(bytes[i]);
  }
  return value;
}

// Takes fields off the front; after a short read every later one yields 0 and ok() is false.
class Cursor {
 public:
  explicit Cursor(std::string_view bytes) : rest_(bytes) {}

  template <typename T>
  T Take() {
    T value{};
    if (rest_.size() < sizeof(T)) {
      ok_ = false;
      rest_ = {};
      return value;
    }
    std::memcpy(&value, rest_.data(), sizeof(T));
    rest_.remove_prefix(sizeof(T));
    return value;
  }
  std::string_view Take(std::size_t bytes) {
    if (rest_.size() < bytes) {
      ok_ = false;
      rest_ = {};
      return {};
    }
    const std::string_view taken = rest_.substr(0, bytes);
    rest_.remove_prefix(bytes);
    return taken;
  }
  bool ok() const { return ok_; }
  std::size_t rest() const { return rest_.size(); }

 private:
  std::string_view rest_;
  bool ok_ = true;
};

// The key is part of it, so that a value in the place of another is found.
std::uint64_t Checksum(std::string_view key, std::string_view content) {
  return XXH3_64bits_withSeed(content.data(), content.size(), XXH3_64bits(key.data(), key.size()));
}

Error Bad(const std::string& what) { return Error{ErrorId::kCheckpointDamaged, what}; }

}  // namespace

std::string EncodeKey(RecordKind kind, ShardId shard, std::uint32_t block) {
  std::string key;
  key.reserve(kKeyBytes);
  key.push_back(static_cast<char>(kind));
  PutBigEndian(key, shard.value());
  PutBigEndian(key, block);
  return key;
}

std::string EncodeRowKey(RecordKind kind, ShardId shard, std::uint32_t table, std::uint64_t first) {
  std::string key = EncodeKey(kind, shard, table);
  PutBigEndian(key, first);
  return key;
}

Result<RecordKey> DecodeKey(std::string_view key) {
  if (key.empty()) return Bad("a key of 0 bytes");
  const auto kind = static_cast<std::uint8_t>(key[0]);
  if (kind < static_cast<std::uint8_t>(RecordKind::kMeta) ||
      kind > static_cast<std::uint8_t>(RecordKind::kBases)) {
    return Bad("a record of unknown kind " + std::to_string(kind));
  }
  RecordKey decoded;
  decoded.kind = static_cast<RecordKind>(kind);
  const bool of_rows = decoded.kind == RecordKind::kRows || decoded.kind == RecordKind::kSketch ||
                       decoded.kind == RecordKind::kRemoved;
  if (key.size() != (of_rows ? kRowKeyBytes : kKeyBytes)) {
    return Bad("a key of " + std::to_string(key.size()) + " bytes");
  }
  decoded.shard = ShardId(GetBigEndian<std::uint32_t>(key.data() + 1));
  decoded.block = GetBigEndian<std::uint32_t>(key.data() + 5);
  if (of_rows) decoded.first = GetBigEndian<std::uint64_t>(key.data() + kKeyBytes);
  return decoded;
}

std::string Seal(std::string_view key, std::string_view content) {
  std::string value;
  value.reserve(kChecksumBytes + content.size());
  Put<std::uint64_t>(value, Checksum(key, content));
  value.append(content);
  return value;
}

Result<std::string_view> Unseal(std::string_view key, std::string_view value) {
  if (value.size() < kChecksumBytes) return Bad("a value too short for its checksum");
  std::uint64_t stored = 0;
  std::memcpy(&stored, value.data(), sizeof(stored));
  const std::string_view content = value.substr(kChecksumBytes);
  if (Checksum(key, content) != stored) return Bad("the checksum of a value does not match");
  return content;
}

std::string EncodeMeta(const ShardImage& image) {
  std::vector<ShardMeta::Rows> rows;
  for (const RowTableImage& table : image.rows) {
    rows.push_back({table.rows(), table.sketch.size()});
  }
  return EncodeMeta(image, rows);
}

std::string EncodeMeta(const ShardImage& image, std::span<const ShardMeta::Rows> rows) {
  std::string out;
  out.append(kMetaMagic);
  Put<std::uint32_t>(out, kFormatVersion);
  Put<std::uint32_t>(out, image.shard.value());
  Put<std::uint64_t>(out, image.job.value());
  Put<std::uint64_t>(out, image.round.value());
  Put<std::uint32_t>(out, image.epoch.value());
  Put<std::uint32_t>(out, image.lineage);
  Put<std::uint64_t>(out, image.version);
  Put<std::uint64_t>(out, image.samples_trained);
  Put<std::uint32_t>(out, image.first_block);
  Put<std::uint32_t>(out, static_cast<std::uint32_t>(image.block_elements.size()));
  for (const std::uint32_t elements : image.block_elements) Put<std::uint32_t>(out, elements);
  Put<std::uint8_t>(out, image.slots.optimizer);
  Put<std::uint8_t>(out, image.slots.per_element);
  Put<std::uint8_t>(out, static_cast<std::uint8_t>(image.slots.counts));
  Put<std::uint8_t>(out, 0);
  if (image.slots.counts == UpdateCounts::kPerBlock) {
    for (const std::uint32_t updates : image.slots.updates) Put<std::uint32_t>(out, updates);
  }
  Put<std::uint32_t>(out, static_cast<std::uint32_t>(image.marks.size()));
  for (const WorkerMark& mark : image.marks) {
    Put<std::uint32_t>(out, mark.worker.value());
    Put<std::uint32_t>(out, mark.incarnation.value());
    Put<std::uint64_t>(out, mark.first_clock.value());
    Put<std::uint64_t>(out, mark.watermark.value());
    Put<std::uint32_t>(out, static_cast<std::uint32_t>(mark.verdicts.size()));
    out.append(mark.verdicts.begin(), mark.verdicts.end());
  }
  Put<std::uint32_t>(out, static_cast<std::uint32_t>(image.held.size()));
  for (const HeldPush& push : image.held) {
    Put<std::uint32_t>(out, push.worker.value());
    Put<std::uint32_t>(out, push.incarnation.value());
    Put<std::uint64_t>(out, push.clock.value());
    Put<std::uint32_t>(out, push.samples);
    Put<std::uint32_t>(out, static_cast<std::uint32_t>(push.bytes.size()));
    out.append(reinterpret_cast<const char*>(push.bytes.data()), push.bytes.size());
  }
  Put<std::uint32_t>(out, static_cast<std::uint32_t>(image.rows.size()));
  for (std::size_t number = 0; number < image.rows.size(); ++number) {
    const RowTableImage& table = image.rows[number];
    Put<std::uint32_t>(out, table.width);
    Put<std::uint32_t>(out, table.slots);
    Put<std::uint8_t>(out, table.optimizer);
    out.append(3, '\0');
    Put<std::uint32_t>(out, table.tick);
    Put<std::uint64_t>(out, rows[number].rows);
    Put<std::uint64_t>(out, table.sightings);
    Put<std::uint64_t>(out, rows[number].sketch_bytes);
  }
  return out;
}

Result<ShardMeta> DecodeMeta(std::string_view bytes) {
  Cursor cursor(bytes);
  if (cursor.Take(kMetaMagic.size()) != kMetaMagic) return Bad("not a record of a shard");
  const auto format = cursor.Take<std::uint32_t>();
  if (format != kFormatVersion) {
    return Bad("format version " + std::to_string(format) + ", this program reads " +
               std::to_string(kFormatVersion));
  }
  ShardMeta meta;
  ShardImage& image = meta.image;
  image.shard = ShardId(cursor.Take<std::uint32_t>());
  image.job = JobId(cursor.Take<std::uint64_t>());
  image.round = Round(cursor.Take<std::uint64_t>());
  image.epoch = Epoch(cursor.Take<std::uint32_t>());
  image.lineage = cursor.Take<std::uint32_t>();
  image.version = cursor.Take<std::uint64_t>();
  image.samples_trained = cursor.Take<std::uint64_t>();
  image.first_block = cursor.Take<std::uint32_t>();
  const auto blocks = cursor.Take<std::uint32_t>();
  if (!cursor.ok() || blocks > cursor.rest() / sizeof(std::uint32_t)) return Bad("cut short");
  image.block_elements.reserve(blocks);
  for (std::uint32_t i = 0; i < blocks; ++i) {
    image.block_elements.push_back(cursor.Take<std::uint32_t>());
  }
  image.slots.optimizer = cursor.Take<std::uint8_t>();
  image.slots.per_element = cursor.Take<std::uint8_t>();
  const auto counts = cursor.Take<std::uint8_t>();
  const auto reserved = cursor.Take<std::uint8_t>();
  if (!cursor.ok()) return Bad("cut short");
  if (image.slots.per_element > kSlotsMax ||
      counts > static_cast<std::uint8_t>(UpdateCounts::kPerElement) || reserved != 0) {
    return Bad("its slots are of an unknown kind");
  }
  image.slots.counts = static_cast<UpdateCounts>(counts);
  if (image.slots.counts == UpdateCounts::kPerBlock) {
    if (blocks > cursor.rest() / sizeof(std::uint32_t)) return Bad("cut short");
    image.slots.updates.reserve(blocks);
    for (std::uint32_t i = 0; i < blocks; ++i) {
      image.slots.updates.push_back(cursor.Take<std::uint32_t>());
    }
  }
  const auto marks = cursor.Take<std::uint32_t>();
  for (std::uint32_t i = 0; i < marks && cursor.ok(); ++i) {
    WorkerMark mark;
    mark.worker = WorkerId(cursor.Take<std::uint32_t>());
    mark.incarnation = Incarnation(cursor.Take<std::uint32_t>());
    mark.first_clock = Clock(cursor.Take<std::uint64_t>());
    mark.watermark = Clock(cursor.Take<std::uint64_t>());
    const std::string_view verdicts = cursor.Take(cursor.Take<std::uint32_t>());
    mark.verdicts.assign(verdicts.begin(), verdicts.end());
    image.marks.push_back(std::move(mark));
  }
  const auto held = cursor.Take<std::uint32_t>();
  for (std::uint32_t i = 0; i < held && cursor.ok(); ++i) {
    HeldPush push;
    push.worker = WorkerId(cursor.Take<std::uint32_t>());
    push.incarnation = Incarnation(cursor.Take<std::uint32_t>());
    push.clock = Clock(cursor.Take<std::uint64_t>());
    push.samples = cursor.Take<std::uint32_t>();
    const auto content = std::as_bytes(std::span(cursor.Take(cursor.Take<std::uint32_t>())));
    push.bytes.assign(content.begin(), content.end());
    image.held.push_back(std::move(push));
  }
  const auto tables = cursor.Take<std::uint32_t>();
  for (std::uint32_t table = 0; table < tables && cursor.ok(); ++table) {
    RowTableImage rows;
    rows.table = table;
    rows.width = cursor.Take<std::uint32_t>();
    rows.slots = cursor.Take<std::uint32_t>();
    rows.optimizer = cursor.Take<std::uint8_t>();
    const std::string_view zeros = cursor.Take(3);
    rows.tick = cursor.Take<std::uint32_t>();
    ShardMeta::Rows stored;
    stored.rows = cursor.Take<std::uint64_t>();
    rows.sightings = cursor.Take<std::uint64_t>();
    stored.sketch_bytes = cursor.Take<std::uint64_t>();
    if (!cursor.ok()) break;
    if (rows.width == 0 || rows.width > kMaxRowWidth || rows.slots > 2 * rows.width ||
        zeros != std::string_view("\0\0\0", 3)) {
      return Bad("its table of rows " + std::to_string(table) + " is of a shape that cannot be");
    }
    image.rows.push_back(std::move(rows));
    meta.rows.push_back(stored);
  }
  if (!cursor.ok()) return Bad("cut short");
  if (cursor.rest() != 0) return Bad(std::to_string(cursor.rest()) + " bytes too many");
  return meta;
}

std::size_t BytesPerElement(const ShardImage& image) {
  const std::size_t counts = image.slots.counts == UpdateCounts::kPerElement ? 1 : 0;
  return sizeof(float) * (1 + image.slots.per_element + counts);
}

std::string EncodeBlock(const ShardImage& image, std::size_t index, std::size_t offset) {
  const std::size_t elements = image.block_elements[index];
  std::string content;
  content.reserve(elements * BytesPerElement(image));
  const auto append = [&content, elements](const auto* words) {
    content.append(reinterpret_cast<const char*>(words), elements * sizeof(*words));
  };
  append(image.values.data() + offset);
  for (std::size_t slot = 0; slot < image.slots.per_element; ++slot) {
    append(image.slots.floats.data() + slot * image.values.size() + offset);
  }
  if (image.slots.counts == UpdateCounts::kPerElement) append(image.slots.updates.data() + offset);
  return content;
}

Status DecodeBlock(std::string_view content, std::size_t index, std::size_t offset,
                   ShardImage& image) {
  const std::size_t elements = image.block_elements[index];
  if (content.size() != elements * BytesPerElement(image)) {
    return Bad(std::to_string(content.size()) + " bytes for " + std::to_string(elements) +
               " elements of " + std::to_string(BytesPerElement(image)) + " bytes");
  }
  const auto take = [&content, elements](auto* words) {
    std::memcpy(words, content.data(), elements * sizeof(*words));
    content.remove_prefix(elements * sizeof(*words));
  };
  if (elements == 0) return Ok();
  take(image.values.data() + offset);
  for (std::size_t slot = 0; slot < image.slots.per_element; ++slot) {
    take(image.slots.floats.data() + slot * image.values.size() + offset);
  }
  if (image.slots.counts == UpdateCounts::kPerElement) take(image.slots.updates.data() + offset);
  return Ok();
}

std::size_t RowsPerRecord(const RowTableImage& table) {
  return std::max<std::size_t>(1, kChunkBytes / table.record_bytes());
}

Status CheckRowsRecord(std::string_view content, std::uint64_t first, const RowTableImage& table) {
  const std::size_t bytes = table.record_bytes();
  const std::size_t rows = content.size() / bytes;
  if (rows == 0 || content.size() % bytes != 0 || rows > RowsPerRecord(table)) {
    return Bad(std::to_string(content.size()) + " bytes for 1 to " +
               std::to_string(RowsPerRecord(table)) + " rows of " + std::to_string(bytes) +
               " bytes");
  }
  std::uint64_t key = 0;
  std::memcpy(&key, content.data(), sizeof(key));
  if (key != first) return Bad("rows from " + std::to_string(key) + " on under another key");
  return Ok();
}

Status CheckRemovedRecord(std::string_view content, std::uint64_t first) {
  if (content.empty() || content.size() % sizeof(std::uint64_t) != 0 ||
      content.size() > kChunkBytes) {
    return Bad(std::to_string(content.size()) + " bytes of removed keys");
  }
  Cursor cursor(content);
  std::uint64_t before = 0;
  for (bool is_first = true; cursor.rest() > 0; is_first = false) {
    const auto key = cursor.Take<std::uint64_t>();
    if (is_first ? key != first : key <= before) {
      return Bad("removed key " + std::to_string(key) + " is out of order");
    }
    before = key;
  }
  return Ok();
}

std::string EncodeBases(std::span<const Round> bases) {
  std::string out;
  for (const Round base : bases) Put<std::uint64_t>(out, base.value());
  return out;
}

Result<std::vector<Round>> DecodeBases(std::string_view bytes) {
  if (bytes.empty() || bytes.size() % sizeof(std::uint64_t) != 0 ||
      bytes.size() / sizeof(std::uint64_t) > kBasesMax) {
    return Bad(std::to_string(bytes.size()) + " bytes of rounds that it builds on");
  }
  std::vector<Round> bases;
  Cursor cursor(bytes);
  while (cursor.rest() > 0) bases.emplace_back(cursor.Take<std::uint64_t>());
  return bases;
}

Status CheckBases(Round round, std::span<const Round> bases) {
  if (bases.size() > kBasesMax) return Bad("it builds on too many checkpoints");
  for (const Round base : bases) {
    if (base.value() == 0 || base >= round) {
      return Bad("it builds on checkpoint " + std::to_string(base.value()) +
                 ", which is not before checkpoint " + std::to_string(round.value()));
    }
    round = base;
  }
  return Ok();
}

}  // namespace ps::checkpoint
