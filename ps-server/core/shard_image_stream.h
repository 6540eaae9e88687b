// The image of a shard in pieces, as one lane sends it to another.
//
// A piece is whole records, each [key bytes u32][value bytes u32][key][value], with keys and sealed
// values as a checkpoint has them (checkpoint/FORMAT.md): the meta first, then blocks, rows and
// sketches in order. What is read is not trusted: each record is checked before it goes on into the
// sink, and no memory is reserved for what a count claims. Pure; one thread each.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "checkpoint/content.h"
#include "checkpoint/image.h"
#include "checkpoint/record.h"
#include "common/ids.h"
#include "common/result.h"
#include "ps-server/core/byte_buffer.h"

namespace ps::server {

// A piece ends with the record that brings it to this.
inline constexpr std::size_t kImagePieceBytes = std::size_t{1} << 20;

class ShardImageWriter {
 public:
  explicit ShardImageWriter(checkpoint::ShardImage image) : image_(std::move(image)) {}

  // Shared, as it is sent without a copy and may be sent again. Not after the last one.
  std::shared_ptr<const ByteBuffer> Next();
  bool done() const { return step_ == Step::kDone; }

 private:
  enum class Step { kMeta, kBlocks, kRows, kSketches, kDone };

  void AppendRecord(ByteBuffer& out);
  void SkipEmpty();

  const checkpoint::ShardImage image_;
  Step step_ = Step::kMeta;
  std::size_t item_ = 0;    // block or table
  std::size_t offset_ = 0;  // elements before the block; bytes of the table
};

class ShardImageReader {
 public:
  // `sink` outlives the reader.
  ShardImageReader(ShardId shard, checkpoint::ShardSink& sink)
      : shard_(shard), check_(shard, sink, /*with_digest=*/false) {}

  // kInvalid if the piece cannot be the next one of an image of this shard; the reader is of no use
  // then.
  Status Add(std::span<const std::byte> piece);
  // After the last piece. kInvalid if something is missing.
  Status Finish();

 private:
  Status AddRecord(std::string_view key, std::string_view content);

  const ShardId shard_;
  checkpoint::ContentCheck check_;
};

}  // namespace ps::server
