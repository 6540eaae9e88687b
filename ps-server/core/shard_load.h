// Fills a shard that waits for a checkpoint, piece by piece as that is read.
//
// The shard serves nothing meanwhile, and is ready after Finish() alone: then all
// that came was whole and as it should be. A load that ends without it leaves the
// shard as it was. The thread of the load is that of the shard, which is why a
// server loads shards that its lanes do not have yet.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "checkpoint/content.h"
#include "common/result.h"
#include "ps-server/core/shard.h"

namespace ps::server {

struct ShardLoadOptions {
  // Versions, samples, watermarks and the optimizers' slots start afresh, whatever optimizers the
  // image is of; rows stay.
  bool values_only = false;
  // What the meta claims was held against the size of files: room is made for it.
  bool expect = false;
};

class ShardLoad : public checkpoint::ShardSink {
 public:
  // `shard` outlives the load.
  ShardLoad(Shard& shard, ShardLoadOptions options) : shard_(shard), options_(options) {}
  ~ShardLoad() override;
  ShardLoad(const ShardLoad&) = delete;
  ShardLoad& operator=(const ShardLoad&) = delete;

  // kConflict if the shard does not wait for a checkpoint, kInvalid if the image is of another
  // layout or optimizer.
  Status Begin(const checkpoint::ShardMeta& meta) override;
  Status AddBlock(std::size_t index, std::string_view content) override;
  Status AddRows(std::uint32_t table, std::span<const std::byte> records) override;
  Status AddSketch(std::uint32_t table, std::span<const std::uint8_t> counters) override;

  // After ContentCheck::Finish(): the shard is ready.
  void Finish();

 private:
  Status CheckFits(const checkpoint::ShardImage& image) const;
  Status TakeStreams(const checkpoint::ShardImage& image);

  Shard& shard_;
  const ShardLoadOptions options_;
  bool begun_ = false;
  checkpoint::ShardImage head_;
  std::vector<Shard::Stream> streams_;
};

}  // namespace ps::server
