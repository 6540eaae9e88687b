// The pushes that a bulk-synchronous shard has taken and not yet applied: those of clocks that some
// worker has still to push (staleness 0, rule S9 of docs/architecture.md).
//
// A push has its verdict when it comes in here: it is part of the shard's state, as its watermark
// is, and of the shard's images. It leaves with all others of its clock, in the order of workers,
// so that a sum does not depend on who came first. Bytes handed in have passed
// ParsePush of segment_content.h. One thread; no I/O.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <tuple>
#include <vector>

#include "checkpoint/image.h"
#include "common/codec/block_codec.h"
#include "common/codec/row_codec.h"
#include "common/ids.h"
#include "common/layout/layout.h"

namespace ps::server {

// Pushes of one incarnation that may wait: more than any window of a live worker. A replay that
// runs further ahead of the others is told to ask again later.
inline constexpr std::size_t kHeldPerWorkerMax = 64;

struct HeldPush {
  WorkerId worker;
  Incarnation incarnation;
  Clock clock;
  std::uint32_t samples = 0;
  std::vector<std::byte> bytes;  // blocks and rows as they came; none: an empty push
};

class HeldPushes {
 public:
  bool empty() const { return pushes_.empty(); }
  std::size_t CountOf(Incarnation incarnation) const;
  // The lowest clock held; not when empty.
  Clock OldestClock() const { return std::get<0>(pushes_.begin()->first); }

  void Add(WorkerId worker, Incarnation incarnation, Clock clock, std::uint32_t samples,
           std::span<const codec::BlockView> blocks, std::span<const codec::RowsView> rows);
  // The pushes of the oldest clock, in the order of workers.
  std::vector<HeldPush> TakeOldest();

  // For the images of checkpoints, in order. Bytes from an image are checked by who calls.
  std::vector<checkpoint::HeldPush> Save() const;
  void Load(const std::vector<checkpoint::HeldPush>& saved);

 private:
  using Key = std::tuple<Clock, WorkerId, Incarnation>;
  struct Content {
    std::uint32_t samples = 0;
    std::vector<std::byte> bytes;
  };
  std::map<Key, Content> pushes_;
};

// What the pushes of one clock come to: one push over `samples` records, whose blocks and rows are
// views into `bytes`, `row_bytes` and the pushes. Blocks with the rule Sgd and rows hold the mean
// of the pushes weighted by their samples, summed in the order given, as Fp32; all other blocks
// follow as they came.
struct MergedPush {
  std::uint32_t samples = 0;  // of the pushes with entries
  std::vector<codec::BlockView> blocks;
  std::vector<codec::RowsView> rows;
  std::vector<std::byte> bytes;
  std::vector<std::byte> row_bytes;
};
// Memory for Merge, kept to avoid allocations.
struct MergeScratch {
  std::vector<float> sum;
  std::vector<std::uint8_t> touched;
  std::vector<std::uint16_t> indices;
  std::vector<float> values;
  struct PushedRow {
    std::uint64_t key;
    std::uint32_t push;  // which of those given
    std::uint32_t row;   // of its part
  };
  std::vector<PushedRow> rows;
  std::vector<std::uint64_t> keys;
};
// All pushes are of the shard, and outlive the result.
MergedPush Merge(const LayoutView& layout, ShardId shard, std::span<const HeldPush> pushes,
                 MergeScratch& scratch);

}  // namespace ps::server
