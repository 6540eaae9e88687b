// A shard as of an instant, from which its image is made while the shard goes on.
//
// Taking it costs little: memory is shared with the shard until that writes on it
// (cow_pages.h). May be read and ended on any one thread, and outlive the shard.
#pragma once

#include <cstdint>
#include <utility>

#include "checkpoint/image.h"
#include "ps-server/core/dense_store.h"
#include "ps-server/core/shard_rows.h"

namespace ps::server {

class FrozenShard {
 public:
  // `rest`: the image but for what the others have.
  FrozenShard(checkpoint::ShardImage rest, FrozenDenseStore blocks, FrozenShardRows rows)
      : rest_(std::move(rest)), rows_(std::move(rows)), blocks_(std::move(blocks)) {}

  ShardId shard() const { return rest_.shard; }
  std::uint64_t samples_trained() const { return rest_.samples_trained; }
  // As checkpoint::ContentBytes() of the image.
  std::uint64_t content_bytes() const { return blocks_.content_bytes() + rows_.content_bytes(); }

  // A copy of everything, as a checkpoint has it: as much memory again.
  checkpoint::ShardImage ToImage() const {
    checkpoint::ShardImage image = rest_;
    blocks_.Save(image);
    rows_.Save(image);
    for (checkpoint::RowTableImage& table : image.rows) checkpoint::SortRows(table);
    return image;
  }

 private:
  checkpoint::ShardImage rest_;
  FrozenShardRows rows_;  // has the memory that both lie in
  FrozenDenseStore blocks_;
};

}  // namespace ps::server
