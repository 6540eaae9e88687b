// The values of the blocks of one shard, with the slots of the job's optimizer.
//
// They lie in memory in one of two ways, which StoreShape::Of chooses per job:
//
//   arrays    a block's values, then its slot 0, then its slot 1; updates are
//             counted per block. For dense pushes, which stream through whole
//             blocks.
//   records   {w, slot} or {w, slot, slot, updates} of each element side by
//             side, 8 or 16 bytes: an entry of a sparse push touches one cache
//             line instead of three, and the bias correction of a rarely
//             touched element follows its own updates.
//
// Both take any push. In checkpoints they look alike but for the counts. Blocks
// of the rules Average and Maximum are changed by those and have unused slots.
// Each block is a page of its own (cow_pages.h), so that a checkpoint is made from
// a frozen view. One thread, but for views.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory_resource>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/image.h"
#include "common/codec/block_codec.h"
#include "common/layout/layout.h"
#include "common/result.h"
#include "ps-server/core/cow_pages.h"
#include "ps-server/core/optimizer.h"

namespace ps::server {

struct StoreShape {
  OptimizerType optimizer = OptimizerType::kSgd;
  std::uint32_t slots = 0;  // floats beside each element
  checkpoint::UpdateCounts counts = checkpoint::UpdateCounts::kNone;
  bool records = false;

  // `sparse`: pushes leave out entries of large tensors.
  static StoreShape Of(const Optimizer& optimizer, bool sparse);
  // Floats from one value to the next.
  std::uint32_t stride() const {
    if (!records) return 1;
    return counts == checkpoint::UpdateCounts::kNone && slots == 1 ? 2 : 4;
  }
  // Floats of an element, its value included.
  std::uint32_t floats() const { return records ? stride() : 1 + slots; }
};

// All blocks as of an instant. May be read and ended on any one thread, and outlive the store.
class FrozenDenseStore {
 public:
  FrozenDenseStore() = default;

  // Of values, slots and counts.
  std::uint64_t content_bytes() const;
  // What an image says of the slots, counts of blocks included.
  void SaveHead(checkpoint::ShardImage& image) const;
  // Copies values, slots and counts, beside SaveHead().
  void Save(checkpoint::ShardImage& image) const;
  // A block as its record in a checkpoint (checkpoint::EncodeBlock).
  std::string EncodeBlock(std::size_t index) const;
  // The number of the freeze, and whether a block is not as at the freeze `since`.
  std::uint32_t number() const { return blocks_.number(); }
  bool Changed(std::size_t index, std::uint64_t since) const {
    return blocks_.Changed(index, since);
  }

 private:
  friend class DenseStore;

  const float* Page(std::size_t index) const {
    return reinterpret_cast<const float*>(blocks_.Read(index, scratch_));
  }

  StoreShape shape_;
  std::vector<std::uint32_t> block_elements_;
  std::vector<std::uint32_t> block_updates_;
  FrozenPages blocks_;
  mutable std::vector<std::byte> scratch_;
};

class DenseStore {
 public:
  // For the blocks [first_block, last_block) of `layout`, which outlives the store. Empty until
  // Init() or Load(). `memory` is as CowPages asks.
  DenseStore(const LayoutView& layout, std::uint32_t first_block, std::uint32_t last_block,
             const StoreShape& shape,
             std::pmr::memory_resource* memory = std::pmr::new_delete_resource());

  const StoreShape& shape() const { return shape_; }

  // Takes the values of all elements; slots begin afresh.
  void Init(std::vector<float> values, const Optimizer& optimizer);
  // Takes blocks as checkpoints have them, all of them in order (FrozenDenseStore::EncodeBlock).
  // kInvalid if slots and counts, as the head of their image says, are another optimizer's or kept
  // in another way. With `fresh` only the values count and slots begin afresh, whatever they were.
  Status BeginLoad(const checkpoint::ImageSlots& head, const Optimizer* fresh);
  void LoadBlock(std::string_view content);
  // Without values again.
  void Clear();
  FrozenDenseStore Freeze() const;

  // Of all blocks, and what writes to frozen ones have copied so far.
  std::size_t bytes() const { return blocks_.bytes(); }
  std::uint64_t bytes_copied() const { return blocks_.bytes_copied(); }

  // Values of all elements, copied.
  std::vector<float> Values() const;
  // Values of a block: in place, or in `scratch` if they are not contiguous.
  std::span<const float> ValuesOf(std::uint32_t block, std::vector<float>& scratch) const;
  // Values at some positions of a block, which replace `values`.
  void Gather(std::uint32_t block, std::span<const std::uint16_t> positions,
              std::vector<float>& values) const;

  // One pushed block under the optimizer for which the shape was made.
  void Update(const codec::BlockView& push, const Optimizer& optimizer, const kernels::Step& step);
  // b += (v - b) * weight
  void Average(const codec::BlockView& push, float weight);
  // b = max(b, v)
  void Maximum(const codec::BlockView& push);

 private:
  // The page of a push's block, to write on what the push changes.
  CowPages::Writing Open(const codec::BlockView& push, const Optimizer& optimizer,
                         const kernels::Step& step);
  void UpdateInPieces(const codec::BlockView& push, const Optimizer& optimizer, kernels::Step step,
                      kernels::Elements elements);
  // Makes a page for each block; what is in them is not defined.
  void MakePages();
  void InitBlock(std::uint32_t block, const float* values, const Optimizer& optimizer);
  float* ValueAt(std::uint32_t block) {
    return reinterpret_cast<float*>(blocks_.Write(block - first_block_));
  }
  const float* ValueAt(std::uint32_t block) const {
    return reinterpret_cast<const float*>(blocks_.Read(block - first_block_));
  }

  const LayoutView& layout_;
  const std::uint32_t first_block_;
  const std::uint32_t last_block_;
  const std::size_t elements_;
  const StoreShape shape_;

  CowPages blocks_;
  std::vector<std::uint32_t> block_updates_;  // arrays, if updates are counted
  const Optimizer* fresh_ = nullptr;          // of the load under way
  std::vector<std::uint16_t> positions_;      // scratch
  std::vector<std::uint32_t> lines_;          // scratch
};

}  // namespace ps::server
