#include "ps-server/core/shard_image_stream.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>

#include "common/check.h"

namespace ps::server {
namespace {

using checkpoint::RecordKind;

Error Bad(const std::string& what) { return Error{ErrorCode::kInvalid, "image: " + what}; }

void AppendLength(ByteBuffer& out, std::size_t length) {
  const auto value = static_cast<std::uint32_t>(length);
  const std::size_t at = out.size();
  out.resize(at + sizeof(value));
  std::memcpy(out.data() + at, &value, sizeof(value));
}

void AppendText(ByteBuffer& out, std::string_view text) {
  const std::size_t at = out.size();
  out.resize(at + text.size());
  std::memcpy(out.data() + at, text.data(), text.size());
}

template <typename Byte>
std::string_view Chars(const Byte* bytes, std::size_t count) {
  static_assert(sizeof(Byte) == 1);
  return {reinterpret_cast<const char*>(bytes), count};
}

}  // namespace

void ShardImageWriter::SkipEmpty() {
  if (step_ == Step::kMeta) return;
  if (step_ == Step::kBlocks && item_ == image_.block_elements.size()) {
    step_ = Step::kRows;
    item_ = offset_ = 0;
  }
  const auto skip = [&](Step step, Step next, const auto& size_of) {
    if (step_ != step) return;
    while (item_ < image_.rows.size() && offset_ >= size_of(image_.rows[item_])) {
      ++item_;
      offset_ = 0;
    }
    if (item_ < image_.rows.size()) return;
    step_ = next;
    item_ = offset_ = 0;
  };
  using Table = checkpoint::RowTableImage;
  skip(Step::kRows, Step::kSketches, [](const Table& table) { return table.records.size(); });
  skip(Step::kSketches, Step::kDone, [](const Table& table) { return table.sketch.size(); });
}

void ShardImageWriter::AppendRecord(ByteBuffer& out) {
  std::string key;
  std::string made;
  std::string_view content;
  switch (step_) {
    case Step::kMeta:
      key = checkpoint::EncodeKey(RecordKind::kMeta, image_.shard, 0);
      made = checkpoint::EncodeMeta(image_);
      content = made;
      step_ = Step::kBlocks;
      break;
    case Step::kBlocks:
      key = checkpoint::EncodeKey(RecordKind::kBlock, image_.shard,
                                  image_.first_block + static_cast<std::uint32_t>(item_));
      made = checkpoint::EncodeBlock(image_, item_, offset_);
      content = made;
      offset_ += image_.block_elements[item_++];
      break;
    case Step::kRows: {
      const checkpoint::RowTableImage& table = image_.rows[item_];
      const std::size_t bytes = std::min(checkpoint::RowsPerRecord(table) * table.record_bytes(),
                                         table.records.size() - offset_);
      std::uint64_t first = 0;
      std::memcpy(&first, table.records.data() + offset_, sizeof(first));
      key = checkpoint::EncodeRowKey(RecordKind::kRows, image_.shard, table.table, first);
      content = Chars(table.records.data() + offset_, bytes);
      offset_ += bytes;
      break;
    }
    case Step::kSketches: {
      const checkpoint::RowTableImage& table = image_.rows[item_];
      const std::size_t bytes = std::min(checkpoint::kChunkBytes, table.sketch.size() - offset_);
      key = checkpoint::EncodeRowKey(RecordKind::kSketch, image_.shard, table.table, offset_);
      content = Chars(table.sketch.data() + offset_, bytes);
      offset_ += bytes;
      break;
    }
    case Step::kDone: PS_CHECK(false, "the image has ended");
  }
  const std::string value = checkpoint::Seal(key, content);
  AppendLength(out, key.size());
  AppendLength(out, value.size());
  AppendText(out, key);
  AppendText(out, value);
  SkipEmpty();
}

std::shared_ptr<const ByteBuffer> ShardImageWriter::Next() {
  auto piece = std::make_shared<ByteBuffer>();
  do {
    AppendRecord(*piece);
  } while (!done() && piece->size() < kImagePieceBytes);
  return piece;
}

Status ShardImageReader::Add(std::span<const std::byte> piece) {
  std::string_view rest = Chars(piece.data(), piece.size());
  while (!rest.empty()) {
    std::uint32_t lengths[2];
    if (rest.size() < sizeof(lengths)) return Bad("a piece is cut short");
    std::memcpy(lengths, rest.data(), sizeof(lengths));
    rest.remove_prefix(sizeof(lengths));
    if (std::uint64_t{lengths[0]} + lengths[1] > rest.size()) return Bad("a piece is cut short");
    const std::string_view key = rest.substr(0, lengths[0]);
    const std::string_view value = rest.substr(lengths[0], lengths[1]);
    rest.remove_prefix(std::size_t{lengths[0]} + lengths[1]);
    const std::string_view content = PS_TRY(checkpoint::Unseal(key, value));
    PS_TRY(AddRecord(key, content));
  }
  return Ok();
}

Status ShardImageReader::AddMeta(std::string_view content) {
  if (meta_.has_value()) return Bad("a second meta");
  checkpoint::ShardMeta meta = PS_TRY(checkpoint::DecodeMeta(content));
  checkpoint::ShardImage& image = meta.image;
  const std::uint32_t first = layout_.shard_first_block(shard_);
  const std::uint32_t last = layout_.shard_last_block(shard_);
  bool fits = image.shard == shard_ && image.first_block == first &&
              image.block_elements.size() == last - first &&
              image.rows.size() == layout_.row_table_count();
  for (std::uint32_t block = first; fits && block < last; ++block) {
    fits = image.block_elements[block - first] == layout_.block(block).elements;
  }
  if (!fits) return Bad("it is of another layout");
  const std::size_t elements = layout_.shard_elements(shard_);
  image.values.resize(elements);
  image.slots.floats.resize(elements * image.slots.per_element);
  if (image.slots.counts == checkpoint::UpdateCounts::kPerElement) {
    image.slots.updates.resize(elements);
  }
  meta_ = std::move(meta);
  return Ok();
}

Status ShardImageReader::AddRecord(std::string_view key_bytes, std::string_view content) {
  const checkpoint::RecordKey key = PS_TRY(checkpoint::DecodeKey(key_bytes));
  if (key.shard != shard_) return Bad("a record of another shard");
  if (key.kind == RecordKind::kMeta) return AddMeta(content);
  if (!meta_.has_value()) return Bad("a record before the meta");
  checkpoint::ShardImage& image = meta_->image;
  if (key.kind == RecordKind::kBlock) {
    if (blocks_ == image.block_elements.size() || key.block != image.first_block + blocks_) {
      return Bad("block " + std::to_string(key.block) + " out of order");
    }
    PS_TRY(checkpoint::DecodeBlock(content, blocks_, elements_, image));
    elements_ += image.block_elements[blocks_++];
    return Ok();
  }
  if (key.block >= image.rows.size()) return Bad("rows of an unknown table");
  const checkpoint::ShardMeta::Rows& counts = meta_->rows[key.block];
  checkpoint::RowTableImage& table = image.rows[key.block];
  return key.kind == RecordKind::kRows
             ? checkpoint::DecodeRows(content, key.first, counts.rows, table)
             : checkpoint::DecodeSketch(content, key.first, counts.sketch_bytes, table);
}

Result<checkpoint::ShardImage> ShardImageReader::Finish() {
  bool whole = meta_.has_value() && blocks_ == meta_->image.block_elements.size();
  for (std::size_t table = 0; whole && table < meta_->rows.size(); ++table) {
    whole = meta_->image.rows[table].rows() == meta_->rows[table].rows &&
            meta_->image.rows[table].sketch.size() == meta_->rows[table].sketch_bytes;
  }
  if (!whole) return Bad("a record is missing");
  PS_TRY(checkpoint::CheckImage(meta_->image));
  return std::move(meta_->image);
}

}  // namespace ps::server
