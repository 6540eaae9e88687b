// The values of the blocks of one shard, with the slots of the job's optimizer.
//
// They lie in memory in one of two ways, which StoreShape::Of chooses per job:
//
//   arrays    values of all elements, slot 0 of all elements, slot 1 of all
//             elements; updates are counted per block. For dense pushes, which
//             stream through whole blocks.
//   records   {w, slot} or {w, slot, slot, updates} of each element side by
//             side, 8 or 16 bytes: an entry of a sparse push touches one cache
//             line instead of three, and the bias correction of a rarely
//             touched element follows its own updates.
//
// Both take any push. In checkpoints they look alike but for the counts. Blocks
// of the rules Average and Maximum are changed by those and have unused slots.
// One thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "checkpoint/image.h"
#include "common/codec/block_codec.h"
#include "common/layout/layout.h"
#include "common/result.h"
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
};

class DenseStore {
 public:
  // For the blocks [first_block, last_block) of `layout`, which outlives the store. Empty until
  // Init() or Load().
  DenseStore(const LayoutView& layout, std::uint32_t first_block, std::uint32_t last_block,
             const StoreShape& shape);

  const StoreShape& shape() const { return shape_; }

  // Takes the values of all elements; slots begin afresh.
  void Init(std::vector<float> values, const Optimizer& optimizer);
  // Takes values, slots and counts of an image of this layout. kInvalid if they are another
  // optimizer's or kept in another way.
  Status Load(checkpoint::ShardImage& image);
  // Copies values, slots and counts.
  void Save(checkpoint::ShardImage& image) const;

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
  void UpdateInPieces(const codec::BlockView& push, const Optimizer& optimizer, kernels::Step step,
                      kernels::Elements elements);
  float* ValueAt(std::uint32_t block);
  const float* ValueAt(std::uint32_t block) const;

  const LayoutView& layout_;
  const std::uint32_t first_block_;
  const std::uint32_t last_block_;
  const std::size_t elements_;
  const StoreShape shape_;

  std::vector<float> values_;                 // arrays: values; records: all
  std::vector<float> slots_;                  // arrays: slot 0 of all elements, then slot 1
  std::vector<std::uint32_t> block_updates_;  // arrays, if updates are counted
};

}  // namespace ps::server
