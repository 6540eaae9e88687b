#include "ps-worker/engine/rows.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "ps-worker/engine/model.h"

namespace ps::worker {
namespace {

using ::testing::ElementsAre;

std::vector<EmbeddingTableSpec> Tables() {
  std::vector<EmbeddingTableSpec> tables(2);
  tables[0].name = "users";
  tables[0].columns = {"user"};
  tables[1].name = "words";
  tables[1].columns = {"first", "second"};
  return tables;
}

TEST(RowsTest, ABatchReadsEachRowOnceWhateverTheNumberOfItsIds) {
  const std::vector<std::uint64_t> ids = {9, 1, 1,  //
                                          4, 1, 2,  //
                                          9, 2, 1};
  BatchRows rows;
  FindRows(Tables(), ids, rows);
  ASSERT_EQ(rows.tables.size(), 2u);
  EXPECT_THAT(rows.tables[0].keys, ElementsAre(4, 9));
  // 1 and 2 of each of the two columns.
  ASSERT_EQ(rows.tables[1].keys.size(), 4u);
  ASSERT_EQ(rows.index.size(), ids.size());
  for (std::size_t record = 0; record < 3; ++record) {
    EXPECT_EQ(rows.tables[0].keys[rows.index[record * 3]], ids[record * 3]);
    for (std::uint32_t column = 0; column < 2; ++column) {
      EXPECT_EQ(rows.tables[1].keys[rows.index[record * 3 + 1 + column]],
                RowKey(ids[record * 3 + 1 + column], column, 2));
    }
  }
}

// docs/job-file.md: other programs find rows by this rule.
TEST(RowsTest, TheColumnIsTheSeedOfTheKeysHash) {
  EXPECT_EQ(RowKey(77, 0, 1), 77u);
  EXPECT_EQ(RowKey(std::numeric_limits<std::uint64_t>::max(), 0, 1),
            std::numeric_limits<std::uint64_t>::max());
  EXPECT_NE(RowKey(77, 0, 2), 77u);
  EXPECT_NE(RowKey(77, 0, 2), RowKey(77, 1, 2));
  EXPECT_EQ(RowKey(77, 1, 2), RowKey(77, 1, 3));
}

TEST(AreaUnderCurveTest, IsThePartOfThePairsInTheRightOrder) {
  EXPECT_EQ(AreaUnderCurve({2, 3}, {0, 1}), 1);
  EXPECT_EQ(AreaUnderCurve({0, 1}, {2, 3}), 0);
  EXPECT_EQ(AreaUnderCurve({1, 3}, {0, 2}), 0.75);
  EXPECT_EQ(AreaUnderCurve({1, 1}, {1, 1, 1}), 0.5);
  EXPECT_EQ(AreaUnderCurve({1, 2}, {1}), 0.75);
  EXPECT_EQ(AreaUnderCurve({1}, {}), 0.5);
}

TEST(AreaUnderCurveTest, AddsUpOverBatches) {
  EvaluationSums all;
  for (const float shift : {0.0f, 1.0f}) {
    EvaluationSums batch;
    batch.records = 2;
    batch.positive_scores = {1 + shift};
    batch.negative_scores = {0.5f + shift};
    all.Add(batch);
  }
  // Each batch is in order, both together are not.
  EXPECT_EQ(all.mean_metric(), 0.75);
}

}  // namespace
}  // namespace ps::worker
