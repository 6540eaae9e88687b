#include "common/layout/layout.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <memory>

namespace ps {
namespace {

using ::testing::HasSubstr;

std::unique_ptr<control::TableInfoT> Table(const std::string& name, TableRule rule,
                                           std::uint32_t first_block,
                                           std::vector<std::uint32_t> blocks) {
  auto table = std::make_unique<control::TableInfoT>();
  table->name = name;
  table->rule = rule;
  table->first_block = first_block;
  for (const std::uint32_t elements : blocks) table->elements += elements;
  table->block_elements = std::move(blocks);
  return table;
}

// Parameters in blocks 0 to 3, buffers in block 4.
control::LayoutT TwoTables() {
  control::LayoutT layout;
  layout.tables.push_back(Table("parameters", TableRule::Sgd, 0, {65536, 65536, 100, 7}));
  layout.tables.push_back(Table("buffers", TableRule::Average, 4, {32}));
  layout.blocks = 5;
  return layout;
}

// A single table of blocks of one element each.
control::LayoutT Uniform(std::uint32_t blocks) {
  control::LayoutT layout;
  layout.tables.push_back(
      Table("parameters", TableRule::Sgd, 0, std::vector<std::uint32_t>(blocks, 1)));
  layout.blocks = blocks;
  return layout;
}

std::string ErrorOf(const control::LayoutT& layout, std::uint32_t shards = 1) {
  const auto view = LayoutView::Create(layout, shards);
  if (view.ok()) return "";
  EXPECT_EQ(view.error().code, ErrorCode::kInvalid);
  return view.error().message;
}

TEST(LayoutTest, BlocksAreNumberedThroughAllTables) {
  const auto view = LayoutView::Create(TwoTables(), 2);
  ASSERT_TRUE(view.ok()) << view.error().message;
  EXPECT_EQ(view->block_count(), 5u);
  EXPECT_EQ(view->block(1).table_offset, 65536u);
  EXPECT_EQ(view->block(3).table_offset, 131172u);
  EXPECT_EQ(view->block(3).rule, TableRule::Sgd);
  EXPECT_EQ(view->block(4).table, 1u);
  EXPECT_EQ(view->block(4).table_offset, 0u);
  EXPECT_EQ(view->block(4).rule, TableRule::Average);
}

TEST(LayoutTest, ValuesOfAShardAreItsBlocksOneAfterTheOther) {
  const auto view = LayoutView::Create(TwoTables(), 2);
  ASSERT_TRUE(view.ok());
  EXPECT_EQ(view->shard_first_block(ShardId(0)), 0u);
  EXPECT_EQ(view->shard_last_block(ShardId(0)), 2u);
  EXPECT_EQ(view->shard_elements(ShardId(0)), 131072u);
  EXPECT_EQ(view->shard_elements(ShardId(1)), 139u);
  EXPECT_EQ(view->offset_in_shard(1), 65536u);
  EXPECT_EQ(view->offset_in_shard(2), 0u);
  EXPECT_EQ(view->offset_in_shard(4), 107u);
}

TEST(LayoutTest, EveryBlockIsInTheShardThatListsItAndNoShardIsEmpty) {
  for (std::uint32_t blocks = 1; blocks <= 40; ++blocks) {
    for (std::uint32_t shards = 1; shards <= blocks; ++shards) {
      const auto view = LayoutView::Create(Uniform(blocks), shards);
      ASSERT_TRUE(view.ok());
      std::uint32_t next = 0;
      for (std::uint32_t shard = 0; shard < shards; ++shard) {
        ASSERT_EQ(view->shard_first_block(ShardId(shard)), next);
        ASSERT_GT(view->shard_last_block(ShardId(shard)), next);
        for (; next < view->shard_last_block(ShardId(shard)); ++next) {
          ASSERT_EQ(view->shard_of_block(next), ShardId(shard)) << blocks << " " << shards;
          ASSERT_EQ(view->offset_in_shard(next), next - view->shard_first_block(ShardId(shard)));
        }
      }
      ASSERT_EQ(next, blocks);
    }
  }
}

TEST(LayoutTest, BlockOfNoneOrTooManyElementsIsRefused) {
  control::LayoutT layout = TwoTables();
  layout.tables[0]->block_elements[1] = 0;
  EXPECT_THAT(ErrorOf(layout), HasSubstr("`parameters`: a block of 0 elements"));
  layout.tables[0]->block_elements[1] = 65537;
  EXPECT_THAT(ErrorOf(layout), HasSubstr("a block of 65537 elements"));
}

TEST(LayoutTest, TableWhoseBlocksDoNotHoldItsElementsIsRefused) {
  control::LayoutT layout = TwoTables();
  layout.tables[1]->elements = 33;
  EXPECT_THAT(ErrorOf(layout), HasSubstr("`buffers`: its blocks hold 32 elements, it says 33"));
}

TEST(LayoutTest, FirstBlockThatLeavesAHoleIsRefused) {
  control::LayoutT layout = TwoTables();
  layout.tables[1]->first_block = 5;
  EXPECT_THAT(ErrorOf(layout), HasSubstr("first block is 5, expected 4"));
}

TEST(LayoutTest, WrongNumberOfBlocksIsRefused) {
  control::LayoutT layout = TwoTables();
  layout.blocks = 6;
  EXPECT_THAT(ErrorOf(layout), HasSubstr("5 blocks in its tables, it says 6"));
  EXPECT_THAT(ErrorOf(control::LayoutT()), HasSubstr("at least 1 expected"));
}

TEST(LayoutTest, TensorBeyondItsTableIsRefusedEvenIfItsEndOverflows) {
  control::LayoutT layout = TwoTables();
  layout.tables[1]->tensors.push_back(std::make_unique<control::TensorInfoT>());
  control::TensorInfoT& tensor = *layout.tables[1]->tensors[0];
  tensor.name = "running_mean";
  tensor.offset = 16;
  tensor.elements = 16;
  EXPECT_EQ(ErrorOf(layout), "");
  tensor.elements = 17;
  EXPECT_THAT(ErrorOf(layout), HasSubstr("tensor `running_mean` [16, +17)"));
  tensor.elements = std::numeric_limits<std::uint64_t>::max();
  EXPECT_THAT(ErrorOf(layout), HasSubstr("`running_mean`"));
}

TEST(LayoutTest, MissingTableOrUnknownRuleIsRefused) {
  control::LayoutT layout = TwoTables();
  layout.tables[1]->rule = static_cast<TableRule>(9);
  EXPECT_THAT(ErrorOf(layout), HasSubstr("unknown rule 9"));
  layout.tables[1].reset();
  EXPECT_THAT(ErrorOf(layout), HasSubstr("table 1 is missing"));
}

TEST(LayoutTest, ShardCountOutsideOneToBlocksIsRefused) {
  EXPECT_THAT(ErrorOf(TwoTables(), 0), HasSubstr("0 shards for 5 blocks, 1 to 5 expected"));
  EXPECT_THAT(ErrorOf(TwoTables(), 6), HasSubstr("6 shards"));
  EXPECT_EQ(ErrorOf(Uniform(5000), kMaxShards), "");
  EXPECT_THAT(ErrorOf(Uniform(5000), kMaxShards + 1), HasSubstr("1 to 4096 expected"));
}

control::LayoutT WithRows(std::vector<std::uint32_t> widths) {
  control::LayoutT layout = TwoTables();
  for (const std::uint32_t width : widths) {
    auto table = std::make_unique<control::RowTableInfoT>();
    table->name = "rows";
    table->width = width;
    layout.row_tables.push_back(std::move(table));
  }
  return layout;
}

TEST(LayoutTest, WithRowsThereMayBeShardsWithoutBlocks) {
  const auto view = LayoutView::Create(WithRows({16, 1024}), 64);
  ASSERT_TRUE(view.ok()) << view.error().message;
  EXPECT_EQ(view->row_table_count(), 2u);
  EXPECT_EQ(view->row_width(1), 1024u);
  EXPECT_EQ(view->row_width(2), 0u);
  std::uint32_t blocks = 0;
  std::uint64_t elements = 0;
  for (std::uint32_t shard = 0; shard < 64; ++shard) {
    const std::uint32_t first = view->shard_first_block(ShardId(shard));
    const std::uint32_t last = view->shard_last_block(ShardId(shard));
    EXPECT_EQ(first, blocks);
    for (; blocks < last; ++blocks) {
      EXPECT_EQ(view->shard_of_block(blocks), ShardId(shard));
      EXPECT_EQ(view->offset_in_shard(blocks), 0u);
    }
    elements += view->shard_elements(ShardId(shard));
  }
  EXPECT_EQ(blocks, 5u);
  EXPECT_EQ(elements, 131172u + 7 + 32);
}

TEST(LayoutTest, RowsOfAWidthThatCannotBeAreRefused) {
  EXPECT_THAT(ErrorOf(WithRows({0})), HasSubstr("of width 0, 1 to 1024 expected"));
  EXPECT_THAT(ErrorOf(WithRows({16, 1025})), HasSubstr("`rows` of width 1025"));
  control::LayoutT missing = WithRows({16});
  missing.row_tables[0].reset();
  EXPECT_THAT(ErrorOf(missing), HasSubstr("of width 0"));
  EXPECT_THAT(ErrorOf(WithRows(std::vector<std::uint32_t>(kMaxRowTables + 1, 1))),
              HasSubstr("1025 tables of rows"));
  EXPECT_THAT(ErrorOf(WithRows({16}), kMaxShards + 1), HasSubstr("1 to 4096 expected"));
}

TEST(LayoutTest, ShardCountIsAskedOrOnePerBlockUpTo256) {
  const auto choose = [](std::uint32_t blocks, std::int64_t asked, bool rows = false) {
    control::LayoutT layout;
    layout.blocks = blocks;
    if (rows) layout.row_tables.push_back(std::make_unique<control::RowTableInfoT>());
    return ChooseShardCount(layout, asked);
  };
  EXPECT_EQ(choose(10, 0), 10u);
  EXPECT_EQ(choose(1000, 0), 256u);
  EXPECT_EQ(choose(1000, 300), 300u);
  EXPECT_EQ(choose(10, 300), 10u);
  EXPECT_EQ(choose(100000, 100000), kMaxShards);
  EXPECT_EQ(choose(10, 0, true), 64u);
  EXPECT_EQ(choose(100, 0, true), 100u);
  EXPECT_EQ(choose(10, 300, true), 300u);
  EXPECT_EQ(choose(10, 3, true), 3u);
}

}  // namespace
}  // namespace ps
