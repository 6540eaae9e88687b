// What all workers of one shard hold of its parameters: a bf16 of each.
//
// The shadow follows the values push by push: at the entries of a push it moves by
// the quantised difference between value and shadow, as the workers will when they
// pull this increment. What quantisation leaves out stays in the difference and
// goes out with the entry's next push, so nothing is lost and nothing is kept for
// any single worker. Blocks that a push changes as a whole are taken as they are,
// and are sent as values.
//
// Only blocks of the rule Sgd have a shadow. It is not part of a checkpoint: after
// a restore it begins anew with the values, and every pull with a snapshot. One
// thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "common/codec/block_codec.h"
#include "common/layout/layout.h"
#include "ps-server/core/dense_store.h"

namespace ps::server {

class Shadow {
 public:
  // Of the blocks [first_block, last_block) of `layout`, which outlives the shadow.
  Shadow(const LayoutView& layout, std::uint32_t first_block, std::uint32_t last_block);

  // Takes the values as they are.
  void TakeAll(const DenseStore& store);

  // After a push of `blocks` changed the store, with `whole_blocks` all their entries. Returns what
  // the change log is to keep of it, borrowed until the next call.
  std::span<const std::byte> Follow(std::span<const codec::BlockView> blocks, bool whole_blocks,
                                    const DenseStore& store);

  bool Has(std::uint32_t block) const { return layout_.block(block).rule == TableRule::Sgd; }
  // Of a block that it has: all values, in `values`, or those at some positions, which replace it.
  std::span<const float> ValuesOf(std::uint32_t block, std::vector<float>& values) const;
  void Gather(std::uint32_t block, std::span<const std::uint16_t> positions,
              std::vector<float>& values) const;
  // Of all that it has, in the order of blocks (codec::HeldHash).
  std::uint64_t Hash() const;

 private:
  std::span<std::uint16_t> HeldOfBlock(std::uint32_t block);
  std::span<const std::uint16_t> HeldOfBlock(std::uint32_t block) const;
  void TakeBlock(std::uint32_t block, const DenseStore& store);
  std::size_t FollowBlock(const codec::BlockView& push, const DenseStore& store, std::byte* out);

  const LayoutView& layout_;
  const std::uint32_t first_block_;
  const std::uint32_t last_block_;

  std::vector<std::uint16_t> held_;  // by element of the shard
  // Scratch, kept to avoid allocations.
  std::vector<std::byte> encoded_;
  std::vector<std::uint16_t> positions_;
  std::vector<float> values_;
  std::vector<float> sent_;
};

}  // namespace ps::server
