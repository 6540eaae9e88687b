// The rows of a task's next push: the gradients of a step and what came back of earlier pushes.
//
// Gradients of rows are never sparsified: a step pushes all of its own, added up by key, with those
// of segments that a shard refused as too old (their residual). A step: Select(), then
// EncodeShard() for each shard, behind the shard's blocks. One thread; no locks. Magnitudes are
// bounded by kRowLimit, so that no value on the wire is ever infinite.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "common/ids.h"
#include "common/layout/layout.h"
#include "common/messages/wire.h"
#include "common/result.h"

namespace ps::worker {

inline constexpr float kRowLimit = 1e38f;

// Rows of one table.
struct TableRows {
  std::vector<std::uint64_t> keys;  // increasing strictly
  std::vector<float> values;        // the table's width for each key
};

class RowPush {
 public:
  // `codecs` says by table how its values are written: Fp32, Bf16 or Int8.
  RowPush(const LayoutView& layout, std::vector<wire::ValueCodec> codecs);

  // Selects the rows of all tables in `gradients` (none, or one entry a table) and the residual,
  // which is empty afterwards. What was selected before and not encoded is dropped.
  void Select(std::vector<TableRows> gradients);
  // Selects nothing; the residual stays.
  void SelectNothing();

  // Bounds for what EncodeShard will write: of all shards together.
  std::size_t MaxBytes() const;
  // Floats that are selected.
  std::uint64_t entries() const;
  // Writes the parts of a shard's selected rows. Returns the bytes written, at most MaxBytes() <=
  // out.size().
  std::size_t EncodeShard(ShardId shard, std::span<std::byte> out) const;

  // Adds the rows of a segment that a shard refused to the residual. `rows` are its parts of rows
  // (codec::SplitSegment), each `weight` times. kInvalid, and nothing changed, if they are not of
  // this layout.
  Status TakeBack(std::span<const std::byte> rows, float weight = 1);
  // The residual is counted in other units.
  void ScaleResidual(float factor);

  double ResidualSumOfSquares() const;

 private:
  struct Table {
    std::uint32_t width = 0;
    wire::ValueCodec codec = wire::ValueCodec::Fp32;
    std::map<std::uint64_t, std::vector<float>> residual;
    TableRows selected;
    // The selected rows by shard, in the order of their keys: those of shard s are
    // order[first[s]] .. order[first[s + 1] - 1], and so their keys.
    std::vector<std::uint32_t> order;
    std::vector<std::uint64_t> keys;
    std::vector<std::uint32_t> first;
  };

  void Sort(Table& table) const;

  const std::uint32_t shards_;
  std::vector<Table> tables_;
};

}  // namespace ps::worker
