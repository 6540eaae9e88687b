#include "checkpoint/image.h"

#include <algorithm>
#include <bit>
#include <tuple>

#include "checkpoint/content.h"
#include "checkpoint/digest.h"
#include "checkpoint/record.h"
#include "common/error_id.h"
#include "common/layout/layout.h"
#include "common/messages/wire.h"

namespace ps::checkpoint {

constexpr std::uint64_t kHeldBytesMax = std::uint64_t{1} << 30;

static_assert(std::endian::native == std::endian::little,
              "values are stored as they lie in memory");

namespace {

std::uint64_t CountsOf(const ShardImage& image, std::uint64_t elements) {
  switch (image.slots.counts) {
    case UpdateCounts::kNone: return 0;
    case UpdateCounts::kPerBlock: return image.block_elements.size();
    case UpdateCounts::kPerElement: return elements;
  }
  return 0;
}

constexpr std::size_t kSketchLineBytes = 64;

Status CheckTable(const RowTableImage& table, std::size_t number, std::uint64_t sketch_bytes) {
  const auto bad = [&](const std::string& what) {
    return Error{ErrorId::kCheckpointDamaged, "row table " + std::to_string(number) + ": " + what};
  };
  if (table.table != number) return bad("it is table " + std::to_string(table.table));
  if (table.width > kMaxRowWidth || table.slots > kSlotsMax * table.width) {
    return bad("rows of " + std::to_string(table.width) + " values and " +
               std::to_string(table.slots) + " slots");
  }
  if (sketch_bytes % kSketchLineBytes != 0) {
    return bad("a sketch of " + std::to_string(sketch_bytes) + " bytes");
  }
  return Ok();
}

std::uint64_t ElementsOf(const ShardImage& image) {
  std::uint64_t elements = 0;
  for (const std::uint32_t count : image.block_elements) elements += count;
  return elements;
}

}  // namespace

void SortRows(ShardImage& image) {
  for (RowTableImage& table : image.rows) SortRows(table);
}

Status CheckHead(const ShardImage& image) {
  const auto bad = [&](const std::string& what) {
    return Error{ErrorId::kCheckpointDamaged,
                 "image of shard " + std::to_string(image.shard.value()) + ": " + what};
  };
  if (image.block_elements.empty() && image.rows.empty()) return bad("no blocks");
  for (const std::uint32_t count : image.block_elements) {
    if (count == 0 || count > wire::kBlockElements) {
      return bad("a block of " + std::to_string(count) + " elements");
    }
  }
  const ImageSlots& slots = image.slots;
  if (slots.per_element > kSlotsMax) {
    return bad(std::to_string(slots.per_element) + " slots beside each element");
  }
  if (slots.counts == UpdateCounts::kPerBlock &&
      slots.updates.size() != image.block_elements.size()) {
    return bad(std::to_string(slots.updates.size()) + " counts of updates, " +
               std::to_string(image.block_elements.size()) + " expected");
  }
  if (std::uint64_t{image.first_block} + image.block_elements.size() > UINT32_MAX) {
    return bad("block numbers beyond 32 bits");
  }
  for (const WorkerMark& mark : image.marks) {
    if (mark.watermark < mark.first_clock ||
        mark.verdicts.size() > mark.watermark.value() - mark.first_clock.value()) {
      return bad("watermark " + std::to_string(mark.watermark.value()) + " of worker " +
                 std::to_string(mark.worker.value()) + " does not fit its first clock " +
                 std::to_string(mark.first_clock.value()) + " and " +
                 std::to_string(mark.verdicts.size()) + " verdicts");
    }
  }
  std::uint64_t held_bytes = 0;
  for (std::size_t i = 0; i < image.held.size(); ++i) {
    const HeldPush& push = image.held[i];
    held_bytes += push.bytes.size();
    if (i > 0) {
      const HeldPush& before = image.held[i - 1];
      if (std::tie(before.clock, before.worker, before.incarnation) >=
          std::tie(push.clock, push.worker, push.incarnation)) {
        return bad("held pushes out of order");
      }
    }
  }
  if (held_bytes > kHeldBytesMax) return bad("held pushes of more than 1 GiB");
  if (image.rows.size() > kMaxRowTables) return bad("more than 1,024 tables of rows");
  return Ok();
}

Status CheckMeta(const ShardMeta& meta) {
  PS_TRY(CheckHead(meta.image));
  for (std::size_t number = 0; number < meta.image.rows.size(); ++number) {
    PS_TRY(CheckTable(meta.image.rows[number], number, meta.rows[number].sketch_bytes));
  }
  return Ok();
}

Status CheckImage(const ShardImage& image) {
  const auto bad = [&](const std::string& what) {
    return Error{ErrorId::kCheckpointDamaged,
                 "image of shard " + std::to_string(image.shard.value()) + ": " + what};
  };
  PS_TRY(CheckHead(image));
  const std::uint64_t elements = ElementsOf(image);
  if (elements != image.values.size()) {
    return bad(std::to_string(image.values.size()) + " values for blocks of " +
               std::to_string(elements) + " elements");
  }
  const ImageSlots& slots = image.slots;
  if (slots.floats.size() != elements * slots.per_element) {
    return bad(std::to_string(slots.floats.size()) + " slots for " + std::to_string(elements) +
               " elements with " + std::to_string(slots.per_element) + " each");
  }
  if (slots.updates.size() != CountsOf(image, elements)) {
    return bad(std::to_string(slots.updates.size()) + " counts of updates, " +
               std::to_string(CountsOf(image, elements)) + " expected");
  }
  for (std::size_t number = 0; number < image.rows.size(); ++number) {
    const RowTableImage& table = image.rows[number];
    Status checked = CheckTable(table, number, table.sketch.size());
    if (checked.ok()) checked = CheckRows(table);
    if (!checked.ok()) return bad(checked.error().message);
  }
  return Ok();
}

std::uint64_t RowCount(const ShardImage& image) {
  std::uint64_t rows = 0;
  for (const RowTableImage& table : image.rows) rows += table.rows();
  return rows;
}

std::uint64_t ContentBytes(const ShardImage& image) {
  std::uint64_t bytes = (image.values.size() + image.slots.floats.size()) * sizeof(float) +
                        image.slots.updates.size() * sizeof(std::uint32_t);
  for (const RowTableImage& table : image.rows) bytes += table.records.size() + table.sketch.size();
  return bytes;
}

std::string Digest(const ShardImage& image) {
  ContentHashes hashes;
  std::size_t offset = 0;
  for (std::size_t i = 0; i < image.block_elements.size(); ++i) {
    const std::string content = EncodeBlock(image, i, offset);
    hashes.blocks.push_back(HashOf(content.data(), content.size()));
    offset += image.block_elements[i];
  }
  for (const RowTableImage& table : image.rows) {
    ContentHash sum;
    const std::size_t bytes = table.record_bytes();
    for (std::size_t row = 0; row < table.rows(); ++row) {
      sum += HashOf(table.records.data() + row * bytes, bytes);
    }
    hashes.rows.push_back(sum);
    hashes.sketches.emplace_back();
    for (std::size_t at = 0; at < table.sketch.size(); at += kChunkBytes) {
      hashes.sketches.back().push_back(
          HashOf(table.sketch.data() + at, std::min(kChunkBytes, table.sketch.size() - at)));
    }
  }
  return DigestOf(EncodeMeta(image), hashes);
}

std::string ValuesDigest(std::span<const float> values) { return HexDigest(std::as_bytes(values)); }

std::string HexDigest(std::span<const std::byte> bytes) {
  Digester digester;
  digester.Update(bytes);
  return digester.Hex();
}

std::string HexDigest(std::string_view text) { return HexDigest(std::as_bytes(std::span(text))); }

bool IsHexDigest(std::string_view text) {
  if (text.size() != 32) return false;
  for (const char c : text) {
    if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'))) return false;
  }
  return true;
}

}  // namespace ps::checkpoint
