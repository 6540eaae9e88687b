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

Status ShardImageReader::AddRecord(std::string_view key_bytes, std::string_view content) {
  const checkpoint::RecordKey key = PS_TRY(checkpoint::DecodeKey(key_bytes));
  if (key.shard != shard_) return Bad("a record of another shard");
  switch (key.kind) {
    case RecordKind::kMeta: return check_.AddMeta(content);
    case RecordKind::kBlock: return check_.AddBlock(key.block, content);
    case RecordKind::kSketch: return check_.AddSketch(key.block, key.first, content);
    case RecordKind::kRows: {
      const checkpoint::ShardMeta* const meta = check_.meta();
      if (meta == nullptr || key.block >= meta->image.rows.size()) {
        return Bad("rows of an unknown table");
      }
      PS_TRY(checkpoint::CheckRowsRecord(content, key.first, meta->image.rows[key.block]));
      return check_.AddRows(key.block, content);
    }
    case RecordKind::kRemoved:
    case RecordKind::kBases: break;
  }
  return Bad("a record that no image has");
}

Status ShardImageReader::Finish() {
  PS_TRY(check_.Finish());
  return Ok();
}

}  // namespace ps::server
