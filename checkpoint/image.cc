#include "checkpoint/image.h"

#include <bit>
#include <tuple>

#include "checkpoint/digest.h"
#include "checkpoint/record.h"
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

Status CheckTable(const RowTableImage& table, std::size_t number) {
  const auto bad = [&](const std::string& what) {
    return Error{ErrorCode::kInvalid, "row table " + std::to_string(number) + ": " + what};
  };
  if (table.table != number) return bad("it is table " + std::to_string(table.table));
  if (table.width > kMaxRowWidth || table.slots > kSlotsMax * table.width) {
    return bad("rows of " + std::to_string(table.width) + " values and " +
               std::to_string(table.slots) + " slots");
  }
  if (table.sketch.size() % kSketchLineBytes != 0) {
    return bad("a sketch of " + std::to_string(table.sketch.size()) + " bytes");
  }
  return CheckRows(table);
}

}  // namespace

void SortRows(ShardImage& image) {
  for (RowTableImage& table : image.rows) SortRows(table);
}

Status CheckImage(const ShardImage& image) {
  const auto bad = [&](const std::string& what) {
    return Error{ErrorCode::kInvalid,
                 "image of shard " + std::to_string(image.shard.value()) + ": " + what};
  };
  if (image.block_elements.empty() && image.rows.empty()) return bad("no blocks");
  std::uint64_t elements = 0;
  for (const std::uint32_t count : image.block_elements) {
    if (count == 0 || count > wire::kBlockElements) {
      return bad("a block of " + std::to_string(count) + " elements");
    }
    elements += count;
  }
  if (elements != image.values.size()) {
    return bad(std::to_string(image.values.size()) + " values for blocks of " +
               std::to_string(elements) + " elements");
  }
  const ImageSlots& slots = image.slots;
  if (slots.per_element > kSlotsMax || slots.floats.size() != elements * slots.per_element) {
    return bad(std::to_string(slots.floats.size()) + " slots for " + std::to_string(elements) +
               " elements with " + std::to_string(slots.per_element) + " each");
  }
  if (slots.updates.size() != CountsOf(image, elements)) {
    return bad(std::to_string(slots.updates.size()) + " counts of updates, " +
               std::to_string(CountsOf(image, elements)) + " expected");
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
  for (std::size_t number = 0; number < image.rows.size(); ++number) {
    const Status table = CheckTable(image.rows[number], number);
    if (!table.ok()) return bad(table.error().message);
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
  const std::string meta = EncodeMeta(image);
  Digester digester;
  digester.Update(std::as_bytes(std::span(meta)));
  digester.Update(std::as_bytes(std::span(image.values)));
  digester.Update(std::as_bytes(std::span(image.slots.floats)));
  if (image.slots.counts == UpdateCounts::kPerElement) {  // those of blocks are in the meta
    digester.Update(std::as_bytes(std::span(image.slots.updates)));
  }
  for (const RowTableImage& table : image.rows) {
    digester.Update(table.records);
    digester.Update(std::as_bytes(std::span(table.sketch)));
  }
  return digester.Hex();
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
