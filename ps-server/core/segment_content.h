// What a segment of a push brings to one shard: blocks of dense values, then rows.
//
// Views into the segment's bytes. Pure functions, any thread.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "common/codec/block_codec.h"
#include "common/codec/row_codec.h"
#include "common/ids.h"
#include "common/layout/layout.h"
#include "common/result.h"

namespace ps::server {

struct SegmentContent {
  std::vector<codec::BlockView> blocks;
  std::vector<codec::RowsView> rows;
};

// Takes the bytes of a push for `shard` apart; `content` is replaced. kInvalid unless all of it is
// well-formed (codec::ParseSegment, codec::ParseRows), of blocks of this shard, of tables of the
// job and of rows whose keys belong on this shard.
Status ParsePush(const LayoutView& layout, ShardId shard, std::span<const std::byte> bytes,
                 SegmentContent& content);

// The same of a pull, which has keys of rows and nothing else.
Status ParsePull(const LayoutView& layout, ShardId shard, std::span<const std::byte> bytes,
                 std::vector<codec::RowsView>& asked);

// False if any value is inf or NaN.
bool AllFinite(std::span<const codec::BlockView> blocks, std::span<const codec::RowsView> rows);

}  // namespace ps::server
