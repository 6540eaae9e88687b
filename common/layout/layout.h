// The dense space of a model, cut into blocks and shards.
//
// A job has tables: `parameters` (rule Sgd), and if the model has buffers,
// `buffers` (float buffers, rule Average) and `counters` (integer buffers as
// fp32, rule Maximum). A table is cut into blocks of up to 65,536 elements.
// Inside `parameters` the large tensors come first, laid one after the other
// and cut into blocks regardless of tensor borders (the *selected* region, which
// is sparsified); then, starting a new block, the small and one-dimensional
// tensors (always sent dense). Blocks are numbered through all tables, in
// order; a block belongs to one table. A shard is a contiguous range of blocks:
// shard s of S holds blocks [B*s/S, B*(s+1)/S).
//
// A job may have tables of rows too, numbered by themselves. Their rows lie on
// all shards, each where its key says (codec::ShardOfRow). Without tables of
// rows every shard has a block (S <= B), with them some may have none.
//
// The values of a shard are the elements of its blocks, one after the other.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/ids.h"
#include "common/result.h"
#include "control_generated.h"

namespace ps {

inline constexpr std::uint32_t kMaxShards = 4096;
inline constexpr std::uint32_t kMaxRowTables = 1024;
inline constexpr std::uint32_t kMaxRowWidth = 1024;

// How pushed values change a block.
using TableRule = control::TableRule;

struct Block {
  std::uint32_t table = 0;  // index into Layout's tables
  TableRule rule = TableRule::Sgd;
  std::uint32_t elements = 0;      // 1 .. 65,536
  std::uint64_t table_offset = 0;  // first element inside the table's flat space
};

// The layout as the data path uses it; from a verified control::LayoutT.
class LayoutView {
 public:
  // kInvalid if block counts, sizes or offsets contradict each other (the layout came over a wire).
  static Result<LayoutView> Create(const control::LayoutT& layout, std::uint32_t shards);

  std::uint32_t block_count() const { return static_cast<std::uint32_t>(blocks_.size()); }
  std::uint32_t shard_count() const { return shards_; }
  std::uint32_t row_table_count() const { return static_cast<std::uint32_t>(row_widths_.size()); }
  // Floats of a row's values; 0 if there is no such table.
  std::uint32_t row_width(std::uint32_t table) const {
    return table < row_widths_.size() ? row_widths_[table] : 0;
  }
  const Block& block(std::uint32_t number) const { return blocks_[number]; }
  // [first, last) block numbers of a shard.
  std::uint32_t shard_first_block(ShardId shard) const;
  std::uint32_t shard_last_block(ShardId shard) const;
  ShardId shard_of_block(std::uint32_t block) const;
  std::uint64_t shard_elements(ShardId shard) const;
  // Its first element in the space of all tables, one after the other.
  std::uint64_t shard_first_element(ShardId shard) const {
    return prefix_[shard_first_block(shard)];
  }
  // Offset of a block in its shard's values.
  std::uint64_t offset_in_shard(std::uint32_t block) const;

 private:
  std::vector<Block> blocks_;
  std::vector<std::uint64_t> prefix_;      // elements before block i, over all tables
  std::vector<std::uint32_t> row_widths_;  // by table
  std::uint32_t shards_ = 0;
};

// Shards a job gets: `asked`, or with 0 one per block, at most 256; never more than blocks. With
// tables of rows: `asked`, or with 0 one per block, at least 64 and at most 256.
std::uint32_t ChooseShardCount(const control::LayoutT& layout, std::int64_t asked);

}  // namespace ps
