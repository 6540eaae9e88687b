#include "common/layout/layout.h"

#include <algorithm>

#include "common/check.h"
#include "common/error_id.h"
#include "common/messages/wire.h"

namespace ps {
namespace {

Error Bad(const control::TableInfoT& table, const std::string& what) {
  return Error{ErrorId::kLayoutRefused, "layout refused: table `" + table.name + "`: " + what};
}

Status CheckTensors(const control::TableInfoT& table) {
  for (const auto& tensor : table.tensors) {
    if (tensor == nullptr) return Bad(table, "a tensor is missing");
    if (tensor->offset > table.elements || tensor->elements > table.elements - tensor->offset) {
      return Bad(table, "tensor `" + tensor->name + "` [" + std::to_string(tensor->offset) + ", +" +
                            std::to_string(tensor->elements) + ") exceeds the table's " +
                            std::to_string(table.elements) + " elements");
    }
  }
  return Ok();
}

std::uint32_t MaxShards(const control::LayoutT& layout) {
  return layout.row_tables.empty() ? std::min(kMaxShards, layout.blocks) : kMaxShards;
}

}  // namespace

Result<LayoutView> LayoutView::Create(const control::LayoutT& layout, std::uint32_t shards) {
  LayoutView view;
  view.prefix_.push_back(0);
  for (std::size_t index = 0; index < layout.tables.size(); ++index) {
    if (layout.tables[index] == nullptr) {
      return Error{ErrorId::kLayoutRefused,
                   "layout refused: table " + std::to_string(index) + " is missing"};
    }
    const control::TableInfoT& table = *layout.tables[index];
    if (table.rule > control::TableRule::MAX) {
      return Bad(table, "unknown rule " + std::to_string(static_cast<int>(table.rule)));
    }
    if (table.first_block != view.blocks_.size()) {
      return Bad(table, "its first block is " + std::to_string(table.first_block) + ", expected " +
                            std::to_string(view.blocks_.size()));
    }
    std::uint64_t offset = 0;
    for (const std::uint32_t elements : table.block_elements) {
      if (elements == 0 || elements > wire::kBlockElements) {
        return Bad(table, "a block of " + std::to_string(elements) + " elements, 1 to " +
                              std::to_string(wire::kBlockElements) + " expected");
      }
      Block block;
      block.table = static_cast<std::uint32_t>(index);
      block.rule = table.rule;
      block.elements = elements;
      block.table_offset = offset;
      view.blocks_.push_back(block);
      view.prefix_.push_back(view.prefix_.back() + elements);
      offset += elements;
    }
    if (offset != table.elements) {
      return Bad(table, "its blocks hold " + std::to_string(offset) + " elements, it says " +
                            std::to_string(table.elements));
    }
    PS_TRY(CheckTensors(table));
  }
  if (view.blocks_.empty() || view.blocks_.size() != layout.blocks) {
    return Error{ErrorId::kLayoutRefused, "layout refused: " + std::to_string(view.blocks_.size()) +
                                              " blocks in its tables, it says " +
                                              std::to_string(layout.blocks) +
                                              ", at least 1 expected"};
  }
  if (layout.row_tables.size() > kMaxRowTables) {
    return Error{ErrorId::kLayoutRefused,
                 "layout refused: " + std::to_string(layout.row_tables.size()) +
                     " tables of rows, at most " + std::to_string(kMaxRowTables) + " expected"};
  }
  for (const auto& table : layout.row_tables) {
    if (table == nullptr || table->width == 0 || table->width > kMaxRowWidth) {
      return Error{ErrorId::kLayoutRefused,
                   "layout refused: a table of rows `" + (table ? table->name : "") +
                       "` of width " + std::to_string(table ? table->width : 0) + ", 1 to " +
                       std::to_string(kMaxRowWidth) + " expected"};
    }
    view.row_widths_.push_back(table->width);
  }
  const std::size_t shards_max = MaxShards(layout);
  if (shards == 0 || shards > shards_max) {
    return Error{ErrorId::kLayoutRefused, "layout refused: " + std::to_string(shards) +
                                              " shards for " + std::to_string(view.blocks_.size()) +
                                              " blocks, 1 to " + std::to_string(shards_max) +
                                              " expected"};
  }
  view.shards_ = shards;
  return view;
}

std::uint32_t LayoutView::shard_first_block(ShardId shard) const {
  PS_CHECK(shard.value() <= shards_, shard, shards_);
  return static_cast<std::uint32_t>(std::uint64_t{block_count()} * shard.value() / shards_);
}

std::uint32_t LayoutView::shard_last_block(ShardId shard) const {
  return shard_first_block(ShardId(shard.value() + 1));
}

ShardId LayoutView::shard_of_block(std::uint32_t block) const {
  PS_CHECK(block < block_count(), block, block_count());
  // The largest s with floor(B s / S) <= block.
  return ShardId(
      static_cast<std::uint32_t>(((std::uint64_t{block} + 1) * shards_ - 1) / block_count()));
}

std::uint64_t LayoutView::shard_elements(ShardId shard) const {
  return prefix_[shard_last_block(shard)] - prefix_[shard_first_block(shard)];
}

std::uint64_t LayoutView::offset_in_shard(std::uint32_t block) const {
  return prefix_[block] - prefix_[shard_first_block(shard_of_block(block))];
}

std::uint32_t ChooseShardCount(const control::LayoutT& layout, std::int64_t asked) {
  constexpr std::uint32_t kAutomaticMax = 256;
  constexpr std::uint32_t kAutomaticMinWithRows = 64;
  const std::uint32_t shards_max = MaxShards(layout);
  if (asked > 0) return static_cast<std::uint32_t>(std::min<std::int64_t>(asked, shards_max));
  const std::uint32_t blocks = std::min(layout.blocks, kAutomaticMax);
  return layout.row_tables.empty() ? blocks : std::max(blocks, kAutomaticMinWithRows);
}

}  // namespace ps
