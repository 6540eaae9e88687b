#include "ps-server/core/segment_content.h"

#include <algorithm>
#include <string>

namespace ps::server {
namespace {

Status ParseRowsOfShard(const LayoutView& layout, ShardId shard, std::span<const std::byte> bytes,
                        codec::RowContent what, std::vector<codec::RowsView>& rows) {
  PS_TRY(codec::ParseRows(
      bytes, what, [&layout](std::uint32_t table) { return layout.row_width(table); }, rows));
  for (const codec::RowsView& part : rows) {
    if (codec::RowsOfShard(part, shard, layout.shard_count())) continue;
    return Error{ErrorCode::kInvalid, "rows of table " + std::to_string(part.table) +
                                          " that are not of shard " +
                                          std::to_string(shard.value())};
  }
  return Ok();
}

}  // namespace

Status ParsePush(const LayoutView& layout, ShardId shard, std::span<const std::byte> bytes,
                 SegmentContent& content) {
  const codec::SegmentParts parts = PS_TRY(codec::SplitSegment(bytes));
  const auto elements_of = [&layout, shard](std::uint32_t block) -> std::uint32_t {
    return block >= layout.shard_first_block(shard) && block < layout.shard_last_block(shard)
               ? layout.block(block).elements
               : 0;
  };
  PS_TRY(codec::ParseSegment(parts.blocks, elements_of, content.blocks));
  return ParseRowsOfShard(layout, shard, parts.rows, codec::RowContent::kKeysAndValues,
                          content.rows);
}

Status ParsePull(const LayoutView& layout, ShardId shard, std::span<const std::byte> bytes,
                 std::vector<codec::RowsView>& asked) {
  return ParseRowsOfShard(layout, shard, bytes, codec::RowContent::kKeys, asked);
}

bool AllFinite(std::span<const codec::BlockView> blocks, std::span<const codec::RowsView> rows) {
  return std::all_of(blocks.begin(), blocks.end(),
                     [](const codec::BlockView& block) { return codec::AllFinite(block); }) &&
         std::all_of(rows.begin(), rows.end(),
                     [](const codec::RowsView& part) { return codec::AllFinite(part); });
}

}  // namespace ps::server
