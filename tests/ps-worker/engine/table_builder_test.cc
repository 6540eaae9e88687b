#include "ps-worker/engine/table_builder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/layout/layout.h"

namespace ps::worker {
namespace {

using ::testing::ElementsAre;

control::LayoutT LayoutOf(const std::vector<TensorShape>& tensors, std::uint64_t salt = 0) {
  std::vector<control::TableInfoT> tables;
  tables.push_back(BuildParameterTable(tensors, 2048).table);
  return BuildLayout(std::move(tables), salt);
}

const std::vector<TensorShape> kMlp = {
    {"a.weight", {300, 400}}, {"a.bias", {300}}, {"b.weight", {10, 300}}, {"b.bias", {10}}};

TEST(TableBuilderTest, LargeTensorsComeFirstAndSmallOnesInBlocksOfTheirOwn) {
  const auto built = BuildParameterTable(kMlp, 2048);
  EXPECT_THAT(built.offsets, ElementsAre(0, 123'000, 120'000, 123'300));
  EXPECT_EQ(built.selected_elements, 123'000u);
  EXPECT_EQ(built.table.elements, 123'310u);
  EXPECT_THAT(built.table.block_elements, ElementsAre(65'536, 57'464, 310));
  EXPECT_EQ(built.table.tensors[1]->name, "b.weight");
}

TEST(TableBuilderTest, OneDimensionalTensorsAreSmallWhateverTheirSize) {
  const auto built = BuildParameterTable({{"bias", {100'000}}, {"weight", {50, 50}}}, 2048);
  EXPECT_EQ(built.selected_elements, 2500u);
  EXPECT_THAT(built.offsets, ElementsAre(2500, 0));
  EXPECT_THAT(built.table.block_elements, ElementsAre(2500, 65'536, 34'464));
}

TEST(TableBuilderTest, WithoutLargeTensorsNothingIsSelected) {
  const auto built = BuildParameterTable({{"weight", {2, 2}}}, 2048);
  EXPECT_EQ(built.selected_elements, 0u);
  EXPECT_THAT(built.table.block_elements, ElementsAre(4));
}

TEST(TableBuilderTest, BlocksAreNumberedThroughAllTablesAndEmptyTablesLeftOut) {
  std::vector<control::TableInfoT> tables;
  tables.push_back(BuildParameterTable(kMlp, 2048).table);
  tables.push_back(BuildPlainTable("buffers", control::TableRule::Average, {}));
  tables.push_back(BuildPlainTable("counters", control::TableRule::Maximum, {{"n", {}}}));
  const auto layout = BuildLayout(std::move(tables), 0);
  ASSERT_EQ(layout.tables.size(), 2u);
  EXPECT_EQ(layout.tables[1]->first_block, 3u);
  EXPECT_EQ(layout.tables[1]->elements, 1u);
  EXPECT_EQ(layout.blocks, 4u);
  EXPECT_EQ(layout.parameters, 123'310u);
  const auto view = LayoutView::Create(layout, 4);
  ASSERT_TRUE(view.ok()) << view.error().message;
  EXPECT_EQ(view->block(3).rule, control::TableRule::Maximum);
}

TEST(TableBuilderTest, TheFingerprintTellsNamesShapesOrderAndSaltApart) {
  const auto of = [](const std::vector<TensorShape>& tensors, std::uint64_t salt = 0) {
    return LayoutOf(tensors, salt).fingerprint;
  };
  const auto base = of(kMlp);
  EXPECT_EQ(of(kMlp), base);
  auto other = kMlp;
  other[0].name = "c.weight";
  EXPECT_NE(of(other), base);
  other = kMlp;
  other[0].shape = {400, 300};
  EXPECT_NE(of(other), base);
  other = kMlp;
  std::swap(other[0], other[2]);
  EXPECT_NE(of(other), base);
  EXPECT_NE(of(kMlp, 1), base);
}

}  // namespace
}  // namespace ps::worker
