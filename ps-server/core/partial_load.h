// Fills a new shard with what its job loads of other jobs' checkpoints (checkpoint.load).
//
// The shards of a source are cut otherwise than those of the job: each of them that may have
// something for this one passes by (checkpoint::ShardSink), and what falls into it is taken, by
// TensorCopy and codec::ShardOfRow. Rows are there then; values of blocks wait for the initial
// values, whose place they take in the same moment (Shard::Init), so that nobody ever sees the one
// without the other. Versions, watermarks, slots and ticks begin as in any new shard.
//
// The shard serves nothing meanwhile, and is Blank after Finish() alone. A load that ends without
// it leaves the shard as it was. One thread, which is that of the shard.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/content.h"
#include "common/job/load_mapping.h"
#include "common/layout/tensor_copy.h"
#include "common/result.h"
#include "ps-server/core/shard.h"

namespace ps::server {

// A checkpoint that a job loads parts of.
struct LoadSource {
  std::string name;  // for messages: "checkpoint 3 of job 7"
  ModelParts parts;
  LoadMapping mapping;
  // The first element of each of its shards in the space of all tensors, and where the last one
  // ends.
  std::vector<std::uint64_t> shard_begins;

  std::uint32_t shards() const { return static_cast<std::uint32_t>(shard_begins.size() - 1); }
};

class PartialLoad : public checkpoint::ShardSink {
 public:
  // `shard`, which waits for a checkpoint, and `job`, what its job's model has, outlive the load.
  PartialLoad(Shard& shard, const ModelParts& job);
  ~PartialLoad() override;
  PartialLoad(const PartialLoad&) = delete;
  PartialLoad& operator=(const PartialLoad&) = delete;

  // The shards of the source that may have something for this one, increasing. `source` stays until
  // EndSource().
  std::vector<ShardId> BeginSource(const LoadSource& source);
  // The next shard of the source: what passes by until the next call is of this one.
  void BeginShard(ShardId shard) { from_ = shard; }
  // kInvalid unless all came that the mapping says.
  Status EndSource();
  // After all sources. The shard waits for its initial values.
  void Finish();

  // kInvalid if it is not as the source's layout says, has values that are no numbers, or rows that
  // belong elsewhere.
  Status Begin(const checkpoint::ShardMeta& meta) override;
  Status AddBlock(std::size_t index, std::string_view content) override;
  Status AddRows(std::uint32_t table, std::span<const std::byte> records) override;
  Status AddSketch(std::uint32_t, std::span<const std::uint8_t>) override { return Ok(); }

 private:
  // A tensor with elements for this shard.
  struct Piece {
    const ModelParts::Tensor* tensor = nullptr;  // of the source
    TensorCopy copy;
    std::uint64_t begin = 0;   // of those elements, in the source's space of all tensors
    std::uint64_t end = 0;     //
    std::uint64_t target = 0;  // where the job's tensor begins, in the job's space
  };

  Status TakeValues(std::span<const float> values);

  Shard& shard_;
  const ModelParts& job_;
  const std::uint64_t first_element_;
  const std::uint64_t elements_;
  bool finished_ = false;

  // Of the source under way.
  const LoadSource* source_ = nullptr;
  std::vector<Piece> pieces_;                       // by their begin
  std::vector<std::optional<std::size_t>> tables_;  // of the source: the job's that it becomes
  std::uint64_t missing_ = 0;                       // elements that have not come yet
  ShardId from_;
  std::uint64_t at_ = 0;  // the next element of the source
  std::vector<std::uint32_t> block_elements_;
  std::vector<std::size_t> record_bytes_;
  std::vector<float> values_;
  std::vector<std::uint64_t> keys_;
};

}  // namespace ps::server
