#include "checkpoint/content.h"

#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "checkpoint/digest.h"
#include "common/error_id.h"

namespace ps::checkpoint {
namespace {

Error Bad(const std::string& what) { return Error{ErrorId::kCheckpointDamaged, what}; }

std::span<const std::byte> Bytes(std::string_view text) { return std::as_bytes(std::span(text)); }

void Update(Digester& digester, const ContentHash& hash) {
  digester.Update(std::as_bytes(std::span(&hash, 1)));
}
static_assert(sizeof(ContentHash) == 16);

std::string OfTable(std::uint32_t table) { return "row table " + std::to_string(table) + ": "; }

}  // namespace

ContentHash HashOf(const void* bytes, std::size_t count) {
  const XXH128_hash_t hash = XXH3_128bits(bytes, count);
  return {hash.low64, hash.high64};
}

std::string DigestOf(std::string_view meta, const ContentHashes& hashes) {
  Digester digester;
  digester.Update(Bytes(meta));
  for (const ContentHash& hash : hashes.blocks) Update(digester, hash);
  for (const ContentHash& hash : hashes.rows) Update(digester, hash);
  for (const auto& sketch : hashes.sketches) {
    for (const ContentHash& hash : sketch) Update(digester, hash);
  }
  return digester.Hex();
}

Status ContentCheck::AddMeta(std::string_view content) {
  if (has_meta_) return Bad("a second meta");
  meta_ = PS_TRY(DecodeMeta(content));
  if (meta_.image.shard != shard_) {
    return Bad("the record is that of shard " + std::to_string(meta_.image.shard.value()));
  }
  PS_TRY(CheckMeta(meta_));
  tables_.resize(meta_.rows.size());
  if (with_digest_) {
    meta_content_ = content;
    hashes_.rows.resize(tables_.size());
    hashes_.sketches.resize(tables_.size());
  }
  has_meta_ = true;
  return sink_.Begin(meta_);
}

Status ContentCheck::AddBlock(std::uint32_t block, std::string_view content) {
  if (!has_meta_) return Bad("a block before the meta");
  const std::string name = "block " + std::to_string(block) + ": ";
  if (blocks_ == meta_.image.block_elements.size() || block != meta_.image.first_block + blocks_) {
    return Bad(name + "it is not the next one");
  }
  const std::size_t elements = meta_.image.block_elements[blocks_];
  if (content.size() != elements * BytesPerElement(meta_.image)) {
    return Bad(name + std::to_string(content.size()) + " bytes for " + std::to_string(elements) +
               " elements of " + std::to_string(BytesPerElement(meta_.image)) + " bytes");
  }
  if (with_digest_) hashes_.blocks.push_back(HashOf(content.data(), content.size()));
  return sink_.AddBlock(blocks_++, content);
}

Status ContentCheck::AddRows(std::uint32_t table, std::string_view records) {
  if (!has_meta_ || table >= tables_.size()) return Bad("rows of an unknown table");
  const RowTableImage& shape = meta_.image.rows[table];
  Table& state = tables_[table];
  const std::size_t bytes = shape.record_bytes();
  const std::uint64_t rows = records.size() / bytes;
  if (records.size() % bytes != 0) return Bad(OfTable(table) + "a row is cut short");
  if (rows > meta_.rows[table].rows - state.rows) {
    return Bad(OfTable(table) + "more rows than its meta says");
  }
  // Removed places of a store are not told from rows by anything else.
  const char* record = records.data();
  ContentHash sum;
  for (std::uint64_t row = 0; row < rows; ++row, record += bytes) {
    std::uint64_t key = 0;
    std::uint32_t words[2];  // updates and last used
    std::memcpy(&key, record, sizeof(key));
    std::memcpy(words, record + sizeof(key), sizeof(words));
    if (words[0] == 0 || words[1] > shape.tick || (state.rows > 0 && key <= state.last_key)) {
      const char* const what = words[0] == 0           ? " is none: it has 0 updates"
                               : words[1] > shape.tick ? " was used after the cut"
                                                       : " stands after a higher one";
      return Bad(OfTable(table) + "row " + std::to_string(key) + what);
    }
    state.last_key = key;
    ++state.rows;
    if (with_digest_) sum += HashOf(record, bytes);
  }
  if (with_digest_) hashes_.rows[table] += sum;
  return sink_.AddRows(table, Bytes(records));
}

Status ContentCheck::AddSketch(std::uint32_t table, std::uint64_t at, std::string_view counters) {
  if (!has_meta_ || table >= tables_.size()) return Bad("a sketch of an unknown table");
  Table& state = tables_[table];
  const std::uint64_t next =
      std::min<std::uint64_t>(kChunkBytes, meta_.rows[table].sketch_bytes - state.sketch_bytes);
  if (next == 0 || at != state.sketch_bytes || counters.size() != next) {
    return Bad(OfTable(table) + std::to_string(counters.size()) + " bytes of a sketch from " +
               std::to_string(at) + " on, " + std::to_string(next) + " from " +
               std::to_string(state.sketch_bytes) + " on expected");
  }
  state.sketch_bytes += next;
  if (with_digest_) hashes_.sketches[table].push_back(HashOf(counters.data(), counters.size()));
  return sink_.AddSketch(table,
                         {reinterpret_cast<const std::uint8_t*>(counters.data()), counters.size()});
}

Result<std::string> ContentCheck::Finish() {
  bool whole = has_meta_ && blocks_ == meta_.image.block_elements.size();
  for (std::size_t table = 0; whole && table < tables_.size(); ++table) {
    whole = tables_[table].rows == meta_.rows[table].rows &&
            tables_[table].sketch_bytes == meta_.rows[table].sketch_bytes;
  }
  if (!whole) return Bad("a record is missing");
  return with_digest_ ? DigestOf(meta_content_, hashes_) : std::string();
}

Status ImageSink::Begin(const ShardMeta& meta) {
  image_ = meta.image;
  std::uint64_t elements = 0;
  for (const std::uint32_t count : image_.block_elements) elements += count;
  std::uint64_t bytes = elements * BytesPerElement(image_);
  const auto check = [&](std::uint64_t more) -> Status {
    if (bytes > bytes_max_ || more > bytes_max_ - bytes) {
      return Bad("it claims to have more content than there can be");
    }
    bytes += more;
    return Ok();
  };
  PS_TRY(check(0));
  for (std::size_t table = 0; table < meta.rows.size(); ++table) {
    const std::size_t record = image_.rows[table].record_bytes();
    if (meta.rows[table].rows > bytes_max_ / record) PS_TRY(check(UINT64_MAX));
    PS_TRY(check(meta.rows[table].rows * record));
    PS_TRY(check(meta.rows[table].sketch_bytes));
  }
  image_.values.resize(elements);
  image_.slots.floats.resize(elements * image_.slots.per_element);
  if (image_.slots.counts == UpdateCounts::kPerElement) image_.slots.updates.resize(elements);
  for (std::size_t table = 0; table < meta.rows.size(); ++table) {
    RowTableImage& rows = image_.rows[table];
    rows.records.reserve(meta.rows[table].rows * rows.record_bytes());
    rows.sketch.reserve(meta.rows[table].sketch_bytes);
  }
  return Ok();
}

Status ImageSink::AddBlock(std::size_t index, std::string_view content) {
  PS_TRY(DecodeBlock(content, index, elements_, image_));
  elements_ += image_.block_elements[index];
  return Ok();
}

Status ImageSink::AddRows(std::uint32_t table, std::span<const std::byte> records) {
  auto& to = image_.rows[table].records;
  to.insert(to.end(), records.begin(), records.end());
  return Ok();
}

Status ImageSink::AddSketch(std::uint32_t table, std::span<const std::uint8_t> counters) {
  auto& to = image_.rows[table].sketch;
  to.insert(to.end(), counters.begin(), counters.end());
  return Ok();
}

Status SendImage(const ShardImage& image, ContentCheck& to) {
  const auto chars = [](const auto* from, std::size_t count) {
    return std::string_view(reinterpret_cast<const char*>(from), count);
  };
  PS_TRY(to.AddMeta(EncodeMeta(image)));
  std::size_t offset = 0;
  for (std::size_t i = 0; i < image.block_elements.size(); ++i) {
    PS_TRY(to.AddBlock(image.first_block + static_cast<std::uint32_t>(i),
                       EncodeBlock(image, i, offset)));
    offset += image.block_elements[i];
  }
  for (const RowTableImage& table : image.rows) {
    PS_TRY(to.AddRows(table.table, chars(table.records.data(), table.records.size())));
  }
  for (const RowTableImage& table : image.rows) {
    for (std::size_t at = 0; at < table.sketch.size(); at += kChunkBytes) {
      const std::size_t count = std::min(kChunkBytes, table.sketch.size() - at);
      PS_TRY(to.AddSketch(table.table, at, chars(table.sketch.data() + at, count)));
    }
  }
  return Ok();
}

}  // namespace ps::checkpoint
